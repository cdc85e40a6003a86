"""A probe of a language model, trained on the kit's comments, as a scorer."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sordino import kit
from sordino.concepts.built_in import undo_escapes
from sordino.concepts.labels import classes_of
from sordino.concepts.readers import read_table
from sordino.evaluation.scorer import Scorer, register_judge
from sordino.files import fingerprint
from sordino.models.open import open_model
from sordino.models.probe import Probe
from sordino.progress import note

PROBE_LIMITS = (
    "A probe classifies a language model's hidden states, so it takes context into account as well "
    "as words. Its idea of toxicity is that of the comments that it was trained on: insults "
    "between strangers on the web."
)
"""The limits of this scorer, printed beside its figures."""

Comments = tuple[list[str], list[str]]
"""Insulting comments, and others."""

_COMMENTS = "insults/test.csv"
_PER_CLASS = 400


class ProbeScorer(Scorer):
    """A probe of a model (`sordino.models.probe`), trained on the kit's comments.

    It is trained when the scorer is opened, on 400 insulting comments and as many others of the
    kit's insults/test.csv. The concept "insults" has the sentences of another file.

    Args:
        model: The model's name, file or folder.
        device: Where it runs.
        dtype: In which it runs; see `sordino.open_model`.

    Raises:
        UserError: The model cannot be opened, or the kit's comments cannot be fetched.
    """

    limits = PROBE_LIMITS

    def __init__(self, model: str, device: torch.device, dtype: str = "auto") -> None:
        opened = open_model(model, device=str(device), dtype=dtype)
        (insulting, others), _ = comments()
        texts = [*insulting, *others]
        note(f"training a probe of {opened.ref.name} on {len(texts):,} comments")
        self._probe = Probe(opened, insulting, others)
        self._protocol = {
            "scorer": f"probe:{model}",
            "revision": opened.ref.revision or opened.ref.weights_fingerprint(),
            "dtype": opened.dtype_name,
            "trained_on": f"kit:{_COMMENTS}",
            "comments_fingerprint": fingerprint(*texts),
            **self._probe.record(),
        }

    def protocol(self) -> Mapping[str, Any]:
        """The model, its layer, and the comments that the probe was trained on."""
        return self._protocol

    def score(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """The probability of an insult if both classes were equally frequent; float64 [texts]."""
        return self._probe.score(texts)


def comments() -> tuple[Comments, Comments]:
    """The kit's comments that a probe is trained on, and the rest of the same file.

    Returns:
        Two pairs of insulting comments and others.
    """
    found = classes_of(read_table(kit.data_file(_COMMENTS)))
    drawn = np.random.default_rng(0)
    parts = []
    for given in (found.positive, found.negative):
        texts = [" ".join(undo_escapes(comment).split()) for comment in given]
        order = drawn.permutation(len(texts))
        parts.append([[texts[n] for n in sorted(of)] for of in np.split(order, [_PER_CLASS])])
    (insulting, insulting_left), (others, others_left) = parts
    return (insulting, others), (insulting_left, others_left)


@register_judge("probe")
def probe(model: str, device: torch.device, dtype: str) -> Scorer:
    """A classifier of any language model's hidden states, trained on the kit's comments."""
    return ProbeScorer(model, device, dtype)
