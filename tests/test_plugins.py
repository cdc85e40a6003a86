"""The package of CONTRIBUTING.md, installed and used as a stranger would."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import sentences
from families import tiny_model, tiny_tokenizer

ROOT = Path(__file__).parents[1]
NAMES = {"--intervention": "half", "--measure": "certainty", "--scorer": "capitals"}

# All commands in one process: libraries are imported once.
CALLS = """
import contextlib, io, json, sys
from sordino.cli.app import main
from sordino.errors import UserError

for command in json.load(sys.stdin):
    out, error, status = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        try:
            main(command)
        except SystemExit as end:
            status = end.code or 0
    print(json.dumps([status, out.getvalue(), error.getvalue()]), file=sys.__stdout__)
"""


def files() -> dict[str, str]:
    """The files of CONTRIBUTING.md: blocks whose first line is a comment with a path."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    return dict(re.findall(r"^```(?:toml|python)\n# (\S+)\n(.*?)^```$", text, re.M | re.S))


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The environment of a process that has the package beside Sordino."""
    source = tmp_path_factory.mktemp("source")
    for name, text in files().items():
        path = source / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    target = tmp_path_factory.mktemp("installed")
    offline = ("--no-deps", "--no-build-isolation", "--no-index", "--quiet")
    pip = [sys.executable, "-m", "pip", "install", *offline, "--target", str(target), str(source)]
    subprocess.run(pip, check=True, capture_output=True)
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(target), *sys.path])}


@pytest.fixture(scope="module")
def results(installed, tmp_path_factory):
    """What commands give that use what the package brings: status, standard output and error."""
    folder = tmp_path_factory.mktemp("plugin")
    tiny_model("llama").save_pretrained(folder / "tiny")
    tiny_tokenizer().save_pretrained(folder / "tiny")
    for name, lines in {
        "yes.txt": sentences(40, 1),
        "no.txt": sentences(45, 2),
        "prompts.txt": sentences(40, 3, longest=5),
        "prose.txt": sentences(60, 4),
    }.items():
        (folder / name).write_text("\n".join(lines) + "\n")
    concept = ("--concept", "yes.txt", "--negatives", "no.txt")
    measured = (
        *("--prompts", "prompts.txt", "--texts", "prose.txt", "--scorer", "capitals"),
        *("--continuations", "2", "--new-tokens", "4", "--measure", "certainty"),
    )
    rule = ("--intervention", "half", "--set", "above=0.4")
    expertise = "quiet/sordino/yes.expertise.safetensors"
    commands = {
        "help": ["run", "--help"],
        "bake help": ["bake", "--help"],
        "tune help": ["tune", "--help"],
        "run": [
            *("run", "tiny", "-o", "quiet", *concept, *rule, *measured),
            *("--measure", "toxicity", "--json"),
        ],
        "bake": ["bake", "tiny", expertise, "-o", "f", "--format", "factors-json", *rule, "--json"],
        "inspect": ["inspect", "f"],
        "tune": [
            *("tune", "tiny", "-o", "tuned", *concept, "--rule", "half", "--trials", "1"),
            *(*measured, "--json"),
        ],
        "typo": ["bake", "tiny", expertise, "-o", "x", "--intervention", "hlaf"],
    }
    done = subprocess.run(
        [sys.executable, "-c", CALLS],
        input=json.dumps(list(commands.values())),
        capture_output=True,
        text=True,
        env=installed,
        cwd=folder,
        check=True,
    )
    found = map(json.loads, done.stdout.splitlines())
    return folder, dict(zip(commands, found, strict=True))


def plain(text: str) -> str:
    """Help without its frame."""
    return " ".join(re.sub("[│─╭╮╰╯]", " ", text).split())


def test_the_help_names_what_the_package_brings(results):
    shown = plain(results[1]["help"][1])
    for name in NAMES.values():
        assert f"From other packages: {name}." in shown
    assert "factors-json" in plain(results[1]["bake help"][1])
    assert "From other packages: half." in plain(results[1]["tune help"][1])


def test_run_uses_them_and_its_page_and_card_name_them(results):
    folder, found = results
    status, out, error = found["run"]
    assert status == 0, error
    evaluation = json.loads(out)["evaluation"]
    assert evaluation["measures"]["toxicity"]["protocol"]["scorer"] == {
        "scorer": "capitals",
        "version": 1,
    }
    certainty = evaluation["measures"]["certainty"]["figures"][0]
    assert 0 < certainty["after"]["value"] < 1
    assert evaluation["measures"]["certainty"]["protocol"]["texts"] == "prose.txt"
    page = (folder / "quiet/sordino/report.html").read_text()
    card = (folder / "quiet/README.md").read_text()
    record = json.loads((folder / "quiet/sordino.json").read_text())
    assert record["intervention"] == {"name": "half", "strength": 1, "settings": {"above": 0.4}}
    for text in (page, card):
        assert "half" in text
        assert "Probability of the likeliest token" in text
        assert "capitals sees capital letters and nothing else." in text
    assert "How sure the model is of the next token, on ordinary prose." in page


def test_bake_writes_the_format(results):
    folder, found = results
    status, out, error = found["bake"]
    assert status == 0, error
    assert json.loads(out)["written_as"] == "factors-json"
    factors = json.loads((folder / "f/factors.json").read_text())
    assert {value for values in factors.values() for value in values} == {0.5, 1.0}
    assert "`factors.json`" in (folder / "f/README.md").read_text()
    assert found["inspect"][0] == 0, found["inspect"][2]


def test_tune_tries_the_rule(results):
    folder, found = results
    status, out, error = found["tune"]
    assert status == 0, error
    assert {tried["rule"] for tried in json.loads(out)["tried"]} == {"half"}
    assert "half" in (folder / "tuned/tuned.html").read_text()


def test_a_name_is_corrected(results):
    status, _, error = results[1]["typo"]
    assert status == 2
    assert "did you mean half?" in error
