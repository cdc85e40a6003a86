"""The command line as a user meets it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from conftest import sentences
from families import tiny_model, tiny_tokenizer
from sordino.cli.app import main
from sordino.expertise import Expertise

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
def call(here, monkeypatch, capsys):
    """Run a command in that folder; gives its exit status, standard output and error."""

    def run(*arguments):
        monkeypatch.chdir(here)
        capsys.readouterr()
        try:
            main([str(argument) for argument in arguments])
            status = 0
        except SystemExit as stop:
            status = stop.code
        out = capsys.readouterr()
        return status, out.out, out.err

    return run


EVALUATION = [
    *("--prompts", "prompts.txt", "--texts", "prose.txt", "--scorer", "alt-profanity-check"),
    *("--continuations", "2", "--new-tokens", "6"),
]


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
    assert set(result["measures"]) == {"toxicity", "perplexity"}

    for subject, expected in [
        ("tiny", "LlamaForCausalLM, 4 layers, 512 neurons in 12 sites"),
        ("calm.expertise.safetensors", "40 positive and 40 negative"),
        ("quiet", "intervention aura, strength 1"),
    ]:
        status, out, _ = call("inspect", subject)
        assert status == 0
        assert expected in out
        assert json.loads(call("inspect", subject, "--json")[1])


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


def test_run_does_it_all_and_plain_transformers_loads_it(call, here):
    status, out, _ = call("run", "tiny", "--concept", "calm.jsonl", "-o", "all", *EVALUATION)
    assert status == 0
    page = here / "all/sordino/report.html"
    assert str(page.relative_to(here)) in out
    assert page.stat().st_size > 10_000
    assert sorted(path.name for path in (here / "all/sordino").iterdir()) == [
        "calm.expertise.safetensors",
        "evaluation.json",
        "evaluation.samples.jsonl",
        "report.html",
    ]
    assert (here / "all/README.md").read_text().startswith("---\n")
    model = AutoModelForCausalLM.from_pretrained(here / "all")
    tokenizer = AutoTokenizer.from_pretrained(here / "all")
    ids = tokenizer("an old bridge", return_tensors="pt").input_ids
    assert model.generate(ids, max_new_tokens=4, min_new_tokens=4).shape[1] == ids.shape[1] + 4
    assert not [path for path in here.iterdir() if path.name.startswith(".all")]


def test_a_run_of_a_model_larger_than_memory(call, here, monkeypatch):
    arguments = ["tiny", "--concept", "calm.jsonl", *EVALUATION]
    assert call("run", *arguments, "-o", "fits")[0] == 0
    for place in ("sordino.pipeline", "sordino.models.open"):
        monkeypatch.setattr(f"{place}.fits", lambda *_: False)
    status, out, error = call("run", *arguments, "-o", "large")
    assert status == 0
    assert "its weights are read layer by layer" in error
    assert "sordino evaluate large --against tiny" in error
    assert "report.html" in out
    inside = {path.name for path in (here / "large/sordino").iterdir()}
    assert inside == {"calm.expertise.safetensors", "report.html"}
    for file in ("model.safetensors", "sordino/calm.expertise.safetensors"):
        assert (here / "large" / file).read_bytes() == (here / "fits" / file).read_bytes()
    page = (here / "large/sordino/report.html").read_text()
    assert "was not measured" in page
    shown = page.count('class="sentence"')
    assert shown == (here / "fits/sordino/report.html").read_text().count('class="sentence"') > 0
    status, out, _ = call("run", *arguments, "-o", "large", "--force", "--json")
    assert json.loads(out)["evaluation"] is None


def test_a_model_that_is_streamed_though_it_fits_is_measured(call, here):
    status, out, _ = call(
        "run", "tiny", "--concept", "calm.jsonl", "--stream", "-o", "s", *EVALUATION
    )
    assert status == 0
    assert "Perplexity" in out
    assert (here / "s/sordino/evaluation.json").exists()


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
        assert call("run", "tiny", "--concept", "calm.jsonl", "-o", name, *EVALUATION)[0] == 0
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
    "no expertise": (["bake", "tiny", "none.safetensors", "-o", "x"], "does not exist"),
    "a misspelt intervention": (
        ["bake", "tiny", "c.expertise.safetensors", "-o", "x", "--intervention", "arua"],
        "did you mean aura",
    ),
    "a setting without a value": (
        ["bake", "tiny", "c.expertise.safetensors", "-o", "x", "--set", "k"],
        "NAME=VALUE",
    ),
    "a strength out of range": (
        ["bake", "tiny", "c.expertise.safetensors", "-o", "x", "--strength", "2"],
        "outside 0 to 1",
    ),
    "a misspelt measure": (
        ["evaluate", "tiny", "-o", "x", "--measure", "toxicty"],
        "did you mean toxicity",
    ),
    "no prompts": (["evaluate", "tiny", "-o", "x", "--prompts", "none.txt"], "none.txt"),
    "no part of the kit": (["kit", "smolm2"], "smollm2"),
    "nothing to inspect": (["inspect", "empty"], "no config.json"),
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


def test_another_model_s_expertise_is_refused(call, here):
    call("find", "tiny", "--concept", "calm.jsonl", "-o", "c.expertise.safetensors", "--force")
    tiny_model("llama", seed=9).save_pretrained(here / "sibling")
    tiny_tokenizer().save_pretrained(here / "sibling")
    arguments = ["bake", "sibling", "c.expertise.safetensors", "-o", "s"]
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

    monkeypatch.setattr("sordino.expertise.find.sweep", full)
    status, _, said = call("find", "tiny", "--concept", "calm.jsonl", "-o", "m.safetensors")
    assert status == 2
    assert "Memory ran out" in said
    monkeypatch.setattr("sordino.expertise.find.sweep", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        call("find", "tiny", "--concept", "calm.jsonl", "-o", "m.safetensors")


def test_help_is_quick_and_without_torch():
    code = (
        "import sys; from sordino.cli.app import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for command in ("run", "find", "bake", "evaluate", "inspect", "kit"):
        assert command in out.stdout


def test_the_module_runs_as_a_command():
    out = subprocess.run(
        [sys.executable, "-m", "sordino", "--version"], capture_output=True, text=True, check=True
    )
    assert out.stdout.strip()


# Each step is slowed down, so that a kill finds it in the middle; snapshots come at every batch.
SLOWED = """
import sys, time
import sordino.expertise.snapshot as snapshot
snapshot._EVERY_S = snapshot._SHARE = 0
from sordino.expertise.passes import LayerByLayer
from sordino.evaluation.journal import Journal
from sordino.edits import shard
def slow(owner, name, seconds):
    work = getattr(owner, name)
    def slowed(*args, **kwargs):
        time.sleep(seconds)
        return work(*args, **kwargs)
    setattr(owner, name, slowed)
