"""Intervals by the paired bootstrap, with a rule for every case in which it fails.

Items (prompts, texts) are drawn with replacement: both arms of an item together, and all of its
continuations together, so that correlations between arms and between continuations are kept. The
interval is the percentile one (Efron and Tibshirani 1993, chapter 13).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

LEVEL = 0.95
RESAMPLES = 10_000
_FEWEST_OF_GROUP = 10
"""Intervals of a gap between smaller groups hold the truth too seldom."""
# How many numbers are drawn at once while resampling: 32 MiB.
_PIECE = 2**22
# Resamples of at most this many items are cached: 40 MiB.
_KEPT = 2_000
# A product of two variances of scores from 0 to 1 that is no larger is a rounding error.
_ROUNDING = 1e-20


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval.

    Args:
        value: The figure; None where it is undefined (a division by 0) or infinite.
        low: The interval's lower end; None where there is no bound.
        high: Its upper end; None where there is no bound.
    """

    value: float | None
    low: float | None
    high: float | None

    @property
    def excludes_0(self) -> bool:
        """Whether the interval lies on one side of 0."""
        return (self.low is not None and self.low > 0) or (self.high is not None and self.high < 0)


@dataclass(frozen=True)
class Comparison:
    """One figure in both arms.

    Args:
        before: In the arm before; None if there is one arm only, as are the last two.
        after: In the arm after.
        difference: After minus before.
        ratio: One divided by the other; the measure says which way.
    """

    before: Estimate | None
    after: Estimate
    difference: Estimate | None
    ratio: Estimate | None


def bootstrap(
    columns: Floats,
    statistic: Callable[[Floats], Floats],
    seed: int,
) -> tuple[Floats, Floats]:
    """A statistic of column means, and its replicates over resampled rows.

    Args:
        columns: float64 [items, columns]; a row holds everything that belongs to an item.
        statistic: Turns means [..., columns] into figures [..., figures].
        seed: Of the resampling.

    Returns:
        The figures [figures], and their replicates [RESAMPLES, figures].
    """
    items = len(columns)
    draw = _kept_resamples if items <= _KEPT else _resamples
    drawn = draw(items, seed, RESAMPLES)
    endless = ~np.isfinite(columns)
    finite = np.where(endless, 0, columns).T.copy()
    pieces = []
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        for counts in drawn:
            drawings = counts.astype(np.float64)
            # Not `@`: BLAS's rounding may depend on how many columns and threads there are.
            sums = np.stack([np.einsum("ij,j->i", drawings, of) for of in finite], axis=1)
            # Infinities are added separately: their product with a count of 0 is not a number.
            for row, column in np.argwhere(endless):
                sums[counts[:, row] > 0, column] += columns[row, column]
            pieces.append(sums / items)
        return statistic(columns.mean(axis=0)), statistic(np.concatenate(pieces))


