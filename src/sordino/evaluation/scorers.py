"""Judges of toxicity: a registry, the linear one of the package index, and hub classifiers."""

import difflib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sordino.errors import UserError
from sordino.files import sha256_of

LINEAR_LIMITS = (
    "alt-profanity-check is a linear model over words: it sees profanity and insults, and is blind "
    "to hate that uses no bad word (no better than chance on the implicit cases of HateCheck), to "
    "irony and to context. A lower share means fewer coarse words, and not that what remains is "
    "harmless."
)
"""What the linear scorer cannot see; wherever its figures stand, this stands beside them."""

CLASSIFIER_LIMITS = (
    "A text classifier repeats its training data's idea of toxicity: it tends to flag mentions of "
    "groups of people and dialects, and to miss implicit hate, irony and context. A lower share "
    "means fewer texts that this judge flags, and not that what remains is harmless."
)
"""What a text classifier cannot see; wherever its figures stand, this stands beside them."""

LINEAR = "alt-profanity-check"
HUB_DEFAULT = "hf:s-nlp/roberta_toxicity_classifier"

# The two pickles of version 1.9.1, the one that is pinned. Loading a pickle runs what is in it, so
# nothing but these very bytes is ever loaded.
_LINEAR_FILES = {
    "model.joblib": "aeafc04849d4d93db4721cf30a86ebf22085595294b8a07d51918e7fa98f538b",
    "vectorizer.joblib": "19c5200dc6a41f026e0558e2f164f5fe8d8f58e502b46b37e4385037fcfa4831",
}
_CLASSIFIER_TOKENS = 256
_CLASSIFIER_BATCH_TOKENS = 4096


