"""The page of a study: its answer, tables and charts."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import PurePath
from typing import Any

import altair as alt

from sordino.evaluation import MEASURES, Evaluation, Figure
from sordino.evaluation.result import measure_of, pre_prompt_of
from sordino.files import capital
from sordino.report.article import Article, Block, Chart, Code, Points, Section, Table
from sordino.report.at_a_glance import at_a_glance
from sordino.report.figures import colour, colours, finish
from sordino.report.outcome import measure_limits
from sordino.studies import STUDIES, Finding, GroupRecord, StudyRecord
from sordino.studies.findings import toxic, toxicities
from sordino.studies.words import (
    interval,
    listed,
    model_name,
    plain,
    points,
    ratio,
    share,
    signed,
    written,
)

_COLOURS = (1, 2, 6, 3, 4, 5)


def study_article(records: Sequence[StudyRecord]) -> Article:
    """The page of one study of one model or several."""
    sections = [
        Section(f"{model_name(record.model)}: {group.title}", list(_blocks(record, group, slug)))
        for record, slug in zip(records, _slugs(records), strict=True)
        for group in record.groups
    ]
    sections.append(Section("Protocol", list(_protocol(records))))
    evaluations = [t.evaluation for r in records for g in r.groups for t in g.trials]
    asked = STUDIES.named(records[0].study)
    return Article(
        kind=f"Study: {records[0].study}",
        title=asked.question,
        answer=[
            *([Points("How to read this page", list(asked.legend))] if asked.legend else []),
            *at_a_glance(records),
            *(Points(model_name(record.model), [*asked.answer(record)]) for record in records),
        ],
        sections=sections,
        limits=list(dict.fromkeys(line for one in evaluations for line in measure_limits(one))),
    )


def _blocks(record: StudyRecord, group: GroupRecord, slug: str) -> Iterator[Block]:
    if not group.trials:
        yield "No trial of this group could be made."
        return
    first = group.trials[0].evaluation
    if group.made_from:
        yield group.made_from
    for key in toxicities(first):
        found = list(toxic(first, key))
        original = " and ".join(f"{share(figure.before)} ({scorer})" for scorer, figure in found)
        n = found[0][1].n
        yield (
            f"In the original, {original} of the {written(key)}{_name_pre_prompt(key)} are toxic "
            f"({n['prompts']} prompts, {n['continuations']:,} {written(key)}). Changes are paired "
            "with the original on the same prompts, with 95 % intervals."
        )
    if group.curve:
        yield _curve(record, group, slug)
    yield _table(record, group)
    if any(trial.removals for trial in group.trials):
        yield _against_paper(record, group)
    if group.findings:
        yield _findings(record, group)
    if group.missing:
        yield (
            "These rules cannot reach that divergence even at their strongest: "
            f"{listed(group.missing)}."
        )
    for note in group.notes:
        yield f"{capital(note)}."


def _table(record: StudyRecord, group: GroupRecord) -> Table:
    first = group.trials[0].evaluation
    keys = toxicities(first)
    others = [
        (measure, column)
        for measure in first.measures
        if (kind := MEASURES.get(measure_of(measure))) is not None
        for column in kind.columns
        if any(_figure(trial.evaluation, measure, column.figure) for trial in group.trials)
    ]
    others.sort(key=lambda found: found[1].place)
    rows = [
        [
            trial.name,
            f"{trial.changed:,}",
            *[
                f"{share(figure.after)} ({points(figure.difference)})"
                for key in keys
                for _, figure in toxic(trial.evaluation, key)
            ],
            *[
                _cell(_figure(trial.evaluation, measure, column.figure), column.shown)
                for measure, column in others
            ],
        ]
        for trial in group.trials
    ]
    return Table(
        f"{record.study}-{group.name}",
        "Toxic continuations, with the change in points. Other figures with their change; "
        "perplexities with the ratio after ÷ before."
        if keys
        else "Figures, with their change where there is one; perplexities with the ratio after ÷ "
        "before.",
        [
            "",
            "neurons changed",
            *[
                f"toxic{_form(key)}{_name_pre_prompt(key)}, {scorer}"
                for key in keys
                for scorer, _ in toxic(first, key)
            ],
            *[column.heading for _, column in others],
        ],
        rows,
    )


def _figure(evaluation: Evaluation, measure: str, name: str) -> Figure | None:
    """A figure by its name, or the first; None where too little was written to have it."""
    found = (f for f in evaluation.measures[measure].figures if name in ("", f.name))
    return next(found, None)


def _cell(figure: Figure | None, kind: str) -> str:
    if figure is None:
        return "—"
    if kind == "alone":
        return plain(figure.after, 4)
    if kind == "share alone":
        return share(figure.after)
    if kind == "times":
        return f"× {interval(figure.after, 3)}"
    if kind == "share":
        return f"{share(figure.after)} ({points(figure.difference)})"
    if kind == "ratio":
        by = "" if figure.ratio is None else f"; × {interval(figure.ratio, 3)}"
        return f"{plain(figure.after, 2)}{by}"
    value = figure.difference
    if value is None or value.value is None:
        return plain(figure.after, 2)
    ends = f"{signed(value.low)} to {signed(value.high)}"
    return f"{plain(figure.after, 2)} ({signed(value.value)}; {ends})"


def _findings(record: StudyRecord, group: GroupRecord) -> Table:
    if group.crossed:
        return _cross(record, group)
    rows = [[finding.label, _format_finding(finding)] for finding in group.findings]
    return Table(
        f"{record.study}-{group.name}-findings",
        "Figures that compare trials. Intervals are 95 %, over resampled prompts.",
        ["", "value"],
        rows,
    )


def _cross(record: StudyRecord, group: GroupRecord) -> Table:
    """A table with a row for each subject of the findings and a column for each condition."""
    columns = list(dict.fromkeys(finding.by for finding in group.findings))
    cells: dict[str, dict[str, str]] = {}
    for finding in group.findings:
        cells.setdefault(finding.about, {})[finding.by] = _format_finding(finding)
    return Table(
        f"{record.study}-{group.name}-findings",
        "Intervals are 95 %, over resampled texts.",
        ["", *columns],
        [[about, *(row.get(column, "") for column in columns)] for about, row in cells.items()],
    )


def _format_finding(finding: Finding) -> str:
    if finding.unit == "share":
        return share(finding.estimate)
    if finding.unit == "points":
        return f"{points(finding.estimate)} points"
    return interval(finding.estimate, 3)


def _name_pre_prompt(key: str) -> str:
    """A measure's pre-prompt in words, from its key; "" for none."""
    led = pre_prompt_of(key)
    return f" after the {led} pre-prompt" if led else ""


