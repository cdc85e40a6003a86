"""How much each part of contrast contributes, and how much its data do."""

from collections.abc import Iterator

from sordino.concepts.concept import Concept
from sordino.evaluation import Measure
from sordino.expertise.attribution import AttributionSettings
from sordino.interventions import family
from sordino.interventions.rules.contrast import measured_benefit
from sordino.models.sites import ATTENTION
from sordino.studies.findings import compared, differences
from sordino.studies.record import StudyRecord
from sordino.studies.study import Group, Plan, Sizes, absent, reached, study
from sordino.studies.variants import contrast_of, only_known, reversed_sign
from sordino.tuning.calibration import clean_texts
from sordino.tuning.lab import Lab

_WHOLE = "contrast"


def _answer(record: StudyRecord) -> Iterator[str]:
    return compared(record, "parts")


def _measures(plan: Plan) -> tuple[Measure, ...]:
    return (plan.elsewhere(),)


@study(
    "How much does each part of contrast contribute, and how much do its data?", _answer, _measures
)
def ingredients(lab: Lab, plan: Plan) -> Iterator[Group]:
    """Contrast with one part left out or changed, at one divergence, on held-out prompts."""
    own, everywhere = plan.both(lab)
    variants: dict[str, Sizes] = {
        _WHOLE: family(everywhere, "contrast"),
        "feed-forward layers only": family(own, "contrast"),
        "sign reversed": lambda b: contrast_of(everywhere, b, benefit=reversed_sign),
        "without shrinkage": lambda b: contrast_of(
            everywhere, b, benefit=lambda _: measured_benefit(everywhere)
        ),
        "amplifying too": family(everywhere, "contrast", amplify=1.0),
        "one λ per layer": lambda b: contrast_of(everywhere, b, each_site=True),
        "expert neurons of selective only": lambda b: contrast_of(
            everywhere, b, benefit=only_known(everywhere)
        ),
        **_other_data(lab, plan),
    }
    trials = [
        lab.sized(name, rule, plan.asked, start=plan.asked / 2) for name, rule in variants.items()
    ]
    pairs = {
        f"{name}, compared with all of {_WHOLE}": (name, _WHOLE)
        for name in variants
        if name != _WHOLE
    }
    yield Group(
        "parts",
        f"Contrast at a divergence of {plan.asked:g}",
        reached(trials),
        (*_measures(plan), plan.reading(lab.texts)[1]),
        absent(variants, trials),
        lambda evaluations: differences(evaluations, pairs, lab.seed),
    )


def _other_data(lab: Lab, plan: Plan) -> dict[str, Sizes]:
    """Contrast on fewer sentences, and against other clean text."""
    found = {}
    most = len(lab.concept.positive)
    for count in plan.fewer:
        if count < min(plan.per_class, most):
            found[f"{count} sentences per class"] = lab.find(
                f"{count}-sentences",
                concept=lab.concept.sampled(max_per_class=count, seed=lab.seed),
                sites=ATTENTION,
                attribution=AttributionSettings(count, lab.seed),
            )
    count = min(max(plan.fewer), most)
    found[f"{count} sentences per class, prose as negatives"] = lab.find(
        "prose",
        concept=_against_prose(lab, count),
        sites=ATTENTION,
        attribution=AttributionSettings(count, lab.seed),
    )
    return {name: family(expertise, "contrast") for name, expertise in found.items()}


def _against_prose(lab: Lab, per_class: int) -> Concept:
    """The concept with prose instead of its negative sentences.

    No edit is sized on that prose; of a large source, none is measured on it either.
    """
    positive = lab.concept.sampled(max_per_class=per_class, seed=lab.seed).positive
    sized_on = set(clean_texts(lab.texts, seed=lab.seed))
    last = clean_texts(lab.texts, most=len(sized_on) + len(positive), seed=lab.seed)
    prose = [text for text in last if text not in sized_on]
    return Concept(lab.concept.name, positive, tuple(prose), f"{lab.concept.source}, and prose")
