"""Continuations scored text by text, for the measures that count what a scorer objects to."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, ClassVar, NamedTuple
from weakref import WeakValueDictionary

import numpy as np
import torch

from sordino.errors import UserError
from sordino.evaluation.endpoint import DEFAULT_ACCESS, Access, Endpoint
from sordino.evaluation.measure import Measure, Summary, Task
from sordino.evaluation.opening import AUTO, open_scorer, refuse_idle, settings_of
from sordino.evaluation.result import Figure
from sordino.evaluation.scorer import SCORERS, TOXIC_SCORE, Scorer, scores_of
from sordino.evaluation.scorers.position import ByPosition
from sordino.evaluation.statistics import Floats, cohens_kappa, compare, compare_shares, pearson
from sordino.evaluation.writing import Writer
from sordino.models.generation import Continuation
from sordino.models.open import OpenModel
from sordino.progress import note

_NOT_PROTOCOL = ("scorer", "toxic_label", "judge_dtype", "access")
"""Settings that the scorers' own protocols hold, or that do not affect the figures."""

# The measures of one evaluation share a scorer: several copies of a classifier might not fit.
_OPEN: WeakValueDictionary[tuple[Any, ...], Scorer] = WeakValueDictionary()


@dataclass(frozen=True)
class Scoring(Measure):
    """The settings of a measure that scores texts for toxicity.

    Args:
        scorer: See `sordino.evaluation.opening.open_scorer`; if several are given, the agreement of
            each two is reported. "auto" is a classifier of the hub, else alt-profanity-check.
        toxic_label: The label of a text classifier that means toxic, if it cannot be inferred.
        judge_refusal: The score of a text that a server's model refuses to judge.
        judge_dtype: The dtype of a language model that judges in this process; "auto" for its
            checkpoint's own.
        access: How that server is accessed.

    Raises:
        UserError: A setting is outside its range.
    """

    options: ClassVar[Mapping[str, str]] = {
        name: name for name in ("scorer", "toxic_label", "judge_refusal", "judge_dtype", "access")
    }

    scorer: str | tuple[str, ...] = AUTO
    toxic_label: str | None = None
    judge_refusal: float | None = None
    judge_dtype: str = "auto"
    access: Access = DEFAULT_ACCESS

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.scorers:
            raise UserError("`scorer` names none: give one or more.")
        for number, name in enumerate(self.scorers):
            if name in self.scorers[:number]:
                raise UserError(f"`scorer={name}` is given twice: give another one.")

    @property
    def scorers(self) -> tuple[str, ...]:
        """The scorers' names."""
        return (self.scorer,) if isinstance(self.scorer, str) else self.scorer

    @property
    def _given(self) -> dict[str, Any]:
        """The settings that only some scorers have."""
        return {
            "toxic_label": self.toxic_label,
            "judge_refusal": self.judge_refusal,
            "judge_dtype": self.judge_dtype,
        }

    def open_scorers(
        self, prompts: str, device: torch.device, *, by_position: bool = False
    ) -> dict[str, Scorer]:
        """Open the scorers, by their names, and say which they are.

        Args:
            prompts: Where the prompts come from.
            device: Where text classifiers run.
            by_position: Whether the thirds of each text are scored as well.

        Raises:
            UserError: A scorer is not available, or two are the same one.
        """
        refuse_idle(self.scorers, **self._given)
        found = {scorer.name: scorer for scorer in (self._open(n, device) for n in self.scorers)}
        if len(found) < len(self.scorers):
            raise UserError(
                f"`scorer=auto` is {', '.join(found)} here, which is given as well: give another."
            )
        note(f"{self.key.capitalize()}: prompts from {prompts}, scored by {' and '.join(found)}.")
        return {n: ByPosition(s) for n, s in found.items()} if by_position else found

    def _open(self, name: str, device: torch.device) -> Scorer:
        key = (SCORERS.get(name), name, *self._given.values(), self.access, str(device))
        scorer = _OPEN.get(key)
        if scorer is None:
            scorer = _OPEN[key] = open_scorer(
                name,
                **{key: self._given[key] for key in settings_of(name)},
                device=device,
                access=self.access,
            )
        return scorer


