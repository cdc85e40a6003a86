"""A classifier of a language model's hidden states, trained on sentences of two classes."""

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from sordino.models.experts import unhooked
from sordino.models.hooks import forward_hooks
from sordino.models.open import OpenModel
from sordino.models.sites import decoder_layers
from sordino.models.tokenise import encode_for, equal_length_batches

TEXT_TOKENS = 128
"""A text is cut at this many tokens."""

_BATCH_TOKENS = 4096


class Probe:
    """A logistic regression on a model's hidden state after its middle layer.

    The state is averaged over the text's tokens, in float32, and is that of the model as it is,
    without any hook. The strength of the regularisation is chosen by five-fold cross-validation.
    Nothing in it is random. Probes of middle layers recognise concepts best: Alain and Bengio
    (2016), "Understanding intermediate layers using linear classifier probes", arXiv:1610.01644.

    Args:
        opened: The model, in memory as a whole.
        positive: Texts of the class to be recognised, five at least.
        negative: Texts of the other class, as many.

    Attributes:
        layer: The number of the layer.
        auroc: The mean AUROC of the five folds, by a classifier that was not trained on them. The
            best of seven regularisations was chosen by the same figure.

    Example:
        >>> opened = sordino.open_model("tiny")
        >>> probe = Probe(opened, concept.positive, concept.negative)
        >>> probe.score(["Stay calm.", "Not now."]).shape
        (2,)
    """

    def __init__(self, opened: OpenModel, positive: Sequence[str], negative: Sequence[str]) -> None:
        from sklearn.linear_model import LogisticRegressionCV
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        _, layers = decoder_layers(opened.model)
        self._opened = opened
        self.layer = len(layers) // 2
        self._module = layers[self.layer]
        self._classifier = make_pipeline(
            StandardScaler(),
            LogisticRegressionCV(
                Cs=np.logspace(-5, 1, 7),
                l1_ratios=(0,),
                scoring="roc_auc",
                max_iter=1000,
                use_legacy_attributes=False,
            ),
        )
        texts, labels = [*positive, *negative], np.arange(len(positive) + len(negative))
        self._classifier.fit(self._states(texts), labels < len(positive))
        folds = self._classifier[-1].scores_  # [folds, penalties, strengths]
        self.auroc = float(folds.mean(axis=0).max())

    def record(self) -> dict[str, Any]:
        """The training of the probe, as JSON values."""
        return {
            "layer": self.layer,
            "max_tokens": TEXT_TOKENS,
            "scikit_learn": version("scikit-learn"),
        }

    def score(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """The probability of the first class if both were equally frequent; float64 [texts]."""
        scores = self._classifier.predict_proba(self._states(texts))[:, 1]
        return np.asarray(scores, dtype=np.float64)

    def _states(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return mean_states(self._opened, self._module, texts)


@torch.inference_mode()
def mean_states(opened: OpenModel, layer: nn.Module, texts: Sequence[str]) -> NDArray[np.float32]:
    """The mean hidden state of each text after a layer of the model, float32 [texts, width].

    It is that of the model as it is, without any hook.
    """
    encoded = encode_for(opened, texts, TEXT_TOKENS)
    found: dict[int, NDArray[np.float32]] = {}
    with unhooked(opened.model), opened.whole_forwards():
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

    with forward_hooks([(layer, stop)]):
        try:
            opened.model(input_ids=ids.to(opened.device), use_cache=False)
        except _ReachedError:
            return states[0]
    raise AssertionError("the model runs all of its layers")
