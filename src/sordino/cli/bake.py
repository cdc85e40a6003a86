"""`sordino bake`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sordino.cli.options import (
    InterventionOptions,
    ModelOptions,
    Output,
    OutputOptions,
    print_json,
)
from sordino.errors import UserError


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

    A transformers folder is edited shard by shard, every other byte kept; a quantised one (GPTQ,
    AWQ, compressed-tensors, FP8, bitsandbytes) by its scales. A GGUF file is de-quantised and
    becomes a transformers folder. The result needs no Sordino to run.

    Parameters
    ----------
    model
        The model that the expertise was found on.
    expertise
        The expertise file.
    output
        The folder to write.
    verify
        Compare the result's logits with those of the original under hooks, and show the largest
        difference; of a quantised model that cannot be run here, the de-quantised rows.
    hooks
        Write the factors and shifts as a small file for hooks, and no weights: for shifts where an
        architecture has no biases to hold them.
    allow_other_weights
        Bake into weights other than those that the expertise was found on, such as a fine-tuned
        sibling's.
    """
    from sordino.edits import RowVerification
    from sordino.edits import bake as bake_model
    from sordino.edits import verify as compare
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
        checked = None
        if verify:
            note("comparing the result with hooks on the original")
            checked = compare(ref, dampening, output, device=opening.device, dtype=opening.dtype)
    if printing.json:
        print_json({"output": str(output), **record, **_figures(checked)})
        return
    print(
        f"{record['changed']:,} of {record['neurons']:,} neurons dampened "
        f"({dampening.intervention}, strength {dampening.strength:g})"
    )
    if "quantised" in record:
        print(_quantised_line(record["quantised"]))
    if isinstance(checked, RowVerification):
        print(
            f"largest difference between the de-quantised rows and the factors times the "
            f"original's: {checked.largest_difference:.3g} (largest weight "
            f"{checked.largest_weight:.3g}, {checked.rows:,} rows; logits could not be had: "
            f"{checked.reason})"
        )
    elif checked is not None:
        print(
            f"largest difference between the logits of hooks and weights: "
            f"{checked.largest_difference:.3g} (largest logit {checked.largest_logit:.3g}, "
            f"{checked.tokens} tokens)"
        )
    print(f"written: {output}")


def _quantised_line(record: Mapping[str, Any]) -> str:
    rounded = record["rounded"]
    fate = f", {rounded} of them rounded anew" if rounded else ", by their scales alone"
    return f"{record['scheme']}: {record['layers']} layers changed{fate}"


def _figures(checked: object) -> dict[str, object]:
    return {} if checked is None else {"verification": vars(checked)}
