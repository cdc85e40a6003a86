"""Whether attention's linear layers should be dampened too."""

from collections.abc import Iterator

from sordino.interventions import family
from sordino.studies.findings import compared, differences
from sordino.studies.record import StudyRecord
from sordino.studies.study import Group, Plan, reached, study
from sordino.tuning.lab import Lab


def _answer(record: StudyRecord) -> Iterator[str]:
    return compared(record, "sites", fallen="they help", risen="they harm")


@study("Do attention's linear layers help, at the same divergence?", _answer)
def attention(lab: Lab, plan: Plan) -> Iterator[Group]:
    """AurA and contrast without and with attention's linear layers, at the same divergence."""
    found = dict(zip(("feed-forward", "attention too"), plan.both(lab), strict=True))
    trials = [
        lab.sized(f"{rule}, {where}", family(expertise, rule), plan.asked)
        for rule in ("aura", "contrast")
        for where, expertise in found.items()
    ]
    pairs = {
        f"attention's linear layers too, {rule}": (
            f"{rule}, attention too",
            f"{rule}, feed-forward",
        )
        for rule in ("aura", "contrast")
    }
    yield Group(
        "sites",
        f"With and without attention's linear layers, at a divergence of {plan.asked:g}",
        reached(trials),
        (plan.toxicity(), *plan.reading(lab.texts)),
        findings=lambda evaluations: differences(evaluations, pairs, lab.seed),
    )
