"""What the page and the terminal know of two sides, whoever speaks for them."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from math import isnan

from sordino.chatting.conversation import (
    SIDES,
    Answer,
    Conversation,
    Settings,
    Side,
    Turn,
)
from sordino.errors import UserError
from sordino.evaluation.scorer import Scorer, scores_of


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


@dataclass(frozen=True, kw_only=True)
class Voices(ABC):
    """The two sides of a conversation.

    Args:
        names: What each side is, in words.
        plain: Whether prompts are continued as they are, without a chat template.
        scorer: Who judges the answers, if anyone does.
    """

    names: dict[Side, str]
    plain: bool = False
    scorer: Scorer | None = None

    @property
    @abstractmethod
    def fixed(self) -> str:
        """Why the strength cannot be set, in a sentence; "" where it can."""

    @abstractmethod
    def answers(
        self,
        turns: Sequence[Turn],
        settings: Settings,
        sides: Sequence[Side] = SIDES,
        stopped: Callable[[], bool] = lambda: False,
    ) -> Generator[Said | Answered]:
        """Answer the last turn, and tell what there is.

        Args:
            turns: The conversation, whose last turn is to be answered.
            settings: How.
            sides: Who answers.
            stopped: Asked all the while; where it says yes, what there is becomes the answer.

        Raises:
            UserError: There is nothing to answer, or no answer.
        """

    @property
    def has_dial(self) -> bool:
        """Whether the strength can be set."""
        return not self.fixed

    @property
    def scorer_name(self) -> str:
        """The name of who judges; "" for nobody."""
        return self.scorer.name if self.scorer else ""

    def conversation(self, turns: Sequence[Turn]) -> Conversation:
        """These turns, as they are saved."""
        return Conversation(
            models=self.names,
            form="plain" if self.plain else "chat",
            hooks=self.has_dial,
            scorer=self.scorer_name,
            turns=tuple(turns),
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
