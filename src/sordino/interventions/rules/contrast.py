"""Contrast: make the concept's text less likely than other text at the least divergence."""

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


_NEEDS = (Statistic.POSITIVE, Statistic.NEGATIVE, Statistic.VARIANCE, Statistic.COST)


@intervention(_NEEDS, dial="budget", in_attention=True, foretells=True)
def contrast(
    expertise: Expertise, budget: float = 0.05, amplify: float = 0.0, rows: int | None = None
) -> Factors:
    """Dampen by benefit over cost, as far as a divergence of `budget` (nats a token) goes.

    With a neuron's benefit b, its attribution to positive less that to negative text, and its cost
    F (see `sordino.expertise.attribution`), dampening by d lowers the log-likelihood of positive
    text against negative text by Σ d·b at a divergence of about ½·Σ d²·F. The best d for a given
    divergence, by Lagrange's multiplier and kept in [−amplify, 1], is clip(λ·b/F, −amplify, 1); λ
    is found by halving intervals. Of b only that counts which sampling error does not explain
    (`sordino.interventions.shrinkage`).

    The divergence is the diagonal estimate, and the real one is larger:
    `sordino.tuning.calibrate` finds the budget that gives a divergence which is measured.

    Args:
        expertise: With attribution.
        budget: Nats a token.
        amplify: Neurons that serve negative text more are amplified, by at most this share of
            their response; 0 leaves them alone.
        rows: The most neurons of each site that are changed: those that together gain most under
            the budget, see `amounts`.

    Raises:
        UserError: A setting is out of range.
    """
    if not budget > 0:
        raise UserError(f"contrast takes a budget above 0, not {budget:g}.")
    if not amplify >= 0:
        raise UserError(f"contrast takes an amplify of 0 or more, not {amplify:g}.")
    benefit, cost = benefit_and_cost(expertise)
    flat = amounts(
        np.concatenate([*benefit.values()]),
        np.concatenate([*cost.values()]),
        budget,
        amplify,
        None if rows is None else AtMost(rows, tuple(part.size for part in cost.values())),
    )
    return {site: 1 - part for site, part in by_site(flat, cost).items()}


def benefit_and_cost(expertise: Expertise) -> tuple[BySite, BySite]:
    """Each neuron's benefit, less what is noise of it, and its cost.

    Returns:
        Two dictionaries by site path, float64 [neurons], nats a token.
    """
    measured = measured_benefit(expertise)
    variance, cost = (
        {site: _known(of) for site, of in expertise[name].items()}
        for name in (Statistic.VARIANCE, Statistic.COST)
    )
    benefit = shrunk(np.concatenate([*measured.values()]), np.concatenate([*variance.values()]))
    return by_site(benefit, cost), cost


def measured_benefit(expertise: Expertise) -> BySite:
    """Each neuron's benefit as it was measured, sampling error and all; float64 [neurons].

    It is 0 where none was measured, for want of texts that reached a MoE expert.
    """
    positive, negative = expertise[Statistic.POSITIVE], expertise[Statistic.NEGATIVE]
    return {site: _known(of) - _known(negative[site]) for site, of in positive.items()}


def _known(values: NDArray[np.generic]) -> NDArray[np.float64]:
    """The values, and 0 where there is none."""
    wide = values.astype(np.float64)
    return np.where(np.isnan(wide), 0.0, wide)


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

    Where a site may change in so many neurons only, these are the neurons that gain most at that
    λ, by Lagrange's d·benefit − ½·d²·cost/λ: for a neuron that is not silenced, as benefit²/cost.

    Args:
        benefit: float64 [neurons].
        cost: float64 [neurons], not negative.
        budget: Nats a token, by the diagonal estimate.
        amplify: Above 0, neurons with a negative benefit are amplified, by at most so much.
        at_most: How many neurons of each site may change; all where it is None.
    """
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
