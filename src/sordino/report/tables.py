"""Tables to download: CSV inside links, so that the page stays one file."""

import csv
import re
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from io import StringIO

from sordino.evaluation import Estimate, Row
from sordino.report.outcome import Sample
from sordino.report.summary import Group

Cell = str | int | float | None

_ARMS = ("before", "after", "difference", "ratio")
# Text that begins a formula in a spreadsheet, unless it is a number.
_FORMULA = re.compile(r"(?![+-]?[\d.]+$)[=+\-@\t\r]")


def link(columns: Sequence[str], rows: Iterable[Sequence[Cell]]) -> str:
    """A table as a `data:` address.

    Args:
        columns: The headings.
        rows: The cells; None for an empty one.
    """
    stream = StringIO()
    writer = csv.writer(stream)
    writer.writerow(columns)
    writer.writerows([_safe(cell) for cell in row] for row in rows)
    return f"data:text/csv;charset=utf-8;base64,{b64encode(stream.getvalue().encode()).decode()}"


def figures(rows: Iterable[Row]) -> str:
    """The figures of these rows as numbers."""
    ends = [field.name for field in fields(Estimate)]
    columns = ["measure", "name", "label", "unit", "better"]
    columns += [f"{arm}_{end}" for arm in _ARMS for end in ends] + ["ratio_of", "n"]
    cells = []
    for row in rows:
        figure = row.figure
        numbers: list[Cell] = []
        for arm in _ARMS:
            estimate = getattr(figure, arm)
            numbers += [None if estimate is None else getattr(estimate, end) for end in ends]
        n = "; ".join(f"{count} {kind}" for kind, count in figure.n.items())
        about = [row.measure, figure.name, figure.label, figure.unit, figure.better]
        cells.append([*about, *numbers, figure.ratio_of, n])
    return link(columns, cells)


def groups(found: Iterable[Group]) -> str:
    """The figures of groups of neurons as numbers."""
    columns = [field.name for field in fields(Group)]
    return link(columns, [list(asdict(group).values()) for group in found])


def continuations(samples: Mapping[str, Mapping[str, Sequence[Sample]]]) -> str:
    """The continuations that a page shows, one row for each prompt.

    Args:
        samples: By measure, then by the reason for which they are shown.
    """
    columns = ["measure", "shown_for", "about", "prompt"]
    columns += ["before", "before_score", "after", "after_score"]
    rows = [
        (
            measure,
            why,
            one.about,
            one.prompt,
            one.before.text,
            one.before.score,
            one.after.text,
            one.after.score,
        )
        for measure, groups in samples.items()
        for why, group in groups.items()
        for one in group
    ]
    return link(columns, rows)


def _safe(cell: Cell) -> Cell:
    """Text that no spreadsheet takes for a formula."""
    return f"'{cell}" if isinstance(cell, str) and _FORMULA.match(cell) else cell
