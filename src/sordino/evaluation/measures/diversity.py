"""How varied a model's text is: whether an edit makes it repeat itself or fall silent."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import exp, log
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch

from sordino.evaluation.endpoint import Endpoint
from sordino.evaluation.measure import Column, Summary, Task, register
from sordino.evaluation.result import Figure
from sordino.evaluation.statistics import Floats, compare, compare_shares, first_mean
from sordino.evaluation.texts import KIT_ORDINARY, choose, read_texts
from sordino.evaluation.writing import Writer, Writing
from sordino.models.open import OpenModel

_BLEU_ORDER = 4
_REPEATED = 4


@register
@dataclass(frozen=True)
class Diversity(Writing):
    """Diversity of sampled continuations, after ordinary prompts unless others are given.

    The settings are those of `Writing`. N-grams are of words, separated by white space.
    """

    name: ClassVar[str] = "diversity"
    version: ClassVar[int] = 1
    title: ClassVar[str] = "Diversity"
    sentence: ClassVar[str] = "Whether the text repeats itself, gets shorter or falls silent."
    options: ClassVar[Mapping[str, str]] = {**Writing.options, "prompts": "ordinary_prompts"}
    columns: ClassVar[tuple[Column, ...]] = (
        Column("distinct word pairs", "share", "distinct-2", place=60),
        Column("repetition", "share", "repetition", place=60),
        Column("words", "number", "words", place=60),
    )

    prompts: str = KIT_ORDINARY

    def prepare(self, seed: int, device: torch.device) -> "_DiversityTask":  # noqa: ARG002
        """Read and choose the prompts."""
        prompts = choose(read_texts(self.prompts), self.max_prompts, seed)
        return _DiversityTask(Writer(self, prompts, seed))


@dataclass(frozen=True)
class _Kind:
    """One figure, and how it is computed from a prompt's continuations (None: undefined)."""

    name: str
    label: str
    unit: str
    better: Literal["lower", "higher"]
    of: Callable[[list[list[str]], list[int | None]], float | None]


class Written(NamedTuple):
    """A continuation.

    Args:
        prompt: The number of its prompt.
        number: Its number among the prompt's continuations.
        text: The continuation.
        missing: Why there is none; "" if there is.
        tokens: How many tokens it has; None for a server's.
    """

    prompt: int
    number: int
    text: str
    missing: str
    tokens: int | None


class _DiversityTask(Task[Written]):
    record = Written
    unit = "continuations"

    def __init__(self, writer: Writer) -> None:
        self.writer, self.texts, self.records = writer, writer.prompts, writer.records
        self.protocol = {**writer.protocol(), "n_prompts": len(writer.prompts)}

    def collect(
        self, opened: OpenModel | Endpoint, *, batch_tokens: int, which: slice
    ) -> Iterator[list[Written]]:
        """The continuations."""
        for batch in self.writer.write(opened, batch_tokens=batch_tokens, which=which):
            yield [
                Written(
                    prompt=one.prompt,
                    number=one.number,
                    text=one.text,
                    missing=one.missing,
                    tokens=None if one.ids is None else len(one.ids),
                )
                for one in batch
            ]

    def summarise(self, before: Sequence[Written] | None, after: Sequence[Written]) -> Summary:
        """Means over prompts; a prompt for which a figure is undefined in an arm is left out."""
        arms = {"before": before, "after": after}
        texts = {name: self._by_prompt(arm) for name, arm in arms.items() if arm is not None}
        missing = self.writer.missing(
            {
                name: np.array([np.mean([bool(w.missing) for w in one]) for one in arm])
                for name, arm in texts.items()
            }
        )
        figures = []
        for kind in _KINDS:
            values = np.array([[_value(kind, one) for one in arm] for arm in texts.values()])
            defined = ~np.isnan(values).any(axis=0)
            if not defined.any():
                continue  # such as self-BLEU with one continuation per prompt
            figures.append(self._kind_figure(kind, values[:, defined]))
        rows = [
            {"prompt": prompt.text}
            | {
                name: [{"missing": w.missing} if w.missing else w.text for w in arm[index]]
                for name, arm in texts.items()
            }
            for index, prompt in enumerate(self.writer.prompts)
        ]
        return Summary((*figures, *([missing] if missing else [])), rows)

    def _kind_figure(self, kind: _Kind, values: Floats) -> Figure:
        """One figure from its values, float64 [arms, prompts]."""
        before, after = values[0] if len(values) == 2 else None, values[-1]
        seed = self.writer.seed
        if kind.unit == "share":
            comparison, ratio_of = compare_shares(before, after, seed), "before/after"
        else:
            columns = None if before is None else before[:, None]
            comparison = compare(columns, after[:, None], first_mean, seed)
            ratio_of = "after/before"
        about: dict[str, Any] = {"unit": kind.unit, "better": kind.better, "ratio_of": ratio_of}
        return self.writer.figure(comparison, len(after), name=kind.name, label=kind.label, **about)

    def _by_prompt(self, records: Sequence[Written]) -> list[list[Written]]:
        """Each prompt's continuations in order."""
        found: list[list[Written]] = [[] for _ in self.writer.prompts]
        for one in sorted(records, key=lambda one: (one.prompt, one.number)):
            found[one.prompt].append(one)
        return found


