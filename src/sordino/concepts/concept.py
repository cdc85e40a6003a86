"""A concept: sentences that have it, and sentences that do not."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sordino.concepts.text_files import whole_text
from sordino.errors import UserError, require_whole
from sordino.files import counted, fingerprint, printable

FEWEST_PER_CLASS = 20

Context = tuple[tuple[tuple[str, str], ...], str]
"""The messages before a sentence, as (role, text), and the role of the sentence itself."""


def refuse_unloaded(concept: object) -> None:
    """Refuse what names sentences where the sentences themselves are expected.

    Raises:
        UserError: It is a text or a path.
    """
    if isinstance(concept, str | Path):
        raise UserError(
            f"`concept={concept}` names sentences, and the sentences themselves are expected: give "
            f"sordino.load_concept({str(concept)!r})."
        )


@dataclass(frozen=True)
class Concept:
    """Sentences that have a concept (positive) and sentences that do not (negative).

    Sentences can be given as any iterable of texts, such as a list or a pandas column.

    Args:
        name: A short word, such as "toxicity".
        positive: The sentences that have the concept.
        negative: The sentences that do not.
        source: Where they come from, in words for the reader of a report.
        strata: The stratum of each of `sentences`, for an AUROC within strata; or ().
        source_is_substitute: Whether the sentences replace others that were not available.
        contexts: The conversation that each of `sentences` is the last turn of; () if there is
            none.
        judge: The scorer that is known to recognise the concept in short texts, for own samples;
            "" if none is.

    Raises:
        UserError: A class is missing or has fewer than 20 sentences, or a sentence is empty.
        ValueError: There are strata or contexts, but not one for each sentence.

    Example:
        >>> concept = sordino.load_concept("calm.jsonl", max_per_class=20)
        >>> concept.labels.shape
        (40,)
    """

    name: str
    positive: tuple[str, ...]
    negative: tuple[str, ...]
    source: str = field(default="given in Python", compare=False)
    strata: tuple[str, ...] = ()
    source_is_substitute: bool = field(default=False, compare=False)
    contexts: tuple[Context, ...] = ()
    judge: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        for label in ("positive", "negative"):
            object.__setattr__(self, label, self._texts(label, getattr(self, label)))
        for what, each in (("strata", self.strata), ("contexts", self.contexts)):
            if each and len(each) != len(self.sentences):
                raise ValueError(f"{len(each)} {what} for {len(self.sentences)} sentences")
        for label, sentences in (("positive", self.positive), ("negative", self.negative)):
            if not sentences:
                raise UserError(
                    f"The concept '{self.name}' ({self.source}) has no {label} sentence: "
                    "both classes are needed."
                )
            if len(sentences) < FEWEST_PER_CLASS:
                raise UserError(
                    f"The concept '{self.name}' ({self.source}) has "
                    f"{counted(len(sentences), f'{label} sentence')}: at least "
                    f"{FEWEST_PER_CLASS} of each class are needed."
                )
            for number, sentence in enumerate(sentences, start=1):
                if not sentence.strip():
                    raise UserError(
                        f"The concept '{self.name}' ({self.source}) has an empty text: "
                        f"{label} sentence {number}."
                    )

    def _texts(self, label: str, given: object) -> tuple[str, ...]:
        if isinstance(given, str | bytes) or not isinstance(given, Iterable):
            raise UserError(
                f"The {label} sentences of the concept '{self.name}' are one "
                f"{type(given).__name__}: give a list of texts."
            )
        texts = tuple(given)
        for number, text in enumerate(texts, start=1):
            if not isinstance(text, str):
                raise UserError(
                    f"The concept '{self.name}' has a sentence that is not text: {label} sentence "
                    f"{number} is {printable(repr(text), 40)}."
                )
            whole_text(text, f"The concept '{self.name}', {label} sentence {number}")
        return texts

    def __repr__(self) -> str:
        """One line without the sentences, which may be many and offensive."""
        strata = f", {len(set(self.strata))} strata" if self.strata else ""
        return printable(
            f"Concept({self.name!r}: {len(self.positive):,} positive and {len(self.negative):,} "
            f"negative sentences{strata}, {self.source})"
        )

    @property
    def sentences(self) -> tuple[str, ...]:
        """All sentences, the positive ones first; all indices of sentences refer to this order."""
        return self.positive + self.negative

    @property
    def labels(self) -> NDArray[np.bool_]:
        """Whether each of `sentences` is positive, bool [n_positive + n_negative]."""
        return np.arange(len(self.positive) + len(self.negative)) < len(self.positive)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over both classes' sentences in order, their strata and contexts."""
        said = [json.dumps(self.contexts)] if self.contexts else []
        return fingerprint(str(len(self.positive)), *self.sentences, *self.strata, *said)

    def sampled(
        self, *, max_per_class: int | None = None, balance: bool = True, seed: int = 0
    ) -> "Concept":
        """A random sample of the concept; the sentences keep their order.

        Args:
            max_per_class: The most sentences per class.
            balance: Reduce the larger class to the size of the smaller one.
            seed: Of the sample.

        Raises:
            UserError: `max_per_class` is less than 20, or the seed is negative.
        """
        require_whole(seed=seed, max_per_class=max_per_class)
        if seed < 0:
            raise UserError(f"`seed={seed}` is negative: give 0 or more.")
        if max_per_class is not None and max_per_class < FEWEST_PER_CLASS:
            raise UserError(
                f"`max_per_class={max_per_class}` is too few: at least {FEWEST_PER_CLASS} "
                "sentences of each class are needed."
            )
        sizes = [len(self.positive), len(self.negative)]
        if balance:
            sizes = [min(sizes)] * 2
        if max_per_class is not None:
            sizes = [min(size, max_per_class) for size in sizes]

        def draw(among: int, size: int, stream: int) -> list[int]:
            if size == among:
                return list(range(among))
            generator = np.random.default_rng([seed, stream])
            return sorted(int(i) for i in generator.choice(among, size, replace=False))

        return self.at(draw(len(self.positive), sizes[0], 0), draw(len(self.negative), sizes[1], 1))

    def at(self, positive: Sequence[int], negative: Sequence[int]) -> "Concept":
        """The concept with a selection of its sentences, in this order.

        Args:
            positive: Indices into the positive sentences.
            negative: Indices into the negative ones.
        """
        kept = [*positive, *(len(self.positive) + i for i in negative)]
        return replace(
            self,
            positive=tuple(self.positive[i] for i in positive),
            negative=tuple(self.negative[i] for i in negative),
            strata=tuple(self.strata[i] for i in kept) if self.strata else (),
            contexts=tuple(self.contexts[i] for i in kept) if self.contexts else (),
        )
