"""The wheel and the source archive, built, looked into and installed."""

import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import build
import pytest
import yaml

from distribution import ROOT, contents, faults
from sordino.version import __version__


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A wheel and a source archive of this tree."""
    folder = tmp_path_factory.mktemp("dist")
    builder = build.ProjectBuilder(ROOT)
    return Path(builder.build("wheel", folder)), Path(builder.build("sdist", folder))


def test_they_hold_the_package_and_nothing_else(built):
    assert faults(*built) == []
    assert "py.typed" in {Path(name).name for name in contents(built[0])}


def test_a_stray_file_would_be_found(built, tmp_path):
    wheel = tmp_path / built[0].name
    wheel.write_bytes(built[0].read_bytes())
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr("sordino/notes.txt", "a note")
    assert "sordino/notes.txt is no part of a package" in faults(wheel, built[1])


def test_the_version_has_one_place(built):
    metadata = contents(built[0])[f"sordino-{__version__}.dist-info/METADATA"].decode()
    assert f"\nVersion: {__version__}\n" in metadata
    for file in ("pyproject.toml", "CITATION.cff", "src/sordino/__init__.py"):
        assert __version__ not in (ROOT / file).read_text()


WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


@pytest.mark.parametrize("file", [*WORKFLOWS, ROOT / ".ci" / "run"], ids=lambda file: file.name)
def test_the_checks_call_what_the_makefile_has(file):
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
    called = set(re.findall(r"\bmake ([\w-]+)", file.read_text()))
    assert called <= targets


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.name)
def test_a_workflow_s_jobs_have_steps(file):
    jobs = yaml.safe_load(file.read_text())["jobs"]
    assert all(job["steps"] and job["runs-on"] for job in jobs.values())


def test_every_push_and_pull_request_is_checked_on_the_oldest_and_the_newest_python():
    checks = yaml.safe_load((ROOT / ".github" / "workflows" / "checks.yml").read_text())
    assert set(checks[True]) >= {"push", "pull_request"}  # YAML reads the word "on" as true
    [versions] = [
        job["strategy"]["matrix"]["python"] for job in checks["jobs"].values() if "strategy" in job
    ]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = [one.rpartition(" ")[2] for one in project["classifiers"] if "Python :: 3." in one]
    assert {named[0], named[-1]} <= set(versions)


@pytest.mark.slow
def test_the_wheel_installs_and_runs(built, tmp_path):
    home = tmp_path / "venv"
    venv.create(home, with_pip=True)
    # The packages that it needs are those of this environment, behind its own.
    own = Path(sysconfig.get_path("purelib", vars={"base": str(home)}))
    (own / "behind.pth").write_text(sysconfig.get_path("purelib") + "\n")
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}

    def run(*command):
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600
        )

    python, sordino = home / "bin" / "python", home / "bin" / "sordino"
    answer = run(python, "-m", "pip", "install", "--no-deps", "--no-index", built[0])
    assert answer.returncode == 0, answer.stderr
    where = run(python, "-c", "import sordino; print(sordino.__file__)").stdout
    assert where.startswith(str(own.resolve())) or where.startswith(str(own))
    assert run(sordino, "--version").stdout.strip() == __version__
    assert "Turn a concept down" in run(sordino, "--help").stdout
    assert "Turn a concept down" in run(python, "-m", "sordino", "--help").stdout
    answer = run(sordino, "doctor")
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert f"{__version__}, Python {sys.version.split()[0]}" in answer.stdout