slow(LayerByLayer, "run", 0.02)
slow(Journal, "add", 0.1)
slow(shard, "change_", 0.05)
from sordino.cli.app import main
main(sys.argv[1:])
"""


def killed_after(seconds: float, here: Path, arguments: list[str]) -> bool:
    """Whether the command was still at work when it was killed."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", SLOWED, *arguments],
        cwd=here,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    started = time.monotonic()
    while process.poll() is None and time.monotonic() - started < seconds:
        time.sleep(0.05)
    if process.poll() is None:
        process.send_signal(signal.SIGKILL)
        process.wait()
        return True
    assert process.returncode == 0, process.stderr.read().decode()
    return False


@pytest.mark.parametrize("command", ["find", "bake", "evaluate", "run"])
def test_killed_anywhere_it_ends_in_the_same_bytes(command, call, here):
    if not (here / "k.expertise.safetensors").exists():
        call("find", "tiny", "--concept", "calm.jsonl", "-o", "k.expertise.safetensors")
    arguments = {
        "find": ["find", "tiny", "--concept", "calm.jsonl", "--batch-tokens", "64"],
        "bake": ["bake", "tiny", "k.expertise.safetensors"],
        "evaluate": ["evaluate", "tiny", *EVALUATION, "--batch-tokens", "64"],
        "run": ["run", "tiny", "--concept", "calm.jsonl", *EVALUATION],
    }[command]
    target = here / f"cut-{command}"
    # Ever later, until the command ends before it is killed (or right after its last step).
    seconds, kills, ended = 2.5, 0, False
    while not ended and not target.exists():
        ended = not killed_after(seconds, here, [*arguments, "-o", target.name])
        kills += not ended
        seconds *= 1.5
        assert seconds < 120
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
    first = subprocess.Popen(
        [
            *(sys.executable, "-c", SLOWED, "find", "tiny", "--concept", "calm.jsonl"),
            *("--batch-tokens", "64", "-o", "both.safetensors"),
        ],
        cwd=here,
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    while not (here / ".both.safetensors.lock").exists():
        time.sleep(0.05)
    status, _, error = call("find", "tiny", "--concept", "calm.jsonl", "-o", "both.safetensors")
    assert status == 2
    assert "another sordino process" in error
    assert first.wait() == 0


def test_torch_is_single_threaded_here():
    assert torch.get_num_threads() == 1
