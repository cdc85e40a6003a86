"""AUROC within strata, which the variable that defines the strata cannot confound.

A maximum over more tokens is larger, and sentences with a concept can be shorter or longer than
those without: plain AUROC mixes the concept with the length.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sordino.errors import UserError
from sordino.expertise.auroc import Responses, auroc

LENGTH = "length"
_LENGTH_CLASSES = 10


def length_classes(tokens: Sequence[int]) -> NDArray[np.int64]:
    """Ten classes of about equally many sentences, by their number of tokens.

    Sentences of equal length are in the same class, so there can be fewer classes.
    """
    edges = np.quantile(tokens, np.linspace(0, 1, _LENGTH_CLASSES + 1)[1:-1])
    return np.searchsorted(np.unique(edges), tokens, side="left")


def stratified_auroc(
    responses: Responses, labels: NDArray[np.bool_], strata: NDArray[np.int64]
) -> NDArray[np.float64]:
    """The AUROC over pairs within a stratum.

    The strata's Mann-Whitney statistics U are weighted by 1 / (sentences + 1), the locally most
    powerful choice (van Elteren, 1960), and normalised by their value at AUROC 1.

    Args:
        responses: float32, float16 or bfloat16 [sentences, neurons], on any device.
        labels: bool [sentences].
        strata: The stratum of each sentence, int64 [sentences].

    Returns:
        float64 [neurons] in [0, 1].

    Raises:
        UserError: No stratum has sentences of both classes.
    """
    total = np.zeros(responses.shape[1])
    largest = 0.0
    for stratum in np.unique(strata):
        members = np.flatnonzero(strata == stratum)
        positive = int(labels[members].sum())
        pairs = positive * (len(members) - positive)
        if pairs:
            weight = pairs / (len(members) + 1)
            total += weight * auroc(responses[members], labels[members])
            largest += weight
    if not largest:
        raise UserError("No stratum has sentences of both classes: choose another `stratify`.")
    return total / largest
