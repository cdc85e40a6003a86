"""The page of a reproduction, and the same table for the terminal."""

import shlex
from collections.abc import Iterator, Sequence

from sordino.evaluation.result import times_shown
from sordino.evaluation.statistics import Estimate
from sordino.report.article import Article, Block, Code, Section, Table
from sordino.report.outcome import LIMITS
from sordino.reproduction.comparison import Compared, Reproduction

COLUMNS = ("figure", "theirs", "ours", "our change, 95 % interval", "theirs inside")


def reproduction_article(found: Reproduction, command: Sequence[str]) -> Article:
    """The page of one reproduced row."""
    return Article(
        kind="Reproduction",
        title=f"{found.recipe.title}: ours beside theirs",
        answer=list(reproduction_answer(found)),
        sections=[
            Section("Ours and theirs", list(_table(found))),
            Section("Protocol", list(_protocol(found, command))),
        ],
        limits=[*found.recipe.notes, *LIMITS],
    )


def reproduction_answer(found: Reproduction) -> Iterator[str]:
    """Which of the published figures lie inside our intervals."""
    judged = [one for one in found.compared if one.inside is not None]
    for one in judged:
        lies = "lies in" if one.inside else "lies outside"
        yield (
            f"{one.ours.label}: their change, {_change(one.their_change, one)}, {lies} our 95 % "
            f"interval, {_ends(one)}."
        )
    if len(judged) < len(found.compared):
        yield (
            "If they published a figure only for all their models together, ours is shown beside "
            "it, without a verdict."
        )


def reproduction_rows(found: Reproduction) -> list[list[str]]:
    """The cells of the table, below `COLUMNS`."""
    return [
        [
            one.ours.label,
            _theirs(one),
            f"{_value(one.ours.before, one)} → {_value(one.ours.after, one)}",
            f"{_change(_ours(one).value, one)} ({_ends(one)})",
            {True: "yes", False: "no", None: "not of this model"}[one.inside],
        ]
        for one in found.compared
    ]


def _table(found: Reproduction) -> Iterator[Block]:
    counts = "; ".join(
        dict.fromkeys(
            ", ".join(f"{count:,} {kind}" for kind, count in one.ours.n.items())
            for one in found.compared
        )
    )
    yield Table(
        "reproduction",
        f"Before → after. Ours: {counts}; paired bootstrap.",
        COLUMNS,
        reproduction_rows(found),
    )


def _protocol(found: Reproduction, command: Sequence[str]) -> Iterator[Block]:
    recipe = found.recipe
    yield f"Theirs: {recipe.source}."
    yield (
        f"Ours: {found.model}, {recipe.intervention}, found with {found.concept}; measured in "
        f"{found.dtype} on {found.device}, seed {recipe.seed}."
    )
    for name, settings in recipe.measures.items():
        said = ", ".join(f"{key} {_write_value(value)}" for key, value in settings.items())
        yield f"{name}: {said or 'the defaults'}."
    yield "To repeat it:"
    yield Code(shlex.join(command))


def _write_value(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _theirs(one: Compared) -> str:
    published = one.theirs
    if published.before is not None and published.after is not None:
        before, after = (
            _value(Estimate(value, None, None), one)
            for value in (published.before, published.after)
        )
        return f"{before} → {after} ({_change(one.their_change, one)})"
    said = (
        f"up to ÷ {published.times_fewer_at_most:g}"
        if published.times_fewer_at_most is not None
        else _sign(published.difference, one)
    )
    return f"{said}, over all their models" if published.whole_paper else said


def _ours(one: Compared) -> Estimate:
    found = one.ours.ratio if one.change == "ratio" else one.ours.difference
    return found or Estimate(None, None, None)


def _ends(one: Compared) -> str:
    ours = _ours(one)
    return f"{_change(ours.low, one)} to {_change(ours.high, one)}"


def _change(value: float | None, one: Compared) -> str:
    return _sign(value, one) if one.change == "difference" else times_shown(value)


def _sign(value: float | None, one: Compared) -> str:
    if value is None:
        return "unbounded"
    text = f"{100 * value:+.1f} points" if one.ours.unit == "share" else f"{value:+.2f}"
    return text.replace("-", "−")


def _value(estimate: Estimate | None, one: Compared) -> str:
    if estimate is None or estimate.value is None:
        return "undefined"
    if one.ours.unit == "share":
        return f"{100 * estimate.value:.2f} %"
    return f"{estimate.value:,.2f}"