def distinct(texts: Sequence[Sequence[str]], order: int) -> float | None:
    """The number of different n-grams divided by that of all (Li et al. 2016, arXiv 1510.03055).

    The texts are the continuations of one prompt, as in Liu et al. 2021 (arXiv 2105.03023), because
    the figure falls with the amount of text.
    """
    grams = [gram for text in texts for gram in _grams(text, order)]
    return len(set(grams)) / len(grams) if grams else None


def self_bleu(texts: Sequence[Sequence[str]]) -> float | None:
    """The mean BLEU of each text against the others, 0 to 100 (Zhu et al. 2018, arXiv 1802.01886).

    None if fewer than two texts have a word.
    """
    spoken = [text for text in texts if text]
    if len(spoken) < 2:
        return None
    counts = [
        [Counter(_grams(text, order)) for order in range(1, _BLEU_ORDER + 1)] for text in spoken
    ]
    scores = [_bleu(counts[i], counts[:i] + counts[i + 1 :]) for i in range(len(spoken))]
    return float(np.mean(scores))


def repetition(texts: Sequence[Sequence[str]]) -> float | None:
    """The share of a text's 4-grams that repeat an earlier one, mean over the texts that have any.

    seq-rep-4 of Welleck et al. 2019 (arXiv 1908.04319), with words for tokens.
    """
    shares = [distinct([text], _REPEATED) for text in texts]
    found = [1 - share for share in shares if share is not None]
    return float(np.mean(found)) if found else None


def _bleu(hypothesis: list[Counter[Any]], references: list[list[Counter[Any]]]) -> float:
    """BLEU of a sentence (Papineni et al. 2002), as sacrebleu's sentence_bleu computes it.

    Up to 4-grams, or the longest that the text has; a precision of 0 is replaced by
    1 / (2^k · n-grams) the k-th time (its smoothing "exp").

    Args:
        hypothesis: The n-grams of each order with their counts.
        references: The same for each reference.
    """
    logs: list[float] = []
    zeros = 0
    for order, grams in enumerate(hypothesis):
        total = grams.total()
        if not total:
            break
        most = {gram: max(other[order][gram] for other in references) for gram in grams}
        correct = sum(min(count, most[gram]) for gram, count in grams.items())
        if not correct and not order:
            return 0.0  # no common word, so no longer n-gram either
        zeros += not correct
        logs.append(log((correct or 0.5**zeros) / total))
    length = hypothesis[0].total()
    nearest = min((abs(size - length), size) for size in (r[0].total() for r in references))[1]
    brevity = min(0.0, 1 - nearest / length)
    return 100 * exp(brevity + sum(logs) / len(logs))


def _grams(words: Sequence[str], order: int) -> list[tuple[str, ...]]:
    return [tuple(words[i : i + order]) for i in range(len(words) - order + 1)]


def _mean(lengths: Sequence[int | None]) -> float | None:
    known = [length for length in lengths if length is not None]
    return float(np.mean(known)) if len(known) == len(lengths) else None


def _value(kind: _Kind, written: list[Written]) -> float:
    """A figure of one prompt's continuations; not-a-number where it is undefined."""
    whole = not any(one.missing for one in written)
    words = [one.text.split() for one in written]
    value = kind.of(words, [one.tokens for one in written]) if whole else None
    return float("nan") if value is None else value


_KINDS = (
    _Kind("distinct-1", "Distinct words", "share", "higher", lambda t, _: distinct(t, 1)),
    _Kind("distinct-2", "Distinct pairs of words", "share", "higher", lambda t, _: distinct(t, 2)),
    _Kind(
        "distinct-3", "Distinct triples of words", "share", "higher", lambda t, _: distinct(t, 3)
    ),
    _Kind("self-bleu", "Self-BLEU", "BLEU", "lower", lambda t, _: self_bleu(t)),
    _Kind("repetition", "Repeated 4-grams", "share", "lower", lambda t, _: repetition(t)),
    _Kind("length", "Length in tokens", "tokens", "higher", lambda _, n: _mean(n)),
    _Kind("words", "Length in words", "words", "higher", lambda t, _: _mean([*map(len, t)])),
    _Kind("empty", "Empty continuations", "share", "lower", lambda t, _: t.count([]) / len(t)),
)
