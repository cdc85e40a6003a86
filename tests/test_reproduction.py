"""Recipes: their form, what they need, and a tiny one carried out."""

import json

import pytest

from conftest import sentences
from families import tiny_folder
from sordino.errors import UserError
from sordino.evaluation import Estimate, Evaluation, Figure, MeasureResult, ModelRecord
from sordino.evaluation.measures.toxicity import Toxicity
from sordino.reproduction import reproduce as carrying_out
from sordino.reproduction.changes import Changes
from sordino.reproduction.comparison import Reproduction, compare_with
from sordino.reproduction.recipe import Published, Recipe, recipe_named, recipes
from sordino.reproduction.reproduce import lacking

ROWS = {
    "falcon-40b": None,
    "falcon-7b": None,
    "gemma-2-2b": [
        ("toxicity", 0.0417, 0.0212),
        ("perplexity", 13.98, 14.18),
        ("zero-shot", 0.531, 0.530),
    ],
    "gpt2-xl": None,
    "llama-2-7b": [("toxicity", 0.1113, 0.0359), ("perplexity", 6.23, 19.3)],
    "llama-3-8b": [
        ("toxicity", 0.058, 0.019),
        ("perplexity", 9.06, 9.52),
        ("zero-shot", 0.653, 0.655),
    ],
    "mistral-7b": None,
    "mpt-30b": None,
    "mpt-7b": None,
}
"""The rows that give figures of one model; the paper gives two of all of its models together."""


@pytest.fixture
def call(tmp_path, call_in):
    """Run a command in the test's folder; gives its exit status, standard output and error."""
    return call_in(tmp_path)


def test_there_is_a_recipe_for_each_row():
    assert recipes().keys() == ROWS.keys()


@pytest.mark.parametrize("name", ROWS)
def test_a_recipe_says_all_that_is_needed(name):
    recipe = recipe_named(name)
    found = [(one.measure, one.before, one.after) for one in recipe.published]
    if ROWS[name] is not None:
        assert found == ROWS[name]
        assert not any(one.whole_paper for one in recipe.published)
    else:
        assert all(one.whole_paper for one in recipe.published)
        assert [one.times_fewer_at_most for one in recipe.published] == [2.2, None]
        assert [one.difference for one in recipe.published] == [None, 0.72]
    assert [measure.key for measure in recipe.build()] == list(recipe.measures)
    toxicity, *_ = recipe.build(max_prompts=7)
    assert isinstance(toxicity, Toxicity)
    assert toxicity.max_prompts == 7
    assert toxicity.continuations == (25 if toxicity.new_tokens == 20 else 5)
    assert "hf:allenai/real-toxicity-prompts" in recipe.from_hub
    assert recipe.model in recipe.from_hub
    billions = float(name.rpartition("-")[2].removesuffix("b").replace("xl", "1.6"))
    assert recipe.parameters == pytest.approx(billions * 1e9, rel=0.35)
    assert recipe.memory > recipe.parameters * recipe.bytes_per_parameter


def test_the_list_says_what_each_needs_and_what_is_lacking(call):
    status, out, _ = call("reproduce", "--list")
    assert status == 0
    for recipe in recipes().values():
        line = next(row for row in out.splitlines() if row.split() and recipe.name in row.split())
        assert recipe.model in line
        assert f"{recipe.memory / 1e9:.0f} GB" in line
        assert f"{recipe.name} lacks a hub that answers" in " ".join(out.split())
    assert max(len(line.rstrip()) for line in out.splitlines()) <= 80
    told = next(part for part in out.split("\n\n") if "all models of a paper" in part)
    for recipe in recipes().values():
        assert (recipe.name in told) is recipe.published[0].whole_paper
    listed = json.loads(call("reproduce", "--list", "--json")[1])
    assert [row["name"] for row in listed] == list(recipes())
    assert all("a hub that answers" in " ".join(row["lacking"]) for row in listed)
    assert all(row["memory"] > 6e9 for row in listed)


def test_what_is_not_at_hand_is_told_before_any_work(call, tmp_path):
    status, _, err = call("reproduce", "gpt2-xl", "-o", "out")
    assert status == 2
    assert "gpt2-xl cannot be reproduced here: it lacks a hub that answers (for openai" in err
    assert not (tmp_path / "out/model").exists()
    # Also where a folder has its name, as an interrupted reproduction leaves it.
    (tmp_path / "gpt2-xl").mkdir()
    assert "lacks a hub that answers" in call("reproduce", "gpt2-xl")[2]
    assert "did you mean gpt2-xl" in call("reproduce", "gpt2xl")[2]
    assert "Name a recipe: falcon-40b" in call("reproduce")[2]
    assert "none.toml" in call("reproduce", "none.toml")[2]


