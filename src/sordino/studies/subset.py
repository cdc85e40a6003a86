"""How many of the best expert neurons are needed."""

from collections.abc import Iterator

from sordino.interventions import aura
from sordino.studies.findings import differences, toxic
from sordino.studies.record import StudyRecord
from sordino.studies.study import Group, Plan, study
from sordino.studies.variants import only_best
from sordino.studies.words import by_points, falls, listed
from sordino.tuning.lab import Lab, Trial

_ALL = "all above chance"


def _answer(record: StudyRecord) -> Iterator[str]:
    group = record.group("subsets")
    for scorer, _ in toxic(group.trials[0].evaluation):
        working = [
            trial.name
            for trial in group.trials
            if falls(dict(toxic(trial.evaluation))[scorer].difference)
        ]
        yield (
            f"By {scorer}, toxicity falls significantly with "
            f"{listed(working, 'none of the subsets')}."
        )
    for finding in group.findings:
        yield f"{finding.label}: {by_points(finding.estimate)}."


@study("How many of the best expert neurons are needed?", _answer)
def subset(lab: Lab, plan: Plan) -> Iterator[Group]:
    """AurA's factors for the k neurons of highest AUROC alone, from ten to all."""
    expertise = lab.find("auroc")
    paper = aura(expertise)
    counts = [10**power for power in range(1, 7) if 10**power < paper.changed]
    trials = [Trial(f"best {k:,}", only_best(paper, expertise, k)) for k in counts]
    best = trials[-1].name if trials else _ALL
    yield Group(
        "subsets",
        "AurA for the neurons with the highest AUROC only",
        (*trials, Trial(_ALL, paper)),
        (plan.toxicity(), *plan.reading(lab.texts)),
        findings=lambda found: differences(
            found, {f"{_ALL}, compared with {best}": (_ALL, best)}, lab.seed
        ),
    )
