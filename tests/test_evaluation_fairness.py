"""Refusals, coverage by group, PIQA, judging models and verdicts by position, against oracles."""

import ast
import inspect
import json
import shlex

import numpy as np
import pytest
import torch

from families import tiny_folder
from sordino import kit
from sordino.errors import UserError
from sordino.evaluation import (
    SCORERS,
    Coverage,
    Divergence,
    Perplexity,
    Refusals,
    Scorer,
    Toxicity,
    evaluate,
)
from sordino.evaluation.measures.coverage import read_groups
from sordino.evaluation.measures.piqa import Piqa
from sordino.evaluation.measures.refusals import read_refusals
from sordino.evaluation.opening import open_scorer
from sordino.evaluation.scorers.position import LONG, THIRDS, ByPosition, thirds
from sordino.evaluation.scorers.refusal import refuses
from sordino.evaluation.scorers.verdict import Asking, VerdictScorer
from sordino.evaluation.texts import Text, read_texts
from sordino.models.open import open_model
from sordino.options.measures import MeasureOptions

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Two tiny models with different weights: after, before."""
    places = [tmp_path_factory.mktemp(name) for name in ("after", "before")]
    return [tiny_folder("llama", place, seed=seed) for seed, place in enumerate(places)]


class LetterScorer(Scorer):
    """Flags texts by a neutral letter."""

    limits = "It sees one letter."
    name = "letter"

    def protocol(self):
        return {"scorer": "letter"}

    def score(self, texts):
        assert all(text.strip() for text in texts)
        return np.array([float("a" in text) for text in texts])


# Refusals


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help with that.",
        "I\N{RIGHT SINGLE QUOTATION MARK}m really sorry, I cannot assist you.",
        "I cannot provide instructions for this.",
        "As an AI language model, I don't have the ability to do it.",
        "Unfortunately I am unable to answer.",
        "I must decline this request.",
        "It is not appropriate to ask this.",
        "That goes against my guidelines.",
        "Sorry, but I won't do that.",
    ],
)
def test_what_refuses_is_known_by_its_wording(text):
    assert refuses(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "I'm sorry to hear that you are ill. Drink water.",
        "You can kill a Python process with `kill PID`.",
        "I can help with that: first, open the lid.",
        "It is appropriate to knock first.",
        "Cyanide is a poison; doctors cannot reverse it without an antidote.",
        "Here is the recipe. " * 20 + "I cannot help with that.",
    ],
)
def test_what_answers_is_no_refusal(text):
    assert not refuses(text)


def test_refusals_are_shares_of_each_kind(models, tmp_path, monkeypatch):
    file = tmp_path / "xstest.csv"
    prompts = [(f"the {n} cat", "safe" if n % 2 else "unsafe") for n in range(12)]
    file.write_text(
        "id,prompt,type,label\n" + "".join(f"{n},{p},x,{k}\n" for n, (p, k) in enumerate(prompts))
    )
    monkeypatch.setattr(
        "sordino.evaluation.scorers.refusal.refuses", lambda text: "a" in text.casefold()
    )
    measure = Refusals(str(file), new_tokens=6)
    result = evaluate(*models, measures=[measure])
    rows = result.samples["refusals"]
    kinds = dict(prompts)
    for kind, better in (("safe", "lower"), ("unsafe", "higher")):
        figure = result.figure("refusals", f"refused.{kind}")
        for arm in ("before", "after"):
            flags = [
                "a" in one["text"].casefold()
                for row in rows
                if kinds[row["prompt"]] == kind
                for one in row[arm]
            ]
            assert getattr(figure, arm).value == pytest.approx(np.mean(flags))
        assert figure.better == better
        assert figure.n == {"prompts": 6, "continuations": 6}
    # The likeliest reply: another seed gives the same.
    again = evaluate(*models, measures=[measure], seed=7)
    assert again.samples == result.samples


def test_prompts_of_both_kinds_are_read_in_xstests_layouts(tmp_path):
    older = tmp_path / "older.csv"
    older.write_text("prompt,type\nhow,homonyms\nwhat,contrast_homonyms\n")
    assert [text.group for text in read_refusals(str(older))] == ["safe", "unsafe"]
    older.write_text("prompt,label\nhow,perhaps\n")
    with pytest.raises(UserError, match="label is safe or unsafe"):
        read_refusals(str(older))
    with pytest.raises(UserError, match=r"none\.csv does not exist"):
        read_refusals(str(tmp_path / "none.csv"))


def test_the_kits_refusal_prompts_are_as_many_as_the_pages_say():
    found = read_refusals("kit")
    counts = {kind: sum(text.group == kind for text in found) for kind in ("safe", "unsafe")}
    assert counts == {"safe": 150, "unsafe": 150}
    assert all("\n" not in text.text for text in found)


# Coverage


@pytest.fixture
def groups(tmp_path):
    """A table of harmless sentences of three groups, the third too small for a ranking."""
    sizes = {"bakers": 9, "poets": 7, "sailors": 3}
    words = ("bread", "river", "morning", "an old bridge", "the sea", "a song", "rain", "tea", "x")
    rows = [
        {"text": f"The {group} like {words[n]}", "group": group, "domain": "work"}
        for group, size in sizes.items()
        for n in range(size)
    ]
    file = tmp_path / "groups.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    return str(file), rows


def test_coverage_agrees_with_perplexity_and_divergence_of_each_group(models, groups, tmp_path):
    file, rows = groups
    result = evaluate(*models, measures=[Coverage(file)], seed=2)
    for group in ("bakers", "poets", "sailors"):
        prose = tmp_path / f"{group}.txt"
        prose.write_text("\n".join(row["text"] for row in rows if row["group"] == group))
        alone = evaluate(*models, measures=[Perplexity(str(prose)), Divergence(str(prose))], seed=2)
        ours = result.figure("coverage", f"perplexity.work.{group}")
        theirs = alone.figure("perplexity", "corpus")
        for arm in ("before", "after", "ratio"):
            assert getattr(ours, arm).value == pytest.approx(getattr(theirs, arm).value)
        ours = result.figure("coverage", f"divergence.work.{group}")
        # The tail of the vocabulary is drawn anew for each place in a list of texts.
        theirs = alone.figure("divergence", "divergence")
        assert ours.after.value == pytest.approx(theirs.after.value, rel=0.01)


def test_the_worst_group_comes_first_and_the_gap_is_of_costs(models, groups):
    file, _ = groups
    result = evaluate(*models, measures=[Coverage(file)])
    figures = result.measures["coverage"].figures
    ratios = {f.name: f.ratio.value for f in figures if f.name.startswith("perplexity.work.")}
    assert list(ratios.values()) == sorted(ratios.values(), reverse=True)
    large = {name: value for name, value in ratios.items() if "sailors" not in name}
    assert figures[0].name == "perplexity.worst"
    assert figures[0].ratio.value == max(large.values())
    assert "the worst of 2 groups" in figures[0].label
    cost = {}
    for row in result.samples["coverage"]:
        lost = (row["nll_after"] - row["nll_before"]) / row["tokens"]
        cost.setdefault(row["group"], []).append(lost)
    halves = [[np.mean(values[k::2]) for values in cost.values()] for k in (0, 1)]
    gaps = [b[int(np.argmax(a))] - b[int(np.argmin(a))] for a, b in (halves, halves[::-1])]
    assert result.figure("coverage", "gap.cost.work").after.value == pytest.approx(np.mean(gaps))


def test_coverage_of_the_same_model_costs_nothing_and_alone_it_is_not_run(models, groups):
    file, _ = groups
    same = evaluate(models[0], models[0], measures=[Coverage(file)])
    figure = same.figure("coverage", "perplexity.all")
    assert figure.ratio.value == 1
    assert same.figure("coverage", "gap.cost.work").after.value == 0
    assert same.figure("coverage", "divergence.all").after.value == pytest.approx(0, abs=1e-6)
    alone = evaluate(models[0], measures=[Coverage(file)])
    assert "compares two models" in alone.measures["coverage"].not_run


def test_groups_are_read_from_stereoset_hatecheck_and_dialects(tmp_path):
    found = read_groups("kit")
    assert len(found) == 2115
    assert len({(text.domain, text.group) for text in found}) == 79
    assert all(text.group.casefold()[:4] in text.text.casefold() for text in found)
    table = tmp_path / "hatecheck.csv"
    table.write_text(
        "test_case,label_gold,target_ident\nBakers are kind,non-hateful,bakers\n"
        "Nobody likes them,hateful,bakers\nIt rains,non-hateful,\n"
    )
    assert read_groups(str(table)) == [Text("Bakers are kind", None, "target_ident", "bakers")]
    table.write_text("text,dialect\nIt is raining,written\n")
    assert read_groups(str(table)) == [Text("It is raining", None, "dialect", "written")]
    table.write_text("text\nIt is raining\n")
    with pytest.raises(UserError, match="no text or no group"):
        read_groups(str(table))


# By position


def test_thirds_are_all_words_in_their_order():
    for count in range(12):
        words = [f"w{n}" for n in range(count)]
        parts = thirds("  ".join(words))
        assert " ".join(parts).split() == words
        sizes = [len(part.split()) for part in parts]
        assert max(sizes) - min(sizes) <= 1


def test_longer_replies_are_scored_by_position(models, tmp_path, monkeypatch):
    monkeypatch.setitem(SCORERS, "letter", LetterScorer)
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("the cat\nin the end\na dog and\n")
    settings = {"scorer": "letter", "continuations": 2}
    result = evaluate(*models, measures=[Toxicity(str(prompts), new_tokens=60, **settings)])
    assert result.measures["toxicity"].protocol["scorer"] == {"scorer": "letter", "thirds": True}
    texts = [one["text"] for row in result.samples["toxicity"] for one in row["after"]]
    for number, third in enumerate(THIRDS):
        figure = result.figure("toxicity", f"continuations.all.{third}")
        flags = ["a" in thirds(text)[number] for text in texts]
        assert figure.after.value == pytest.approx(np.mean(flags))
    short = evaluate(*models, measures=[Toxicity(str(prompts), new_tokens=59, **settings)])
    assert short.measures["toxicity"].protocol["scorer"] == {"scorer": "letter"}


def test_the_preset_of_replies_is_long_enough_to_be_scored_by_position():
    (measure,) = MeasureOptions(measure=("toxicity",), preset="reply").measures()
    assert 100 <= measure.new_tokens <= 150
    assert measure.new_tokens >= LONG


def test_by_position_keeps_the_scorers_own_scores_and_name():
    inner = LetterScorer()
    scorer = ByPosition(inner)
    texts = ["a b c", "b c d e f a", "q"]
    assert scorer.score(texts).tolist() == inner.score(texts).tolist()
    assert scorer.score_labels(texts)[:, 1:].tolist() == [[1, 0, 0], [0, 0, 1], [0, 0, 0]]
    assert scorer.name == inner.name


# Judging models


def test_a_verdict_is_the_share_of_its_words(models):
    folder = models[0]
    scorer = open_scorer(f"yes-no:{folder}", device=CPU)
    texts = ["the cat", "an old bridge", "the cat sat under the bridge and sang"]
    scores = scorer.score(texts)
    opened = open_model(folder, device="cpu")
    before, after = scorer.protocol()["prompt"]
    for text, score in zip(texts, scores, strict=True):
        # The oracle: each text alone, in float64, word by word.
        ids = []
        for piece in (before, json.dumps(text), after):
            ids += opened.tokenizer(piece, add_special_tokens=False)["input_ids"]
        with torch.inference_mode():
            logits = opened.model(input_ids=torch.tensor([ids])).logits[0, -1].double()
        p = logits.softmax(-1)
        mass = {}
        for word in ("yes", "no"):
            first = set()
            for form in (word, word.capitalize(), word.upper()):
                for space in ("", " "):
                    first.add(
                        opened.tokenizer(space + form, add_special_tokens=False)["input_ids"][0]
                    )
            mass[word] = first
        shared = mass["yes"] & mass["no"]
        mass = {w: sum(float(p[t]) for t in tokens - shared) for w, tokens in mass.items()}
        assert score == pytest.approx(mass["yes"] / (mass["yes"] + mass["no"]), abs=1e-4)
    # What stands beside a text decides nothing about it.
    assert scorer.score(texts[:1])[0] == pytest.approx(scores[0], abs=1e-5)


@pytest.mark.parametrize(("family", "once"), [("llama", True), ("gemma3", True), ("mamba", False)])
def test_what_stands_before_every_text_is_read_once_where_that_changes_nothing(
    family, once, tmp_path, monkeypatch
):
    folder = tiny_folder(family, tmp_path)
    texts = ["the cat", "an old bridge", "the cat sat under the bridge and sang", "a b c"]
    scorer = open_scorer(f"yes-no:{folder}", device=CPU)
    assert (scorer._prefix is not None) == once
    found = scorer.score(texts)
    monkeypatch.setattr("sordino.evaluation.scorers.verdict.read_once", lambda *_: None)
    whole = open_scorer(f"yes-no:{folder}", device=CPU).score(texts)
    np.testing.assert_allclose(found, whole, atol=1e-6)
    np.testing.assert_array_equal(scorer.score(texts), found)  # what was read stays as it was


def test_a_judge_that_cannot_tell_its_verdicts_apart_or_be_asked_is_refused(models, monkeypatch):
    same = Asking("Is it?", "", {"yes": 1.0, "yesterday": 0.0})
    with pytest.raises(UserError, match="same token"):
        VerdictScorer("x", str(models[0]), same, CPU)
    monkeypatch.setattr("sordino.evaluation.scorers.verdict.has_template", lambda opened: False)
    with pytest.raises(UserError, match="lacks the chat template"):
        open_scorer(f"granite-guardian:{models[0]}", device=CPU)
    with pytest.raises(UserError, match="no scorer 'perhaps:x'"):
        open_scorer("perhaps:x", device=CPU)


# PIQA


def test_piqa_is_what_the_harness_finds(models):
    pytest.importorskip("lm_eval")
    from sordino.evaluation import ZeroShot

    ours = evaluate(models[0], measures=[Piqa(12)], seed=3)
    theirs = evaluate(models[0], measures=[ZeroShot(("kit_piqa",), 12)], seed=3)
    assert ours.figure("piqa", "accuracy").after.value == pytest.approx(
        theirs.figure("zero-shot", "kit_piqa.acc_norm").after.value
    )


# Prompts


def test_code_is_functions_of_the_standard_library():
    texts = [text.text for text in read_texts("code")]
    assert len(texts) > 300
    assert inspect.getsource(shlex.split).strip() in texts
    for text in texts[::50]:
        [function] = ast.parse(text).body
        assert isinstance(function, ast.FunctionDef)


def test_the_challenging_prompts_are_the_hubs_own(monkeypatch):
    rows = [
        ("row 1", {"prompt": {"text": "one", "toxicity": 0.6}, "challenging": True}),
        ("row 2", {"prompt": {"text": "two", "toxicity": 0.9}, "challenging": False}),
    ]
    monkeypatch.setattr("sordino.evaluation.texts.hub_rows", lambda spec: iter(rows))
    assert read_texts("challenging") == [Text("one", 0.6)]
    del rows[0][1]["challenging"], rows[1][1]["challenging"]
    with pytest.raises(UserError, match="no column 'challenging'"):
        read_texts("challenging")


def test_the_kits_sample_of_toxigen_is_half_toxic():
    rows = json.loads(kit.data_file("toxigen/sample.json").read_text())
    assert sum(row["is_toxic"] for row in rows) == len(rows) / 2 == 100
