"""The result of an evaluation: a value that can be saved, read back and shown as a table."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, JsonValue, TypeAdapter

from sordino.errors import UserError
from sordino.evaluation.statistics import Comparison, Estimate
from sordino.files import write_json, write_text
from sordino.records import Count, Record, parse, parse_format, read_bytes

FORMAT: Literal["sordino-evaluation-1"] = "sordino-evaluation-1"


_DECIMALS = {"nats per token": 4, "score": 3, "kappa": 3, "correlation": 3, "times": 3}
"""How many decimals a unit's numbers are shown with; 2 for others."""
_HUNDREDTHS = {"share": "%", "gap": "points"}
"""Units whose numbers are shown times 100; a gap is a difference of shares."""
_BOUNDED = ("kappa", "correlation", "gap")
"""Units with a largest number: a missing number is undefined, not infinite."""


class Figure(Record):
    """One figure, in one arm or compared between two.

    Args:
        name: Its name inside the measure, such as "continuations.all".
        label: Its name for people.
        unit: "share" (from 0 to 1), "gap" (between two shares), or another unit.
        better: The direction that is better.
        ratio_of: Which way `ratio` goes.
        n: How many items of each kind there were, such as {"prompts": 400}.
        before: In the arm before, if there is one.
        after: In the arm after. A figure that is itself a comparison, such as a divergence, is
            here, and has neither a before nor a difference.
        difference: After minus before.
        ratio: See `ratio_of`; its value is None where it would divide by 0.
        detail: Whether it is one of many of its kind, which a summary leaves out.
        group: The domain and the group that it is about, of a figure of one group.
    """

    name: str
    label: str
    unit: str
    better: Literal["lower", "higher"]
    ratio_of: Literal["before/after", "after/before"]
    n: dict[str, Count]
    before: Estimate | None
    after: Estimate
    difference: Estimate | None
    ratio: Estimate | None
    detail: bool = False
    group: tuple[str, str] | None = Field(None, exclude_if=lambda group: group is None)

    @classmethod
    def of(cls, comparison: Comparison, **about: Any) -> Self:
        """A figure from a comparison and its other fields."""
        return cls(
            before=comparison.before,
            after=comparison.after,
            difference=comparison.difference,
            ratio=comparison.ratio,
            **about,
        )


class ModelRecord(Record):
    """The model of an arm.

    Args:
        name: Its name as the user gave it.
        revision: The hub commit, or "".
        fingerprint: Of its weights; "" if they were edited in memory and none was given.
        dtype: In which it ran.
        device: On which kind of device it ran.
    """

    name: str
    revision: str
    fingerprint: str
    dtype: str
    device: str


class Reused(Record):
    """Where the records of the model before are from, if an earlier command measured them.

    Args:
        measured: The day, in UTC.
        sordino_version: The version that measured.
    """

    measured: str
    sordino_version: str


class MeasureResult(Record):
    """What a measure found, and how.

    Args:
        version: The measure's version.
        protocol: Everything that decides the figures besides the model and the seed.
        figures: The figures, the most important first.
        not_run: Why the measure was not taken; None where it was.
        before: Where the records of the model before are from; None where they were taken now.
    """

    version: int
    protocol: dict[str, Any] = Field(default_factory=dict)
    figures: tuple[Figure, ...] = ()
    not_run: str | None = None
    before: Reused | None = Field(default=None, exclude_if=lambda before: before is None)


@dataclass(frozen=True)
class Row:
    """A row of the before/after table, ready to be shown.

    Args:
        measure: The measure's name.
        label: The figure's label.
        before: The figure before with its interval; "" if there is one arm only.
        after: The figure after with its interval.
        change: The change; "" if there is one arm only.
        interval: The 95 % interval of the change (of the ratio for shares, of the difference
            otherwise).
        n: How many items.
        better: The direction that is better.
        clear: Whether the interval of the difference excludes 0; None with one arm.
        figure: The figure in numbers.
    """

    measure: str
    label: str
    before: str
    after: str
    change: str
    interval: str
    n: str
    better: Literal["lower", "higher"]
    clear: bool | None
    figure: Figure


