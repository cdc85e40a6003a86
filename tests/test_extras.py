"""The core and its extras: what each installs, what works without them, and what says so."""

import json
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from importlib.util import find_spec
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from conftest import sentences
from families import tiny_folder
from sordino.cli.app import main
from sordino.cli.run import next_steps
from sordino.errors import UserError
from sordino.extras import PACKAGES, require, started_as

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
NOT_FOR_USERS = {"all", "dev", "dist", "docs", "fuzz"}


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def asked_for(extra: str) -> set[str]:
    """The distributions that an extra asks for, also through the extras that it names."""
    found: set[str] = set()
    for requirement in map(Requirement, EXTRAS[extra]):
        if requirement.name == "sordino":
            found |= {name for part in requirement.extras for name in asked_for(part)}
        else:
            found.add(canonical(requirement.name))
    return found


def test_the_table_of_extras_is_that_of_the_project():
    assert set(PACKAGES) == set(EXTRAS) - NOT_FOR_USERS
    installed = packages_distributions()
    for extra, packages in PACKAGES.items():
        brought = {canonical(name) for package in packages for name in installed[package]}
        assert brought == asked_for(extra), extra


def test_all_is_every_extra_that_a_user_may_want():
    [everything] = map(Requirement, EXTRAS["all"])
    assert everything.extras == set(PACKAGES)


def test_no_extra_is_in_the_core_but_the_charts_without_which_no_run_ends():
    core = {canonical(Requirement(line).name) for line in PROJECT["dependencies"]}
    assert core & asked_for("all") == asked_for("report")


@pytest.fixture
def call(call_in, tmp_path):
    return call_in(tmp_path)


@pytest.mark.parametrize(
    ("extra", "command"),
    [
        ("report", "run model -o out --concept yes.txt --negatives no.txt --measure perplexity"),
        ("parquet", "find model -o out.safetensors --concept some.parquet"),
        ("peft", "bake model e.safetensors -o out --format ia3 --verify"),
        ("replay", "replay log.jsonl -o out --endpoint http://x --endpoint http://x"),
        ("chat", "chat model e.safetensors"),
        ("tune", "tune model --concept yes.txt --negatives no.txt -o out"),
    ],
)
def test_a_command_says_at_its_start_which_extra_it_lacks(
    call, tmp_path, monkeypatch, extra, command
):
    tiny_folder("gpt2", tmp_path).rename(tmp_path / "model")
    for name in ("yes.txt", "no.txt", "prose.txt", "log.jsonl", "some.parquet", "e.safetensors"):
        (tmp_path / name).write_text("\n".join(sentences(20, seed=1)))
    before = set(tmp_path.iterdir())
    monkeypatch.setattr(
        "sordino.extras.find_spec",
        lambda name: None if name in PACKAGES[extra] else find_spec(name),
    )
    status, _, err = call(*command.split())
    assert status == 2
    assert f'pip install "sordino[{extra}]"' in err.splitlines()[-1]
    assert set(tmp_path.iterdir()) <= before


def test_the_table_in_the_docs_has_every_extra():
    lines = (ROOT / "docs" / "start.md").read_text().splitlines()
    named = {
        name
        for line in lines
        if line.startswith("| `")
        for name in re.findall(r"`([\w-]+)`", line.split("|")[1])
    }
    assert named == {"all", *PACKAGES}


UVX, PIPX_RUN = "/home/a/.cache/uv/archive-v0/x1", "/home/a/.local/pipx/.cache/x1"
WHEEL = {"url": "file:///a/b.whl", "archive_info": {}}
GIT = {"url": "https://x.org/s", "vcs_info": {"vcs": "git", "commit_id": "1"}}


@pytest.fixture
def started(monkeypatch):
    """Make it look as if Sordino had been started from this environment, and installed so."""

    class Installed:
        def __init__(self, origin):
            self.origin = origin

        def read_text(self, name):
            assert name == "direct_url.json"
            return json.dumps(self.origin) if self.origin else None

    def start(prefix, origin=None, program="/home/a/bin/sordino"):
        monkeypatch.setattr("sordino.extras.sys.prefix", prefix)
        monkeypatch.setattr("sordino.extras.sys.argv", [program])
        monkeypatch.setattr("sordino.extras.distribution", lambda _: Installed(origin))

    return start


@pytest.mark.parametrize(
    ("where", "plain", "with_chat"),
    [
        ((UVX,), "uvx sordino", 'uvx --from "sordino[chat]" sordino'),
        (
            (UVX, WHEEL),
            'uvx --from "sordino @ file:///a/b.whl" sordino',
            'uvx --from "sordino[chat] @ file:///a/b.whl" sordino',
        ),
        (
            (PIPX_RUN, GIT),
            'pipx run --spec "sordino @ git+https://x.org/s" sordino',
            'pipx run --spec "sordino[chat] @ git+https://x.org/s" sordino',
        ),
        (("/home/a/.local/pipx/venvs/sordino", WHEEL), "sordino", "sordino"),
        (("/home/a/.venv",), "sordino", "sordino"),
    ],
)
def test_commands_are_said_as_sordino_was_started(
    started, monkeypatch, capsys, where, plain, with_chat
):
    started(*where)
    assert (started_as(), started_as("chat")) == (plain, with_chat)
    monkeypatch.setattr("sordino.extras.find_spec", lambda _: None)
    talk, _, share = next_steps("kit:smollm2", Path("quiet"))
    assert talk.endswith(f" {with_chat} chat kit:smollm2 quiet")
    assert share.endswith(f" {plain} push quiet YOU/NAME")
    main([])
    said = capsys.readouterr().out
    assert "\n  sordino run kit:smollm2 -o quiet " in said
    assert said.endswith(f"type: {plain}\n") is (plain != "sordino")


def test_a_module_is_started_again_as_one(started):
    started("/home/a/.venv", program="/home/a/site-packages/sordino/__main__.py")
    assert started_as() == f"{Path(sys.executable).name} -m sordino"


@pytest.mark.parametrize(
    ("prefix", "command"),
    [
        (UVX, 'uvx --from "sordino[chat]" sordino …'),
        (PIPX_RUN, 'pipx run --spec "sordino[chat]" sordino …'),
        ("/home/a/.local/pipx/venvs/sordino", 'pipx install --force "sordino[chat]"'),
        ("/home/a/.venv", 'pip install "sordino[chat]"'),
    ],
)
def test_what_is_missing_is_installed_where_sordino_runs(started, monkeypatch, prefix, command):
    started(prefix)
    monkeypatch.setattr("sordino.extras.find_spec", lambda _: None)
    with pytest.raises(UserError) as error:
        require("chat", "The page")
    assert str(error.value).endswith(f"{command}.")
