"""Intervals by the paired bootstrap, with a rule for every case in which it fails.

Items (prompts, texts) are drawn with replacement, both arms of an item together and all of an
item's continuations together, so that what the arms share and what an item's continuations share is
kept. The interval is the percentile one (Efron and Tibshirani 1993, chapter 13).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Floats = NDArray[np.float64]

LEVEL = 0.95
RESAMPLES = 10_000
# Values gathered at once while resampling: 32 MiB.
_PIECE = 2**22


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval.

    Args:
        value: The figure; None where it is not defined (a ratio to nothing) or has no end.
        low: The interval's lower end; None where there is no bound.
        high: Its upper end; None where there is no bound.
    """

    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Comparison:
    """One figure in both arms.

    Args:
        before: In the arm before; None when there is one arm only, as are the last two.
        after: In the arm after.
        difference: After minus before.
        ratio: The one through the other; which way is the measure's to say.
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
        columns: float64 [items, columns]; a row holds all that belongs to an item.
        statistic: Turns means [..., columns] into figures [..., figures].
        seed: Of the resampling.

    Returns:
        The figures [figures], and their replicates [RESAMPLES, figures].
    """
    items = len(columns)
    generator = np.random.default_rng(seed)
    at_once = max(1, _PIECE // columns.size)
    means = np.empty((RESAMPLES, columns.shape[1]))
    for start in range(0, RESAMPLES, at_once):
        stop = min(start + at_once, RESAMPLES)
        chosen = generator.integers(items, size=(stop - start, items))
        means[start:stop] = columns[chosen].mean(axis=1)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return statistic(columns.mean(axis=0)), statistic(means)


def percentile_interval(replicates: Floats) -> tuple[float, float]:
    """The two ends between which the middle 95 % of the replicates lie.

    A replicate that is not a number (0 through 0) says nothing, so it counts as the lowest for the
    lower end and as the highest for the upper one: the interval can only become wider.
    """
    tail = (1 - LEVEL) / 2
    count = len(replicates)
    lowest = np.sort(np.where(np.isnan(replicates), -np.inf, replicates))
    highest = np.sort(np.where(np.isnan(replicates), np.inf, replicates))
    below = int(tail * count)
    return float(lowest[below]), float(highest[count - 1 - below])


def exact_share_interval(share: float, items: int) -> tuple[float, float]:
    """Clopper and Pearson's interval for a share that is the same in every item.

    The bootstrap sees no variation there and would claim certainty, most of all where nothing was
    found. Counting items, and not continuations, keeps the interval on the safe side.
    """
    result = stats.binomtest(round(share * items), items).proportion_ci(LEVEL, method="exact")
    return float(result.low), float(result.high)


def compare_shares(before: Floats | None, after: Floats, seed: int) -> Comparison:
    """Compare the mean of per-item shares between the arms.

    The ratio is before through after: "so many times fewer". Where an arm does not vary over the
    items, its interval is the exact one (`exact_share_interval`), and the difference and the ratio
    take their ends from the arms' own intervals, which is wider than needed and never too narrow.

    Args:
        before: float64 [items] in [0, 1], or None.
        after: float64 [items] in [0, 1], of the same items.
        seed: Of the resampling.
    """
    if before is None:
        value, replicates = bootstrap(after[:, None], lambda means: means, seed)
        return Comparison(None, _share(after, float(value[0]), replicates[:, 0]), None, None)
    value, replicates = bootstrap(np.stack([before, after], axis=1), _shares_compared, seed)
    arms = [_share(arm, float(value[i]), replicates[:, i]) for i, arm in enumerate((before, after))]
    if np.ptp(before) > 0 and np.ptp(after) > 0:
        difference = _estimate(value[2], replicates[:, 2])
        ratio = _estimate(value[3], replicates[:, 3])
    else:
        (b_low, b_high), (a_low, a_high) = [_ends(arm) for arm in arms]
        difference = Estimate(float(value[2]), a_low - b_high, a_high - b_low)
        ratio = Estimate(
            _finite(float(value[3])), b_low / a_high, b_high / a_low if a_low > 0 else None
        )
    return Comparison(arms[0], arms[1], difference, ratio)


def compare_perplexities(
    before: tuple[Floats, Floats] | None, after: tuple[Floats, Floats], seed: int
) -> tuple[Comparison, Comparison]:
    """Compare perplexity between the arms: the mean over texts, and that of the corpus.

    The mean is that of exp(nll / tokens) over the texts; the corpus's is exp(Σ nll / Σ tokens). The
    ratio is after through before. One text has no interval.

    Args:
        before: Each text's summed negative log-likelihood in nats and its number of scored tokens,
            both float64 [texts]; or None.
        after: The same of the other arm, for the same texts.
        seed: Of the resampling.
    """
    arms = [after] if before is None else [before, after]
    with np.errstate(over="ignore"):
        columns = [column for nll, tokens in arms for column in (np.exp(nll / tokens), nll, tokens)]
    value, replicates = bootstrap(np.stack(columns, axis=1), _perplexities, seed)
    if len(after[0]) == 1:
        replicates = np.full_like(replicates, np.nan)
    figures = [_estimate(v, replicates[:, i]) for i, v in enumerate(value)]
    if before is None:
        return Comparison(None, figures[0], None, None), Comparison(None, figures[1], None, None)
    mean, corpus = figures[:4], figures[4:]
    return Comparison(*mean), Comparison(*corpus)


def _shares_compared(means: Floats) -> Floats:
    before, after = means[..., 0], means[..., 1]
    return np.stack([before, after, after - before, before / after], axis=-1)


def _perplexities(means: Floats) -> Floats:
    """Both perplexities, from each arm's means of (perplexity, nll, tokens), and compared."""
    arms = [means[..., i : i + 3] for i in range(0, means.shape[-1], 3)]
    kinds = [
        [arm[..., 0] for arm in arms],
        [np.exp(arm[..., 1] / arm[..., 2]) for arm in arms],
    ]
    if len(arms) == 1:
        return np.stack([kind[0] for kind in kinds], axis=-1)
    figures = []
    for before, after in kinds:
        figures += [before, after, after - before, after / before]
    return np.stack(figures, axis=-1)


def _share(arm: Floats, value: float, replicates: Floats) -> Estimate:
    if np.ptp(arm) == 0:
        return Estimate(value, *exact_share_interval(value, len(arm)))
    return _estimate(value, replicates)


def _estimate(value: float, replicates: Floats) -> Estimate:
    low, high = percentile_interval(replicates)
    return Estimate(_finite(float(value)), _finite(low), _finite(high))


def _ends(estimate: Estimate) -> tuple[float, float]:
    """The ends of an interval that is known to have both."""
    if estimate.low is None or estimate.high is None:
        raise ValueError("a share's interval has both ends")
    return estimate.low, estimate.high


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
