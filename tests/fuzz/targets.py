"""What the fuzzers call with bytes: our readers of files that come from anywhere.

Each takes any bytes and must end in a result or in `UserError`, and soon, and in little memory.
"""

import json
import os
from math import prod
from pathlib import Path
from typing import Any

from sordino.errors import UserError
from sordino.models.dtypes import TORCH_DTYPES
from sordino.models.gguf_header import Array, parse_header
from sordino.models.reference import ModelRef
from sordino.models.safetensors_header import read_header as read_safetensors

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
    """A safetensors file: as it is, or with a header that is made up from the bytes.

    Of random bytes hardly any are JSON, and the library's own checks are not guided by coverage.
    """
    path = _scratch("model.safetensors", _safetensors_of(data) if data[:1] == b"!" else data)
    size = path.stat().st_size
    try:
        tensors = read_safetensors(path)
    except UserError:
        return False
    for stored in tensors.values():
        assert 8 <= stored.start <= stored.end <= size
        if stored.dtype in TORCH_DTYPES:
            assert (
                stored.end - stored.start
                == prod(stored.shape) * TORCH_DTYPES[stored.dtype].itemsize
            )
    return True


def index(data: bytes) -> bool:
    """An index of shards, in a folder that has two files and a folder around it that has one."""
    folder = _FOLDER / "model"
    made = _index_of(data) if data[:1] == b"!" else data
    path = _scratch("model/model.safetensors.index.json", made)
    for shard in (folder / "one.safetensors", folder / "two.safetensors", _FOLDER / "out"):
        shard.touch()
    try:
        files = ModelRef("model", "folder", folder).weight_files
    except UserError:
        return False
    assert files
    assert all(file.parent == path.parent and file.is_file() for file in files)
    return True


class _Choices:
    """Choices by the bytes of an input, and the first of all when there are no more.

    Args:
        data: The input.
    """

    def __init__(self, data: bytes) -> None:
        self._bytes = iter(data)

    def of(self, *values: Any) -> Any:
        return values[next(self._bytes, 0) % len(values)]


_NUMBERS = (
    *(0, 1, 2, 3, 8, 64, 2**31, 2**32, 2**53, 2**61, 2**62, 2**63 - 1, 2**63, 2**64 - 1, 2**64),
    *(-1, 1.5, 1e300, "7", None, [], {}, True),
)


def _safetensors_of(data: bytes) -> bytes:
    """A file whose header has some lies."""
    choose, header, end = _Choices(data[1:]), {}, 0
    for _ in range(choose.of(1, 2, 3, 0)):
        shape = [choose.of(2, 3, 0, 1, *_NUMBERS) for _ in range(choose.of(2, 1, 0, 3))]
        known = all(type(size) is int and 0 <= size < 100 for size in shape)
        start, end = end, end + (prod(shape) if known else 8) * choose.of(4, 2, 8, 1)
        entry: dict[str, Any] = {
            "dtype": choose.of("F32", "F16", "F64", "U8", "BF16", "F8_E4M3", "F4", "X", 3, None),
            "shape": choose.of(shape, shape, shape, *_NUMBERS),
            "data_offsets": [start, end],
        }
        if choose.of(0, 0, 1):
            entry["data_offsets"][choose.of(0, 1)] = choose.of(*_NUMBERS)
        if choose.of(0, 0, 0, 0, 0, 1):
            entry.pop(choose.of(*entry))
        name = choose.of("a.weight", "b", "c", "", "__metadata__", "\0", "\ud800", "d" * 300)
        header[name] = choose.of(entry, entry, entry, entry, {"k": "v"}, *_NUMBERS)
    text = json.dumps(header).encode()
    length = choose.of(len(text), len(text), len(text), len(text) + 1, 2**63, 2**64 - 1, 10**8)
    return length.to_bytes(8, "little") + text + bytes(min(end, 2**16) + choose.of(0, 0, 1))


def _index_of(data: bytes) -> bytes:
    choose = _Choices(data[1:])
    names = ("one.safetensors", "two.safetensors", "../out", "..", ".", "", "/", "/etc/passwd")
    names += ("./one.safetensors", "model/../one.safetensors", "one.safetensors\0", "\ud800")
    names += ("three.safetensors", "~", "C:\\out", "..\\out", "x" * 300, *_NUMBERS)
    places = {str(number): choose.of(*names) for number in range(choose.of(1, 2, 3, 0))}
    listing = choose.of(places, places, places, list(places.values()), *_NUMBERS)
    return json.dumps(choose.of({"weight_map": listing}, {"weight_map": listing}, listing)).encode()


def _scratch(name: str, data: bytes) -> Path:
    path = _FOLDER / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


TARGETS = {"gguf": gguf, "safetensors": safetensors, "index": index}
