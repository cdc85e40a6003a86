"""`sordino run`."""

from pathlib import Path

from sordino.cli import typed
from sordino.cli.evaluate import MeasureOptions, print_table
from sordino.cli.options import (
    ChatOptions,
    ConceptOptions,
    InterventionOptions,
    ModelOptions,
    Output,
    OutputOptions,
    SweepOptions,
    print_json,
)
from sordino.cli.recipe import recipe_of


def run(
    model: str,
    /,
    *,
    output: Output,
    beside: tuple[str, ...] = (),
    recipe: Path | None = None,
    seed: int = 0,
    concept: ConceptOptions = ConceptOptions(),
    rule: InterventionOptions = InterventionOptions(),
    how: MeasureOptions = MeasureOptions(),
    opening: ModelOptions = ModelOptions(),
    sweep: SweepOptions = SweepOptions(),
    chat: ChatOptions = ChatOptions(),
    printing: OutputOptions = OutputOptions(),
) -> None:
    """Do the whole job: find, dampen, bake, measure before and after, report.

    The output is a transformers folder that runs without Sordino; figures, samples, the expertise
    and the page are in its sordino/ folder. A GGUF model can become a GGUF file (-o NAME.gguf),
    with the rest in NAME.sordino/ beside it. To continue an interrupted run, run the same command
    again.

    Parameters
    ----------
    model
        Hub id, transformers folder, .gguf file or model of the kit, such as kit:smollm2.
    output
        The folder to write, or the .gguf file.
    beside
        Another rule to measure as well, at strength 1, for comparison; repeat for several.
    recipe
        Options from a TOML file, such as the sordino/recipe.toml that every run writes; options on
        the command line override it.
    seed
        Seed of all random choices.
    """
    from sordino import pipeline
    from sordino.interventions import RULES
    from sordino.outputs import claim_output, model_kind, named_files

    with printing.in_force():
        # The recipe's options have come as if they had been typed.
        given = named_files(recipe, *vars(concept).values(), *vars(how).values())
        claim_output(output, model_kind(output), force=printing.force, inputs=[model, *given])
        asked = [one for name in (rule.intervention, *beside) for one in RULES.named(name).asks]
        settings = pipeline.RunSettings(
            intervention=rule.intervention,
            strength=rule.strength,
            settings=rule.settings(),
            divergence=rule.divergence,
            clean=how.clean_texts,
            beside=beside,
            sweep=sweep.settings(chat, *asked),
            attribution=sweep.attributing(seed, *asked),
            measures=how.measures(),
            device=opening.device,
            dtype=opening.dtype,
            sites=opening.sites,
            stream=sweep.stream,
            seed=seed,
        )
        result = pipeline.run(
            model,
            concept.load(seed, sweep.strata_column),
            output,
            settings,
            revision=opening.revision,
            command=typed.command(),
            recipe=recipe_of(
                {"model": model, "seed": seed, **({"beside": beside} if beside else {})},
                *(concept, rule, how, opening, sweep, chat),
            ),
            force=printing.force,
        )
    if printing.json:
        figures = result.evaluation.model_dump(mode="json") if result.evaluation else None
        others = {name: of.model_dump(mode="json") for name, of in result.beside.items()}
        print_json(
            {
                "output": str(result.folder),
                "page": str(result.page),
                "evaluation": figures,
                "beside": others,
            }
        )
        return
    if result.evaluation:
        print_table(result.evaluation)
    for name, evaluation in result.beside.items():
        print(f"\nfor comparison, {name}:")
        print_table(evaluation)
    print(f"\nthe dampened model: {result.folder}")
    print(f"the page to open:   {result.page}")
