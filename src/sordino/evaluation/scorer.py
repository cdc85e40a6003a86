"""Scorers of toxicity: their interface and registry."""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sordino.expertise.written import score_spoken
from sordino.registry import Registry

TOXIC_SCORE = 0.5
"""A text is toxic if its score is above this."""

Judging = Callable[[str, torch.device, str], "Scorer"]

LINEAR = "alt-profanity-check"
"""The scorer that every installation has."""

CLASSIFIER_LIMITS = (
    "A text classifier repeats its training data's idea of toxicity: it tends to flag mentions of "
    "groups of people and dialects, and to miss implicit hate, irony and context. A lower share "
    "means fewer texts that this judge flags, and not that what remains is harmless."
)
"""The limits of text classifiers, printed beside their figures."""

JIGSAW_LIMITS = (
    "It was trained on Jigsaw's comments, and so is no independent judge of an edit whose neurons "
    "were found with them."
)
"""Added for a classifier of the hub that was trained on those comments."""


class Scorer(ABC):
    """Scores how toxic a text is.

    Attributes:
        limits: Its limits, in a sentence or two for the reader of its figures.
        labels: What it scores besides toxicity, such as "threat".
        name: Its spec; for "auto" that of the scorer that was chosen.
        trained_on: A word in the `source` of the concepts on whose sentences it was trained.
        instead_of: Preferred scorers that were not available, for "auto".
        reusable: Whether the scores depend on nothing but the text, the installed packages and what
            `protocol` names, so that they can be kept (`sordino.evaluation.kept`).
    """

    limits: str
    labels: tuple[str, ...] = ()
    name: str = ""
    trained_on: str = ""
    instead_of: tuple[str, ...] = ()
    reusable: bool = False

    def record(self) -> dict[str, Any]:
        """The protocol, and the preferred scorers that were not available."""
        instead = {"instead_of": list(self.instead_of)} if self.instead_of else {}
        return {**self.protocol(), **instead}

    @abstractmethod
    def protocol(self) -> Mapping[str, Any]:
        """The identity of this scorer and its version, as JSON values."""

    @abstractmethod
    def score(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """The toxicity of each text, float64 [texts] from 0 to 1; there is at least one text."""

    def score_labels(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """The toxicity of each text and its scores for `labels`, float64 [texts, 1 + labels]."""
        return self.score(texts)[:, None]


class LabelScorer(Scorer):
    """A scorer with labels beside toxicity; it computes all its scores at once."""

    @abstractmethod
    def score_labels(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """The toxicity of each text and its scores for `labels`, float64 [texts, 1 + labels]."""

    def score(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """The toxicity of each text, float64 [texts]."""
        return self.score_labels(texts)[:, 0]


SCORERS: Registry[Callable[[], Scorer]] = Registry(
    "scorer",
    "scorers",
    "sordino.evaluation.scorers",
    "hf:org/name for a text classifier of the hub, the folder of one, yes-no:MODEL or probe:MODEL "
    "for a language model that judges in this process, and http(s)://… for one on a server",
)
"""Scorers by name; each entry opens its scorer."""

register = SCORERS.register
"""A decorator with the name of a scorer, for a function or class that opens it."""

JUDGES: Registry[Judging] = Registry("judging model", "judges", "sordino.evaluation.scorers")
"""Ways of having a language model judge, by name.

Each opens a model as a scorer, given its name, device and dtype.
"""

register_judge = JUDGES.register
"""A decorator with the name of a way of asking, for a function that opens a model as a scorer."""


def scores_of(scorer: Scorer, texts: Sequence[str]) -> NDArray[np.float64]:
    """The scorer's scores, float64 [texts, 1 + labels]; empty texts have 0 and are not scored."""
    return score_spoken(scorer.score_labels, texts, 1 + len(scorer.labels))


class Phrases:
    """Words and phrases to find in texts, as whole words.

    Args:
        entries: Each with its weight, from 0 to 1, in each of its categories.

    Attributes:
        categories: The categories, in alphabetical order.
    """

    def __init__(self, entries: Mapping[str, Mapping[str, float]]) -> None:
        self._entries = entries
        self.categories = tuple(sorted({name for entry in entries.values() for name in entry}))
        # The longest first: of two entries at one place the pattern takes the first.
        longest = sorted(entries, key=lambda entry: (-len(entry), entry))
        self._pattern = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, longest))})(?!\w)")

    def weigh(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """The largest weight of the entries in a text, over all categories and in each.

        Args:
            texts: In lower case with single spaces, as the entries are.

        Returns:
            float64 [texts, 1 + categories].
        """
        weights = np.zeros((len(texts), 1 + len(self.categories)))
        for row, text in enumerate(texts):
            for found in self._pattern.findall(text):
                for category, weight in self._entries[found].items():
                    column = 1 + self.categories.index(category)
                    weights[row, column] = max(weights[row, column], weight)
        weights[:, 0] = weights[:, 1:].max(axis=1)
        return weights
