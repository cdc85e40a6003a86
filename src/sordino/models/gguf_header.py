"""The header of a GGUF file, checked before it is used.

Anybody can write any number into a header. Here every count, length and offset is compared with the
file's size first, so a damaged or hostile file gives one sentence: nothing larger than the file is
allocated, and no loop takes more steps than the file has bytes. Arrays, such as a vocabulary, are
skipped and read on request.
"""

import mmap
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sordino.errors import UserError
from sordino.files import refuse_pointer

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_ALIGNMENT = 32  # the default
_MAX_DIMENSIONS = 4  # llama.cpp's limit
UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY, UINT64 = 4, 5, 6, 7, 8, 9, 10
"""The format's numbers for types of values."""
# The types of values that have one size, as struct and numpy call them.
_FIXED = {
    **{0: "B", 1: "b", 2: "H", 3: "h", UINT32: "I", INT32: "i", FLOAT32: "f", BOOL: "?"},
    **{UINT64: "Q", 11: "q", 12: "d"},
}
_SIZES = {kind: struct.calcsize(f"<{code}") for kind, code in _FIXED.items()}
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")
Buffer = bytes | mmap.mmap


class Array(NamedTuple):
    """An array of a header, not read yet.

    Args:
        kind: The format's number for the type of its elements.
        length: How many there are.
        start: Where in the file the first one is.
        end: Where in the file the array ends.
    """

    kind: int
    length: int
    start: int
    end: int


Value = bool | int | float | str | Array


