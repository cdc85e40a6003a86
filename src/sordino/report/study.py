"""The page of a study: an answer that its intervals carry, tables and charts."""

import shlex
from collections.abc import Iterator, Sequence
from typing import Any

import altair as alt

from sordino.evaluation import Estimate, Evaluation, Figure
from sordino.report.article import Article, Block, Chart, Code, Section, Table
from sordino.report.figures import finished
from sordino.report.outcome import measure_limits
from sordino.studies import GroupRecord, StudyRecord, TrialRecord, study_named

_PAPER = "aura"
_RECOMMENDED = "contrast"
_NAMES = {"kit:smollm2": "SmolLM2 135M", "kit:gemma3": "Gemma 3 270M"}
_SERIES = ("series-1", "series-2", "series-6", "series-3", "series-4", "series-5")


def study_article(records: Sequence[StudyRecord], command: Sequence[str]) -> Article:
    """The page of one study of one model or several."""
    sections = [
        Section(f"{_model(record)}: {group.title}", list(_blocks(record, group)))
        for record in records
        for group in record.groups
    ]
    sections.append(Section("Protocol", list(_protocol(records, command))))
    evaluations = [t.evaluation for r in records for g in r.groups for t in g.trials]
    return Article(
        kind=f"Study: {records[0].study}",
        title=study_named(records[0].study).question,
        answer=[line for record in records for line in _answer(record)],
        sections=sections,
        limits=list(dict.fromkeys(line for one in evaluations for line in measure_limits(one))),
    )


def _answer(record: StudyRecord) -> Iterator[str]:
    """What the comparison with the paper's rule shows, by scorer, and no more than that.

    It is of the rule that is recommended, and not of the one that happens to come out best.
    """
    for group in record.groups:
        by_name = {trial.name: trial for trial in group.trials}
        best, paper = by_name.get(_RECOMMENDED), by_name.get(_PAPER)
        if best is None or paper is None:
            continue
        spent = paper.evaluation.figure("divergence", "divergence").after
        said = []
        for removal in best.removals:
            low = removal.beyond_twice.low
            verdict = (
                "significantly more than twice as much"
                if low is not None and low > 0
                else "which is not significantly more than twice as much"
            )
            said.append(f"{_ratio(removal.ratio)} by {removal.scorer}, {verdict}")
        yield (
            f"{_model(record)}: at the divergence of AurA as the paper has it "
            f"({_plain(spent, 4)} nats a token), {best.name} removes of the toxic continuations "
            f"this many times what AurA removes: {'; '.join(said)}."
        )
        yield f"{_model(record)}: AurA itself changes toxicity by {_changes(paper.evaluation)}."


def _changes(evaluation: Evaluation) -> str:
    return " and ".join(
        f"{_points(figure.difference)} points ({scorer})"
        for scorer, figure in _toxicity(evaluation)
        if figure.difference is not None
    )


def _blocks(record: StudyRecord, group: GroupRecord) -> Iterator[Block]:
    if not group.trials:
        yield "No trial of this group could be made."
        return
    first = group.trials[0].evaluation
    original = ", ".join(
        f"{_share(figure.before)} by {scorer}" for scorer, figure in _toxicity(first)
    )
    n = next(figure.n for _, figure in _toxicity(first))
    yield (
        f"The original writes {original} toxic continuations ({n['prompts']} prompts, "
        f"{n['continuations']:,} continuations). Changes are paired with it, with 95 % intervals."
    )
    if group.name == "budgets":
        yield _curve(record, group)
    yield _table(record, group)
    if any(trial.removals for trial in group.trials):
        yield _against_paper(record, group)
    if group.missing:
        yield (
            "These cannot be made as large as that, because there is a largest of them: "
            f"{', '.join(group.missing)}."
        )


