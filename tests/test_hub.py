"""What comes from a hub, what is said where it does not, and the table of all that is asked."""

import errno
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from huggingface_hub import constants

import hub_layouts
from conftest import forget_the_hub
from families import tiny_folder, tiny_model
from sordino import hub, hub_table
from sordino.concepts import load_concept
from sordino.errors import UserError
from sordino.hub_table import REPOSITORIES, TABLE
from sordino.models.open import open_model
from sordino.models.reference import HUB_FILES, resolve
from stub_hub import DROP

SOURCE = Path(hub_table.__file__).parent


def weights(hub, name, tmp_path, **about):
    """Put a tiny model on the hub, and give its files."""
    folder = tiny_folder("gpt2", tmp_path)
    files = {file.name: file.read_bytes() for file in folder.iterdir()}
    hub.put(name, files, **about)
    return files


# The table


def test_every_repository_is_in_the_table_and_nowhere_else():
    orgs = "|".join(sorted({re.escape(name.partition("/")[0]) for name in TABLE}))
    named = re.compile(rf"\\b(?:{orgs})/[A-Za-z0-9][\\w.-]+")
    for file in SOURCE.rglob("*.py"):
        found = named.findall(file.read_text())
        assert file.name == "hub_table.py" or not found, (file, found)
    for recipe in (SOURCE / "reproduction" / "recipes").glob("*.toml"):
        known = tomllib.loads(recipe.read_text())
        asked = TABLE[known["model"]]
        assert (asked.kind, asked.gated) == ("model", known["gated"]), recipe
        for settings in known["measures"].values():
            for value in settings.values():
                if str(value).startswith("hf:"):
                    assert value.removeprefix("hf:") in TABLE, recipe


def test_no_source_names_a_repository_of_the_hub_that_the_table_lacks():
    """Whatever looks like an address of the hub, or is given to its client as a literal."""
    literal = re.compile(r"""["'](?:hf:)([A-Za-z][\w-]*/[A-Za-z][\w.-]*)""")
    allowed = {"org/name", "org/quiet"}
    for file in SOURCE.rglob("*.py"):
        found = {name.rstrip(".") for name in literal.findall(file.read_text())}
        assert found <= allowed, (file, found)


def test_the_table_says_of_each_what_it_is():
    assert len(TABLE) == len(REPOSITORIES)
    for one in REPOSITORIES:
        assert one.licence
        assert one.used_by
        assert one.files
        assert one.pickled == any(".bin" in pattern for pattern in one.files)
        assert bool(one.columns) == (one.kind != "model")
        assert re.fullmatch("main|[0-9a-f]{40}", one.revision)
    assert not any(one.pickled for one in hub_table.AUTO_SCORERS)


def test_doctor_holds_the_table_against_the_hub(online, call_in, tmp_path):
    call = call_in(tmp_path)
    hub_layouts.serve(online)
    status, out, err = call("doctor", "--hub", "--json")
    rows = {row["about"]: row for row in json.loads(out)}
    assert status == 0, err
    assert set(rows) == {one.spec for one in REPOSITORIES}
    assert {row["state"] for row in rows.values()} == {"good"}
    assert "cc-by-4.0" in rows["hf:AmazonScience/bold"]["says"]

    online.moved["datasets/AmazonScience/bold"] = "datasets/there/bold"
    online.repositories["datasets/there/bold"] = online.repositories["datasets/AmazonScience/bold"]
    online.put("unitary/toxic-bert", hub_layouts.as_pickle(online.files("unitary/toxic-bert")))
    changed = {"train.csv": b"id,comment_text,toxic\n"}
    online.put(f"datasets/{hub_table.JIGSAW.name}", changed)
    online.repositories["google/gemma-2-2b"].gated = False
    online.repositories["openai-community/gpt2-xl"].gated = True
    online.put("mosaicml/mpt-7b", weights(online, "x/y", tmp_path) | {"pytorch_model.bin": b""})
    del online.repositories["tiiuae/falcon-7b"]
    del online.repositories["unitary/unbiased-toxic-roberta"].commits[
        hub_table.TOXIC_ROBERTA.revision
    ]
    status, out, _ = call("doctor", "--hub", "--json")
    assert status == 1
    rows = {row["about"]: row for row in json.loads(out) if row["state"] != "good"}
    for about, said in {
        "hf:AmazonScience/bold": "renamed to there/bold",
        "hf:unitary/toxic-bert": "has no file *.safetensors",
        hub_table.JIGSAW.spec: "does not begin with the column severe_toxic",
        "google/gemma-2-2b": "is not gated any more",
        "openai-community/gpt2-xl": "is gated",
        "mosaicml/mpt-7b": "in safetensors now",
        "tiiuae/falcon-7b": "model repository",
        "hf:unitary/unbiased-toxic-roberta": "has no revision '9165",
    }.items():
        assert said in rows.pop(about)["says"]
    assert rows == {}
    assert call("doctor", "--hub")[0] == 1


