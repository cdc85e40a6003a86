"""`sordino tune`."""

from typing import Annotated

from cyclopts import Parameter

from sordino.cli import typed
from sordino.cli.options import (
    JsonOptions,
    Output,
    print_json,
)
from sordino.options.groups import (
    ChatOptions,
    ConceptOptions,
    ModelOptions,
    with_others,
)
from sordino.options.measures import MeasureOptions


def tune(
    model: str,
    /,
    *,
    output: Output,
    budget: str = "divergence<=0.05",
    rule: Annotated[
        tuple[str, ...] | None,
        Parameter(
            name="--rule",
            help=with_others(
                "A rule to try; repeat for several (aura, selective, stratified, damp, det_zero, "
                "contrast).",
                "rules",
            ),
        ),
    ] = None,
    trials: int = 24,
    attribution_per_class: int = 1000,
    seed: int = 0,
    concept: ConceptOptions = ConceptOptions(),
    how: MeasureOptions = MeasureOptions(measure=("perplexity",)),
    opening: ModelOptions = ModelOptions(),
    chat: ChatOptions = ChatOptions(),
    printing: JsonOptions = JsonOptions(),
) -> None:
    """Find the rule, the linear layers and the strength that remove most in a budget.

    Each trial is made as large as a measured divergence allows. The choice is made on one half of
    the prompts and reported on the other. To continue an interrupted search, or to extend it with
    more --trials, run the command again.

    Parameters
    ----------
    model
        Hub id, transformers folder, .gguf file or model of the kit, such as kit:smollm2.
    output
        The folder for the page, the figures, the chosen intervention and the work.
    budget
        What it may cost: divergence<=0.05 (nats per token), perplexity<=33 or perplexity<=+5%,
        zero-shot>=0.4 or zero-shot>=-1%.
    trials
        How many interventions to measure.
    attribution_per_class
        The largest number of sentences per class for attribution, which contrast needs.
    seed
        Seed of all random choices.
    """
    from dataclasses import replace

    from sordino.evaluation import Toxicity
    from sordino.evaluation import measure as measure_named
    from sordino.jobs.tune import tune as run_search
    from sordino.outputs import named_files
    from sordino.tuning.search import TRIED

    with printing.in_force():
        asked = replace(how, measure=("toxicity", *(m for m in how.measure if m != "toxicity")))
        toxicity, *reported = (measure_named(one) for one in asked.measures())
        assert isinstance(toxicity, Toxicity)
        found = run_search(
            model,
            lambda: concept.load(seed),
            output,
            budget=budget,
            rules=rule or TRIED,
            trials=trials,
            toxicity=toxicity,
            measures=reported,
            attribution_per_class=attribution_per_class,
            texts=how.clean_texts,
            device=opening.device,
            dtype=opening.dtype,
            revision=opening.revision,
            sites=opening.sites,
            seed=seed,
            inputs=named_files(*vars(concept).values(), *vars(how).values()),
            command=typed.command(),
            chat=chat.settings(),
        )
    if printing.json:
        print_json({"page": str(found.page), **found.tuned.model_dump(mode="json")})
        return
    for line in found.answer:
        print(line)
    if found.chosen is not None:
        print(f"\nthe chosen intervention: {found.file}")
    print(f"the page to open: {found.page}")
