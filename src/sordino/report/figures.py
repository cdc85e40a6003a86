"""The page's charts: pure functions from plain values to Vega-Lite.

Colours are the page's CSS variables: Vega writes them into the SVG as they are, so that a chart
follows the theme, and the light one in print, without being drawn again.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt

from sordino.report.summary import Group, Histogram

_COLOURS = tuple(f"var(--series-{number})" for number in range(1, 7))

# Vega measures labels before it draws them, for which a CSS variable is no font.
_FONT = "system-ui, sans-serif"
_TALL = 240
# What can be marked on an axis of ratios.
_TICKS = (1.01, 1.02, 1.05, 1.1, 1.2, 1.5, 2, 3, 4, 6, 8, 12, 16)

MAPS: Mapping[str, tuple[str, str]] = {
    "above": ("Share of neurons above 0.5", ".1%"),
    "p99": ("99th percentile of the AUROC", ".3f"),
    "largest": ("Largest AUROC", ".3f"),
    "mean_factor": ("Mean dampening factor", ".4f"),
}
"""What the layer map can show: a field of `Group`, its title and its number format."""


def auroc_distribution(histograms: Mapping[str, Histogram], p99: float, largest: float) -> Any:
    """How the AUROC spreads, one line a kind of site, with 0.5 and the upper tail marked.

    Args:
        histograms: By kind of site.
        p99: 99th percentile over all neurons.
        largest: The largest AUROC of all.
    """
    rows: list[dict[str, Any]] = [
        {
            "kind": kind,
            "low": low,
            "high": high,
            "middle": (low + high) / 2,
            "count": count,
            "share": count / max(1, sum(histogram.counts)),
        }
        for kind, histogram in histograms.items()
        for low, high, count in zip(
            histogram.edges, histogram.edges[1:], histogram.counts, strict=False
        )
    ]
    marks = [
        {"at": largest, "text": f"largest {largest:.3f}", "line": 0},
        {"at": p99, "text": f"99th percentile {p99:.3f}", "line": 1},
        {"at": 0.5, "text": "0.5, chance", "line": 2},
    ]
    lines = (
        alt.Chart(_values(rows))
        .mark_line(interpolate="step", strokeWidth=1.75)
        .encode(
            x=alt.X("middle:Q", title="AUROC", scale=alt.Scale(nice=False, zero=False)),
            y=alt.Y(
                "share:Q",
                title="share of the kind’s neurons",
                axis=alt.Axis(format=".0%", tickCount=5),
                # Room above the highest line, where the marks' labels stand.
                scale=alt.Scale(domain=[0, 1.3 * max(row["share"] for row in rows)], nice=False),
            ),
            color=_kind_colour(list(histograms)),
            tooltip=[
                alt.Tooltip("kind:N", title="site"),
                alt.Tooltip("low:Q", title="from", format=".2f"),
                alt.Tooltip("high:Q", title="to", format=".2f"),
                alt.Tooltip("count:Q", title="neurons", format=","),
                alt.Tooltip("share:Q", title="share", format=".2%"),
            ],
        )
    )
    # Each mark's line begins at its label, so that none runs through another's label.
    marked = alt.Chart(_values(marks)).encode(
        x="at:Q", y=alt.Y("line:O", axis=None, scale=alt.Scale(domain=list(range(14))))
    )
    rules = marked.mark_rule(color="var(--ink)", strokeDash=[3, 3]).encode(y2=alt.value(_TALL))
    labels = marked.mark_text(align="right", dx=-5, fontSize=12, color="var(--ink)").encode(
        text="text:N"
    )
    layers = alt.layer(lines, rules, labels).resolve_scale(y="independent")
    return finished(layers, height=_TALL)


def layer_map(groups: Sequence[Group], field: str) -> Any:
    """One figure of each layer and kind of site, as a map; `map_range` gives its two ends.

    Args:
        groups: One a layer and kind.
        field: A key of `MAPS`.
    """
    title, number = MAPS[field]
    low, high = map_range(groups, field)
    # A smaller factor is more dampening: there the small values are the dark ones.
    ends = [1, 0.05] if field == "mean_factor" else [0.05, 1]
    rows = [
        {
            "layer": group.layer,
            "kind": group.kind,
            "value": getattr(group, field),
            "neurons": group.neurons,
        }
        for group in groups
    ]
    order = list(dict.fromkeys(group.kind for group in groups))
    chart = (
        alt.Chart(_values(rows))
        .mark_rect(color="var(--accent)", stroke="var(--paper)", strokeWidth=1)
        .encode(
            x=alt.X(
                "layer:O",
                title="layer",
                axis=alt.Axis(labelAngle=0, labelOverlap="greedy", ticks=False),
            ),
            y=alt.Y("kind:N", title=None, sort=order, axis=alt.Axis(ticks=False)),
            fillOpacity=alt.FillOpacity(
                "value:Q", legend=None, scale=alt.Scale(domain=[low, high], range=ends)
            ),
            tooltip=[
                alt.Tooltip("layer:O", title="layer"),
                alt.Tooltip("kind:N", title="site"),
                alt.Tooltip("value:Q", title=title, format=number),
                alt.Tooltip("neurons:Q", title="neurons", format=","),
            ],
        )
    )
    return finished(chart, height=22 * len(order))


def map_range(groups: Sequence[Group], field: str) -> tuple[float, float]:
    """The smallest and the largest value on a layer map."""
    values = [getattr(group, field) for group in groups]
    return min(values), max(values)


def factor_distribution(histogram: Histogram) -> Any:
    """How the factors other than 1 spread."""
    rows = [
        {"low": low, "high": high, "count": count}
        for low, high, count in zip(
            histogram.edges, histogram.edges[1:], histogram.counts, strict=False
        )
    ]
    chart = (
        alt.Chart(_values(rows))
        .mark_bar(color="var(--accent)", stroke="var(--paper)", strokeWidth=0.5)
        .encode(
            x=alt.X(
                "low:Q",
                bin="binned",
                title="dampening factor",
                axis=alt.Axis(values=[0, 0.2, 0.4, 0.6, 0.8, 1]),
            ),
            x2="high:Q",
            y=alt.Y("count:Q", title="neurons"),
            tooltip=[
                alt.Tooltip("low:Q", title="from", format=".2f"),
                alt.Tooltip("high:Q", title="to", format=".2f"),
                alt.Tooltip("count:Q", title="neurons", format=","),
            ],
        )
    )
    return finished(chart, height=180)


@dataclass(frozen=True)
class Change:
    """How many times as large a figure became.

    Args:
        name: Which figure it is.
        value: After through before.
        low: The lower end of its interval; None where there is none.
        high: The upper end.
        better: Whether that is for the better or the worse; None where the interval includes 1.
    """

    name: str
    value: float
    low: float | None
    high: float | None
    better: bool | None


def changes(found: Sequence[Change]) -> Any:
    """Figures of different kinds on one axis: how many times as large each became."""
    apart = [abs(math.log(end)) for c in found for end in (c.value, c.low, c.high) if end]
    most = math.exp(min(max(1.15 * max(apart), math.log(1.05)), math.log(16)))
    ticks = [tick for tick in _TICKS if tick <= most][-2:]
    rows = [
        {
            "name": change.name,
            "value": min(max(change.value, 1 / most), most),
            "low": max(change.low or 0, 1 / most),
            "high": min(change.high or most, most),
            "kind": {None: "unclear", True: "better", False: "worse"}[change.better],
            "said": _times(change.value),
            "from": _times(change.low),
            "to": _times(change.high),
        }
        for change in found
    ]
    kinds = alt.Scale(
        domain=["better", "worse", "unclear"],
        range=["var(--accent)", "var(--warm)", "var(--quiet)"],
    )
    base_chart = alt.Chart(_values(rows)).encode(
        y=alt.Y("name:N", title=None, sort=None, axis=alt.Axis(ticks=False, labelLimit=260)),
        color=alt.Color("kind:N", scale=kinds, legend=None),
        tooltip=[
            alt.Tooltip("name:N", title="figure"),
            alt.Tooltip("said:N", title="became"),
            alt.Tooltip("from:N", title="from"),
            alt.Tooltip("to:N", title="to"),
        ],
    )
    axis = alt.X(
        "value:Q",
        title=None,
        scale=alt.Scale(type="log", domain=[1 / most, most], nice=False),
        axis=alt.Axis(
            values=[*(1 / tick for tick in reversed(ticks)), 1, *ticks],
            labelExpr=(
                "datum.value < 0.999 ? '÷ ' + format(1 / datum.value, '.3~r') : "
                "datum.value > 1.001 ? '× ' + format(datum.value, '.3~r') : 'as before'"
            ),
            grid=True,
        ),
    )
    one = (
        alt.Chart(_values([{"value": 1}]))
        .mark_rule(color="var(--ink)", strokeWidth=1)
        .encode(x=axis)
    )
    intervals = base_chart.mark_rule(strokeWidth=2).encode(x=alt.X("low:Q"), x2="high:Q")
    points = base_chart.mark_point(size=70, strokeWidth=2, opacity=1).encode(
        x=axis,
        fill=alt.Fill(
            "kind:N",
            legend=None,
            scale=alt.Scale(
                domain=["better", "worse", "unclear"],
                range=["var(--accent)", "var(--warm)", "var(--paper)"],
            ),
        ),
    )
    return finished(alt.layer(one, intervals, points), height=26 * len(found))


def by_group(rows: Sequence[tuple[str, float, float]]) -> Any:
    """Shares of groups before and after, one line a group.

    Args:
        rows: A group's name, and its share before and after.
    """
    values = [{"group": name, "before": before, "after": after} for name, before, after in rows]
    chart = alt.Chart(_values(values)).encode(
        y=alt.Y("group:N", title=None, sort=None, axis=alt.Axis(ticks=False, labelLimit=300)),
        tooltip=[
            alt.Tooltip("group:N", title="group"),
            alt.Tooltip("before:Q", title="before", format=".1%"),
            alt.Tooltip("after:Q", title="after", format=".1%"),
        ],
    )
    most = max(share for _, *shares in rows for share in shares)
    share = {
        "title": None,
        "axis": alt.Axis(format="~%", tickCount=5, grid=True),
        "scale": alt.Scale(domain=[0, most]),
    }
    lines = chart.mark_rule(color="var(--quiet)").encode(x=alt.X("before:Q", **share), x2="after:Q")
    before = chart.mark_point(size=45, color="var(--quiet)", fill="var(--paper)", opacity=1).encode(
        x=alt.X("before:Q", **share)
    )
    after = chart.mark_point(size=45, color="var(--accent)", filled=True, opacity=1).encode(
        x=alt.X("after:Q", **share)
    )
    return finished(alt.layer(lines, before, after), height=17 * len(rows))


def colours(kinds: Sequence[str]) -> dict[str, str]:
    """The colour of each kind of site, for the chart and for its key on the page."""
    return {kind: _COLOURS[number % len(_COLOURS)] for number, kind in enumerate(kinds)}


def _kind_colour(kinds: Sequence[str]) -> Any:
    by_kind = colours(kinds)
    scale = alt.Scale(domain=list(by_kind), range=list(by_kind.values()))
    return alt.Color("kind:N", scale=scale, legend=None)


def _times(ratio: float | None) -> str:
    if ratio is None:
        return "unbounded"
    return f"÷ {1 / ratio:.2f}" if 0 < ratio < 1 else f"× {ratio:.2f}"


def _values(rows: list[dict[str, Any]]) -> Any:
    return alt.Data(values=rows)


def finished(chart: Any, height: int) -> Any:
    """A chart of that height in pixels, as wide as its place and in the page's own style."""
    text = {"labelColor": "var(--quiet)", "titleColor": "var(--quiet)"}
    fonts = {"labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": "normal"}
    return (
        chart.properties(
            width="container",
            height=height,
            autosize=alt.AutoSizeParams(type="fit-x", contains="padding"),
            background="transparent",
            padding={"left": 0, "right": 8, "top": 4, "bottom": 4},
        )
        .configure(font=_FONT)
        .configure_view(stroke=None)
        .configure_axis(
            **text,
            **fonts,
            gridColor="var(--hairline)",
            domainColor="var(--hairline)",
            tickColor="var(--hairline)",
            labelSeparation=8,
            labelFlush=False,
        )
        .configure_axisX(grid=False)
    )
