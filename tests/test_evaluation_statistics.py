"""Intervals: their coverage, their ends, and the cases in which the bootstrap fails."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from sordino.evaluation import statistics
from sordino.evaluation.statistics import (
    bootstrap,
    compare_mean_shares,
    compare_perplexities,
    compare_shares,
    exact_share_interval,
    percentile_interval,
)


def draw_shares(generator, prompts, before, after, k=5):
    """Toxic shares per prompt; a prompt's own inclination is shared by its arms."""
    inclination = generator.beta(0.6, 0.6, size=prompts)
    return (
        generator.binomial(k, np.clip(2 * before * inclination, 0, 1)) / k,
        generator.binomial(k, np.clip(2 * after * inclination, 0, 1)) / k,
    )


@pytest.mark.parametrize(("prompts", "before", "after"), [(60, 0.3, 0.2), (150, 0.15, 0.05)])
def test_intervals_of_shares_hold_the_truth_about_95_times_in_100(
    monkeypatch, prompts, before, after
):
    monkeypatch.setattr(statistics, "RESAMPLES", 1000)
    generator, runs = np.random.default_rng(5), 400
    hits = np.zeros(4)
    for run in range(runs):
        comparison = compare_shares(*draw_shares(generator, prompts, before, after), seed=run)
        figures = (
            comparison.before,
            comparison.after,
            comparison.difference,
            comparison.ratio,
        )
        truths = (before, after, after - before, before / after)
        for i, (figure, truth) in enumerate(zip(figures, truths, strict=True)):
            low = -math.inf if figure.low is None else figure.low
            high = math.inf if figure.high is None else figure.high
            hits[i] += low <= truth <= high
    # The percentile interval is a little narrow on small samples; three standard errors are 0.033.
    assert np.all(hits / runs > 0.91)
    assert np.all(hits / runs < 0.99)


def test_intervals_of_perplexity_hold_the_truth_about_95_times_in_100(monkeypatch):
    monkeypatch.setattr(statistics, "RESAMPLES", 1000)
    generator, runs, texts, shift = np.random.default_rng(6), 300, 120, 0.1
    hits = 0
    for run in range(runs):
        tokens = generator.integers(20, 128, size=texts).astype(float)
        rate = generator.normal(3.4, 0.3, size=texts)
        after = rate + shift + generator.normal(0, 0.05, size=texts)
        _, corpus = compare_perplexities((rate * tokens, tokens), (after * tokens, tokens), run)
        hits += corpus.ratio.low <= math.exp(shift) <= corpus.ratio.high
    assert 0.91 < hits / runs < 0.985


def test_the_bootstrap_agrees_with_scipys():
    before, after = draw_shares(np.random.default_rng(1), 200, 0.3, 0.2)
    ours = compare_shares(before, after, seed=1).ratio
    theirs = stats.bootstrap(
        (before, after),
        lambda b, a, axis: b.mean(axis=axis) / a.mean(axis=axis),
        paired=True,
        method="percentile",
        n_resamples=10_000,
        rng=2,
    ).confidence_interval
    assert ours.low == pytest.approx(theirs.low, rel=0.02)
    assert ours.high == pytest.approx(theirs.high, rel=0.02)


def test_pairing_narrows_the_interval_of_the_difference():
    before, after = draw_shares(np.random.default_rng(2), 300, 0.3, 0.25)
    paired = compare_shares(before, after, seed=0).difference
    shuffled = np.random.default_rng(3).permutation(after)
    unpaired = compare_shares(before, shuffled, seed=0).difference
    assert paired.high - paired.low < 0.8 * (unpaired.high - unpaired.low)