def test_doctor_without_a_hub_says_so(call_in, tmp_path):
    status, _, err = call_in(tmp_path)("doctor", "--hub")
    assert status == 2
    assert err.count("\n") == 1
    assert "does not answer" in err


# Models


def test_a_model_of_the_hub_is_had_and_is_there_afterwards(online, tmp_path, monkeypatch, capsys):
    weights(online, "org/new", tmp_path)
    online.moved["org/old"] = "org/new"
    ref = resolve("org/old")
    assert ref.revision == online.repositories["org/new"].branches["main"]
    assert "org/old was renamed to org/new" in capsys.readouterr().err
    open_model(ref)
    # Without a hub, and with one that is out of order, what was fetched is used.
    for state in ("offline", "away", "broken"):
        forget_the_hub()
        with monkeypatch.context() as patch:
            if state == "offline":
                patch.setattr(constants, "HF_HUB_OFFLINE", True)
            if state == "away":
                patch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
            online.fail = (lambda method, path: (503, "out")) if state == "broken" else online.fail
            assert resolve("org/old") == ref
            with pytest.raises(UserError, match="org/never"):
                resolve("org/never")
    assert "(503)" in capsys.readouterr().err


def test_a_pickle_is_refused_before_anything_large_is_fetched(online, tmp_path):
    files = hub_layouts.as_pickle(weights(online, "org/old", tmp_path))
    online.put("org/old", files)
    with pytest.raises(UserError, match="only as a pickle") as refused:
        resolve("org/old")
    assert "DISABLE_SAFETENSORS_CONVERSION=1 python -c" in str(refused.value)
    assert "AutoModelForCausalLM as M" in str(refused.value)
    assert "\n" not in str(refused.value)
    assert online.asked("GET", "resolve") == []
    online.put("org/gguf", {"a.Q4.gguf": b"GGUF", "config.json": b"{}"})
    with pytest.raises(UserError, match=r"a\.Q4\.gguf"):
        resolve("org/gguf")
    online.put("org/empty", {"config.json": b"{}"})
    with pytest.raises(UserError, match="org/empty holds no weights"):
        resolve("org/empty")


@pytest.mark.slow
def test_the_line_that_converts_a_pickle_works(tmp_path):
    import torch

    folder = tiny_folder("gpt2", tmp_path)
    (folder / "model.safetensors").unlink()
    model = tiny_model("gpt2")
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(UserError) as refused:
        open_model(folder)
    [line] = re.findall("`(DISABLE[^`]*)`", str(refused.value))
    line = line.replace("python", sys.executable, 1)
    subprocess.run(line, shell=True, cwd=tmp_path, check=True, capture_output=True)
    found = open_model(tmp_path / "gpt2-safetensors").model.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in model.state_dict().items())


def test_no_service_is_asked_to_convert():
    """Importing Sordino forbids what transformers does by itself."""
    code = "import sordino; from transformers.utils import is_env_variable_true as is_true; "
    code += "print(is_true('DISABLE_SAFETENSORS_CONVERSION'))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert answer.stdout.strip() == "True", answer.stderr


# What fails, in one sentence


