"""The command line as a user meets it."""

import errno
import gc
import json
import math
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from conftest import forked, sentences
from families import tiny_model, tiny_tokenizer
from sordino.cli.app import main
from sordino.cli.options import print_columns
from sordino.edits import Verification
from sordino.errors import UserError
from sordino.evaluation import MEASURES
from sordino.expertise import Expertise
from sordino.interventions import Dampening, aura
from sordino.tuning import baking

DAMPENING = "sordino/dampening.safetensors"
POSITIVE, NEGATIVE = sentences(40, 1), sentences(45, 2)


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A folder with a tiny model, a concept and prompts."""
    folder = tmp_path_factory.mktemp("cli")
    tiny_model("llama").save_pretrained(folder / "tiny")
    tiny_tokenizer().save_pretrained(folder / "tiny")
    (folder / "yes.txt").write_text("\n".join(POSITIVE) + "\n")
    (folder / "no.txt").write_text("\n".join(NEGATIVE) + "\n")
    rows = [(text, 1) for text in POSITIVE] + [(text, 0) for text in NEGATIVE]
    lines = [json.dumps({"text": text, "label": label}) for text, label in rows]
    (folder / "calm.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "prompts.txt").write_text("\n".join(sentences(12, 3, longest=5)) + "\n")
    (folder / "prose.txt").write_text("\n".join(sentences(12, 4)) + "\n")
    return folder


@pytest.fixture
def call(here, call_in):
    """Run a command in that folder; gives its exit status, standard output and error."""
    return call_in(here)


TEXTS = ["--texts", "prose.txt"]
EVALUATION = [
    *("--prompts", "prompts.txt", *TEXTS, "--scorer", "alt-profanity-check"),
    *("--continuations", "2", "--new-tokens", "6"),
]
AURA = ["run", "tiny", "--concept", "calm.jsonl", "--intervention", "aura"]


def test_find_bake_evaluate_inspect(call, here):
    status, out, _ = call(
        *("find", "tiny", "--concept", "yes.txt", "--negatives", "no.txt"),
        *("-o", "calm.expertise.safetensors"),
    )
    assert status == 0
    assert "512 neurons in 12 sites" in out
    assert Expertise.load(here / "calm.expertise.safetensors").metadata["n_positive"] == "40"

    status, out, _ = call(
        *("bake", "tiny", "calm.expertise.safetensors", "-o", "quiet", "--verify", "--json")
    )
    assert status == 0
    baked = json.loads(out)
    assert baked["verification"]["largest_difference"] < 1e-4
    assert baked["intervention"]["name"] == "aura"

    status, out, _ = call("evaluate", "quiet", "--against", "tiny", "-o", "r.json", *EVALUATION)
    assert status == 0
    assert "Perplexity" in out
    assert "blind" in out
    result = json.loads((here / "r.json").read_text())
    # The model has a chat template, so that its replies are measured as well.
    assert set(result["measures"]) == {"toxicity", "toxicity:chat", "perplexity"}

    for subject, expected in [
        ("tiny", "LlamaForCausalLM, 4 layers, 512 neurons in 12 sites"),
        ("calm.expertise.safetensors", "40 positive and 40 negative"),
        ("quiet", "intervention aura, strength 1"),
    ]:
        status, out, _ = call("inspect", subject)
        assert status == 0
        assert expected in out
        assert json.loads(call("inspect", subject, "--json")[1])


def test_what_would_do_nothing_is_refused(call, here):
    call("find", "tiny", "--concept", "calm.jsonl", "-o", "n.expertise.safetensors", "--force")
    expertise = "n.expertise.safetensors"
    for command in (
        ["bake", "tiny", expertise, "-o", "never"],
        ["evaluate", "tiny", "--dampening", expertise, "-o", "never.json"],
        ["chat", "tiny", expertise],
    ):
        status, _, error = call(*command, "--sites", "up_proj")
        assert (status, "--sites" in error) == (2, True)
    for command, said in {
        (expertise, "--sites", "up_proj"): "--sites is for a model",
        (expertise, "--revision", "v2"): "--revision is for a model",
        ("tiny", "--strength", "0.5"): "--strength is for an expertise file",
        ("tiny", "--set", "k=3"): "--set is for an expertise file",
    }.items():
        status, _, error = call("inspect", *command)
        assert (status, said in error) == (2, True), error
    _, _, error = call("inspect", "tiny", "--revision", "v2")
    assert "--revision is for models on the hub: tiny is read as it is" in error


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("-o", "never.gguf"), "names a GGUF file, and tiny is not one"),
        (("-o", "never", "--dtype", "float32"), "tiny keeps its own dtype"),
        (("-o", "never", "--rank", "5"), "has no rank"),
    ],
)
def test_bake_refuses_before_it_measures_a_size(given, said, call, here, monkeypatch):
    call("find", "tiny", "--concept", "calm.jsonl", "-o", "e.expertise.safetensors", "--force")
    monkeypatch.setattr(baking, "sized", None)
    status, _, error = call(
        *("bake", "tiny", "e.expertise.safetensors", "--divergence", "0.01", *TEXTS, *given)
    )
    assert (status, said in error) == (2, True), error


def test_logits_that_overflow_are_null_in_json(call, here, monkeypatch):
    call("find", "tiny", "--concept", "calm.jsonl", "-o", "o.expertise.safetensors", "--force")
    found = Verification(math.inf, math.nan, 12, math.inf, math.nan)
    monkeypatch.setattr("sordino.edits.verify", lambda *_, **__: found)
    status, out, error = call(
        "bake", "tiny", "o.expertise.safetensors", "-o", "over", "--verify", "--json", "--force"
    )
    assert status == 2
    assert json.loads(out)["verification"] == dict.fromkeys(vars(found)) | {"tokens": 12}
    assert "differs from the intended model" in error


def test_the_control_and_strength_change_the_weights_differently(call, here):
    call("find", "tiny", "--concept", "calm.jsonl", "-o", "c.expertise.safetensors", "--force")
    for name, options in {
        "a": [],
        "b": ["--intervention", "shuffled", "--set", "seed=3"],
        "c": ["--strength", "0.5"],
        "d": ["--intervention", "damp", "--set", "k=20", "--set", "factor=0.3"],
    }.items():
        assert call("bake", "tiny", "c.expertise.safetensors", "-o", f"m{name}", *options)[0] == 0
    weights = {(here / f"m{name}/model.safetensors").read_bytes() for name in "abcd"}
    assert len(weights) == 4


def test_hooks_are_evaluated_like_what_is_baked(call, here):
    if not (here / "c.expertise.safetensors").exists():
        call("find", "tiny", "--concept", "calm.jsonl", "-o", "c.expertise.safetensors")
    half, measured = ("--strength", "0.5"), (*EVALUATION, "--max-texts", "6")
    call("bake", "tiny", "c.expertise.safetensors", "-o", "half", *half)
    hooks = ("--dampening", "c.expertise.safetensors", *half)
    for name, arguments in {"baked": ("half",), "hooks": ("tiny", *hooks)}.items():
        status, _, error = call(
            *("evaluate", *arguments, "--against", "tiny", "-o", f"{name}.json", *measured)
        )
        assert status == 0, error
    baked, hooked = (json.loads((here / f"{n}.json").read_text()) for n in ("baked", "hooks"))
    assert hooked["before"] == baked["before"]
    assert hooked["after"]["name"] == "tiny, dampened"
    assert hooked["after"]["fingerprint"] not in ("", hooked["before"]["fingerprint"])
    for measure in ("toxicity", "perplexity"):
        figures = [found["measures"][measure]["figures"] for found in (baked, hooked)]
        for one, other in zip(*figures, strict=True):
            assert other["after"]["value"] == pytest.approx(one["after"]["value"], rel=1e-3)
    perplexity = hooked["measures"]["perplexity"]["figures"][0]
    assert perplexity["after"]["value"] != perplexity["before"]["value"]
    tiny_model("llama", seed=8).save_pretrained(here / "other")
    tiny_tokenizer().save_pretrained(here / "other")
    assert "other weights" in call("evaluate", "other", *hooks, "-o", "no.json")[2]
    asked = ("evaluate", "--endpoint", "http://127.0.0.1:9", *hooks, "-o", "no.json")
    status, _, error = call(*asked)
    assert status == 2
    assert "--dampening" in error
    assert "--endpoint" in error


def test_inspect_tells_what_a_rule_would_do(call, here):
    if not (here / "c.expertise.safetensors").exists():
        call("find", "tiny", "--concept", "calm.jsonl", "-o", "c.expertise.safetensors")
    expertise = Expertise.load(here / "c.expertise.safetensors")
    whole, half = aura(expertise), aura(expertise).scaled(0.5)
    for strength, dampening in {"1": whole, "0.5": half}.items():
        inspect = ("inspect", "c.expertise.safetensors", "--strength", strength)
        factors = np.concatenate(list(dampening.factors.values()))
        expected = f"changes {dampening.changed} of 512 neurons in 12 sites; factors "
        expected += f"{factors.min():.3f} to 1.000, mean {factors.mean():.3f}"
        assert f"aura, strength {strength}: {expected}" in call(*inspect)[1]
        told = json.loads(call(*inspect, "--json")[1])["dampening"]
        assert told["smallest"] == pytest.approx(factors.min())
    half.save(here / "half.safetensors", force=True)
    status, out, _ = call("inspect", "half.safetensors", "--strength", "0.5")
    assert status == 0
    assert out.startswith(f"aura, strength 0.25: changes {half.changed} of 512")
    rule = ("--intervention", "damp")
    assert "--set k" in call("inspect", "c.expertise.safetensors", *rule)[2]


def test_several_files_are_baked_one_after_the_other(call, here):
    call("find", "tiny", "--concept", "calm.jsonl", "-o", "c.expertise.safetensors", "--force")
    call("find", "tiny", "--concept", "yes.txt", "--negatives", "no.txt", "-o", "y.safetensors")
    half = ("--strength", "0.5", "--intervention", "shuffled")
    assert call("bake", "tiny", "y.safetensors", "-o", "alone", "--format", "hooks", *half)[0] == 0
    alone = "alone/sordino/dampening.safetensors"
    both = ("bake", "tiny", "c.expertise.safetensors", alone)
    status, out, error = call(*both, "-o", "both", "--verify")
    assert status == 0, error
    assert "(calm: aura, strength 1; then yes: shuffled, strength 0.5)" in out
    assert "calm: aura, strength 1; then yes" in call("inspect", "both")[1]
    status, out, error = call(*both, "-o", "both-ia3", "--format", "ia3", "--verify", "--json")
    assert status == 0, error
    written = json.loads(out)
    assert written["verification"]["largest_difference"] < 1e-4
    status, _, error = call(*both, f"./{alone}", "-o", "thrice")
    assert status == 2
    assert "is given twice, which would apply its factors twice (--strength makes" in error
    first, second = (Dampening.load(here / f"{name}/{DAMPENING}") for name in ("both", "alone"))
    for site, values in aura(Expertise.load(here / "c.expertise.safetensors")).factors.items():
        np.testing.assert_array_equal(first.factors[site], values * second.factors[site])


def test_an_adapter_for_servers_is_as_wide_as_its_rank(call, here):
    call("find", "tiny", "--concept", "calm.jsonl", "-o", "c.expertise.safetensors", "--force")
    asked = ("bake", "tiny", "c.expertise.safetensors", "-o", "low", "--format", "lora")
    status, out, error = call(*asked, "--rank", "5", "--verify")
    assert status == 0, error
    assert "(aura, strength 1)" in out
    config = json.loads((here / "low/adapter_config.json").read_text())
    assert config["r"] == 5
    record = json.loads((here / "low/sordino.json").read_text())
    assert record["intervention"]["settings"] == {"rows": 5}
    status, _, error = call(*asked, "--rank", "5", "--set", "rows=6", "--force")
    assert status == 2
    assert "--set rows=5" in error
    status, _, error = call(*asked[:-1], "hooks", "--rank", "5", "--force")
    assert status == 2
    assert "--format hooks has no rank" in error


def test_diff_and_undo(call, here):
    if not (here / "c.expertise.safetensors").exists():
        call("find", "tiny", "--concept", "calm.jsonl", "-o", "c.expertise.safetensors")
    halves = ("--intervention", "damp", "--set", "k=50")
    assert call("bake", "tiny", "c.expertise.safetensors", "-o", "halved", *halves)[0] == 0
    status, out, _ = call("diff", "tiny", "halved")
    assert status == 1
    assert "model.layers.*.mlp.up_proj.weight" in out
    assert "0.5 to 0.5" in out
    assert "+ sordino.json" in out
    status, out, _ = call("diff", "tiny", "halved", "--json")
    assert status == 1
    found = json.loads(out)
    assert found["differ"]
    assert sum(change["rows"] for change in found["changed"]) == 50
    status, out, _ = call("undo", "halved", "-o", "whole")
    assert status == 0
    assert "the weight files are the original's" in out
    assert call("diff", "tiny", "whole")[:2] == (0, "tensors: 39 the same, 0 changed\n")

    zeros = ("--intervention", "det_zero", "--set", "k=50")
    call("bake", "tiny", "c.expertise.safetensors", "-o", "silent", *zeros)
    status, _, error = call("undo", "silent", "-o", "unsilent")
    assert status == 2
    assert "cannot be restored" in error
    call("bake", "tiny", "c.expertise.safetensors", "-o", "aura")
    both = ("aura/sordino/dampening.safetensors", "silent/sordino/dampening.safetensors")
    assert call("diff", *both)[0] == 1
    call("bake", "tiny", *both, "-o", "mixed")
    one, other = (Dampening.load(here / file).factors for file in both)
    assert one.keys() == other.keys()
    changed = sum(int(((one[site] != 1) | (other[site] != 1)).sum()) for site in one)
    assert f"50 of the {changed} neurons" in call("undo", "mixed", "-o", "unmixed")[2]
    status, out, _ = call("undo", "mixed", "-o", "unmixed", "--partly")
    assert status == 0
    assert "50 neurons" in out
    assert "may be off" in out
    assert json.loads(call("undo", "aura", "-o", "loud", "--json")[1])["same"] in (True, False)
    assert call("diff", "tiny", "loud/nowhere")[0] == 2


def test_run_does_it_all_and_plain_transformers_loads_it(call, here):
    status, out, _ = call(*AURA, "-o", "all", *EVALUATION)
    assert status == 0
    page = here / "all/sordino/report.html"
    assert str(page.relative_to(here)) in out
    assert page.stat().st_size > 10_000
    assert sorted(path.name for path in (here / "all/sordino").iterdir()) == [
        "calm.expertise.safetensors",
        "dampening.safetensors",
        "evaluation.json",
        "evaluation.samples.jsonl",
        "recipe.toml",
        "report.html",
    ]
    assert (here / "all/README.md").read_text().startswith("---\n")
    model = AutoModelForCausalLM.from_pretrained(here / "all")
    tokenizer = AutoTokenizer.from_pretrained(here / "all")
    ids = tokenizer("an old bridge", return_tensors="pt").input_ids
    assert model.generate(ids, max_new_tokens=4, min_new_tokens=4).shape[1] == ids.shape[1] + 4
    assert not [path for path in here.iterdir() if path.name.startswith(".all")]
    assert call("undo", "all", "-o", "undone")[0] == 0
    files = [
        {p.relative_to(f).as_posix() for p in f.rglob("*")}
        for f in (here / "tiny", here / "undone")
    ]
    assert files[0] == files[1]


def test_a_run_bears_foreign_names_and_a_card_in_another_encoding(call, here):
    shutil.copytree(here / "tiny", here / "latin")
    (here / "latin/README.md").write_bytes("---\nlicense: mit\n---\n# Modèle\n".encode("latin-1"))
    concept = f"{'词' * 80}.jsonl"
    shutil.copy(here / "calm.jsonl", here / concept)
    measured = ("--measure", "perplexity", "--texts", "prose.txt", "--intervention", "aura")
    status, _, error = call("run", "latin", "--concept", concept, "-o", "foreign", *measured)
    assert status == 0, error
    assert "license: mit" in (here / "foreign/README.md").read_text(encoding="utf-8")
    [expertise] = (here / "foreign/sordino").glob("*.expertise.safetensors")
    assert Expertise.load(expertise).metadata["concept"] == "词" * 80


def test_run_sizes_by_a_measured_divergence_and_measures_another_rule_beside(call, here):
    arguments = ["run", "tiny", "--concept", "calm.jsonl", "-o", "sized", *EVALUATION]
    arguments += ["--intervention", "contrast", "--attribution-per-class", "20"]
    arguments += ["--own", "--own-prompts", "kit:ordinary", "--own-max-prompts", "20"]
    arguments += ["--own-continuations", "2", "--own-new-tokens", "4"]
    arguments += ["--divergence", "0.01", "--beside", "aura", "--measure", "divergence"]
    arguments += ["--measure", "toxicity", "--measure", "perplexity", "--json"]
    status, out, _ = call(*arguments)
    assert status == 0
    result = json.loads(out)
    after, beside = result["evaluation"]["measures"], result["beside"]["aura"]["measures"]
    # Twelve texts are too few to be dealt out: they set the size and measure it.
    assert after["divergence"]["figures"][0]["after"]["value"] == pytest.approx(0.01, rel=0.05)
    assert beside["toxicity"]["figures"][0]["before"] == after["toxicity"]["figures"][0]["before"]
    assert beside["perplexity"] != after["perplexity"]
    about = Expertise.load(here / "sized/sordino/calm.expertise.safetensors").metadata
    assert (about["own_judge"], about["own_n_prompts"]) == ("concept", "20")
    # Contrast is meant for attention, too; AurA beside it is what it is by itself.
    changed = Dampening.load(here / "sized/sordino/dampening.safetensors").factors
    assert any("self_attn" in site for site in changed)
    call("find", "tiny", "--concept", "calm.jsonl", "-o", "plain.safetensors")
    alone = ["evaluate", "tiny", "--against", "tiny", "--dampening", "plain.safetensors"]
    alone += [*TEXTS, "--measure", "divergence", "-o", "alone.json"]
    assert call(*alone)[0] == 0
    expected = json.loads((here / "alone.json").read_text())["measures"]["divergence"]
    assert beside["divergence"]["figures"] == expected["figures"]
    assert "settings" in json.loads((here / "sized/sordino.json").read_text())["intervention"]
    for wrong, said in [
        (["--strength", "0.5"], "--divergence"),
        (["--set", "budget=0.1"], "--divergence"),
    ]:
        status, _, error = call(*arguments, "--force", *wrong)
        assert status == 2
        assert said in error
        assert (here / "sized").exists()


def test_a_run_does_what_we_recommend_and_says_what_comes_next(call, here):
    arguments = ["run", "tiny", "--concept", "calm.jsonl", *TEXTS]
    arguments += ["--attribution-per-class", "20", "--measure", "divergence", "-o"]
    status, out, _ = call(*arguments, "advised")
    assert status == 0
    record = json.loads((here / "advised/sordino.json").read_text())
    assert record["intervention"]["name"] == "contrast"
    figures = json.loads((here / "advised/sordino/evaluation.json").read_text())["measures"]
    # Twelve texts are too few to be dealt out: they set the size and measure it.
    measured = figures["divergence"]["figures"][0]["after"]["value"]
    assert measured == pytest.approx(0.05, rel=0.05)
    for line in ("sordino chat tiny advised", "vllm serve advised", "sordino push advised YOU/"):
        assert line in out
    recipe = (here / "advised/sordino/recipe.toml").read_text()
    assert 'intervention = "contrast"' in recipe
    assert "divergence = 0.05" in recipe
    # Its factors of 0 cannot be divided out; what else it changed can.
    status, _, error = call("undo", "advised", "-o", "back")
    assert status == 2
    assert "were multiplied by 0 and cannot be restored: use the original, tiny, or" in error
    assert error.endswith("with --partly.\n")
    status, out, _ = call("undo", "advised", "-o", "back", "--partly")
    assert status == 0
    zeros = sum(
        (of == 0).sum()
        for of in Dampening.load(here / "advised/sordino/dampening.safetensors").factors.values()
    )
    assert f"{zeros:,} neurons of " in out
    # What is named is taken as it is.
    for more, strength in (((), 1.0), (("--strength", "0.5"), 0.5)):
        name = f"paper{strength}"
        status, *_ = call(*AURA, "-o", name, *TEXTS, "--measure", "perplexity", *more)
        assert status == 0
        intervention = json.loads((here / name / "sordino.json").read_text())["intervention"]
        assert (intervention["name"], intervention["strength"]) == ("aura", strength)


def test_a_run_plans_and_writes_nothing(call, here):
    before = sorted(here.iterdir())
    arguments = ["run", "tiny", "--concept", "calm.jsonl", *EVALUATION, "--plan"]
    status, out, _ = call(*arguments)
    assert status == 0
    for word in (
        "peak memory",
        "attribution takes",
        "contrast at a divergence of 0.05",
        "toxicity",
    ):
        assert word in out
    status, out, _ = call(*arguments, "--intervention", "aura", "--json")
    assert status == 0
    planned = json.loads(out)
    assert planned["intervention"] == "aura"
    assert planned["attributed_tokens"] == 0
    assert sorted(here.iterdir()) == before
    status, _, error = call("run", "tiny", "--concept", "calm.jsonl")
    assert status == 2
    assert "--output FOLDER or --plan" in error


def test_alone_it_says_what_to_begin_with(call):
    status, out, _ = call()
    assert status == 0
    assert 5 <= len(out.splitlines()) <= 10
    assert "sordino run kit:smollm2" in out


def test_a_run_of_a_model_larger_than_memory(call, here, monkeypatch):
    arguments = [*AURA[1:], *EVALUATION]
    assert call("run", *arguments, "-o", "fits")[0] == 0
    monkeypatch.setattr("sordino.models.open.fits", lambda *_: False)
    status, out, error = call("run", *arguments, "-o", "large")
    assert status == 0
    assert "its weights are read layer by layer" in error
    assert "sordino evaluate large --against tiny" in error
    assert "report.html" in out
    inside = {path.name for path in (here / "large/sordino").iterdir()}
    assert inside == {
        *("calm.expertise.safetensors", "dampening.safetensors", "recipe.toml", "report.html")
    }
    for file in ("model.safetensors", "sordino/calm.expertise.safetensors"):
        assert (here / "large" / file).read_bytes() == (here / "fits" / file).read_bytes()
    page = (here / "large/sordino/report.html").read_text()
    assert "was not measured" in page
    shown = page.count('class="sentence"')
    assert shown == (here / "fits/sordino/report.html").read_text().count('class="sentence"') > 0
    status, out, _ = call("run", *arguments, "-o", "large", "--force", "--json")
    assert json.loads(out)["evaluation"] is None


def test_a_model_that_is_streamed_though_it_fits_is_measured(call, here):
    status, out, _ = call(*AURA, "--stream", "-o", "s", *EVALUATION)
    assert status == 0
    assert "Perplexity" in out
    assert (here / "s/sordino/evaluation.json").exists()


def test_a_model_that_is_streamed_though_it_fits_is_sized_and_compared(call, here):
    options = ["--divergence", "0.01", *EVALUATION]
    made = {}
    for name, more in {"sized-streamed": ["--stream"], "sized-whole": []}.items():
        status, _, said = call(*AURA, "--beside", "selective", *options, "-o", name, *more)
        assert status == 0, said
        made[name] = (here / name / "model.safetensors").read_bytes()
        assert (here / name / "sordino/evaluation-selective.json").exists()
    assert made["sized-streamed"] == made["sized-whole"]


def test_a_plan_writes_nothing(call, here):
    before = sorted(here.iterdir())
    status, out, _ = call("find", "tiny", "--concept", "calm.jsonl", "--plan", "--stream")
    assert status == 0
    assert "peak memory" in out
    status, out, _ = call("find", "tiny", "--concept", "calm.jsonl", "--plan", "--json")
    assert status == 0
    plan = json.loads(out)
    assert plan["sentences"] == 80
    assert plan["streamed"] is False
    assert 0 < plan["peak"] < plan["available"]
    assert plan["seconds"] > 0
    assert sorted(here.iterdir()) == before


def test_the_same_command_gives_the_same_bytes(call, here):
    for name in ("one", "two"):
        assert call(*AURA, "-o", name, *EVALUATION)[0] == 0
    for file in ("model.safetensors", "sordino/calm.expertise.safetensors", "sordino.json"):
        assert (here / "one" / file).read_bytes() == (here / "two" / file).read_bytes()
    figures = [(here / name / "sordino/evaluation.json").read_text() for name in ("one", "two")]
    assert json.loads(figures[0])["measures"] == json.loads(figures[1])["measures"]


MISTAKES = {
    "no command of that name": (["fnid", "tiny"], "fnid"),
    "no model": (["find", "nowhere/at/all", "-o", "x"], "nowhere/at/all does not exist"),
    "no output": (["find", "tiny"], "--output"),
    "an unknown flag": (["find", "tiny", "-o", "x", "--colour", "red"], "--colour"),
    "a bad number": (["find", "tiny", "-o", "x", "--seed", "three"], "--seed"),
    "an output that exists": (["find", "tiny", "-o", "yes.txt"], "--force"),
    "an output below a file": (["find", "tiny", "-o", "yes.txt/x"], "not a folder"),
    "one class": (["find", "tiny", "--concept", "one.jsonl", "-o", "x"], "no negative sentence"),
    "too few": (["find", "tiny", "--concept", "few.jsonl", "-o", "x"], "at least 20"),
    "an empty text": (["find", "tiny", "--concept", "gap.jsonl", "-o", "x"], "line 3"),
    "an unknown column": (
        ["find", "tiny", "--concept", "calm.jsonl", "--text-column", "body", "-o", "x"],
        "text, label",
    ),
    "undecodable bytes": (["find", "tiny", "--concept", "latin.csv", "-o", "x"], "line 3"),
    "a misspelt concept": (["find", "tiny", "--concept", "insluts", "-o", "x"], "insults"),
    "a missing concept file": (["find", "tiny", "--concept", "no.csv", "-o", "x"], "no.csv"),
    "bad sites": (["inspect", "tiny", "--sites", "("], "regular expression"),
    "no sites": (["inspect", "tiny", "--sites", "zzz"], "matches no linear layer"),
    "a bad device": (["find", "tiny", "--device", "abacus", "-o", "x"], "--device abacus"),
    "a bad dtype": (["find", "tiny", "--dtype", "int3", "-o", "x"], "--dtype int3"),
    "a bad pooling": (["find", "tiny", "--pooling", "median", "-o", "x"], "--pooling median"),
    "nothing to bake": (["bake", "tiny", "-o", "x"], "EXPERTISE"),
    "hooks to verify": (
        ["bake", "tiny", "c.expertise.safetensors", "-o", "x", "--format", "hooks", "--verify"],
        "--verify",
    ),
    "no such format": (["bake", "tiny", "none", "-o", "x", "--format", "pickle"], "--format"),
    "no expertise": (["bake", "tiny", "none.safetensors", "-o", "x"], "does not exist"),
    "a misspelt intervention": (
        ["bake", "tiny", "c.expertise.safetensors", "-o", "x", "--intervention", "arua"],
        "did you mean aura",
    ),
    "a setting without a value": (
        ["bake", "tiny", "c.expertise.safetensors", "-o", "x", "--set", "k"],
        "NAME=VALUE",
    ),
    "a setting that is a flag": (
        ["bake", "tiny", "c.expertise.safetensors", "-o", "x", "--set", "strength=2"],
        "no setting 'strength'",
    ),
    "a setting that is no rule's": (
        ["run", "tiny", "--concept", "calm.jsonl", "-o", "x", "--set", "rule=x"],
        "no setting 'rule'",
    ),
    "a fraction for a whole number": (
        ["find", "tiny", "--concept", "calm.jsonl", "-o", "x", "--max-tokens", "1.5"],
        'Invalid value for --max-tokens: unable to convert "1.5" into int.',
    ),
    "an infinite temperature": (
        ["evaluate", "tiny", "-o", "x", "--prompts", "prompts.txt", "--temperature", "inf"],
        "--temperature inf is out of range: it must be 0, or from 1e-10 to 1e+10",
    ),
    "no name of a data set": (
        ["evaluate", "tiny", "-o", "x", "--prompts", "hf:"],
        "hf: names no data set: give hf:org/name",
    ),
    "an output where no file can be": (
        ["find", "tiny", "--concept", "calm.jsonl", "-o", "/proc/x"],
        "/proc",  # the words depend on who runs it
    ),
    "a strength out of range": (
        ["bake", "tiny", "c.expertise.safetensors", "-o", "x", "--strength", "-1"],
        "must be from 0 to 1e+20",
    ),
    "a strength that float32 cannot hold": (
        ["bake", "tiny", "c.expertise.safetensors", "-o", "x", "--strength", "1e300"],
        "--strength 1e+300 is out of range",
    ),
    "a misspelt measure": (
        ["evaluate", "tiny", "-o", "x", "--measure", "toxicty"],
        "did you mean toxicity",
    ),
    "no prompts": (["evaluate", "tiny", "-o", "x", "--prompts", "none.txt"], "none.txt"),
    "no part of the kit": (["kit", "smolm2"], "smollm2"),
    "nothing to inspect": (["inspect", "empty"], "no config.json"),
    # A shell's variable that is not set; none of them means the working folder.
    **{
        f"an empty {what}": (arguments, "The name of a file or folder is empty")
        for what, arguments in {
            "model": ["inspect", ""],
            "folder to undo": ["undo", "", "-o", "x"],
            "folder to push": ["push", "", "org/x", "--dry-run"],
            "output": ["find", "tiny", "--concept", "calm.jsonl", "-o", "", "--force"],
            "expertise": ["bake", "tiny", "", "-o", "x"],
            "dampening": ["evaluate", "tiny", "--dampening", "", "-o", "x"],
            "file of negatives": ["find", "tiny", "--negatives", "", "-o", "x"],
        }.items()
    },
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_gives_one_sentence_and_status_2(mistake, call, here):
    (here / "one.jsonl").write_text('{"text": "a", "label": 1}\n' * 30)
    (here / "few.jsonl").write_text('{"text": "a", "label": 1}\n{"text": "b", "label": 0}\n' * 5)
    (here / "gap.jsonl").write_text(
        '{"text": "a", "label": 1}\n{"text": "b", "label": 0}\n{"text": " ", "label": 0}\n'
    )
    (here / "latin.csv").write_bytes(b"text,label\nfine,1\ncaf\xe9,0\n")
    (here / "empty").mkdir(exist_ok=True)
    arguments, expected = MISTAKES[mistake]
    if "c.expertise.safetensors" in arguments and not (here / "c.expertise.safetensors").exists():
        call("find", "tiny", "--concept", "calm.jsonl", "-o", "c.expertise.safetensors")
    status, out, error = call(*arguments)
    said = [line for line in error.splitlines() if line.startswith("sordino: ")]
    assert status == 2, error
    assert len(said) == 1
    assert expected in said[0]
    assert error.splitlines()[-1] == said[0]
    assert "Traceback" not in error
    assert out == ""
    assert not (here / "x").exists()


def test_a_rule_with_shifts_is_refused_before_the_long_work(call, here, monkeypatch):
    tiny_model("qwen3").save_pretrained(here / "unbiased")
    tiny_tokenizer().save_pretrained(here / "unbiased")
    monkeypatch.setattr("sordino.pipeline.find_experts", None)
    status, _, error = call(
        *("run", "unbiased", "--concept", "calm.jsonl", "-o", "shifted"),
        *("--intervention", "mean_shift", "--pooling", "mean"),
    )
    assert status == 2
    assert "mean_shift shifts outputs, and unbiased has no biases to hold that" in error
    assert "--format hooks" in error
    assert not (here / "shifted").exists()


def test_another_model_s_expertise_is_refused(call, here):
    call("find", "tiny", "--concept", "calm.jsonl", "-o", "c.expertise.safetensors", "--force")
    tiny_model("llama", seed=9).save_pretrained(here / "sibling")
    tiny_tokenizer().save_pretrained(here / "sibling")
    arguments = ["bake", "sibling", "c.expertise.safetensors", "-o", "quiet-sibling"]
    status, _, error = call(*arguments)
    assert status == 2
    assert "--allow-other-weights" in error
    assert call(*arguments, "--allow-other-weights")[0] == 0


def test_a_full_disk_is_one_sentence(call, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device", "x.expertise.safetensors")

    monkeypatch.setattr("sordino.expertise.artefact.Expertise.save", full)
    status, _, error = call("find", "tiny", "--concept", "calm.jsonl", "-o", "full.safetensors")
    assert status == 2
    assert "disk is full" in error


def test_a_working_folder_that_is_gone_is_one_sentence(here, tmp_path, monkeypatch, capsys):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(SystemExit) as stop:
        main(["find", str(here / "tiny"), "--concept", str(here / "calm.jsonl"), "-o", "x"])
    assert stop.value.code == 2
    assert "The working folder has been deleted" in capsys.readouterr().err


@pytest.mark.parametrize(
    "number", [errno.EACCES, errno.EROFS, errno.EIO, errno.EMFILE, errno.EFBIG, errno.EBUSY]
)
def test_a_file_that_the_system_refuses_is_one_sentence(number, call, monkeypatch):
    def refused(*_, **__):
        raise OSError(number, os.strerror(number), "x.expertise.safetensors")

    monkeypatch.setattr("sordino.expertise.artefact.Expertise.save", refused)
    status, _, said = call("find", "tiny", "--concept", "calm.jsonl", "-o", "kept.safetensors")
    assert status == 2
    assert (
        f"x.expertise.safetensors can be neither read nor written ({os.strerror(number)})" in said
    )
    monkeypatch.setattr(
        "sordino.expertise.artefact.Expertise.save", lambda *_, **__: Path("none").read_text()
    )
    with pytest.raises(FileNotFoundError):  # a bug keeps its traceback
        call("find", "tiny", "--concept", "calm.jsonl", "-o", "kept.safetensors")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 bytes."),
    ],
)
def test_no_memory_is_one_sentence(error, call, monkeypatch):
    def full(*_, **__):
        raise error

    monkeypatch.setattr("sordino.expertise.find.measure_expertise", full)
    status, _, said = call("find", "tiny", "--concept", "calm.jsonl", "-o", "m.safetensors")
    assert status == 2
    assert "Memory ran out" in said
    monkeypatch.setattr("sordino.expertise.find.measure_expertise", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        call("find", "tiny", "--concept", "calm.jsonl", "-o", "m.safetensors")


@pytest.mark.parametrize(
    ("command", "work"),
    [
        (["doctor"], "sordino.examination.doctor"),
        (["inspect", "tiny"], "sordino.jobs.inspect.inspect"),
        (["chat", "tiny"], "sordino.jobs.chat.chat"),
    ],
)
def test_garbage_is_collected_while_a_command_works(command, work, call, monkeypatch):
    seen = []

    def watched(*_args, **_options):
        seen.append(gc.isenabled())
        raise UserError("enough")

    monkeypatch.setattr(work, watched)
    assert call(*command)[0] == 2
    assert seen == [True]
    assert gc.isenabled()


def test_help_is_quick_and_without_torch():
    code = (
        "import sys; from sordino.cli.app import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    commands = (
        "run",
        "find",
        "bake",
        "evaluate",
        "tune",
        "study",
        "inspect",
        "diff",
        "undo",
        "kit",
    )
    for command in commands:
        assert command in out.stdout


def test_help_shows_the_defaults_that_say_something(call):
    status, out, _ = call("evaluate", "--help")
    assert status == 0
    said = re.sub(r"[│\s]+", " ", out)
    assert "[default: toxicity, perplexity]" in said
    assert not re.search(r"default: (False|\(|\"\"|None)", said)


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        (["--concurrency", "2"], "--concurrency is for a server, and none is asked"),
        (["--rate", "60", "--scorer", "wordlist"], "pass --endpoint or a --scorer on a server"),
        (
            ["--served-model", "a", "--scorer", "http://127.0.0.1:9"],
            "--served-model is for a server",
        ),
    ],
)
def test_settings_of_servers_without_a_server_are_refused(call, here, typed, words):
    status, _, err = call("evaluate", "nowhere", "--output", "served.json", *typed)
    assert (status, (here / "served.json").exists()) == (2, False)
    assert words in re.sub(r"\s+", " ", err)


def test_help_has_each_measure_s_own_default_size(call):
    said = re.sub(r"[│\s]+", " ", call("evaluate", "--help")[1])
    kinds = {name: MEASURES.named(name) for name in MEASURES}
    for option in ("max_prompts", "continuations", "new_tokens", "questions", "max_texts"):
        of = {
            n: getattr(k, f) for n, k in kinds.items() for f, o in k.options.items() if o == option
        }
        [sizes] = re.findall(rf"--{option.replace('_', '-')} INT [^(]*\(([^)]*)\)", said)
        usual, *others = sizes.split("; ")
        own = {name: count for count, name in (each.split(" for ") for each in others)}
        for name, default in of.items():
            assert own.get(name, usual) == ("all" if default is None else str(default)), option


def test_a_table_is_whole_and_takes_no_cell_for_markup(capsys):
    print_columns(("name", ""), [("[red]a[/red]\x1b[2J", "x" * 100), ("b", "y" * 100)])
    out = capsys.readouterr().out
    assert "[red]a[/red]\N{REPLACEMENT CHARACTER}[2J" in out
    assert "x" * 100 in out


ALONE = [sys.executable, "-m", "sordino"]


def test_output_that_nobody_reads_is_no_failure_of_work_that_is_done():
    reading, writing = os.pipe()
    os.close(reading)
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    out = subprocess.run(ALONE, stdout=writing, stderr=subprocess.PIPE, check=False, env=buffered)
    os.close(writing)
    assert (out.returncode, out.stderr) == (0, b"")


@pytest.mark.parametrize("words", [["--help"], ["kit"]])
def test_a_table_that_nobody_reads_ends_as_a_closed_pipe_ends_programs(words):
    reading, writing = os.pipe()
    os.close(reading)
    out = subprocess.run([*ALONE, *words], stdout=writing, stderr=subprocess.PIPE, check=False)
    os.close(writing)
    assert (out.returncode, out.stderr) == (141, b"")


def test_work_that_ends_because_nobody_reads_is_not_done(call, monkeypatch):
    def broken(*_, **__):
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr("sordino.expertise.artefact.Expertise.save", broken)
    status, _, error = call("find", "tiny", "--concept", "calm.jsonl", "-o", "pipe.safetensors")
    assert status == 141
    assert "Traceback" not in error


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_output_onto_a_full_disk_is_one_sentence():
    with Path("/dev/full").open("wb") as full:
        out = subprocess.run(ALONE, stdout=full, stderr=subprocess.PIPE, check=False)
    assert out.returncode == 2
    assert out.stderr.decode().strip() == (
        "sordino: The disk is full: free some space and run the same command again."
    )


def test_what_is_found_onto_a_full_disk_is_one_sentence(here):
    """Also of a command that ends with status 1 for what it found."""
    other = here / "changed"
    shutil.copytree(here / "tiny", other)
    weights = load_file(other / "model.safetensors")
    save_file({name: of + 1 for name, of in weights.items()}, other / "model.safetensors")
    with Path("/dev/full").open("wb") as full:
        out = subprocess.run(
            [*ALONE, "diff", here / "tiny", other],
            stdout=full,
            stderr=subprocess.PIPE,
            check=False,
        )
    assert b"The disk is full" in out.stderr
    assert out.returncode == 2


def test_closed_streams_get_nothing_and_no_file_gets_their_numbers():
    shell = ["sh", "-c", 'exec "$@" >&-', "sh", *ALONE]
    out = subprocess.run(shell, stderr=subprocess.PIPE, check=False)
    assert (out.returncode, out.stderr) == (0, b"")
    shell = ["sh", "-c", 'exec "$@" 2>&-', "sh", *ALONE, "nonsense"]
    out = subprocess.run(shell, stdout=subprocess.PIPE, check=False)
    assert (out.returncode, out.stdout) == (2, b"")
    script = "from sordino.cli import app; app.main([]); print(open('/dev/null').fileno())"
    shell = ["sh", "-c", 'exec "$@" <&- 2>&-', "sh", sys.executable, "-c", script]
    out = subprocess.run(shell, stdout=subprocess.PIPE, check=False)
    assert int(out.stdout.split()[-1]) > 2


def test_the_module_runs_as_a_command():
    out = subprocess.run(
        [sys.executable, "-m", "sordino", "--version"], capture_output=True, text=True, check=True
    )
    assert out.stdout.strip()


def slow(owner, name: str, seconds: float) -> None:
    work = getattr(owner, name)

    def slowed(*args, **kwargs):
        time.sleep(seconds)
        return work(*args, **kwargs)

    setattr(owner, name, slowed)


def run_slowly(here: Path, arguments: list[str]) -> None:
    """A command, in a process of its own, whose steps are slow; snapshots come at every batch."""
    from sordino.edits import shard
    from sordino.expertise import snapshot
    from sordino.expertise.passes import LayerByLayer
    from sordino.journal import Journal

    os.chdir(here)
    snapshot.EVERY_S = snapshot.SHARE = 0
    slow(LayerByLayer, "run", 0.02)
    slow(Journal, "add", 0.1)
    slow(shard, "change_", 0.05)
    main(arguments)


def killed_after(seconds: float, here: Path, arguments: list[str]) -> bool:
    """Whether the command was still at work when it was killed."""
    process = forked(lambda: run_slowly(here, arguments))
    process.join(seconds)
    if process.exitcode is None:
        process.kill()
        process.join()
        return True
    assert process.exitcode == 0
    return False


@pytest.mark.parametrize(
    "command",
    [
        "bake",
        # Their quick tests are in test_find.py, test_evaluation.py and test_work.py.
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("find", "evaluate", "run")),
    ],
)
def test_killed_anywhere_it_ends_in_the_same_bytes(command, call, here):
    if not (here / "k.expertise.safetensors").exists():
        call("find", "tiny", "--concept", "calm.jsonl", "-o", "k.expertise.safetensors")
    arguments = {
        "find": ["find", "tiny", "--concept", "calm.jsonl", "--batch-tokens", "64"],
        "bake": ["bake", "tiny", "k.expertise.safetensors"],
        "evaluate": ["evaluate", "tiny", *EVALUATION, "--batch-tokens", "64"],
        "run": [*AURA, *EVALUATION],
    }[command]
    target = here / f"cut-{command}"
    # Ever later, until the command ends before it is killed (or right after its last step).
    seconds, kills, ended = 0.1, 0, False
    while not ended and not target.exists():
        ended = not killed_after(seconds, here, [*arguments, "-o", target.name])
        kills += not ended
        seconds *= 1.5
        assert seconds < 900  # it gets further each time, however busy the machine
    assert kills >= 1
    whole = here / f"whole-{command}"
    assert call(*arguments, "-o", whole.name)[0] == 0
    if target.is_file():
        assert target.read_bytes() == whole.read_bytes()
    else:
        for file in ("model.safetensors", "config.json", "sordino.json"):
            assert (target / file).read_bytes() == (whole / file).read_bytes()
    if command == "run":
        name = "sordino/calm.expertise.safetensors"
        assert (target / name).read_bytes() == (whole / name).read_bytes()
        cut, undisturbed = (
            json.loads((folder / "sordino/evaluation.json").read_text())["measures"]
            for folder in (target, whole)
        )
        assert cut == undisturbed
    leftovers = [path.name for path in here.iterdir() if path.name.startswith(f".{target.name}")]
    assert leftovers == [] or not ended


def test_two_at_once_do_not_spoil_each_other(call, here):
    arguments = ["find", "tiny", "--concept", "calm.jsonl", "-o", "both.safetensors"]
    first = forked(lambda: run_slowly(here, [*arguments, "--batch-tokens", "64"]))
    while not (here / ".both.safetensors.lock").exists():
        time.sleep(0.05)
    status, _, error = call(*arguments)
    assert status == 2
    assert "another sordino process" in error
    first.join()
    assert first.exitcode == 0


def test_torch_is_single_threaded_here():
    assert torch.get_num_threads() == 1


@pytest.mark.parametrize(
    ("asked", "coloured"),
    [({"FORCE_COLOR": "1"}, True), ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, False), ({}, False)],
)
def test_colours_heed_the_environment(asked, coloured):
    kept = {k: v for k, v in os.environ.items() if k not in ("FORCE_COLOR", "NO_COLOR")}
    answer = subprocess.run(
        [sys.executable, "-m", "sordino", "--help"],
        env=kept | {"TERM": "xterm-256color"} | asked,
        capture_output=True,
        text=True,
        check=True,
    )
    # The codes of foreground colours; bold and dim are none.
    assert bool(re.search(r"\x1b\[[\d;]*3\d[;m]", answer.stdout)) == coloured
    assert "Exit status" in answer.stdout