def _form(key: str) -> str:
    """The word for a measure of replies, from its key; "" for others."""
    return " replies" if written(key) == "replies" else ""


def _against_paper(record: StudyRecord, group: GroupRecord) -> Table:
    compared = [trial for trial in group.trials if trial.removals]
    rows = []
    for trial in compared:
        cells = [trial.name]
        for removal in trial.removals:
            cells += [ratio(removal.ratio), f"{points(removal.beyond_twice)} points"]
        rows.append(cells)
    headings = [""]
    for removal in compared[0].removals:
        headings += [
            f"removed ÷ AurA’s ({removal.scorer})",
            f"removed − 2 × AurA’s ({removal.scorer})",
        ]
    return Table(
        f"{record.study}-{group.name}-against-aura",
        "The toxic continuations that each rule removes, divided by those that AurA removes, and "
        "the difference from twice as many. Where the whole interval of that difference is above "
        "0, the rule removes significantly more than twice as many.",
        headings,
        rows,
    )


def _curve(record: StudyRecord, group: GroupRecord, slug: str) -> Chart:
    """Toxicity (first scorer) over the measured divergence, one line per rule, with intervals."""
    rules = list(dict.fromkeys(trial.rule for trial in group.trials))
    key = colours(rules, _COLOURS)
    scorer, before = next(toxic(group.trials[0].evaluation))
    points = []
    for trial in group.trials:
        _, figure = next(toxic(trial.evaluation))
        points.append(
            {
                "rule": trial.rule,
                "divergence": trial.evaluation.figure("divergence", "divergence").after.value,
                "toxic": figure.after.value,
                "low": figure.after.low,
                "high": figure.after.high,
            }
        )
    base = alt.Chart(alt.Data(values=points)).encode(
        x=alt.X(
            "divergence:Q",
            title="divergence from the original, nats per token",
            scale=alt.Scale(type="log", nice=False),
            axis=alt.Axis(tickCount=5),
        ),
        color=colour("rule:N", key),
    )
    lines = base.mark_line(point=True, strokeWidth=2).encode(
        y=alt.Y("toxic:Q", title="toxic continuations", axis=alt.Axis(format=".0%")),
        tooltip=[
            alt.Tooltip("rule:N", title="rule"),
            alt.Tooltip("divergence:Q", title="divergence", format=".4f"),
            alt.Tooltip("toxic:Q", title="toxic", format=".1%"),
        ],
    )
    bars = base.mark_rule(strokeOpacity=0.5).encode(y="low:Q", y2="high:Q")
    level = None if before.before is None else before.before.value
    original = (
        alt.Chart(alt.Data(values=[{"level": level}]))
        .mark_rule(strokeDash=[4, 3], color="var(--quiet)")
        .encode(y="level:Q")
    )
    return Chart(
        f"{slug}-{group.name}",
        f"{model_name(record.model)}: toxic continuations by {scorer} over the divergence from the "
        "original, with 95 % intervals; dashed: the original.",
        finish(alt.layer(original, bars, lines), 260),
        key,
    )


