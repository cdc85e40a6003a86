"""One safetensors file as a stream."""

import errno
import json
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.torch import load_file, save_file

from sordino.edits import shard
from sordino.edits.shard import Change, change_, copy, copy_changed
from sordino.errors import UserError
from sordino.models.safetensors_header import read_header

FLOATS = st.floats(-1e4, 1e4, width=32)


@given(
    hnp.arrays(np.float32, st.tuples(st.integers(1, 5), st.integers(1, 5)), elements=FLOATS),
    st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    st.data(),
)
def test_the_product_is_rounded_once(weights, dtype, data):
    factors = data.draw(
        hnp.arrays(np.float32, len(weights), elements=st.floats(0, 2, width=32)), "factors"
    )
    values = torch.from_numpy(weights).to(dtype)
    exact = values.float().numpy() * factors[:, None]  # numpy's float32, rounded once below
    change_(values, Change(torch.from_numpy(factors)[:, None]))
    assert torch.equal(values, torch.from_numpy(exact).to(dtype))


def test_float64_is_not_narrowed():
    values = torch.tensor([1 + 2**-40], dtype=torch.float64)
    change_(values, Change(torch.tensor([0.5])))
    assert values.item() == 0.5 + 2**-41


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("chunk", [64, 2**20])
def test_only_the_named_tensors_change(tmp_path, monkeypatch, dtype, chunk):
    monkeypatch.setattr(shard, "CHUNK", chunk)
    torch.manual_seed(0)
    tensors = {
        "before": torch.randn(7, 3),
        "linear.weight": torch.randn(12, 5).to(dtype),
        "linear.bias": torch.randn(12).to(dtype),
        "conv.weight": torch.randn(5, 12).to(dtype),
        "experts": torch.randn(3, 4, 5).to(dtype),
        "empty": torch.empty(0, 4),
        "integers": torch.arange(9),
    }
    save_file(tensors, tmp_path / "in.safetensors", metadata={"format": "pt", "note": "kept"})
    scales = {
        "linear.weight": torch.rand(12, 1),
        "linear.bias": torch.rand(12),
        "conv.weight": torch.rand(1, 12),
        "experts": torch.rand(3, 4, 1),
        "empty": torch.rand(1, 4),
        "elsewhere": torch.rand(2),
    }
    advanced = []
    source, target = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    changes = {name: Change(scale) for name, scale in scales.items()}
    copy_changed(source, target, changes, advanced.append)
    assert sum(advanced) == source.stat().st_size == target.stat().st_size
    assert _header(source) == _header(target)
    for name, found in load_file(target).items():
        expected = tensors[name]
        if name in scales:
            wide = torch.float64 if dtype == torch.float64 else torch.float32
            expected = (expected.to(wide) * scales[name]).to(expected.dtype)
        assert torch.equal(found, expected), name


class Refused:
    """A system that does not copy between files, or copies a few bytes and then no more."""

    def __init__(self, number: int) -> None:
        self.number, self.calls = number, 0

    def __call__(self, source, target, count, start, at):
        self.calls += 1
        if self.number:
            raise OSError(self.number, os.strerror(self.number))
        if self.calls % 2 == 0:
            return 0
        return os.pwrite(target, os.pread(source, min(count, 5), start), at)


REFUSALS = [errno.EXDEV, errno.ENOSYS, errno.EINVAL, 0]


@pytest.mark.parametrize("number", REFUSALS)
@pytest.mark.parametrize("threads", [1, 3])
def test_where_the_system_does_not_copy_it_is_done_here(tmp_path, monkeypatch, number, threads):
    monkeypatch.setattr(shard, "CHUNK", 100)
    monkeypatch.setattr(shard, "STRETCH", 230)
    refused = Refused(number)
    source = tmp_path / "in.safetensors"
    tensors = {name: torch.randn(9, 11) for name in "abcdef"}
    save_file(tensors, source, metadata={"note": "kept"})
    changes = {name: Change(torch.rand(9, 1)) for name in "be"}
    added = {"new": torch.randn(7)}
    copy_changed(source, tmp_path / "expected", changes, print, added)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        monkeypatch.setattr(os, "copy_file_range", refused)
        told = []
        copy_changed(source, tmp_path / "out", changes, told.append, added)
        copy(source, tmp_path / "copy", print)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert refused.calls
    assert sum(told) == source.stat().st_size
    assert (tmp_path / "out").read_bytes() == (tmp_path / "expected").read_bytes()
    assert (tmp_path / "copy").read_bytes() == source.read_bytes()
    found = load_file(tmp_path / "out")
    assert torch.equal(found["b"], tensors["b"] * changes["b"].scale)
    assert torch.equal(found["c"], tensors["c"])
    assert torch.equal(found["new"], added["new"])


