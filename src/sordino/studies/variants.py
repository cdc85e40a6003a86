"""Variants of rules that answer a question about a rule; they are not meant for use."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from sordino.expertise.artefact import Expertise
from sordino.expertise.statistic import Statistic
from sordino.interventions import Dampening, selective
from sordino.interventions.rules.contrast import amounts, benefit_and_cost, by_site

Values = Mapping[str, NDArray[np.float64]]
F = TypeVar("F", bound=np.floating[Any])


def contrast_of(
    expertise: Expertise,
    budget: float,
    *,
    benefit: Callable[[Values], Values] = lambda values: values,
    each_site: bool = False,
) -> Dampening:
    """Contrast with other benefits, or with a λ for each site.

    Args:
        expertise: With attribution.
        budget: Nats per token, by the diagonal estimate.
        benefit: What is made of the benefits, by site path.
        each_site: Each site has the same share of the budget, and so a λ of its own.
    """
    gained, cost = benefit_and_cost(expertise)
    gained = dict(benefit(gained))
    if each_site:
        share = budget / len(cost)
        found = np.concatenate([amounts(gained[site], cost[site], share) for site in cost])
    else:
        flat = np.concatenate([*gained.values()]), np.concatenate([*cost.values()])
        found = amounts(*flat, budget)
    return by_changes(expertise, found, "contrast", budget=budget)


def by_changes(
    expertise: Expertise, changes: NDArray[np.float64], intervention: str, **settings: float
) -> Dampening:
    """The dampening with these changes.

    Args:
        expertise: With attribution.
        changes: 1 less the factor of each neuron, float64 [neurons of all sites].
        intervention: What gave them.
        settings: Its settings.
    """
    like = {site: np.zeros(of.size) for site, of in expertise[Statistic.COST].items()}
    factors = {site: (1 - d).astype(np.float32) for site, d in by_site(changes, like).items()}
    return Dampening(factors, intervention, settings=settings, expertise=expertise.metadata)


def permuted(seed: int) -> Callable[[Values], Values]:
    """Benefits permuted within each site."""
    return partial(_permute, seed=seed)


def _permute(values: Mapping[str, NDArray[F]], seed: int) -> dict[str, NDArray[F]]:
    generator = np.random.default_rng(seed)
    return {site: generator.permutation(of) for site, of in values.items()}


def reversed_sign(values: Values) -> Values:
    """Benefits with their sign reversed."""
    return {site: -of for site, of in values.items()}


def permuted_edit(edit: Dampening, seed: int) -> Dampening:
    """The same factors on other neurons: permuted within each site."""
    return replace(edit, factors=_permute(edit.factors, seed))


def reversed_edit(edit: Dampening) -> Dampening:
    """The opposite change of the same neurons: 2 less each factor."""
    return replace(edit, factors={site: 2 - of for site, of in edit.factors.items()})


def with_own(expertise: Expertise, own: Expertise, sign: int = 1) -> Expertise:
    """An expertise with another one's attribution to own samples.

    Args:
        expertise: With all that contrast needs.
        own: With own samples, of the same sites.
        sign: −1 to turn it round.
    """
    other = own[Statistic.OWN], own[Statistic.OWN_VARIANCE]
    statistics = {
        site: {**of, Statistic.OWN: sign * other[0][site], Statistic.OWN_VARIANCE: other[1][site]}
        for site, of in expertise.statistics.items()
    }
    return replace(expertise, statistics=statistics)


_BENEFITS = (
    (Statistic.POSITIVE, 1),
    (Statistic.NEGATIVE, 1),
    (Statistic.VARIANCE, 2),
    (Statistic.OWN, 1),
    (Statistic.OWN_VARIANCE, 2),
)
"""What benefits are made of, with the power of an output's scale that each has."""


def along_the_way(start: Expertise, found: Expertise, edit: Dampening) -> Expertise:
    """An expertise whose benefits are those of an edited model, as changes of the original.

    Where a neuron's output is multiplied by α, attribution by a further change of it is α times
    that by a change of the original output: here it is divided by α again. Costs stay the
    original's.

    Args:
        start: Of the original.
        found: Of the model under the edit.
        edit: With factors above 0.
    """
    statistics = {
        site: {
            **of,
            **{
                name: (found[name][site] / edit.factors[site] ** power).astype(np.float32)
                for name, power in _BENEFITS
            },
        }
        for site, of in start.statistics.items()
    }
    return replace(start, statistics=statistics)


def both_benefits(one: Expertise, other: Expertise) -> Expertise:
    """An expertise whose benefits are the means of two, the costs being those of the first."""
    statistics = {
        site: {
            **of,
            **{name: (of[name] + other[name][site]) / 2**power for name, power in _BENEFITS},
        }
        for site, of in one.statistics.items()
    }
    return replace(one, statistics=statistics)


def only_known(expertise: Expertise) -> Callable[[Values], Values]:
    """Benefits of the neurons whose AUROC is above chance, as `selective` decides, others 0."""
    known = selective(expertise).factors
    return lambda values: {site: np.where(known[site] < 1, of, 0) for site, of in values.items()}


def only_at(dampening: Dampening, sites: Collection[str]) -> Dampening:
    """The same dampening at these sites, and none at others."""
    return replace(
        dampening,
        factors={site: of for site, of in dampening.factors.items() if site in sites},
        shifts={site: of for site, of in dampening.shifts.items() if site in sites},
    )


def only_best(dampening: Dampening, expertise: Expertise, count: int) -> Dampening:
    """The same factors for the `count` neurons of highest AUROC, and 1 for others."""
    best: dict[str, list[int]] = {}
    for site, neuron, _ in expertise.top(count):
        best.setdefault(site, []).append(neuron)
    factors = {}
    for site, of in dampening.factors.items():
        factors[site] = np.ones_like(of)
        factors[site][best.get(site, [])] = of[best.get(site, [])]
    return replace(dampening, factors=factors)