class Stored(NamedTuple):
    """A tensor as a GGUF file holds it.

    Args:
        name: Its name in llama.cpp, such as "blk.3.ffn_up.weight".
        kind: The type's name, such as "Q4_K".
        shape: Its dimensions, the contiguous one last.
        start: Its first byte in the file.
        size: Its bytes.
        path: The file.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    start: int
    size: int
    path: Path

    @property
    def end(self) -> int:
        """The byte after its last."""
        return self.start + self.size

    @property
    def elements(self) -> int:
        """The number of its weights."""
        return prod(self.shape)


@dataclass(frozen=True)
class Header:
    """A GGUF file's metadata and its table of tensors.

    Args:
        path: The file; of a model in several files, the first.
        metadata: Values by key, in the file's order.
        places: By key, where in the file the pair of key and value starts and ends.
        tensors: By name, in the file's order.
        table: Where in the file the table of tensors starts and ends.
        alignment: Of the tensors' first bytes.
        data: Where the tensors begin.
        version: Of the format.
        pieces: The headers of all files of a model in several; `tensors` are then those of all, and
            everything else is the first one's.
    """

    path: Path
    metadata: Mapping[str, Value]
    places: Mapping[str, tuple[int, int]]
    tensors: Mapping[str, Stored]
    table: tuple[int, int]
    alignment: int
    data: int
    version: int
    pieces: tuple["Header", ...] = ()

    @property
    def files(self) -> tuple["Header", ...]:
        """The headers of all files of the model."""
        return self.pieces or (self,)

    @property
    def architecture(self) -> str:
        """The architecture's name in llama.cpp, such as "llama".

        Raises:
            UserError: The file names none.
        """
        name = self.metadata.get("general.architecture")
        if not isinstance(name, str) or not name:
            raise UserError(
                f"{self.path} has no general.architecture, so it is not a language model."
            )
        return name

    def read(self, array: Array) -> list[Any]:
        """The elements of an array of this header.

        Raises:
            UserError: A string is not UTF-8.
        """
        with self.path.open("rb") as file:
            file.seek(array.start)
            data = file.read(array.end - array.start)
        if array.kind != STRING:
            values: list[Any] = np.frombuffer(data, f"<{_FIXED[array.kind]}").tolist()
            return values
        try:
            return [
                data[start:end].decode()
                for start, end in _strings(data, 0, array.length, self.path)
            ]
        except UnicodeDecodeError as error:
            raise UserError(f"{self.path} has a string that is not UTF-8: {error}.") from None

    def rows(self, tensor: Stored) -> NDArray[np.uint8]:
        """A tensor's bytes, uint8 [rows, bytes of a row], mapped and not read."""
        rows = prod(tensor.shape[:-1])
        shape = (rows, tensor.size // rows if rows else 0)
        if not tensor.size:
            return np.empty(shape, np.uint8)
        # As a plain array: each slice of a memmap costs microseconds.
        return np.asarray(np.memmap(tensor.path, np.uint8, "r", tensor.start, shape))


def read_header(path: Path) -> Header:
    """Read and check a GGUF file's header.

    Raises:
        UserError: It is not a GGUF file, or it is damaged.
    """
    try:
        with path.open("rb") as file:
            if not file.seek(0, 2):
                raise UserError(f"{path} is empty: get it again.")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return parse_header(data, path)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from None


def parse_header(data: Buffer, path: Path) -> Header:
    """The header of a GGUF file whose bytes are `data`; `path` is for messages.

    Raises:
        UserError: It is not a GGUF file, or it is damaged.
    """
    version, tensor_count, pair_count, at = _start(data, path)
    metadata: dict[str, Value] = {}
    places: dict[str, tuple[int, int]] = {}
    for _ in range(pair_count):
        start = at
        key, at = _name(data, at, path)
        kind, at = _number(_U32, data, at, path)
        if key in metadata:
            raise _make_damaged(path, f"it has the key {key!r} twice")
        metadata[key], at = _value(data, at, kind, key, path)
        places[key] = start, at
    alignment = _alignment(metadata, path)
    table = at
    entries: dict[str, tuple[str, tuple[int, ...], int, int]] = {}
    for _ in range(tensor_count):
        name, at = _name(data, at, path)
        if name in entries:
            raise _make_damaged(path, f"it has the tensor {name!r} twice")
        entries[name], at = _entry(data, at, name, path)
    first = -(-at // alignment) * alignment
    tensors = {
        name: Stored(name, kind, shape, first + offset, size, path)
        for name, (kind, shape, offset, size) in entries.items()
    }
    _refuse_misplaced(tensors, alignment, first, len(data), path)
    return Header(path, metadata, places, tensors, (table, at), alignment, first, version)


def _start(data: Buffer, path: Path) -> tuple[int, int, int, int]:
    """The version, the counts of tensors and of pairs, and where the pairs begin."""
    refuse_pointer(bytes(data[:100]), str(path))
    if data[:4] != _MAGIC:
        raise UserError(f"{path} is no GGUF file: it does not begin with GGUF.")
    version, at = _number(_U32, data, 4, path)
    if version not in _VERSIONS:
        if not version & 0xFFFF:
            raise UserError(f"{path} is a big-endian GGUF file, which cannot be read here.")
        raise UserError(
            f"{path} is of GGUF version {version}, and only versions 2 and 3 are known: convert it "
            "again."
        )
    tensor_count, at = _number(_U64, data, at, path)
    pair_count, at = _number(_U64, data, at, path)
    return version, tensor_count, pair_count, at


def _number(form: struct.Struct, data: Buffer, at: int, path: Path) -> tuple[Any, int]:
    end = at + form.size
    if end > len(data):
        raise _cut_off(path)
    return form.unpack_from(data, at)[0], end


def _strings(data: Buffer, at: int, count: int, path: Path) -> Iterator[tuple[int, int]]:
    """Where each of `count` consecutive strings starts and ends."""
    unpack, size = _U64.unpack_from, len(data)
    for _ in range(count):
        start = at + 8
        if start > size:
            raise _cut_off(path)
        at = start + unpack(data, at)[0]
        if at > size:
            raise _cut_off(path)
        yield start, at


def _name(data: Buffer, at: int, path: Path) -> tuple[str, int]:
    [(start, end)] = _strings(data, at, 1, path)
    try:
        return data[start:end].decode(), end
    except UnicodeDecodeError:
        raise _make_damaged(path, "a name in it is not UTF-8") from None


def _value(data: Buffer, at: int, kind: int, key: str, path: Path) -> tuple[Value, int]:
    if kind in _FIXED:
        end = at + _SIZES[kind]
        if end > len(data):
            raise _cut_off(path)
        return struct.unpack_from(f"<{_FIXED[kind]}", data, at)[0], end
    if kind == STRING:
        [(start, end)] = _strings(data, at, 1, path)
        return data[start:end].decode(errors="replace"), end
    if kind != ARRAY:
        raise _make_damaged(path, f"{key!r} is of a type {kind} that does not exist")
    inner, at = _number(_U32, data, at, path)
    count, at = _number(_U64, data, at, path)
    if inner in _FIXED:
        end = at + count * _SIZES[inner]
        if end > len(data):
            raise _cut_off(path)
    elif inner == STRING:
        end = at
        for _first, after in _strings(data, at, count, path):
            end = after
    else:
        raise _make_damaged(path, f"{key!r} is an array of a type {inner} that arrays cannot have")
    return Array(inner, count, at, end), end


def _alignment(metadata: Mapping[str, Value], path: Path) -> int:
    alignment = metadata.get("general.alignment", _ALIGNMENT)
    if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
        raise _make_damaged(path, "its general.alignment is not a power of two")
    return alignment


def _entry(
    data: Buffer, at: int, name: str, path: Path
) -> tuple[tuple[str, tuple[int, ...], int, int], int]:
    """A tensor's type, shape, offset and size, from the table of tensors."""
    dimensions, at = _number(_U32, data, at, path)
    if dimensions > _MAX_DIMENSIONS:
        raise _make_damaged(path, f"the tensor {name!r} has {dimensions} dimensions")
    sizes = []
    for _ in range(dimensions):
        size, at = _number(_U64, data, at, path)
        sizes.append(size)
    number, at = _number(_U32, data, at, path)
    offset, at = _number(_U64, data, at, path)
    if number not in _types():
        raise UserError(
            f"{path} holds {name!r} as a type of number {number} that is not known here: it is "
            "damaged, or newer than the installed gguf package."
        )
    kind, weights, block = _types()[number]
    row = sizes[0] if sizes else 1
    if row % weights:
        raise _make_damaged(path, f"rows of {row} weights of {name!r} cannot be {kind}")
    size = prod(sizes) // weights * block
    if size > len(data):
        raise _make_damaged(path, f"the tensor {name!r} would be larger than the file")
    return (kind, tuple(reversed(sizes)) or (1,), offset, size), at


@cache
def _types() -> dict[int, tuple[str, int, int]]:
    """By the format's number: a tensor type's name, the weights of a block, its bytes."""
    from gguf.constants import GGML_QUANT_SIZES

    return {int(kind): (kind.name, *sizes) for kind, sizes in GGML_QUANT_SIZES.items()}


def _refuse_misplaced(
    tensors: Mapping[str, Stored], alignment: int, first: int, size: int, path: Path
) -> None:
    ordered = sorted(tensors.values(), key=lambda tensor: (tensor.start, tensor.end))
    for tensor in ordered:
        if tensor.end > size:
            raise UserError(
                f"{path} ends before its tensor {tensor.name!r} does: it is cut off, get it again."
            )
        if (tensor.start - first) % alignment:
            raise _make_damaged(path, f"the tensor {tensor.name!r} has an invalid offset")
    for one, other in pairwise(ordered):
        if other.start < one.end:
            raise _make_damaged(path, f"the tensors {one.name!r} and {other.name!r} overlap")


def _cut_off(path: Path) -> UserError:
    return UserError(f"{path} ends inside its header: it is damaged or cut off, get it again.")


def _make_damaged(path: Path, reason: str) -> UserError:
    return UserError(f"{path} is damaged, for {reason}: get it again.")
