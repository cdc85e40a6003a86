"""The classes' means of every neuron's responses, and the affine map between the classes.

The optimal transport between two distributions on a line pairs their quantiles. Among affine maps
z → ω·z + β, the nearest to it (least squares over the positive class) is

    ω = cov(p, q) / var(p),    β = mean(q) − ω·mean(p)

where p and q are the responses to the positive and to the negative sentences, paired by quantile:
the estimator of Linear-AcT (Rodriguez et al., 2024, arXiv:2410.23054). The paper
pairs the sorted responses of two samples of one size. Here a sample counts as its empirical
distribution, so that classes of any two sizes are paired whole; with equal sizes it is the paper's
estimator.

A map between responses is applied to every token's output. It fits those best if responses are
means over a sentence's tokens, as in the paper; a maximum lies far above most tokens.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from sordino.compiled import compiled
from sordino.expertise import on_device
from sordino.expertise.auroc import Responses, as_tensor
from sordino.expertise.statistic import Statistic

# Neurons sorted at a time, so that float64 copies stay small.
_BLOCK = 128
_NAMES = (Statistic.MEAN_POSITIVE, Statistic.MEAN_NEGATIVE, Statistic.TRANSPORT_SCALE)

MEAN_SHIFT, LINEAR_TRANSPORT = "mean_shift", "linear_transport"
"""The maps between the classes, by the names of their rules: ω = 1, and ω as above."""


class Map(NamedTuple):
    """Outputs z become factor · z + shift.

    Args:
        factors: float32 [neurons].
        shifts: float32 [neurons].
    """

    factors: NDArray[np.float32]
    shifts: NDArray[np.float32]


def affine(found: Mapping[Statistic, NDArray[Any]], kind: str) -> Map:
    """The map from the positive to the negative responses of a site.

    Args:
        found: What `moments` gives.
        kind: `MEAN_SHIFT` or `LINEAR_TRANSPORT`.

    Returns:
        ω and mean_negative − ω·mean_positive; 1 and 0 where a response was no finite number.
    """
    positive, negative = found[Statistic.MEAN_POSITIVE], found[Statistic.MEAN_NEGATIVE]
    scale = found[Statistic.TRANSPORT_SCALE] if kind == LINEAR_TRANSPORT else np.ones_like(positive)
    with np.errstate(invalid="ignore"):
        shift = negative - scale * positive
    known = np.isfinite(scale) & np.isfinite(shift)
    return Map(np.where(known, scale, np.float32(1)), np.where(known, shift, np.float32(0)))


def moments(
    responses: Responses, labels: NDArray[np.bool_]
) -> dict[Statistic, NDArray[np.float32]]:
    """The statistics for `mean_shift` and `linear_transport`.

    Args:
        responses: float32, float16 or bfloat16 [sentences, neurons], on any device.
        labels: bool [sentences], true for the positive class; both classes must occur.

    Returns:
        By statistic, float32 [neurons]: `MEAN_POSITIVE` and `MEAN_NEGATIVE`; and
        `TRANSPORT_SCALE`, the ω above, which is never negative, and 1 where the positive responses
        are all the same. A neuron with a response that is no finite number has not-a-number in one
        of them at least, or an infinite mean.
    """
    positive, negative = np.flatnonzero(labels), np.flatnonzero(~labels)
    if not positive.size or not negative.size:
        raise ValueError("the moments need sentences of both classes")
    values = as_tensor(responses)
    if values.device.type != "cpu":
        classes = torch.from_numpy(positive), torch.from_numpy(negative)
        with np.errstate(over="ignore"):  # beyond float32
            wide = on_device.moments(values, *classes)
            return {n: v.astype(np.float32) for n, v in zip(_NAMES, wide, strict=True)}
    neurons = values.shape[1]
    found = {name: np.empty(neurons, np.float32) for name in _NAMES}
    for start in range(0, neurons, _BLOCK):
        here = slice(start, start + _BLOCK)
        columns = values[:, here].float().numpy().T
        p = np.sort(columns[:, positive], axis=1).astype(np.float64)
        q = np.sort(columns[:, negative], axis=1).astype(np.float64)
        with np.errstate(invalid="ignore", over="ignore"):  # infinities; ω beyond float32
            means = p.mean(axis=1), q.mean(axis=1)
            p -= means[0][:, None]
            q -= means[1][:, None]
            found[_NAMES[0]][here], found[_NAMES[1]][here] = means
            found[_NAMES[2]][here] = _scale(p, q)
    return found


def _scale(p: NDArray[np.float64], q: NDArray[np.float64]) -> NDArray[np.float64]:
    """ω of each row; both classes sorted and centred."""
    variance = np.square(p).mean(axis=1)
    # A constant can only be shifted: ω does not matter, and 1 leaves the weights unchanged.
    constant = p[:, 0] == p[:, -1]
    return np.where(constant, 1, _covariance(p, q) / np.where(constant, 1, variance))


@compiled(nogil=True)
def _covariance(p: NDArray[np.float64], q: NDArray[np.float64]) -> NDArray[np.float64]:
    """∫ P⁻¹(u)·Q⁻¹(u) du of each row, the inverse distribution functions being steps."""
    n, m = p.shape[1], q.shape[1]
    result = np.empty(p.shape[0])
    for row in range(p.shape[0]):
        i = j = level = 0  # u in units of 1 / (n·m), so that the steps end at whole numbers
        total = 0.0
        while i < n:
            end = min((i + 1) * m, (j + 1) * n)
            total += (end - level) * p[row, i] * q[row, j]
            level = end
            if level == (i + 1) * m:
                i += 1
            if level == (j + 1) * n:
                j += 1
        result[row] = total / (n * m)
    return result
