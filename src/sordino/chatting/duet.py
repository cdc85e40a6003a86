"""Both sides answer at once, token by token in turn."""

from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from math import isnan
from typing import Protocol

from sordino.chatting.conversation import (
    SIDES,
    Answer,
    Conversation,
    Ended,
    Settings,
    Side,
    Turn,
    prompt_ids,
)
from sordino.errors import UserError
from sordino.evaluation.scorer import Scorer, scores_of
from sordino.interventions import Dampening
from sordino.models.chat import Chat, replies
from sordino.models.chat_template import Stopped
from sordino.models.generation import Continuation, stream
from sordino.models.open import OpenModel

_NOTHING = Continuation(0, 0, (), "")


@dataclass(frozen=True)
class Said:
    """There is more of an answer.

    Args:
        side: Whose.
        text: All of it so far.
    """

    side: Side
    text: str


@dataclass(frozen=True)
class Answered:
    """An answer is whole.

    Args:
        side: Whose.
        answer: The answer, judged.
    """

    side: Side
    answer: Answer


class Voices(Protocol):
    """What the page and the terminal need of the two sides.

    Attributes:
        names: What each side is, in words.
        plain: Whether prompts are continued as they are.
        scorer: Who judges the answers, if anyone does.
        scorer_name: The scorer's name.
        has_dial: Whether the strength can be set.
        fixed: Why it cannot be, in a sentence; "" where it can.
    """

    @property
    def names(self) -> dict[Side, str]: ...  # noqa: D102
    @property
    def plain(self) -> bool: ...  # noqa: D102
    @property
    def scorer(self) -> Scorer | None: ...  # noqa: D102
    @property
    def scorer_name(self) -> str: ...  # noqa: D102
    @property
    def has_dial(self) -> bool: ...  # noqa: D102
    @property
    def fixed(self) -> str: ...  # noqa: D102

    def answers(
        self,
        turns: Sequence[Turn],
        settings: Settings,
        sides: Sequence[Side] = SIDES,
        stopped: Callable[[], bool] = lambda: False,
    ) -> Generator[Said | Answered]:
        """Answer the last turn, and tell what there is."""

    def conversation(self, turns: Sequence[Turn]) -> Conversation:
        """These turns, as they are saved."""


@dataclass(frozen=True)
class Duet:
    """The two sides of a conversation.

    Args:
        original: The original model.
        quiet: The other model; the same one where the edit is put on by hooks.
        dampening: What the hooks put on; None where `quiet` is a model of its own.
        names: What each side is, in words.
        why_two: Why `quiet` is a model of its own, in a sentence; "" where it is not.
        plain: Whether prompts are continued as they are, without a chat template.
        scorer: Who judges the answers, if anyone does.
        scorer_name: The scorer's name.
    """

    original: OpenModel
    quiet: OpenModel
    dampening: Dampening | None
    names: dict[Side, str]
    why_two: str = ""
    plain: bool = False
    scorer: Scorer | None = None
    scorer_name: str = ""

    @property
    def has_dial(self) -> bool:
        """Whether the strength can be set."""
        return self.dampening is not None

    @property
    def fixed(self) -> str:
        """Why it cannot be, in a sentence; "" where it can."""
        told = f"Two models are open, and the strength cannot be changed. {self.why_two}"
        return "" if self.has_dial else told

    def answers(
        self,
        turns: Sequence[Turn],
        settings: Settings,
        sides: Sequence[Side] = SIDES,
        stopped: Callable[[], bool] = lambda: False,
    ) -> Generator[Said | Answered]:
        """Answer the last turn, and tell token by token what there is.

        The random numbers are those of the seed and the turn's place in the conversation: the same
        for both sides, for any strength, and when the turn is asked again. The first answer is
        what `generate` gives for prompt 0.

        Args:
            turns: The conversation, whose last turn is to be answered.
            settings: How.
            sides: Who answers.
            stopped: Asked between tokens, and while prompts are made; where it says yes, what
                there is becomes the answer.

        Raises:
            UserError: The prompt is too long or says nothing, the chat template fails, or logits
                are not numbers.
        """
        models = {"original": self.original, "quiet": self.quiet}
        try:
            prompts = {
                side: prompt_ids(
                    models[side], turns, side, settings, plain=self.plain, stopped=stopped
                )
                for side in sides
            }
        except Stopped:
            for side in sides:
                yield Answered(side, self._answer(_NOTHING, 0, settings, early=True))
            return
        form = Chat("on", system=settings.pre_prompt.strip(), thinking=settings.thinking)
        forms = {} if self.plain else {side: replies(models[side], form) for side in sides}
        voices = {
            side: stream(
                models[side],
                ids,
                settings.sampling,
                seed=settings.seed,
                prompt=len(turns) - 1,
                ends=forms[side].ends if forms else (),
            )
            for side, (ids, _) in prompts.items()
        }
        muted = None if self.dampening is None else self.dampening.scaled(settings.strength)
        latest = dict.fromkeys(sides, _NOTHING)

        def whole(side: Side, *, early: bool) -> Answered:
            said = forms[side].cut(models[side], latest[side]) if forms else latest[side]
            return Answered(side, self._answer(said, prompts[side][1], settings, early=early))

        try:
            while voices and not stopped():
                for side in list(voices):
                    with self._under(side, muted):
                        more = next(voices[side], None)
                    if more is None:
                        del voices[side]
                        yield whole(side, early=False)
                    else:
                        latest[side] = more
                        yield Said(side, more.text)
            for side in voices:
                yield whole(side, early=True)
        finally:
            for voice in voices.values():
                voice.close()

    def conversation(self, turns: Sequence[Turn]) -> Conversation:
        """These turns, as they are saved."""
        return Conversation(
            models=self.names,
            form="plain" if self.plain else "chat",
            hooks=self.has_dial,
            scorer=self.scorer_name,
            turns=tuple(turns),
        )

    def _under(self, side: Side, muted: Dampening | None) -> AbstractContextManager[None]:
        """The hooks on the original's weights while the quiet side takes a step."""
        if side == "original" or muted is None:
            return nullcontext()
        return muted.applied(self.quiet.model)

    def _answer(
        self, one: Continuation, left_out: int, settings: Settings, *, early: bool
    ) -> Answer:
        ids = one.ids or ()
        ended: Ended = (
            "stopped" if early else "length" if len(ids) == settings.new_tokens else "end"
        )
        score, trouble = judged(self.scorer, one.text)
        return Answer(
            text=one.text,
            ids=ids,
            ended=ended,
            left_out=left_out,
            score=score,
            trouble=trouble,
            settings=settings,
        )


def judged(scorer: Scorer | None, text: str) -> tuple[float | None, str]:
    """The score of an answer, and why there is none if its scorer failed."""
    if scorer is None or not text.strip():
        return None, ""
    try:
        score = float(scores_of(scorer, [text])[0, 0])
    except UserError as error:  # such as a judge that will not judge
        return None, str(error)
    return (None, "the judge's answer cannot be read") if isnan(score) else (score, "")
