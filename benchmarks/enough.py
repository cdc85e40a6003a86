"""Whether attribution could stop early: how much more a change gains by more sentences.

The sentences are drawn into parts. What `contrast` would change by some of the parts is judged by
the others: how much less likely it makes positive sentences against negative ones, to first order,
in nats a token, and brought to the recommended divergence, to second order. This is the gain, and
the mean over all choices of so many parts counts. Intervals are by the jackknife over parts.

A rule that stops early would have no judges, only the sampling variances. What they foretell: the
truth is taken to be what is left of all benefits when noise is taken away, which is smaller than
the truth and so rather ends the growth too early. It is measured again, with noise as of more
sentences or fewer, and the gains are compared.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from benchmarks.measure import Figure, Options, Result, command
from benchmarks.models import SHAPES, random_concept, random_model
from benchmarks.parts import attributing
from sordino.concepts.concept import Concept
from sordino.concepts.load import load_concept
from sordino.expertise.attribution import AttributionSettings, passages
from sordino.expertise.statistic import Statistic
from sordino.expertise.sweep import BATCH_TOKENS, SweepSettings
from sordino.interventions import sites_for
from sordino.interventions.rules.contrast import amounts
from sordino.interventions.shrinkage import shrunk
from sordino.models.open import OpenModel, open_model
from sordino.pipeline import RECOMMENDED_DIVERGENCE, RECOMMENDED_RULE

_TAKEN = (1, 2, 4)
"""So many parts are taken."""
_LATE = (0.75, 0.9, 0.95, 0.98)
"""Shares of all sentences at which a rule could stop."""
_LOST = 0.01
"""What it would be allowed to lose of the gain."""
_DRAWS = 3

Floats = NDArray[np.float64]
Gains = Mapping[int, float]
"""By how many parts are taken."""


@dataclass(frozen=True)
class Estimate:
    """What some sentences say of all neurons, each float64 [neurons].

    Args:
        benefit: Attribution to positive sentences less that to negative ones.
        variance: Its sampling variance.
        cost: See `sordino.expertise.attribution`.
    """

    benefit: Floats
    variance: Floats
    cost: Floats


def estimate(opened: OpenModel, concept: Concept) -> Estimate:
    """What attribution says by all sentences of a concept."""
    every = AttributionSettings(per_class=len(concept.positive))
    work = passages(opened, concept, every, SweepSettings().max_tokens, BATCH_TOKENS)
    found = attributing(opened, work)

    def of(statistic: Statistic) -> Floats:
        return np.concatenate([site[statistic].double().numpy() for site in found.values()])

    benefit = of(Statistic.POSITIVE) - of(Statistic.NEGATIVE)
    return Estimate(benefit, of(Statistic.VARIANCE), of(Statistic.COST))


def together(parts: Sequence[Estimate]) -> Estimate:
    """What these parts say together."""
    return Estimate(
        np.mean([part.benefit for part in parts], axis=0),
        np.sum([part.variance for part in parts], axis=0) / len(parts) ** 2,
        np.mean([part.cost for part in parts], axis=0),
    )


def change(parts: Sequence[Estimate]) -> Floats:
    """What `contrast` would change by these parts together, float64 [neurons]."""
    all_of = together(parts)
    benefit = shrunk(all_of.benefit, all_of.variance)
    return amounts(benefit, all_of.cost, RECOMMENDED_DIVERGENCE)


def judge(parts: Sequence[Estimate]) -> dict[tuple[int, ...], tuple[Floats, Floats]]:
    """Each choice of parts, and what each part says of the change by it: gain and divergence."""
    benefits, costs = (np.array([getattr(p, of) for p in parts]) for of in ("benefit", "cost"))
    found = {}
    for count in _TAKEN:
        for taken in combinations(range(len(parts)), count) if count < len(parts) else ():
            d = change([parts[place] for place in taken])
            found[taken] = benefits @ d, costs @ d**2 / 2
    return found


def gains(judged: Mapping[tuple[int, ...], tuple[Floats, Floats]], among: Sequence[int]) -> Gains:
    """The mean gain by so many parts, by those of some parts that were not taken."""
    by_count: dict[int, list[float]] = {}
    for taken, (gained, diverged) in judged.items():
        rest = [place for place in among if place not in taken]
        if rest and set(taken) <= set(among):
            size = np.sqrt(RECOMMENDED_DIVERGENCE / diverged[rest].mean())
            by_count.setdefault(len(taken), []).append(float(gained[rest].mean() * size))
    return {count: float(np.mean(each)) for count, each in by_count.items()}


def by_judges(parts: Sequence[Estimate], per_part: int) -> list[Figure]:
    """How many times the gain doubles of the sentences give, as other sentences judge it."""
    judged, everyone = judge(parts), range(len(parts))
    among = [list(everyone)]
    among += [[other for other in everyone if other != one] for one in everyone]
    found = [gains(judged, some) for some in among]
    figures = []
    for fewer, more in pairwise(sorted(found[0])):
        value, *without = (gained[more] / gained[fewer] for gained in found)
        # The jackknife: the scatter of what is left when one part after the other is left out.
        error = np.sqrt((len(parts) - 1) * np.var(without))
        half = float(stats.t.ppf(0.975, len(parts) - 1) * error)
        what = f"gain, {per_part * more:,} / {per_part * fewer:,} sentences: judged by others"
        figures.append(Figure(what, value, low=value - half, high=value + half))
    return figures


def foretell(estimate: Estimate, count: int, sizes: Sequence[int], seed: int) -> list[float]:
    """The gain by so many sentences, if the truth is what the estimate leaves of the benefits.

    Args:
        estimate: Of all parts together.
        count: By how many sentences of each class.
        sizes: The numbers of sentences, in rising order.
        seed: Of the noise, which is the same for all sizes but for its spread.
    """
    truth = shrunk(estimate.benefit, estimate.variance)
    noise = np.random.default_rng(seed).standard_normal(truth.size)
    found = []
    for size in sizes:
        variance = estimate.variance * count / size
        seen = shrunk(truth + np.sqrt(variance) * noise, variance)
        d = amounts(seen, estimate.cost, RECOMMENDED_DIVERGENCE)
        found.append(float(d @ truth))
    return found


def by_variances(parts: Sequence[Estimate], per_part: int, whole: int) -> list[Figure]:
    """The same and more, as the sampling variances foretell it."""
    taken = [per_part * count for count in _TAKEN]
    late = [round(share * whole) for share in _LATE]
    count = per_part * len(parts)
    sizes = sorted({*taken, count, *late, whole})
    curves = [
        dict(zip(sizes, foretell(together(parts), count, sizes, seed), strict=True))
        for seed in range(_DRAWS)
    ]
    ratios = [*pairwise(taken), (count, whole), (late[0], whole)]
    return [
        *(
            _mean(
                f"gain, {more:,} / {fewer:,} sentences: foretold",
                [gained[more] / gained[fewer] for gained in curves],
            )
            for fewer, more in ratios
        ),
        _mean(
            f"share of {whole:,} sentences that gives {1 - _LOST:.0%} of their gain: foretold",
            [
                float(np.interp(gained[whole] * (1 - _LOST), [*gained.values()], sizes)) / whole
                for gained in curves
            ],
            "",
        ),
    ]


def _mean(what: str, values: Sequence[float], unit: str = "×") -> Figure:
    """The mean of what the draws gave, with Student's interval."""
    half = float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))
    mean = float(np.mean(values))
    return Figure(what, mean, unit, low=mean - half, high=mean + half)