class Scorer(ABC):
    """A judge of how toxic a text is.

    Attributes:
        limits: What it is blind to, in a sentence or two for the reader of its figures.
    """

    limits: str

    @abstractmethod
    def protocol(self) -> Mapping[str, Any]:
        """What identifies this scorer and its version, as JSON values."""

    @abstractmethod
    def score(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """The toxicity of each text, float64 [texts] from 0 to 1; there is at least one text."""


SCORERS: dict[str, Callable[[], Scorer]] = {}
"""Scorers by name; each entry opens its scorer."""


def register(name: str) -> Callable[[Callable[[], Scorer]], Callable[[], Scorer]]:
    """Put a function (or class) that opens a scorer into the registry."""

    def put(opener: Callable[[], Scorer]) -> Callable[[], Scorer]:
        if name in SCORERS:
            raise ValueError(f"two scorers are called {name}")
        SCORERS[name] = opener
        return opener

    return put


def open_scorer(spec: str, *, toxic_label: str | None = None, device: torch.device) -> Scorer:
    """Open a scorer.

    Args:
        spec: A name of the registry, "hf:org/name" for a text classifier of the hub, or the folder
            of one.
        toxic_label: The label of a text classifier that means toxic.
        device: Where a text classifier runs.

    Raises:
        UserError: There is no such scorer, it cannot be loaded, or its toxic label is not plain.
    """
    if spec in SCORERS:
        return SCORERS[spec]()
    if spec.startswith("hf:") or Path(spec).expanduser().is_dir():
        return TextClassifier(spec, toxic_label, device)
    close = difflib.get_close_matches(spec, SCORERS, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    raise UserError(
        f"There is no scorer '{spec}': {hint}There are {', '.join(sorted(SCORERS))}, hf:org/name "
        "for a text classifier of the hub, and the folder of one."
    )


@register(LINEAR)
class LinearScorer(Scorer):
    """The linear support vector machine of the package alt-profanity-check.

    Raises:
        UserError: The package is missing, or its pickles are not those of the pinned version.
    """

    limits = LINEAR_LIMITS

    def __init__(self) -> None:
        # find_spec looks for the package without running it: importing it loads the pickles.
        found = find_spec("profanity_check")
        mend = "pip install --force-reinstall alt-profanity-check==1.9.1"
        if found is None or found.origin is None:
            raise UserError(f"The scorer {LINEAR} is not installed: {mend}.")
        for name, expected in _LINEAR_FILES.items():
            file = Path(found.origin).parent / "data" / name
            if not file.is_file() or sha256_of(file) != expected:
                raise UserError(
                    f"{file} is not that of alt-profanity-check 1.9.1, and a pickle of unknown "
                    f"content is not loaded: {mend}."
                )
        import profanity_check

        self._probability = profanity_check.predict_prob

    def protocol(self) -> Mapping[str, Any]:
        """The package's version and the sums of its files."""
        return {"scorer": LINEAR, "version": "1.9.1", "sha256": _LINEAR_FILES}

    def score(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """The probability of profanity of each text, float64 [texts]."""
        return np.asarray(self._probability(list(texts)), dtype=np.float64)


class TextClassifier(Scorer):
    """A transformers text-classification model; a text is read up to 256 tokens.

    Args:
        spec: "hf:org/name" or a folder.
        toxic_label: The label that means toxic; None to find it.
        device: Where it runs.

    Raises:
        UserError: It cannot be loaded, or the toxic label is not plain.
    """

    limits = CLASSIFIER_LIMITS

    def __init__(self, spec: str, toxic_label: str | None, device: torch.device) -> None:
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        source = spec.removeprefix("hf:")
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
            model = AutoModelForSequenceClassification.from_pretrained(
                source, trust_remote_code=False, use_safetensors=True, dtype=torch.float32
            )
        except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"The scorer {spec} could not be loaded ({type(error).__name__}): {reason}"
            ) from None
        self._model = model.to(device).eval()
        config = model.config
        self._label = find_toxic_label(spec, config.id2label, toxic_label)
        # As transformers' own pipeline reads a classifier: labels that exclude each other share one
        # softmax, others have a sigmoid each.
        self._exclusive = (
            config.problem_type != "multi_label_classification" and config.num_labels > 1
        )
        # Some encoders keep two positions for themselves.
        positions = getattr(config, "max_position_embeddings", _CLASSIFIER_TOKENS + 2) - 2
        self._tokens = min(_CLASSIFIER_TOKENS, self._tokenizer.model_max_length, positions)
        self._protocol = {
            "scorer": spec,
            "revision": getattr(config, "_commit_hash", None) or _weights_sum(Path(source)),
            "toxic_label": config.id2label[self._label],
            "max_tokens": self._tokens,
        }

    def protocol(self) -> Mapping[str, Any]:
        """The model, its revision (or a fingerprint of its weights) and the label that is read."""
        return self._protocol

    @torch.inference_mode()
    def score(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """The probability of the toxic label for each text, float64 [texts]."""
        from sordino.models.tokenise import encode, equal_length_batches

        scores = np.empty(len(texts), dtype=np.float64)
        encoded = encode(self._tokenizer, texts, self._tokens)
        for batch in equal_length_batches(encoded, _CLASSIFIER_BATCH_TOKENS):
            logits = self._model(input_ids=batch.input_ids.to(self._model.device)).logits
            shares = logits.softmax(-1) if self._exclusive else logits.sigmoid()
            scores[list(batch.indices)] = shares[:, self._label].double().cpu().numpy()
        return scores


def find_toxic_label(spec: str, labels: Mapping[int, str], wanted: str | None) -> int:
    """The index of the label that means toxic: the one named, or the only one called so.

    Raises:
        UserError: No label, or more than one, is called "toxic" or "toxicity"; or the one that was
            named is not among them.
    """
    names = [wanted.casefold()] if wanted is not None else ["toxic", "toxicity"]
    found = [index for index, label in labels.items() if str(label).casefold() in names]
    if len(found) == 1:
        return found[0]
    have = ", ".join(str(label) for label in labels.values())
    if wanted is not None:
        raise UserError(f"--toxic-label {wanted}: {spec} has no such label (it has: {have}).")
    raise UserError(
        f"{spec} has the labels {have}, and which of them means toxic is not plain: name it with "
        "--toxic-label."
    )


def _weights_sum(folder: Path) -> str:
    from sordino.models.reference import resolve

    return resolve(folder).weights_fingerprint()
