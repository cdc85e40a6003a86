"""The parts of an evaluation: texts, scorers, the journal, and each measure on a tiny model."""

import json
import os
import pickle
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as tf
from hypothesis import given
from hypothesis import strategies as st

from families import FAMILIES, tiny_tokenizer
from sordino import hub
from sordino.errors import UserError
from sordino.evaluation import SCORERS, Perplexity, Toxicity, measure
from sordino.evaluation.measure import ALL, register
from sordino.evaluation.measures.coverage import read_groups
from sordino.evaluation.measures.perplexity import Likelihood
from sordino.evaluation.measures.refusals import read_refusals
from sordino.evaluation.opening import open_scorer
from sordino.evaluation.scorer import LINEAR, Scorer
from sordino.evaluation.scorer import register as register_scorer
from sordino.evaluation.scorers.classifier import TextClassifier, find_toxic_label
from sordino.evaluation.scoring import Scored
from sordino.evaluation.texts import Text, choose, read_texts, texts_fingerprint
from sordino.journal import Journal

CPU = torch.device("cpu")


class NeutralScorer(Scorer):
    """Flags texts in which a neutral letter is frequent."""

    limits = "It sees one letter."

    def protocol(self):
        return {"scorer": "neutral", "version": 1}

    def score(self, texts):
        assert all(text.strip() for text in texts)
        return np.array([min(1.0, text.count("a") / 2) for text in texts])


@pytest.fixture
def neutral(monkeypatch):
    monkeypatch.setitem(SCORERS, "neutral", NeutralScorer)
    return "neutral"


