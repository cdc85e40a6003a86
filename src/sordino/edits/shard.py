"""One safetensors file, copied as a stream with some of its tensors scaled."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sordino.errors import UserError

_DTYPES = {
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


def read_header(path: Path) -> dict[str, Stored]:
    """The tensors of a safetensors file by name.

    Raises:
        UserError: It is damaged.
    """
    try:
        with safe_open(path, framework="numpy"):
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


def refuse_unscalable(path: Path, name: str, stored: Stored, scale: Tensor) -> None:
    """Raise `UserError` unless the stored tensor can be multiplied by the scale."""
    if stored.dtype not in _DTYPES:
        raise UserError(
            f"{path} holds {name} as {stored.dtype}: weights of this type cannot be baked yet; "
            f"use a checkpoint in {', '.join(_DTYPES)}."
        )
    fits = len(scale.shape) == len(stored.shape) and all(
        ours in (1, theirs) for ours, theirs in zip(scale.shape, stored.shape, strict=True)
    )
    if not fits:
        raise UserError(
            f"{path} holds {name} with shape {list(stored.shape)}, which does not fit the "
            f"dampening's {scale.numel()} neurons: it belongs to another configuration."
        )


def copy_scaled(
    source: Path,
    target: Path,
    scales: Mapping[str, Tensor],
    advance: Callable[[int], None],
) -> None:
    """Copy a safetensors file, multiplying some tensors; every other byte stays as it is.

    Args:
        source: The file to read.
        target: The file to write; it must not exist.
        scales: By tensor name, a float32 tensor that broadcasts to it.
        advance: Told of the bytes as they are written.

    Raises:
        UserError: The file is damaged, or a tensor cannot be multiplied.
    """
    tensors = read_header(source)
    touched = sorted(
        ((tensors[name], scale, name) for name, scale in scales.items() if name in tensors),
        key=lambda entry: (entry[0].start, entry[0].end),  # an empty tensor before its neighbour
    )
    for stored, scale, name in touched:
        refuse_unscalable(source, name, stored, scale)
    with source.open("rb") as reader, target.open("xb") as writer:
        for stored, scale, _ in touched:
            _copy(reader, writer, stored.start - reader.tell(), advance)
            _scale(reader, writer, stored, scale, advance)
        _copy(reader, writer, source.stat().st_size - reader.tell(), advance)


def multiply_(values: Tensor, scale: Tensor) -> None:
    """Multiply in place: the product in float32 (float64 for float64), rounded once.

    Args:
        values: Of any floating dtype.
        scale: float32; it broadcasts to `values`.
    """
    wide = values.to(torch.promote_types(values.dtype, torch.float32))
    values.copy_(wide.mul_(scale))  # several times faster than `values.mul_(scale)` in 16 bits


def _copy(reader: BinaryIO, writer: BinaryIO, count: int, advance: Callable[[int], None]) -> None:
    buffer = memoryview(bytearray(min(count, _CHUNK)))
    while count > 0:
        piece = buffer[: min(count, _CHUNK)]
        _fill(reader, piece)
        writer.write(piece)
        advance(len(piece))
        count -= len(piece)


def _scale(
    reader: BinaryIO,
    writer: BinaryIO,
    stored: Stored,
    scale: Tensor,
    advance: Callable[[int], None],
) -> None:
    """Read a tensor some rows at a time, multiply them and write them."""
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
        values = piece.view(_DTYPES[stored.dtype]).view(here, *rest)
        multiply_(values, scale if scale.shape[0] == 1 else scale[first : first + here])
        writer.write(piece.numpy().data)
        advance(len(piece))


def _fill(reader: BinaryIO, buffer: memoryview) -> None:
    while buffer:
        count = reader.readinto(buffer)  # type: ignore[attr-defined]
        if not count:
            raise UserError(f"{reader.name} became shorter while it was read: try again.")
        buffer = buffer[count:]
