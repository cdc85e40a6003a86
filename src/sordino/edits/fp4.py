"""Rows of 4-bit floats multiplied by a factor: the scales and codes that come nearest.

A block of 4-bit floats (E2M1) has one scale of eight bits, which is a power of two (E8M0, in MXFP4)
or has three bits of mantissa (E4M3, in NVFP4). Neither holds the product with most factors exactly.
So for each block every scale in reach is tried with its nearest codes, and the one whose weights
have the smallest mean square error is taken.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import sqrt
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from sordino.compiled import compiled
from sordino.models.fp4 import MAGNITUDES

COARSE = 0.01
"""An error larger than this, relative to the exact value, is reported."""
_SIZES = np.array(MAGNITUDES)
# The midpoints between neighbours, which round down.
_BOUNDS = (_SIZES[1:] + _SIZES[:-1]) / 2
_BLOCKS_AT_A_TIME = 2**15

Bytes = NDArray[np.uint8]


class Scales(NamedTuple):
    """A type of block scales.

    Args:
        values: float64, the value of each byte, ascending; larger bytes are not scales.
        reach: How many steps to each side of the exact scale are tried: enough to turn the smallest
            code into the largest, which is twelve times as large.
    """

    values: NDArray[np.float64]
    reach: int


E8M0 = Scales(np.exp2(np.arange(255, dtype=np.float64) - 127), 4)
"""Powers of two; the byte 255 is not a number."""
E4M3 = Scales(torch.arange(127, dtype=torch.uint8).view(torch.float8_e4m3fn).double().numpy(), 29)
"""Floats of three bits of mantissa; a scale has no sign."""


@dataclass(frozen=True)
class Rounding:
    """What rounding did to the scales of changed rows.

    Args:
        scales: How many scales other than 0 were multiplied by a factor other than 0 and 1; of
            4-bit floats, those of blocks that are not all zeros.
        largest: The largest error of a scale, relative to its exact value. For 4-bit floats, whose
            codes are rounded, the largest error of a weight relative to the largest of its block.
        coarse: How many of these errors are more than 1 %.
        zeroed: How many scales became 0, and their blocks' weights with them.
        overflowed: How many are too large for their type (also weights of F32, F16 and BF16).
        damaged: How many were not finite before.
        error: For 4-bit floats, the sum of the weights' squared errors, without the shared scale.
        exact: The sum of the squares of the exact products, likewise.
    """

    scales: int = 0
    largest: float = 0.0
    coarse: int = 0
    zeroed: int = 0
    overflowed: int = 0
    damaged: int = 0
    error: float = 0.0
    exact: float = 0.0

    def __add__(self, other: "Rounding") -> "Rounding":
        return Rounding(
            self.scales + other.scales,
            max(self.largest, other.largest),
            self.coarse + other.coarse,
            self.zeroed + other.zeroed,
            self.overflowed + other.overflowed,
            self.damaged + other.damaged,
            self.error + other.error,
            self.exact + other.exact,
        )

    @property
    def relative(self) -> float:
        """The root mean square of the errors, relative to that of the exact products."""
        return sqrt(self.error / self.exact) if self.exact else 0.0


def rescale_(codes: Bytes, scales: Bytes, factors: NDArray[np.float32], kind: Scales) -> Rounding:
    """Multiply rows of 4-bit floats by one factor each, in place.

    Rows with a factor of 1 keep their bytes, those with a factor of 0 become zeros.

    Args:
        codes: uint8 [rows, blocks, bytes], two codes per byte, in either order.
        scales: uint8 [rows, blocks].
        factors: [rows].
        kind: The type of the scales.

    Returns:
        What rounding did.

    Example:
        >>> codes, scales = np.array([[[0x21]]], np.uint8), np.array([[127]], np.uint8)
        >>> rescale_(codes, scales, np.array([0.5], np.float32), E8M0).largest
        0.0
        >>> codes.item(), scales.item()
        (33, 126)
    """
    rows, blocks, _ = codes.shape
    step = max(1, _BLOCKS_AT_A_TIME // max(blocks, 1))

    def piece(first: int) -> Rounding:
        here = slice(first, first + step)
        counts, sums = np.zeros(5, np.int64), np.zeros(3)
        _rescale(codes[here], scales[here], factors[here].astype(np.float64), *kind, counts, sums)
        some, coarse, zeroed, overflowed, damaged = counts.tolist()
        largest, error, exact = sums.tolist()
        return Rounding(some, largest, coarse, zeroed, overflowed, damaged, error, exact)

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        return sum(pool.map(piece, range(0, rows, step)), Rounding())


@compiled(nogil=True)
def _rescale(
    codes: Bytes,
    scales: Bytes,
    factors: NDArray[np.float64],
    values: NDArray[np.float64],
    reach: int,
    counts: NDArray[np.int64],
    sums: NDArray[np.float64],
) -> None:
    """See `rescale_`; `counts` and `sums` are added to, as the fields of `Rounding`."""
    rows, blocks, width = codes.shape
    top = values.size - 1
    often = np.zeros(8, np.int64)
    nearest, best = np.zeros(8, np.uint8), np.zeros(8, np.uint8)
    for row in range(rows):
        factor = abs(factors[row])
        turned = np.uint8(8 if factors[row] < 0 else 0)
        for block in range(blocks):
            scale = scales[row, block]
            if scale > top:
                counts[4] += 1
                continue
            if factors[row] == 1:
                continue
            if factor == 0:
                scales[row, block] = 0
                codes[row, block] = 0
                continue
            often[:] = 0
            for byte in range(width):
                often[codes[row, block, byte] & 7] += 1
                often[codes[row, block, byte] >> 4 & 7] += 1
            large = 7
            while large > 0 and not often[large]:
                large -= 1
            exact = values[scale] * factor
            if large == 0 or exact == 0:
                continue
            counts[0] += 1
            counts[3] += exact * _SIZES[large] > values[top] * _SIZES[7]
            near = np.searchsorted(values, exact, "right") - 1
            chosen, least = 0, np.inf
            for step in range(2 * reach + 1):  # from the exact scale away, to either side
                candidate = near + (step + 1) // 2 * (1 if step % 2 else -1)
                if not 0 <= candidate <= top or values[candidate] == 0:
                    continue
                ratio, cost = exact / values[candidate], 0.0
                for code in range(large, 0, -1):
                    if cost >= least:
                        break
                    found = 0
                    while found < 7 and _SIZES[code] * ratio > _BOUNDS[found]:
                        found += 1
                    nearest[code] = found
                    off = _SIZES[found] * values[candidate] - _SIZES[code] * exact
                    cost += often[code] * off * off
                if cost < least:
                    chosen, least = candidate, cost
                    best[:] = nearest
            scales[row, block] = chosen
            for byte in range(width):
                low, high = codes[row, block, byte] & 15, codes[row, block, byte] >> 4
                low = best[low & 7] | (low & 8) ^ turned
                high = best[high & 7] | (high & 8) ^ turned
                codes[row, block, byte] = low | high << 4
            off = 0.0
            for code in range(1, large + 1):
                if often[code]:
                    here = _SIZES[best[code]] * values[chosen] - _SIZES[code] * exact
                    off = max(off, abs(here))
                    sums[2] += often[code] * (_SIZES[code] * exact) ** 2
            off /= _SIZES[large] * exact
            sums[0] = max(sums[0], off)
            sums[1] += least
            counts[1] += off > COARSE
            counts[2] += best[large] == 0