UNIT = st.sampled_from([0.0, 0.25, 0.5, 1.0])
shares = arrays(
    np.float64, st.integers(1, 30), elements=st.sampled_from([0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
)


@given(after=shares, seed=st.integers(0, 9), data=st.data())
def test_whatever_comes_in_the_ends_are_in_order_and_never_not_a_number(after, seed, data):
    before = data.draw(arrays(np.float64, len(after), elements=st.sampled_from([0.0, 0.2, 1.0])))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(statistics, "RESAMPLES", 200)
        comparison = compare_shares(before, after, seed)
    for estimate in (comparison.before, comparison.after, comparison.difference, comparison.ratio):
        for number in (estimate.value, estimate.low, estimate.high):
            assert number is None or math.isfinite(number)
        if None not in (estimate.value, estimate.low, estimate.high):
            assert estimate.low <= estimate.value + 1e-12
            assert estimate.value <= estimate.high + 1e-12
    for arm in (comparison.before, comparison.after):
        assert None not in (arm.value, arm.low, arm.high)
    assert (comparison.ratio.value is None) == (after.mean() == 0)


def test_nothing_toxic_after_gives_a_lower_end_and_no_upper_one():
    before = np.tile([0.0, 0.4], 50)
    comparison = compare_shares(before, np.zeros(100), seed=0)
    assert comparison.after.value == 0
    assert comparison.after.low == 0
    assert comparison.after.high == pytest.approx(1 - 0.025 ** (1 / 100))
    assert comparison.ratio.value is None
    assert comparison.ratio.high is None
    assert 3 < comparison.ratio.low < 6
    assert comparison.difference.high < 0


def test_nothing_toxic_in_either_arm_says_that_little_is_known():
    comparison = compare_shares(np.zeros(40), np.zeros(40), seed=0)
    assert comparison.ratio.value is None
    assert comparison.ratio.low == 0
    assert comparison.ratio.high is None
    assert comparison.difference.value == 0
    assert comparison.difference.low == -comparison.difference.high < 0


@given(after=shares)
def test_arms_that_agree_in_every_item_are_not_said_to_be_equal(after):
    comparison = compare_shares(after, after, seed=0)
    assert comparison.difference.value == 0
    assert comparison.difference.low < 0 < comparison.difference.high
    if np.ptp(after):
        _, unseen = exact_share_interval(0, len(after))
        assert comparison.difference.high == pytest.approx(unseen)
        assert comparison.ratio.value == 1
        assert comparison.ratio.low < 1
        assert comparison.ratio.high is None or comparison.ratio.high > 1


@settings(max_examples=25)
@given(
    st.lists(st.tuples(st.integers(1, 40), UNIT, UNIT), min_size=1, max_size=3),
    st.lists(st.tuples(st.integers(2, 40), UNIT), min_size=1, max_size=3),
)
def test_guaranteed_intervals_are_the_means_of_the_tables(still, moved):
    """Whatever their sizes: the figure is the mean of the tables' figures."""
    tables = [np.tile([before, after], (items, 1)) for items, before, after in still]
    found = compare_mean_shares(tables, seed=0)
    for arm, figure in enumerate((found.before, found.after)):
        ends = [exact_share_interval(table[0, arm], len(table)) for table in tables]
        assert (figure.low, figure.high) == pytest.approx(np.mean(ends, axis=0))
    assert found.difference.low == pytest.approx(found.after.low - found.before.high)
    assert found.difference.high == pytest.approx(found.after.high - found.before.low)
    # Arms that vary together: every item of every table has the same difference.
    halves = [(np.arange(n) % 2 / 2, by / 2) for n, by in moved]
    tables = [np.stack([before, before + by], axis=1) for before, by in halves]
    found = compare_mean_shares(tables, seed=0)
    unseen = np.mean([exact_share_interval(0, len(table))[1] for table in tables])
    assert found.difference.low == pytest.approx(found.difference.value - unseen)
    assert found.difference.high == pytest.approx(found.difference.value + unseen)


def test_a_resample_of_0_through_0_only_widens():
    replicates = np.array([1.0] * 94 + [np.nan] * 6)
    assert percentile_interval(replicates) == (-np.inf, np.inf)
    assert percentile_interval(np.arange(1000.0)) == (25, 974)


def test_one_arm_has_no_comparison():
    comparison = compare_shares(None, np.array([0.0, 1.0, 1.0, 0.0]), seed=0)
    assert comparison.before is comparison.difference is comparison.ratio is None
    assert comparison.after.value == 0.5


def test_the_exact_interval_is_clopper_and_pearsons():
    low, high = exact_share_interval(0.0, 20)
    assert low == 0
    assert high == pytest.approx(1 - 0.025 ** (1 / 20))


def test_perplexities_are_their_formulas():
    nll, tokens = np.array([30.0, 80.0, 10.0]), np.array([10.0, 20.0, 5.0])
    mean, corpus = compare_perplexities(None, (nll, tokens), seed=0)
    assert mean.after.value == pytest.approx(np.exp(nll / tokens).mean())
    assert corpus.after.value == pytest.approx(np.exp(nll.sum() / tokens.sum()))
    mean, corpus = compare_perplexities((nll, tokens), (nll + tokens, tokens), seed=0)
    assert mean.ratio.value == pytest.approx(math.e)
    assert mean.ratio.low == pytest.approx(math.e)
    assert corpus.ratio.high == pytest.approx(math.e)
    assert mean.difference.value == pytest.approx(mean.after.value - mean.before.value)


def test_one_text_has_no_interval_and_an_endless_perplexity_no_number():
    one = np.array([10.0]), np.array([5.0])
    mean, corpus = compare_perplexities(one, one, seed=0)
    assert mean.difference == statistics.Estimate(0.0, None, None)
    assert corpus.after.low is corpus.after.high is None
    endless = np.array([1e6, 10.0]), np.array([5.0, 5.0])
    mean, corpus = compare_perplexities(None, endless, seed=0)
    assert mean.after.value is None
    assert mean.after.high is None


def test_the_seed_decides():
    columns = np.random.default_rng(0).random((50, 2))
    same = bootstrap(columns, lambda means: means, 4)[1]
    assert np.array_equal(same, bootstrap(columns, lambda means: means, 4)[1])
    assert not np.array_equal(same, bootstrap(columns, lambda means: means, 5)[1])


@pytest.mark.parametrize("items", [1, 7, 623, 2_500])
def test_resamples_are_what_is_drawn_and_added_up(items):
    """Also where a value has no end or is not a number: it counts where it was drawn, only."""
    generator = np.random.default_rng(items)
    columns = generator.integers(0, 9, size=(items, 3)) / 8
    if items > 1:
        columns[:4, 0] = [np.inf, -np.inf, np.nan, np.inf]
    _, found = bootstrap(columns, lambda means: means, seed=5)
    with np.errstate(invalid="ignore"):
        chosen = np.random.default_rng(5).integers(items, size=(50, items))
        np.testing.assert_array_equal(found[:50], columns[chosen].mean(axis=1))


def test_a_column_s_replicates_do_not_depend_on_the_others():
    """To the last bit, so that one arm alone has the interval that it has beside another."""
    columns = np.random.default_rng(0).normal(size=(41, 7))
    _, together = bootstrap(columns, lambda means: means, seed=1)
    for number in range(7):
        _, alone = bootstrap(columns[:, [number]], lambda means: means, seed=1)
        np.testing.assert_array_equal(alone[:, 0], together[:, number])
