"""Whether dampening in proportion is better than one factor for the best neurons."""

from collections.abc import Iterable, Iterator, Mapping

from sordino.evaluation import Evaluation
from sordino.interventions import family
from sordino.studies.cost import cost_against
from sordino.studies.record import Finding, StudyRecord
from sordino.studies.study import Group, Plan, reached, study
from sordino.studies.words import interval
from sordino.tuning.lab import Lab

# Where to look first for a size, for each nat of divergence.
_RULES = {"aura": 15.0, "damp": 10_000.0, "det_zero": 4_000.0}


def _answer(record: StudyRecord) -> Iterator[str]:
    findings = record.group("sizes").findings
    if not findings:
        yield "AurA did not reach the divergence to compare at."
    for finding in findings:
        low, high = finding.estimate.low, finding.estimate.high
        verdict = (
            "it costs more than AurA"
            if low is not None and low > 1
            else "it costs less than AurA"
            if high is not None and high < 1
            else "inconclusive"
        )
        yield f"{finding.label}: × {interval(finding.estimate, 2)}; {verdict}."


@study("Soft or hard: what do AurA, damp and det_zero cost for the same effect?", _answer)
def soft_or_hard(lab: Lab, plan: Plan) -> Iterator[Group]:
    """Each rule at several divergences, and the divergence at which it matches AurA."""
    expertise = lab.find("auroc")
    trials = [
        lab.sized(
            f"{rule} at {budget:g}",
            family(expertise, rule),
            budget,
            start=start * budget,
            rule=rule,
        )
        for budget in plan.budgets
        for rule, start in _RULES.items()
    ]
    goal = f"aura at {min(plan.budgets, key=lambda budget: abs(budget - plan.asked)):g}"

    def findings(evaluations: Mapping[str, Evaluation]) -> Iterable[Finding]:
        for rule in list(_RULES)[1:]:
            yield from cost_against(evaluations, goal, rule, reached(trials), lab.seed)

    yield Group(
        "sizes",
        "Each rule at several divergences",
        reached(trials),
        (plan.toxicity(), *plan.reading(lab.texts)),
        findings=findings,
        curve=True,
    )
