"""One safetensors file, copied as a stream with some of its tensors changed and some added."""

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sordino.errors import UserError

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
_CHUNK = 8 * 2**20
_LENGTH_BYTES = 8  # the header's length, in front of it


@dataclass(frozen=True)
class Stored:
    """A tensor as a safetensors file holds it.

    Args:
        dtype: The format's name, such as "BF16".
        shape: Its dimensions.
        start: Its first byte in the file.
        end: The byte after its last.
    """

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class Change:
    """What becomes of a tensor: values · scale + shift.

    Args:
        scale: float32; it broadcasts to the tensor.
        shift: float32, of the scale's shape, or None for none.
    """

    scale: Tensor
    shift: Tensor | None = None

    @property
    def is_none(self) -> bool:
        """Whether every value stays as it is."""
        return bool((self.scale == 1).all()) and (self.shift is None or not self.shift.any())

    def rows(self, first: int, count: int) -> "Change":
        """The change of some rows of the tensor."""
        if self.scale.shape[0] == 1:
            return self
        here = slice(first, first + count)
        return Change(self.scale[here], None if self.shift is None else self.shift[here])


def read_header(path: Path) -> dict[str, Stored]:
    """The tensors of a safetensors file by name.

    Raises:
        UserError: It is damaged.
    """
    try:
        with safe_open(path, framework="numpy", backend="pread"):
            pass  # the library refuses lengths, shapes and offsets that do not fit the file
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path} is damaged or no safetensors file ({error}): get it again."
        ) from None
    with path.open("rb") as file:
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        header = json.loads(file.read(length))
    data = _LENGTH_BYTES + length
    return {
        name: Stored(
            entry["dtype"],
            tuple(entry["shape"]),
            data + entry["data_offsets"][0],
            data + entry["data_offsets"][1],
        )
        for name, entry in header.items()
        if name != "__metadata__"
    }


def refuse_unchangeable(path: Path, name: str, stored: Stored, change: Change) -> None:
    """Raise `UserError` unless the change can be made to the stored tensor."""
    if stored.dtype not in DTYPES:
        raise UserError(
            f"{path} holds {name} as {stored.dtype}: weights of this type cannot be baked yet; "
            f"use a checkpoint in {', '.join(DTYPES)}."
        )
    scale = change.scale
    fits = len(scale.shape) == len(stored.shape) and all(
        ours in (1, theirs) for ours, theirs in zip(scale.shape, stored.shape, strict=True)
    )
    if not fits:
        raise UserError(
            f"{path} holds {name} with shape {list(stored.shape)}, which does not fit the "
            f"dampening's {scale.numel()} neurons: it belongs to another configuration."
        )


def copy_changed(
    source: Path,
    target: Path,
    changes: Mapping[str, Change],
    advance: Callable[[int], None],
    added: Mapping[str, Tensor] | None = None,
    *,
    removed: Collection[str] = (),
    change: Callable[[Tensor, Change], None] | None = None,
) -> None:
    """Copy a safetensors file, changing some tensors; every other byte stays as it is.

    Args:
        source: The file to read.
        target: The file to write; it must not exist.
        changes: By tensor name.
        advance: Told of the source's bytes as they are written.
        added: New tensors by name, of the dtypes above. They come last, so that in the header,
            which grows by their entries, the offsets of all others stay.
        removed: Names of tensors to leave out, which were added so.
        change: What is done to some rows of a tensor, in place; `change_` if None.

    Raises:
        UserError: The file is damaged, or a tensor cannot be changed or removed.
    """
    tensors = read_header(source)
    gone = tensors.keys() & set(removed)
    end = _end_of_rest(source, tensors, gone)
    touched = sorted(
        (
            (tensors[name], here, name)
            for name, here in changes.items()
            if name in tensors.keys() - gone
        ),
        key=lambda entry: (entry[0].start, entry[0].end),  # an empty tensor before its neighbour
    )
    for stored, here, name in touched:
        refuse_unchangeable(source, name, stored, here)
    with source.open("rb") as reader, target.open("xb") as writer:
        if added or gone:
            writer.write(_new_header(reader, added or {}, gone))
            advance(reader.tell())
        for stored, here, _ in touched:
            _copy(reader, writer, stored.start - reader.tell(), advance)
            _change(reader, writer, stored, here, change or change_, advance)
        _copy(reader, writer, end - reader.tell(), advance)
        advance(source.stat().st_size - end)
        for tensor in (added or {}).values():
            writer.write(tensor.contiguous().view(torch.uint8).numpy().data)