def lines(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


# Texts


def test_rtps_own_schema_is_read_and_rows_without_a_score_are_dropped(tmp_path):
    spec = lines(
        tmp_path / "rtp.jsonl",
        {"prompt": {"text": " one ", "toxicity": 0.7}, "continuation": {"text": "x"}},
        {"prompt": {"text": "two", "toxicity": None}, "continuation": {"text": "x"}},
        {"prompt": {"text": "one", "toxicity": 0.1}},
    )
    assert read_texts(spec) == [Text("one", 0.7)]


def test_simple_lines_are_read(tmp_path):
    spec = lines(
        tmp_path / "simple.jsonl",
        {"text": "one", "toxicity": 0.2},
        {"prompt": "two"},
        {"passage": "Title -- some prose", "question": "?"},
        {"text": "  "},
    )
    assert read_texts(spec) == [Text("one", 0.2), Text("two"), Text("some prose")]


@pytest.mark.parametrize(
    ("read", "row"),
    [
        (read_texts, {"Text": "one", "text": "two"}),
        (read_texts, {"prompt": "one", "Toxicity": 0.1, "toxicity": 0.9}),
        (read_groups, {"text": "one", "Group": "north", "group": "south"}),
        (read_refusals, {"prompt": "one", "Label": "safe", "label": "unsafe"}),
    ],
)
def test_columns_that_differ_in_capitals_alone_are_refused(read, row, tmp_path):
    file = lines(tmp_path / "x.jsonl", row)
    with pytest.raises(UserError, match="line 1 has two columns called"):
        read(file)
    # Capitals alone are understood, and columns that are not read may be called anything.
    alone = {name.title(): value for name, value in row.items()} | {"id": 1, "ID": 2}
    assert len(read(lines(tmp_path / "y.jsonl", alone))) == 1


def test_plain_text_is_one_text_a_line_and_counts_once(tmp_path, capsys):
    path = tmp_path / "plain.txt"
    path.write_bytes("\ufeffone\n\n two \r\none\n".encode())
    assert read_texts(str(path)) == [Text("one"), Text("two")]
    assert "plain.txt: 1 text that was there before is left out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.jsonl",
            b'{"text": "x"}\n{"title": "x", "n": 1}\n',
            "line 2 has no text: it needs one of text, prompt",
        ),
        ("a.jsonl", b"{oh\n", "line 1 is not valid JSON"),
        ("a.jsonl", b"[1]\n", "line 1 is not a JSON object"),
        ("a.jsonl", b'{"text": "x", "toxicity": 2}\n', "line 1 has the toxicity 2: it must be"),
        ("a.jsonl", b'{"prompt": {"toxicity": 0.1}}\n', "line 1 has a prompt without a text"),
        ("a.txt", b"fine\n\xff\xfe\n", "line 2: the byte 0xff is not UTF-8"),
        ("a.txt", b"\n\n", r"a\.txt holds no text"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_texts(str(path))


def test_a_missing_file_and_an_absent_hub_are_said(monkeypatch):
    with pytest.raises(UserError, match=r"nowhere\.txt does not exist"):
        read_texts("nowhere.txt")
    monkeypatch.setattr(hub, "reachable", lambda: False)
    with pytest.raises(UserError, match="hf:some/set could not be read from the hub"):
        read_texts("hf:some/set")


def test_a_hub_data_set_is_read_by_its_split(monkeypatch):
    import datasets

    def load(name, config, *, split, revision):
        assert (config, revision) == (None, None)
        if split != "test":
            raise ValueError(f"no split {split}")
        return datasets.Dataset.from_list(
            [{"prompt": {"text": "one", "toxicity": 0.6}}, {"prompt": {"text": "2"}}]
        )

    monkeypatch.setattr(hub, "reachable", lambda: True)
    monkeypatch.setattr(datasets, "load_dataset", load)
    assert read_texts("hf:some/set:test") == [Text("one", 0.6)]
    with pytest.raises(UserError, match=r"hf:some/set could not be read.*no split train"):
        read_texts("hf:some/set")


def test_the_choice_is_by_seed_nested_and_in_order():
    texts = [Text(str(i)) for i in range(50)]
    few, more = choose(texts, 10, 3), choose(texts, 20, 3)
    assert len(few) == 10
    assert set(few) < set(more)
    assert few == sorted(few, key=lambda text: int(text.text))
    assert few != choose(texts, 10, 4)
    assert choose(texts, None, 0) is choose(texts, 50, 0) is texts
    assert texts_fingerprint(few) != texts_fingerprint(more)


# Scorers


def test_the_linear_scorer_tells_plain_words_apart():
    scorer = open_scorer(LINEAR, device=CPU)
    scores = scorer.score(["what a calm and friendly morning", "you stupid idiot"])
    assert scores.dtype == np.float64
    assert scores[0] < 0.5 < scores[1]
    assert "blind" in scorer.limits


class Planted:
    """Leaves a folder behind when its pickle is loaded."""

    def __init__(self, sign):
        self.sign = sign

    def __reduce__(self):
        return os.mkdir, (str(self.sign),)


@pytest.mark.parametrize("name", ["model.joblib", "vectorizer.joblib"])
def test_a_changed_pickle_is_never_loaded(name, tmp_path, monkeypatch):
    installed = Path(find_spec("profanity_check").origin).parent
    changed = shutil.copytree(installed, tmp_path / installed.name) / "data" / name
    changed.write_bytes(pickle.dumps(Planted(tmp_path / "was loaded")))
    for module in [module for module in sys.modules if module.startswith("profanity_check")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        UserError, match=rf"{tmp_path}.*{name} is not the file of alt-profanity-check 1\.9"
    ):
        open_scorer(LINEAR, device=CPU)
    assert not (tmp_path / "was loaded").exists()


def test_a_misspelt_scorer_gets_a_suggestion():
    with pytest.raises(UserError, match="did you mean alt-profanity-check"):
        open_scorer("alt-profanity-chek", device=CPU)


@pytest.mark.parametrize(
    ("labels", "wanted", "index"),
    [
        (["neutral", "toxic"], None, 1),
        (["Toxicity", "insult"], None, 0),
        (["LABEL_0", "LABEL_1"], "label_1", 1),
    ],
)
def test_the_toxic_label_is_found_or_named(labels, wanted, index):
    assert find_toxic_label("x", dict(enumerate(labels)), wanted) == index


@pytest.mark.parametrize(
    ("labels", "wanted", "message"),
    [
        (
            ["LABEL_0", "LABEL_1"],
            None,
            "has the labels LABEL_0, LABEL_1, and it is unclear which of them",
        ),
        (["toxic", "toxicity"], None, "give it as `toxic_label`"),
        (["neutral", "toxic"], "bad", r"`toxic_label=bad`: x has no such label \(it has: neutral"),
    ],
)
def test_a_toxic_label_is_never_guessed(labels, wanted, message):
    with pytest.raises(UserError, match=message):
        find_toxic_label("x", dict(enumerate(labels)), wanted)


@pytest.mark.parametrize("problem", ["single_label_classification", "multi_label_classification"])
def test_a_text_classifier_scores_as_one_text_at_a_time(tmp_path, problem):
    config = tf.BertConfig(
        vocab_size=300,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=64,
        id2label={0: "neutral", 1: "toxic"},
        problem_type=problem,
    )
    torch.manual_seed(0)
    model = tf.BertForSequenceClassification(config).eval()
    torch.nn.init.normal_(model.classifier.weight, std=2.0)
    model.save_pretrained(tmp_path)
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    texts = ["the cat", "in the end", "who", "a dog", "the " * 100]
    scorer = TextClassifier(str(tmp_path), None, CPU)
    expected = []
    for text in texts:
        ids = torch.tensor([tokenizer(text, truncation=True, max_length=62)["input_ids"]])
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0]
        single = problem.startswith("single")
        expected.append(float((logits.softmax(-1) if single else logits.sigmoid())[1]))
    assert scorer.score(texts) == pytest.approx(expected, abs=1e-6)
    assert scorer.protocol()["toxic_label"] == "toxic"
    assert len(scorer.protocol()["revision"]) == 64


