"""`sordino find`."""

from dataclasses import asdict
from typing import Any

from sordino.cli.options import (
    FileOutput,
    OutputOptions,
    print_json,
    print_lines,
)
from sordino.errors import UserError
from sordino.options.groups import (
    ChatOptions,
    ConceptOptions,
    ModelOptions,
    OwnOptions,
    SweepOptions,
)


def find(
    model: str,
    /,
    *,
    output: FileOutput | None = None,
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
    from sordino.expertise.find import plan_find
    from sordino.jobs.find import find_experts, judged_file
    from sordino.models.ranks import sharing
    from sordino.outputs import named_files
    from sordino.report.text import expertise_lines, expertise_summary

    if output is None and not plan:
        raise UserError(
            "There is nothing to write: pass --output NAME.expertise.safetensors or --plan."
        )
    with printing.in_force(), sharing(opening.device) as (ranks, device):
        options: dict[str, Any] = {
            "device": device,
            "dtype": opening.dtype,
            "revision": opening.revision,
            "sites": opening.sites,
            "stream": sweep.stream,
            "settings": sweep.settings(chat),
            "attribution": sweep.attributing(seed),
        }
        column = sweep.strata_column
        if plan:
            counted, wanted = concept.counted(own, seed, column), own.plan()
            written = None
            if wanted:
                device, talk = opening.device, chat.settings()
                written = wanted.settings(counted, seed=seed, device=device, chat=talk)
            planned = plan_find(model, counted, **options, own=written)
            value, lines = asdict(planned), planned.lines()
        else:
            assert output is not None
            judged = concept.judged(own, column)
            found = find_experts(
                model,
                judged or (lambda: concept.load(seed, column)),
                **options,
                own=own.plan(),
                seed=seed,
                output=output,
                force=printing.force,
                inputs=named_files(*vars(concept).values()),
            )
            value = {"output": str(output), **expertise_summary(found)}
            lines = [*expertise_lines(found), f"written: {output}"]
            if judged is not None:
                beside = judged_file(output)
                value["sentences"] = str(beside)
                lines.append(f"written: {beside}, the sentences with their labels")
    if not ranks.first:
        return
    if printing.json:
        print_json(value)
    else:
        print_lines(*lines)
