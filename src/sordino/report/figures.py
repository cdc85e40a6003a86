"""The page's charts: pure functions from plain values to Vega-Lite.

Colours are the page's CSS variables: Vega writes them into the SVG unchanged, so that a chart
follows the theme, and prints in the light one, without being drawn again.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt

from sordino.report.summary import Group, Histogram

# Vega measures labels before it draws them, and cannot measure a font that is a CSS variable.
_FONT = "system-ui, sans-serif"
_TALL = 240
# Where an axis of ratios can have ticks.
_TICKS = (1.01, 1.02, 1.05, 1.1, 1.2, 1.5, 2, 3, 4, 6, 8, 12, 16)

MAPS: Mapping[str, tuple[str, str]] = {
    "above": ("Share of neurons above 0.5", ".1%"),
    "p99": ("99th percentile of the AUROC", ".3f"),
    "largest": ("Largest AUROC", ".3f"),
    "mean_factor": ("Mean dampening factor", ".4f"),
}
"""What a layer map can show: a field of `Group` with its title and number format."""


def auroc_distribution(histograms: Mapping[str, Histogram], p99: float, largest: float) -> Any:
    """The distribution of the AUROC, one line for each kind of site; 0.5 and the tail are marked.

    Args:
        histograms: By kind of site.
        p99: The 99th percentile over all neurons.
        largest: The largest AUROC.
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
        for low, high, count in histogram.bins
    ]
    marks = [
        {"at": largest, "text": f"largest {largest:.3f}", "line": 0},
        {"at": p99, "text": f"99th percentile {p99:.3f}", "line": 1},
        {"at": 0.5, "text": "0.5, chance", "line": 2},
    ]
    lines = (
        alt.Chart(alt.Data(values=rows))
        .mark_line(interpolate="step", strokeWidth=1.75)
        .encode(
            x=alt.X("middle:Q", title="AUROC", scale=alt.Scale(nice=False, zero=False)),
            y=alt.Y(
                "share:Q",
                title="share of the kind’s neurons",
                axis=alt.Axis(format=".0%", tickCount=5),
                # Room above the highest line for the marks' labels.
                scale=alt.Scale(domain=[0, 1.3 * max(row["share"] for row in rows)], nice=False),
            ),
            color=colour("kind:N", colours(list(histograms))),
            tooltip=[
                alt.Tooltip("kind:N", title="site"),
                alt.Tooltip("low:Q", title="from", format=".2f"),
                alt.Tooltip("high:Q", title="to", format=".2f"),
                alt.Tooltip("count:Q", title="neurons", format=","),
                alt.Tooltip("share:Q", title="share", format=".2%"),
            ],
        )
    )
    # Each mark's line begins at its label, so that it crosses no other label.
    marked = alt.Chart(alt.Data(values=marks)).encode(
        x="at:Q", y=alt.Y("line:O", axis=None, scale=alt.Scale(domain=list(range(14))))
    )
    rules = marked.mark_rule(color="var(--ink)", strokeDash=[3, 3]).encode(y2=alt.value(_TALL))
    labels = marked.mark_text(align="right", dx=-5, fontSize=12, color="var(--ink)").encode(
        text="text:N"
    )
    layers = alt.layer(lines, rules, labels).resolve_scale(y="independent")
    return finish(layers, height=_TALL)


def layer_map(groups: Sequence[Group], field: str) -> Any:
    """One figure of each layer and kind of site, as a map between the ends of `map_range`.

    Args:
        groups: One for each layer and kind.
        field: A key of `MAPS`.
    """
    title, number = MAPS[field]
    low, high = map_range(groups, field)
    # A smaller factor is more dampening, so its small values are the dark ones.
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
        alt.Chart(alt.Data(values=rows))
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
    return finish(chart, height=22 * len(order))


def map_range(groups: Sequence[Group], field: str) -> tuple[float, float]:
    """The smallest and the largest value on a layer map."""
    values = [getattr(group, field) for group in groups]
    return min(values), max(values)


def factor_distribution(histogram: Histogram) -> Any:
    """The distribution of the factors other than 1."""
    rows = [{"low": low, "high": high, "count": count} for low, high, count in histogram.bins]
    chart = (
        alt.Chart(alt.Data(values=rows))
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
    return finish(chart, height=180)


@dataclass(frozen=True)
class Change:
    """The ratio of a figure after the change to the figure before it.

    Args:
        name: The figure's name.
        value: The ratio.
        low: The lower end of its interval; None if it has none.
        high: The upper end.
        better: Whether the change is for the better; None if the interval includes 1.
    """

    name: str
    value: float
    low: float | None
    high: float | None
    better: bool | None


def changes(found: Sequence[Change]) -> Any:
    """Figures of different kinds on one axis of ratios."""
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
    base_chart = alt.Chart(alt.Data(values=rows)).encode(
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
        alt.Chart(alt.Data(values=[{"value": 1}]))
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
    return finish(alt.layer(one, intervals, points), height=26 * len(found))


def by_group(rows: Sequence[tuple[str, float, float]]) -> Any:
    """The shares of groups before and after, one line for each group.

    Args:
        rows: A group's name, and its share before and after.
    """
    values = [{"group": name, "before": before, "after": after} for name, before, after in rows]
    chart = alt.Chart(alt.Data(values=values)).encode(
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
    return finish(alt.layer(lines, before, after), height=17 * len(rows))


def colours(names: Sequence[str], order: Sequence[int] = range(1, 9)) -> dict[str, str]:
    """A colour for each name, for a chart and its key on the page, as the name of a CSS variable.

    Args:
        names: What is coloured.
        order: The numbers of the page's colours, which repeat if there are more names.
    """
    return {name: f"series-{order[number % len(order)]}" for number, name in enumerate(names)}


def colour(field: str, by_name: Mapping[str, str]) -> Any:
    """The colour channel of a field whose values have these CSS variables; see `colours`."""
    scale = alt.Scale(domain=list(by_name), range=[f"var(--{one})" for one in by_name.values()])
    return alt.Color(field, scale=scale, legend=None)


def _times(ratio: float | None) -> str:
    if ratio is None:
        return "unbounded"
    return f"÷ {1 / ratio:.2f}" if 0 < ratio < 1 else f"× {ratio:.2f}"


def finish(chart: Any, height: int) -> Any:
    """A chart in the page's style, as wide as its place and `height` pixels high."""
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
