"""The scorer of the package detoxify."""

from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sordino.errors import UserError
from sordino.evaluation.scorer import CLASSIFIER_LIMITS, JIGSAW_LIMITS, LabelScorer, register

DETOXIFY = "detoxify"
_DETOXIFY_MODEL = "original"
_DETOXIFY_TOXIC = "toxicity"
_DETOXIFY_TEXTS = 32


@register(DETOXIFY)
class DetoxifyScorer(LabelScorer):
    """The model "original" of the package detoxify.

    Raises:
        UserError: It is not installed, or its weights cannot be fetched.
    """

    limits = f"{CLASSIFIER_LIMITS} {JIGSAW_LIMITS}"
    trained_on = "jigsaw"

    def __init__(self) -> None:
        if find_spec("detoxify") is None:
            raise UserError("The scorer detoxify is not installed: pip install detoxify.")
        try:
            self._model = import_module("detoxify").Detoxify(_DETOXIFY_MODEL)
        except (OSError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"The weights of detoxify could not be downloaded ({type(error).__name__}: "
                f"{reason}): they come from github.com; without it, choose another scorer."
            ) from None
        names = self._model.predict([""])
        self.labels = tuple(name for name in names if name != _DETOXIFY_TOXIC)

    def protocol(self) -> Mapping[str, Any]:
        """The package's version and its model."""
        return {"scorer": DETOXIFY, "version": version("detoxify"), "model": _DETOXIFY_MODEL}

    def score_labels(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """The probability of each label, toxicity first, float64 [texts, 1 + labels]."""
        pieces = [
            self._model.predict(list(texts[i : i + _DETOXIFY_TEXTS]))
            for i in range(0, len(texts), _DETOXIFY_TEXTS)
        ]
        return np.array(
            [
                [score for piece in pieces for score in piece[name]]
                for name in (_DETOXIFY_TOXIC, *self.labels)
            ],
            dtype=np.float64,
        ).T
