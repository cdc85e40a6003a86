"""Prompts and judge of own samples, kept apart from those that measure the edit."""

from collections.abc import Collection
from dataclasses import dataclass

from sordino.concepts.concept import Concept
from sordino.concepts.text_files import one_line
from sordino.errors import UserError
from sordino.evaluation.evaluator import Prepared
from sordino.evaluation.measures.toxicity import prompts_of
from sordino.evaluation.opening import AUTO, open_scorer
from sordino.evaluation.scorer import Scorer
from sordino.evaluation.scorers.probe import ProbeScorer
from sordino.evaluation.scoring import ScoredTask
from sordino.evaluation.texts import choose, read_texts
from sordino.expertise.own import FEWEST_PROMPTS, ConceptJudge, OwnSettings
from sordino.models.chat import RAW, Chat
from sordino.models.open import choose_device
from sordino.progress import note

CONCEPT = ConceptJudge.name
"""The judge trained on the concept's own sentences."""


@dataclass(frozen=True)
class OwnPlan:
    """How own samples are taken.

    Args:
        prompts: As for the measure toxicity; those that are measured are left out.
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
            chat: Whether the model's replies in its chat template are taken, and not continuations
                of the prompts as they are; "auto" for models that have one.
            measured: The measures that will judge the edit.
            apart: More prompts to leave out.

        Raises:
            UserError: Prompts or judge are not available, prompts are conversations, the judge is
                one of the measures' scorers, or too few prompts are left that are not measured.
        """
        source = prompts_of(self.prompts)
        texts = read_texts(source)
        if any(text.before for text in texts):
            raise UserError(
                f"The prompts of own samples, {source}, are conversations: give prompts of one "
                "turn as `own_prompts`."
            )
        used = {one_line(text) for text in apart} | (measured.texts if measured else set())
        free = [text for text in texts if one_line(text.text) not in used]
        if len(free) < FEWEST_PROMPTS:
            raise UserError(
                f"Only {len(free):,} of the {len(texts):,} prompts of {source} are not measured, "
                f"and own samples need {FEWEST_PROMPTS}: give other prompts as `own_prompts`, or "
                "measure fewer."
            )
        judge = _judge(self.judge, concept, device, seed, measured)
        chosen = choose(free, self.max_prompts, seed)
        left_out = len(texts) - len(free)
        source += f", without {left_out:,} prompts that are measured" if left_out else ""
        note(f"own samples: {len(chosen):,} prompts of {source}; the judge is {judge.name}")
        return OwnSettings(
            tuple(text.text for text in chosen),
            judge,
            source,
            self.continuations,
            self.new_tokens,
            seed,
            chat,
        )


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
    for scorer in (scorer for task in tasks for scorer in task.scorers.values()):
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
