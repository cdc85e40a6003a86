"""`sordino tune`."""

from typing import Annotated

from cyclopts import Parameter

from sordino.cli import typed
from sordino.cli.evaluate import MeasureOptions
from sordino.cli.options import (
    ConceptOptions,
    JsonOptions,
    ModelOptions,
    Output,
    print_json,
)


def tune(
    model: str,
    /,
    *,
    output: Output,
    budget: str = "divergence<=0.05",
    rule: Annotated[tuple[str, ...] | None, Parameter(name="--rule")] = None,
    trials: int = 24,
    attribution_per_class: int = 1000,
    seed: int = 0,
    concept: ConceptOptions = ConceptOptions(),
    how: MeasureOptions = MeasureOptions(measure=("perplexity",)),
    opening: ModelOptions = ModelOptions(),
    printing: JsonOptions = JsonOptions(),
) -> None:
    """Find the rule, the sites and the size that remove most of a concept within a budget.

    Each intervention that is tried is made as large as a divergence allows by measuring it. The
    choice is made on one half of the prompts and reported on the other. A search that was
    interrupted goes on where it was; given more --trials, it goes on longer.

    Parameters
    ----------
    model
        Hub id, transformers folder, .gguf file, kit:smollm2 or kit:gemma3.
    output
        The folder for the page, the figures, the chosen intervention and the work.
    budget
        What it may cost: divergence<=0.05 (nats a token), perplexity<=33 or perplexity<=+5%,
        zero-shot>=0.4 or zero-shot>=-1%.
    rule
        A rule to try; repeat for several (aura, selective, stratified, damp, det_zero, contrast).
    trials
        How many interventions to measure.
    attribution_per_class
        How many sentences of each class attribution takes, for contrast.
    seed
        Seed of everything that is drawn.
    """
    from dataclasses import replace

    from sordino.evaluation import Toxicity
    from sordino.evaluation import measure as measure_named
    from sordino.files import only_one, write_json
    from sordino.models.reference import resolve
    from sordino.outputs import DAMPENING, PAGE, TUNED, claim_output, named_files
    from sordino.report.article import write_html
    from sordino.report.tuned import tuned_article
    from sordino.tuning.budget import Budget
    from sordino.tuning.lab import Lab
    from sordino.tuning.search import TRIED, TuneSettings, prepare_search
    from sordino.tuning.search import tune as search

    with printing.in_force():
        limit = Budget.parse(budget)
        asked = replace(how, measure=("toxicity", *(m for m in how.measure if m != "toxicity")))
        toxicity, *reported = (measure_named(one) for one in asked.measures())
        assert isinstance(toxicity, Toxicity)
        read = [model, *named_files(*vars(concept).values(), *vars(how).values())]
        results, page, file = (
            claim_output(output / name, kind, force=True, inputs=read)
            for name, kind in {
                "tuned.json": TUNED,
                "tuned.html": PAGE,
                "chosen.dampening.safetensors": DAMPENING,
            }.items()
        )
        settings = TuneSettings(
            limit, rule or TRIED, trials, toxicity, tuple(reported), attribution_per_class
        )
        ready = prepare_search(settings, how.clean_texts, device=opening.device, seed=seed)
        labelled = concept.load(seed)
        ready.note_shared_sentences(labelled.source)
        lab = Lab(
            resolve(model, opening.revision),
            labelled,
            output / "work",
            device=opening.device,
            dtype=opening.dtype,
            seed=seed,
            texts=how.clean_texts,
            sites=opening.sites,
        )
        with only_one(results):
            tuned, chosen = search(lab, output / "work", settings)
            if chosen is not None:
                chosen.save(file, force=True)
            write_json(results, tuned.model_dump(mode="json"))
            bake = ["sordino", "bake", model, str(file), "-o", "quiet"]
            article = tuned_article(tuned, typed.command(), bake)
            write_html(article, page)
    if printing.json:
        print_json({"page": str(page), **tuned.model_dump(mode="json")})
        return
    for line in article.answer:
        print(line)
    if chosen is not None:
        print(f"\nthe chosen intervention: {file}")
    print(f"the page to open: {page}")
