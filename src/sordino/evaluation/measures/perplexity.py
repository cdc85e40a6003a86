"""How well a model predicts texts: prose, for the cost of an edit, or text with the concept."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch

from sordino.evaluation.measure import Column, Summary, Task, register
from sordino.evaluation.reading import Reader, Reading, nll
from sordino.evaluation.result import Figure
from sordino.evaluation.statistics import Floats, compare_perplexities
from sordino.evaluation.texts import KIT_INSULTING
from sordino.models.open import OpenModel


@register
@dataclass(frozen=True)
class Perplexity(Reading):
    """Perplexity, exp of the mean negative log-likelihood of a token given those before it.

    The tokenizer's own special tokens are kept; a text's first token is context and is not scored.
    The settings are those of `Reading`.

    Example:
        >>> found = sordino.evaluate("tiny", measures=[sordino.Perplexity("prose.txt")])
        >>> found.figure("perplexity", "corpus").unit
        'perplexity'
    """

    name: ClassVar[str] = "perplexity"
    version: ClassVar[int] = 1
    title: ClassVar[str] = "Perplexity"
    sentence: ClassVar[str] = "How well the model predicts ordinary prose: the edit's cost."
    budget: ClassVar[Literal["<=", ">=", ""]] = "<="
    # Of the corpus: a mean over short comments is dominated by the one or two strangest.
    columns: ClassVar[tuple[Column, ...]] = (Column("perplexity", "ratio", "corpus", place=20),)
    subject: ClassVar[str] = "Perplexity"
    better: ClassVar[Literal["lower", "higher"]] = "lower"

    def prepare(self, seed: int, device: torch.device) -> "_PerplexityTask":  # noqa: ARG002
        """Read and choose the texts."""
        return _PerplexityTask(Reader.of(self, seed), self.subject, self.better)


@register
@dataclass(frozen=True)
class ToxicPerplexity(Perplexity):
    """Perplexity of toxic text, which should rise; otherwise as `Perplexity`.

    The default is the insulting comments of the kit's held-out insults/test.csv.
    """

    name: ClassVar[str] = "toxic-perplexity"
    version: ClassVar[int] = 1
    title: ClassVar[str] = "Perplexity of toxic text"
    sentence: ClassVar[str] = "How well the model predicts toxic text; here a rise is wanted."
    options: ClassVar[Mapping[str, str]] = {**Perplexity.options, "texts": "toxic_texts"}
    budget: ClassVar[Literal["<=", ">=", ""]] = ""
    columns: ClassVar[tuple[Column, ...]] = (
        Column("perplexity of text with the concept", "ratio", "corpus", place=30),
    )
    subject: ClassVar[str] = "Toxic-text perplexity"
    better: ClassVar[Literal["lower", "higher"]] = "higher"

    texts: str = KIT_INSULTING


class Likelihood(NamedTuple):
    """A text's negative log-likelihood.

    Args:
        text: Which of the texts.
        nll: The sum over the scored tokens, in nats.
        tokens: How many tokens are scored.
    """

    text: int
    nll: float
    tokens: int


class _PerplexityTask(Task[Likelihood]):
    record = Likelihood
    unit = "texts"
    reusable = True

    def __init__(self, reader: Reader, subject: str, better: Literal["lower", "higher"]) -> None:
        self._reader, self._subject, self._better = reader, subject, better
        self.texts, self.protocol = reader.texts, reader.protocol()
        self.records = len(reader.texts)

    def collect(
        self, opened: OpenModel, *, batch_tokens: int, which: slice
    ) -> Iterator[list[Likelihood]]:
        """The likelihood of each text."""

        def note(index: int, ids: torch.Tensor, logits: torch.Tensor) -> Likelihood:
            return Likelihood(index, nll(logits, ids), len(ids) - 1)

        return self._reader.collect(opened, note, batch_tokens=batch_tokens, which=which)

    def summarise(
        self, before: Sequence[Likelihood] | None, after: Sequence[Likelihood]
    ) -> Summary:
        """Mean perplexity and corpus perplexity; a text of one token in either arm is left out."""
        arms = [after] if before is None else [before, after]
        # By text: arms with different tokenizers have different orders.
        ordered = [sorted(arm) for arm in arms]
        tokens = [np.array([one.tokens for one in arm], dtype=np.float64) for arm in ordered]
        scored = np.all([of > 0 for of in tokens], axis=0)
        if not scored.any():
            raise self._reader.no_scored_token()
        columns: list[tuple[Floats, Floats]] = [
            (np.array([one.nll for one in arm])[scored], of[scored])
            for arm, of in zip(ordered, tokens, strict=True)
        ]
        mean, corpus = compare_perplexities(
            None if before is None else columns[0], columns[-1], self._reader.seed
        )
        n = {"texts": int(scored.sum()), "tokens": int(columns[-1][1].sum())}
        about: dict[str, Any] = {
            "unit": "perplexity",
            "better": self._better,
            "ratio_of": "after/before",
            "n": n,
        }
        return Summary(
            (
                Figure.of(mean, name="mean", label=f"{self._subject}, mean over texts", **about),
                Figure.of(corpus, name="corpus", label=f"{self._subject} of the corpus", **about),
            )
        )
