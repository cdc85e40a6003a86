"""Whether benefits that are measured again on the way make contrast better."""

from collections.abc import Iterator
from functools import partial

from sordino.expertise.artefact import Expertise
from sordino.interventions import Dampening, dampen, family
from sordino.studies.findings import compared, differences
from sordino.studies.own_samples import BOTH
from sordino.studies.record import StudyRecord
from sordino.studies.study import Group, Plan, absent, own_evidence, reached, study
from sordino.studies.variants import along_the_way, both_benefits
from sordino.tuning.lab import Lab, Trial


def _answer(record: StudyRecord) -> Iterator[str]:
    return compared(record, "steps")


@study(
    "Does contrast remove more if its benefits are measured again halfway to the edit?",
    _answer,
    Plan.writing,
)
def halfway(lab: Lab, plan: Plan) -> Iterator[Group]:
    """Contrast by the benefits at the start, halfway, and by both, at the same divergence.

    A benefit b is what a first small change gains, and the edit is not small. Let B(d) be what the
    changes d gain together, with b(d) the slope at d. Along the straight way from 0 to d,

        B(d) − B(0) = Σ d·∫₀¹ b(t·d) dt ≈ Σ d·b(d/2)

    (the midpoint rule; the integral is the mean attribution along the way, as in integrated
    gradients, Sundararajan et al., 2017, arXiv:1703.01365). So the best d within a divergence
    budget is clip(λ·b(d/2)/F, 0, 1), in which d stands on both sides: each step measures b halfway
    to the d before, on the model under that edit, own samples and all. Halfway no factor is below
    a half.
    """
    own = plan.own(lab)
    start = plan.with_own(lab, own)
    start_name = BOTH.format(plan.asked)
    first = lab.sized(start_name, family(start, "contrast"), plan.asked)
    trials: dict[str, Trial | None] = {start_name: first}
    here, trial = start, first
    for step in range(1, plan.steps + 1):
        if trial is None:
            break
        half = _half(here, trial)
        found = plan.with_own(lab, own, f"halfway-{step}", half)
        here = along_the_way(start, found, half)
        for name, of in (
            (f"start and halfway, step {step}", both_benefits(start, here)),
            (f"halfway, step {step}", here),
        ):
            trials[name] = trial = lab.sized(name, family(of, "contrast"), plan.asked)
    others = [name for name in trials if name != start_name]
    pairs = {f"{name}, compared with {start_name}": (name, start_name) for name in others}
    made = list(trials.values())
    yield Group(
        "steps",
        f"Contrast at a divergence of {plan.asked:g}",
        reached(made),
        (*plan.writing(), *plan.reading(lab.texts)),
        absent(trials, made),
        partial(differences, pairs=pairs, seed=lab.seed),
        made_from=own_evidence(start),
    )


def _half(expertise: Expertise, trial: Trial) -> Dampening:
    """Half of a trial's change."""
    whole: Dampening = dampen(expertise, "contrast", budget=trial.dial)
    return whole.scaled(0.5)