def _resamples(items: int, seed: int, resamples: int) -> Iterator[NDArray[np.uint16]]:
    """How often each resample holds each item, in pieces of [some resamples, items]."""
    generator = np.random.default_rng(seed)
    at_once = max(1, _PIECE // items)
    for start in range(0, resamples, at_once):
        rows = min(at_once, resamples - start)
        chosen = generator.integers(items, size=(rows, items))
        chosen += items * np.arange(rows)[:, None]
        counts = np.bincount(chosen.ravel(), minlength=rows * items).reshape(rows, items)
        yield counts.astype(np.uint16)


@lru_cache(maxsize=2)
def _kept_resamples(items: int, seed: int, resamples: int) -> tuple[NDArray[np.uint16], ...]:
    """The same, cached: most figures of an evaluation are over the same prompts."""
    return tuple(_resamples(items, seed, resamples))


def percentile_interval(replicates: Floats) -> tuple[float, float]:
    """The two ends between which the middle 95 % of the replicates lie.

    A replicate that is not a number (0 divided by 0) counts as the lowest for the lower end and as
    the highest for the upper one, so the interval can only become wider.
    """
    tail = (1 - LEVEL) / 2
    count = len(replicates)
    lowest = np.sort(np.where(np.isnan(replicates), -np.inf, replicates))
    highest = np.sort(np.where(np.isnan(replicates), np.inf, replicates))
    below = int(tail * count)
    return float(lowest[below]), float(highest[count - 1 - below])


def exact_share_interval(share: float, items: int) -> tuple[float, float]:
    """Clopper and Pearson's interval for a share that is the same in every item.

    The bootstrap sees no variation there and would claim certainty. Items are counted, not
    continuations, which keeps the interval on the safe side.
    """
    from scipy import stats  # late: it is slow to import

    result = stats.binomtest(round(share * items), items).proportion_ci(LEVEL, method="exact")
    return float(result.low), float(result.high)


def compare_shares(before: Floats | None, after: Floats, seed: int) -> Comparison:
    """Compare the mean of per-item shares between the arms; see `compare_mean_shares`.

    Args:
        before: float64 [items] in [0, 1], or None.
        after: float64 [items] in [0, 1], of the same items.
        seed: Of the resampling.
    """
    arms = [after] if before is None else [before, after]
    return compare_mean_shares([np.stack(arms, axis=1)], seed)


def compare_mean_shares(tables: Sequence[Floats], seed: int) -> Comparison:
    """Compare the mean of several tables' mean shares between the arms.

    The ratio is before divided by after: "so many times fewer". Each table's items are resampled
    independently of the others'. Where an arm does not vary, the ends of its interval are the means
    of the tables' exact ones (`exact_share_interval`), and the ends of the difference and the ratio
    come from the arms' own intervals, which is wider than needed and never too narrow. Where the
    arms vary and all items of a table have the same difference, items with another difference may
    exist without having been drawn. The largest share of them that is consistent with the draw,
    averaged over the tables, bounds the error of the difference; the ratio's ends follow from that.

    Args:
        tables: Each float64 [items, arms] in [0, 1]; the arms are before and after, or one alone.
        seed: Of the resampling.
    """
    drawn = [bootstrap(table, lambda means: means, seed + i) for i, table in enumerate(tables)]
    values = np.mean([means for means, _ in drawn], axis=0)
    replicates = np.mean([each for _, each in drawn], axis=0)
    varies = np.any([np.ptp(table, axis=0) > 0 for table in tables], axis=0)
    ends = [
        percentile_interval(replicates[:, i]) if varies[i] else _mean_of_exact(tables, i)
        for i in range(len(values))
    ]
    arms = [_with_ends(value, its) for value, its in zip(values, ends, strict=True)]
    if len(arms) == 1:
        return Comparison(None, arms[0], None, None)
    with np.errstate(divide="ignore", invalid="ignore"):
        before, after = replicates.T
        ratio = values[0] / values[1]
        if varies.all() and not any(np.ptp(table[:, 1] - table[:, 0]) for table in tables):
            unseen = np.mean([exact_share_interval(0, len(table))[1] for table in tables])
            changed = values[1] - values[0]
            difference_ends = changed - unseen, changed + unseen
            least, most = np.clip(values[0] + np.array(difference_ends), 0, 1)
            ratio_ends = values[0] / most, values[0] / least
        elif varies.all():
            difference_ends = percentile_interval(after - before)
            ratio_ends = percentile_interval(before / after)
        else:
            (b_low, b_high), (a_low, a_high) = np.array(ends)
            difference_ends = a_low - b_high, a_high - b_low
            ratio_ends = b_low / a_high, b_high / a_low
    difference = _with_ends(values[1] - values[0], difference_ends)
    return Comparison(arms[0], arms[1], difference, _with_ends(ratio, ratio_ends))


def _mean_of_exact(tables: Sequence[Floats], arm: int) -> tuple[float, float]:
    """The means of the ends of the exact intervals of an arm that varies in no table."""
    ends = [exact_share_interval(table[0, arm], len(table)) for table in tables]
    low, high = np.mean(ends, axis=0)
    return float(low), float(high)


def compare(
    before: Floats | None,
    after: Floats,
    statistic: Callable[[Floats], Floats],
    seed: int,
    *,
    ratio_of: Literal["before/after", "after/before"] = "after/before",
) -> Comparison:
    """Compare a statistic of column means between the arms; one item has no interval.

    Args:
        before: float64 [items, columns]; a row holds everything that belongs to an item; or None.
        after: The same of the other arm, for the same items.
        statistic: Turns means [..., columns] into a figure [...].
        seed: Of the resampling.
        ratio_of: Which way the ratio goes.
    """
    arms = [after] if before is None else [before, after]
    width = after.shape[1]

    def figures(means: Floats) -> Floats:
        found = [statistic(means[..., i : i + width]) for i in range(0, means.shape[-1], width)]
        if len(found) == 2:
            first, second = found
            found.append(second - first)
            found.append(first / second if ratio_of == "before/after" else second / first)
        return np.stack(found, axis=-1)

    value, replicates = bootstrap(np.concatenate(arms, axis=1), figures, seed)
    if len(after) == 1:
        replicates = np.full_like(replicates, np.nan)
    estimates = [estimate(v, replicates[:, i]) for i, v in enumerate(value)]
    if before is None:
        return Comparison(None, estimates[0], None, None)
    return Comparison(*estimates)


def first_mean(means: Floats) -> Floats:
    """The first column's mean."""
    return means[..., 0]


def ratio_of_means(means: Floats) -> Floats:
    """The first column's mean divided by the second's: Σ first / Σ second over the items."""
    return np.asarray(means[..., 0] / means[..., 1])


def corpus_perplexity(means: Floats) -> Floats:
    """Perplexity of a corpus from its texts' mean negative log-likelihood and mean length."""
    return np.asarray(np.exp(ratio_of_means(means)))


def compare_gaps(
    before: Floats | None, after: Floats, groups: Sequence[Sequence[int]], seed: int
) -> Comparison | None:
    """Compare the gap between the groups of items with the largest and the smallest mean.

    The largest of several means less the smallest is above 0 even if all groups are alike: chance
    alone separates them. So the two groups are chosen on one half of the items and compared on the
    other half; then the halves change places, and the gap is the mean of the two (cross-fitting).
    It can be below 0; if the groups do not differ its expectation is 0, and if they do it is at
    most the true gap. Items are resampled within each group and half. There is no interval if the
    items of every such cell are equal, or if a group has fewer than 10: resampling so few makes
    intervals too narrow. There is no ratio, because a gap may be 0.

    Args:
        before: float64 [items], or None.
        after: The same of the other arm, for the same items.
        groups: The items of each group; a group of one item is left out.
        seed: Of the resampling.

    Returns:
        None where there are not two groups of two items or more.
    """
    values = np.stack([after] if before is None else [before, after], axis=1)
    cells = [(members[::2], members[1::2]) for members in groups if len(members) > 1]
    if len(cells) < 2:
        return None
    drawn = [
        bootstrap(values[list(members)], lambda means: means, seed + number)
        for number, members in enumerate(chain.from_iterable(cells))
    ]
    shape = len(cells), 2, values.shape[1]
    means = np.stack([mean for mean, _ in drawn]).reshape(shape)
    replicates = np.stack([each for _, each in drawn], axis=1).reshape(RESAMPLES, *shape)
    found, drawn_gaps = _gap(means), _gap(replicates)
    drawn_gaps[:, np.ptp(replicates, axis=0).max(axis=(0, 1)) == 0] = np.nan
    if min(len(one) + len(other) for one, other in cells) < _FEWEST_OF_GROUP:
        drawn_gaps[:] = np.nan
    arms = [estimate(float(gap), drawn_gaps[:, i]) for i, gap in enumerate(found)]
    if before is None:
        return Comparison(None, arms[0], None, None)
    moved = estimate(float(found[1] - found[0]), drawn_gaps[:, 1] - drawn_gaps[:, 0])
    return Comparison(arms[0], arms[1], moved, Estimate(None, None, None))


def compare_perplexities(
    before: tuple[Floats, Floats] | None, after: tuple[Floats, Floats], seed: int
) -> tuple[Comparison, Comparison]:
    """Compare perplexity between the arms: the mean over texts, and that of the corpus.

    The mean is that of exp(nll / tokens) over the texts; the corpus's is exp(Σ nll / Σ tokens). The
    ratio is after divided by before. One text has no interval.

    Args:
        before: Each text's summed negative log-likelihood in nats and its number of scored tokens,
            both float64 [texts]; or None.
        after: The same of the other arm, for the same texts.
        seed: Of the resampling.
    """
    arms = [after] if before is None else [before, after]
    corpora = [np.stack(arm, axis=1) for arm in arms]
    with np.errstate(over="ignore"):
        texts = [np.exp(corpus[:, :1] / corpus[:, 1:]) for corpus in corpora]
    mean, corpus = (
        compare(columns[0] if before is not None else None, columns[-1], statistic, seed)
        for columns, statistic in ((texts, first_mean), (corpora, corpus_perplexity))
    )
    return mean, corpus


def worst_of(values: Floats, draws: int) -> Floats:
    """The expected largest of `draws` of each row's values: an unbiased estimate from all of them.

    The mean of the maximum over all subsets of that size, which is a U-statistic (Hoeffding 1948):
    the i-th smallest of n values is the largest of C(i − 1, k − 1) of the C(n, k) subsets.

    Args:
        values: float64 [items, n].
        draws: k, from 1 to n.

    Returns:
        float64 [items].
    """
    ordered, n = np.sort(values, axis=1), values.shape[1]
    weights = [math.comb(i, draws - 1) / math.comb(n, draws) for i in range(n)]
    return np.asarray(ordered @ np.array(weights))


def any_of(flags: NDArray[np.bool_], draws: int) -> Floats:
    """An unbiased estimate of the probability that one of `draws` of each row's flags is set.

    1 − C(n − c, k) / C(n, k) where c of n are set (Chen et al. 2021, arXiv 2107.03374, section
    2.1): the share of the subsets of that size in which at least one is.

    Args:
        flags: bool [items, n].
        draws: k, from 1 to n.

    Returns:
        float64 [items].
    """
    n = flags.shape[1]
    by_count = [1 - math.comb(n - c, draws) / math.comb(n, draws) for c in range(n + 1)]
    return np.array(by_count)[flags.sum(axis=1)]


def cohens_kappa(means: Floats) -> Floats:
    """Cohen's kappa (1960) of two judges' verdicts, from the means of (a, b, a·b).

    Agreement beyond chance, relative to the most there could be: (p − e) / (1 − e) with
    p = 1 − a − b + 2·ab and e = a·b + (1 − a)·(1 − b).
    """
    a, b, both = means[..., 0], means[..., 1], means[..., 2]
    chance = a * b + (1 - a) * (1 - b)
    return np.asarray((1 - a - b + 2 * both - chance) / (1 - chance))


def pearson(means: Floats) -> Floats:
    """Pearson's correlation, from the means of (x, y, x·x, y·y, x·y)."""
    x, y, xx, yy, xy = (means[..., i] for i in range(5))
    spread = (xx - x * x) * (yy - y * y)
    # Scores that do not vary have no correlation.
    return np.asarray((xy - x * y) / np.sqrt(np.where(spread > _ROUNDING, spread, np.nan)))


def _gap(means: Floats) -> Floats:
    """The gap between groups, [..., arms], from their means [..., groups, halves, arms]."""
    others = means[..., ::-1, :]  # each half is compared in the groups that the other chose
    largest, smallest = (
        np.take_along_axis(means, np.expand_dims(choice, -3), axis=-3)
        for choice in (others.argmax(axis=-3), others.argmin(axis=-3))
    )
    return np.asarray((largest - smallest).mean(axis=(-3, -2)))


def estimate(value: float, replicates: Floats) -> Estimate:
    """A figure with the percentile interval of its replicates, float64 [resamples]."""
    return _with_ends(value, percentile_interval(replicates))


def _with_ends(value: float, ends: tuple[float, float]) -> Estimate:
    """An estimate from three numbers, None for those that are not finite."""
    return Estimate(*(float(each) if np.isfinite(each) else None for each in (value, *ends)))
