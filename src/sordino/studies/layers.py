"""Which layers and which kinds of site matter."""

from collections.abc import Iterator

from sordino.interventions import aura
from sordino.studies.findings import toxic
from sordino.studies.record import StudyRecord
from sordino.studies.study import Group, Plan, study
from sordino.studies.variants import only_at
from sordino.studies.words import falls, listed, rises
from sordino.tuning.lab import Lab, Trial


def _answer(record: StudyRecord) -> Iterator[str]:
    for group in record.groups:
        count = len(group.trials)
        for scorer, _ in toxic(group.trials[0].evaluation):
            changes = {
                trial.name: dict(toxic(trial.evaluation))[scorer].difference
                for trial in group.trials
            }
            less = [name for name, change in changes.items() if falls(change)]
            more = [name for name, change in changes.items() if rises(change)]
            yield (
                f"{group.title}, by {scorer}: toxicity falls significantly "
                f" in {len(less)} of {count} trials ({listed(less)}) "
                f"and rises in {len(more)} ({listed(more)}). By chance alone, it "
                f"would fall in about {count * 0.025:.1f} and rise in as many."
            )


@study("Which layers, and which kinds of linear layer, carry the effect?", _answer)
def layers(lab: Lab, plan: Plan) -> Iterator[Group]:
    """AurA in one layer at a time, and at one kind of site at a time."""
    paper = aura(lab.find("auroc"))
    by_layer: dict[str, list[str]] = {}
    by_kind: dict[str, list[str]] = {}
    for site in lab.opened.sites:
        by_layer.setdefault(f"layer {site.layer}", []).append(site.path)
        by_kind.setdefault(site.kind, []).append(site.path)
    for name, title, parts in (
        ("layers", "AurA in one layer at a time", by_layer),
        ("kinds", "AurA in one kind of linear layer at a time", by_kind),
    ):
        yield Group(
            name,
            title,
            tuple(Trial(part, only_at(paper, sites)) for part, sites in parts.items()),
            (plan.toxicity(), *plan.reading(lab.texts)),
        )