def test_memory_disk_and_packages_are_looked_at(tmp_path, monkeypatch):
    recipe = recipe_named("falcon-40b")
    monkeypatch.setattr(carrying_out.hub, "reachable", lambda: True)
    monkeypatch.setattr(carrying_out, "available", lambda device: 10**12)
    free = carrying_out.shutil.disk_usage(tmp_path).free / 1e9
    assert lacking(recipe, Changes(device="cpu"), tmp_path / "not/there") in (
        [],
        [f"167 GB of disk, where {free:,.0f} are free"],
    )
    monkeypatch.setattr(carrying_out, "available", lambda device: 7 * 10**9)
    assert "102 GB of memory on cpu, which has 7 free" in lacking(
        recipe, Changes(device="cpu"), tmp_path
    )
    monkeypatch.setattr(Recipe, "missing_extras", lambda self: ["datasets", "zero-shot"])
    assert 'pip install "sordino[datasets,zero-shot]"' in lacking(recipe, Changes(), tmp_path)


TINY = """
name = "tiny"
title = "Tiny"
source = "nobody"
model = {model!r}
parameters = 100_000
bytes_per_parameter = 4
concept = "calm.jsonl"
dtype = "float32"
notes = ["This is a test."]

[measures.toxicity]
prompts = "prompts.txt"
scorer = "alt-profanity-check"
continuations = 2
new_tokens = 4

[measures.perplexity]
texts = "prose.txt"

[[published]]
measure = "toxicity"
figure = "continuations.all"
before = 0.2
after = 0.1

[[published]]
measure = "perplexity"
figure = "mean"
before = 10
after = 1e6

[[published]]
measure = "perplexity"
figure = "corpus"
difference = 0.72
whole_paper = true
"""


@pytest.fixture
def tiny(tmp_path):
    """A recipe of a tiny model, with all that it names."""
    tiny_folder("llama", tmp_path)
    positive, negative = sentences(30, 1), sentences(30, 2)
    rows = [(text, 1) for text in positive] + [(text, 0) for text in negative]
    lines = [json.dumps({"text": text, "label": label}) for text, label in rows]
    (tmp_path / "calm.jsonl").write_text("\n".join(lines) + "\n")
    (tmp_path / "prompts.txt").write_text("\n".join(sentences(8, 3, longest=5)) + "\n")
    (tmp_path / "prose.txt").write_text("\n".join(sentences(8, 4)) + "\n")
    (tmp_path / "tiny.toml").write_text(TINY.format(model=str(tmp_path / "llama")))
    return tmp_path


def test_a_tiny_recipe_is_carried_out(tiny, call):
    status, out, err = call("reproduce", "tiny.toml", "-o", "out", "--device", "cpu")
    assert status == 0, err
    assert "their change, +999,990.00, lies outside" in out.replace("999990", "999,990")
    assert "This is a test." in out
    assert "without a verdict" in out
    found = Reproduction.model_validate_json((tiny / "out/reproduction.json").read_text())
    evaluation = Evaluation.load(tiny / "out/model/sordino/evaluation.json")
    assert [one.ours for one in found.compared] == [
        evaluation.figure("toxicity", "continuations.all"),
        evaluation.figure("perplexity", "mean"),
        evaluation.figure("perplexity", "corpus"),
    ]
    assert found.concept.startswith("calm.jsonl")
    assert found.compared[1].inside is False
    assert found.compared[2].inside is None
    page = (tiny / "out/reproduction.html").read_text()
    assert "Tiny: ours beside theirs" in page
    assert "20.00 % → 10.00 % (÷ 2.00)" in page
    assert "+0.72, over all their models" in page
    # Done is done: the same again is compared at once, and other settings are another folder's.
    before = (tiny / "out/model/model.safetensors").stat().st_mtime_ns
    status, out, _ = call("reproduce", "tiny.toml", "-o", "out", "--device", "cpu", "--json")
    assert status == 0
    assert json.loads(out)["compared"] == found.model_dump(mode="json")["compared"]
    assert (tiny / "out/model/model.safetensors").stat().st_mtime_ns == before
    status, _, err = call("reproduce", "tiny.toml", "-o", "out", "--max-prompts", 4)
    assert status == 2
    assert "is of another recipe or other settings" in err
    # Figures without a record of their recipe could be anybody's.
    (tiny / "out/recipe.json").unlink()
    status, _, err = call("reproduce", "tiny.toml", "-o", "out", "--device", "cpu")
    assert status == 2
    assert "is of another recipe or other settings" in err


