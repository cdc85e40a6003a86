"""Whether what the model itself writes makes contrast better."""

from collections.abc import Iterator, Mapping
from functools import partial

from sordino.errors import UserError
from sordino.evaluation import Measure
from sordino.interventions import family
from sordino.studies.findings import compared, differences
from sordino.studies.record import StudyRecord
from sordino.studies.study import Group, Plan, Sizes, absent, own_evidence, reached, study
from sordino.studies.variants import with_own
from sordino.tuning.lab import Lab

BOTH = "own samples and corpus at {:g}"
"""What contrast with all evidence is called at a divergence; other studies share its work."""
_EVIDENCE = {"corpus at {:g}": "corpus", "own samples at {:g}": "own", BOTH: "all"}
_SMALLER = 0.4
"""The smaller of the two divergences, as a share of the one that is asked about."""
_PLACES = {
    "held-out": "held-out prompts of the source of own samples",
    "elsewhere": "other prompts",
}
"""On which prompts it is measured, by the last part of a group's name."""


def _answer(record: StudyRecord) -> Iterator[str]:
    for group in record.groups:
        yield from compared(record, group.name)


def _measures(plan: Plan) -> tuple[Measure, ...]:
    if plan.other_prompts == plan.prompts:
        raise UserError(
            f"`other_prompts={plan.other_prompts}` are the prompts that are measured, and "
            "own-samples asks whether it helps with others: give another source."
        )
    plan.elsewhere().chosen(0)  # which are there, before long work
    return plan.writing()


@study(
    "Does what the model itself writes make contrast better?",
    _answer,
    _measures,
)
def own_samples(lab: Lab, plan: Plan) -> Iterator[Group]:
    """Contrast by the corpus, by own samples and by both, at the same divergences.

    The model continues prompts of the source of the figures, but none that is measured, and their
    judge takes no part in the figures. What own samples teach about one source need not hold for
    another, so the same is measured on a source that has no part in them. Two controls show that it
    is the judge who makes the difference: own samples whose scores are permuted within each prompt,
    and own samples with the sign reversed.
    """
    own = plan.own(lab)
    expertise = plan.with_own(lab, own)
    [held_out] = plan.writing()
    on_held_out = {"held-out": (held_out, *plan.reading(lab.texts))}
    on_both = {**on_held_out, "elsewhere": (plan.elsewhere(),)}
    for divergence in (plan.asked, plan.asked * _SMALLER):
        rules = {
            name.format(divergence): family(expertise, "contrast", evidence=evidence)
            for name, evidence in _EVIDENCE.items()
        }
        corpus, *others = rules
        yield from _groups(
            f"at-{divergence:g}",
            f"Contrast at a divergence of {divergence:g}",
            rules,
            {f"{name}, compared with the corpus alone": (name, corpus) for name in others},
            divergence,
            on_both,
            lab,
            own_evidence(expertise),
        )
    control = plan.randomly_judged(lab, own)
    controls = {
        "judge permuted": with_own(expertise, control),
        "sign reversed": with_own(expertise, expertise, sign=-1),
    }
    real = f"own samples at {plan.asked:g}"
    yield from _groups(
        "controls",
        f"Own samples and their controls at a divergence of {plan.asked:g}",
        {real: family(expertise, "contrast", evidence="own")}
        | {name: family(of, "contrast", evidence="own") for name, of in controls.items()},
        {f"{real}, compared with the control {name}": (real, name) for name in controls},
        plan.asked,
        on_held_out,
        lab,
        own_evidence(expertise),
    )


def _groups(
    name: str,
    title: str,
    rules: Mapping[str, Sizes],
    pairs: Mapping[str, tuple[str, str]],
    divergence: float,
    measures: Mapping[str, tuple[Measure, ...]],
    lab: Lab,
    made_from: str,
) -> Iterator[Group]:
    """Rules at one divergence, and the pairs that are compared, on each kind of prompts."""
    trials = [
        lab.sized(named, rule, divergence, start=divergence / 2) for named, rule in rules.items()
    ]
    for place, taken in measures.items():
        there = {f"{label}, on {_PLACES[place]}": pair for label, pair in pairs.items()}
        yield Group(
            f"{name}-{place}",
            f"{title}, on {_PLACES[place]}",
            reached(trials),
            taken,
            absent(rules, trials),
            partial(differences, pairs=there, seed=lab.seed),
            made_from=made_from,
        )
