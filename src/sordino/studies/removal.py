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

    Args:
        evaluation: With its samples.
        arm: "before" or "after".
        scorer: Another scorer's name; None for the first scorer.
        measure: The key of the measure of toxicity.
    """
    rows = evaluation.samples[measure]
    return np.array(
        [
            np.mean(
                [
                    (one["score"] if scorer is None else one["scores"][scorer]) > TOXIC_SCORE
                    for one in row[arm]
                    if one["score"] is not None
                ]
            )
            for row in rows
        ]
    )


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
        remove nothing; and what the one removes beyond twice what the other does, a share.
    """
    columns = np.stack(
        [
            toxic_shares(other, "before", scorer),
            toxic_shares(other, "after", scorer),
            toxic_shares(one, "after", scorer),
        ],
        axis=1,
    )

    def statistic(means: Floats) -> Floats:
        original, less, least = np.moveaxis(means, -1, 0)
        removed, by_other = original - least, original - less
        ratio = np.where(by_other > 0, removed / by_other, np.inf)
        return np.stack([ratio, removed - TWICE * by_other], axis=-1)

    values, replicates = bootstrap(columns, statistic, seed)
    ratio, beyond = (estimate(value, of) for value, of in zip(values, replicates.T, strict=True))
    return ratio, beyond
