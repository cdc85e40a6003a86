"""Shrink many noisy measurements by their known sampling noise."""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_BINS = 4000
_ROUNDS = 500
# The narrowest prior spread but none at all, in standard errors; each wider one is √2 times it.
_NARROWEST = 0.1


def shrunk(values: Floats, variances: Floats) -> Floats:
    """The posterior means of quantities that were measured with known sampling variances.

    Each value over its standard error is taken as normal with variance 1 around a truth of which
    the distribution over all of them is a mixture of normals with mean 0, fitted to the values by
    expectation and maximisation: empirical Bayes as by Stephens (2017), "False discovery rates: a
    new deal", doi:10.1093/biostatistics/kxw041. Values that noise alone could give go to nearly 0,
    values far beyond it stay nearly as they are, and there is nothing to choose.

    Args:
        values: float64 [n].
        variances: Their sampling variances, float64 [n]; where it is 0 the value is kept.

    Returns:
        float64 [n], of the same signs, nowhere farther from 0.
    """
    measured = variances > 0
    if not measured.any():
        return values.copy()
    errors = np.sqrt(variances[measured])
    scores = values[measured] / errors
    spreads = _spreads(float(np.abs(scores).max()))
    weights = _weights(scores, spreads)
    found = values.copy()
    found[measured] = errors * _posterior_means(scores, spreads, weights)
    return found


def _spreads(largest: float) -> Floats:
    """The variances of the mixture's parts, from 0 to beyond the largest score's square."""
    steps = np.ceil(2 * np.log2(max(largest, 1.0) / _NARROWEST)) + 2
    return np.concatenate([[0.0], (_NARROWEST * 2 ** (np.arange(steps) / 2)) ** 2])


def _weights(scores: Floats, spreads: Floats) -> Floats:
    """The share of each part of the mixture, by maximum likelihood, on scores in fine bins."""
    counts, edges = np.histogram(np.abs(scores), _BINS)
    filled = counts > 0
    counts, middles = counts[filled], ((edges[1:] + edges[:-1]) / 2)[filled]
    likelihoods = np.exp(_log_densities(middles, spreads))
    weights = np.full(spreads.size, 1 / spreads.size)
    for _ in range(_ROUNDS):
        shares = likelihoods * weights
        shares /= shares.sum(axis=1, keepdims=True)
        weights = counts @ shares / counts.sum()
    return weights


def _posterior_means(scores: Floats, spreads: Floats, weights: Floats) -> Floats:
    with np.errstate(divide="ignore"):
        shares = _log_densities(scores, spreads) + np.log(weights)
    shares = np.exp(shares - shares.max(axis=1, keepdims=True))
    kept = shares @ (spreads / (1 + spreads)) / shares.sum(axis=1)
    return scores * kept


def _log_densities(scores: Floats, spreads: Floats) -> Floats:
    """Of each score under each part of the mixture, up to a constant, float64 [scores, parts]."""
    variances = 1 + spreads
    return -0.5 * (scores[:, None] ** 2 / variances + np.log(variances))
