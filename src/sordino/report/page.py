"""The page of a run: one HTML file that loads nothing."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from markupsafe import Markup

from sordino.evaluation import Estimate, Evaluation, Row
from sordino.evaluation.result import n_shown, range_shown, value_shown
from sordino.expertise.artefact import Expertise
from sordino.expertise.own import own_in_words
from sordino.files import today, write_text
from sordino.interventions.dampening import Dampening
from sordino.report import figures, outcome, summary, tables
from sordino.report.exemplars import Excerpt, Exemplar
from sordino.templates import environment, own_file
from sordino.version import __version__

_TOP = 12
_POOLED = {"max": "largest output over", "mean": "mean output over", "last": "output at the end of"}


@dataclass(frozen=True)
class RunRecord:
    """Everything that a run's page shows.

    Args:
        expertise: The run's expertise, whose metadata name the model and the concept.
        dampening: What was baked.
        concept_source: Where the concept's sentences come from, in words.
        command: The command line that repeats the run.
        divergence: The divergence that was asked for, in nats per token; None where the rule was
            applied at a strength.
        evaluation: The figures before and after, with the continuations as samples; None if
            nothing was measured.
        beside: The same measures of other rules, by the rule's name.
        exemplars: The top neurons with the sentences that excite them.
        protocol: Further settings by heading, beside those of the expertise, the intervention and
            the evaluation.
        versions: Versions of the packages that did the work.
        date: The day of the run.
    """

    expertise: Expertise
    dampening: Dampening
    concept_source: str
    command: str
    divergence: float | None = None
    evaluation: Evaluation | None = None
    beside: Mapping[str, Evaluation] = field(default_factory=dict)
    exemplars: tuple[Exemplar, ...] = ()
    protocol: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    date: str = field(default_factory=today)


def write_page(record: RunRecord, path: str | Path, *, force: bool = False) -> Path:
    """Write the page of a run; the file appears once it is complete.

    Args:
        record: The run.
        path: The HTML file.
        force: Replace an existing file.

    Raises:
        UserError: `path` exists and `force` is not set.
    """
    target = Path(path)
    write_text(target, render(record), force=force)
    return target


def render(record: RunRecord) -> str:
    """The page of a run as HTML."""
    template = environment("sordino.report").get_template("page.html.jinja")
    drawn, charts = _draw(record)
    return template.render(**_write_words(record), **drawn, **frame(charts, record.date))


def _write_words(record: RunRecord) -> dict[str, Any]:
    """The page's words and tables."""
    metadata, dampening = record.expertise.shown, record.dampening
    whole = summary.overall(record.expertise, dampening)
    rows = outcome.rows(record.evaluation)
    families = outcome.families(record.evaluation)
    samples = outcome.samples(record.evaluation)
    how = _how(record)
    kinds = [*summary.by_kind(record.expertise, dampening), whole]
    layers = summary.by_layer(record.expertise, dampening)
    top = [_neuron(record, *neuron) for neuron in record.expertise.top(_TOP)]
    sections = {
        "change": "Before and after" if families else "",
        "expertise": "The neurons",
        "factors": how,
        "neurons": "The top neurons",
        "samples": "Side by side" if samples else "",
        "protocol": "Protocol",
        "limits": "Limits",
    }
    return {
        "title": f"“{metadata['concept']}” dampened in {metadata['model']}",
        "answer": outcome.answer(
            metadata["model"],
            metadata["concept"],
            dampening,
            rows,
            refusals_protected=record.expertise.protects_refusals,
        ),
        "facts": _facts(record),
        "sections": [(anchor, name) for anchor, name in sections.items() if name],
        "families": [_family(family) for family in families],
        "all_figures": tables.figures(rows),
        "caption": outcome.unbroken(outcome.CAPTION),
        "beside": [
            (name, [_row(row) for row in found], tables.figures(found))
            for name, evaluation in record.beside.items()
            for found in [outcome.rows(evaluation)]
        ],
        "overview": _overview(families),
        "measure_limits": outcome.measure_limits(record.evaluation),
        "concept": {
            "name": metadata["concept"],
            "positive": metadata.get("n_positive", ""),
            "negative": metadata.get("n_negative", ""),
            "pooled": describe_pooling(metadata),
        },
        "above": (
            f"Of {whole.neurons:,} neurons {_percent(whole.above)} lie above 0.5; one in a hundred "
            f"reaches {whole.p99:.3f}, and the best {whole.largest:.3f}."
        ),
        "kinds": kinds,
        "kinds_csv": tables.groups(kinds),
        "layers": layers,
        "layers_csv": tables.groups(layers),
        "shifted": bool(dampening.shifted),
        "how": how,
        "factors_say": _factors_say(record),
        "top": top,
        "top_csv": tables.link(list(top[0]), [list(neuron.values()) for neuron in top]),
        "exemplars": [_exemplar(record, exemplar) for exemplar in record.exemplars],
        "samples": samples,
        "samples_csv": tables.continuations(samples),
        "command": record.command,
        "protocol": _protocol(record),
        "limits": outcome.limits(record.evaluation),
    }