class Evaluation(Record):
    """What was measured on a model, or on a model before and after a change.

    Args:
        format: Names this file format.
        sordino_version: The version that measured.
        created: The day, in UTC.
        seed: Of everything that is random.
        before: The model before; None if only one was measured.
        after: The model after, or the only one.
        measures: What each measure found, by its key.
        samples: Single items by measure; saved in a file of their own.

    Example:
        >>> measure = sordino.Perplexity("prose.txt", max_texts=8)
        >>> found = sordino.evaluate("quiet", "tiny", measures=[measure])
        >>> found.save("found.json")
        >>> rows = sordino.Evaluation.load("found.json").table()
        >>> " and ".join(row.label for row in rows)
        'Perplexity, mean over texts and Perplexity of the corpus'
    """

    format: Literal["sordino-evaluation-1"] = FORMAT
    sordino_version: str
    created: str
    seed: int
    before: ModelRecord | None
    after: ModelRecord
    measures: dict[str, MeasureResult]
    samples: dict[str, list[dict[str, Any]]] = Field(default_factory=dict, exclude=True)

    def figure(self, measure: str, name: str) -> Figure:
        """The figure of that name, such as ("toxicity", "continuations.all"); KeyError if none."""
        found = self.find_figure(measure, name)
        if found is None:
            raise KeyError(f"{measure} has no figure {name}")
        return found

    def find_figure(self, measure: str, name: str) -> Figure | None:
        """The figure of that name; None if a measure that was taken does not have it."""
        figures = self.measures[measure].figures
        return next((figure for figure in figures if figure.name == name), None)

    def table(self) -> list[Row]:
        """The before/after table, the same for the terminal, the model card and the page."""
        return [
            _row(name, figure)
            for name, result in self.measures.items()
            for figure in result.figures
        ]

    def save(self, path: str | Path, *, force: bool = False) -> None:
        """Write the figures to `path` and the samples, if any, beside it.

        Args:
            path: A JSON file.
            force: Replace an existing file.

        Raises:
            UserError: The file exists, or cannot be written.
        """
        path = Path(path)
        # The samples first, so that they are there whenever the result is.
        if self.samples:
            rows = [
                json.dumps({"measure": name} | row, ensure_ascii=False, allow_nan=False)
                for name, group in self.samples.items()
                for row in group
            ]
            write_text(samples_path(path), "\n".join(rows) + "\n", force=force)
        write_json(path, self.model_dump(mode="json"), force=force)

    @classmethod
    def load(cls, path: str | Path) -> "Evaluation":
        """Read a saved evaluation, with its samples if their file is beside it.

        Raises:
            UserError: It does not exist or is not an evaluation.
        """
        path = Path(path)
        read = parse_format(
            _EVALUATION, read_bytes(path, "evaluation"), str(path), "evaluation", FORMAT
        )
        beside = samples_path(path)
        measures = {
            name: found.model_copy(update={"figures": tuple(map(_with_group, found.figures))})
            for name, found in read.measures.items()
        }
        samples = _read_samples(beside) if beside.exists() else {}
        return read.model_copy(update={"measures": measures, "samples": samples})


_EVALUATION = TypeAdapter(Evaluation)
_SAMPLE = TypeAdapter(dict[str, JsonValue])


def _with_group(figure: Figure) -> Figure:
    """The figure, with its group also where an older version wrote it into the name alone."""
    what, *parts = figure.name.split(".", 2)
    if figure.group or what != "continuations" or len(parts) < 2 or parts[0] == "all":
        return figure
    return figure.model_copy(update={"group": tuple(parts)})


def _read_samples(path: Path) -> dict[str, list[dict[str, Any]]]:
    samples: dict[str, list[dict[str, Any]]] = {}
    for number, line in enumerate(read_bytes(path, "samples file").split(b"\n"), 1):
        if not line:
            continue
        row: dict[str, Any] = parse(_SAMPLE, line, f"{path}, line {number},")
        measure = row.pop("measure", None)
        if not isinstance(measure, str):
            raise UserError(f"{path}, line {number}, names no measure: it is damaged.")
        samples.setdefault(measure, []).append(row)
    return samples


def samples_path(path: Path) -> Path:
    """Where the samples of the evaluation at `path` are: result.json → result.samples.jsonl."""
    return path.with_name(f"{path.stem}.samples.jsonl")


def _row(measure: str, figure: Figure) -> Row:
    before, difference = figure.before, figure.difference
    change, interval = _change(figure)
    return Row(
        measure=measure,
        label=figure.label,
        before="" if before is None else _with_interval(before, figure.unit),
        after=_with_interval(figure.after, figure.unit),
        change=change,
        interval=interval,
        n=", ".join(n_shown(figure)),
        better=figure.better,
        clear=None if difference is None else difference.excludes_0,
        figure=figure,
    )


