"""Whether what the model itself writes makes contrast better."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial

from sordino.expertise.attribution import AttributionSettings
from sordino.interventions import family
from sordino.models.sites import ATTENTION
from sordino.studies.findings import compared, differences
from sordino.studies.record import StudyRecord
from sordino.studies.study import Group, Plan, Sizes, absent, reached, study
from sordino.studies.variants import with_own
from sordino.tuning.lab import Lab

BOTH = "own samples and corpus at {:g}"
"""What contrast with all evidence is called at a divergence; other studies share its work."""
_EVIDENCE = {"corpus at {:g}": "corpus", "own samples at {:g}": "own", BOTH: "all"}
_FEW = 50
"""Sentences of each class in a sweep that is made for its own samples alone."""
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


@study(
    "Does what the model itself writes make contrast better?",
    _answer,
    Plan.writing,
)
def own_samples(lab: Lab, plan: Plan) -> Iterator[Group]:
    """Contrast by the corpus, by own samples and by both, at the same divergences.

    The model continues other prompts than those of the figures, and neither these nor the judge
    take part in the figures. Two controls show that it is the judge who makes the difference: own
    samples whose scores are permuted within each prompt, and own samples with the sign reversed.
    """
    expertise = plan.with_own(lab)
    for divergence in (plan.asked, plan.asked * _SMALLER):
        rules = {
            name.format(divergence): family(expertise, "contrast", evidence=evidence)
            for name, evidence in _EVIDENCE.items()
        }
        corpus, *others = rules
        yield _group(
            f"at-{divergence:g}",
            f"Contrast at a divergence of {divergence:g}",
            rules,
            {f"{name}, compared with the corpus alone": (name, corpus) for name in others},
            divergence,
            lab,
            plan,
        )
    control = lab.find(
        "own-permuted",
        concept=lab.concept.sampled(max_per_class=_FEW, seed=lab.seed),
        sites=ATTENTION,
        attribution=AttributionSettings(_FEW, lab.seed),
        own=replace(plan.own(lab), permuted=lab.seed),
    )
    controls = {
        "judge permuted": with_own(expertise, control),
        "sign reversed": with_own(expertise, expertise, sign=-1),
    }
    real = f"own samples at {plan.asked:g}"
    yield _group(
        "controls",
        f"Own samples and their controls at a divergence of {plan.asked:g}",
        {real: family(expertise, "contrast", evidence="own")}
        | {name: family(of, "contrast", evidence="own") for name, of in controls.items()},
        {f"{real}, compared with the control {name}": (real, name) for name in controls},
        plan.asked,
        lab,
        plan,
    )


def _group(
    name: str,
    title: str,
    rules: Mapping[str, Sizes],
    pairs: Mapping[str, tuple[str, str]],
    divergence: float,
    lab: Lab,
    plan: Plan,
) -> Group:
    """Rules at one divergence, and the pairs that are compared."""
    trials = [
        lab.sized(named, rule, divergence, start=divergence / 2) for named, rule in rules.items()
    ]
    return Group(
        name,
        title,
        reached(trials),
        (*plan.writing(), *plan.reading(lab)),
        absent(rules, trials),
        partial(differences, pairs=pairs, seed=lab.seed),
    )
