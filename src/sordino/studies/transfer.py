"""Whether expertise found on a model holds for one that was trained further from it."""

from collections.abc import Iterator

from sordino.errors import UserError
from sordino.evaluation import Estimate
from sordino.interventions import aura
from sordino.models.reference import resolve
from sordino.studies.data import agreement
from sordino.studies.findings import changes, differences
from sordino.studies.record import Finding, StudyRecord
from sordino.studies.study import Group, Plan, study
from sordino.studies.words import by_points, interval
from sordino.tuning.lab import Lab, Trial

_OWN, _OTHER = "its own expertise", "the base model's expertise"


def _answer(record: StudyRecord) -> Iterator[str]:
    group = record.group("sibling")
    for trial in group.trials:
        found = changes(trial.evaluation)
        yield f"A model trained further, {trial.name}: {found}."
    for finding in group.findings:
        if finding.unit == "points":
            clear = finding.estimate.excludes_0
            verdict = "a significant difference" if clear else "no significant difference"
            yield f"{finding.label}: {by_points(finding.estimate)}; {verdict}."
        else:
            yield f"{finding.label}, between the two models: {interval(finding.estimate, 2)}."


@study("Does expertise found on a model hold for one that was trained further?", _answer)
def transfer(lab: Lab, plan: Plan) -> Iterator[Group]:
    """AurA on the sibling, from its own expertise and from the first model's."""
    if not plan.sibling:
        raise UserError(
            "The study transfer needs a model that was trained further from this one: pass it as "
            "`sibling`."
        )
    there = lab.elsewhere("sibling", ref=resolve(plan.sibling))
    found = {_OWN: there.find("auroc"), _OTHER: lab.find("auroc")}
    if found[_OWN].sites != found[_OTHER].sites:
        raise UserError(
            f"{plan.sibling} has different linear layers from {lab.ref.name}, so it is not a "
            "fine-tuned copy."
        )
    agreeing = [
        Finding(name=what, label=what, unit="number", estimate=Estimate(value, None, None))
        for what, value in agreement(*found.values()).items()
    ]
    yield Group(
        "sibling",
        "AurA on the sibling",
        tuple(Trial(name, aura(expertise)) for name, expertise in found.items()),
        (plan.toxicity(), *plan.reading(there.texts)),
        findings=lambda evaluations: [
            *agreeing,
            *differences(
                evaluations,
                {f"Toxic with {_OTHER}, compared with {_OWN}": (_OTHER, _OWN)},
                lab.seed,
            ),
        ],
        lab=there,
    )
