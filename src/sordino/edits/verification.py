"""Check that a baked model or an adapter computes what the hooked model does."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sordino.edits import peft_layout
from sordino.edits.names import on_disk, parameter_scales
from sordino.edits.quantised import QuantisedFolder, read_quantised
from sordino.errors import UserError
from sordino.extras import require
from sordino.files import counted, user_path
from sordino.interventions import Dampening
from sordino.models.dtypes import COMPUTE_DTYPES, rounding_unit
from sordino.models.open import ALL_GPUS, OpenModel, empty_model, open_model
from sordino.models.reference import ModelRef, resolve
from sordino.models.safetensors_header import read_header
from sordino.models.tokenise import encode_for

_TEXTS = (
    "The train was late again, so we walked along the river until it grew dark.",
    "You are wrong about nearly everything, and everybody in this room knows it.",
    "To make bread, mix flour, water, salt and yeast, and wait longer than you want to.",
    "def add(a, b):\n    return a + b",
)
_MAX_TOKENS = 32  # with a large vocabulary the logits of few tokens take much memory already
_ROUNDINGS = 16
"""How far rounding may move logits, in units of their own rounding and √layers.

Measured on random models of 70 families the median token is off by 1 to 4 such units.
"""
_FLOAT32 = 2.0**-24  # the relative error of one rounding in which everything is computed
# Of 4-bit floats, relative to the largest weight of a block.
_FP4_UNIT = 2.0**-3
_TOO_COARSE = "4-bit floats are rounded too coarsely to compare logits"


@dataclass(frozen=True)
class Verification:
    """How far the baked model's logits are from the hooked one's.

    Args:
        largest_difference: The largest absolute difference of two logits.
        largest_logit: The largest absolute logit, for comparison.
        tokens: The number of tokens at which all logits were compared.
        median_difference: The median over the tokens of a token's largest difference. It decides,
            because rounding can send a single token to another MoE expert.
        bound: The largest median that rounding explains: 16 · u · √layers · the largest logit,
            with u the relative error of one rounding in the coarsest type of the weights and of
            the computation.
    """

    largest_difference: float
    largest_logit: float
    tokens: int
    median_difference: float
    bound: float

    @property
    def within_rounding(self) -> bool:
        """Whether rounding explains the difference."""
        return self.median_difference <= self.bound  # false for NaN

    @property
    def line(self) -> str:
        """The same in words."""
        return (
            f"largest difference between the logits of hooks and weights: "
            f"{self.largest_difference:.3g} (largest logit {self.largest_logit:.3g}, "
            f"{self.tokens} tokens; median over tokens {self.median_difference:.3g}, rounding "
            f"explains {self.bound:.3g})"
        )


@dataclass(frozen=True)
class RowVerification:
    """How far the baked model's de-quantised rows are from the factors times the original's.

    Args:
        largest_difference: The largest absolute difference of two weights.
        largest_weight: The largest absolute weight after the edit, for comparison.
        rows: The number of rows that were compared.
        reason: Why no logits were compared.
        unit: The relative error of one rounding in the coarsest type of the weights.
    """

    largest_difference: float
    largest_weight: float
    rows: int
    reason: str
    unit: float = 0.0

    @property
    def bound(self) -> float:
        """The largest difference that rounding explains: that of two roundings."""
        return 2 * self.unit * self.largest_weight

    @property
    def within_rounding(self) -> bool:
        """Whether rounding explains the difference."""
        return self.largest_difference <= self.bound  # false for NaN

    @property
    def line(self) -> str:
        """The same in words."""
        return (
            "largest difference between the de-quantised rows and the factors times the "
            f"original's: {self.largest_difference:.3g} (largest weight {self.largest_weight:.3g}, "
            f"rounding explains {self.bound:.3g}; {counted(self.rows, 'row')}; there are no "
            f"logits: {self.reason})"
        )


def verify(
    model: str | Path | ModelRef | OpenModel,
    dampening: Dampening,
    baked: str | Path,
    *,
    texts: Sequence[str] = _TEXTS,
    device: str = "auto",
    dtype: str = "auto",
    revision: str | None = None,
) -> Verification | RowVerification:
    """Compare the logits of a model under forward hooks with those of its baked copy or adapter.

    Unless `model` is open already, one model at a time is in memory. A quantised model that cannot
    be opened here (a package or a GPU is missing), or that holds 4-bit floats, is compared by its
    de-quantised rows.

    Args:
        model: The model as it was before the edit.
        dampening: The factors that were baked.
        baked: The folder that `bake` made.
        texts: What the models read, each cut at 32 tokens.
        device: "auto" (a GPU if there is one), or a torch device.
        dtype: In which both compute; "auto" is the checkpoint's own.
        revision: A branch, tag or commit of the hub.

    Returns:
        The comparison of logits, or of rows; `within_rounding` is its verdict.

    Raises:
        UserError: A model cannot be opened, or the dampening does not fit it.

    Example:
        >>> sordino.verify("tiny", sordino.aura(expertise), "quiet").within_rounding
        True
    """
    ref = model.ref if isinstance(model, OpenModel) else resolve(model, revision)
    baked = user_path(baked)
    quantised = read_quantised(ref.path) if ref.kind == "folder" else None
    if quantised and quantised.is_fp4 and not _is_adapter(baked):
        return _compare_rows(ref, quantised, dampening, baked, _TOO_COARSE)
    try:
        opened = open_model(
            model if isinstance(model, OpenModel) else ref, device=device, dtype=dtype
        )
    except UserError as error:
        if quantised is None or _is_adapter(baked):  # an adapter has no rows to compare
            raise
        return _compare_rows(ref, quantised, dampening, baked, str(error))
    tokens = encode_for(opened, texts, _MAX_TOKENS)
    hooked = _logits(opened.model, tokens, dampening)
    unit = max(_unit(ref, baked), torch.finfo(opened.model.dtype).eps / 2)
    layers = opened.decoder_config.num_hidden_layers
    if _is_adapter(baked):
        adapted = _adapt(opened.model, baked)
        written = _logits(adapted, tokens)
        adapted.unload()
    else:
        at = str(opened.device) if len(opened.devices) == 1 else ALL_GPUS
        # FP8 is not among the choices.
        precision = opened.dtype_name if opened.dtype_name in COMPUTE_DTYPES else "auto"
        del opened
        written = _logits(open_model(baked, device=at, dtype=precision).model, tokens)
    # Per token; torch's `max`, unlike Python's, keeps NaN.
    apart = torch.cat(
        [(a - b).abs().amax(-1) for a, b in zip(hooked, written, strict=True)]
    ).nan_to_num(torch.inf)
    largest = max(float(logits.abs().max()) for logits in hooked)
    return Verification(
        largest_difference=float(apart.max()),
        largest_logit=largest,
        tokens=sum(map(len, tokens)),
        median_difference=float(apart.median()),
        bound=_ROUNDINGS * unit * layers**0.5 * largest,
    )


def _is_adapter(baked: Path) -> bool:
    return (baked / peft_layout.CONFIG).is_file() and not (baked / "config.json").is_file()


def _unit(ref: ModelRef, baked: Path) -> float:
    """The relative error of one rounding in the coarsest type of a baked folder's weights."""
    source = ref if _is_adapter(baked) else ModelRef(str(baked), "folder", baked)
    if source.kind == "gguf":
        return _FLOAT32  # de-quantised
    stored = (entry.dtype for file in source.weight_files for entry in read_header(file).values())
    return max((unit for dtype in stored if (unit := rounding_unit(dtype))), default=_FLOAT32)