def _table(record: StudyRecord, group: GroupRecord) -> Table:
    first = group.trials[0].evaluation
    scorers = [scorer for scorer, _ in _toxicity(first)]
    others = [
        (heading, measure, name, kind)
        for heading, measure, name, kind in _COLUMNS
        if measure in first.measures and _has(first, measure, name)
    ]
    rows = [
        [
            trial.name,
            f"{trial.changed:,}",
            *[
                f"{_share(figure.after)} ({_points(figure.difference)})"
                for _, figure in _toxicity(trial.evaluation)
            ],
            *[_cell(_figure(trial.evaluation, m, name), kind) for _, m, name, kind in others],
        ]
        for trial in group.trials
    ]
    return Table(
        f"{record.study}-{group.name}",
        "Toxic continuations with the change in points; other figures with their change.",
        [
            "",
            "neurons changed",
            *[f"toxic, {scorer}" for scorer in scorers],
            *[heading for heading, *_ in others],
        ],
        rows,
    )


# Heading, measure, figure (None for the first), and how it is shown.
_COLUMNS: tuple[tuple[str, str, str | None, str], ...] = (
    ("divergence, nats a token", "divergence", "divergence", "alone"),
    ("same first choice", "divergence", "agreement", "share alone"),
    ("perplexity", "perplexity", None, "number"),
    ("perplexity of insults", "toxic-perplexity", None, "number"),
    ("zero-shot, mean", "zero-shot", None, "share"),
    ("toxic after ordinary prompts", "ordinary-toxicity", None, "share"),
    ("distinct word pairs", "diversity", "distinct-2", "share"),
)


def _has(evaluation: Evaluation, measure: str, name: str | None) -> bool:
    figures = evaluation.measures[measure].figures
    return any(name in (None, figure.name) for figure in figures)


def _figure(evaluation: Evaluation, measure: str, name: str | None) -> Figure:
    return next(f for f in evaluation.measures[measure].figures if name in (None, f.name))


def _cell(figure: Figure, kind: str) -> str:
    if kind == "alone":
        return _plain(figure.after, 4)
    if kind == "share alone":
        return _share(figure.after)
    if kind == "share":
        return f"{_share(figure.after)} ({_points(figure.difference)})"
    value = figure.difference
    if value is None or value.value is None:
        return _plain(figure.after, 2)
    ends = f"{_signed(value.low)} to {_signed(value.high)}"
    return f"{_plain(figure.after, 2)} ({_signed(value.value)}; {ends})"


def _against_paper(record: StudyRecord, group: GroupRecord) -> Table:
    compared = [trial for trial in group.trials if trial.removals]
    rows = []
    for trial in compared:
        cells = [trial.name]
        for removal in trial.removals:
            cells += [_ratio(removal.ratio), f"{_points(removal.beyond_twice)} points"]
        rows.append(cells)
    headings = [""]
    for removal in compared[0].removals:
        headings += [
            f"removed, by AurA’s ({removal.scorer})",
            f"beyond twice AurA’s ({removal.scorer})",
        ]
    return Table(
        f"{record.study}-{group.name}-against-aura",
        "What each removes of the toxic continuations, as a multiple of what AurA as the paper has "
        "it removes, and beyond twice that; above 0 throughout its interval, it is significantly "
        "more than twice as much.",
        headings,
        rows,
    )


def _curve(record: StudyRecord, group: GroupRecord) -> Chart:
    """Toxicity (first scorer) over the measured divergence, a line a rule, with intervals."""
    rules = list(dict.fromkeys(_rule(trial) for trial in group.trials))
    colours = dict(zip(rules, _SERIES, strict=False))
    scorer, before = next(_toxicity(group.trials[0].evaluation))
    points = []
    for trial in group.trials:
        _, figure = next(_toxicity(trial.evaluation))
        points.append(
            {
                "rule": _rule(trial),
                "divergence": trial.evaluation.figure("divergence", "divergence").after.value,
                "toxic": figure.after.value,
                "low": figure.after.low,
                "high": figure.after.high,
            }
        )
    base = alt.Chart(alt.Data(values=points)).encode(
        x=alt.X(
            "divergence:Q",
            title="divergence from the original, nats a token",
            scale=alt.Scale(type="log", nice=False),
            axis=alt.Axis(tickCount=5),
        ),
        color=alt.Color(
            "rule:N",
            legend=None,
            scale=alt.Scale(domain=rules, range=[f"var(--{colours[rule]})" for rule in rules]),
        ),
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
        f"{_slug(record)}-{group.name}",
        f"{_model(record)}: toxic continuations by {scorer} over the divergence from the original, "
        f"with 95 % intervals; dashed: the original.",
        finished(alt.layer(original, bars, lines), 260),
        colours,
    )