def _change(figure: Figure) -> tuple[str, str]:
    """The change and its interval, in words."""
    before, after, difference, ratio = figure.before, figure.after, figure.difference, figure.ratio
    if before is None or difference is None or ratio is None:
        return "", ""
    if figure.unit != "share":
        times = "" if ratio.value is None or ratio.value <= 0 else f" (× {_grow(figure):.2f})"
        change = _number(difference.value, figure.unit, signed=True) + times
        return change, _ends(difference, figure.unit, signed=True)
    points = f"{100 * ((after.value or 0) - (before.value or 0)):+.1f} points".replace("-", "−")
    if after.value == 0:
        change = "none in either" if before.value == 0 else f"{points}, to none"
    elif before.value == 0:
        change = f"{points}, from none"
    else:
        change = f"{points} ({times_shown(ratio.value)})"
    if ratio.low == 0:  # the share before may be 0, and the ratio unbounded
        return change, _ends(difference, "gap", signed=True)
    if ratio.low is not None and ratio.high is not None:
        return change, f"{times_shown(ratio.low)} to {times_shown(ratio.high)}"
    if ratio.low:
        # A bound below 1 limits how much it may have risen: a larger ratio is a smaller rise.
        bound = times_shown(ratio.low)
        return change, f"{bound} or more" if ratio.low >= 1 else f"at most {bound}"
    return change, "unbounded"


def times_shown(ratio: float | None) -> str:
    """A ratio before/after as the divisor of the figure, or as its multiplier if it rose."""
    if ratio is None:
        return "unbounded"
    return f"÷ {ratio:.2f}" if ratio >= 1 or ratio == 0 else f"× {1 / ratio:.2f}"


def measure_of(key: str) -> str:
    """The name of the measure with this `Measure.key`."""
    return key.partition(":")[0]


def pre_prompt_of(key: str) -> str:
    """The pre-prompt of the measure with this key; "" for none."""
    return ":".join(key.split(":")[2 if _in_chat(key) else 1 :])


def form_of(key: str) -> str:
    """In words, whether the measure with this key is in chat, and its pre-prompt; else ""."""
    chat = "in chat" if _in_chat(key) else ""
    return ", ".join(filter(None, (chat, pre_prompt_of(key))))


def _in_chat(key: str) -> bool:
    return key.split(":")[1:2] == ["chat"]


def value_shown(estimate: Estimate, unit: str) -> str:
    """An estimate's value in words, without its interval."""
    return _number(estimate.value, unit)


def range_shown(estimate: Estimate, unit: str) -> str:
    """An estimate's interval in words; "" where it has none."""
    bounded = estimate.low is not None or estimate.high is not None
    return _ends(estimate, unit) if bounded else ""


def points_shown(difference: Estimate) -> tuple[str, str]:
    """A difference of shares in points, and its interval, in words."""
    value = _number(difference.value, "gap", signed=True)
    return value, _ends(difference, "gap", signed=True)


def n_shown(figure: Figure) -> list[str]:
    """A figure's numbers of items, in words."""
    return [f"{count:,} {kind}" for kind, count in figure.n.items()]


def _with_interval(estimate: Estimate, unit: str) -> str:
    ends = range_shown(estimate, unit)
    return value_shown(estimate, unit) + (f" ({ends})" if ends else "")


def _ends(estimate: Estimate, unit: str, *, signed: bool = False) -> str:
    """An interval in words; "" if there is none, or if the figure is undefined."""
    if estimate.low is None and estimate.high is None:
        return "" if unit in _BOUNDED else "unbounded"
    low, high = (_number(end, unit, signed=signed) for end in (estimate.low, estimate.high))
    return f"{low.removesuffix(' points')} to {high}"


def _grow(figure: Figure) -> float:
    """After divided by before, whichever way the figure's own ratio goes; it is above 0."""
    value = 1.0 if figure.ratio is None or figure.ratio.value is None else figure.ratio.value
    return value if figure.ratio_of == "after/before" else 1 / value


def _number(value: float | None, unit: str, *, signed: bool = False) -> str:
    if value is None:
        return "undefined" if unit in _BOUNDED else "unbounded"
    sign = "+" if signed else ""
    decimals = _DECIMALS.get(unit, 2)
    if unit in _HUNDREDTHS:
        text = f"{100 * value:{sign}.1f} {_HUNDREDTHS[unit]}"
    else:
        text = f"{value:{sign},.{decimals}f}"
    return text.replace("-", "−")
