"""What the fuzzers call with bytes: our readers of files that come from anywhere.

Each takes any bytes and must end in a result or in `UserError`, and soon, and in little memory.
"""

import os
from pathlib import Path

from sordino.edits.shard import read_header as read_safetensors
from sordino.errors import UserError
from sordino.models.gguf_header import Array, parse_header
from sordino.models.reference import ModelRef

_SHM = Path("/dev/shm")
_FOLDER = (_SHM if _SHM.is_dir() else Path("/tmp")) / f"sordino-fuzz-{os.getpid()}"


def gguf(data: bytes) -> bool:
    """A GGUF header: whether it was taken for a good one."""
    try:
        header = parse_header(data, Path("fuzzed.gguf"))
    except UserError:
        return False
    # What is promised of every header that is not refused.
    ordered = sorted(header.tensors.values(), key=lambda tensor: (tensor.start, tensor.end))
    last = header.table[1]
    for tensor in ordered:
        assert last <= tensor.start <= tensor.end <= len(data)
        assert not (tensor.start - header.data) % header.alignment
        last = tensor.end
    for value in header.metadata.values():
        if isinstance(value, Array):
            assert value.length <= value.end - value.start <= len(data)
    return True


def safetensors(data: bytes) -> bool:
    """A safetensors header, with whatever tensors follow it; or one without its length."""
    if data.startswith(b"{"):
        data = len(data).to_bytes(8, "little") + data + bytes(64)
    path = _scratch("model.safetensors", data)
    try:
        tensors = read_safetensors(path)
    except UserError:
        return False
    for stored in tensors.values():
        assert 8 <= stored.start <= stored.end <= len(data)
    return True


def index(data: bytes) -> bool:
    """An index of shards, in a folder that has two files and a folder beside it that has one."""
    folder = _FOLDER / "model"
    path = _scratch("model/model.safetensors.index.json", data)
    for shard in (folder / "one.safetensors", folder / "two.safetensors", _FOLDER / "out"):
        shard.touch()
    try:
        files = ModelRef("model", "folder", folder).weight_files
    except UserError:
        return False
    assert files
    assert all(file.parent == path.parent and file.is_file() for file in files)
    return True


def _scratch(name: str, data: bytes) -> Path:
    path = _FOLDER / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


TARGETS = {"gguf": gguf, "safetensors": safetensors, "index": index}
