"""A linear model that is trained here, on the demo kit's insulting comments."""

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
"""What the scorer that is trained here cannot see."""

TRAINED = "tfidf-insults"


@register(TRAINED)
class TrainedScorer(Scorer):
    """TF-IDF of pieces of words and a logistic regression, trained on the kit's insults/train.csv.

    On the held-out comments of insults/test.csv its AUROC is 0.90. It is trained when it is opened,
    in two seconds, so that no weights have to be trusted; nothing in it is random.

    Raises:
        UserError: The kit's comments cannot be fetched.
    """

    limits = TRAINED_LIMITS
    trained_on = "detecting insults"

    def __init__(self) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline

        from sordino.concepts.built_in import BUILT_IN

        comments = BUILT_IN["insults"].load(None)
        labels = [1] * len(comments.positive) + [0] * len(comments.negative)
        self._model = make_pipeline(
            TfidfVectorizer(
                analyzer="char_wb",
                ngram_range=(2, 5),
                min_df=2,
                sublinear_tf=True,
                strip_accents="unicode",
            ),
            # A quarter of the comments are insulting: balanced, 0.5 is even odds for both kinds.
            LogisticRegression(C=10, class_weight="balanced", max_iter=1000),
        )
        self._model.fit([*comments.positive, *comments.negative], labels)
        self._protocol = {
            "scorer": TRAINED,
            "scikit_learn": version("scikit-learn"),
            "trained_on": comments.source,
            "concept_fingerprint": comments.fingerprint,
        }

    def protocol(self) -> Mapping[str, Any]:
        """The comments that it was trained on, and by what."""
        return self._protocol

    def score(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """The probability of an insult, were both kinds equally frequent; float64 [texts]."""
        return np.asarray(self._model.predict_proba(list(texts))[:, 1], dtype=np.float64)
