"""The two sides of a chat, as the page and the terminal see them."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from math import isnan

from sordino.chatting.conversation import SIDES, Answer, Conversation, Settings, Side, Turn
from sordino.errors import UserError
from sordino.evaluation.scorer import Scorer, scores_of


@dataclass(frozen=True)
class Said:
    """One side's answer so far."""

    side: Side
    text: str


@dataclass(frozen=True)
class Answered:
    """One side's complete answer, with its score."""

    side: Side
    answer: Answer


@dataclass(frozen=True, kw_only=True)
class Voices(ABC):
    """The two sides of a conversation.

    Args:
        names: The name of each side's model.
        plain: Whether prompts are continued as they are, without a chat template.
        scorer: What scores the answers; None for nothing.
    """

    names: dict[Side, str]
    plain: bool = False
    scorer: Scorer | None = None

    @property
    @abstractmethod
    def fixed(self) -> str:
        """Why the strength cannot be set, in a sentence; "" if it can."""

    @abstractmethod
    def answers(
        self,
        turns: Sequence[Turn],
        settings: Settings,
        sides: Sequence[Side] = SIDES,
        stopped: Callable[[], bool] = lambda: False,
    ) -> Generator[Said | Answered]:
        """Answer the last turn, step by step.

        Args:
            turns: The conversation.
            settings: The settings of the answers.
            sides: The sides that answer.
            stopped: Called again and again; once it returns True, the answers end as they are.

        Raises:
            UserError: There is nothing to answer, or no answer.
        """

    @property
    def has_dial(self) -> bool:
        """Whether the strength can be set."""
        return not self.fixed

    @property
    def scorer_name(self) -> str:
        """The scorer's name; "" if there is none."""
        return self.scorer.name if self.scorer else ""

    def conversation(self, turns: Sequence[Turn]) -> Conversation:
        """A conversation of these turns, as it is saved."""
        return Conversation(
            models=self.names,
            form="plain" if self.plain else "chat",
            hooks=self.has_dial,
            scorer=self.scorer_name,
            turns=tuple(turns),
        )


def judge_answer(scorer: Scorer | None, text: str) -> tuple[float | None, str]:
    """The score of an answer, and why there is none if its scorer failed."""
    if scorer is None or not text.strip():
        return None, ""
    try:
        score = float(scores_of(scorer, [text])[0, 0])
    except UserError as error:  # such as a judge that refuses
        return None, str(error)
    return (None, "the judge's answer cannot be read") if isnan(score) else (score, "")
