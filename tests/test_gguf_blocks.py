"""Scaled rows of blocks, held against the gguf package's own de-quantisation."""

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sordino.edits.fp4 import COARSE
from sordino.edits.gguf_blocks import KINDS, scale_rows_
from tiny_gguf import random_rows

HALF = 2.0**-11  # the rounding of a normal half-precision number
ONE_HALF_ULP = 2.0**-25  # that of a subnormal one, absolute
FLOATS = ("F32", "F16", "BF16")
TWO_SCALES = ("Q4_1", "Q5_1", "Q2_K", "Q4_K", "Q5_K")
HALVES = [kind for kind in KINDS if kind not in (*FLOATS, "MXFP4", "NVFP4")]


def values_of(kind: str, rows: np.ndarray) -> np.ndarray:
    """De-quantised rows in float64, by the gguf package."""
    number = gguf.GGMLQuantizationType[kind]
    return np.asarray(gguf.dequantize(rows.copy(), number), np.float64).reshape(len(rows), -1)


def unit_values(kind: str, rows: np.ndarray) -> tuple[np.ndarray, ...]:
    """What each weight is per unit of each of its scales: the derivative, which is exact."""
    parts = []
    for index in range(2 if kind in TWO_SCALES else 1):
        probe = rows.copy()
        set_scales(kind, probe, lambda at, index=index: 1.0 if at == index else 0.0)
        parts.append(values_of(kind, probe))
    return tuple(parts)


def set_scales(kind: str, rows: np.ndarray, value) -> None:
    """Give every block scale a value, in a way that shares nothing with the code under test."""
    blocks = rows.reshape(len(rows), -1, block_bytes(kind))
    for index, offset in enumerate(offsets(kind)):
        pair = np.array([value(index)], np.float16).view(np.uint8)
        if kind == "IQ1_M":
            bits = int(pair.view(np.uint16)[0])
            for word in range(4):
                high = offset + 2 * word + 1
                nibble = bits >> (4 * word) & 15
                blocks[:, :, high] = blocks[:, :, high] & 15 | nibble << 4
        else:
            blocks[:, :, offset : offset + 2] = pair


def block_bytes(kind: str) -> int:
    return gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]][1]


def offsets(kind: str) -> tuple[int, ...]:
    """Counted from a block's end where the scales stand there."""
    size = block_bytes(kind)
    at_the_end = {"Q2_K": (size - 4, size - 2), "Q3_K": (size - 2,), "Q6_K": (size - 2,)}
    at_the_end |= {"TQ1_0": (size - 2,), "TQ2_0": (size - 2,), "IQ1_M": (size - 8,)}
    return at_the_end.get(kind, (0, 2) if kind in TWO_SCALES else (0,))


factors_of_rows = st.lists(
    st.one_of(
        st.sampled_from([0.0, 1.0, 0.5, 2.0, -1.0]),
        st.floats(-4, 4, width=32),
        st.floats(2.0**-20, 1, width=32),
    ),
    min_size=1,
    max_size=3,
)
few = settings(max_examples=25)  # each has hundreds of weights


