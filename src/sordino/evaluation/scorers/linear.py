"""The scorer of the package alt-profanity-check, a linear model."""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sordino.errors import UserError
from sordino.evaluation.scorer import LINEAR, Scorer, register
from sordino.files import sha256_of

LINEAR_LIMITS = (
    "alt-profanity-check is a linear model over words: it sees profanity and insults, and is blind "
    "to hate that uses no bad word (no better than chance on the implicit cases of HateCheck), to "
    "irony and to context. A lower share means fewer coarse words, and not that what remains is "
    "harmless."
)
"""The limits of the linear scorer, printed beside its figures."""

# The two pickles of the pinned version, 1.9.1. Loading a pickle runs the code in it, so nothing but
# these bytes is ever loaded.
_LINEAR_FILES = {
    "model.joblib": "aeafc04849d4d93db4721cf30a86ebf22085595294b8a07d51918e7fa98f538b",
    "vectorizer.joblib": "19c5200dc6a41f026e0558e2f164f5fe8d8f58e502b46b37e4385037fcfa4831",
}


@register(LINEAR)
class LinearScorer(Scorer):
    """The linear support vector machine of the package alt-profanity-check.

    Raises:
        UserError: The package is missing, or its pickles are not those of the pinned version.
    """

    limits = LINEAR_LIMITS
    reusable = True

    def __init__(self) -> None:
        # find_spec finds the package without importing it, which would load the pickles.
        found = find_spec("profanity_check")
        mend = "pip install --force-reinstall alt-profanity-check==1.9.1"
        if found is None or found.origin is None:
            raise UserError(f"The scorer {LINEAR} is not installed: {mend}.")
        for name, expected in _LINEAR_FILES.items():
            file = Path(found.origin).parent / "data" / name
            if not file.is_file() or sha256_of(file) != expected:
                raise UserError(
                    f"{file} is not the file of alt-profanity-check 1.9.1, and unknown pickles are "
                    f"not loaded: {mend}."
                )
        import profanity_check

        self._probability = profanity_check.predict_prob

    def protocol(self) -> Mapping[str, Any]:
        """The package's version and the checksums of its files."""
        return {"scorer": LINEAR, "version": "1.9.1", "sha256": _LINEAR_FILES}

    def score(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """The probability of profanity of each text, float64 [texts]."""
        return np.asarray(self._probability(list(texts)), dtype=np.float64)