def _end_of_rest(source: Path, tensors: Mapping[str, Stored], gone: Collection[str]) -> int:
    """The byte after the last tensor that is not left out; those left out must follow it."""
    size = source.stat().st_size
    if not gone:
        return size
    end = size - sum(tensors[name].end - tensors[name].start for name in gone)
    if any(stored.end > end for name, stored in tensors.items() if name not in gone):
        raise UserError(
            f"{source} was written anew since it was baked: {min(gone)} does not come last, so "
            "that it cannot be taken out."
        )
    return end


def _new_header(reader: BinaryIO, added: Mapping[str, Tensor], gone: Collection[str]) -> bytes:
    """Read the header and give it without some entries, and with those of tensors to follow."""
    length = int.from_bytes(reader.read(_LENGTH_BYTES), "little")
    header = json.loads(reader.read(length))
    header = {name: entry for name, entry in header.items() if name not in gone}
    ends = (entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__")
    end = max(ends, default=0)
    names = {dtype: name for name, dtype in DTYPES.items()}
    for name, tensor in added.items():
        start, end = end, end + tensor.nbytes
        header[name] = {
            "dtype": names[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _LENGTH_BYTES)  # the data that follow stay aligned
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text


def change_(values: Tensor, change: Change) -> None:
    """Change in place: computed in float32 (float64 for float64), rounded once.

    Args:
        values: Of any floating dtype.
        change: What becomes of them.
    """
    wide = values.to(torch.promote_types(values.dtype, torch.float32))
    wide = wide.mul_(change.scale)  # several times faster than `values.mul_(scale)` in 16 bits
    values.copy_(wide if change.shift is None else wide.add_(change.shift))


def _copy(reader: BinaryIO, writer: BinaryIO, count: int, advance: Callable[[int], None]) -> None:
    buffer = memoryview(bytearray(min(count, _CHUNK)))
    while count > 0:
        piece = buffer[: min(count, _CHUNK)]
        _fill(reader, piece)
        writer.write(piece)
        advance(len(piece))
        count -= len(piece)


def _change(
    reader: BinaryIO,
    writer: BinaryIO,
    stored: Stored,
    change: Change,
    apply: Callable[[Tensor, Change], None],
    advance: Callable[[int], None],
) -> None:
    """Read a tensor some rows at a time, change them and write them."""
    if stored.start == stored.end:
        return
    rows, rest = stored.shape[0], stored.shape[1:]
    row_bytes = (stored.end - stored.start) // rows
    step = max(1, _CHUNK // row_bytes)
    buffer = torch.empty(min(rows, step) * row_bytes, dtype=torch.uint8)
    for first in range(0, rows, step):
        here = min(step, rows - first)
        piece = buffer[: here * row_bytes]
        _fill(reader, piece.numpy().data)
        values = piece.view(DTYPES[stored.dtype]).view(here, *rest)
        apply(values, change.rows(first, here))
        writer.write(piece.numpy().data)
        advance(len(piece))


def _fill(reader: BinaryIO, buffer: memoryview) -> None:
    while buffer:
        count = reader.readinto(buffer)  # type: ignore[attr-defined]
        if not count:
            raise UserError(f"{reader.name} became shorter while it was read: try again.")
        buffer = buffer[count:]