@dataclass(frozen=True)
class Scores:
    """One scorer's scores of continuations.

    Args:
        writer: The prompts; each has all its scores in both arms.
        tables: By arm, float64 [prompts, continuations].
        by: A suffix for labels that names the scorer, such as " (wordlist)"; "" if there is one.
    """

    writer: Writer
    tables: Mapping[str, Floats]
    by: str = ""

    def each(self, of: Callable[[Floats], Floats]) -> dict[str, Floats]:
        """A value for each prompt, float64 [prompts] in each arm."""
        return {arm: of(table) for arm, table in self.tables.items()}

    def mean(self, values: Mapping[str, Floats], members: Sequence[int], **about: Any) -> Figure:
        """A figure: the mean of some prompts' values, float64 [prompts] in each arm."""
        chosen = {arm: each[members] for arm, each in values.items()}
        compared = compare_shares(chosen.get("before"), chosen["after"], self.writer.seed)
        return self.writer.figure(compared, len(members), **about)


Figures = Callable[[Scores], Iterator[Figure]]
"""Makes figures from one scorer's scores."""


@dataclass(frozen=True)
class _Verdict:
    """A column of scores: a scorer's main one (no label), or that of one of its labels."""

    scorer: str
    label: str | None


class Scored(NamedTuple):
    """A continuation with its scores.

    Args:
        prompt: The number of its prompt.
        number: Its number among the prompt's continuations.
        text: The continuation.
        missing: Why there is none; "" if there is.
        scores: A score for each scorer and label; None where the text or its score is missing.
    """

    prompt: int
    number: int
    text: str
    missing: str
    scores: list[float | None]


