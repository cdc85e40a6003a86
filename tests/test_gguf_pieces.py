"""GGUF models in several files, split here by hand as llama.cpp's gguf-split splits them."""

import json
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from families import random_factors
from sordino import files
from sordino.cli.app import main
from sordino.edits import bake, is_dampened, read_provenance, verify_file
from sordino.edits.difference import diff
from sordino.errors import UserError
from sordino.interventions import Dampening
from sordino.models.gguf_header import Header, read_header
from sordino.models.gguf_pieces import read_model
from sordino.models.open import open_model
from sordino.models.reference import resolve
from tiny_gguf import tiny_of


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def split(source: Path, folder: Path, count: int, name: str = "tiny", **said: int) -> list[Path]:
    """Deal a file's tensors out to so many; only the first gets its metadata."""
    folder.mkdir(exist_ok=True)
    data, header = source.read_bytes(), read_header(source)
    names = list(header.tensors)
    size = -(-len(names) // count)
    files = []
    for number in range(count):
        here = [header.tensors[n] for n in names[number * size : (number + 1) * size]]
        pairs = [data[slice(*place)] for place in header.places.values()] if number == 0 else []
        values = {"no": number, "count": count, "tensors": len(names), **said}
        pairs += [
            text("split.no") + struct.pack("<IH", 2, values["no"]),
            text("split.count") + struct.pack("<IH", 2, values["count"]),
            text("split.tensors.count") + struct.pack("<Ii", 5, values["tensors"]),
        ]
        table, body = b"", b""
        for tensor in here:
            table += text(tensor.name) + struct.pack(
                f"<I{len(tensor.shape)}QIQ",
                len(tensor.shape),
                *reversed(tensor.shape),
                int(gguf.GGMLQuantizationType[tensor.kind]),
                len(body),
            )
            body += data[tensor.start : tensor.end]
            body += bytes(-len(body) % 32)
        head = struct.pack("<4sIQQ", b"GGUF", 3, len(here), len(pairs)) + b"".join(pairs) + table
        files.append(folder / f"{name}-{number + 1:05}-of-{count:05}.gguf")
        files[-1].write_bytes(head + bytes(-len(head) % 32) + body)
    return files


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    return tiny_of("llama", tmp_path / "tiny.gguf")


def dampening_of(path: Path) -> Dampening:
    sites = open_model(path, device="cpu").sites
    return Dampening(random_factors({site.path: site.neurons for site in sites}), "aura")


def contents(header: Header) -> dict[str, bytes]:
    return {name: header.rows(tensor).tobytes() for name, tensor in header.tensors.items()}


@pytest.mark.parametrize("count", [2, 3])
def test_pieces_are_the_model_that_was_split(tmp_path, whole, count):
    files = split(whole, tmp_path / "split", count)
    one = open_model(whole, device="cpu").model.state_dict()
    for given in (files[0], files[-1]):
        several = open_model(given, device="cpu")
        found = several.model.state_dict()
        assert found.keys() == one.keys()
        assert all(torch.equal(tensor, found[name]) for name, tensor in one.items())
        assert several.ref.weight_files == files
    # Its reader sees the same as the gguf package's own, file by file.
    for file in files:
        for tensor in gguf.GGUFReader(file).tensors:
            assert contents(read_model(file))[tensor.name] == tensor.data.tobytes()


def test_every_piece_decides_the_fingerprint(tmp_path, whole):
    files = split(whole, tmp_path / "split", 2)
    before = resolve(files[0]).weights_fingerprint()
    data = bytearray(files[1].read_bytes())
    data[-40] ^= 1
    files[1].write_bytes(data)
    assert resolve(files[0]).weights_fingerprint() != before


@pytest.mark.parametrize("target", ["quiet.gguf", "quiet-00001-of-00003.gguf"])
def test_pieces_are_baked_to_as_many_or_to_one(tmp_path, whole, target):
    files = split(whole, tmp_path / "split", 3)
    dampening = dampening_of(whole)
    bake(whole, dampening, tmp_path / "expected.gguf")
    bake(files[0], dampening, tmp_path / target)
    written = sorted(tmp_path.glob("quiet*.gguf"))
    assert len(written) == (3 if "of" in target else 1)
    assert contents(read_model(written[0])) == contents(read_header(tmp_path / "expected.gguf"))
    for before, after in zip(files, written, strict=False):
        if len(written) == 3:
            assert list(read_header(before).tensors) == list(read_header(after).tensors)
    known = read_header(whole).metadata
    found = read_model(written[0]).metadata
    joined = {key for key in found if key.startswith("split.")}
    assert bool(joined) == (len(written) == 3)
    assert known.keys() == {k for k in found if not k.startswith("sordino.")} - joined
    assert is_dampened(written[0])
    assert read_provenance(written[-1]).model.name == str(files[0])
    checked = verify_file(resolve(files[0]), dampening, written[0])
    assert checked.within_rounding
    half = Dampening({s: (1 + f) / 2 for s, f in dampening.factors.items()}, "aura")
    assert not verify_file(resolve(files[0]), half, written[0]).within_rounding
    # The gguf package reads what was written.
    read = [tensor for file in written for tensor in gguf.GGUFReader(file).tensors]
    assert len(read) == len(read_header(whole).tensors)
    changes = diff(files[0], written[0])
    assert {change.name for change in changes.changed} == {
        f"blk.{layer}.ffn_{kind}.weight" for layer in range(4) for kind in ("gate", "up", "down")
    }


@pytest.mark.parametrize("stopped_at", [1, 2, 3])
def test_an_interrupted_replacement_is_not_taken_for_a_model(
    tmp_path, whole, stopped_at, monkeypatch
):
    pieces = split(whole, tmp_path / "split", 3)
    target = tmp_path / "quiet-00001-of-00003.gguf"
    half = dampening_of(whole)
    bake(pieces[0], Dampening({s: f / 2 for s, f in half.factors.items()}, "aura"), target)
    published, publish = [], files.publish

    def interrupted(staging, place):
        published.append(place)
        if len(published) == stopped_at:
            raise KeyboardInterrupt
        publish(staging, place)

    monkeypatch.setattr(files, "publish", interrupted)
    with pytest.raises(KeyboardInterrupt):
        bake(pieces[0], half, target, force=True)
    with pytest.raises(UserError, match="does not exist"):
        resolve(target)
    monkeypatch.undo()
    bake(pieces[0], half, target, force=True)
    assert verify_file(resolve(pieces[0]), half, target).within_rounding


def test_new_biases_come_into_the_last_piece(tmp_path, whole):
    files = split(whole, tmp_path / "split", 2)
    plain = dampening_of(whole)
    shifts = {site: np.full_like(f, 0.25) for site, f in plain.factors.items()}
    shifted = Dampening(plain.factors, "mean_shift", shifts=shifts)
    bake(whole, shifted, tmp_path / "expected.gguf")
    expected = contents(read_header(tmp_path / "expected.gguf"))
    for target in ("quiet.gguf", "quiet-00001-of-00002.gguf"):
        bake(files[0], shifted, tmp_path / target)
        assert contents(read_model(tmp_path / target)) == expected
        model = open_model(tmp_path / target, device="cpu").model
        assert model.model.layers[0].mlp.up_proj.bias.eq(0.25).all()


def test_commands_take_pieces(tmp_path, whole, capsys):
    files = split(whole, tmp_path / "split", 2)
    main(["inspect", str(files[0]), "--json"])
    several = json.loads(capsys.readouterr().out)
    main(["inspect", str(whole), "--json"])
    one = json.loads(capsys.readouterr().out)
    assert several["sites"] == one["sites"]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda files: files[1].unlink(), r"00002-of-00003\.gguf is missing beside it"),
        (lambda files: files[2].write_bytes(files[1].read_bytes()), "says that it is piece 2 of 3"),
        (lambda files: files[0].rename(files[0].with_name("a.gguf")), "found by their names"),
        (lambda files: files[2].write_bytes(files[2].read_bytes()[:-64]), "cut off"),
        (
            lambda files: split(files[0].parents[1] / "tiny.gguf", files[0].parent, 3, tensors=7),
            "says 7 tensors",
        ),
    ],
)
def test_what_is_wrong_with_pieces_is_one_sentence(tmp_path, whole, spoil, message):
    files = split(whole, tmp_path / "split", 3)
    spoil(files)
    given = files[0] if files[0].exists() else files[0].with_name("a.gguf")
    with pytest.raises(UserError, match=message):
        open_model(given, device="cpu")


def test_numbers_that_are_not_the_models_are_refused(tmp_path, whole):
    files = split(whole, tmp_path / "split", 2)
    dampening = dampening_of(whole)
    for given, target in ((files[0], "q-00001-of-00003.gguf"), (whole, "q-00001-of-00002.gguf")):
        with pytest.raises(UserError, match="a name without numbers"):
            bake(given, dampening, tmp_path / target)
    (tmp_path / "q-00002-of-00002.gguf").write_text("mine")
    with pytest.raises(UserError, match=r"q-00002-of-00002\.gguf exists"):
        bake(files[0], dampening, tmp_path / "q-00001-of-00002.gguf")
    assert not (tmp_path / "q-00001-of-00002.gguf").exists()
