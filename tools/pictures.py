"""The drawings of docs/idea.md: `python -m tools.pictures` writes them, each light and dark.

Every curve is computed here. A neuron's responses are taken to be normal, of deviation 1, with the
means of the two classes apart by d; its AUROC is then the normal distribution's value at d / √2.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import altair as alt
import numpy as np
from scipy.stats import norm

FOLDER = Path(__file__).parents[1] / "docs" / "pictures"
SHOWN = (0.5, 0.6, 0.8, 0.95)
PREVALENCES = (0.5, 0.2, 0.05, 0.01)

THEMES = {
    "light": {
        "paper": "#fbfaf6",
        "ink": "#1b1d1f",
        "quiet": "#5b5d60",
        "line": "#d9d6cb",
        "concept": "#b3541e",
        "other": "#12606b",
    },
    "dark": {
        "paper": "#16181a",
        "ink": "#e9e6de",
        "quiet": "#a5a6a4",
        "line": "#383c40",
        "concept": "#ef9a5f",
        "other": "#63c0c9",
    },
}
Colours = dict[str, str]


def distance(auroc: float) -> float:
    """How far apart the classes' means are, in deviations, at this AUROC."""
    return float(np.sqrt(2) * norm.ppf(auroc))


def alpha(auroc: float) -> float:
    """AurA's factor."""
    return 1 - 2 * max(0.0, auroc - 0.5)


def average_precision(auroc: float, prevalence: float) -> float:
    """Average precision of a neuron of this AUROC where so many sentences have the concept."""
    cut = np.linspace(-9, 9 + distance(auroc), 20_001)
    recall, alarms = norm.sf(cut, distance(auroc)), norm.sf(cut)
    found, false = prevalence * recall, (1 - prevalence) * alarms
    precision = found / np.maximum(found + false, np.finfo(float).tiny)
    return float(-np.trapezoid(precision, recall))


def responses(colours: Colours) -> alt.Chart:
    """Four neurons: what they respond to both classes, their AUROC and factor."""
    at = np.linspace(-3.4, 5.8, 93)
    rows = [
        {
            "neuron": f"AUROC {auroc:g}: factor {alpha(auroc):.1f}",
            "response": float(x),
            "sentences": name,
            "density": float(norm.pdf(x, distance(auroc) if name == "with the concept" else 0)),
        }
        for auroc in SHOWN
        for name in ("with the concept", "without")
        for x in at
    ]
    order = [f"AUROC {auroc:g}: factor {alpha(auroc):.1f}" for auroc in SHOWN]
    return (
        alt.Chart(alt.Data(values=rows))
        .mark_area(opacity=0.35, line=True)
        .encode(
            x=alt.X(
                "response:Q",
                title="response to a sentence",
                axis=alt.Axis(labels=False, ticks=False, grid=False),
            ),
            y=alt.Y("density:Q", title=None, axis=None, stack=None),
            color=alt.Color(
                "sentences:N",
                title=None,
                scale=alt.Scale(
                    domain=["with the concept", "without"],
                    range=[colours["concept"], colours["other"]],
                ),
                legend=alt.Legend(orient="top", columnPadding=30),
            ),
            facet=alt.Facet("neuron:N", title=None, sort=order, columns=2),
        )
        .properties(width=290, height=110)
    )


def factors(colours: Colours) -> alt.LayerChart:
    """The factor over the AUROC, with the values that the page speaks of."""
    at = np.linspace(0, 1, 101)
    line = (
        alt.Chart(alt.Data(values=[{"auroc": float(x), "factor": alpha(x)} for x in at]))
        .mark_line(color=colours["other"], strokeWidth=2.5)
        .encode(
            x=alt.X(
                "auroc:Q",
                title="AUROC",
                scale=alt.Scale(domain=[0, 1.1], nice=False),
                axis=alt.Axis(values=[tenth / 10 for tenth in range(11)], format=".1f"),
            ),
            y=alt.Y("factor:Q", title="the neuron's output is multiplied by"),
        )
    )
    points = [(0.5, "0.5: × 1"), (0.6, "0.6: × 0.8"), (0.8, "0.8: × 0.4"), (1, "1: × 0")]
    marked = alt.Chart(
        alt.Data(values=[{"auroc": x, "factor": alpha(x), "text": t} for x, t in points])
    ).encode(x="auroc:Q", y="factor:Q")
    dots = marked.mark_point(filled=True, size=70, color=colours["concept"], opacity=1)
    labels = marked.mark_text(align="left", dx=10, dy=-6, fontSize=13).encode(text="text:N")
    return (line + dots + labels).properties(width=620, height=240)


