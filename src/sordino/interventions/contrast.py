"""Contrast: make the concept's text less likely than other text at the least divergence."""

import numpy as np
from numpy.typing import NDArray

from sordino.errors import UserError
from sordino.expertise.artefact import Expertise
from sordino.interventions.registry import Factors, intervention

_HALVINGS = 200


@intervention("attribution", dial="budget")
def contrast(expertise: Expertise, budget: float = 0.05) -> Factors:
    """Dampen by benefit over cost, as far as a divergence of `budget` (nats a token) goes.

    With a neuron's benefit b, its attribution to positive less that to negative text, and its cost
    F (see `sordino.expertise.attribution`), dampening by d lowers the log-likelihood of positive
    text against negative text by Σ d·b at a divergence of about ½·Σ d²·F. The best d for a given
    divergence, by Lagrange's multiplier and kept in [0, 1], is clip(λ·b/F, 0, 1); λ is found by
    halving intervals. The divergence is the diagonal estimate, and the real one is larger:
    `sordino.tuning.calibrate` finds the budget that gives a divergence which is measured.
    """
    if not budget > 0:
        raise UserError(f"contrast takes a budget above 0, not {budget:g}.")
    benefit, cost = benefit_and_cost(expertise)
    flat = amounts(np.concatenate([*benefit.values()]), np.concatenate([*cost.values()]), budget)
    ends = np.cumsum([values.size for values in cost.values()])[:-1]
    return {site: 1 - part for site, part in zip(cost, np.split(flat, ends), strict=True)}


def benefit_and_cost(
    expertise: Expertise,
) -> tuple[dict[str, NDArray[np.float64]], dict[str, NDArray[np.float64]]]:
    """Each neuron's benefit and cost, by site path, float64 [neurons], nats a token."""
    positive, negative = expertise["attribution_positive"], expertise["attribution_negative"]
    benefit = {site: (positive[site] - negative[site]).astype(np.float64) for site in positive}
    cost = {site: expertise["cost"][site].astype(np.float64) for site in positive}
    return benefit, cost


def amounts(
    benefit: NDArray[np.float64], cost: NDArray[np.float64], budget: float, lowest: float = 0.0
) -> NDArray[np.float64]:
    """D = clip(λ·benefit/cost, lowest, 1), with the largest λ that keeps ½·Σ d²·cost in budget.

    Args:
        benefit: float64 [neurons].
        cost: float64 [neurons], not negative.
        budget: Nats a token, by the diagonal estimate.
        lowest: Below 0, neurons with a negative benefit are amplified, by at most so much.
    """
    useful = benefit > 0 if lowest == 0 else benefit != 0
    with np.errstate(divide="ignore", invalid="ignore"):
        # Where a change costs nothing at all, all of it is free.
        ratio = np.where(useful, benefit / cost, 0.0)

    def sized(log_multiplier: float) -> NDArray[np.float64]:
        return np.clip(np.exp(log_multiplier) * ratio, lowest, 1)

    def divergence(log_multiplier: float) -> float:
        return float(0.5 * (sized(log_multiplier) ** 2 * cost).sum())

    low, high = -100.0, 100.0
    if divergence(high) <= budget:
        return sized(high)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if divergence(middle) <= budget else (low, middle)
    return sized(low)