def _draw(record: RunRecord) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the captions of the page's charts need, and the charts by name."""
    layers = summary.by_layer(record.expertise, record.dampening)
    whole = summary.overall(record.expertise, record.dampening)
    histograms = summary.auroc_histograms(record.expertise)
    charts = {"distribution": figures.auroc_distribution(histograms, whole.p99, whole.largest)}
    maps = []
    for column, (title, number) in figures.MAPS.items():
        low, high = figures.map_range(layers, column)
        charts[f"map-{column}"] = figures.layer_map(layers, column)
        maps.append(
            {
                "field": column,
                "title": title,
                "low": _number(low, number),
                "high": _number(high, number),
                "turned": column == "mean_factor",
            }
        )
    if summary.changed_factors(record.dampening).size:
        charts["factors"] = figures.factor_distribution(summary.factor_histogram(record.dampening))
    families = outcome.families(record.evaluation)
    moved = [change for family in families for change in _changes(family)]
    if len(moved) > 1:
        charts["changes"] = figures.changes(moved)
    for family in families:
        shares = _by_group(family)
        if shares:
            charts[f"groups-{family.name}"] = figures.by_group(shares)
    return {"colours": figures.colours(list(histograms)), "maps": maps}, charts


def frame(charts: Mapping[str, Any], date: str) -> dict[str, Any]:
    """What `base.html.jinja` needs.

    Args:
        charts: The page's Altair charts by name.
        date: The page's date.
    """
    return {
        "css": own_file("sordino.report", "page.css"),
        "js": own_file("sordino.report", "page.js"),
        "bundle": Markup(_bundle()),  # noqa: S704 (Vega's own code)
        "specs": {name: plain_spec(chart) for name, chart in charts.items()},
        "date": date,
        "version": __version__,
    }


@cache
def _bundle() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script that can stand inside a page."""
    import vl_convert

    script: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    return script.replace("</script", "<\\/script")


def plain_spec(chart: Any) -> dict[str, Any]:
    """A chart as Vega-Lite without the address of its schema."""
    spec: dict[str, Any] = chart.to_dict()
    del spec["$schema"]
    return spec


def describe_pooling(metadata: Mapping[str, str]) -> str:
    """How a neuron's outputs over a sentence became its response, in words before "a sentence"."""
    return _POOLED.get(metadata.get("pooling", "max"), "response to")


def _facts(record: RunRecord) -> list[tuple[str, str]]:
    metadata, dampening = record.expertise.shown, record.dampening
    counts = [metadata.get("n_positive"), metadata.get("n_negative")]
    facts = {
        "Model": metadata["model"],
        "Architecture": metadata.get("architecture", ""),
        "Concept": metadata["concept"],
        "Sentences": " + ".join(count for count in counts if count),
        "Own samples": own_in_words(metadata),
        "Neurons": f"{dampening.neurons:,}",
        outcome.name_of_change(dampening).capitalize(): f"{dampening.changed:,}",
        "Intervention": f"{dampening.intervention}, {_size(record)}",
    }
    return [(key, value) for key, value in facts.items() if value]


