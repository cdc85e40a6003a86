"""The explorer's page as HTML."""

from dataclasses import dataclass
from typing import Any

from sordino.expertise.statistic import Statistic
from sordino.files import today
from sordino.report import figures, summary, tables
from sordino.report.explorer.comparison import TOP, Comparison, Shared
from sordino.report.explorer.insight import Curve, Insight
from sordino.report.explorer.lens import Lens
from sordino.report.explorer.packed import pack_neurons
from sordino.report.explorer.subject import Subject
from sordino.report.page import describe_pooling, excerpt_shown, frame
from sordino.templates import environment, own_file

_ROWS = 25  # on one page of the table; explorer.js has the same number


@dataclass(frozen=True)
class Exploration:
    """The values from which an explorer's page is made.

    Args:
        subject: What is explored.
        insights: The top neurons in detail, in the order of their rank.
        without: Why there are no insights, as the end of a sentence; "" if there are some.
        second: What the subject is compared with, or None.
        comparison: The comparison, or None.
    """

    subject: Subject
    insights: tuple[Insight, ...] = ()
    without: str = ""
    second: Subject | None = None
    comparison: Comparison | None = None


def render(exploration: Exploration) -> str:
    """The page as HTML; it loads nothing from anywhere."""
    template = environment("sordino.report").get_template("explorer.html.jinja")
    drawn, charts = _draw(exploration)
    return template.render(
        **_write_words(exploration),
        **drawn,
        **frame(charts, today()),
        own_css=own_file("sordino.report", "explorer.css"),
        own_js=own_file("sordino.report", "explorer.js"),
    )


def _write_words(exploration: Exploration) -> dict[str, Any]:
    subject, second = exploration.subject, exploration.second
    expertise, dampening = subject.expertise, subject.dampening
    metadata = expertise.shown
    whole = summary.overall(expertise, dampening)
    kinds = [*summary.by_kind(expertise, dampening), whole]
    layers = summary.by_layer(expertise, dampening)
    compared = _compare(exploration)
    shown = {(insight.site, insight.index): n for n, insight in enumerate(exploration.insights, 1)}
    sections = {
        "map-section": "The map",
        "distribution": "How well they recognise it",
        "search": "Find a neuron",
        "neurons": "The top neurons",
        "comparison": "The comparison" if compared else "",
    }
    return {
        "title": subject.name,
        "second_name": second.name if second else "",
        "concept": metadata["concept"],
        "model": metadata["model"],
        "positive": metadata.get("n_positive", "some"),
        "negative": metadata.get("n_negative", "as many others"),
        "pooled": describe_pooling(metadata),
        "whole": whole,
        "facts": _facts(exploration),
        "sections": [(anchor, name) for anchor, name in sections.items() if name],
        "done": subject.done,
        "rule": dampening.record.in_words,
        "changed": dampening.changed,
        "shifted": bool(dampening.shifted),
        "kinds": kinds,
        "kinds_csv": tables.groups(kinds),
        "layers": layers,
        "layers_csv": tables.groups(layers),
        "first_rows": [
            {
                "rank": rank,
                "site": site,
                "index": index,
                "auroc": f"{auroc:.4f}",
                "factor": f"{summary.factor_of(dampening, site, index):.4f}",
                "shown": shown.get((site, index)),
            }
            for rank, (site, index, auroc) in enumerate(expertise.top(_ROWS), 1)
            if auroc >= 0
        ],
        "rows_a_leaf": _ROWS,
        "insights": [
            _insight(exploration, number, insight)
            for number, insight in enumerate(exploration.insights, 1)
        ],
        "without": exploration.without,
        "compared": compared,
    }


def _facts(exploration: Exploration) -> list[tuple[str, str]]:
    subject = exploration.subject
    metadata, dampening = subject.expertise.shown, subject.dampening
    facts = {
        "Model": metadata["model"],
        "Architecture": metadata.get("architecture", ""),
        "Concept": metadata["concept"],
        "Neurons": f"{subject.expertise.neurons:,}",
        "Rule": dampening.record.in_words,
        "Changed" if subject.done else "The rule would change": f"{dampening.changed:,}",
        "Compared with": exploration.second.name if exploration.second else "",
    }
    return [(key, value) for key, value in facts.items() if value]


def _draw(exploration: Exploration) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the script and the charts' keys need, and the charts by name."""
    subject = exploration.subject
    expertise, dampening = subject.expertise, subject.dampening
    whole = summary.overall(expertise, dampening)
    histograms = summary.auroc_histograms(expertise)
    charts = {"distribution": figures.auroc_distribution(histograms, whole.p99, whole.largest)}
    if summary.changed_factors(dampening).size:
        charts["factors"] = figures.factor_distribution(summary.factor_histogram(dampening))
    second = exploration.second.expertise if exploration.second else None
    data = pack_neurons(expertise, dampening, second)
    data["names"] = [one.name for one in (subject, exploration.second) if one]
    data["shown"] = [[insight.site, insight.index] for insight in exploration.insights]
    return {"colours": figures.colours(list(histograms)), "data": data}, charts


