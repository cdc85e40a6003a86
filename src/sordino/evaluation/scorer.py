"""What a scorer of toxicity is, and the registry of scorers."""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sordino.registry import Registry

TOXIC_SCORE = 0.5
"""A text is toxic if the scorer gives more than this."""

Judging = Callable[[str, torch.device, str], "Scorer"]

LINEAR = "alt-profanity-check"
"""The scorer that is always there."""

CLASSIFIER_LIMITS = (
    "A text classifier repeats its training data's idea of toxicity: it tends to flag mentions of "
    "groups of people and dialects, and to miss implicit hate, irony and context. A lower share "
    "means fewer texts that this judge flags, and not that what remains is harmless."
)
"""What a text classifier cannot see; wherever its figures stand, this stands beside them."""

JIGSAW_LIMITS = (
    "It was trained on Jigsaw's comments, and so is no independent judge of an edit whose neurons "
    "were found with them."
)
"""What is added to that for a classifier of the hub that is known to come from those comments."""


class Scorer(ABC):
    """A judge of how toxic a text is.

    Attributes:
        limits: What it is blind to, in a sentence or two for the reader of its figures.
        labels: What else it judges than toxicity, such as "threat".
        name: By which it was asked for, or what "auto" is here.
        trained_on: A word of the `source` of concepts with whose sentences it was trained.
        instead_of: The scorers that "auto" would have been, had they been available.
    """

    limits: str
    labels: tuple[str, ...] = ()
    name: str = ""
    trained_on: str = ""
    instead_of: tuple[str, ...] = ()

    def record(self) -> dict[str, Any]:
        """The protocol, and the scorers that were not available and would have come first."""
        instead = {"instead_of": list(self.instead_of)} if self.instead_of else {}
        return {**self.protocol(), **instead}

    @abstractmethod
    def protocol(self) -> Mapping[str, Any]:
        """What identifies this scorer and its version, as JSON values."""

    @abstractmethod
    def score(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """The toxicity of each text, float64 [texts] from 0 to 1; there is at least one text."""

    def score_labels(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """The toxicity of each text and its scores for `labels`, float64 [texts, 1 + labels]."""
        return self.score(texts)[:, None]


class LabelScorer(Scorer):
    """A judge with labels beside toxicity; it gives all of its scores at once."""

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
    "hf:org/name for a text classifier of the hub, the folder of one, yes-no:MODEL for a language "
    "model that judges here, and http(s)://… for one that a server has",
)
"""Scorers by name; each entry opens its scorer."""


def register(name: str) -> Callable[[Callable[[], Scorer]], Callable[[], Scorer]]:
    """Register a function (or class) that opens a scorer."""

    def put(opener: Callable[[], Scorer]) -> Callable[[], Scorer]:
        SCORERS[name] = opener
        return opener

    return put


JUDGES: Registry[Judging] = Registry("judging model", "judges", "sordino.evaluation.scorers")
"""Ways of asking a language model for its verdict, by name.

Each opens a scorer, given the model, where it runs, and in which dtype.
"""


def register_judge(name: str) -> Callable[[Judging], Judging]:
    """Register a function that opens a scorer of a model; NAME:MODEL asks for it."""

    def put(opener: Judging) -> Judging:
        JUDGES[name] = opener
        return opener

    return put


def scores_of(scorer: Scorer, texts: Sequence[str]) -> NDArray[np.float64]:
    """The scorer's scores, float64 [texts, 1 + labels].

    An empty text says nothing toxic, so no scorer is asked about it.
    """
    scores = np.zeros((len(texts), 1 + len(scorer.labels)))
    spoken = [i for i, text in enumerate(texts) if text.strip()]
    if spoken:
        scores[spoken] = scorer.score_labels([texts[i] for i in spoken])
    return scores


class Phrases:
    """Words and phrases that are looked for in texts, as whole words.

    Args:
        entries: Each with its weight, from 0 to 1, in each of its categories.

    Attributes:
        categories: The categories, in their alphabetical order.
    """

    def __init__(self, entries: Mapping[str, Mapping[str, float]]) -> None:
        self._entries = entries
        self.categories = tuple(sorted({name for entry in entries.values() for name in entry}))
        # The longest first, for of two entries at one place the first is taken.
        longest = sorted(entries, key=lambda entry: (-len(entry), entry))
        self._pattern = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, longest))})(?!\w)")

    def weigh(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """The largest weight of the entries in a text, of all and by category.

        Args:
            texts: Written as the entries are, in small letters with single spaces.

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