def _size(record: RunRecord) -> str:
    """How large the change was to be."""
    if record.divergence is None:
        return f"strength {record.dampening.strength:g}"
    return f"for a divergence of {record.divergence:g} nats per token"


def _number(value: float, form: str) -> str:
    return format(value, form).replace("%", "\N{NO-BREAK SPACE}%")


def _percent(share: float) -> str:
    return _number(share, ".1%")


def _row(row: Row) -> dict[str, Any]:
    """A row of the before/after table, with each interval beside its figure."""
    before, before_range = _split_interval(row.figure.before, row.figure.unit)
    after, after_range = _split_interval(row.figure.after, row.figure.unit)
    note = f"95 %: {row.interval}" if row.interval else ""
    return {
        "label": row.label,
        "better": f"{row.better} is better",
        "before": before,
        "before_range": before_range,
        "after": after,
        "after_range": after_range,
        "change": outcome.unbroken(row.change),
        "change_range": outcome.unbroken(note),
        "unclear": row.clear is False,
        "n": n_shown(row.figure),
    }


def _split_interval(estimate: Estimate | None, unit: str) -> tuple[str, str]:
    """A value and its interval as text; empty if there is no estimate."""
    if estimate is None:
        return "", ""
    shown = value_shown(estimate, unit), range_shown(estimate, unit)
    return outcome.unbroken(shown[0]), outcome.unbroken(shown[1])


def _family(family: outcome.Family) -> dict[str, Any]:
    every = (*family.rows, *family.led.values(), *family.details)
    return {
        "name": family.name,
        "title": family.title,
        "about": family.about,
        "compared": any(row.before for row in family.rows),
        "rows": [_row(row) for row in family.rows],
        "led": [{"pre_prompt": name, **_row(row)} for name, row in family.led.items()],
        "led_label": family.led["none"].label if "none" in family.led else "",
        "details": [_row(row) for row in family.details],
        "not_run": family.not_run,
        "csv": tables.figures({id(row): row for row in every}.values()),
        "grouped": bool(_by_group(family)),
    }


def _overview(families: list[outcome.Family]) -> list[dict[str, Any]]:
    """The first figure of each measure that has a before; empty if there is only one.

    A measure that was taken of continuations and of replies in chat has both.
    """
    first = [
        row
        for family in families
        if family.rows and family.rows[0].before
        for row in {id(row): row for row in (family.rows[0], *_in_chat(family))}.values()
    ]
    return [_row(row) for row in first] if len(first) > 1 else []


def _in_chat(family: outcome.Family) -> list[Row]:
    return [family.led["in chat"]] if "in chat" in family.led else []


def _changes(family: outcome.Family) -> list[figures.Change]:
    """A measure's first figure on the axis of ratios, for each pre-prompt."""
    found = []
    for led, row in (family.led or dict(zip(["none"], family.rows, strict=False))).items():
        ratio = outcome.growth_of(row)
        if ratio is None or not ratio.value:
            continue
        form = led if led.startswith("in chat") else f"pre-prompt {led}"
        name = family.title + ("" if led == "none" else f", {form}")
        apart = (ratio.low is not None and ratio.low > 1) or (
            ratio.high is not None and ratio.high < 1
        )
        risen = ratio.value > 1
        better = (risen == (row.better == "higher")) if apart else None
        found.append(figures.Change(name, ratio.value, ratio.low, ratio.high, better))
    return found


def _by_group(family: outcome.Family) -> list[tuple[str, float, float]]:
    """Each group's name and its share before and after; empty if all shares are 0."""
    found = [
        (name, row.figure.before.value or 0.0, row.figure.after.value or 0.0)
        for name, row in family.groups.items()
        if row.figure.before is not None
    ]
    return found if any(before or after for _, before, after in found) else []


