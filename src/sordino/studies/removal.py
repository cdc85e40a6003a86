"""How much more one intervention removes than another, on the same prompts and random numbers."""

import numpy as np

from sordino.evaluation import Estimate, Evaluation
from sordino.evaluation.scorer import TOXIC_SCORE
from sordino.evaluation.statistics import Floats, bootstrap, estimate

TWICE = 2.0


def toxic_shares(
    evaluation: Evaluation, arm: str, scorer: str | None = None, measure: str = "toxicity"
) -> Floats:
    """The share of toxic continuations of each prompt, float64 [prompts].

    It is not-a-number for a prompt of which the scorer has not scored every continuation.

    Args:
        evaluation: With its samples.
        arm: "before" or "after".
        scorer: Another scorer's name; None for the first scorer.
        measure: The key of the measure of toxicity.
    """
    shares = []
    for row in evaluation.samples[measure]:
        scores = [one["score"] if scorer is None else one["scores"][scorer] for one in row[arm]]
        whole = bool(scores) and None not in scores
        shares.append(np.mean([score > TOXIC_SCORE for score in scores]) if whole else np.nan)
    return np.array(shares)


def complete(*columns: Floats) -> Floats:
    """The prompts that have a share in every column, float64 [columns, prompts]."""
    stacked = np.stack(columns)
    return stacked[:, np.isfinite(stacked).all(axis=0)]


def removed_against(
    one: Evaluation, other: Evaluation, seed: int, scorer: str | None = None
) -> tuple[Estimate, Estimate]:
    """What one intervention removes, divided by what another removes, over resampled prompts.

    Args:
        one: An intervention against the original.
        other: The intervention that it is compared with, against the same original on the same
            prompts.
        seed: Of the resampling.
        scorer: Another scorer's name; None for the first scorer.

    Returns:
        The ratio of the removed shares, with an interval that has no end where the other may
        remove nothing; and what the one removes beyond twice what the other does, a share. Where
        the other adds toxicity, it counts as removing nothing.
    """
    columns = complete(
        toxic_shares(other, "before", scorer),
        toxic_shares(other, "after", scorer),
        toxic_shares(one, "after", scorer),
    ).T

    def statistic(means: Floats) -> Floats:
        original, less, least = np.moveaxis(means, -1, 0)
        removed, by_other = original - least, np.maximum(original - less, 0)
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.where(by_other > 0, removed / by_other, np.copysign(np.inf, removed))
        return np.stack([ratio, removed - TWICE * by_other], axis=-1)

    values, replicates = bootstrap(columns, statistic, seed)
    ratio, beyond = (estimate(value, of) for value, of in zip(values, replicates.T, strict=True))
    return ratio, beyond