def test_a_copy_is_independent_and_other_failures_are_told(tmp_path, monkeypatch):
    source = tmp_path / "in"
    source.write_bytes(bytes(range(256)) * 40)
    copy(source, tmp_path / "out", print)
    assert source.stat().st_nlink == (tmp_path / "out").stat().st_nlink == 1
    with (tmp_path / "out").open("r+b") as file:
        file.write(b"changed")
    assert source.read_bytes() == bytes(range(256)) * 40
    with pytest.raises(FileExistsError):
        copy(source, tmp_path / "out", print)
    (tmp_path / "none").write_bytes(b"")
    copy(tmp_path / "none", tmp_path / "empty", print)
    assert (tmp_path / "empty").read_bytes() == b""
    monkeypatch.setattr(os, "copy_file_range", Refused(errno.ENOSPC))
    with pytest.raises(OSError, match="No space left"):
        copy(source, tmp_path / "full", print)


def test_a_file_that_becomes_shorter_is_an_error(tmp_path, monkeypatch):
    source = tmp_path / "in.safetensors"
    save_file({"a": torch.zeros(100), "b": torch.zeros(100)}, source)
    whole = shard.read_header

    def cut(path: Path):
        header = whole(path)
        os.truncate(path, path.stat().st_size - 80)
        return header

    monkeypatch.setattr(shard, "read_header", cut)
    with pytest.raises(UserError, match="became shorter"):
        copy_changed(source, tmp_path / "out", {"b": Change(torch.rand(100))}, print)


def _header(path):
    data = path.read_bytes()
    return data[: 8 + struct.unpack("<Q", data[:8])[0]]


def _file(header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def _tensor(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00" * 7,
        _file({"a": _tensor()}, b"\0" * 7),
        _file({"a": _tensor()}, b"\0" * 9),
        _file({"a": _tensor()}, b"\0" * 8, length=2**63),
        _file({"a": _tensor()}, b"\0" * 8, length=10**6),
        _file(b"not json"),
        _file(b"[]"),
        _file({"a": {"dtype": "F32"}}),
        _file({"a": _tensor(shape=(3,))}, b"\0" * 8),
        _file({"a": _tensor(shape=(2**62, 2**62))}, b"\0" * 8),
        _file({"a": _tensor(offsets=(8, 0))}, b"\0" * 8),
        _file({"a": _tensor(offsets=(2**63, 2**63 + 8))}, b"\0" * 8),
        _file({"a": _tensor(), "b": _tensor()}, b"\0" * 8),
        _file({"a": _tensor(dtype="F31")}, b"\0" * 8),
        _file({"a": _tensor(shape=(-2,))}, b"\0" * 8),
    ],
)
def test_a_damaged_file_is_refused_by_name(tmp_path, content):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"model\.safetensors is damaged"):
        read_header(path)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60), st.integers(0, 120), st.binary(max_size=40))
def test_random_damage_never_crashes(tmp_path_factory, noise, at, tail):
    good = _file({"a": _tensor(), "b": _tensor("BF16", (2, 2), (8, 16))}, b"\0" * 16)
    path = tmp_path_factory.getbasetemp() / "fuzzed.safetensors"
    path.write_bytes(good[:at] + noise + good[at + len(noise) :] + tail)
    try:
        tensors = read_header(path)
    except UserError:
        return
    assert all(t.start <= t.end <= path.stat().st_size for t in tensors.values())


def test_quantised_and_misshapen_tensors_are_named(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"w": torch.zeros(4, 2, dtype=torch.int8), "v": torch.zeros(4, 2)}, path)
    with pytest.raises(UserError, match="holds w as I8"):
        copy_changed(path, tmp_path / "out", {"w": Change(torch.ones(4, 1))}, print)
    for scale in (torch.ones(3, 1), torch.ones(4)):
        with pytest.raises(UserError, match=r"holds v with shape \[4, 2\]"):
            copy_changed(path, tmp_path / "out", {"v": Change(scale)}, print)
    assert not (tmp_path / "out").exists()
