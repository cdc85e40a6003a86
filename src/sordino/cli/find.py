"""`sordino find`."""

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from sordino.cli.options import (
    ChatOptions,
    ConceptOptions,
    ModelOptions,
    OutputOptions,
    OwnOptions,
    SweepOptions,
    print_json,
    print_lines,
)
from sordino.errors import UserError

if TYPE_CHECKING:
    from sordino.evaluation.judged import JudgedSamples
    from sordino.models.open import OpenModel


def find(
    model: str,
    /,
    *,
    output: Annotated[Path | None, Parameter(name=["--output", "-o"])] = None,
    plan: bool = False,
    seed: int = 0,
    concept: ConceptOptions = ConceptOptions(),
    opening: ModelOptions = ModelOptions(),
    sweep: SweepOptions = SweepOptions(),
    chat: ChatOptions = ChatOptions(),
    own: OwnOptions = OwnOptions(),
    printing: OutputOptions = OutputOptions(),
) -> None:
    """Measure how well each neuron recognises a concept.

    Writes an expertise file, from which `bake` derives factors by any rule at any strength. To
    continue an interrupted run, run the same command again. Several processes can share the work:
    torchrun --standalone --nproc-per-node N -m sordino find …

    Parameters
    ----------
    model
        Hub id, transformers folder, .gguf file or model of the kit, such as kit:smollm2.
    output
        Output file, conventionally NAME.expertise.safetensors.
    plan
        Write nothing, and estimate the cost: tokens, bytes to read, memory and time.
    seed
        Seed of the draw when sentences are capped or balanced.
    """
    from sordino.evaluation.opening import AUTO
    from sordino.expertise.find import find_experts, plan_find
    from sordino.expertise.ranks import sharing
    from sordino.files import new_file
    from sordino.models.open import open_model
    from sordino.outputs import EXPERTISE, JUDGED, claim_output, named_files
    from sordino.progress import note
    from sordino.report.text import expertise_lines, expertise_summary

    if output is None and not plan:
        raise UserError(
            "There is nothing to write: pass --output NAME.expertise.safetensors or --plan."
        )
    with printing.in_force(), sharing(opening.device) as (ranks, device):
        judging = concept.judged(own, sweep.strata_column, plan=plan)
        beside = None
        if output is not None and not plan:
            read = [model, *named_files(*vars(concept).values())]
            output = claim_output(output, EXPERTISE, force=printing.force, inputs=read)
            if judging is not None:
                name = output.name.removesuffix(".safetensors").removesuffix(".expertise")
                beside = output.with_name(f"{name}.judged.jsonl")
                claim_output(beside, JUDGED, force=printing.force, inputs=read)
        options: dict[str, Any] = {
            "device": device,
            "dtype": opening.dtype,
            "revision": opening.revision,
            "sites": opening.sites,
            "stream": sweep.stream,
        }
        measured: dict[str, Any] = {
            "settings": sweep.settings(chat),
            "attribution": sweep.attributing(seed),
        }
        taking: dict[str, Any] = {"seed": seed, "device": device, "chat": chat.settings()}
        wanted = own.plan()
        source: str | OpenModel = model
        judged: JudgedSamples | None = None
        if judging is not None and output is not None:
            note(f"opening {model}")
            source = open_model(model, **options)
            judged = judging.samples(source, output, **taking)
            sentences = judged.concept
        else:
            sentences = concept.load(seed, sweep.strata_column)
            note(f"opening {model}")
        if plan:
            if wanted is not None:
                note("the plan leaves out own samples, since their length is not known")
            planned = plan_find(model, sentences, **options, **measured)
            value, lines = asdict(planned), planned.lines()
        else:
            if wanted is None:
                samples = None
            elif judged is not None and wanted.judge == AUTO:
                samples = judged.own
            else:
                samples = wanted.settings(sentences, **taking)
            found = find_experts(
                source,
                sentences,
                **options,
                **measured,
                own=samples,
                output=output,
                force=printing.force,
            )
            value = {"output": str(output), **expertise_summary(found)}
            lines = [*expertise_lines(found), f"written: {output}"]
            if judged is not None and beside is not None and ranks.first:
                with new_file(beside, force=printing.force) as stage:
                    shutil.copyfile(judged.file, stage)
                judged.drop()
                value["sentences"] = str(beside)
                lines.append(f"written: {beside}, the sentences with their labels")
    if not ranks.first:
        return
    if printing.json:
        print_json(value)
    else:
        print_lines(*lines)
