"""Which files of a model's folder are taken: regular ones inside it, whatever links are there."""

import json
import os
import shutil
import socket
import tempfile
from pathlib import Path

import pytest
from huggingface_hub import constants
from hypothesis import given
from hypothesis import strategies as st

from families import tiny_folder
from sordino.edits import bake, diff, undo
from sordino.errors import UserError
from sordino.interventions import Dampening
from sordino.models.folder import OUTSIDE, list_files
from test_edits_bake import dampening_of, files_of

SECRET = b"nobody's business"
NAMES = ("a", "b", "config.json", "tokenizer.json", ".env", "x.lock", "notes.txt", "c.safetensors")
PLACES = ("", "a/", "b/", "a/b/")
KINDS = ("file", "pipe", "socket", "dangling", "loop")
TARGETS = ("inside", "outside", "up", "folder", "outside_folder")


def entries():
    """Entries of a folder: where, and what."""
    place = st.tuples(st.sampled_from(PLACES), st.sampled_from(NAMES)).map("".join)
    kind = st.sampled_from((*KINDS, *TARGETS))
    return st.lists(st.tuples(place, kind), max_size=14, unique_by=lambda entry: entry[0])


def plant(root: Path, outside: Path, chosen) -> None:
    """Make what was drawn, as far as it fits."""
    for name, kind in chosen:
        path = root / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if kind == "file":
                # A link to the folder can make this the place of a pipe, where writing would wait.
                with path.open("xb") as file:
                    file.write(name.encode())
            elif kind == "pipe":
                os.mkfifo(path)
            elif kind == "socket":
                with socket.socket(socket.AF_UNIX) as server:
                    server.bind(str(path))
            else:
                to = {
                    "dangling": "nowhere",
                    "loop": path.name,
                    "inside": root / "real.txt",
                    "outside": outside / "id_rsa",
                    "up": "..",
                    "folder": root,
                    "outside_folder": outside,
                }[kind]
                path.symlink_to(to)
        except OSError:  # a file is where a folder would be, or the other way round
            continue


@given(entries())
def test_what_is_copied_is_regular_and_from_inside(chosen):
    with tempfile.TemporaryDirectory() as here:
        root, outside = Path(here, "model"), Path(here, "ssh")
        root.mkdir()
        outside.mkdir()
        (outside / "id_rsa").write_bytes(SECRET)
        (root / "real.txt").write_text("real")
        plant(root, outside, chosen)
        listed = list_files(root)
        for file in listed.inside:
            assert (root / file).resolve().is_relative_to(root.resolve())
            assert (root / file).read_bytes() != SECRET
            assert not any(part.startswith(".") for part in file.parts)
        for file in listed.outside:
            assert (root / file).read_bytes() == SECRET
        # An oracle that follows no links to folders: every regular file of the tree is listed.
        regular = {
            path.relative_to(root).as_posix()
            for place, _, names in os.walk(root)
            for path in (Path(place, name) for name in names)
            if path.is_file() and not path.is_symlink()
        }
        visible = {name for name in regular if name.split("/")[-1] not in (".env", "x.lock")}
        visible = {name for name in visible if "/." not in f"/{name}" and "x.lock/" not in name}
        assert visible <= {str(file) for file in listed.inside}
        # And everything that is there is in one of the three.
        known = {str(file) for file in (*listed.inside, *listed.outside)} | set(listed.left_out)
        for entry in root.iterdir():
            begun = any(one.startswith(f"{entry.name}/") for one in known)
            empty = entry.is_dir() and not entry.is_symlink() and not any(entry.iterdir())
            assert entry.name in known or begun or empty or f"{entry.name}/" in known


def test_links_between_folders_end(tmp_path):
    """A web of links to folders, which has more paths than there are atoms."""
    for name in "abcdefghij":
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.txt").write_text(name)
        for other in "abcdefghij":
            (tmp_path / name / f"to-{other}").symlink_to(tmp_path / other)
    assert len(list_files(tmp_path).inside) <= 10 + 10 * 10


@pytest.fixture
def model(tmp_path):
    folder = tiny_folder("llama", tmp_path)
    home = tmp_path / "home"
    (home / ".ssh").mkdir(parents=True)
    (home / ".ssh/id_rsa").write_bytes(SECRET)
    return folder