def _insight(exploration: Exploration, number: int, insight: Insight) -> dict[str, Any]:
    expertise, dampening = exploration.subject.expertise, exploration.subject.dampening
    auroc = float(expertise.statistics[insight.site][Statistic.AUROC][insight.index])
    factor = summary.factor_of(dampening, insight.site, insight.index)
    shift = summary.shift_of(dampening, insight.site, insight.index)
    return {
        "number": number,
        "site": insight.site,
        "index": insight.index,
        "auroc": f"{auroc:.4f}",
        "factor": f"{factor:.4f}",
        "shift": f"{shift:+.4f}",
        "curve": _curve(insight.curve),
        "most": [excerpt_shown(excerpt) for excerpt in insight.most],
        "least": [excerpt_shown(excerpt) for excerpt in insight.least],
        "lens": _lens(insight.lens) if insight.lens else None,
        "no_lens": insight.no_lens,
    }


def _curve(curve: Curve) -> dict[str, Any]:
    """The curve as an SVG path whose unit is a sentence, with the origin at the lower left."""
    points = [
        f"{false} {curve.positives - true}"
        for false, true in zip(curve.false, curve.true, strict=True)
    ]
    tenth = max(
        true
        for false, true in zip(curve.false, curve.true, strict=True)
        if false <= curve.negatives / 10
    )
    return {
        "path": "M" + "L".join(points),
        "negatives": curve.negatives,
        "positives": curve.positives,
        "area": f"{curve.area:.4f}",
        "tenth": f"{tenth / curve.positives:.0%}".replace("%", "\N{NO-BREAK SPACE}%"),
    }


def _lens(lens: Lens) -> dict[str, Any]:
    if lens.is_coordinate:
        about = (
            f"This neuron is coordinate {lens.column} of a layer that writes into the residual "
            "stream. Shown is what increasing that coordinate promotes."
        )
    elif not lens.peaks:
        about = (
            f"This neuron feeds input {lens.column} of {lens.writer}. Shown is what that column of "
            "its weight promotes. Whether it is added or subtracted depends on the sentence and is "
            "not measured."
        )
    else:
        how = "added" if lens.sign > 0 else "subtracted, so its sign is flipped here,"
        about = (
            f"This neuron feeds input {lens.column} of {lens.writer}. Shown is what that column of "
            f"its weight promotes. It is {how} at the peak of {lens.agreeing} of the {lens.peaks} "
            "sentences that excite the neuron most."
        )
    largest = max((abs(change) for _, change in (*lens.promoted, *lens.suppressed)), default=0.0)

    def shown(words: tuple[tuple[str, float], ...]) -> list[dict[str, str]]:
        return [
            {
                "text": visible(text),
                "change": f"{change:+.1f}".replace("-", "−"),
                "share": f"{abs(change) / largest if largest else 0:.2f}",
            }
            for text, change in words
        ]

    return {
        "about": about,
        "promoted": shown(lens.promoted),
        "suppressed": shown(lens.suppressed),
        "words": len(lens.promoted) + len(lens.suppressed),
    }


def visible(token: str) -> str:
    """A token with its white space made visible."""
    marks = {" ": "␣", "\n": "↵", "\t": "⇥", "\r": "␍"}
    return "".join(marks.get(character, character) for character in token)


def _compare(exploration: Exploration) -> dict[str, Any] | None:
    comparison, second = exploration.comparison, exploration.second
    if comparison is None or second is None:
        return None
    names = [exploration.subject.name, second.name]

    def rows(found: tuple[Shared, ...]) -> list[dict[str, Any]]:
        return [
            {
                "site": one.site,
                "index": one.index,
                "first": f"{one.first:.4f}",
                "second": f"{one.second:.4f}",
            }
            for one in found
        ]

    return {
        "names": names,
        "neurons": f"{comparison.neurons:,}",
        "correlation": _rho(comparison.correlation),
        "by_kind": [(kind, _rho(value)) for kind, value in comparison.by_kind.items()],
        "high": f"{comparison.high:,}",
        "share": f"{TOP:.0%}".replace("%", "\N{NO-BREAK SPACE}%"),
        "overlap": f"{comparison.overlap:,}",
        "expected": f"{comparison.expected:,.1f}",
        "tables": [
            ("both", "High in both", rows(comparison.both)),
            ("first", f"High in {names[0]} alone", rows(comparison.first)),
            ("second", f"High in {names[1]} alone", rows(comparison.second)),
        ],
    }


def _rho(value: float) -> str:
    return "not defined" if value != value else f"{value:.3f}".replace("-", "−")
