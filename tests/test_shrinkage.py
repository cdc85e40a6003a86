"""Shrinkage: what noisy measurements are worth, against known truths."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sordino.interventions.shrinkage import shrunk


def measured(seed, share, spread, count=20_000):
    """Truths, a share of them not 0, and measurements with errors of different sizes."""
    generator = np.random.default_rng(seed)
    errors = generator.uniform(0.1, 10, count)
    truths = errors * spread * generator.standard_normal(count) * (generator.random(count) < share)
    return truths, truths + errors * generator.standard_normal(count), errors


@pytest.mark.parametrize("share", [0.01, 0.1, 1.0])
@pytest.mark.parametrize("spread", [0.5, 3.0, 10.0])
def test_it_is_close_to_the_posterior_mean_that_knows_the_truth(share, spread):
    truths, values, errors = measured(0, share, spread)
    scores = values / errors
    # Bayes' rule for a truth that is 0 or normal with a known spread.
    wide = 1 + spread**2
    against = (1 - share) * np.sqrt(wide) / share * np.exp(-0.5 * scores**2 * (1 - 1 / wide))
    best = values / (1 + against) * (spread**2 / wide)
    found = shrunk(values, errors**2)
    loss, least = (np.mean(((one - truths) / errors) ** 2) for one in (found, best))
    assert loss <= 1.02 * least + 1e-3
    assert loss < np.mean(((values - truths) / errors) ** 2)


def test_noise_alone_comes_to_nothing():
    generator = np.random.default_rng(1)
    errors = generator.uniform(0.1, 10, 50_000)
    found = shrunk(errors * generator.standard_normal(50_000), errors**2)
    assert np.mean((found / errors) ** 2) < 0.002


@given(st.integers(0, 2**32 - 1), st.floats(1e-12, 1e12), st.floats(0, 40))
def test_signs_stay_sizes_shrink_and_units_do_not_matter(seed, unit, spread):
    _, values, errors = measured(seed, 0.3, spread, 200)
    found = shrunk(values, errors**2)
    assert (found * values >= 0).all()
    assert (np.abs(found) <= np.abs(values)).all()
    np.testing.assert_allclose(shrunk(values * unit, (errors * unit) ** 2), found * unit, rtol=1e-6)
    np.testing.assert_allclose(shrunk(-values, errors**2), -found)


def test_what_was_measured_exactly_stays():
    assert shrunk(np.array([3.0, -2.0, 0.0]), np.zeros(3)).tolist() == [3.0, -2.0, 0.0]
    mixed = shrunk(np.array([3.0, 0.1, -0.2]), np.array([0.0, 1.0, 1.0]))
    assert mixed[0] == 3.0
    assert np.abs(mixed[1:]).max() < 0.2