def _how(record: RunRecord) -> str:
    return f"How they were {outcome.name_of_change(record.dampening)}"


def _factors_say(record: RunRecord) -> str:
    dampening = record.dampening
    if not dampening.changed:
        return f"No neuron was changed: all {dampening.neurons:,} factors are 1."
    said = [
        f"The rule {dampening.intervention}, {'at ' if record.divergence is None else ''}"
        f"{_size(record)}, changed "
        f"{dampening.changed:,} of {dampening.neurons:,} neurons "
        f"({_percent(dampening.changed / dampening.neurons)})."
    ]
    factors, shifts = summary.changed_factors(dampening), summary.shift_sizes(dampening)
    if factors.size:
        largest = f", the largest {float(factors[-1]):.3f}" if factors[-1] > 1 else ""
        alone = factors.size == dampening.changed and not shifts.size
        which = "Their" if alone else f"{factors.size:,} have a factor other than 1; their"
        said.append(
            f"{which} median factor is {float(factors[factors.size // 2]):.3f} and the smallest "
            f"{float(factors[0]):.3f}{largest}."
        )
    if shifts.size:
        said.append(
            f"{shifts.size:,} have a shift other than 0, which is added after the product; the "
            f"median of their sizes is {float(shifts[shifts.size // 2]):.3f} and the largest "
            f"{float(shifts[-1]):.3f}."
        )
    where = "row of a weight matrix" + (" and one entry of a bias" if shifts.size else "")
    said.append(f"Each change is in one {where}, so the model runs as fast as before.")
    return " ".join(said)


def _neuron(record: RunRecord, site: str, index: int, auroc: float) -> dict[str, Any]:
    factor = summary.factor_of(record.dampening, site, index)
    found = {"site": site, "index": index, "auroc": f"{auroc:.4f}", "factor": f"{factor:.4f}"}
    if record.dampening.shifted:
        found["shift"] = f"{summary.shift_of(record.dampening, site, index):+.4f}"
    return found


def _exemplar(record: RunRecord, exemplar: Exemplar) -> dict[str, Any]:
    return {
        **_neuron(record, exemplar.site, exemplar.index, exemplar.auroc),
        "excerpts": [excerpt_shown(excerpt) for excerpt in exemplar.excerpts],
    }


def excerpt_shown(excerpt: Excerpt) -> dict[str, Any]:
    """A sentence for the templates, with each token's response scaled to 0…1 in its sentence."""
    finite = [response for response in excerpt.responses if math.isfinite(response)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)

    def share(response: float) -> float:
        if not math.isfinite(response) or high == low:
            return 0.0
        return round((response - low) / (high - low), 2)

    return {
        "positive": excerpt.positive,
        "covered": excerpt.covered,
        "words": len("".join(excerpt.pieces).split()),
        "peak": f"{excerpt.responses[excerpt.peak]:.2f}",
        "pieces": [
            {
                "text": piece.replace("\n", "↵"),
                "response": f"{response:.2f}",
                "share": share(response),
                "peak": number == excerpt.peak,
            }
            for number, (piece, response) in enumerate(
                zip(excerpt.pieces, excerpt.responses, strict=True)
            )
        ],
    }


def _protocol(record: RunRecord) -> list[tuple[str, list[tuple[str, str]]]]:
    dampening = record.dampening
    sections: dict[str, Mapping[str, Any]] = {
        "Concept and expertise": {
            **record.expertise.shown,
            "concept_source": record.concept_source,
        },
        "Intervention": {
            "rule": dampening.intervention,
            "strength": dampening.strength,
            **dampening.settings,
            **({} if record.divergence is None else {"asked divergence": record.divergence}),
        },
        **outcome.protocol(record.evaluation),
        **record.protocol,
        "Versions": {"sordino": __version__, **record.versions},
    }
    return [(heading, list(outcome.flat(settings))) for heading, settings in sections.items()]