def run(options: Options) -> Result:
    """How much more a change gains by more sentences of a concept."""
    count, per_part = (4, 20) if options.quick else (8, 50)
    if options.quick:
        opened, concept = random_model("tiny", SHAPES["tiny"]), random_concept(160, 1000)
    else:
        sites = sites_for([RECOMMENDED_RULE], None)
        opened = open_model("kit:smollm2", device="cpu", sites=sites)
        concept = load_concept("insults")
    generator = np.random.default_rng(0)
    orders = [generator.permutation(len(of)) for of in (concept.positive, concept.negative)]
    parts = []
    for begin in range(0, count * per_part, per_part):
        drawn = ([int(i) for i in order[begin : begin + per_part]] for order in orders)
        parts.append(estimate(opened, concept.at(*drawn)))
    figures = by_judges(parts, per_part) + by_variances(parts, per_part, len(concept.positive))
    about = {
        "model": "random" if options.quick else "SmolLM2-135M-Instruct",
        "sentences": f"{count} parts of {per_part} of each class",
        "neurons": f"{parts[0].cost.size:,}",
        "divergence": f"{RECOMMENDED_DIVERGENCE:g} nats per token",
        "seed": 0,
    }
    return Result("enough", about, {}, figures)


if __name__ == "__main__":
    command(run)