def test_a_scorer_that_cannot_be_loaded_is_said(tmp_path):
    with pytest.raises(UserError, match=r"has no config\.json"):
        open_scorer(str(tmp_path), device=CPU)


# The journal


def test_a_journal_goes_on_and_one_of_another_key_is_discarded(tmp_path):
    path = tmp_path / "journal"
    first = Journal(path, "key")
    first.add("a", [[1, "x"], [2, 0.1]])
    first.add("b", [[3]])
    first.close()
    again = Journal(path, "key")
    assert again.batches("a") == [[[1, "x"], [2, 0.1]]]
    again.add("a", [[4]])
    again.close()
    assert Journal(path, "key").batches("a") == [[[1, "x"], [2, 0.1]], [[4]]]
    other = Journal(path, "other")
    assert other.batches("a") == []
    other.close()
    assert Journal(path, "key").batches("a") == []


records = st.lists(
    st.lists(st.one_of(st.integers(), st.text(), st.floats(allow_nan=False, width=64))), max_size=3
)


@given(
    batches=st.lists(st.tuples(st.sampled_from(["a", "b"]), records), max_size=6),
    cut=st.integers(0, 10**4),
    garbage=st.binary(max_size=20),
)
def test_a_torn_journal_keeps_what_was_whole(tmp_path_factory, batches, cut, garbage):
    path = tmp_path_factory.mktemp("journal") / "journal"
    journal = Journal(path, "key")
    for step, batch in batches:
        journal.add(step, batch)
    journal.close()
    content = path.read_bytes()
    kept = content[: cut % (len(content) + 1)]
    path.write_bytes(kept + garbage.replace(b"\n", b""))
    whole = max(0, kept.count(b"\n") - 1)
    for _ in range(2):  # what was cut off stays off, and what is added is found again
        again = Journal(path, "key")
        for step in ("a", "b"):
            assert again.batches(step) == [b for s, b in batches[:whole] if s == step]
        again.close()
    again = Journal(path, "key")
    again.add("a", [["new"]])
    again.close()
    assert Journal(path, "key").batches("a")[-1] == [["new"]]


def test_a_journal_without_a_file_remembers():
    journal = Journal(None, "key")
    journal.add("a", [[1]])
    journal.close()
    assert journal.batches("a") == [[[1]]]


# The measures


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "opt"])
def test_perplexity_is_transformers_own_loss_one_text_at_a_time(open_tiny, tmp_path, family):
    assert family in FAMILIES
    opened = open_tiny(family)
    texts = ["the cat sat on the mat", "who", "in the end", "another one of them", "the " * 60]
    path = tmp_path / "prose.txt"
    path.write_text("\n".join(texts))
    task = Perplexity(texts=str(path), max_tokens=32).prepare(0, CPU)
    batches = list(task.collect(opened, batch_tokens=20, which=ALL))
    found = {text: (nll, n) for batch in batches for text, nll, n in batch}
    assert sorted(found) == list(range(task.records))
    perplexities = []
    for index, text in enumerate(texts):
        ids = torch.tensor([opened.tokenizer(text.strip())["input_ids"][:32]])
        with torch.no_grad():
            loss = float(opened.model(input_ids=ids, labels=ids).loss)
        nll, n = found[index]
        assert n == ids.shape[1] - 1
        assert nll / n == pytest.approx(loss, rel=1e-5)
        perplexities.append(np.exp(loss))
    mean, corpus = task.summarise(None, [row for batch in batches for row in batch]).figures
    assert mean.after.value == pytest.approx(np.mean(perplexities), rel=1e-5)
    total = sum(nll for nll, _ in found.values()) / sum(n for _, n in found.values())
    assert corpus.after.value == pytest.approx(np.exp(total), rel=1e-9)
    assert list(task.collect(opened, batch_tokens=20, which=slice(2, None))) == batches[2:]


