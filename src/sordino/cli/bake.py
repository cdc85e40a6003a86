"""`sordino bake`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from sordino.cli.options import (
    InterventionOptions,
    ModelOptions,
    Output,
    OutputOptions,
    print_json,
)
from sordino.errors import UserError

if TYPE_CHECKING:
    from sordino.edits import FileVerification, Verification


def bake(
    model: str,
    expertise: Path,
    /,
    *,
    output: Output,
    verify: bool = False,
    hooks: bool = False,
    allow_other_weights: bool = False,
    rule: InterventionOptions = InterventionOptions(),
    opening: ModelOptions = ModelOptions(),
    printing: OutputOptions = OutputOptions(),
) -> None:
    """Write dampening factors into a model's weights.

    A transformers folder is edited shard by shard, every other byte kept. A GGUF file is copied,
    with the block scales of the dampened neurons changed, if the output's name ends in .gguf;
    otherwise it is de-quantised and becomes a transformers folder. The result needs no Sordino to
    run.

    Parameters
    ----------
    model
        The model that the expertise was found on.
    expertise
        The expertise file.
    output
        The folder to write, or the .gguf file.
    verify
        Compare the result's logits with those of the original under hooks, and show the largest
        difference; of a GGUF file, compare the weights.
    hooks
        Write the factors and shifts as a small file for hooks, and no weights: for shifts where an
        architecture has no biases to hold them.
    allow_other_weights
        Bake into weights other than those that the expertise was found on, such as a fine-tuned
        sibling's.
    """
    from sordino.edits import bake as bake_model
    from sordino.edits import verify as compare
    from sordino.edits import verify_file
    from sordino.expertise.artefact import Expertise
    from sordino.interventions import dampen
    from sordino.models.reference import resolve
    from sordino.progress import note

    with printing.in_force():
        if verify and hooks:
            raise UserError("--hooks writes no weights that --verify could compare: leave one out.")
        found = Expertise.load(expertise)
        dampening = dampen(found, rule.intervention, strength=rule.strength, **rule.settings())
        ref = resolve(model, opening.revision)
        record = bake_model(
            ref,
            dampening,
            output,
            force=printing.force,
            dtype=opening.dtype,
            allow_other_weights=allow_other_weights,
            hooks=hooks,
        )
        checked: Verification | FileVerification | None = None
        if verify and output.suffix == ".gguf":
            note("comparing the result's weights with the original's")
            checked = verify_file(ref, dampening, output)
        elif verify:
            note("comparing the result with hooks on the original")
            checked = compare(ref, dampening, output, device=opening.device, dtype=opening.dtype)
    if printing.json:
        print_json({"output": str(output), **record, **_figures(checked)})
        return
    print(
        f"{record['changed']:,} of {record['neurons']:,} neurons dampened "
        f"({dampening.intervention}, strength {dampening.strength:g})"
    )
    for line in _rounding_lines(record):
        print(line)
    if checked is not None:
        print(checked.line)
    print(f"written: {output}")


def _figures(checked: object) -> dict[str, object]:
    return {} if checked is None else {"verification": vars(checked)}


def _rounding_lines(record: dict[str, Any]) -> list[str]:
    """What rounding did to a GGUF file's block scales, if it did anything that matters."""
    poor = {name: found for name, found in record.get("rounding", {}).items() if found["coarse"]}
    if not poor:
        return []
    coarse, zeroed = (sum(found[key] for found in poor.values()) for key in ("coarse", "zeroed"))
    named = ", ".join(sorted(poor, key=lambda name: -poor[name]["coarse"])[:3])
    return [
        f"rounding moved {coarse:,} block scales by more than 1 %, {zeroed:,} of them to 0, in "
        f"{len(poor)} tensors ({named}{', …' if len(poor) > 3 else ''})"
    ]
