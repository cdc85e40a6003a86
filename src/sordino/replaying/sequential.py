"""An interval that stays valid however often one looks at it while the data come in.

The usual 95 % interval is valid once, at a sample size that was fixed beforehand; looked at every
day until it excludes 0, it is wrong far more often than 5 % of the time. A confidence sequence
holds for all sample sizes at once: the chance that it *ever* excludes the true mean is at most 5 %.

That is the mean effect over the items seen so far, μ̄_t = Σ_{i≤t} E[x_i | the items before] / t.
Nothing is assumed about how the traffic, or the effect itself, changes from day to day. The
interval is x̄_t ± u(V_t)/t with V_t = Σ x_i², the empirical-Bernstein confidence sequence of Howard,
Ramdas, McAuliffe and Sekhon 2021 (Time-uniform, nonparametric, nonasymptotic confidence sequences,
Annals of Statistics 49(2), arXiv 1810.08240), theorem 4, with 0 as the prediction of every x_i. For
values of −1, 0 and 1 with a small mean other predictions are hardly better, and 0 halves the range:
for x ≥ −1 and 0 ≤ λ < 1, exp(λx − ψ(λ)x²) ≤ 1 + λx with ψ(λ) = −log(1 − λ) − λ (Fan, Grama and Liu
2015), so that exp(λ Σ(x_i − E x_i) − ψ(λ) V_t) is a supermartingale. u is the gamma-exponential
mixture of these over λ, their proposition 9. If x is 1, −1 or 0, V_t counts the pairs that differ:
as in McNemar's test, pairs that agree narrow the interval by their number alone.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammainc, gammaln

from sordino.evaluation.statistics import LEVEL, Floats

TIGHTEST = 100.0
"""The interval is tightest, relative to the optimum, at about this accumulated variance V_t."""

# The mixture's parameter that makes it tightest there. It is that of the normal mixture, which this
# one resembles at a large variance; any other value would be valid, and wider there.
_SIDE = (1 - LEVEL) / 2
_RHO = TIGHTEST / (2 * np.log(1 / _SIDE) + np.log1p(2 * np.log(1 / _SIDE)))
_STEPS = 80


def confidence_sequence(values: Floats, looks: NDArray[np.int64]) -> Floats:
    """The mean of the first values and its interval, at every look.

    Args:
        values: float64 [n] in [−1, 1], in the order in which they came.
        looks: int64 [looks] from 1 to n: the numbers of values after which one looks.

    Returns:
        float64 [looks, 3]: the mean and the lower and upper end. The chance that any of these
        intervals excludes the mean effect so far is at most 1 − `LEVEL`, over all looks together.

    Raises:
        ValueError: A value is outside [−1, 1].
    """
    if values.size and not np.abs(values).max() <= 1:
        raise ValueError("the values must be from -1 to 1")
    mean = np.cumsum(values)[looks - 1] / looks
    width = boundary(np.cumsum(values**2)[looks - 1]) / looks
    ends = np.clip([mean - width, mean + width], -1, 1)
    return np.stack([mean, *ends], axis=1)


def boundary(variance: Floats) -> Floats:
    """u(V): a bound on Σ(x_i − E x_i) on one side, float64 of the shape of `variance`.

    The chance that the sum ever exceeds u(V_t) is at most (1 − `LEVEL`) / 2.
    """
    different, back = np.unique(variance, return_inverse=True)
    limit = -np.log(_SIDE)
    low, high = np.zeros_like(different), np.ones_like(different)
    while (short := log_mixture(high, different) < limit).any():
        high[short] *= 2
    for _ in range(_STEPS):
        middle = (low + high) / 2
        below = log_mixture(middle, different) < limit
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return np.asarray(high[back].reshape(np.shape(variance)))


def log_mixture(total: Floats, variance: Floats) -> Floats:
    """Log ∫ exp(λ·total − ψ(λ)·variance) dF(λ), where 1 − λ is gamma distributed below 1.

    Shape and rate of the gamma distribution are ρ: proposition 9 for a range of 1. It grows with
    the total, and is 0 if total and variance are 0. The total must be above −(variance + ρ); only
    totals from 0 on are used.
    """
    shape, rate = variance + _RHO, total + variance + _RHO
    return np.asarray(
        _log_gamma_integral(shape, rate) - _log_gamma_integral(_RHO, _RHO) + total + variance
    )


def _log_gamma_integral(shape: Floats | float, rate: Floats | float) -> Floats:
    """Log ∫₀¹ y^(shape−1) e^(−rate·y) dy."""
    inside = np.log(gammainc(shape, rate))
    return np.asarray(inside + gammaln(shape) - shape * np.log(rate))
