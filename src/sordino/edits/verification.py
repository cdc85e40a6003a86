"""Whether what was baked computes what the hooked model does."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sordino.edits import adapters
from sordino.errors import UserError
from sordino.interventions import Dampening
from sordino.models.open import OpenModel, open_model
from sordino.models.reference import ModelRef

_TEXTS = (
    "The train was late again, so we walked along the river until it grew dark.",
    "You are wrong about nearly everything, and everybody in this room knows it.",
    "To make bread, mix flour, water, salt and yeast, and wait longer than you want to.",
    "def add(a, b):\n    return a + b",
)
_MAX_TOKENS = 32  # with a large vocabulary the logits of few tokens take much memory already


@dataclass(frozen=True)
class Verification:
    """How far the baked model's logits are from the hooked one's.

    Args:
        largest_difference: The largest absolute difference of two logits.
        largest_logit: The largest absolute logit, for comparison.
        tokens: The number of tokens at which all logits were compared.
    """

    largest_difference: float
    largest_logit: float
    tokens: int

    @property
    def line(self) -> str:
        """The same in words."""
        return (
            f"largest difference between the logits of hooks and weights: "
            f"{self.largest_difference:.3g} (largest logit {self.largest_logit:.3g}, "
            f"{self.tokens} tokens)"
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
) -> Verification:
    """Compare the logits of a model dampened by hooks with those of its baked copy or adapter.

    Unless `model` is open already, one model at a time is in memory.

    Args:
        model: The model as it was before the edit.
        dampening: The factors that were baked.
        baked: The folder that `bake` made.
        texts: What the models read, each cut at 32 tokens.
        device: "auto" (a GPU if there is one), or a torch device.
        dtype: In which both compute; "auto" is the checkpoint's own.
        revision: A branch, tag or commit of the hub.

    Raises:
        UserError: A model cannot be opened, or the dampening does not fit it.
    """
    opened = open_model(model, device=device, dtype=dtype, revision=revision)
    tokens = [opened.tokenizer(text)["input_ids"][:_MAX_TOKENS] for text in texts]
    hooked = _logits(opened.model, tokens, dampening)
    if (Path(baked) / adapters.CONFIG).is_file():
        adapted = _adapted(opened.model, baked)
        written = _logits(adapted, tokens)
        adapted.unload()
    else:
        at, precision = str(opened.device), opened.dtype_name
        del opened
        written = _logits(open_model(baked, device=at, dtype=precision).model, tokens)
    return Verification(
        largest_difference=max(
            float((a - b).abs().max()) for a, b in zip(hooked, written, strict=True)
        ),
        largest_logit=max(float(logits.abs().max()) for logits in hooked),
        tokens=sum(map(len, tokens)),
    )


@torch.no_grad()
def _logits(
    model: Any, tokens: list[list[int]], dampening: Dampening | None = None
) -> list[Tensor]:
    with dampening.applied(model) if dampening else nullcontext():
        return [
            model(torch.tensor([ids], device=model.device)).logits[0].float().cpu()
            for ids in tokens
        ]


def _adapted(model: PreTrainedModel, adapter: str | Path) -> Any:
    try:
        from peft import PeftModel
    except ImportError:
        raise UserError(
            "An adapter is compared through PEFT, which is not here: pip install sordino[peft]."
        ) from None
    return PeftModel.from_pretrained(model, str(adapter))
