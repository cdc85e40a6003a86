"""Exact AUROC of every neuron of a site at once.

For one neuron with responses p to the positive sentences and q to the negative ones

    AUROC = (#{p > q} + #{p = q} / 2) / (n_positive · n_negative)

which is the Mann-Whitney U statistic with mid-ranks, normalised (Hanley and McNeil, 1982,
doi:10.1148/radiology.143.1.7063747). Each class is sorted by itself and one linear merge counts;
the counts are integers, so that the result is exact up to the last division.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np
import torch
from numpy.typing import NDArray

STRONGEST = 3
# Neurons sorted at a time: both classes of a block stay in the second-level cache.
_BLOCK = 128


def auroc(responses: NDArray[np.float32], labels: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The AUROC of each neuron's responses as a classifier of the labels.

    Args:
        responses: float32 [sentences, neurons]; infinities are ordinary values.
        labels: bool [sentences], true for the positive class; both classes must occur.

    Returns:
        float64 [neurons] in [0, 1]; not-a-number where a neuron has a response that is none.
    """
    positive, negative = np.flatnonzero(labels), np.flatnonzero(~labels)
    if not positive.size or not negative.size:
        raise ValueError("AUROC needs sentences of both classes")
    result = np.empty(responses.shape[1])

    def block(start: int) -> None:
        columns = responses[:, start : start + _BLOCK].T
        p = np.sort(columns[:, positive], axis=1)
        q = np.sort(columns[:, negative], axis=1)
        twice_u = np.empty(len(p), np.int64)
        _merge(p, q, twice_u)
        value = twice_u / (2.0 * positive.size * negative.size)
        # Sorting puts not-a-number last.
        value[np.isnan(p[:, -1]) | np.isnan(q[:, -1])] = np.nan
        result[start : start + _BLOCK] = value

    _in_blocks(block, responses.shape[1])
    return result


def strongest(responses: NDArray[np.float32]) -> NDArray[np.int32]:
    """The sentences that excite each neuron most.

    Args:
        responses: float32 [sentences, neurons].

    Returns:
        int32 [3, neurons], indices of sentences, strongest first, the earlier one on ties; -1
        where there are fewer sentences or the responses are not numbers.
    """
    best = np.full((STRONGEST, responses.shape[1]), -1, np.int32)

    def block(start: int) -> None:
        _top(responses[:, start : start + _BLOCK], best[:, start : start + _BLOCK])

    _in_blocks(block, responses.shape[1])
    return best


def _in_blocks(work: Callable[[int], None], neurons: int) -> None:
    """Call `work` with the start of each block of neurons, on as many threads as torch uses."""
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        for _ in pool.map(work, range(0, neurons, _BLOCK)):
            pass  # passes on what a block raised


@numba.njit(nogil=True, cache=True)
def _merge(p: NDArray[np.float32], q: NDArray[np.float32], twice_u: NDArray[np.int64]) -> None:
    """Twice the Mann-Whitney U of each row, both classes sorted: 2·#{q < p} + #{q = p}."""
    n = q.shape[1]
    for row in range(p.shape[0]):
        below = 0  # how many of q are < p[row, i]
        up_to = 0  # how many of q are <= p[row, i]
        total = 0
        for i in range(p.shape[1]):
            value = p[row, i]
            while below < n and q[row, below] < value:
                below += 1
            up_to = max(up_to, below)
            while up_to < n and q[row, up_to] <= value:
                up_to += 1
            total += below + up_to
        twice_u[row] = total


@numba.njit(nogil=True, cache=True)
def _top(responses: NDArray[np.float32], best: NDArray[np.int32]) -> None:
    """Insert each sentence into each neuron's short list of the strongest."""
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