def _protocol(records: Sequence[StudyRecord], command: Sequence[str]) -> Iterator[Block]:
    yield (
        "Each rule is made as large as the divergence allows by measuring it on prose that nothing "
        "else is measured on. All arms see the same prompts and random numbers as the original; "
        "prompts (or texts, or questions) are what is resampled."
    )
    yield Code(shlex.join(command))
    rows = [[_model(r), r.concept, f"{r.neurons:,}", r.dtype] for r in records]
    yield Table(
        "models", "What was measured.", ["model", "concept", "neurons", "dtype of the arms"], rows
    )
    first = records[0]
    described = {
        name: result.protocol
        for group in first.groups
        for trial in group.trials[:1]
        for name, result in trial.evaluation.measures.items()
    }
    yield Table(
        "protocol",
        f"Sizes, seed {first.seed}.",
        ["measure", "texts or prompts", "how many", "more"],
        [
            [
                name,
                str(protocol.get("prompts", protocol.get("texts", ", ".join(_tasks(protocol))))),
                _how_many(protocol),
                _more(protocol),
            ]
            for name, protocol in described.items()
        ],
    )


def _tasks(protocol: dict[str, Any]) -> Sequence[str]:
    return [str(task) for task in protocol.get("tasks", ())]


def _how_many(protocol: dict[str, Any]) -> str:
    for key in ("n_prompts", "n_texts", "n_questions"):
        value = protocol.get(key)
        if isinstance(value, dict):
            value = value.get("all", sum(value.values()))
        if value is not None:
            return f"{value:,} {key.removeprefix('n_')}"
    return ""


def _more(protocol: dict[str, Any]) -> str:
    keys = ("continuations", "new_tokens", "temperature", "top_p", "max_tokens", "shots")
    return ", ".join(f"{key} {protocol[key]}" for key in keys if key in protocol)


def _toxicity(evaluation: Evaluation) -> Iterator[tuple[str, Figure]]:
    """The share of toxic continuations by each scorer."""
    result = evaluation.measures["toxicity"]
    for key, prefix in (("scorer", ""), ("second_scorer", None)):
        if key in result.protocol:
            scorer = result.protocol[key]["scorer"]
            name = f"{scorer}:" if prefix is None else prefix
            yield scorer, evaluation.figure("toxicity", f"{name}continuations.all")


def _rule(trial: TrialRecord) -> str:
    return trial.name.partition(" at ")[0]


def _model(record: StudyRecord) -> str:
    return _NAMES.get(record.model, record.model)


def _slug(record: StudyRecord) -> str:
    return "".join(c if c.isalnum() else "-" for c in record.model.rpartition(":")[2].lower())


def _plain(estimate: Estimate, decimals: int) -> str:
    return "undefined" if estimate.value is None else f"{estimate.value:,.{decimals}f}"


def _share(estimate: Estimate | None) -> str:
    if estimate is None or estimate.value is None:
        return "undefined"
    return f"{100 * estimate.value:.1f} %"


def _points(estimate: Estimate | None) -> str:
    if estimate is None or estimate.value is None:
        return "undefined"
    value, low, high = (_signed_points(v) for v in (estimate.value, estimate.low, estimate.high))
    return f"{value}; {low} to {high}"


def _signed_points(share: float | None) -> str:
    return "unbounded" if share is None else f"{100 * share:+.1f}".replace("-", "−")


def _signed(value: float | None) -> str:
    return "unbounded" if value is None else f"{value:+.2f}".replace("-", "−")


def _ratio(estimate: Estimate) -> str:
    if estimate.value is None:
        return "unbounded, for AurA removes nothing"
    low = "unbounded" if estimate.low is None else f"{estimate.low:.1f}".replace("-", "−")
    high = "unbounded" if estimate.high is None else f"{estimate.high:.1f}"
    return f"{estimate.value:.1f} ({low} to {high})".replace("-", "−")
