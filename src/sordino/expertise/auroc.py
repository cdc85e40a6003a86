"""Exact AUROC of every neuron of a site at once.

For one neuron with responses p to the positive sentences and q to the negative ones

    AUROC = (#{p > q} + #{p = q} / 2) / (n_positive · n_negative)

which is the Mann-Whitney U statistic with mid-ranks, normalised (Hanley and McNeil, 1982,
doi:10.1148/radiology.143.1.7063747). Each class is sorted by itself and one linear merge counts;
the counts are integers, so that the result is exact up to the last division.

Responses on an accelerator stay there: see `on_device.py`.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np
import torch
from numpy.typing import NDArray

from sordino.compiled import compiled
from sordino.expertise import on_device

STRONGEST = on_device.STRONGEST
# Responses sorted at a time: both classes of a block fit into the second-level cache. A block has
# at least 16 neurons, so that whole cache lines are read.
BLOCK = 2**18
_FEWEST_NEURONS = 16
# Neurons whose strongest sentences are searched at a time, for long contiguous reads.
STRONGEST_NEURONS = 512
# How many rows `_merge` processes at once.
_ABREAST = 4

Responses = NDArray[np.float32] | torch.Tensor


def auroc(responses: Responses, labels: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The AUROC of each neuron's responses as a classifier of the labels.

    Args:
        responses: float32, float16 or bfloat16 [sentences, neurons], on any device; infinities are
            ordinary values.
        labels: bool [sentences], true for the positive class; both classes must occur.

    Returns:
        float64 [neurons] in [0, 1]; not-a-number if any of the neuron's responses is.
    """
    positive, negative = np.flatnonzero(labels), np.flatnonzero(~labels)
    if not positive.size or not negative.size:
        raise ValueError("AUROC needs sentences of both classes")
    values = as_tensor(responses)
    if values.device.type != "cpu":
        twice_u = on_device.twice_u(values, torch.from_numpy(positive), torch.from_numpy(negative))
    else:
        twice_u = _twice_u(values, positive, negative)
    return np.where(twice_u < 0, np.nan, twice_u / (2.0 * positive.size * negative.size))


def strongest(responses: Responses) -> NDArray[np.int32]:
    """The sentences that excite each neuron most.

    Args:
        responses: float32, float16 or bfloat16 [sentences, neurons], on any device.

    Returns:
        int32 [3, neurons], indices of sentences, strongest first, the earlier one on ties; -1 if
        there are fewer sentences, not counting responses that are not numbers.
    """
    values = as_tensor(responses)
    if values.device.type != "cpu":
        return on_device.strongest(values)
    best = np.full((STRONGEST, values.shape[1]), -1, np.int32)

    def block(start: int) -> None:
        here = slice(start, start + STRONGEST_NEURONS)
        _top(values[:, here].float().numpy(), best[:, here])

    _in_blocks(block, values.shape[1], STRONGEST_NEURONS)
    return best


def as_tensor(responses: Responses) -> torch.Tensor:
    """The responses as a tensor on their device.

    Raises:
        ValueError: The kernels do not sort their dtype exactly.
    """
    values = responses if isinstance(responses, torch.Tensor) else torch.from_numpy(responses)
    if values.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise ValueError(f"responses are float32, float16 or bfloat16, not {values.dtype}")
    return values


