"""The interval that may be looked at every day: against its definition, and by simulation."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.integrate import quad

from benchmarks.daily_looks import TRAFFIC, look_daily, table
from sordino.evaluation.statistics import LEVEL
from sordino.replaying import sequential
from sordino.replaying.sequential import boundary, confidence_sequence, log_mixture

RHO = sequential._RHO


def mixed_by_quadrature(total, variance):
    """The mixture by its definition: a gamma distribution of 1 − λ, cut off at 1."""

    def density(y):
        return y ** (RHO - 1) * np.exp(-RHO * y)

    def integrand(y):
        rate = 1 - y
        return np.exp(rate * total + (np.log(y) + rate) * variance) * density(y)

    return quad(integrand, 0, 1, epsabs=0)[0] / quad(density, 0, 1, epsabs=0)[0]


@given(st.floats(-8, 30), st.floats(0, 60))
def test_the_mixture_is_the_integral_that_it_stands_for(total, variance):
    expected = mixed_by_quadrature(total, variance)
    assert np.exp(log_mixture(total, variance)) == pytest.approx(expected, rel=1e-6)


@given(
    st.lists(st.tuples(st.floats(-1, 1), st.floats(0.01, 1)), min_size=1, max_size=5),
    st.floats(-8, 30),
    st.floats(0, 200),
)
def test_one_more_value_never_raises_it_on_average(outcomes, total, variance):
    """The whole promise: from anywhere, whatever the next value's distribution on [−1, 1]."""
    values, weights = np.array(outcomes).T
    weights = weights / weights.sum()
    moved = log_mixture(total + values - weights @ values, variance + values**2)
    assert weights @ np.exp(moved - log_mixture(total, variance)) <= 1 + 1e-9


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=20))
def test_the_boundary_is_where_the_mixture_is_as_large_as_the_level_allows(variances):
    there = boundary(np.array(variances))
    for total, variance in zip(there, variances, strict=True):
        assert np.exp(log_mixture(total, variance)) == pytest.approx(2 / (1 - LEVEL), rel=1e-5)
    order = np.argsort(variances)
    assert (np.diff(there[order]) >= 0).all()


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=60), st.data())
def test_the_interval_is_the_mean_with_room_on_both_sides(values, data):
    looks = data.draw(st.lists(st.integers(1, len(values)), min_size=1, unique=True).map(sorted))
    found = confidence_sequence(np.array(values), np.array(looks))
    mirrored = confidence_sequence(-np.array(values), np.array(looks))
    np.testing.assert_allclose(found, -mirrored[:, [0, 2, 1]], atol=1e-12)
    for (mean, low, high), count in zip(found, looks, strict=True):
        assert mean == pytest.approx(np.mean(values[:count]), abs=1e-12)
        assert -1 <= low <= mean <= high <= 1
        width = boundary(np.array([np.square(values[:count]).sum()]))[0] / count
        assert low == pytest.approx(max(-1, mean - width), abs=1e-9)


def test_its_price_is_what_the_docs_say():
    differing = np.arange(30.0, 10_001.0)
    usual = 1.96 * np.sqrt(differing)
    assert (boundary(differing) / usual).min() > 1.65
    assert (boundary(differing) / usual).max() < 1.95
    few = np.arange(1.0, 30.0)
    assert few[boundary(few) < few].min() == 17


def test_what_is_seen_does_not_depend_on_how_often_one_looks():
    values = np.random.default_rng(0).choice([-1.0, 0.0, 1.0], p=[0.1, 0.85, 0.05], size=500)
    every = confidence_sequence(values, np.arange(1, 501))
    np.testing.assert_array_equal(
        every[49::50], confidence_sequence(values, np.arange(50, 501, 50))
    )


@given(st.floats(1.01, 100))
def test_other_values_are_refused(value):
    assume(np.isfinite(value))
    with pytest.raises(ValueError, match="from -1 to 1"):
        confidence_sequence(np.array([0, -value]), np.array([2]))
    with pytest.raises(ValueError, match="from -1 to 1"):
        confidence_sequence(np.array([np.nan]), np.array([1]))


@pytest.mark.parametrize("traffic", TRAFFIC, ids=lambda kind: kind.name)
def test_looked_at_daily_it_is_wrong_less_often_than_its_level(traffic):
    seen = look_daily(traffic, runs=400 if traffic.days > 30 else 1000, seed=1)
    assert seen.upper() < 1 - LEVEL
    assert seen.wrong_usual / seen.runs > 3 * (1 - LEVEL)  # the simulation can tell


def test_an_effect_is_found_while_it_is_worth_finding():
    by_name = {kind.name: kind for kind in TRAFFIC}
    seen = look_daily(by_name["10 % against 5 %"], runs=300, seed=2)
    assert np.median(seen.found) <= 10
    assert np.isfinite(seen.found).mean() > 0.95


def test_the_table_has_a_line_for_each_kind_of_traffic():
    lines = table(runs=20, seed=0, kinds=TRAFFIC[:2]).splitlines()
    assert lines[0].startswith("20 runs each, seed 0")
    assert [line.split(" | ")[0] for line in lines[4:]] == [f"| {k.name}" for k in TRAFFIC[:2]]
