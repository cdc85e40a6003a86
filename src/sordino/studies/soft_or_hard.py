"""Whether dampening in proportion is better than one factor for the best neurons."""

from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from sordino.evaluation import Estimate, Evaluation
from sordino.evaluation.statistics import Floats, bootstrap, percentile_interval
from sordino.interventions import family
from sordino.studies.findings import scorers_of
from sordino.studies.record import Finding, StudyRecord
from sordino.studies.removal import toxic_shares
from sordino.studies.study import Group, Plan, reached, study
from sordino.studies.words import interval, model_name
from sordino.tuning.lab import Lab

# Where to look first for a size, for each nat of divergence.
_RULES = {"aura": 15.0, "damp": 10_000.0, "det_zero": 4_000.0}


def _answer(record: StudyRecord) -> Iterator[str]:
    findings = record.group("sizes").findings
    if not findings:
        yield f"{model_name(record.model)}: there is no AurA of the size to compare with."
    for finding in findings:
        low, high = finding.estimate.low, finding.estimate.high
        verdict = (
            "it costs more than AurA"
            if low is not None and low > 1
            else "it costs less than AurA"
            if high is not None and high < 1
            else "which of the two costs less is not settled"
        )
        yield (
            f"{model_name(record.model)}: {finding.label}: × {interval(finding.estimate, 2)}; "
            f"{verdict}."
        )


@study("Soft or hard: AurA, damp and det_zero where they leave the same toxicity", _answer)
def soft_or_hard(lab: Lab, plan: Plan) -> Iterator[Group]:
    """Each rule at several divergences, and what it costs to leave what AurA leaves."""
    expertise = lab.find("auroc")
    trials = [
        lab.sized(f"{rule} at {budget:g}", family(expertise, rule), budget, start=start * budget)
        for budget in plan.budgets
        for rule, start in _RULES.items()
    ]
    goal = f"aura at {min(plan.budgets, key=lambda budget: abs(budget - plan.asked)):g}"

    def findings(evaluations: Mapping[str, Evaluation]) -> Iterable[Finding]:
        if goal not in evaluations:
            return
        for rule in list(_RULES)[1:]:
            its = [name for name in evaluations if name.startswith(f"{rule} at ")]
            if not its:
                continue
            for scorer, key in scorers_of(evaluations[goal]):
                yield Finding(
                    name=f"{rule}, {scorer}",
                    label=(
                        f"divergence of {rule} where it leaves as much as {goal}, by AurA's "
                        f"({scorer})"
                    ),
                    unit="number",
                    estimate=_cost_ratio(evaluations, goal, its, key, lab.seed),
                )

    yield Group(
        "sizes",
        "Each rule at several divergences",
        reached(trials),
        (plan.toxicity(), *plan.reading(lab)),
        findings=findings,
        curve=True,
    )


def _cost_ratio(
    evaluations: Mapping[str, Evaluation], goal: str, its: list[str], key: str | None, seed: int
) -> Estimate:
    """The divergence at which a rule's toxicity crosses the goal's, by the goal's divergence.

    Between the sizes that were measured, and from the original (no divergence) on, toxicity is
    taken as linear in the divergence; prompts are resampled for all arms together. Where the
    goal's toxicity is never reached there is no bound.
    """
    spent = [_divergence(evaluations[name]) for name in its]
    columns = np.stack(
        [
            toxic_shares(evaluations[goal], "after", key),
            toxic_shares(evaluations[goal], "before", key),
            *(toxic_shares(evaluations[name], "after", key) for name in its),
        ],
        axis=1,
    )
    places = np.array([0.0, *spent]) / _divergence(evaluations[goal])

    def statistic(means: Floats) -> Floats:
        flat = means.reshape(-1, means.shape[-1])
        found = np.array([crossing(places, row[1:], row[0]) for row in flat])
        return found.reshape(*means.shape[:-1], 1)

    value, replicates = bootstrap(columns, statistic, seed)
    low, high = percentile_interval(replicates[:, 0])
    return Estimate(*(float(v) if np.isfinite(v) else None for v in (value[0], low, high)))


def crossing(places: Floats, levels: Floats, goal: float) -> float:
    """The first place at which a curve through these levels comes down to a goal.

    Args:
        places: Rising, float64 [points].
        levels: There, float64 [points].
        goal: The level that is looked for.

    Returns:
        Infinity if the curve never does; not a number if it begins there, so that there is nothing
        to come down from.
    """
    for number in range(len(places)):
        if levels[number] <= goal:
            if number == 0:
                return float("nan")
            above, below = levels[number - 1], levels[number]
            share = (above - goal) / (above - below)
            return float(places[number - 1] + share * (places[number] - places[number - 1]))
    return float("inf")


def _divergence(evaluation: Evaluation) -> float:
    value = evaluation.figure("divergence", "divergence").after.value
    assert value is not None  # there are texts
    return value
