"""Whether it is the ranking of the neurons that does it."""

from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from sordino.evaluation import Estimate, Evaluation
from sordino.interventions import aura, shuffled
from sordino.studies.findings import estimate, scorers_of
from sordino.studies.record import Finding, StudyRecord
from sordino.studies.removal import toxic_shares
from sordino.studies.study import Group, Plan, study
from sordino.studies.words import by_points, falls, interval, model_name, share
from sordino.tuning.lab import Lab, Trial

_REAL = "aura"


def _answer(record: StudyRecord) -> Iterator[str]:
    group = record.group("shuffles")
    name, count = model_name(record.model), len(group.trials) - 1
    for scorer, _ in scorers_of(group.trials[0].evaluation):
        mean, less, p = (group.finding(f"{what}, {scorer}") for what in ("shuffles", "less", "p"))
        verdict = (
            "so that it is the ranking which does it"
            if falls(less) and p.value is not None and p.value <= 0.05
            else "which does not settle whether it is the ranking that does it"
        )
        yield (
            f"{name}, {scorer}: with AurA's factors dealt out by lot within each site, {count} "
            f"times, {share(mean)} of the continuations are toxic on average; AurA's own ranking "
            f"changes that by {by_points(less)}, and the chance of a shuffle that does as well "
            f"is {interval(p, 3)}, {verdict}."
        )


@study("Is it the ranking of the neurons, or would any factors of these sizes do?", _answer)
def ranking(lab: Lab, plan: Plan) -> Iterator[Group]:
    """AurA against its own factors, dealt out by lot within each site again and again."""
    expertise = lab.find("auroc")
    seeds = range(lab.seed, lab.seed + plan.shuffles)

    def findings(evaluations: Mapping[str, Evaluation]) -> Iterable[Finding]:
        others = [of for name, of in evaluations.items() if name != _REAL]
        for scorer, key in scorers_of(evaluations[_REAL]):
            real = toxic_shares(evaluations[_REAL], "after", key)
            dealt = np.stack([toxic_shares(of, "after", key) for of in others])
            as_well = int((dealt.mean(axis=1) <= real.mean()).sum())
            # One of the shuffles might have been the real ranking: Phipson and Smyth (2010),
            # "Permutation p-values should never be zero", doi:10.2202/1544-6115.1585.
            p = (as_well + 1) / (len(others) + 1)
            mean = dealt.mean(axis=0)
            yield Finding(
                name=f"shuffles, {scorer}",
                label=f"Toxic with shuffled factors, on average ({scorer})",
                unit="share",
                estimate=estimate(mean, lab.seed),
            )
            yield Finding(
                name=f"less, {scorer}",
                label=f"AurA's own ranking against that ({scorer})",
                unit="points",
                estimate=estimate(real - mean, lab.seed),
            )
            yield Finding(
                name=f"p, {scorer}",
                label=f"Chance of a shuffle that does as well ({scorer})",
                unit="p",
                estimate=Estimate(p, None, None),
            )

    yield Group(
        "shuffles",
        "AurA, and its factors dealt out by lot within each site",
        (
            Trial(_REAL, aura(expertise)),
            *(Trial(f"shuffled, seed {s}", shuffled(expertise, seed=s)) for s in seeds),
        ),
        (plan.toxicity(), *plan.reading(lab)),
        findings=findings,
    )
