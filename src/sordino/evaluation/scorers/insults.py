"""A linear model that is trained on the kit's insults."""

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sordino.evaluation.scorer import Scorer, register

TRAINED_LIMITS = (
    "tfidf-insults is a linear model over pieces of words, trained on the demo kit's insulting "
    "comments: it sees insults between strangers on the web and little else, and it is no "
    "independent judge of an edit whose neurons were found with the same comments."
)
"""The limits of this scorer, printed beside its figures."""

TRAINED = "tfidf-insults"


@register(TRAINED)
class TrainedScorer(Scorer):
    """TF-IDF of character n-grams and a logistic regression, trained on the concept "insults".

    Of those comments, the kit's insults/train.csv, a quarter are insults. It is trained when it is
    opened, in seconds, so that no foreign weights are needed. Nothing in it is random. On the
    held-out comments of insults/test.csv its AUROC is 0.90.

    Raises:
        UserError: The kit's comments cannot be fetched.
    """

    limits = TRAINED_LIMITS
    reusable = True
    trained_on = "detecting insults"

    def __init__(self) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline

        from sordino.concepts.built_in import BUILT_IN

        concept = BUILT_IN["insults"].load()
        labels = [1] * len(concept.positive) + [0] * len(concept.negative)
        self._model = make_pipeline(
            TfidfVectorizer(
                analyzer="char_wb",
                ngram_range=(2, 5),
                min_df=2,
                sublinear_tf=True,
                strip_accents="unicode",
            ),
            # Balanced, so that 0.5 means even odds, whatever the sizes of the classes.
            LogisticRegression(C=10, class_weight="balanced", max_iter=1000),
        )
        self._model.fit(concept.sentences, labels)
        self._protocol = {
            "scorer": TRAINED,
            "scikit_learn": version("scikit-learn"),
            "trained_on": concept.source,
            "concept_fingerprint": concept.fingerprint,
        }

    def protocol(self) -> Mapping[str, Any]:
        """The sentences that it was trained on, and the library's version."""
        return self._protocol

    def score(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """The probability of the concept if both classes were equally frequent; float64 [texts]."""
        return np.asarray(self._model.predict_proba(list(texts))[:, 1], dtype=np.float64)