def fault(online, **how):
    for name, value in how.items():
        setattr(online, name, value)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((500, "out of order"), "could not be downloaded from the hub (500)"),
        ((503, "busy"), "(503)"),
        ((429, "slow down"), "(429)"),
        ((401, "who"), "(401)"),
        ((403, "no"), "(403)"),
        ((407, "proxy"), "The proxy refuses"),
        (DROP, "could not be downloaded from the hub (RemoteProtocolError)"),
        ((200, "<html>Log in to the network"), "is no hub (perhaps a login page"),
        ((200, "{}"), "is no hub"),
        ((200, "[]"), "is no hub"),
    ],
)
@pytest.mark.parametrize("what", ["model", "file", "jigsaw"])
def test_a_hub_out_of_order_is_one_sentence(online, tmp_path, answer, said, what):
    weights(online, "org/name", tmp_path)
    hub_layouts.serve(online)
    online.fail = lambda method, path: answer if path else None
    ask = {
        "model": lambda: resolve("org/name"),
        "file": lambda: hub.fetch_file(hub.Wanted("org/name", file="config.json")),
        "jigsaw": lambda: load_concept("toxicity"),
    }
    with pytest.raises(UserError) as raised:
        ask[what]()
    message = str(raised.value)
    assert "\n" not in message
    assert what == "jigsaw" or "org/name" in message
    if what == "model":
        assert said in message


def test_gated_repositories_say_where_their_terms_are(online, tmp_path, monkeypatch):
    weights(online, "org/shut", tmp_path, gated=True)
    for token in ("", "hf_other"):
        monkeypatch.setenv("HF_TOKEN", token)
        with pytest.raises(UserError, match="org/shut is gated on the hub: accept its terms at"):
            resolve("org/shut")
    monkeypatch.setenv("HF_TOKEN", "hf_accepted")
    assert resolve("org/shut").weight_files


def test_a_download_that_breaks_off_goes_on_where_it_was(online, tmp_path):
    files = weights(online, "org/name", tmp_path)
    large = files["model.safetensors"]
    dead = []

    def cut(path):
        if path.endswith("model.safetensors"):
            dead.append(path)
            return len(large) // 2
        return None

    online.cut = cut
    online.fail = lambda method, path: DROP if dead else None
    with pytest.raises(UserError, match="same command"):
        resolve("org/name")
    fault(online, cut=lambda path: None, fail=lambda method, path: None, seen=[])
    forget_the_hub()
    ref = resolve("org/name")
    assert ref.weight_files[0].read_bytes() == large


def test_a_slow_hub_is_waited_for(online, tmp_path):
    weights(online, "org/name", tmp_path)
    online.delay = lambda path: 0.05
    assert resolve("org/name").weight_files


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENOTDIR])
def test_a_cache_that_cannot_be_written_is_named(online, tmp_path, monkeypatch, number):
    weights(online, "org/name", tmp_path)
    place = tmp_path / "a file"
    place.write_text("")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(place / "hub"))
    with pytest.raises(UserError, match=r"cannot be stored at .*a file.*set HF_HOME"):
        resolve("org/name")

    def refuse(*args, **more):
        raise OSError(number, "no", str(place))

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(UserError, match="set HF_HOME to a folder"):
        hub.fetch_files(hub.Wanted("org/name"), HUB_FILES)


def test_a_full_disk_is_said_by_the_command_line(online, tmp_path, monkeypatch, call_in):
    weights(online, "org/name", tmp_path)

    def full(*args, **more):
        raise OSError(errno.ENOSPC, "No space left on device", "blob")

    monkeypatch.setattr("huggingface_hub.snapshot_download", full)
    status, _, err = call_in(tmp_path)("inspect", "org/name")
    assert status == 2
    assert "The disk is full" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("HF_ENDPOINT", value) for value in ("nonsense", "ftp://x", "http://", "http://[", "")),
        ("HF_ENDPOINT", "http://host:notaport"),
        ("HF_TOKEN", "a token"),
        ("HF_TOKEN", "hf_ké"),
        ("HTTPS_PROXY", "nonsense://proxy"),
        ("ALL_PROXY", "socks9://proxy:1"),
    ],
)
def test_odd_settings_are_one_sentence(online, monkeypatch, name, value):
    if name == "HF_ENDPOINT":
        monkeypatch.setattr(constants, "ENDPOINT", value)
    monkeypatch.setenv(name, value)
    forget_the_hub()
    with pytest.raises(UserError, match=name.replace("HTTPS", "HTTP").replace("ALL", "HTTP")):
        resolve("org/name")


def test_a_name_that_no_repository_has(online):
    with pytest.raises(UserError, match="org/a--b"):
        resolve("org/a--b")
    with pytest.raises(UserError, match="hf:a--b/c"):
        hub.fetch_if_shared("hf:a--b/c/d.safetensors")