def test_nothing_from_outside_or_hidden_comes_along_and_it_is_said(model, tmp_path, capsys):
    home = tmp_path / "home"
    for name in ("notes.txt", "LICENSE", "assets.json", "vision.safetensors", "deep/x.txt"):
        (model / name).parent.mkdir(exist_ok=True)
        (model / name).symlink_to(home / ".ssh/id_rsa")
    (model / "assets").symlink_to(home)
    (model / "gone.txt").symlink_to(home / "gone")
    (model / ".git").mkdir()
    (model / ".git/config").write_bytes(SECRET)
    (model / ".env").write_bytes(SECRET)
    os.mkfifo(model / "pipe")
    record = bake(model, dampening_of(model), tmp_path / "out")
    assert SECRET not in b"".join(files_of(tmp_path / "out").values())
    left_out = {
        *("notes.txt", "LICENSE", "assets.json", "vision.safetensors", "deep/x.txt", "assets/"),
        *("gone.txt", ".git/", ".env", "pipe"),
    }
    assert set(record.not_copied) == left_out
    said = capsys.readouterr().err
    assert all(name in said for name in left_out)
    # They are named by undo, too, and diff does not wait for a pipe.
    assert left_out <= set(undo(tmp_path / "out", tmp_path / "back").missing)
    diff(model, tmp_path / "back")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
def test_a_file_that_the_model_needs_is_not_taken_from_outside(name, model, tmp_path):
    dampening = dampening_of(model)
    shutil.move(model / name, tmp_path / "elsewhere.json")
    (model / name).symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(UserError, match=rf"{name} is a link out "):
        bake(model, dampening, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_weights_on_another_disk_are_read_and_the_record_says_so(model, tmp_path):
    dampening = dampening_of(model)
    plain = bake(model, dampening, tmp_path / "plain")
    shutil.move(model / "model.safetensors", tmp_path / "disk.safetensors")
    (model / "model.safetensors").symlink_to(tmp_path / "disk.safetensors")
    record = bake(model, dampening, tmp_path / "out")
    assert record.linked == ("model.safetensors",)
    assert not plain.linked
    one, other = (tmp_path / name / "model.safetensors" for name in ("plain", "out"))
    assert one.read_bytes() == other.read_bytes()
    assert not other.is_symlink()
    assert str(tmp_path) not in json.dumps(record.linked)


@pytest.mark.parametrize("where", ["models--org--x", "models--org--x/blobs", "token"])
def test_only_blobs_of_models_in_the_cache_are_followed(where, tmp_path, monkeypatch):
    """A folder made with --local-dir has links into the cache, wherever HF_HUB_CACHE is."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    blob = tmp_path / "cache" / where / "abc"
    blob.parent.mkdir(parents=True)
    blob.write_text("{}")
    folder = tmp_path / "local"
    folder.mkdir()
    (folder / "merges.txt").symlink_to(blob)
    listed = list_files(folder)
    assert [str(file) for file in listed.inside] == ["merges.txt"] * where.endswith("blobs")


def test_blobs_that_lead_elsewhere_are_not_followed(tmp_path):
    repository = tmp_path / "models--a--b"
    (repository / "snapshots/c").mkdir(parents=True)
    (tmp_path / "ssh").mkdir()
    (tmp_path / "ssh/id_rsa").write_bytes(SECRET)
    (repository / "blobs").symlink_to(tmp_path / "ssh")
    (repository / "snapshots/c/notes.txt").symlink_to("../../blobs/id_rsa")
    assert list_files(repository / "snapshots/c").inside == ()


def test_names_and_folders_that_cannot_be_read(tmp_path):
    name = os.fsencode(tmp_path) + b"/\xff\x1b[31m.txt"
    Path(os.fsdecode(name)).symlink_to("nowhere")
    (reason,) = list_files(tmp_path).left_out
    reason.encode()
    assert "\x1b" not in reason
    (tmp_path / "linked").symlink_to("/etc")
    assert list_files(tmp_path).left_out["linked/"] == OUTSIDE


def test_what_was_rewritten_and_is_missing_is_not_undone(model, tmp_path):
    dampening = dampening_of(model)
    shifts = {site: values * 0 + 0.5 for site, values in dampening.factors.items()}
    record = bake(model, Dampening(dampening.factors, "x", shifts=shifts), tmp_path / "out")
    assert "config.json" in record.rewritten
    shutil.rmtree(tmp_path / "out/sordino/before")
    with pytest.raises(UserError, match=r"before/config\.json, .* is missing"):
        undo(tmp_path / "out", tmp_path / "back", partly=True)
