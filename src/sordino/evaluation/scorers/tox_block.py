"""tox-block's bidirectional LSTM, from its weights and its words alone.

Neither the package's code nor Keras runs. The weights are read as plain arrays; the pickle with the
words is read by an unpickler that admits five names; and the network is written out here. The
scores are the package's own with `rescale=False`.
"""

import pickle
from collections import OrderedDict, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sordino import kit
from sordino.errors import UserError
from sordino.evaluation.scorer import LabelScorer, register
from sordino.files import sha256_of

LIMITS = (
    "tox-block is a small recurrent network over the 19,999 commonest words of Jigsaw's comments "
    "and reads the last 100 of them in a text: any other word does not exist for it. It tends to "
    "flag mentions of groups of people and to miss implicit hate, irony and context. It was "
    "trained on Jigsaw's comments, so it is no independent judge of an edit whose neurons were "
    "found with them. A lower share means fewer texts that it flags, and not that what remains is "
    "harmless."
)
"""The limits of the network, printed beside its figures."""

TOX_BLOCK = "tox-block"
_VERSION = "0.1.2"
_WEIGHTS, _WORDS = "tox-block/lstm_model.h5", "tox-block/encoder.pkl"
_LABELS = ("toxic", "severe_toxic", "obscene", "threat", "insult", "identity_hate")
_BATCH = 256