@pytest.mark.parametrize("kind", HALVES)
@few
@given(factors=factors_of_rows, seed=st.integers(0, 2**32 - 1), spread=st.integers(-24, 8))
def test_every_weight_is_the_factor_times_what_it_was(kind, factors, seed, spread):
    """To the rounding of its scales: a half's relative error, or half a step where subnormal."""
    rows = random_rows(kind, len(factors), 256, seed, scale=2.0**spread)
    factors = np.array(factors, np.float32)
    edited = rows.copy()
    rounding = scale_rows_(kind, edited, factors)
    before, after = values_of(kind, rows), values_of(kind, edited)
    allowed = np.zeros_like(before)
    for unit, scales in zip(unit_values(kind, rows), scales_of(kind, rows), strict=True):
        exact = np.abs(factors[:, None] * scales)
        error = np.maximum(exact * HALF, ONE_HALF_ULP)
        allowed += np.abs(unit) * np.repeat(error, unit.shape[1] // error.shape[1], axis=1)
    # The rest is what the package itself rounds, computing in float32.
    slack = 4e-7 * (np.abs(before * factors[:, None]) + np.abs(after)) + 4e-7 * parts(kind, edited)
    assert (np.abs(after - factors[:, None].astype(np.float64) * before) <= allowed + slack).all()
    assert not rounding.damaged
    assert not rounding.overflowed
    zero, one = factors == 0, factors == 1
    assert not after[zero].any()
    assert (edited[one] == rows[one]).all()
    # Nothing but the scales has changed.
    for rows_ in (rows, edited):
        set_scales(kind, rows_, lambda at: 1.0)
    assert (rows == edited).all()


def scales_of(kind: str, rows: np.ndarray) -> list[np.ndarray]:
    """The scales [rows, blocks] by type, read one byte at a time."""
    blocks = rows.reshape(len(rows), -1, block_bytes(kind)).astype(np.uint16)
    found = []
    for offset in offsets(kind):
        if kind == "IQ1_M":
            bits = sum((blocks[:, :, offset + 2 * word + 1] >> 4) << 4 * word for word in range(4))
        else:
            bits = blocks[:, :, offset] | blocks[:, :, offset + 1] << 8
        found.append(bits.astype(np.uint16).view(np.float16).astype(np.float64))
    return found


def parts(kind: str, rows: np.ndarray) -> np.ndarray:
    """The sizes of the terms of which a weight is the sum, which can cancel each other."""
    total = np.zeros_like(values_of(kind, rows))
    for unit, scales in zip(unit_values(kind, rows), scales_of(kind, rows), strict=True):
        total += np.abs(unit) * np.repeat(np.abs(scales), unit.shape[1] // scales.shape[1], axis=1)
    return total


@pytest.mark.parametrize("kind", HALVES)
def test_what_is_reported_is_what_happened(kind):
    """Scales from far below the smallest half up, counted again one by one."""
    rows = random_rows(kind, 3, 512, 1)
    for spread in (-8, -12, -20, -24):
        set_scales(kind, rows, lambda at, spread=spread: 1.3 * 2.0**spread)
        factors = np.array([0.7, 0.01, 1.0], np.float32)
        edited = rows.copy()
        rounding = scale_rows_(kind, edited, factors)
        before = np.array(scales_of(kind, rows))[:, :2]
        after = np.array(scales_of(kind, edited))[:, :2]
        exact = before * factors[:2, None].astype(np.float64)
        errors = np.abs(after - exact) / exact
        assert rounding.scales == exact.size
        assert rounding.largest == pytest.approx(errors.max())
        assert rounding.coarse == np.count_nonzero(errors > COARSE)
        assert rounding.zeroed == np.count_nonzero(after == 0)
    assert rounding.zeroed


@pytest.mark.parametrize("kind", HALVES)
def test_overflow_and_damage_are_counted(kind):
    rows = random_rows(kind, 2, 256, 2)
    set_scales(kind, rows, lambda at: 60000.0)
    found = scale_rows_(kind, rows.copy(), np.array([1.5, 1.0], np.float32))
    assert found.overflowed == found.scales > 0
    set_scales(kind, rows, lambda at: np.nan)
    assert scale_rows_(kind, rows, np.array([0.5, 1.0], np.float32)).damaged == 2 * found.scales


@pytest.mark.parametrize("kind", FLOATS)
@given(factors=factors_of_rows, seed=st.integers(0, 2**32 - 1))
def test_floats_are_multiplied_in_float32_and_rounded_once(kind, factors, seed):
    rows = random_rows(kind, len(factors), 64, seed)
    dtype = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[kind]
    factors = np.array(factors, np.float32)
    shifts = np.where(factors < 0.5, 0.25, 0).astype(np.float32)
    edited = rows.copy()
    scale_rows_(kind, edited, factors, shifts)
    before = torch.from_numpy(rows).view(dtype)
    expected = before.float() * torch.from_numpy(factors)[:, None]
    expected += torch.from_numpy(shifts)[:, None]
    assert torch.equal(torch.from_numpy(edited).view(dtype), expected.to(dtype))


def test_floats_that_overflow_are_counted():
    rows = np.full((2, 8), 50000.0, np.float16).view(np.uint8)
    found = scale_rows_("F16", rows, np.array([2.0, 1.0], np.float32))
    assert (found.overflowed, found.damaged) == (8, 0)
    assert scale_rows_("F16", rows, np.array([1.0, 0.5], np.float32)).damaged == 8


@given(factors=factors_of_rows, seed=st.integers(0, 2**32 - 1))
def test_mxfp4_takes_the_nearest_codes_of_the_nearest_exponent(factors, seed):
    """No exponent with any codes comes nearer to a block, by trying all of them."""
    rows = random_rows("MXFP4", len(factors), 64, seed)
    factors = np.array(factors, np.float32)
    edited = rows.copy()
    rounding = scale_rows_("MXFP4", edited, factors)
    before, after = values_of("MXFP4", rows), values_of("MXFP4", edited)
    exact = (before * factors[:, None].astype(np.float64)).reshape(len(rows), -1, 1, 32)
    codes = np.unique(values_of("MXFP4", every_code()))
    exponents = 2.0 ** np.arange(-90, 100)[:, None]
    grid = codes / codes[codes > 0].min() * exponents  # [exponents, codes]
    best = np.full(exact.shape[:2], np.inf)
    for values in grid:
        nearest = np.abs(exact - values[:, None]).min(axis=2)
        best = np.minimum(best, (nearest**2).sum(axis=2))
    found = ((after.reshape(len(rows), -1, 32) - exact[:, :, 0]) ** 2).sum(axis=2)
    size = (exact**2).sum(axis=(2, 3))
    assert (found <= best + 1e-9 * size).all()
    powers = np.isin(np.abs(factors), [0, 0.5, 1, 2, 4])
    assert (after[powers] == factors[powers, None] * before[powers]).all()
    largest = np.abs(exact).max(axis=(2, 3), initial=0)
    errors = np.abs(after.reshape(len(rows), -1, 32) - exact[:, :, 0]).max(axis=2)
    changed = np.broadcast_to((factors != 1)[:, None], largest.shape) & (largest > 0)
    assert rounding.scales == np.count_nonzero(changed)
    relative = errors / np.where(largest > 0, largest, 1)
    assert rounding.largest == pytest.approx(relative.max(), abs=1e-9)


@given(factors=factors_of_rows, seed=st.integers(0, 2**32 - 1))
def test_nvfp4_takes_the_nearest_codes_of_the_nearest_scale(factors, seed):
    """By trying all scales that there are, as the gguf package reads them."""
    rows = random_rows("NVFP4", len(factors), 64, seed)
    factors = np.array(factors, np.float32)
    edited = rows.copy()
    rounding = scale_rows_("NVFP4", edited, factors)
    before, after = values_of("NVFP4", rows), values_of("NVFP4", edited)
    exact = (before * factors[:, None].astype(np.float64)).reshape(-1, 16)
    probe = np.zeros((127, 36), np.uint8)
    probe[:, 0], probe[:, 4] = np.arange(127), 2  # one code that stands for 1
    sizes = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    best = np.full(len(exact), np.inf)
    for scale in values_of("NVFP4", probe)[:, 0]:
        grid = scale * np.concatenate([sizes, -sizes])
        best = np.minimum(best, (np.abs(exact[..., None] - grid).min(2) ** 2).sum(1))
    errors = ((after.reshape(-1, 16) - exact) ** 2).sum(1)
    assert np.all(errors <= best + 1e-9 * (exact**2).sum(1))
    assert (edited[factors == 1] == rows[factors == 1]).all()
    largest = np.abs(exact).max(1)
    off = np.abs(after.reshape(-1, 16) - exact).max(1)
    assert rounding.largest == pytest.approx(
        (off[largest > 0] / largest[largest > 0]).max(initial=0), abs=1e-6
    )


def every_code() -> np.ndarray:
    """A block of MXFP4 with all sixteen codes."""
    block = np.zeros((1, 17), np.uint8)
    block[0, 0] = 127
    block[0, 1:] = np.arange(16) | np.arange(16) << 4
    return block


def test_mxfp4_at_the_ends_of_its_exponents():
    rows = np.repeat(every_code(), 3, axis=0)
    rows[:, 0] = [2, 254, 255]
    tiny = scale_rows_("MXFP4", rows[:1].copy(), np.array([2.0**-30], np.float32))
    assert (tiny.zeroed, tiny.overflowed) == (1, 0)
    huge = scale_rows_("MXFP4", rows[1:2].copy(), np.array([2.0**30], np.float32))
    assert (huge.zeroed, huge.overflowed) == (0, 1)
    assert scale_rows_("MXFP4", rows[2:].copy(), np.array([0.5], np.float32)).damaged == 1


def test_other_types_are_refused():
    with pytest.raises(ValueError, match="I8"):
        scale_rows_("I8", np.zeros((1, 4), np.uint8), np.zeros(1, np.float32))
    with pytest.raises(ValueError, match="shift"):
        scale_rows_("Q8_0", np.zeros((1, 34), np.uint8), *2 * [np.ones(1, np.float32)])
