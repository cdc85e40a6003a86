"""One safetensors file as a stream."""

import json
import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.torch import load_file, save_file

from sordino.edits import shard
from sordino.edits.shard import Change, change_, copy_changed, read_header
from sordino.errors import UserError

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
    monkeypatch.setattr(shard, "_CHUNK", chunk)
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
