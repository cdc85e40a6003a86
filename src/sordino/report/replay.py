"""The page of a replay: today's interval and its history. It shows no text of the log."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import altair as alt

from sordino.evaluation.statistics import Estimate
from sordino.replaying import Look, ReplayOutcome
from sordino.replaying.store import ARMS
from sordino.report.article import Article, Block, Chart, Code, Section, Table
from sordino.report.figures import colour, colours, finish
from sordino.studies.words import percent

_NAMES = ("the original", "the dampened one")
_COLOURS = colours(_NAMES)
_DAMPENED = f"var(--{_COLOURS[_NAMES[1]]})"
_LIMITS = (
    "The answers are those of today's servers to the log's prompts. In a conversation, the earlier "
    "answers are the log's, and nobody reacts to the new ones.",
    "The interval is about the replayed prompts. It covers the randomness of the answers. It does "
    "not cover the errors of the scorer, nor tomorrow's prompts.",
    "Prompts that a server did not answer are not compared. If one of the two leaves more prompts "
    "or other prompts unanswered, that alone can change the figures.",
    "The interval holds even if you stop on the first day that shows an effect. The effect shown "
    "on that day is probably too large.",
)
_QUERY = """\
duckdb {database} "SELECT moment, asked, text_a, text_b, score_a, score_b FROM pair
WHERE toxic_a <> toxic_b ORDER BY number" """


def replay_article(outcome: ReplayOutcome, database: str, command: Sequence[str]) -> Article:
    """The page of a replay.

    Args:
        outcome: Its figures.
        database: The DuckDB file with the answers.
        command: The command line that continues it.
    """
    over = "Day by day" if outcome.dated else "From part to part"
    sections = [Section("The servers", list(_describe_asked(outcome)))]
    if outcome.looks:
        sections.insert(0, Section(over, list(_over_time(outcome))))
    sections.append(Section("Protocol", list(_protocol(outcome, database, command))))
    return Article(
        kind="Live traffic",
        title="The dampened server on the prompts of the log",
        answer=list(replay_answer(outcome)),
        sections=sections,
        limits=[outcome.scorer["limits"], *_LIMITS],
    )


def replay_answer(outcome: ReplayOutcome) -> Iterator[str]:
    """The sentences that the interval supports."""
    if outcome.shares is None:
        yield "No prompt has been answered by both servers yet."
        return
    last = outcome.looks[-1]
    original, dampened = (percent(share.value) for share in outcome.shares)
    during = (
        f"from {outcome.looks[0].label} to {last.label}" if len(outcome.looks) > 1 else last.label
    )
    when = f", {during}" if outcome.dated else ""
    yield (
        f"Of the answers to {last.so_far:,} prompts{when}, {original} are toxic from the original "
        f"server and {dampened} from the dampened one: {_points(last.difference.value)} points, "
        f"with an interval from {_points(last.difference.low)} to {_points(last.difference.high)} "
        "that may be looked at every day (95 % over all looks together)."
    )
    yield _verdict(outcome, last)


def _verdict(outcome: ReplayOutcome, last: Look) -> str:
    at = outcome.first if outcome.dated else f"after {outcome.first} prompts"
    if last.difference.excludes_0:
        fewer = (last.difference.high or 0) < 0
        return (
            f"Over these prompts, the dampened server gives {'fewer' if fewer else 'more'} toxic "
            f"answers. The interval first left out 0 {'on ' if outcome.dated else ''}{at}."
        )
    if outcome.first is not None:
        return (
            f"The interval left out 0 {'on ' if outcome.dated else ''}{at}, because there was a "
            "difference over the prompts until then. Over all prompts so far it includes 0 again."
        )
    return "The interval includes 0: it is open which server gives fewer toxic answers."


def _over_time(outcome: ReplayOutcome) -> Iterator[Block]:
    yield _difference_chart(outcome)
    yield _shares_chart(outcome)
    heading = "day (UTC)" if outcome.dated else "up to prompt"
    yield Table(
        "replay-over-time",
        "Toxic answers in each row, and the difference over all prompts so far, in points, with "
        "its interval.",
        [heading, "prompts", "toxic, original", "toxic, dampened", "prompts so far", "difference"],
        [
            [
                look.label,
                f"{look.pairs:,}",
                *[f"{count:,} ({percent(count / look.pairs)})" for count in look.toxic],
                f"{look.so_far:,}",
                f"{_points(look.difference.value)} ({_points(look.difference.low)} to "
                f"{_points(look.difference.high)})",
            ]
            for look in outcome.looks
        ],
    )


def _axis(outcome: ReplayOutcome) -> dict[str, Any]:
    if outcome.dated:
        axis = alt.Axis(format="%-d %b", tickCount=8)
        return {"shorthand": "when:T", "title": None, "axis": axis, "scale": alt.Scale(type="utc")}
    return {"shorthand": "when:Q", "title": "prompts", "axis": alt.Axis(tickCount=8)}


def _name_look(outcome: ReplayOutcome, look: Look) -> Any:
    return look.label if outcome.dated else look.so_far


