"""The statistics of responses on an accelerator, computed there.

Responses are never copied to the CPU: neurons are processed block by block, and only the results
are copied. Nothing here depends on the kind of device, so the tests compare it with the CPU's
kernels on the CPU.
"""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from sordino.models.precision import where_float64

STRONGEST = 3
# Bytes of memory for a block, and for one response while it is sorted: the sorted values, their
# indices (int64), the buffers of a radix sort, and counts.
BLOCK_BYTES = 2**29
_BYTES_EACH = 64


def twice_u(
    responses: torch.Tensor, positive: torch.Tensor, negative: torch.Tensor
) -> NDArray[np.int64]:
    """Twice the Mann-Whitney U of each neuron: #{q < p} + #{q <= p}, summed over p.

    Args:
        responses: float32, float16 or bfloat16 [sentences, neurons]; 16 bits are sorted as such.
        positive: The sentences of the positive class, int64.
        negative: The sentences of the negative class, int64.

    Returns:
        int64 [neurons]; -1 if a response is not a number.
    """
    positive, negative = positive.to(responses.device), negative.to(responses.device)
    result = torch.empty(responses.shape[1], dtype=torch.int64, device=responses.device)
    for here in _blocks(responses):
        columns = responses[:, here].T
        p = columns[:, positive].contiguous()
        q = columns[:, negative].contiguous().sort(dim=1).values
        counts = torch.searchsorted(q, p, out_int32=True).sum(dim=1)
        counts += torch.searchsorted(q, p, right=True, out_int32=True).sum(dim=1)
        nan = p.isnan().any(dim=1) | q[:, -1].isnan()  # sorting puts not-a-number last
        result[here] = counts.masked_fill_(nan, -1)
    return result.cpu().numpy()


def strongest(responses: torch.Tensor) -> NDArray[np.int32]:
    """The sentences that excite each neuron most; see `auroc.strongest`."""
    sentences, neurons = responses.shape
    result = torch.empty(STRONGEST, neurons, dtype=torch.int32, device=responses.device)
    numbers = torch.arange(sentences, dtype=torch.int32, device=responses.device).unsqueeze(1)
    for here in _blocks(responses):
        columns = responses[:, here]
        left = ~columns.isnan()
        for rank in range(STRONGEST):
            largest = columns.masked_fill(~left, -torch.inf).amax(dim=0)
            found = torch.where(left & (columns == largest), numbers, sentences).amin(dim=0)
            left &= numbers != found
            result[rank, here] = torch.where(found < sentences, found, -1)
    return result.cpu().numpy()


def moments(
    responses: torch.Tensor, positive: torch.Tensor, negative: torch.Tensor
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """The classes' means and the scale of the map between them; see `moments.py`.

    Args:
        responses: float32, float16 or bfloat16 [sentences, neurons].
        positive: The sentences of the positive class, int64.
        negative: The sentences of the negative class, int64.

    Returns:
        float64 [neurons] each: mean of the positive, mean of the negative, scale.
    """
    responses = where_float64(responses)
    device, neurons = responses.device, responses.shape[1]
    n, m = len(positive), len(negative)
    # Both classes' quantile functions are step functions, constant between these ends. Levels are
    # in units of 1 / (n·m), so that they are integers.
    ends = torch.cat([m * torch.arange(1, n + 1), n * torch.arange(1, m + 1)]).unique()
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), ends[:-1]])
    of_p, of_q = (starts // m).to(device), (starts // n).to(device)
    share = ((ends - starts).double() / (n * m)).to(device)
    positive, negative = positive.to(device), negative.to(device)
    result = torch.empty(3, neurons, dtype=torch.float64, device=device)
    for here in _blocks(responses):
        columns = responses[:, here].T
        p = columns[:, positive].sort(dim=1).values.double()
        q = columns[:, negative].contiguous().sort(dim=1).values.double()
        constant = p[:, 0] == p[:, -1]
        means = p.mean(dim=1), q.mean(dim=1)
        p -= means[0].unsqueeze(1)
        q -= means[1].unsqueeze(1)
        covariance = (p[:, of_p] * q[:, of_q]) @ share
        # A constant can only be shifted: the scale does not matter.
        scale = torch.where(constant, 1.0, covariance / p.square().mean(dim=1))
        result[:, here] = torch.stack([*means, scale])
    means_p, means_q, scales = result.cpu().numpy()
    return means_p, means_q, scales


def _blocks(responses: torch.Tensor) -> Iterator[slice]:
    sentences, neurons = responses.shape
    size = max(1, BLOCK_BYTES // (_BYTES_EACH * max(1, sentences)))
    return (slice(start, start + size) for start in range(0, neurons, size))