@torch.no_grad()
def _logits(
    model: Any, tokens: list[list[int]], dampening: Dampening | None = None
) -> list[Tensor]:
    with dampening.applied(model) if dampening else nullcontext():
        return [
            model(torch.tensor([ids], device=model.device)).logits[0].float().cpu()
            for ids in tokens
        ]


def _largest(values: Tensor) -> float:
    """The largest absolute value; infinity if one is NaN."""
    return float(values.abs().nan_to_num(torch.inf).amax()) if values.numel() else 0.0


def _adapt(model: PreTrainedModel, adapter: str | Path) -> Any:
    require("peft", "The comparison of an adapter")
    from peft import PeftModel

    return PeftModel.from_pretrained(model, str(adapter))


def _compare_rows(
    ref: ModelRef, before: QuantisedFolder, dampening: Dampening, baked: Path, reason: str
) -> RowVerification:
    after = read_quantised(baked)
    if after is None:
        raise UserError(f"{baked} is not quantised, and {ref.name} is: it was not baked from it.")
    model = empty_model(ref)
    scales = on_disk(model, parameter_scales(model, dampening), before.names)
    unit = _FP4_UNIT if before.is_fp4 else max(_unit(ref, baked), _FLOAT32)
    found = RowVerification(0.0, 0.0, 0, reason, unit)
    for name, scale in scales.items():
        if name in before.layers:
            if name not in after.layers:
                raise UserError(
                    f"{baked} has no quantised layer {name}, and {ref.name} has: it was not baked "
                    "from it."
                )
            rows = after.scheme.rows(after.layers[name])
            expected = before.scheme.rows(before.layers[name]) * scale.reshape(-1, 1)
            found = RowVerification(
                max(found.largest_difference, _largest(rows - expected)),
                max(found.largest_weight, float(rows.abs().max())),
                found.rows + len(rows),
                reason,
                unit,
            )
    return found