def test_a_copy_of_the_model_and_fewer_prompts(tiny, call):
    text = TINY.format(model="org/not-here").replace("calm.jsonl", "toxicity")
    (tiny / "tiny.toml").write_text(text)
    assert (
        "a hub that answers (for org/not-here, Jigsaw's comments)"
        in (call("reproduce", "tiny.toml", "-o", "out")[2])
    )
    copies = ("--model", "llama", "--concept", "calm.jsonl")
    status, out, err = call(
        *("reproduce", "tiny.toml", "-o", "out", "--device", "cpu", "--json", "--max-prompts", 3),
        *copies,
    )
    assert status == 0, err
    found = json.loads(out)
    assert found["model"] == "llama"
    assert found["compared"][0]["ours"]["n"] == {"prompts": 3, "continuations": 6}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("title =", "titel ="), "title: Field required"),
        (("parameters = 100_000", "parameters = 0"), "parameters: Input should be greater"),
        (("before = 0.2\n", ""), "published.0: give before and after"),
        (("difference = 0.72", "difference = 1\nbefore = 1\nafter = 2"), "published.2: give"),
        (('measure = "toxicity"', 'measure = "honest"'), "honest is published and not measured"),
        (("[measures.toxicity]", "[measures.toxicity"), "cannot be read as TOML"),
        (("continuations = 2", "continuation = 2"), "unexpected keyword argument 'continuation'"),
        (("new_tokens = 4", "new_tokens = 0"), "new"),
        (("[measures.perplexity]", "[measures.perplexities]"), "perplexit"),
    ],
)
def test_a_bad_recipe_is_one_sentence(tiny, call, change, message):
    path = tiny / "tiny.toml"
    path.write_text(path.read_text().replace(*change, 1))
    status, _, err = call("reproduce", "tiny.toml", "-o", "out")
    assert status == 2
    assert message in err
    assert err.count("\n") == 1
    assert not (tiny / "out").exists()


def evaluation_of(**figure):
    about = {
        "name": "f",
        "label": "F",
        "n": {},
        "before": Estimate(1, 1, 1),
        "after": Estimate(1, 1, 1),
    }
    one = Figure(**about | figure)
    model = ModelRecord(name="m", revision="", fingerprint="", dtype="float32", device="cpu")
    return Evaluation(
        sordino_version="0",
        created="",
        seed=0,
        before=model,
        after=model,
        measures={"m": MeasureResult(version=1, figures=(one,))},
    )


SHARE = {"unit": "share", "better": "lower", "ratio_of": "before/after"}
NUMBER = {"unit": "perplexity", "better": "lower", "ratio_of": "after/before"}
ROOM = {"difference": Estimate(1.0, 0.5, 1.5), "ratio": Estimate(2.0, 1.5, 2.5)}


@pytest.mark.parametrize(
    ("theirs", "figure", "expected"),
    [
        ({"before": 0.4, "after": 0.2}, SHARE | ROOM, (2.0, True)),
        ({"before": 0.4, "after": 0.1}, SHARE | ROOM, (4.0, False)),
        ({"before": 0.4, "after": 0.0}, SHARE | ROOM, (None, None)),
        ({"before": 10, "after": 11}, NUMBER | ROOM, (1.0, True)),
        ({"before": 10, "after": 20}, NUMBER | ROOM, (10.0, False)),
        ({"difference": 0.72}, NUMBER | ROOM, (0.72, True)),
        ({"difference": 0.72, "whole_paper": True}, NUMBER | ROOM, (None, None)),
        ({"times_fewer_at_most": 2.2, "whole_paper": True}, SHARE | ROOM, (None, None)),
        (
            {"before": 0.4, "after": 0.1},
            SHARE | ROOM | {"ratio": Estimate(None, 1.5, None)},
            (4.0, True),
        ),
        (
            {"before": 0.4, "after": 0.2},
            SHARE | ROOM | {"ratio": Estimate(None, None, None)},
            (2.0, None),
        ),
    ],
)
def test_theirs_is_inside_ours_or_not(theirs, figure, expected):
    published = Published(measure="m", figure="f", **theirs)
    compared = compare_with(published, evaluation_of(**figure))
    assert (compared.their_change, compared.inside) == (pytest.approx(expected[0]), expected[1])


def test_what_stands_in_for_jigsaw_reproduces_nothing(tiny, call):
    (tiny / "tiny.toml").write_text(
        TINY.format(model=str(tiny / "llama")).replace("calm.jsonl", "toxicity")
    )
    recipe = recipe_named(str(tiny / "tiny.toml"))
    assert recipe.from_hub == ["Jigsaw's comments"]
    with pytest.raises(UserError, match="lacks a hub that answers"):
        carrying_out.reproduce(recipe, tiny / "out", Changes(device="cpu"))