def _twice_u(
    responses: torch.Tensor, positive: NDArray[np.intp], negative: NDArray[np.intp]
) -> NDArray[np.int64]:
    """Twice the Mann-Whitney U of each neuron; -1 if a response is not a number."""
    sentences, neurons = responses.shape
    size = max(_FEWEST_NEURONS, BLOCK // sentences // _ABREAST * _ABREAST)
    result = np.empty(neurons, np.int64)

    def block(start: int) -> None:
        columns = responses[:, start : start + size].float().numpy().T  # 16 bits widen exactly
        # The merge reads past each row's end, where not-a-number compares false.
        p = np.empty((size, sentences), np.float32)
        q = np.empty((size, negative.size + 1), np.float32)
        p[:, positive.size :] = q[:, -1:] = np.nan
        count = len(columns)
        p[:count, : positive.size] = columns[:, positive]
        q[:count, :-1] = columns[:, negative]
        p[:count, : positive.size].sort(axis=1)
        q[:count, :-1].sort(axis=1)
        twice_u = np.empty(size, np.int64)
        _merge(p, q, twice_u)
        # Sorting puts not-a-number last.
        twice_u[np.isnan(p[:, positive.size - 1]) | np.isnan(q[:, -2])] = -1
        result[start : start + count] = twice_u[:count]

    _in_blocks(block, neurons, size)
    return result


def _in_blocks(work: Callable[[int], None], neurons: int, size: int) -> None:
    """Call `work` with the start of each block of neurons, on as many threads as torch uses."""
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        for _ in pool.map(work, range(0, neurons, size)):
            pass  # reraises the exception of a block


@compiled(nogil=True)
def _merge(p: NDArray[np.float32], q: NDArray[np.float32], twice_u: NDArray[np.int64]) -> None:
    """Twice the Mann-Whitney U of each row: #{q < p} + #{q <= p}, summed over p.

    Each step of the merge passes one element of p or of q, and `below` counts those of q. The
    result is the sum of `below` over the steps that pass an element of p. To avoid an unpredictable
    branch, the sum over all steps is taken; the terms of the steps that pass q (0, 1, 2, …) or the
    end of p are known and are subtracted at the end. Four rows and both relations are interleaved,
    because each step depends on the previous one.

    Args:
        p: Each row sorted, then one not-a-number for every element of q.
        q: Each row sorted, then one not-a-number. The number of rows is a multiple of four.
        twice_u: The result, by row.
    """
    steps, n = p.shape[1], q.shape[1] - 1
    for row in range(0, p.shape[0], 4):
        p0, p1, p2, p3 = p[row], p[row + 1], p[row + 2], p[row + 3]
        q0, q1, q2, q3 = q[row], q[row + 1], q[row + 2], q[row + 3]
        below0 = below1 = below2 = below3 = 0
        up_to0 = up_to1 = up_to2 = up_to3 = 0
        total0 = total1 = total2 = total3 = 0
        for step in range(steps):
            total0 += below0 + up_to0
            total1 += below1 + up_to1
            total2 += below2 + up_to2
            total3 += below3 + up_to3
            below0 += q0[below0] < p0[step - below0]
            below1 += q1[below1] < p1[step - below1]
            below2 += q2[below2] < p2[step - below2]
            below3 += q3[below3] < p3[step - below3]
            up_to0 += q0[up_to0] <= p0[step - up_to0]
            up_to1 += q1[up_to1] <= p1[step - up_to1]
            up_to2 += q2[up_to2] <= p2[step - up_to2]
            up_to3 += q3[up_to3] <= p3[step - up_to3]
        twice_u[row] = total0 - _needless(below0, n) - _needless(up_to0, n)
        twice_u[row + 1] = total1 - _needless(below1, n) - _needless(up_to1, n)
        twice_u[row + 2] = total2 - _needless(below2, n) - _needless(up_to2, n)
        twice_u[row + 3] = total3 - _needless(below3, n) - _needless(up_to3, n)


@numba.njit(inline="always")
def _needless(passed: int, n: int) -> int:
    """The sum of the steps past q and past the end of p; `passed` of the n of q were passed."""
    return passed * (passed - 1) // 2 + (n - passed) * passed


@compiled(nogil=True)
def _top(responses: NDArray[np.float32], best: NDArray[np.int32]) -> None:
    """Insert each sentence into each neuron's list of the strongest."""
    count, neurons = best.shape
    values = np.full((count, neurons), -np.inf, np.float32)
    for sentence in range(responses.shape[0]):
        for neuron in range(neurons):
            value = responses[sentence, neuron]
            if np.isnan(value) or (
                best[count - 1, neuron] >= 0 and not value > values[count - 1, neuron]
            ):
                continue
            place = count - 1
            while place > 0 and (best[place - 1, neuron] < 0 or value > values[place - 1, neuron]):
                values[place, neuron] = values[place - 1, neuron]
                best[place, neuron] = best[place - 1, neuron]
                place -= 1
            values[place, neuron] = value
            best[place, neuron] = sentence