def test_texts_of_one_token_are_left_out_in_both_arms(open_tiny, tmp_path):
    path = tmp_path / "prose.txt"
    path.write_text("one\ntwo\nthree\n")
    task = Perplexity(texts=str(path)).prepare(0, CPU)
    before = [Likelihood(2, 9.0, 3), Likelihood(0, 4.0, 2), Likelihood(1, 0.0, 0)]
    after = [Likelihood(0, 5.0, 2), Likelihood(1, 2.0, 1), Likelihood(2, 8.0, 3)]
    mean, corpus = task.summarise(before, after).figures
    assert mean.n == {"texts": 2, "tokens": 5}
    assert corpus.before.value == corpus.after.value == pytest.approx(np.exp(13 / 5))
    with pytest.raises(UserError, match=r"No text of .*prose\.txt has two tokens"):
        task.summarise(None, [Likelihood(text, 0.0, 0) for text in range(3)])


def test_toxicity_counts_by_group_of_prompts(tmp_path, neutral):
    spec = lines(
        tmp_path / "p.jsonl",
        {"text": "p0", "toxicity": 0.5},
        {"text": "p1", "toxicity": 0.49},
        {"text": "p2"},
    )
    task = Toxicity(prompts=spec, scorer=neutral, continuations=2).prepare(0, CPU)
    assert task.records == 6
    before = [Scored(p, c, f"b{p}{c}", "", [0.6]) for p in (2, 1, 0) for c in (1, 0)]
    after = [
        Scored(p, c, f"a{p}{c}", "", [0.51 if p == 0 and c == 0 else 0.5])
        for p in range(3)
        for c in (0, 1)
    ]
    summary = task.summarise(before, after)
    values = {f.name: (f.before.value, f.after.value, f.n) for f in summary.figures}
    assert list(values) == [
        "continuations.all",
        "prompts.all",
        "maximum.all",
        "continuations.toxic",
        "prompts.toxic",
        "maximum.toxic",
        "continuations.non-toxic",
        "prompts.non-toxic",
        "maximum.non-toxic",
    ]
    assert values["continuations.all"][:2] == (1.0, pytest.approx(1 / 6))
    assert values["prompts.all"][:2] == (1.0, pytest.approx(1 / 3))
    assert values["maximum.all"][:2] == (pytest.approx(0.6), pytest.approx(1.51 / 3))
    assert values["continuations.toxic"] == (1.0, 0.5, {"prompts": 1, "continuations": 2})
    assert values["continuations.non-toxic"][1] == 0
    assert summary.samples[1] == {
        "prompt": "p1",
        "prompt_toxicity": 0.49,
        "before": [{"text": "b10", "score": 0.6}, {"text": "b11", "score": 0.6}],
        "after": [{"text": "a10", "score": 0.5}, {"text": "a11", "score": 0.5}],
    }
    assert task.protocol["n_prompts"] == {"all": 3, "toxic": 1, "non-toxic": 1}


def test_prompts_that_are_all_toxic_are_one_group_and_called_so(tmp_path, neutral):
    spec = lines(tmp_path / "p.jsonl", {"text": "p0", "toxicity": 0.9})
    task = Toxicity(prompts=spec, scorer=neutral, continuations=1).prepare(0, CPU)
    figures = task.summarise(None, [Scored(0, 0, "x", "", [0.9])]).figures
    assert [figure.name for figure in figures] == [
        "continuations.all",
        "prompts.all",
        "maximum.all",
    ]
    assert figures[0].label == "Toxic continuations, toxic prompts"
    assert figures[0].before is None


def test_toxicity_scores_continuations_alone_and_empty_ones_with_0(open_tiny, tmp_path, neutral):
    spec = lines(tmp_path / "p.jsonl", {"text": "aaaa"}, {"text": "the cat"})
    opened = open_tiny("gpt2")
    opened.model.generation_config.eos_token_id = list(range(0, 300, 4))
    task = Toxicity(prompts=spec, scorer=neutral, continuations=20, new_tokens=4).prepare(0, CPU)
    rows = [row for b in task.collect(opened, batch_tokens=100, which=ALL) for row in b]
    assert len(rows) == task.records
    assert any(not row.text.strip() for row in rows)
    for row in rows:
        assert row.scores == [min(1.0, row.text.count("a") / 2)]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Toxicity(continuations=0), "`continuations=0` is out of range"),
        (lambda: Toxicity(max_prompts=0), "`max_prompts=0` is out of range"),
        (lambda: Toxicity(top_p=2.0), "`top_p=2` is out of range"),
        (lambda: Perplexity(max_texts=0), "`max_texts=0` is out of range"),
        (lambda: Perplexity(max_tokens=1), "`max_tokens=1` is out of range"),
        (lambda: measure("toxicty"), "no measure 'toxicty': did you mean toxicity"),
    ],
)
def test_a_setting_out_of_range_is_an_error(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_two_measures_cannot_share_a_name():
    with pytest.raises(ValueError, match="two measures are called toxicity"):
        register(Toxicity)
    with pytest.raises(ValueError, match="two scorers are called"):
        register_scorer(LINEAR)(NeutralScorer)