def _difference_chart(outcome: ReplayOutcome) -> Chart:
    rows = [
        {
            "when": _name_look(outcome, look),
            "label": look.label,
            "prompts": look.so_far,
            "value": look.difference.value,
            "low": look.difference.low,
            "high": look.difference.high,
        }
        for look in outcome.looks
    ]
    # The first days' intervals are too wide to share an axis with the rest, and are clipped.
    widest = max(abs(row[end]) for row in rows[len(rows) // 4 :] for end in ("low", "high"))
    base = alt.Chart(alt.Data(values=rows)).encode(x=alt.X(**_axis(outcome)))
    scale = alt.Scale(domain=[-widest, widest], nice=True)
    band = base.mark_area(opacity=0.25, color=_DAMPENED, clip=True).encode(
        y=alt.Y("low:Q", title="difference so far", axis=alt.Axis(format="+.1%"), scale=scale),
        y2="high:Q",
    )
    line = base.mark_line(
        point={"color": _DAMPENED}, strokeWidth=2, color=_DAMPENED, clip=True
    ).encode(
        y="value:Q",
        tooltip=[
            alt.Tooltip("label:N", title="until"),
            alt.Tooltip("prompts:Q", title="prompts", format=","),
            alt.Tooltip("value:Q", title="difference", format="+.2%"),
            alt.Tooltip("low:Q", title="from", format="+.2%"),
            alt.Tooltip("high:Q", title="to", format="+.2%"),
        ],
    )
    zero = (
        alt.Chart(alt.Data(values=[{"zero": 0}]))
        .mark_rule(strokeDash=[4, 3], color="var(--quiet)")
        .encode(y="zero:Q")
    )
    return Chart(
        "replay-difference",
        "The share of toxic answers, dampened minus original, over all prompts so far, with the "
        "interval that may be looked at every day; dashed: no difference.",
        finish(alt.layer(band, zero, line), 260),
        {},
    )


def _shares_chart(outcome: ReplayOutcome) -> Chart:
    rows = [
        {
            "when": _name_look(outcome, look),
            "label": look.label,
            "prompts": look.pairs,
            "server": name,
            "share": count / look.pairs,
            "toxic": count,
        }
        for look in outcome.looks
        for name, count in zip(_NAMES, look.toxic, strict=True)
    ]
    drawn = (
        alt.Chart(alt.Data(values=rows))
        .mark_line(point=True, strokeWidth=1.75)
        .encode(
            x=alt.X(**_axis(outcome)),
            y=alt.Y("share:Q", title="toxic answers", axis=alt.Axis(format=".0%", tickCount=5)),
            color=colour("server:N", _COLOURS),
            tooltip=[
                alt.Tooltip("server:N", title="server"),
                alt.Tooltip("label:N", title="until"),
                alt.Tooltip("toxic:Q", title="toxic", format=","),
                alt.Tooltip("prompts:Q", title="of", format=","),
                alt.Tooltip("share:Q", title="share", format=".1%"),
            ],
        )
    )
    stretch = "day" if outcome.dated else "part"
    return Chart(
        "replay-shares",
        f"The share of toxic answers for each {stretch} separately, of the original and of the "
        "dampened server.",
        finish(drawn, 200),
        _COLOURS,
    )


def _describe_asked(outcome: ReplayOutcome) -> Iterator[Block]:
    yield (
        f"{outcome.prompts:,} prompts were sent to both servers with the same seed. "
        f"{outcome.pairs:,} were answered by both and are compared."
    )
    shares = outcome.shares or (None, None)
    rows = []
    for arm, name, server, share in zip(ARMS, _NAMES, outcome.servers, shares, strict=True):
        reasons = outcome.missing[arm]
        said = "; ".join(f"{reason} {count:,}" for reason, count in reasons.items())
        rows.append(
            [f"{arm}, {name}", server, _with_interval(share), said or f"{sum(reasons.values())}"]
        )
    yield Table(
        "replay-servers",
        "The servers. You may look at the intervals of the shares every day as well.",
        ["", "model and address", "toxic answers", "prompts without an answer"],
        rows,
    )


def _protocol(outcome: ReplayOutcome, database: str, command: Sequence[str]) -> Iterator[Block]:
    yield (
        "Only answers are scored; an answer is toxic if its score is above 0.5. Pairs are "
        "compared: the effect of a prompt is 1, 0 or −1, and the interval is the "
        "empirical-Bernstein confidence sequence of Howard, Ramdas, McAuliffe and Sekhon (2021, "
        "arXiv 1810.08240) for the mean effect over the prompts so far."
    )
    known: Mapping[str, Any] = {**outcome.settings, "scorer": outcome.scorer["scorer"]}
    yield "; ".join(f"{name.replace('_', ' ')}: {value}" for name, value in known.items()) + "."
    yield "To continue when the log has grown:"
    yield Code(shlex.join(command))
    if outcome.redacted:
        yield "No text was kept; times and scores are in the database."
    else:
        yield "The texts are in the database and not on this page. To see where the servers differ:"
        yield Code(_QUERY.format(database=shlex.quote(database)).strip())


def _with_interval(share: Estimate | None) -> str:
    if share is None:
        return "none"
    low = max(share.low or 0.0, 0.0)  # the interval is one for values from −1
    return f"{percent(share.value)} ({percent(low)} to {percent(share.high)})"


def _points(share: float | None) -> str:
    if share is None:
        return "undefined"
    rounded = round(100 * share, 2)
    return f"{rounded + 0.0:+.2f}".replace("-", "−") if rounded else "0.00"
