"""Contrast: make the concept's text less likely than other text at the least divergence."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sordino.errors import UserError
from sordino.expertise.artefact import Expertise
from sordino.expertise.statistic import Statistic
from sordino.interventions.registry import Factors, intervention
from sordino.interventions.rows import AtMost
from sordino.interventions.shrinkage import shrunk

BySite = dict[str, NDArray[np.float64]]

_HALVINGS = 200
_HALVINGS_OF_SHARE = 16


_NEEDS = (Statistic.POSITIVE, Statistic.NEGATIVE, Statistic.VARIANCE, Statistic.COST)
_OWN = (Statistic.OWN, Statistic.OWN_VARIANCE)


@intervention(_NEEDS, dial="budget", uses=_OWN, in_attention=True, foretells=True)
def contrast(
    expertise: Expertise,
    budget: float = 0.05,
    amplify: float = 0.0,
    rows: int | None = None,
    evidence: Literal["all", "corpus", "own"] = "all",
) -> Factors:
    """Dampen by benefit over cost, within a divergence of `budget` (nats per token).

    Let b be a neuron's benefit, its attribution to positive text minus that to negative text, and F
    its cost (see `sordino.expertise.attribution`). Dampening by d lowers the log-likelihood of
    positive text relative to negative text by Σ d·b, at a divergence of about ½·Σ d²·F. By
    Lagrange's multiplier, the best d in [−amplify, 1] within a divergence is
    clip(λ·b/F, −amplify, 1); λ is found by bisection. b is shrunk by its sampling error first
    (`sordino.interventions.shrinkage`). docs/interventions.md has the derivation.

    If the expertise has own samples, they are a second benefit: by how much a judge's mean score
    of what the model writes falls. The two have different units, so `together` combines them, and
    its result takes the place of b.

    If the expertise has protected refusals, they must not become less likely to first order; see
    `sparing`.

    `budget` bounds the diagonal estimate, and the real divergence is usually larger:
    `sordino.tuning.calibration.calibrate` finds the budget that gives a measured divergence.

    Args:
        expertise: With attribution.
        budget: In nats per token.
        amplify: Neurons with a negative benefit are amplified, by at most this share of their
            response; 0 leaves them alone.
        rows: The most neurons of each site that are changed: those that together gain most under
            the budget, see `amounts`.
        evidence: "all" takes own samples and the labelled sentences together, where there are own
            samples; "corpus" the sentences alone, "own" the samples alone.

    Raises:
        UserError: A setting is out of range.
    """
    if not budget > 0:
        raise UserError(f"contrast takes a budget above 0, not {budget:g}.")
    if not amplify >= 0:
        raise UserError(f"contrast takes an amplify of 0 or more, not {amplify:g}.")
    benefit = whole_benefit(expertise, budget, amplify, evidence)
    cost = _wide(expertise[Statistic.COST])
    costs, spared = _flat(cost), None
    if expertise.holds(Statistic.REFUSALS):
        spared = _flat(_wide(expertise[Statistic.REFUSALS]))
        # What refusals need of a neuron is part of what its change costs: unknown, it stays.
        costs = np.where(np.isnan(spared), np.nan, costs)
    at_most = None if rows is None else AtMost(rows, tuple(part.size for part in cost.values()))

    def best(benefit: NDArray[np.float64]) -> NDArray[np.float64]:
        return amounts(benefit, costs, budget, amplify, at_most)

    if spared is None:
        flat = best(benefit)
    else:
        flat = sparing(benefit, np.nan_to_num(spared), best, between=at_most is None)
    return {site: 1 - part for site, part in by_site(flat, cost).items()}


def sparing(
    benefit: NDArray[np.float64],
    spared: NDArray[np.float64],
    best: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    *,
    between: bool = True,
) -> NDArray[np.float64]:
    """The best changes that leave a text as likely as it was, to first order.

    Changes d take Σ d·spared from that text's log-likelihood. To hold this at 0 or below is one
    more linear constraint, whose multiplier takes a share of `spared` from the benefit: the
    smallest that does, found by bisection, and none where the text would not become less likely
    anyway. So the text is spared, and is no goal: a larger share would make it more likely.

    Args:
        benefit: float64 [neurons].
        spared: The neurons' attribution to the text, float64 [neurons].
        best: Gives the best changes for a benefit, whose unit does not matter.
        between: Whether changes between two of the best may be taken, which change the neurons of
            both.

    Returns:
        float64 [neurons].
    """
    changes = best(benefit)
    if changes @ spared <= 0:
        return changes
    one, other = benefit / np.linalg.norm(benefit), spared / np.linalg.norm(spared)

    def at_share(share: float) -> NDArray[np.float64]:
        return best((1 - share) * one - share * other)

    low, high = 0.0, 1.0  # at 1 the text alone decides, and becomes more likely
    outside = changes
    inside: NDArray[np.float64] | None = None
    for _ in range(_HALVINGS_OF_SHARE):
        middle = (low + high) / 2
        found = at_share(middle)
        if found @ spared > 0:
            low, outside = middle, found
        else:
            high, inside = middle, found
    if inside is None:
        inside = at_share(high)
    if not between:
        return inside
    # Where both are as good, the text is just as likely as before somewhere on the line.
    over, under = outside @ spared, inside @ spared
    mixed: NDArray[np.float64] = (over * inside - under * outside) / (over - under)
    return mixed


@dataclass(frozen=True)
class Benefit:
    """What dampening gains by one kind of evidence, in units of its own.

    Args:
        measured: As it was measured, with sampling noise, float64 [all neurons].
        likely: The same, shrunk by its sampling noise, float64 [all neurons].
    """

    measured: NDArray[np.float64]
    likely: NDArray[np.float64]


def _benefits(expertise: Expertise, evidence: str) -> list[Benefit]:
    """The benefits that are asked for and known."""
    found = []
    if evidence != "own":
        measured = measured_benefit(expertise)
        benefit, _ = benefit_and_cost(expertise)
        found.append(Benefit(_flat(measured), _flat(benefit)))
    if evidence == "own" or (evidence == "all" and expertise.holds(*_OWN)):
        own, variance = (_flat(_known(expertise[name])) for name in _OWN)
        found.append(Benefit(own, shrunk(own, variance)))
    return found


def whole_benefit(
    expertise: Expertise, budget: float, amplify: float = 0.0, evidence: str = "all"
) -> NDArray[np.float64]:
    """Each neuron's benefit by all evidence that is asked for, float64 [all neurons].

    Args:
        expertise: With attribution.
        budget: See `contrast`, as for the rest.
        amplify: As there.
        evidence: As there.
    """
    benefits = _benefits(expertise, evidence)
    return together(benefits, _flat(_wide(expertise[Statistic.COST])), budget, amplify)


def together(
    benefits: Sequence[Benefit],
    cost: NDArray[np.float64],
    budget: float,
    amplify: float = 0.0,
) -> NDArray[np.float64]:
    """One benefit of several: their sum, each divided by what it alone would seem to gain.

    That is the gain at the budget by the benefit as it was measured. Without noise, the best change
    for the sum is the one for which the reached shares of what each could have are largest
    together, whatever the units. With noise, a benefit seems to gain more than it likely does, and
    counts for as much less.

    Args:
        benefits: One alone stays as it is, less its noise.
        cost: See `amounts`, as the rest.
        budget: Nats per token.
        amplify: As there.
    """
    if len(benefits) == 1:
        return benefits[0].likely
    total = np.zeros_like(cost)
    for benefit in benefits:
        measured = benefit.measured
        gain = float(amounts(measured, cost, budget, amplify) @ measured)
        if gain > 0:
            total += benefit.likely / gain
    return total


def benefit_and_cost(expertise: Expertise) -> tuple[BySite, BySite]:
    """Each neuron's benefit by the labelled sentences, shrunk by its noise, and its cost.

    Returns:
        Two dictionaries by site path, float64 [neurons], nats per token; a cost is not-a-number
        where it is unknown.
    """
    measured, variance = measured_benefit(expertise), _known(expertise[Statistic.VARIANCE])
    benefit = shrunk(_flat(measured), _flat(variance))
    return by_site(benefit, measured), _wide(expertise[Statistic.COST])


def measured_benefit(expertise: Expertise) -> BySite:
    """Each neuron's benefit as it was measured, with sampling noise; float64 [neurons].

    It is 0 where none was measured, for want of texts that reached a MoE expert.
    """
    positive, negative = (
        _known(expertise[name]) for name in (Statistic.POSITIVE, Statistic.NEGATIVE)
    )
    return {site: of - negative[site] for site, of in positive.items()}


def _known(values: Mapping[str, NDArray[np.generic]]) -> BySite:
    """The values, float64, and 0 where there is none."""
    return {site: np.where(np.isnan(of), 0.0, of) for site, of in _wide(values).items()}


def _wide(values: Mapping[str, NDArray[np.generic]]) -> BySite:
    """The values, float64."""
    return {site: of.astype(np.float64) for site, of in values.items()}


def _flat(values: BySite) -> NDArray[np.float64]:
    """The values of all neurons, float64 [all neurons]."""
    return np.concatenate([*values.values()])


def by_site(values: NDArray[np.float64], like: BySite) -> BySite:
    """The values of all neurons, float64 [all neurons], by site path."""
    ends = np.cumsum([part.size for part in like.values()])[:-1]
    return dict(zip(like, np.split(values, ends), strict=True))


def amounts(
    benefit: NDArray[np.float64],
    cost: NDArray[np.float64],
    budget: float,
    amplify: float = 0.0,
    at_most: AtMost | None = None,
) -> NDArray[np.float64]:
    """D = clip(λ·benefit/cost, −amplify, 1), with the largest λ that keeps ½·Σ d²·cost in budget.

    If only some neurons of a site may change, they are those that gain most at that λ, by
    Lagrange's d·benefit − ½·d²·cost/λ: for a neuron that is not silenced, as benefit²/cost.

    Args:
        benefit: float64 [neurons].
        cost: float64 [neurons], not negative. Where it is NaN, the neuron stays as it is.
        budget: Nats per token, by the diagonal estimate.
        amplify: Above 0, neurons with a negative benefit are amplified, by at most so much.
        at_most: How many neurons of each site may change; all where it is None.
    """
    # Enough own samples may reach an expert that too few sentences do: all but its cost is known.
    known = ~np.isnan(cost)
    benefit, cost = np.where(known, benefit, 0.0), np.where(known, cost, 0.0)
    useful = benefit > 0 if amplify == 0 else benefit != 0
    with np.errstate(divide="ignore", invalid="ignore"):
        # Where a change costs nothing at all, all of it is free.
        ratio = np.where(useful, benefit / cost, 0.0)

    def sized(log_multiplier: float) -> NDArray[np.float64]:
        multiplier = np.exp(log_multiplier)
        found = np.clip(multiplier * ratio, -amplify, 1)
        if at_most is None:
            return found
        gain = found * benefit - found**2 * cost / (2 * multiplier)
        return np.where(at_most.largest(gain), found, 0)

    def divergence(log_multiplier: float) -> float:
        return float(0.5 * (sized(log_multiplier) ** 2 * cost).sum())

    low, high = -100.0, 100.0
    if divergence(high) <= budget:
        return sized(high)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if divergence(middle) <= budget else (low, middle)
    if at_most is None:
        return sized(low)
    # Where the choice of neurons changes at λ, the divergence jumps: either choice may be better.
    choices = [np.where(sized(side) != 0, benefit, 0) for side in (low, high)]
    found = [amounts(chosen, cost, budget, amplify) for chosen in choices]
    return max(found, key=lambda changes: float(changes @ benefit))
