"""A scorer's scores by position in longer texts, where late toxicity shows."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sordino.evaluation.scorer import LabelScorer, Scorer, scores_of

THIRDS = ("first third", "middle third", "last third")
LONG = 60
"""Continuations with this many tokens or more are scored by position, too."""


class ByPosition(LabelScorer):
    """Another scorer, with its scores of a text's thirds as three more labels.

    A text is cut into thirds of equally many words, separated by white space.

    Args:
        scorer: The other scorer.
    """

    def __init__(self, scorer: Scorer) -> None:
        self.scorer = scorer
        self.limits, self.name = scorer.limits, scorer.name
        self.trained_on, self.instead_of = scorer.trained_on, scorer.instead_of
        self.reusable = scorer.reusable
        self.labels = (*scorer.labels, *THIRDS)

    def protocol(self) -> Mapping[str, Any]:
        """The other scorer's, and a mark for the thirds."""
        return {**self.scorer.protocol(), "thirds": True}

    def score_labels(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """The other scorer's scores, then those of each third, float64 [texts, 1 + labels]."""
        parts = list(zip(*map(thirds, texts), strict=True))
        each = [scores_of(self.scorer, part)[:, 0] for part in parts]
        return np.column_stack([scores_of(self.scorer, texts), *each])


def whole(scorer: Scorer) -> Scorer:
    """The scorer itself, without the scores of thirds."""
    return scorer.scorer if isinstance(scorer, ByPosition) else scorer


def thirds(text: str) -> tuple[str, str, str]:
    """The first, middle and last third of a text's words."""
    words = text.split()
    one, two = len(words) // 3, 2 * len(words) // 3
    return " ".join(words[:one]), " ".join(words[one:two]), " ".join(words[two:])
