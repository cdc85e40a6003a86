"""Concepts without labels: what the model writes, and a judge's verdict of each."""

import json
import tomllib
from dataclasses import replace

import numpy as np
import pytest
import torch

import sordino
from chat_templates import FAMILIES
from conftest import sentences
from families import tiny_model
from sordino.cli.app import main
from sordino.concepts import load_concept
from sordino.errors import UserError
from sordino.evaluation import judged as module
from sordino.evaluation.judged import Judged
from sordino.evaluation.opening import open_scorer
from sordino.evaluation.own_samples import OwnPlan
from sordino.expertise import AttributionSettings, Expertise, SweepSettings, written
from sordino.models.chat import RAW, Chat
from sordino.models.open import open_model

JUDGE = "judge:yes-no:judge"
TAKING = [
    *("--own-prompts", "prompts.txt", "--own-continuations", "6", "--own-new-tokens", "8"),
    *("--attribution", "--attribution-per-class", "20", "--device", "cpu"),
]


def speaking(folder, family, seed=0):
    """The folder of a tiny model with a chat template."""
    model = tiny_model(family, seed)
    model.resize_token_embeddings(model.config.vocab_size + 16)
    model.save_pretrained(folder)
    FAMILIES["chatml"].tokenizer().save_pretrained(folder)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A model that writes, and one that says yes to a part of it and no to the rest."""
    folder = tmp_path_factory.mktemp("models")
    speaking(folder / "speaks", "llama")
    draw = np.random.default_rng(0)
    tokenizer = FAMILIES["chatml"].tokenizer()
    texts = [tokenizer.decode(draw.integers(5, 250, 8)) for _ in range(40)]
    for seed in range(4, 30):
        speaking(folder / "judge", "mistral", seed)
        scores = open_scorer(f"yes-no:{folder / 'judge'}", device=torch.device("cpu")).score(texts)
        if 12 <= (scores > 0.5).sum() <= 28:
            return folder
    raise AssertionError("no tiny model says both")


@pytest.fixture
def here(models, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("speaks", "judge"):
        (tmp_path / name).symlink_to(models / name, target_is_directory=True)
    (tmp_path / "prompts.txt").write_text("\n".join(sentences(24, 3, longest=5)) + "\n")
    (tmp_path / "prose.txt").write_text("\n".join(sentences(40, 5, longest=20)) + "\n")
    return tmp_path


def rows_of(file):
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_find_takes_a_judge_and_leaves_a_file_that_is_the_same_concept(here, capsys):
    """With a chat model that answers yes or no; an oracle judges each line again."""
    chat = ("--chat", "off")
    main(["find", "speaks", "--concept", JUDGE, *TAKING, *chat, "-o", "x.expertise.safetensors"])
    assert "x.judged.jsonl, the sentences with their labels" in capsys.readouterr().out
    rows = rows_of(here / "x.judged.jsonl")
    scores = open_scorer("yes-no:judge", device=torch.device("cpu")).score(
        [row["text"] for row in rows]
    )
    np.testing.assert_allclose([row["score"] for row in rows], scores, atol=1e-5)
    assert [row["label"] for row in rows] == [int(score > 0.5) for score in scores]
    assert {row["prompt"] for row in rows} <= set((here / "prompts.txt").read_text().splitlines())
    assert not list(here.glob(".*"))
    main(
        [
            *("find", "speaks", "--concept", "x.judged.jsonl", *TAKING, *chat),
            *("-o", "y.expertise.safetensors"),
        ]
    )
    one, other = (Expertise.load(here / f"{name}.expertise.safetensors") for name in "xy")
    assert one.metadata["concept"] == "yes-no-judge"
    assert "itself wrote after 24 prompts" in one.metadata["concept_source"]
    assert one.metadata["concept_fingerprint"] == other.metadata["concept_fingerprint"]
    for name in ("auroc", "attribution_positive"):
        for site in one.sites:
            np.testing.assert_array_equal(one[name][site], other[name][site])


def test_the_function_takes_a_judge_as_the_command_does(here):
    """To the same bytes; without a file to write, the sentences would be lost."""
    main(
        [
            *("find", "speaks", "--concept", JUDGE, *TAKING, "--own", "--chat", "off"),
            *("-o", "x.expertise.safetensors"),
        ]
    )
    plan = OwnPlan("prompts.txt", continuations=6, new_tokens=8)
    asked = {
        "settings": SweepSettings(chat=RAW),
        "attribution": AttributionSettings(20),
        "own": plan,
        "device": "cpu",
    }
    judged = Judged(replace(plan, judge="yes-no:judge"))
    sordino.find_experts("speaks", judged, **asked, output="y.expertise.safetensors")
    for name in ("expertise.safetensors", "judged.jsonl"):
        assert (here / f"y.{name}").read_bytes() == (here / f"x.{name}").read_bytes()
    assert not list(here.glob(".*"))
    with pytest.raises(UserError, match="`output`"):
        sordino.find_experts("speaks", judged, **asked)


def test_a_killed_command_writes_and_judges_nothing_twice(here, monkeypatch):
    """And own samples of the same plan are those of the concept."""
    arguments = [
        *("find", "speaks", "--concept", JUDGE, *TAKING, "--own", "--chat", "off"),
        *("-o", "x.expertise.safetensors"),
    ]
    asked, generate = [], written.generate

    def counting(opened, batches, *rest, **more):
        asked.extend(batches)
        return generate(opened, batches, *rest, **more)

    def killed(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(written, "generate", counting)
    with monkeypatch.context() as patch:
        patch.setattr("sordino.expertise.find_experts", killed)
        with pytest.raises(SystemExit):
            main(arguments)
    once = len(asked)
    assert once
    main(arguments)
    assert len(asked) == once
    found = Expertise.load(here / "x.expertise.safetensors")
    assert found.metadata["own_judge"] == "yes-no:judge"
    rows = rows_of(here / "x.judged.jsonl")
    mean = np.mean([row["score"] for row in rows])
    assert float(found.metadata["own_mean_score"]) == pytest.approx(mean, abs=0.02)


def test_replies_become_conversations(here):
    opened = open_model("speaks", device="cpu")
    plan = OwnPlan("prompts.txt", "yes-no:judge", continuations=6, new_tokens=8)
    found = Judged(plan).samples(opened, here / "x", chat=Chat())
    rows = rows_of(found.file)
    prompts = set((here / "prompts.txt").read_text().splitlines())
    for row in rows:
        asked, replied = row["messages"]
        assert (asked["role"], replied["role"]) == ("user", "assistant")
        assert asked["content"] in prompts
    whole = Judged(plan, balance=False).samples(opened, here / "x", chat=Chat()).concept
    assert sorted(whole.sentences) == sorted(row["messages"][1]["content"] for row in rows)
    assert whole.contexts[0][0][0][0] == "user"


def test_a_run_by_contrast_takes_the_judged_samples_as_own_samples(here):
    """By default, in the same bytes as if that was asked for; and its recipe says so."""
    for name, more in (("asked", ["--own"]), ("quiet", []), ("none", ["--no-own"])):
        main(
            [
                *("run", "speaks", "--concept", JUDGE, *TAKING, *more),
                *("--intervention", "contrast", "--measure", "perplexity", "--texts", "prose.txt"),
                *("--chat", "off", "-o", name),
            ]
        )
    files = [f"{name}/sordino/yes-no-judge.expertise.safetensors" for name in ("asked", "quiet")]
    assert (here / files[0]).read_bytes() == (here / files[1]).read_bytes()
    assert Expertise.load(files[0]).metadata["own_judge"] == "yes-no:judge"
    for name in ("asked", "quiet"):
        recipe = tomllib.loads((here / name / "sordino/recipe.toml").read_text())
        assert (recipe["own"], recipe["own-judge"]) == (True, "yes-no:judge")
        card = (here / name / "README.md").read_text()
        assert "6 continuations of each of 24 prompts, judged by yes-no:judge" in card
    without = Expertise.load(files[0].replace("asked", "none"))
    assert not without.holds("attribution_own")
    recipe = tomllib.loads((here / "none/sordino/recipe.toml").read_text())
    assert recipe["own"] is False


@pytest.mark.slow
def test_a_run_keeps_the_sentences_that_were_judged(here):
    main(
        [
            *("run", "speaks", "--concept", JUDGE, *TAKING[:6], "--device", "cpu"),
            *("--intervention", "aura", "--measure", "perplexity", "--texts", "prose.txt"),
            *("--chat", "off", "-o", "quiet"),
        ]
    )
    kept = here / "quiet" / "sordino" / "yes-no-judge.judged.jsonl"
    concept = load_concept(kept)
    expertise = Expertise.load(kept.with_name("yes-no-judge.expertise.safetensors"))
    assert expertise.metadata["concept_fingerprint"] == concept.fingerprint
    assert not list(here.glob(".*"))


def test_a_streamed_model_writes_and_labels_the_same(here):
    for name, more in (("whole", "--no-stream"), ("streamed", "--stream")):
        main(
            [
                *("find", "speaks", "--concept", JUDGE, *TAKING, "--own", "--chat", "off", more),
                *("-o", f"{name}.expertise.safetensors"),
            ]
        )
    for kind in ("judged.jsonl", "expertise.safetensors"):
        assert (here / f"streamed.{kind}").read_bytes() == (here / f"whole.{kind}").read_bytes()


def test_what_no_judge_can_label_is_one_sentence(here, monkeypatch):
    opened = open_model("speaks", device="cpu")
    plan = OwnPlan("prompts.txt", "wordlist", continuations=2, new_tokens=4)
    with pytest.raises(UserError, match="gave all 48 own samples the same score"):
        Judged(plan).samples(opened, here / "x", chat=RAW)
    monkeypatch.setattr(module, "TOXIC_SCORE", 0.9999)
    with pytest.raises(UserError, match="and 20 are needed"):
        Judged(OwnPlan("prompts.txt", "yes-no:judge")).samples(opened, here / "x", chat=RAW)
    with pytest.raises(UserError, match="names no scorer"):
        Judged(OwnPlan())
    with pytest.raises(UserError, match="needs the model"):
        load_concept(JUDGE)
    for more in (("--label", "toxic"), ("--plan",)):
        with pytest.raises(SystemExit):
            main(["find", "speaks", "--concept", JUDGE, *more, "-o", "x.expertise.safetensors"])
