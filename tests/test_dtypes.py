"""The table of number types, against torch's own rounding of every value."""

import doctest

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sordino.models import dtypes

ROUNDED = ["F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ"]
NUMBERS = st.floats(2.0**-40, 240, width=64)


def test_the_examples_hold():
    assert doctest.testmod(dtypes).failed == 0


@pytest.mark.parametrize("name", ROUNDED)
def test_the_rounding_unit_and_the_smallest_error_hold_and_are_reached(name):
    unit, least = dtypes.rounding_unit(name), dtypes.smallest_error(name)

    @given(NUMBERS)
    def holds(number):
        rounded = torch.tensor(number, dtype=torch.float64).to(dtypes.TORCH_DTYPES[name])
        assert abs(rounded.double().item() - number) <= max(unit * number, least)

    holds()
    halfway = torch.tensor(1 + unit, dtype=torch.float64).to(dtypes.TORCH_DTYPES[name])
    assert abs(halfway.double().item() - (1 + unit)) == unit
    nothing = torch.tensor(least, dtype=torch.float64)
    if name not in ("F32", "BF16"):  # whose smallest numbers torch may flush to zero
        assert nothing.to(dtypes.TORCH_DTYPES[name]).double().item() in (0, 2 * least)


@pytest.mark.parametrize("name", ["I8", "BOOL", "C64", "F4", "Q4_K"])
def test_other_types_have_no_rounding(name):
    assert dtypes.rounding_unit(name) is None
    assert dtypes.smallest_error(name) == 0


@pytest.mark.parametrize("name", dtypes.TORCH_DTYPES)
def test_names_and_sizes_are_torchs(name):
    dtype = dtypes.TORCH_DTYPES[name]
    assert dtypes.name_of(dtype) == name
    assert dtypes.BITS[name] == 8 * torch.empty(1, dtype=dtype).nbytes
