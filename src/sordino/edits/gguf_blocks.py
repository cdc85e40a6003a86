"""Multiply rows of a GGUF tensor by factors, in the scales of its blocks.

A block holds some weights of one row as small integers, and one or two half-precision numbers that
scale them. A row times a factor has the same integers under other scales, so nothing is quantised
again and only the scales are rounded. The layouts are those of ggml's block structures.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from sordino.edits.fp4 import COARSE, E4M3, E8M0, Rounding, Scales, rescale_
from sordino.models.dtypes import PLAIN

Rows = NDArray[np.uint8]
Factors = NDArray[np.float32]


@dataclass(frozen=True)
class _Layout:
    """Where a block keeps its half-precision scales.

    Args:
        size: Bytes of a block.
        scales: The first byte of each scale.
    """

    size: int
    scales: tuple[int, ...]


_HALVES = {
    "Q4_0": _Layout(18, (0,)),
    "Q4_1": _Layout(20, (0, 2)),
    "Q5_0": _Layout(22, (0,)),
    "Q5_1": _Layout(24, (0, 2)),
    "Q8_0": _Layout(34, (0,)),
    "Q2_K": _Layout(84, (80, 82)),
    "Q3_K": _Layout(110, (108,)),
    "Q4_K": _Layout(144, (0, 2)),
    "Q5_K": _Layout(176, (0, 2)),
    "Q6_K": _Layout(210, (208,)),
    "IQ1_S": _Layout(50, (0,)),
    "IQ2_XXS": _Layout(66, (0,)),
    "IQ2_XS": _Layout(74, (0,)),
    "IQ2_S": _Layout(82, (0,)),
    "IQ3_XXS": _Layout(98, (0,)),
    "IQ3_S": _Layout(110, (0,)),
    "IQ4_NL": _Layout(18, (0,)),
    "IQ4_XS": _Layout(136, (0,)),
    "TQ1_0": _Layout(54, (52,)),
    "TQ2_0": _Layout(66, (64,)),
}
_FLOATS = {kind: PLAIN[kind] for kind in ("F32", "F16", "BF16")}
# IQ1_M spreads its scale over the highest four bits of four 16-bit words at a block's end.
_IQ1_M_SIZE, _IQ1_M_WORDS = 56, 48
_IQ1_M_SHIFTS = np.array([0, 4, 8, 12], np.uint16)


@dataclass(frozen=True)
class _Fp4Layout:
    """How a block of 4-bit floats is laid out: its scales, then the codes under each of them.

    Args:
        size: Bytes of a block.
        scales: How many scales it has.
        kind: Their type.
    """

    size: int
    scales: int
    kind: Scales


_FP4 = {"MXFP4": _Fp4Layout(17, 1, E8M0), "NVFP4": _Fp4Layout(36, 4, E4M3)}

KINDS = (*_FLOATS, *_HALVES, "IQ1_M", *_FP4)
"""The tensor types whose rows can be multiplied."""


def scale_rows_(kind: str, rows: Rows, factors: Factors, shifts: Factors | None = None) -> Rounding:
    """Multiply rows of a GGUF tensor by one factor each, in place.

    A scale is multiplied exactly (in float64) and rounded once to half precision; a weight of F32,
    F16 or BF16 is multiplied in float32 and rounded once. Rows with a factor of 1 keep their bytes,
    and those with a factor of 0 become zeros. Blocks of 4-bit floats (MXFP4, NVFP4) get the scale
    and the codes with the smallest mean square error.

    Args:
        kind: The tensor's type, one of `KINDS`.
        rows: uint8 [rows, bytes of a row].
        factors: [rows].
        shifts: [rows], added to every weight of a row afterwards; for F32, F16 and BF16.

    Returns:
        What rounding did to block scales; of F32, F16 and BF16 only overflow and damage.

    Raises:
        ValueError: The type is none of `KINDS`, or has block scales and cannot be shifted.
    """
    changed = factors != 1
    if shifts is not None:
        changed |= shifts != 0
    if kind in _FLOATS:
        return _scale_floats_(_FLOATS[kind], rows, factors, shifts, changed)
    if shifts is not None:
        raise ValueError(f"{kind} cannot be shifted")
    if kind in _HALVES:
        layout = _HALVES[kind]
        halves = rows.reshape(len(rows), -1, layout.size).view(np.float16)
        rounding = Rounding()
        for start in layout.scales:
            scales = halves[:, :, start // 2]
            scales[changed], found = _scale(scales, factors, changed)
            rounding += found
        return rounding
    if kind == "IQ1_M":
        return _scale_iq1_m_(rows, factors, changed)
    if kind in _FP4:
        return _scale_fp4_(kind, rows, factors)
    raise ValueError(f"{kind} cannot be scaled")


def _scale(
    scales: NDArray[np.float16], factors: Factors, changed: NDArray[np.bool_]
) -> tuple[NDArray[np.float16], Rounding]:
    """The changed rows of half-precision scales [rows, blocks] times their factors."""
    damaged = int(np.count_nonzero(~np.isfinite(scales)))
    exact = scales[changed].astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        exact *= factors[changed].astype(np.float64)[:, None]
        rounded = exact.astype(np.float16)
    return rounded, _rounding(exact, rounded.astype(np.float64)) + Rounding(damaged=damaged)


def _rounding(exact: NDArray[np.float64], rounded: NDArray[np.float64]) -> Rounding:
    there = np.isfinite(exact) & (exact != 0)
    exact, rounded = exact[there], rounded[there]
    finite = np.isfinite(rounded)
    errors = np.abs(rounded[finite] / exact[finite] - 1)
    return Rounding(
        scales=exact.size,
        largest=float(errors.max(initial=0)),
        coarse=int(np.count_nonzero(errors > COARSE)),
        zeroed=int(np.count_nonzero(rounded == 0)),
        overflowed=int(np.count_nonzero(~finite)),
    )


def _scale_floats_(
    dtype: torch.dtype,
    rows: Rows,
    factors: Factors,
    shifts: Factors | None,
    changed: NDArray[np.bool_],
) -> Rounding:
    values = torch.from_numpy(rows).view(dtype)
    damaged = int((~torch.isfinite(values)).sum())
    where = torch.from_numpy(changed)
    wide = values[where].float() * torch.from_numpy(factors[changed])[:, None]
    if shifts is not None:
        wide += torch.from_numpy(shifts[changed])[:, None]
    rounded = wide.to(dtype)
    values[where] = rounded
    overflowed = int((~torch.isfinite(rounded)).sum()) if not damaged else 0
    return Rounding(overflowed=overflowed, damaged=damaged)


def _scale_iq1_m_(rows: Rows, factors: Factors, changed: NDArray[np.bool_]) -> Rounding:
    blocks = rows.reshape(len(rows), -1, _IQ1_M_SIZE)
    words = blocks[:, :, _IQ1_M_WORDS:].view(np.uint16)  # [rows, blocks, 4]
    bits = np.bitwise_or.reduce((words >> 12) << _IQ1_M_SHIFTS, axis=-1)
    rounded, rounding = _scale(bits.view(np.float16), factors, changed)
    new = (rounded.view(np.uint16)[..., None] >> _IQ1_M_SHIFTS) << np.uint16(12)
    words[changed] = (words[changed] & np.uint16(0x0FFF)) | new
    return rounding


def _scale_fp4_(kind: str, rows: Rows, factors: Factors) -> Rounding:
    layout = _FP4[kind]
    blocks = rows.reshape(len(rows), -1, layout.size)
    count = layout.scales
    scales = blocks[:, :, :count].reshape(len(rows), -1)
    codes = blocks[:, :, count:].reshape(*scales.shape, -1)
    found = rescale_(codes, scales, factors, layout.kind)
    blocks[:, :, :count] = scales.reshape(*blocks.shape[:2], count)
    blocks[:, :, count:] = codes.reshape(*blocks.shape[:2], -1)
    return found