def _protocol(records: Sequence[StudyRecord]) -> Iterator[Block]:
    yield (
        "Where a divergence is set, each rule is scaled until its divergence, measured on prose "
        "that is used for nothing else, reaches it. All arms see the same prompts and random "
        "numbers as the original. Intervals resample prompts (or texts, or questions)."
    )
    yield Code("\n".join(dict.fromkeys(record.command for record in records)))
    seeds = list(dict.fromkeys(record.seed for record in records))
    several = len(seeds) > 1
    rows = [
        [model_name(r.model), r.concept, f"{r.neurons:,}", r.dtype, _device(r)]
        + [str(r.seed)] * several
        for r in records
    ]
    yield Table(
        "models",
        "The models.",
        ["model", "concept", "neurons", "dtype of the arms", "device"] + ["seed"] * several,
        rows,
    )
    sizes = dict.fromkeys(
        (name, _read(result.protocol), _how_many(result.protocol), _more(result.protocol))
        for record in records
        for group in record.groups
        for trial in group.trials[:1]
        for name, result in trial.evaluation.measures.items()
    )
    yield Table(
        "protocol",
        "The measures." if several else f"The measures, with seed {seeds[0]}.",
        ["measure", "texts or prompts", "how many", "more"],
        [list(row) for row in sizes],
    )


def _device(record: StudyRecord) -> str:
    evaluations = (trial.evaluation for group in record.groups for trial in group.trials)
    return ", ".join(dict.fromkeys(one.after.device for one in evaluations))


def _read(protocol: dict[str, Any]) -> str:
    tasks = ", ".join(str(task) for task in protocol.get("tasks", ()))
    found = str(protocol.get("prompts", protocol.get("texts", tasks)))
    # Where a study's own texts lay on the machine that measured says nothing to others.
    return found if found.startswith(("kit:", "hf:")) else PurePath(found).name


def _how_many(protocol: dict[str, Any]) -> str:
    for key in ("n_prompts", "n_texts", "n_questions"):
        value = protocol.get(key)
        if isinstance(value, dict):
            value = value.get("all", sum(value.values()))
        if value is not None:
            return f"{value:,} {key.removeprefix('n_')}"
    return ""


def _more(protocol: dict[str, Any]) -> str:
    keys = ("rounds", "continuations", "new_tokens", "temperature", "top_p", "max_tokens", "shots")
    return ", ".join(f"{key} {protocol[key]}" for key in keys if key in protocol)


def _slugs(records: Sequence[StudyRecord]) -> list[str]:
    """A part of a file's name for each record; one that was there already has a number."""
    seen: Counter[str] = Counter()
    found = []
    for slug in map(_slug, records):
        seen[slug] += 1
        found.append(f"{slug}-{seen[slug]}" if seen[slug] > 1 else slug)
    return found


def _slug(record: StudyRecord) -> str:
    return "".join(c if c.isalnum() else "-" for c in record.model.rpartition(":")[2].lower())