def precision(colours: Colours) -> alt.LayerChart:
    """Average precision and AUROC of one neuron, as sentences without the concept are added."""
    auroc = 0.8
    order = [f"{share:.0%}" for share in PREVALENCES]
    measures = ["average precision", "AUROC"]
    rows = [
        {"share": name, "measure": measure, "value": value}
        for share, name in zip(PREVALENCES, order, strict=True)
        for measure, value in zip(measures, (average_precision(auroc, share), auroc), strict=True)
    ]
    base = alt.Chart(alt.Data(values=rows)).encode(
        x=alt.X(
            "share:N",
            sort=order,
            title="share of the sentences that have the concept",
            axis=alt.Axis(labelAngle=0),
        ),
        xOffset=alt.XOffset("measure:N", sort=measures[::-1]),
        y=alt.Y("value:Q", title="the same neuron's", scale=alt.Scale(domain=[0, 1])),
    )
    bars = base.mark_bar().encode(
        color=alt.Color(
            "measure:N",
            title=None,
            scale=alt.Scale(domain=measures[::-1], range=[colours["other"], colours["concept"]]),
            legend=alt.Legend(orient="top"),
        )
    )
    labels = base.mark_text(dy=-8, fontSize=13).encode(text=alt.Text("value:Q", format=".2f"))
    return (bars + labels).properties(width=620, height=220)


def rows(colours: Colours) -> str:
    """A linear layer before and after: the row of the third neuron is scaled, and so its output."""
    kept, scaled = colours["other"], colours["concept"]
    return "\n".join(
        [
            '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 720 270" width="720" height="270"'
            ' font-family="system-ui, sans-serif" font-size="15" role="img">',
            "<title>A neuron is a row of the weight</title>",
            f'<rect width="720" height="270" rx="6" fill="{colours["paper"]}"/>',
            *_product(20, colours, [kept] * 5, [1.0] * 5, "before", "output"),
            *_product(
                370,
                colours,
                [kept, kept, scaled, kept, kept],
                [1, 1, 0.4, 1, 1],
                "after",
                "× 0.4",
            ),
            "</svg>",
        ]
    )


def _product(
    left: int,
    colours: Colours,
    hues: Sequence[str],
    strengths: Sequence[float],
    title: str,
    noted: str,
) -> list[str]:
    """Weight, input and output of one layer, as squares; a square's side tells its size."""
    sizes = np.random.default_rng(3).uniform(0.35, 1, size=(5, 6))
    text = f'fill="{colours["ink"]}"'
    parts = [f'<text x="{left}" y="30" {text}>{title}</text>']
    for row in range(5):
        top = 55 + 30 * row
        parts += [
            _square(left + 14 + 26 * column, top, 24 * strengths[row] * size, hues[row])
            for column, size in enumerate(sizes[row])
        ]
        parts.append(
            _square(left + 286, top, 24 * strengths[row] * float(sizes[row].mean()), hues[row])
        )
    parts += [_square(left + 205, 40 + 26 * step, 18, colours["quiet"]) for step in range(6)]
    parts += [
        f'<text x="{left + 176}" y="120" {text}>·</text>',
        f'<text x="{left + 240}" y="120" {text}>=</text>',
        f'<text x="{left + 79}" y="230" text-anchor="middle" {text}>weight</text>',
        f'<text x="{left + 79}" y="250" text-anchor="middle" {text}>one row per neuron</text>',
        f'<text x="{left + 205}" y="230" text-anchor="middle" {text}>input</text>',
        f'<text x="{left + 286}" y="230" text-anchor="middle" {text}>output</text>',
    ]
    if noted != "output":
        parts.append(f'<text x="{left + 302}" y="120" font-size="13" {text}>{noted}</text>')
    return parts


def _square(x: float, y: float, side: float, colour: str) -> str:
    half = side / 2
    return (
        f'<rect x="{x - half:.1f}" y="{y - half:.1f}" width="{side:.1f}" height="{side:.1f}"'
        f' fill="{colour}"/>'
    )


def _svg(chart: alt.TopLevelMixin, colours: Colours) -> str:
    import vl_convert

    axis = {"labelColor": colours["ink"], "titleColor": colours["ink"], "titleFontWeight": "normal"}
    lines = {"gridColor": colours["line"], "domainColor": colours["quiet"]}
    spec = chart.configure(background=colours["paper"], padding=14, font="system-ui, sans-serif")
    spec = spec.configure_axis(**axis, **lines, labelFontSize=13, titleFontSize=13)
    spec = spec.configure_legend(labelColor=colours["ink"], labelFontSize=13)
    spec = spec.configure_header(labelColor=colours["ink"], labelFontSize=14, labelAnchor="start")
    spec = spec.configure_text(color=colours["ink"]).configure_view(stroke=None)
    return vl_convert.vegalite_to_svg(spec.to_json()) + "\n"


PICTURES: dict[str, Callable[[Colours], str]] = {
    "responses": lambda colours: _svg(responses(colours), colours),
    "factors": lambda colours: _svg(factors(colours), colours),
    "precision": lambda colours: _svg(precision(colours), colours),
    "rows": rows,
}


def drawn() -> dict[str, str]:
    """Every picture, by the name of its file."""
    return {
        f"{name}-{theme}.svg": draw(colours)
        for name, draw in PICTURES.items()
        for theme, colours in THEMES.items()
    }


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, svg in drawn().items():
        (FOLDER / name).write_text(svg, encoding="utf-8")
