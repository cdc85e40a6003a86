"""Text classifiers, from the hub or in a folder."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sordino.errors import UserError
from sordino.evaluation.scorer import CLASSIFIER_LIMITS, JIGSAW_LIMITS, LabelScorer
from sordino.files import printable
from sordino.hub_table import TABLE

_CLASSIFIER_TOKENS = 256
_CLASSIFIER_BATCH_TOKENS = 4096


class NoSuchLabelError(UserError):
    """The classifier has no label of the given name."""


class TextClassifier(LabelScorer):
    """A transformers text-classification model; a text is read up to 256 tokens.

    If its labels do not exclude each other, the other ones are `labels`.

    Args:
        spec: "hf:org/name", "hf:org/name@revision" or a folder.
        toxic_label: The label that means toxic; None to find it.
        device: Where it runs.

    Raises:
        UserError: It cannot be loaded, or the toxic label cannot be inferred.
    """

    limits = CLASSIFIER_LIMITS

    def __init__(self, spec: str, toxic_label: str | None, device: torch.device) -> None:
        from sordino.models.classifier import classifier_files, open_classifier

        ref = classifier_files(spec)
        self._model, self._tokenizer = open_classifier(ref, device)
        config = self._model.config
        known = TABLE.get(spec.removeprefix("hf:").partition("@")[0])
        if known is not None and known.trained_on:
            self.limits, self.trained_on = f"{CLASSIFIER_LIMITS} {JIGSAW_LIMITS}", known.trained_on
        said = known.toxic_label if known is not None else ""
        self._label = find_toxic_label(spec, config.id2label, toxic_label or said or None)
        # As in transformers' own pipeline: labels that exclude each other share one softmax, others
        # have a sigmoid each.
        self._exclusive = (
            config.problem_type != "multi_label_classification" and config.num_labels > 1
        )
        others = [
            index
            for index, label in config.id2label.items()
            if not self._exclusive
            and index != self._label
            # Some classifiers have labels for the group that a text is about.
            and (known is None or label in known.columns)
        ]
        self._columns = [self._label, *others]
        self.labels = tuple(str(config.id2label[i]) for i in others)
        # Some encoders reserve two positions.
        positions = getattr(config, "max_position_embeddings", _CLASSIFIER_TOKENS + 2) - 2
        self._tokens = min(_CLASSIFIER_TOKENS, self._tokenizer.model_max_length, positions)
        # A commit names all files; a folder's may change.
        self.reusable = bool(ref.revision)
        self._protocol = {
            "scorer": spec,
            "revision": ref.revision or ref.weights_fingerprint(),
            "toxic_label": config.id2label[self._label],
            "max_tokens": self._tokens,
        }

    def protocol(self) -> Mapping[str, Any]:
        """The model, its revision (or a fingerprint of its weights) and the label that is read."""
        return self._protocol

    @torch.inference_mode()
    def score_labels(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """The probability of each label, the toxic one first, float64 [texts, 1 + labels]."""
        from sordino.models.tokenise import encode, equal_length_batches

        scores = np.empty((len(texts), len(self._columns)), dtype=np.float64)
        encoded = encode(self._tokenizer, texts, self._tokens)
        for batch in equal_length_batches(encoded, _CLASSIFIER_BATCH_TOKENS):
            logits = self._model(input_ids=batch.input_ids.to(self._model.device)).logits
            shares = logits.softmax(-1) if self._exclusive else logits.sigmoid()
            scores[list(batch.indices)] = shares[:, self._columns].cpu().double().numpy()
        return scores


def find_toxic_label(spec: str, labels: Mapping[int, str], wanted: str | None) -> int:
    """The index of the label that means toxic: the one named, or the only one called so.

    Raises:
        UserError: No label, or more than one, is called "toxic" or "toxicity"; or there is no label
            of the given name.
    """
    names = [wanted.casefold()] if wanted is not None else ["toxic", "toxicity"]
    found = [index for index, label in labels.items() if str(label).casefold() in names]
    if len(found) == 1:
        return found[0]
    have = printable(", ".join(str(label) for label in labels.values()))
    if wanted is not None:
        raise NoSuchLabelError(
            f"`toxic_label={wanted}`: {spec} has no such label (it has: {have})."
        )
    raise UserError(
        f"{spec} has the labels {have}, and it is unclear which of them means toxic: give it as "
        "`toxic_label`."
    )
