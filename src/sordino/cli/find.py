"""`sordino find`."""

from sordino.cli.options import (
    ConceptOptions,
    ModelOptions,
    Output,
    OutputOptions,
    SweepOptions,
    print_json,
)


def find(
    model: str,
    /,
    *,
    output: Output,
    seed: int = 0,
    concept: ConceptOptions = ConceptOptions(),
    opening: ModelOptions = ModelOptions(),
    sweep: SweepOptions = SweepOptions(),
    printing: OutputOptions = OutputOptions(),
) -> None:
    """Measure how well each neuron recognises a concept.

    Writes an expertise file, from which `bake` derives factors by any rule at any strength. An
    interrupted run goes on where it was when the same command is given again. Several processes
    share the work: torchrun --standalone --nproc-per-node N -m sordino find …

    Parameters
    ----------
    model
        Hub id, transformers folder, .gguf file, kit:smollm2 or kit:gemma3.
    output
        The expertise file to write, by custom NAME.expertise.safetensors.
    seed
        Seed of the draw when sentences are capped or balanced.
    """
    from sordino.expertise.find import find_experts
    from sordino.expertise.ranks import sharing
    from sordino.files import refuse_existing
    from sordino.progress import note
    from sordino.report.text import expertise_lines, expertise_summary

    with printing.in_force(), sharing(opening.device) as (ranks, device):
        refuse_existing(output, force=printing.force)
        settings, attribution = sweep.settings(), sweep.attributing(seed)
        sentences = concept.load(seed, sweep.strata_column)
        note(f"opening {model}")
        expertise = find_experts(
            model,
            sentences,
            device=device,
            dtype=opening.dtype,
            revision=opening.revision,
            sites=opening.sites,
            stream=sweep.stream,
            settings=settings,
            attribution=attribution,
            output=output,
            force=printing.force,
        )
    if not ranks.first:
        return
    if printing.json:
        print_json({"output": str(output), **expertise_summary(expertise)})
    else:
        print("\n".join([*expertise_lines(expertise), f"written: {output}"]))
