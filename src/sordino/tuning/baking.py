"""Bake an expertise or a dampening, at a strength or as strong as a divergence budget allows."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sordino import progress as show
from sordino.edits import baking
from sordino.edits.formats import FORMATS, RANK
from sordino.edits.record import Provenance
from sordino.errors import UserError
from sordino.evaluation.texts import KIT_PROSE
from sordino.interventions import Dampening
from sordino.interventions.registry import ROWS
from sordino.models.open import OpenModel, open_model
from sordino.models.reference import ModelRef, resolve
from sordino.tuning.calibration import Source, dampening_of, sized


def make_dampening(
    model: str | Path | ModelRef | OpenModel,
    sources: Source | Sequence[Source],
    intervention: str = "aura",
    *,
    strength: float = 1.0,
    settings: Mapping[str, Any] | None = None,
    divergence: float | None = None,
    texts: str = KIT_PROSE,
    seed: int = 0,
    device: str = "auto",
    dtype: str = "auto",
    revision: str | None = None,
) -> Dampening:
    """The dampening of a model from expertise, dampenings or their files.

    Args:
        model: What `sordino.open_model` takes, or an open model; it is used with `divergence` only.
        sources: An expertise, a dampening or the file of either, or several of these, which are
            applied one after the other.
        intervention: The rule that is applied to each expertise.
        strength: Of each of them; see `Dampening.scaled`.
        settings: The rule's own settings, such as {"k": 100}.
        divergence: A divergence budget, in nats per token, in place of a strength: the change is
            made as strong as it allows, by measuring the divergence.
        texts: Ordinary texts for measuring it, as for `sordino.Perplexity`; those are used on which
            an evaluation with the same seed does not report.
        seed: Of the choice of these texts.
        device: See `sordino.open_model`.
        dtype: See `sordino.open_model`.
        revision: See `sordino.open_model`.

    Raises:
        UserError: An input cannot be used, or two sizes are given.

    Example:
        >>> dampening = sordino.make_dampening(
        ...     "tiny", expertise, divergence=0.01, texts="prose.txt"
        ... )
        >>> dampening.strength != 1
        True
    """
    if divergence is None:
        return dampening_of(sources, intervention, strength=strength, settings=settings)
    if strength != 1:
        raise UserError("`strength` and `divergence` are two sizes: give one of them.")
    if not isinstance(model, OpenModel):
        ref = resolve(model, revision)
        show.note(f"opening {ref.name}")
        model = open_model(ref, device=device, dtype=dtype)
    return sized(
        model,
        sources,
        divergence,
        intervention=intervention,
        settings=settings,
        texts=texts,
        seed=seed,
    ).dampening


def bake(
    model: str | Path | ModelRef | OpenModel,
    dampening: Source | Sequence[Source],
    output: str | Path,
    *,
    intervention: str = "aura",
    strength: float = 1.0,
    settings: Mapping[str, Any] | None = None,
    divergence: float | None = None,
    texts: str = KIT_PROSE,
    seed: int = 0,
    device: str = "auto",
    force: bool = False,
    dtype: str = "auto",
    revision: str | None = None,
    allow_other_weights: bool = False,
    format: str = "weights",
    rank: int | None = None,
    finish: Callable[[Path, Provenance], None] | None = None,
) -> Provenance:
    """Write a dampened copy of a model, or an adapter that dampens one while it runs.

    A folder's shards are edited as streams, and every byte outside the sites' weights and biases is
    kept; in quantised weights the scales are edited (docs/quantised.md). If the output's name ends
    in ".gguf", a GGUF file is copied with the block scales of the dampened rows changed; otherwise
    it is de-quantised and saved as a folder. The output appears under its name only when it is
    whole. A folder holds the provenance (`sordino.json`), the factors
    (`sordino/dampening.safetensors`), a README.md, and the source's own README.md as
    `README.base.md`; a GGUF file holds the provenance in its metadata.

    Shifts are written into biases. If a site has none, the setting of the configuration that gives
    it one (such as `mlp_bias`) is turned on; if there is no such setting, use the format "hooks".

    Args:
        model: A hub id, a transformers folder, a ".gguf" file, or an open model, whose files are
            read again.
        dampening: Factors for the model's sites, or another source for `make_dampening`, such as an
            expertise.
        output: The folder to make, or the ".gguf" file.
        intervention: See `make_dampening`.
        strength: See `make_dampening`.
        settings: See `make_dampening`.
        divergence: See `make_dampening`.
        texts: See `make_dampening`.
        seed: See `make_dampening`.
        device: Where the divergence is measured.
        force: Replace an existing model there.
        dtype: The dtype of a folder written from a GGUF file; other weights keep their own.
        revision: A branch, tag or commit of the hub.
        allow_other_weights: Whether the factors may come from other weights of the same
            architecture, such as those from which this model was fine-tuned.
        format: "weights"; "lora", an adapter for servers, and "ia3", one for PEFT
            (docs/adapters.md); "hooks", factors and shifts alone, for
            `Dampening.load(path).applied(model)`; "control-vector", shifts for llama.cpp
            (docs/shifts.md); or a format from another package.
        rank: For "lora": the most rows of each matrix that may change (64). It is also the rule's
            limit `rows`, unless `settings` give that.
        finish: Called with the folder (or the file) and the provenance before it is published, to
            add files such as a README.md with an evaluation.

    Returns:
        The provenance, as in `sordino.json`. That of a GGUF file has a `rounding` by tensor.

    Raises:
        UserError: The model and the dampening do not fit, or the output cannot be written.

    Example:
        >>> record = sordino.bake(
        ...     "tiny", expertise, "quieter", divergence=0.01, texts="prose.txt", seed=3
        ... )
        >>> record.changed > 0
        True
    """
    ref = model.ref if isinstance(model, OpenModel) else resolve(model, revision)
    # Before a size is measured.
    baking.claim(ref, output, force=force, dtype=dtype, format=format, rank=rank)
    made = make_dampening(
        model if isinstance(model, OpenModel) else ref,
        dampening,
        intervention,
        strength=strength,
        settings=within_rank(format, rank, settings or {}),
        divergence=divergence,
        texts=texts,
        seed=seed,
        device=device,
        dtype=dtype,
    )
    return baking.bake(
        ref,
        made,
        output,
        force=force,
        dtype=dtype,
        allow_other_weights=allow_other_weights,
        format=format,
        rank=rank,
        finish=finish,
    )


def within_rank(format: str, rank: int | None, settings: Mapping[str, Any]) -> dict[str, Any]:
    """A rule's settings, with the rank as the default limit on changed rows.

    Args:
        format: The format of the edit; one without a rank sets no limit.
        rank: Its rank; None for the default.
        settings: The rule's.
    """
    if not FORMATS.named(format).is_ranked:
        return dict(settings)
    return {ROWS.name: RANK if rank is None else rank, **settings}
