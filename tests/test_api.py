"""The public functions: what the command line does, from Python."""

import contextlib
import doctest
import inspect
import io
import json
import re
from pathlib import Path

import pytest
import torch

import sordino
from conftest import sentences
from families import tiny_model, tiny_tokenizer
from sordino.evaluation.texts import choose, read_texts
from sordino.interventions import Dampening
from sordino.tuning.calibration import TEXTS, clean_texts, dampening_of, sized
from stub_server import said
from test_reproduction import TINY


@pytest.fixture(scope="module")
def found(open_tiny, concept, tmp_path_factory):
    """A tiny model, its expertise and the expertise's file."""
    opened = open_tiny("llama")
    file = tmp_path_factory.mktemp("found") / "calm.expertise.safetensors"
    return opened, sordino.find_experts(opened, concept, output=file), file


def prose(path: Path, seed: int, keep: list[str] = ()) -> str:
    """A file of 130 texts; those to keep stand where they stood in that of seed 7."""
    texts = list(sentences(TEXTS + 30, 7))
    other = [f"another {text}" if text not in keep else text for text in texts]
    path.write_text("\n".join(other if keep else texts) + "\n", "utf-8")
    return str(path)


def factors(dampening: Dampening) -> dict[str, bytes]:
    """The bytes of the factors, by site."""
    return {site: values.tobytes() for site, values in dampening.factors.items()}


def test_a_size_is_set_on_texts_that_no_evaluation_with_the_same_seed_reports(tmp_path, found):
    opened, expertise, _ = found
    file = prose(tmp_path / "prose.txt", 7)
    sizing = clean_texts(file, seed=3)
    reported = choose(read_texts(file), 30, 3)
    assert len(sizing) == TEXTS
    assert len(reported) == 30
    assert not {text.text for text in reported} & set(sizing)

    def size(texts: str, seed: int) -> dict[str, bytes]:
        return factors(sized(opened, expertise, 0.01, texts=texts, seed=seed).dampening)

    # Whatever the reported texts are, the size is the same; with another seed it is not.
    assert size(prose(tmp_path / "others.txt", 7, sizing), 3) == size(file, 3)
    assert size(file, 4) != size(file, 3)


