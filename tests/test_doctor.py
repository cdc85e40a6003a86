"""Doctor: what is there, what is missing, and what mends it."""

import json
from importlib.metadata import PackageNotFoundError, version

import pytest

from sordino import examination as doctor
from sordino import hub
from sordino.cli.app import main


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """No network is asked."""
    monkeypatch.setattr(hub, "reachable", lambda: False)


def found(about):
    return next(one for one in doctor.examine() if one.about == about)


def test_everything_that_is_needed_is_here(capsys):
    main(["doctor"])
    said = capsys.readouterr().out
    assert version("torch") in said
    assert "missing" not in said


def test_as_json(capsys):
    main(["doctor", "--json"])
    rows = json.loads(capsys.readouterr().out)
    assert {"about", "state", "says", "mend"} == set(rows[0])
    assert {"packages", "processor", "model hub", "demo kit"} <= {row["about"] for row in rows}


@pytest.mark.parametrize(
    ("lines", "about", "state", "mend"),
    [
        (["numpy>=2", "nowhere>=1"], "packages", "missing", "pip install --upgrade sordino"),
        (["numpy>=2", "numpy>=99"], "packages", "missing", "pip install --upgrade sordino"),
        (["nowhere>=1; extra == 'far'"], "extra far", "optional", 'pip install "sordino[far]"'),
        (["numpy>=2; extra == 'near'"], "extra near", "good", ""),
        (
            ["nowhere>=1; extra == 'far'", "sordino[far]; extra == 'near'"],
            "extra near",
            "optional",
            'pip install "sordino[near]"',
        ),
    ],
)
def test_packages(monkeypatch, lines, about, state, mend):
    monkeypatch.setattr(doctor, "requires", lambda _: lines)
    one = found(about)
    assert (one.state, one.mend) == (state, mend)


def test_what_is_missing_is_an_exit_status(monkeypatch, capsys):
    def absent(name):
        if name == "numpy":
            raise PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(doctor, "version", absent)
    with pytest.raises(SystemExit) as ended:
        main(["doctor"])
    assert ended.value.code == 1
    assert "numpy" in capsys.readouterr().out


def test_a_cache_elsewhere_without_room(monkeypatch, tmp_path):
    monkeypatch.setenv("SORDINO_CACHE", str(tmp_path / "not" / "there" / "yet"))
    monkeypatch.setattr(doctor, "ROOM", 2**80)
    one = found("cache of the kit")
    assert one.state == "optional"
    assert "SORDINO_CACHE" in one.mend
    monkeypatch.setattr(doctor.os, "access", lambda *_: False)
    assert found("cache of the kit").state == "missing"


def test_the_hub_that_is_not_asked(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert found("model hub").mend == "unset HF_HUB_OFFLINE"