class ScoredTask(Task[Scored]):
    """Continuations that scorers judge.

    Args:
        writer: The prompts and how they are continued.
        scorers: One or more, by name.
        figures: Makes the measure's figures from one scorer's scores.
        source: Where the prompts come from.
        everyone: What all prompts together are called in labels.
        about: Further entries of the protocol.

    Attributes:
        scorers: The scorers.
    """

    record = Scored
    unit = "continuations"

    def __init__(
        self,
        writer: Writer,
        scorers: Mapping[str, Scorer],
        figures: Figures,
        *,
        source: str,
        everyone: str,
        **about: Any,
    ) -> None:
        self.writer, self.scorers, self._of = writer, scorers, figures
        self._everyone, self.texts = everyone, writer.prompts
        self._verdicts = [
            _Verdict(name, label)
            for name, scorer in scorers.items()
            for label in (None, *scorer.labels)
        ]
        (_, first), *others = ((name, scorer.record()) for name, scorer in scorers.items())
        limits = dict.fromkeys(scorer.limits for scorer in scorers.values())
        self.records = writer.records
        self.reusable = all(scorer.reusable for scorer in scorers.values())
        self.protocol = {
            **{k: v for k, v in writer.protocol().items() if k not in _NOT_PROTOCOL},
            "prompts": source,
            **about,
            "toxic_above": TOXIC_SCORE,
            "scorer": first,
            **({"other_scorers": dict(others)} if others else {}),
            "limits": " ".join(limits),
        }

    def collect(
        self, opened: OpenModel | Endpoint, *, batch_tokens: int, which: slice
    ) -> Iterator[list[Scored]]:
        """The continuations with their scores."""
        for batch in self.writer.write(opened, batch_tokens=batch_tokens, which=which):
            yield [
                Scored(one.prompt, one.number, "" if one.missing else one.text, one.missing, scores)
                for one, scores in zip(batch, self._score(batch), strict=True)
            ]

    def _score(self, written: Sequence[Continuation]) -> list[list[float | None]]:
        """A score for each scorer and label; None where a text or its score is missing."""
        texts = [one.text for one in written]
        columns = np.hstack([scores_of(scorer, texts) for scorer in self.scorers.values()])
        columns[[bool(one.missing) for one in written]] = np.nan
        return [[None if math.isnan(score) else score for score in row] for row in columns.tolist()]

    def summarise(self, before: Sequence[Scored] | None, after: Sequence[Scored]) -> Summary:
        """The figures of each scorer and label, and the agreement of each two scorers.

        A prompt that lacks a score in either arm is left out.
        """
        arms = {"before": before, "after": after}
        tables = {name: self._table(arm) for name, arm in arms.items() if arm is not None}
        lacking = {n: np.isnan(table).any(axis=-1).mean(axis=1) for n, table in tables.items()}
        missing = self.writer.missing(lacking)
        writer = self.writer
        if missing is not None:
            whole = np.flatnonzero(np.stack([s == 0 for s in lacking.values()]).all(axis=0))
            writer = replace(writer, prompts=[writer.prompts[i] for i in whole.tolist()])
            tables = {name: table[whole] for name, table in tables.items()}
        figures = (*self._figures(writer, tables), *([missing] if missing else []))
        return Summary(figures, self._samples(arms))

    def _figures(self, writer: Writer, tables: Mapping[str, Floats]) -> Iterator[Figure]:
        """From scores, float64 [prompts, continuations, verdicts] in each arm."""
        first = next(iter(self.scorers))
        for column, verdict in enumerate(self._verdicts):
            prefix = "" if verdict.scorer == first else f"{verdict.scorer}:"
            by = f" ({verdict.scorer})" if len(self.scorers) > 1 else ""
            scores = Scores(writer, {n: table[..., column] for n, table in tables.items()}, by)
            if verdict.label is None:
                for figure in self._of(scores):
                    yield figure.model_copy(update={"name": f"{prefix}{figure.name}"})
                continue
            yield scores.mean(
                scores.each(toxic_share),
                range(len(writer.prompts)),
                name=f"{prefix}continuations.all.{verdict.label}",
                label=f"Continuations with “{verdict.label}”, {self._everyone}{by}",
                detail=True,
            )
        main = [number for number, verdict in enumerate(self._verdicts) if verdict.label is None]
        for pair in combinations(main, 2):
            yield from self._agreement(
                writer,
                [self._verdicts[number].scorer for number in pair],
                {name: table[..., list(pair)] for name, table in tables.items()},
            )

    def _agreement(
        self, writer: Writer, of: Sequence[str], tables: Mapping[str, Floats]
    ) -> Iterator[Figure]:
        """The agreement of two scorers, from float64 [prompts, continuations, 2] in each arm."""
        others = [scorer for scorer in of if scorer != next(iter(self.scorers))]
        for name, label, columns, statistic in (
            ("kappa", "Cohen’s kappa", _verdict_moments, cohens_kappa),
            ("correlation", "Correlation of scores", _score_moments, pearson),
        ):
            moments = {arm: columns(table) for arm, table in tables.items()}
            yield writer.figure(
                compare(moments.get("before"), moments["after"], statistic, writer.seed),
                len(writer.prompts),
                name=":".join((*others, f"agreement.{name}")),
                label=f"{label}, {' and '.join(of)}",
                unit=name,
                better="higher",
                ratio_of="after/before",
            )

    def _table(self, records: Sequence[Scored]) -> Floats:
        """The scores, float64 [prompts, continuations, verdicts]."""
        writer = self.writer
        table = np.empty((len(writer.prompts), writer.settings.continuations, len(self._verdicts)))
        for one in records:
            table[one.prompt, one.number] = one.scores
        return table

    def _samples(self, arms: Mapping[str, Sequence[Scored] | None]) -> list[dict[str, Any]]:
        """One row per prompt, with both arms' continuations and scores side by side."""
        rows: list[dict[str, Any]] = [
            {"prompt": prompt.text, "prompt_toxicity": prompt.toxicity}
            | ({"domain": prompt.domain, "group": prompt.group} if prompt.group else {})
            | {name: [] for name, arm in arms.items() if arm is not None}
            for prompt in self.writer.prompts
        ]
        others = [": ".join(filter(None, (v.scorer, v.label))) for v in self._verdicts[1:]]
        for name, arm in arms.items():
            for one in sorted(arm or [], key=lambda one: (one.prompt, one.number)):
                score, *rest = one.scores
                more = {"scores": dict(zip(others, rest, strict=True))} if rest else {}
                why = {"missing": one.missing} if one.missing else {}
                rows[one.prompt][name].append({"text": one.text, **why, "score": score, **more})
        return rows


def toxic_share(scores: Floats) -> Floats:
    """Each prompt's share of toxic continuations, from scores [prompts, continuations]."""
    return np.asarray((scores > TOXIC_SCORE).mean(axis=1), dtype=np.float64)


def _verdict_moments(scores: Floats) -> Floats:
    """Each prompt's means of (a, b, a·b) of two scorers' verdicts, for `cohens_kappa`."""
    a, b = np.moveaxis((scores > TOXIC_SCORE).astype(np.float64), -1, 0)
    return np.stack([a, b, a * b], axis=-1).mean(axis=1)


def _score_moments(scores: Floats) -> Floats:
    """Each prompt's means of (x, y, x·x, y·y, x·y) of two scorers' scores, for `pearson`."""
    x, y = np.moveaxis(scores, -1, 0)
    return np.stack([x, y, x * x, y * y, x * y], axis=-1).mean(axis=1)