def test_run_bake_and_evaluate_set_the_same_size(call_in, found, tmp_path):
    """The three of the command line, and the function."""
    opened, _, _ = found
    model, texts = str(opened.ref.path), prose(tmp_path / "prose.txt", 7)
    rows = [{"text": text, "label": number % 2} for number, text in enumerate(sentences(40, 3))]
    (tmp_path / "calm.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    call = call_in(tmp_path)
    divergence = ["--divergence", "0.01", "--texts", texts, "--seed", "3"]
    measured = ["--measure", "divergence"]
    assert (
        call(
            *("run", model, "--concept", "calm.jsonl", "-o", "ran", "--intervention", "aura"),
            *(*divergence, *measured),
        )[0]
        == 0
    )
    file = "ran/sordino/calm.expertise.safetensors"
    status, _, error = call("bake", model, file, "-o", "baked", *divergence)
    assert status == 0
    assert "holds 130 texts" in error
    record = sordino.bake(
        model,
        tmp_path / file,
        tmp_path / "made",
        divergence=0.01,
        texts=texts,
        seed=3,
    )
    sizes = [
        Dampening.load(tmp_path / name / "sordino/dampening.safetensors")
        for name in ("ran", "baked", "made")
    ]
    assert factors(sizes[0]) == factors(sizes[1]) == factors(sizes[2])
    assert record.intervention.strength == sizes[0].strength != 1
    asked = ["evaluate", model, "--against", model, "--dampening", file, *divergence, *measured]
    assert call(*asked, "-o", "hooks.json")[0] == 0
    hooks, ran = (
        sordino.Evaluation.load(tmp_path / name).figure("divergence", "divergence").after.value
        for name in ("hooks.json", "ran/sordino/evaluation.json")
    )
    assert hooks == pytest.approx(ran, rel=1e-3)
    assert "--strength and --divergence" in call(*asked, "--strength", "2", "-o", "no.json")[2]
    assert "--divergence" in call("inspect", file, "--divergence", "0.01")[2]


def test_an_expertise_is_evaluated_like_its_hooks(found, tmp_path):
    opened, expertise, file = found
    measure = sordino.Perplexity(prose(tmp_path / "prose.txt", 7), max_texts=6)
    folder, half = opened.ref.path, sordino.aura(expertise).scaled(0.5)
    arm = sordino.hooked(folder, half)
    by_hand = sordino.evaluate(arm, folder, measures=[measure])
    for given, source in ((folder, file), (opened, expertise)):
        ready = sordino.evaluate(given, folder, measures=[measure], dampening=source, strength=0.5)
        assert ready.measures == by_hand.measures
        in_memory = given is opened
        assert (ready.after.fingerprint != by_hand.after.fingerprint) == in_memory
    with pytest.raises(sordino.UserError, match="dampened already"):
        sordino.evaluate(arm, measures=[measure], dampening=expertise)
    with pytest.raises(sordino.UserError, match="strength"):
        sordino.evaluate(folder, measures=[measure], strength=0.5)


def test_an_open_model_is_dampened_as_it_is_in_memory(found, tmp_path):
    opened, expertise, _ = found
    measure = sordino.Perplexity(prose(tmp_path / "prose.txt", 7), max_texts=6)
    changed = sordino.open_model(opened.ref, device="cpu", dtype="bfloat16")
    before = sordino.evaluate(changed, measures=[measure], dampening=expertise)
    with torch.no_grad():
        changed.model.get_output_embeddings().weight.mul_(3)
    after = sordino.evaluate(changed, measures=[measure], dampening=expertise)
    assert before.after.dtype == after.after.dtype == "bfloat16"
    assert before.after.fingerprint != after.after.fingerprint
    with sordino.aura(expertise).applied(changed.model):
        by_hand = sordino.evaluate(changed, measures=[measure])
    assert after.measures == by_hand.measures != before.measures


def test_what_a_dampening_is_made_of(found, tmp_path):
    opened, expertise, file = found
    whole = sordino.aura(expertise)
    saved = whole.save(tmp_path / "x.dampening.safetensors")
    for source in (expertise, file, str(file), whole, saved):
        assert factors(dampening_of(source)) == factors(whole)
    both = dampening_of([expertise, saved], strength=0.5)
    assert factors(both) == factors(sordino.compose([whole.scaled(0.5), whole.scaled(0.5)]))
    by_rule = sordino.make_dampening(opened, expertise, "damp", settings={"k": 5})
    assert by_rule.changed == 5
    with pytest.raises(sordino.UserError, match="two sizes"):
        sordino.make_dampening(opened, expertise, strength=2, divergence=0.1)
    with pytest.raises(sordino.UserError, match="nothing to dampen"):
        dampening_of([])


COMMANDS = [
    *("run", "find_experts", "bake", "evaluate", "tune", "study", "replay", "reproduce", "explore"),
    *("chat", "push", "diff", "undo", "inspect", "doctor", "make_dampening", "hooked", "plan_find"),
    *("load_concept", "open_model", "verify"),
]
VALUES = [
    *("AttributionSettings", "Changes", "Evaluation", "Expertise", "OwnPlan", "OwnSettings"),
    *("Chat", "Concept", "OpenModel", "Perplexity", "ReplaySettings", "RunSettings", "Site"),
    *("SweepSettings", "Toxicity"),
]


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    """The folder in which the examples of docstrings are run, and the names that they know."""
    folder = tmp_path_factory.mktemp("examples")
    tiny_model("llama").save_pretrained(folder / "tiny")
    tiny_tokenizer().save_pretrained(folder / "tiny")
    rows = [{"text": text, "label": number % 2} for number, text in enumerate(sentences(50, 3))]
    lines = {
        "calm.jsonl": map(json.dumps, rows),
        "prose.txt": sentences(TEXTS + 45, 7),
        "prompts.txt": sentences(44, 5, longest=4),
        "requests.jsonl": (json.dumps({"prompt": text}) for text in sentences(4, 6)),
    }
    for name, given in lines.items():
        (folder / name).write_text("\n".join(given) + "\n", "utf-8")
    (folder / "tiny.toml").write_text(TINY.format(model=str(folder / "tiny")))
    concept = sordino.load_concept(folder / "calm.jsonl")
    file = folder / "calm.expertise.safetensors"
    expertise = sordino.find_experts(folder / "tiny", concept, output=file)
    sordino.bake(folder / "tiny", expertise, folder / "quiet")
    return folder, {"sordino": sordino, "concept": concept, "expertise": expertise}


@pytest.mark.parametrize("name", [*COMMANDS, *VALUES])
def test_the_example_of_a_docstring(name, example, monkeypatch, serve):
    function = getattr(sordino, name)
    assert callable(function)
    assert name in sordino.__all__
    folder, names = example
    known = dict(names)
    monkeypatch.chdir(folder)
    monkeypatch.setattr("sys.stdin", io.StringIO())  # a conversation that is over at once
    addresses = iter([serve(quiet).address for _ in range(2)]) if name == "replay" else iter(())
    examples = doctest.DocTestParser().get_examples(inspect.getdoc(function))
    assert examples
    for one in examples:
        source = re.sub(r"http://[\d.:]+/v1", lambda _: next(addresses), one.source)
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(compile(source, name, "single"), known)
        if one.want:
            assert out.getvalue() == one.want


def quiet(path, body):
    """A server that says the same to all."""
    return None if path == "/models" else said("quiet")


def test_every_command_of_the_command_line_is_a_function():
    from sordino.cli.app import app

    commands = {name for name in app if not name.startswith("-")} - {"kit"}
    assert {"find_experts" if name == "find" else name for name in commands} <= {*COMMANDS}
    listed = (Path(__file__).parents[1] / "docs/api.md").read_text("utf-8")
    for name in COMMANDS:
        assert re.search(rf"^::: sordino\.{name}$", listed, re.MULTILINE), name


@pytest.mark.parametrize(
    ("act", "said"),
    [
        (lambda opened: sordino.open_model(opened.model), "and not a LlamaForCausalLM: save it"),
        (lambda opened: sordino.open_model(None), "and not a NoneType"),
        (lambda opened: sordino.load_concept({"text": []}), "and not a dict: save it as a file"),
        (
            lambda opened: sordino.evaluate(opened, measures="perplexity"),
            "`measures=perplexity` is one text, and a list is expected",
        ),
        (
            lambda opened: sordino.RunSettings(beside="aura").decided(),
            "`beside=aura` is one text",
        ),
        (lambda opened: sordino.evaluation.ZeroShot(tasks="piqa"), "`tasks=piqa` is one text"),
        (lambda opened: sordino.SweepSettings(max_tokens=12.5), "`max_tokens=12.5` is not a whole"),
        (lambda opened: sordino.SweepSettings(max_tokens="9"), "`max_tokens=9` is not a whole"),
        (lambda opened: sordino.evaluate(opened, seed=0.5), "`seed=0.5` is not a whole number"),
    ],
)
def test_values_of_other_types_are_named(act, said, found):
    with pytest.raises(sordino.UserError, match=re.escape(said)):
        act(found[0])


def test_values_with_arrays_can_be_compared_kept_in_sets_and_shown(found):
    _, expertise, _ = found
    for value in (expertise, sordino.aura(expertise)):
        assert value == value
        assert value != sordino.aura(expertise)
        assert value in {value}
        assert len(repr(value).splitlines()) == 1
        assert len(repr(value)) <= 200


def test_a_file_may_be_a_path_or_its_name(tmp_path):
    texts = Path(prose(tmp_path / "prose.txt", 7))
    assert sordino.Perplexity(texts) == sordino.Perplexity(str(texts))
    assert sordino.Toxicity(scorer=(texts, "wordlist")).scorer == (str(texts), "wordlist")
    assert sordino.OwnPlan(texts) == sordino.OwnPlan(str(texts))
    assert read_texts(texts) == read_texts(str(texts))


@pytest.mark.parametrize("of", [str, Path])
@pytest.mark.parametrize(
    "call",
    [
        lambda named, out: sordino.run("no model", named, out),
        lambda named, out: sordino.find_experts("no model", named, output=out),
        lambda named, _: sordino.plan_find("no model", named),
        lambda named, out: sordino.tune("no model", named, out),
        lambda named, out: sordino.study("overhead", "no model", named, out),
    ],
)
def test_a_name_where_sentences_are_expected_is_one_sentence(call, of, tmp_path):
    """Which is said before anything is looked for."""
    with pytest.raises(sordino.UserError, match=r"give sordino\.load_concept\('c\.csv'\)\.$"):
        call(of("c.csv"), tmp_path / "out")
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("of", [str, Path])
def test_a_name_where_an_expertise_or_a_plan_is_expected_is_one_sentence(of):
    for rule in (sordino.aura, sordino.contrast, sordino.dampen):
        with pytest.raises(sordino.UserError, match=r"give sordino\.Expertise\.load\('x'\)\.$"):
            rule(of("x"))
    with pytest.raises(sordino.UserError, match=r"Judged\(OwnPlan\(judge='wordlist'\)\)"):
        sordino.Judged("wordlist")
