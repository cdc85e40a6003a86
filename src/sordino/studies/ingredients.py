"""What contrast owes to each of its parts, and to the data that it is given."""

from collections.abc import Iterator
from dataclasses import replace

from sordino.concepts.concept import Concept
from sordino.expertise.attribution import AttributionSettings
from sordino.interventions import family
from sordino.interventions.contrast import measured_benefit
from sordino.models.sites import ATTENTION
from sordino.studies.findings import compared, differences
from sordino.studies.record import StudyRecord
from sordino.studies.study import Group, Plan, Sizes, absent, reached, study
from sordino.studies.variants import contrast_of, only_known, reversed_sign
from sordino.tuning.calibration import clean_texts
from sordino.tuning.lab import Lab

_WHOLE = "contrast"


def _answer(record: StudyRecord) -> Iterator[str]:
    return compared(
        record,
        "parts",
        fallen="less is left",
        risen="more is left",
        unsettled="which does not settle whether it matters",
    )


@study("What does contrast owe to each of its parts, and to its data?", _answer)
def ingredients(lab: Lab, plan: Plan) -> Iterator[Group]:
    """Contrast with one part left out or changed, equally large, on prompts that chose nothing."""
    own, everywhere = plan.both(lab)
    variants: dict[str, Sizes] = {
        _WHOLE: family(everywhere, "contrast"),
        "feed-forward sites only": family(own, "contrast"),
        "sign reversed": lambda b: contrast_of(everywhere, b, benefit=reversed_sign),
        "sampling error and all": lambda b: contrast_of(
            everywhere, b, benefit=lambda _: measured_benefit(everywhere)
        ),
        "amplifying too": family(everywhere, "contrast", amplify=1.0),
        "a λ for each site": lambda b: contrast_of(everywhere, b, each_site=True),
        "neurons of known AUROC only": lambda b: contrast_of(
            everywhere, b, benefit=only_known(everywhere)
        ),
        **_other_data(lab, plan),
    }
    trials = [
        lab.sized(name, rule, plan.asked, start=plan.asked / 2) for name, rule in variants.items()
    ]
    pairs = {
        f"{name}, against {_WHOLE} as it is": (name, _WHOLE) for name in variants if name != _WHOLE
    }
    toxicity = replace(plan.toxicity(), prompts=plan.other_prompts, max_prompts=plan.most_other)
    yield Group(
        "parts",
        f"Contrast at a divergence of {plan.asked:g}",
        reached(trials),
        (toxicity, plan.reading(lab)[1]),
        absent(variants, trials),
        lambda evaluations: differences(evaluations, pairs, lab.seed),
    )


def _other_data(lab: Lab, plan: Plan) -> dict[str, Sizes]:
    """Contrast on fewer sentences, and against other clean text."""
    found = {}
    most = len(lab.concept.positive)
    for count in plan.fewer:
        if count < min(plan.per_class, most):
            found[f"{count} sentences a class"] = lab.find(
                f"{count}-sentences",
                concept=lab.concept.sampled(max_per_class=count, seed=lab.seed),
                sites=ATTENTION,
                attribution=AttributionSettings(count, lab.seed),
            )
    count = min(max(plan.fewer), most)
    found[f"{count} sentences a class, prose as clean text"] = lab.find(
        "prose",
        concept=_against_prose(lab, count),
        sites=ATTENTION,
        attribution=AttributionSettings(count, lab.seed),
    )
    return {name: family(expertise, "contrast") for name, expertise in found.items()}


def _against_prose(lab: Lab, per_class: int) -> Concept:
    """The concept with prose in the place of the sentences that do not have it."""
    positive = lab.concept.sampled(max_per_class=per_class, seed=lab.seed).positive
    prose = clean_texts(lab.texts, most=len(positive), seed=lab.seed)
    return Concept(lab.concept.name, positive, tuple(prose), f"{lab.concept.source}, and prose")
