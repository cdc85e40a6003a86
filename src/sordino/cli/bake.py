"""`sordino bake`."""

from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from sordino.cli.options import (
    Output,
    OutputOptions,
    print_json,
    print_lines,
)
from sordino.errors import UserError
from sordino.files import counted, has_suffix
from sordino.options.groups import (
    InterventionOptions,
    OpeningOptions,
    clean_texts,
)
from sordino.registry import brought

if TYPE_CHECKING:
    from sordino.edits import FileVerification, RowVerification, Verification
    from sordino.edits.record import Provenance, Quantisation

    Format = str
else:
    Format = Literal["weights", "ia3", "lora", "hooks", "control-vector", *brought("formats")]


def bake(
    model: str,
    /,
    *expertise: Annotated[Path, Parameter(required=True)],
    output: Output,
    format: Format = "weights",
    rank: int | None = None,
    verify: bool = False,
    allow_other_weights: bool = False,
    texts: str = "kit",
    seed: int = 0,
    rule: InterventionOptions = InterventionOptions(),
    opening: OpeningOptions = OpeningOptions(),
    printing: OutputOptions = OutputOptions(),
) -> None:
    """Write dampening factors into a model's weights, or as an adapter.

    A transformers folder is edited shard by shard; all other bytes are copied. In a quantised one
    (GPTQ, AWQ, compressed-tensors, FP8, bitsandbytes) the scales are edited. If the output's name
    ends in .gguf, a GGUF file is copied with other block scales for the dampened neurons; otherwise
    it is de-quantised into a transformers folder. The result runs without Sordino. The factors of
    several files are multiplied.

    Parameters
    ----------
    model
        The model that the expertise was found on.
    expertise
        Expertise files, to which the intervention is applied, or dampening files, whose factors
        are used as they are; hf:org/name for one on the hub. --strength applies to each.
    output
        The folder to write, or the .gguf file.
    format
        weights: a whole model; lora: an adapter that servers switch and scale for each request (for
        a GGUF file, one for llama.cpp); ia3: a small adapter that PEFT loads onto the model; hooks:
        only the factors and shifts, for Sordino's forward hooks, which need no biases for shifts;
        control-vector: shifts of the layers' outputs to the residual stream, for llama.cpp.
    rank
        For --format lora: the most neurons of each linear layer that change (64). The rule's
        --set rows is the same, unless it is given.
    verify
        Compare the result's logits with those of the original under forward hooks, and show the
        largest difference. For a GGUF file, and for a quantised model that cannot run here,
        compare the weights.
    allow_other_weights
        Bake into weights other than those that the expertise was found on, such as a fine-tuned
        copy's.
    texts
        Ordinary text on which --divergence is measured: kit, or as for evaluate.
    seed
        Seed of the choice of texts for --divergence. `sordino evaluate` with the same --seed uses
        other texts.
    """
    from sordino.edits import bake as bake_model
    from sordino.edits import verify as compare
    from sordino.edits import verify_file
    from sordino.edits.baking import claim
    from sordino.extras import require
    from sordino.models.reference import resolve
    from sordino.outputs import claim_output, model_kind
    from sordino.progress import note
    from sordino.tuning.baking import make_dampening, within_rank

    with printing.in_force():
        if verify and format == "hooks":
            raise UserError("--verify needs weights, and --format hooks writes none: leave it out.")
        if verify and format == "control-vector":
            raise UserError("--verify cannot run a control vector: leave it out.")
        if verify and format in ("ia3", "lora"):
            require("peft", "The comparison of an adapter")
        claim_output(output, model_kind(output), force=printing.force, inputs=[model, *expertise])
        ref = resolve(model, opening.revision)
        claim(ref, output, force=printing.force, dtype=opening.dtype, format=format, rank=rank)
        if verify and format == "lora" and ref.kind == "gguf":
            raise UserError("--verify cannot run an adapter for llama.cpp: leave it out.")
        dampening = make_dampening(
            ref,
            expertise,
            rule.intervention,
            strength=rule.strength,
            settings=within_rank(format, rank, rule.settings()),
            divergence=rule.divergence,
            texts=clean_texts(texts),
            seed=seed,
            device=opening.device,
            dtype=opening.dtype,
        )
        record = bake_model(
            ref,
            dampening,
            output,
            force=printing.force,
            dtype=opening.dtype,
            allow_other_weights=allow_other_weights,
            format=format,
            rank=rank,
        )
        checked: Verification | FileVerification | RowVerification | None = None
        if verify and has_suffix(output, ".gguf"):
            note("comparing the result's weights with the original's")
            checked = verify_file(ref, dampening, output)
        elif verify:
            note("comparing the result with hooks on the original")
            checked = compare(ref, dampening, output, device=opening.device, dtype=opening.dtype)
    if printing.json:
        verification = {} if checked is None else {"verification": _as_json(checked)}
        print_json({"output": str(output), **record.as_json(), **verification})
    else:
        _print_baked(record, output, checked)
    if checked is not None and not checked.within_rounding:
        raise UserError(
            f"{output} differs from the intended model: {checked.line}. Do not use it; it was kept "
            "for inspection."
        )


def _as_json(checked: "Verification | FileVerification | RowVerification") -> dict[str, object]:
    """The comparison's fields, with None for infinity and NaN, which JSON does not have."""
    return {
        name: None if isinstance(value, float) and not isfinite(value) else value
        for name, value in vars(checked).items()
    }


def _print_baked(
    record: "Provenance",
    output: Path,
    checked: "Verification | FileVerification | RowVerification | None",
) -> None:
    print_lines(
        f"{record.changed:,} of {record.neurons:,} neurons dampened ({record.origin.in_words})"
    )
    if record.quantised:
        print(_quantised_line(record.quantised))
    for line in _rounding_lines(record):
        print(line)
    if checked is not None:
        print(checked.line)
    print(f"written: {output}")


def _quantised_line(record: "Quantisation") -> str:
    assert record.layers is not None  # it was written just now
    rounded = record.rounded
    fate = f", {rounded} of them rounded again" if rounded else ", by their scales alone"
    return f"{record.scheme}: {counted(record.layers, 'layer')} changed{fate}"


def _rounding_lines(record: "Provenance") -> list[str]:
    """How rounding changed a GGUF file's block scales, if it matters."""
    poor = {name: found for name, found in (record.rounding or {}).items() if found.coarse}
    if not poor:
        return []
    coarse = sum(found.coarse for found in poor.values())
    zeroed = sum(found.zeroed for found in poor.values())
    named = ", ".join(sorted(poor, key=lambda name: -poor[name].coarse)[:3])
    return [
        f"rounding moved {counted(coarse, 'block scale')} by more than 1 %, {zeroed:,} of them to "
        f"0, in {counted(len(poor), 'tensor')} ({named}{', …' if len(poor) > 3 else ''})"
    ]
