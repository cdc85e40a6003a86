"""Contrast: make the concept's text less likely than other text at the least divergence."""

import numpy as np
from numpy.typing import NDArray

from sordino.errors import UserError
from sordino.expertise.artefact import Expertise
from sordino.interventions.registry import Factors, intervention

_HALVINGS = 200


@intervention("attribution")
def contrast(expertise: Expertise, budget: float = 0.05) -> Factors:
    """Dampen by benefit over cost, as far as a divergence of `budget` (nats a token) goes.

    With a neuron's benefit b, its attribution to positive less that to negative text, and its cost
    F (see `sordino.expertise.attribution`), dampening by d lowers the log-likelihood of positive
    text against negative text by Σ d·b at a divergence of about ½·Σ d²·F. The best d for a given
    divergence, by Lagrange's multiplier and kept in [0, 1], is clip(λ·b/F, 0, 1); λ is found by
    halving intervals. The divergence is the diagonal estimate: `evaluate` measures the real one.
    """
    if not budget > 0:
        raise UserError(f"contrast takes a budget above 0, not {budget:g}.")
    positive, negative = expertise["attribution_positive"], expertise["attribution_negative"]
    sites = list(positive)
    cost = np.concatenate([expertise["cost"][site] for site in sites]).astype(np.float64)
    benefit = np.concatenate([positive[site] - negative[site] for site in sites])
    amounts = _amounts(benefit.astype(np.float64), cost, budget)
    ends = np.cumsum([positive[site].size for site in sites])[:-1]
    return {site: 1 - part for site, part in zip(sites, np.split(amounts, ends), strict=True)}


def _amounts(
    benefit: NDArray[np.float64], cost: NDArray[np.float64], budget: float
) -> NDArray[np.float64]:
    """D = clip(λ·benefit/cost, 0, 1), with the largest λ that keeps ½·Σ d²·cost within budget."""
    useful = benefit > 0
    with np.errstate(divide="ignore"):
        # Where dampening costs nothing at all, all of it is free.
        ratio = np.where(useful, benefit / cost, 0.0)

    def amounts(log_multiplier: float) -> NDArray[np.float64]:
        return np.minimum(np.exp(log_multiplier) * ratio, 1)

    def divergence(log_multiplier: float) -> float:
        return float(0.5 * (amounts(log_multiplier) ** 2 * cost).sum())

    low, high = -100.0, 100.0
    if divergence(high) <= budget:
        return amounts(high)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if divergence(middle) <= budget else (low, middle)
    return amounts(low)
