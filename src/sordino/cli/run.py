"""`sordino run`."""

import sys

from sordino.cli.evaluate import MeasureOptions, print_table
from sordino.cli.options import (
    ConceptOptions,
    InterventionOptions,
    ModelOptions,
    Output,
    OutputOptions,
    SweepOptions,
    print_json,
)


def run(
    model: str,
    /,
    *,
    output: Output,
    seed: int = 0,
    concept: ConceptOptions = ConceptOptions(),
    rule: InterventionOptions = InterventionOptions(),
    how: MeasureOptions = MeasureOptions(),
    opening: ModelOptions = ModelOptions(),
    sweep: SweepOptions = SweepOptions(),
    printing: OutputOptions = OutputOptions(),
) -> None:
    """Do the whole job: find, dampen, bake, measure before and after, report.

    The output is a transformers folder that needs no Sordino to run; figures, samples, the
    expertise and the page lie in its sordino/ folder. Of a GGUF file it may be a GGUF file
    (-o NAME.gguf), with the rest in NAME.sordino/ beside it. An interrupted run goes on where it
    was when the same command is given again.

    Parameters
    ----------
    model
        Hub id, transformers folder, .gguf file, kit:smollm2 or kit:gemma3.
    output
        The folder to write, or the .gguf file.
    seed
        Seed of everything that is drawn.
    """
    from sordino import pipeline
    from sordino.files import refuse_existing
    from sordino.interventions import needs_of

    with printing.in_force():
        refuse_existing(output, force=printing.force)
        needs = needs_of(rule.intervention)
        settings = pipeline.RunSettings(
            intervention=rule.intervention,
            strength=rule.strength,
            settings=rule.settings(),
            sweep=sweep.settings(needs),
            attribution=sweep.attributing(seed, needs),
            measures=how.measures(),
            device=opening.device,
            dtype=opening.dtype,
            sites=opening.sites,
            seed=seed,
        )
        result = pipeline.run(
            model,
            concept.load(seed, sweep.strata_column),
            output,
            settings,
            revision=opening.revision,
            command=["sordino", *sys.argv[1:]],
            force=printing.force,
        )
    if printing.json:
        figures = result.evaluation.model_dump(mode="json")
        print_json({"output": str(result.folder), "page": str(result.page), "evaluation": figures})
        return
    print_table(result.evaluation)
    print(f"\nthe dampened model: {result.folder}")
    print(f"the page to open:   {result.page}")
