"""The page of a search: the choice, its results on held-out prompts, and all trials."""

import shlex
from collections.abc import Iterator, Sequence

import altair as alt

from sordino.evaluation import Evaluation, Figure
from sordino.report.article import Article, Block, Chart, Code, Section, Table
from sordino.report.figures import colour, colours, finish
from sordino.report.outcome import measure_limits
from sordino.studies.words import falls, percent, rises, signed_points
from sordino.tuning.search import Reported, Tried, Tuned


def tuned_article(tuned: Tuned, command: Sequence[str], bake: Sequence[str]) -> Article:
    """The page of a search.

    Args:
        tuned: Its result.
        command: The command line that repeats it.
        bake: The command line that writes the chosen intervention into the weights.
    """
    sections = [
        Section("On the held-out prompts", list(_report(tuned))),
        Section("All trials", list(_list_tried(tuned))),
        Section(
            "Use",
            [Code(shlex.join(bake))]
            if tuned.best
            else ["No intervention stayed within the budget."],
        ),
        Section("Protocol", [_protocol(tuned), Code(shlex.join(command))]),
    ]
    limits = dict.fromkeys(line for r in tuned.reported for line in measure_limits(r.evaluation))
    return Article(
        kind="Search",
        title=f"“{tuned.concept}” dampened in {tuned.model}, with {tuned.budget}",
        answer=list(tuned_answer(tuned)),
        sections=sections,
        limits=list(limits),
    )


def tuned_answer(tuned: Tuned) -> Iterator[str]:
    """The sentences that the intervals support."""
    best = tuned.best
    if best is None:
        yield f"None of the {len(tuned.tried)} interventions stays within {tuned.budget}."
        return
    figure = _toxicity(best.evaluation)
    if figure.before is None or figure.difference is None:
        raise ValueError("a search compares with the original")
    change, difference = "", figure.difference
    if not (falls(difference) or rises(difference)):
        change = "; the interval includes no change"
    low, high = signed_points(difference.low), signed_points(difference.high)
    yield (
        f"{best.name} is chosen. On the {tuned.report_prompts} held-out prompts, toxic "
        f"continuations go from {percent(figure.before.value)} to {percent(figure.after.value)} "
        f"(change {low} to {high} points, 95 %){change}."
    )
    held_out = "keeps it" if best.kept else "exceeds it"
    yield f"In the search it kept the budget {tuned.budget}; on held-out texts it {held_out}."


def _report(tuned: Tuned) -> Iterator[Block]:
    rows = [
        [one.name, row.label, row.before, row.after, row.change, row.interval]
        for one in tuned.reported
        for row in one.evaluation.table()
    ]
    yield Table(
        "reported",
        "First the chosen intervention, then those that no other beats in both toxicity and "
        "divergence, and the paper's AurA.",
        ["", "figure", "before", "after", "change", "95 % interval"],
        rows,
    )


def _list_tried(tuned: Tuned) -> Iterator[Block]:
    yield _chart(tuned)
    yield Table(
        "tried",
        f"On the {tuned.search_prompts} prompts of the search. The smallest of many noisy figures "
        "is too good to be true, so the results above are from held-out prompts.",
        ["rule", "sites", "size", "neurons", "toxic", "95 % interval", "divergence", "budget"],
        [
            [
                one.rule,
                one.sites,
                f"{one.dial:.4g}",
                f"{one.changed:,}",
                percent(one.toxicity.value),
                f"{percent(one.toxicity.low)} to {percent(one.toxicity.high)}",
                f"{one.divergence.value or 0:.4f}",
                "kept" if one.kept else "exceeded",
            ]
            for one in sorted(tuned.tried, key=lambda one: one.toxicity.value or 0.0)
        ],
    )


def _chart(tuned: Tuned) -> Chart:
    rules = list(dict.fromkeys(one.rule for one in tuned.tried))
    key = colours(rules)
    points = [_point(one, "tried") for one in tuned.tried]
    points += [_after(one) for one in tuned.reported if one.tried]
    base = alt.Chart(alt.Data(values=points)).encode(
        x=alt.X("divergence:Q", title="divergence from the original, nats per token"),
        color=colour("rule:N", key),
    )
    marks = base.mark_point(size=60).encode(
        y=alt.Y("toxic:Q", title="toxic continuations", axis=alt.Axis(format=".0%")),
        fillOpacity=alt.condition("datum.half == 'reported'", alt.value(1), alt.value(0)),
        fill=alt.Color("rule:N", legend=None),
        tooltip=[
            alt.Tooltip("rule:N", title="rule"),
            alt.Tooltip("sites:N", title="sites"),
            alt.Tooltip("half:N", title="prompts"),
            alt.Tooltip("toxic:Q", title="toxic", format=".1%"),
            alt.Tooltip("divergence:Q", title="divergence", format=".4f"),
        ],
    )
    bars = base.mark_rule(strokeOpacity=0.35).encode(y="low:Q", y2="high:Q")
    return Chart(
        "pareto",
        "Toxic continuations over the divergence from the original, with 95 % intervals: hollow "
        "on the prompts of the search, filled on held-out prompts.",
        finish(alt.layer(bars, marks), 300),
        key,
    )


def _point(one: Tried, half: str) -> dict[str, object]:
    return {
        "rule": one.rule,
        "sites": one.sites,
        "half": half,
        "divergence": one.divergence.value,
        "toxic": one.toxicity.value,
        "low": one.toxicity.low,
        "high": one.toxicity.high,
    }


def _toxicity(evaluation: Evaluation) -> Figure:
    """The share of toxic continuations, or of toxic replies if they were asked for in chat."""
    of_key = {key.partition(":")[0]: measured for key, measured in evaluation.measures.items()}
    return of_key["toxicity"].figures[0]


def _after(one: Reported) -> dict[str, object]:
    if one.tried is None:
        raise ValueError("AurA as the paper has it was not tried")
    after = _toxicity(one.evaluation).after
    spent = one.evaluation.figure("divergence", "divergence").after
    changed = one.tried.model_copy(update={"toxicity": after, "divergence": spent})
    return _point(changed, "reported")


def _protocol(tuned: Tuned) -> str:
    return (
        f"{len(tuned.tried)} interventions, seed {tuned.seed}. Each is scaled until its measured "
        "divergence reaches the target. All see the same prompts and random numbers."
    )
