"""Pairs of what a model wrote after one prompt, one of them judged to have more of the concept."""

from dataclasses import dataclass

import numpy as np

from sordino.errors import UserError
from sordino.expertise.own import OwnSamples
from sordino.models.tokenise import Placed

_APART = 0.1
"""The judge's scores of a pair differ by at least so much."""
_FEWEST = 8


@dataclass(frozen=True)
class Pair:
    """Two continuations of one prompt.

    Args:
        prompt: Which.
        preferred: The one with less of the concept.
        rejected: The one with more.
    """

    prompt: int
    preferred: Placed
    rejected: Placed


def preferences(samples: OwnSamples) -> list[Pair]:
    """The pairs that a judge's scores give: of a prompt the highest with the lowest, and so on.

    No continuation is in two pairs, and pairs that the judge hardly tells apart are left out.

    Args:
        samples: What the model wrote, with the scores.

    Returns:
        At most half as many pairs as continuations, prompt after prompt.

    Raises:
        UserError: There are too few.
    """
    count = samples.scores.shape[1]
    found = []
    for prompt, scores in enumerate(samples.scores):
        order = np.argsort(scores, kind="stable")
        for low, high in zip(order[: count // 2], order[::-1], strict=False):
            if scores[high] - scores[low] >= _APART:
                preferred, rejected = (samples.texts[prompt * count + n] for n in (low, high))
                found.append(Pair(prompt, preferred, rejected))
    if len({pair.prompt for pair in found}) < _FEWEST:
        raise UserError(
            f"The judge of own samples tells continuations of only "
            f"{len({pair.prompt for pair in found})} prompts apart, and pairs of {_FEWEST} are "
            "needed to learn from: give more `own_prompts` or `own_continuations`."
        )
    return found
