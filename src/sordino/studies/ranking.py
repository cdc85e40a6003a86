"""Whether the ranking of the neurons matters, by permuted controls."""

from collections.abc import Iterable, Iterator, Mapping

from sordino.evaluation import Estimate, Evaluation
from sordino.interventions import aura, shuffled
from sordino.studies.findings import mean_of, scorers_of
from sordino.studies.record import Finding, StudyRecord
from sordino.studies.removal import complete, toxic_shares
from sordino.studies.study import Group, Plan, study
from sordino.studies.words import by_points, falls, interval, share
from sordino.tuning.lab import Lab, Trial

_REAL = "aura"


def _answer(record: StudyRecord) -> Iterator[str]:
    group = record.group("shuffles")
    count = len(group.trials) - 1
    for scorer, _ in scorers_of(group.trials[0].evaluation):
        mean, less, p = (group.finding(f"{what}, {scorer}") for what in ("shuffles", "less", "p"))
        verdict = (
            "the ranking matters"
            if falls(less) and p.value is not None and p.value <= 0.05
            else "inconclusive"
        )
        yield (
            f"By {scorer}: with AurA's factors permuted within each layer ({count} "
            f"permutations), {share(mean)} of the continuations are toxic on average. AurA's own "
            f"ranking changes that by {by_points(less)}, permutation test p = {interval(p, 3)}: "
            f"{verdict}."
        )


@study("Does the ranking of the neurons matter, or would the same factors on any do?", _answer)
def ranking(lab: Lab, plan: Plan) -> Iterator[Group]:
    """AurA compared with its own factors, permuted within each layer again and again."""
    expertise = lab.find("auroc")
    seeds = range(lab.seed, lab.seed + plan.shuffles)

    def findings(evaluations: Mapping[str, Evaluation]) -> Iterable[Finding]:
        others = [of for name, of in evaluations.items() if name != _REAL]
        for scorer, key in scorers_of(evaluations[_REAL]):
            arms = (evaluations[_REAL], *others)
            columns = complete(*(toxic_shares(of, "after", key) for of in arms))
            real, dealt = columns[0], columns[1:]
            as_well = int((dealt.mean(axis=1) <= real.mean()).sum())
            # One of the shuffles might have been the real ranking: Phipson and Smyth (2010),
            # "Permutation p-values should never be zero", doi:10.2202/1544-6115.1585.
            p = (as_well + 1) / (len(others) + 1)
            mean = dealt.mean(axis=0)
            yield Finding(
                name=f"shuffles, {scorer}",
                label=f"Toxic with permuted factors, on average ({scorer})",
                unit="share",
                estimate=mean_of(mean, lab.seed),
            )
            yield Finding(
                name=f"less, {scorer}",
                label=f"AurA's own ranking compared with that ({scorer})",
                unit="points",
                estimate=mean_of(real - mean, lab.seed),
            )
            yield Finding(
                name=f"p, {scorer}",
                label=f"p-value of the permutation test ({scorer})",
                unit="p",
                estimate=Estimate(p, None, None),
            )

    yield Group(
        "shuffles",
        "AurA and its permuted controls",
        (
            Trial(_REAL, aura(expertise)),
            *(Trial(f"shuffled, seed {s}", shuffled(expertise, seed=s)) for s in seeds),
        ),
        (plan.toxicity(), *plan.reading(lab.texts)),
        findings=findings,
    )
