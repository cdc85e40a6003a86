"""Whether what the model itself writes makes contrast better."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from sordino.evaluation import Measure
from sordino.evaluation.own_samples import OwnPlan
from sordino.evaluation.texts import read_texts
from sordino.expertise.attribution import AttributionSettings
from sordino.interventions import family
from sordino.models.sites import ATTENTION
from sordino.studies.findings import compared, differences
from sordino.studies.record import StudyRecord
from sordino.studies.study import Group, Plan, absent, reached, study
from sordino.tuning.lab import Lab

_BOTH = "own samples and corpus"
_EVIDENCE = {"corpus": "corpus", "own samples": "own", _BOTH: "all"}
_SMALLER = 0.4
"""The smaller of the two divergences, as a share of the one that is asked about."""


def _answer(record: StudyRecord) -> Iterator[str]:
    for group in record.groups:
        yield from compared(
            record,
            group.name,
            fallen="less is left",
            risen="more is left",
            unsettled="inconclusive",
        )


def _measures(plan: Plan) -> tuple[Measure, ...]:
    return (replace(plan.toxicity(), max_prompts=plan.most_other),)


@study(
    "Does what the model itself writes make contrast better?",
    _answer,
    _measures,
)
def own_samples(lab: Lab, plan: Plan) -> Iterator[Group]:
    """Contrast by the corpus, by own samples and by both, at the same divergences.

    The model continues other prompts than those of the figures, and a classifier that was trained
    on the concept's sentences judges it; neither takes part in the figures.
    """
    measures = _measures(plan)
    own = OwnPlan(
        plan.other_prompts, max_prompts=plan.own_prompts, continuations=plan.own_continuations
    ).settings(
        lab.concept,
        seed=lab.seed,
        device=lab.device,
        apart={text.text for text in read_texts(plan.prompts)},
    )
    attribution = AttributionSettings(plan.per_class, lab.seed)
    expertise = lab.find("own", sites=ATTENTION, attribution=attribution, own=own)
    for divergence in (plan.asked, plan.asked * _SMALLER):
        trials = [
            lab.sized(
                f"{name} at {divergence:g}",
                family(expertise, "contrast", evidence=evidence),
                divergence,
                start=divergence / 2,
            )
            for name, evidence in _EVIDENCE.items()
        ]
        names = [f"{name} at {divergence:g}" for name in _EVIDENCE]
        pairs = {f"{name}, compared with the corpus alone": (name, names[0]) for name in names[1:]}
        yield Group(
            f"at-{divergence:g}",
            f"Contrast at a divergence of {divergence:g}",
            reached(trials),
            (*measures, *plan.reading(lab)),
            absent(names, trials),
            partial(differences, pairs=pairs, seed=lab.seed),
        )
