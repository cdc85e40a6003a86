"""A classifier of a language model's hidden states, trained on the kit's comments."""

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from sordino import kit
from sordino.concepts.built_in import undo_escapes
from sordino.concepts.labels import classes_of
from sordino.concepts.readers import read_table
from sordino.evaluation.scorer import Scorer, register_judge
from sordino.files import fingerprint
from sordino.models.open import OpenModel, open_model
from sordino.models.sites import decoder_layers
from sordino.models.tokenise import encode_for, equal_length_batches
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
_TEXT_TOKENS = 128
_BATCH_TOKENS = 4096


class ProbeScorer(Scorer):
    """A logistic regression on a model's hidden state after its middle layer.

    The state is averaged over the text's tokens, in float32. The regression is trained when the
    scorer is opened, on 400 insulting comments and as many others of the kit's insults/test.csv,
    none of which is a sentence of the concept "insults". The strength of its regularisation is
    chosen by five-fold cross-validation. Probes of middle layers recognise concepts best: Alain and
    Bengio (2016), "Understanding intermediate layers using linear classifier probes",
    arXiv:1610.01644.

    Args:
        model: The model's name, file or folder.
        device: Where it runs.
        dtype: In which it runs; see `sordino.open_model`.

    Raises:
        UserError: The model cannot be opened, or the kit's comments cannot be fetched.
    """

    limits = PROBE_LIMITS

    def __init__(self, model: str, device: torch.device, dtype: str = "auto") -> None:
        from sklearn.linear_model import LogisticRegressionCV
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        self._opened = open_model(model, device=str(device), dtype=dtype)
        _, layers = decoder_layers(self._opened.model)
        self._layer = layers[len(layers) // 2]
        (insulting, others), _ = comments()
        texts, labels = [*insulting, *others], np.arange(2 * _PER_CLASS) < _PER_CLASS
        note(f"training a probe of {self._opened.ref.name} on {len(texts):,} comments")
        self._probe = make_pipeline(
            StandardScaler(),
            LogisticRegressionCV(
                Cs=np.logspace(-5, 1, 7),
                l1_ratios=(0,),
                scoring="roc_auc",
                max_iter=1000,
                use_legacy_attributes=False,
            ),
        )
        self._probe.fit(mean_states(self._opened, self._layer, texts), labels)
        ref = self._opened.ref
        self._protocol = {
            "scorer": f"probe:{model}",
            "revision": ref.revision or ref.weights_fingerprint(),
            "dtype": self._opened.dtype_name,
            "layer": len(layers) // 2,
            "trained_on": f"kit:{_COMMENTS}",
            "comments_fingerprint": fingerprint(*texts),
            "max_tokens": _TEXT_TOKENS,
            "scikit_learn": version("scikit-learn"),
        }

    def protocol(self) -> Mapping[str, Any]:
        """The model, its layer, and the comments that the probe was trained on."""
        return self._protocol

    def score(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """The probability of an insult if both classes were equally frequent; float64 [texts]."""
        states = mean_states(self._opened, self._layer, texts)
        return np.asarray(self._probe.predict_proba(states)[:, 1], dtype=np.float64)


@torch.inference_mode()
def mean_states(opened: OpenModel, layer: nn.Module, texts: Sequence[str]) -> NDArray[np.float32]:
    """The mean hidden state of each text after a layer of the model, float32 [texts, width]."""
    encoded = encode_for(opened, texts, _TEXT_TOKENS)
    found: dict[int, NDArray[np.float32]] = {}
    for batch in equal_length_batches(encoded, _BATCH_TOKENS):
        means = _state_after(layer, opened, batch.input_ids).float().mean(dim=1).cpu().numpy()
        found |= dict(zip(batch.indices, means, strict=True))
    return np.stack([found[number] for number in range(len(texts))])


class _ReachedError(Exception):
    """The layer has run; later ones need not."""


def _state_after(layer: nn.Module, opened: OpenModel, ids: torch.Tensor) -> torch.Tensor:
    """The hidden states after a layer, [texts, tokens, width]; no later layer runs."""
    states = []

    def stop(_module: nn.Module, _inputs: object, output: torch.Tensor | tuple[Any, ...]) -> None:
        states.append(output if isinstance(output, torch.Tensor) else output[0])
        raise _ReachedError

    handle = layer.register_forward_hook(stop)
    try:
        opened.model(input_ids=ids.to(opened.device), use_cache=False)
    except _ReachedError:
        return states[0]
    finally:
        handle.remove()
    raise AssertionError("the model runs all of its layers")


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
