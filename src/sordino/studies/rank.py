"""How many rows of each matrix the effect needs, and how it follows the scale of an adapter."""

from collections.abc import Iterator

from sordino.edits.formats import RANK
from sordino.interventions import family
from sordino.studies.findings import changes, differences
from sordino.studies.record import StudyRecord
from sordino.studies.study import Group, Plan, study
from sordino.studies.words import by_points
from sordino.tuning.lab import Lab, Trial

_RANKS = (8, 16, 32, 64, 128)
_ALL = "all rows"
_SCALES = (0.0, 0.5, 1.0)


def _answer(record: StudyRecord) -> Iterator[str]:
    for group in record.groups:
        for trial in group.trials:
            yield f"{trial.name}: {changes(trial.evaluation)}."
        for finding in group.findings:
            yield f"{finding.label}: {by_points(finding.estimate)}."


@study("How many rows of each matrix does contrast need, as an adapter of that rank?", _answer)
def rank(lab: Lab, plan: Plan) -> Iterator[Group]:
    """Contrast in at most r rows of each matrix at one divergence, and rank 64 at several scales.

    A rank that cannot fill the divergence is taken as large as it can be; the divergence of each is
    measured beside its effect.
    """
    everywhere = plan.everywhere(lab)
    limits = {f"rank {rows}": rows for rows in _RANKS} | {_ALL: None}
    trials = {
        name: lab.largest(
            name, family(everywhere, "contrast", rows=rows), plan.asked, start=plan.asked / 2
        )
        for name, rows in limits.items()
    }
    yield Group(
        "ranks",
        f"Contrast in at most so many rows of each matrix, at {plan.asked:g} nats per token",
        tuple(trials.values()),
        (plan.toxicity(), *plan.reading(lab.texts)),
        findings=lambda found: differences(
            found,
            {f"{name}, compared with {_ALL}": (name, _ALL) for name in limits if name != _ALL},
            lab.seed,
        ),
    )
    served = trials[f"rank {RANK}"].dampening
    yield Group(
        "scales",
        f"The adapter of rank {RANK} at several scales",
        tuple(Trial(f"scale {scale:g}", served.scaled(scale)) for scale in _SCALES),
        (plan.toxicity(), *plan.reading(lab.texts)),
    )