@register(TOX_BLOCK)
class BiLstmScorer(LabelScorer):
    """The probability of six kinds of toxicity; "toxic" is the score, the others are labels.

    Raises:
        UserError: The files cannot be fetched, or are not those of the kit.
    """

    limits = LIMITS
    reusable = True
    labels = _LABELS[1:]

    def __init__(self) -> None:
        weights, words = kit.data_file(_WEIGHTS), kit.data_file(_WORDS)
        self._sums = {_WEIGHTS: sha256_of(weights), _WORDS: sha256_of(words)}
        expected = {item.name: item.sha256 for item in kit.items()}
        for name, path in ((_WEIGHTS, weights), (_WORDS, words)):
            if self._sums[name] != expected[name]:
                raise UserError(
                    f"{path} is not the demo kit's file: delete it, and it is fetched again."
                )
        self._vocabulary = read_vocabulary(words)
        self._network = read_network(weights)

    def protocol(self) -> Mapping[str, Any]:
        """The package's version and the checksums of its files."""
        return {"scorer": TOX_BLOCK, "version": _VERSION, "sha256": self._sums}

    def score_labels(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """The probability of each label, "toxic" first, float64 [texts, 6]."""
        pieces = [
            self._network.probabilities(self._vocabulary.encode(texts[i : i + _BATCH]))
            for i in range(0, len(texts), _BATCH)
        ]
        return torch.cat(pieces).double().numpy()


@dataclass(frozen=True)
class Vocabulary:
    """Turns texts into word numbers, as Keras's Tokenizer and pad_sequences do.

    Args:
        numbers: The number of each word that the network knows, from 1.
        spaces: The characters that become spaces, at which a text is split, for `str.translate`.
            Other white space, such as a no-break space, stays part of its word, as in training.
        length: How many words are read: the last ones.
    """

    numbers: Mapping[str, int]
    spaces: Mapping[int, str]
    length: int

    def encode(self, texts: Sequence[str]) -> torch.Tensor:
        """The numbers of each text's known words, after zeros, int64 [texts, length]."""
        rows = np.zeros((len(texts), self.length), dtype=np.int64)
        for row, text in zip(rows, texts, strict=True):
            words = text.lower().translate(self.spaces).split(" ")
            known = [self.numbers[word] for word in words if word in self.numbers][-self.length :]
            row[self.length - len(known) :] = known
        return torch.from_numpy(rows)


@dataclass(frozen=True)
class Network:
    """An embedding, a bidirectional LSTM, the maximum over the words, and two dense layers.

    The leading axis of 2 is the direction: forward, backward. Gates lie in Keras's order (input,
    forget, cell, output), and all but the cell's are "hard" sigmoids, as in Keras up to version 2.

    Args:
        inputs: Each word's contribution to the gates, with the LSTM's bias; the backward direction
            follows the forward one; [2 · words, 4 · units].
        recurrent: The state's contribution to the gates, [2, units, 4 · units].
        dense: Weight [2 · units, hidden] and bias [hidden].
        out: Weight [hidden, labels] and bias [labels].
    """

    inputs: torch.Tensor
    recurrent: torch.Tensor
    dense: tuple[torch.Tensor, torch.Tensor]
    out: tuple[torch.Tensor, torch.Tensor]

    @torch.inference_mode()
    def probabilities(self, words: torch.Tensor) -> torch.Tensor:
        """The probability of each label, float32 [texts, labels].

        Args:
            words: Word numbers, int64 [texts, length]. The zeros that pad a text count as words,
                because nothing was masked in training.
        """
        backward = words.flip(1) + len(self.inputs) // 2
        hidden = self.inputs.new_zeros(2, len(words), self.recurrent.shape[1])
        cell, largest = hidden, hidden - torch.inf
        for step in torch.stack([words, backward]).unbind(2):
            arrives = torch.nn.functional.embedding(step, self.inputs)
            gates = torch.baddbmm(arrives, hidden, self.recurrent)
            enter, keep, new, show = gates.chunk(4, dim=2)
            cell = _hard_sigmoid(keep) * cell + _hard_sigmoid(enter) * new.tanh()
            hidden = _hard_sigmoid(show) * cell.tanh()
            largest = torch.maximum(largest, hidden)
        pooled = torch.cat([largest[0], largest[1]], dim=1)
        weight, bias = self.dense
        features = torch.addmm(bias, pooled, weight).relu()
        weight, bias = self.out
        return torch.addmm(bias, features, weight).sigmoid()


def _hard_sigmoid(x: torch.Tensor) -> torch.Tensor:
    # As in Keras up to version 2. The slope of torch's, and of Keras 3's, is 1/6.
    return (0.2 * x + 0.5).clamp(0, 1)


def read_network(path: Path) -> Network:
    """Read the network from tox-block's `.h5` file.

    Keras has kernels as [in, out] and one bias for each direction of the LSTM.
    """
    import h5py

    with h5py.File(path, "r") as file:

        def array(layer: str, name: str) -> torch.Tensor:
            return torch.from_numpy(file[f"model_weights/{layer}/{name}:0"][()])

        words = array("embedding/embedding", "embeddings")
        directions = [f"bidirectional/bidirectional/{way}_lstm" for way in ("forward", "backward")]
        return Network(
            inputs=torch.cat(
                [words @ array(way, "kernel") + array(way, "bias") for way in directions]
            ),
            recurrent=torch.stack([array(way, "recurrent_kernel") for way in directions]),
            dense=(array("dense/dense", "kernel"), array("dense/dense", "bias")),
            out=(array("dense_1/dense_1", "kernel"), array("dense_1/dense_1", "bias")),
        )


def read_vocabulary(path: Path) -> Vocabulary:
    """Read the words from tox-block's pickle of its text encoder.

    Raises:
        pickle.UnpicklingError: The pickle holds anything but plain data and objects of the
            encoder's two classes, which are replaced by `_Attributes`.
    """
    with path.open("rb") as stream:
        encoder = vars(_Reader(stream).load())
    tokenizer = vars(encoder["tokenizer"])
    return Vocabulary(
        numbers={
            word: number
            for word, number in tokenizer["word_index"].items()
            if number < tokenizer["num_words"]
        },
        spaces=str.maketrans(dict.fromkeys(tokenizer["filters"], tokenizer["split"])),
        length=encoder["max_sequence_length"],
    )


class _Attributes:
    """Stands in for an object whose class is not loaded: its attributes without its methods."""


_ADMITTED = {
    ("tox_block.data_processing.preprocessors", "TokenSequencer"): _Attributes,
    ("keras_preprocessing.text", "Tokenizer"): _Attributes,
    ("collections", "OrderedDict"): OrderedDict,
    ("collections", "defaultdict"): defaultdict,
    ("builtins", "int"): int,
}


class _Reader(pickle.Unpickler):
    """An unpickler that admits no names but `_ADMITTED`."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ADMITTED:
            raise pickle.UnpicklingError(f"the pickle asks for {module}.{name}: refused")
        return _ADMITTED[module, name]
