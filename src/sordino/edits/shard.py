"""One safetensors file, copied as a stream with some of its tensors changed, added or replaced."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
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
# Types that only make sense with a scale beside them: a product is rounded to them all the same.
SCALED_DTYPES = {
    **DTYPES,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E8M0": torch.float8_e8m0fnu,
}
_CHUNK = 8 * 2**20
_LENGTH_BYTES = 8  # the header's length, in front of it
_ITEM_BYTES = {"U8": 1, **{name: dtype.itemsize for name, dtype in SCALED_DTYPES.items()}}


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
        if self.scale.dim() == 0 or self.scale.shape[0] == 1:
            return self
        here = slice(first, first + count)
        return Change(self.scale[here], None if self.shift is None else self.shift[here])


@dataclass(frozen=True)
class New:
    """What a tensor is replaced by, where its size changes or its values are not a product.

    Args:
        dtype: The format's name, such as "F32".
        shape: Its dimensions.
        make: Gives the tensor, of that type and shape, when its turn to be written comes.
    """

    dtype: str
    shape: tuple[int, ...]
    make: Callable[[], Tensor]

    @classmethod
    def of(cls, tensor: Tensor) -> "New":
        """A tensor that there is already."""
        dtype = next(name for name, dtype in SCALED_DTYPES.items() if dtype == tensor.dtype)
        return cls(dtype, tuple(tensor.shape), lambda: tensor)

    @property
    def nbytes(self) -> int:
        """The size of its data."""
        return _ITEM_BYTES[self.dtype] * math.prod(self.shape)


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


def refuse_unchangeable(
    path: Path,
    name: str,
    stored: Stored,
    change: Change,
    dtypes: Mapping[str, torch.dtype] = DTYPES,
) -> None:
    """Raise `UserError` unless the change can be made to the stored tensor, of one of `dtypes`."""
    if stored.dtype not in dtypes:
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
) -> None:
    """Copy a safetensors file, changing some tensors; every other byte stays as it is.

    Args:
        source: The file to read.
        target: The file to write; it must not exist.
        changes: By tensor name.
        advance: Told of the source's bytes as they are written.
        added: New tensors by name, of the dtypes above. They come last, so that in the header,
            which grows by their entries, the offsets of all others stay.

    Raises:
        UserError: The file is damaged, or a tensor cannot be changed.
    """
    tensors = read_header(source)
    touched = sorted(
        ((tensors[name], change, name) for name, change in changes.items() if name in tensors),
        key=lambda entry: (entry[0].start, entry[0].end),  # an empty tensor before its neighbour
    )
    for stored, change, name in touched:
        refuse_unchangeable(source, name, stored, change, SCALED_DTYPES)
    with source.open("rb") as reader, target.open("xb") as writer:
        if added:
            writer.write(_grown_header(reader, added))
            advance(reader.tell())
        for stored, change, _ in touched:
            _copy(reader, writer, stored.start - reader.tell(), advance)
            _change(reader, writer, stored, change, advance)
        _copy(reader, writer, source.stat().st_size - reader.tell(), advance)
        for tensor in (added or {}).values():
            writer.write(tensor.contiguous().view(torch.uint8).numpy().data)


def _grown_header(reader: BinaryIO, added: Mapping[str, Tensor]) -> bytes:
    """Read the header and give it with the entries of tensors that follow after all others."""
    length = int.from_bytes(reader.read(_LENGTH_BYTES), "little")
    header = json.loads(reader.read(length))
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
    return _encoded(header)


def _encoded(header: Mapping[str, object]) -> bytes:
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _LENGTH_BYTES)  # the data that follow stay aligned
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text


def copy_rewritten(
    source: Path,
    target: Path,
    changes: Mapping[str, Change | New | None],
    advance: Callable[[int], None],
) -> None:
    """Copy a safetensors file under a new header, for tensors that change in size, come or go.

    The entries keep their order, and the header its metadata. The data are laid out as the library
    lays them out: wide types first, so that everything stays aligned.

    Args:
        source: The file to read.
        target: The file to write; it must not exist.
        changes: By tensor name: a change, a replacement (or an addition), or None to leave it out.
        advance: Told of the source's bytes as they are dealt with.

    Raises:
        UserError: The file is damaged, or a tensor cannot be changed.
    """
    tensors = read_header(source)
    # What stays and what replaces, in the order of the header's entries; additions come last.
    kept: dict[str, Stored | New] = {}
    for name, stored in tensors.items():
        change = changes.get(name, stored)
        if isinstance(change, Change):
            refuse_unchangeable(source, name, stored, change, SCALED_DTYPES)
        if change is not None:
            kept[name] = change if isinstance(change, New) else stored
    kept |= {name: new for name, new in changes.items() if isinstance(new, New)}
    order = sorted(kept, key=lambda name: -_item_bytes(kept[name]))
    with source.open("rb") as reader, target.open("xb") as writer:
        length = int.from_bytes(reader.read(_LENGTH_BYTES), "little")
        header = json.loads(reader.read(length))
        advance(reader.tell())
        writer.write(_header(header.get("__metadata__"), kept, order))
        for name in order:
            here, change = kept[name], changes.get(name)
            old = tensors.get(name)
            if isinstance(here, New):
                writer.write(here.make().contiguous().reshape(-1).view(torch.uint8).numpy().data)
                advance(old.end - old.start if old else 0)
            else:
                reader.seek(here.start)
                if isinstance(change, Change):
                    _change(reader, writer, here, change, advance)
                else:
                    _copy(reader, writer, here.end - here.start, advance)
        advance(sum(old.end - old.start for name, old in tensors.items() if name not in kept))


def _item_bytes(tensor: Stored | New) -> int:
    if isinstance(tensor, New):
        return _ITEM_BYTES[tensor.dtype]
    return (tensor.end - tensor.start) // max(1, math.prod(tensor.shape))


def _header(metadata: object, tensors: Mapping[str, Stored | New], order: Sequence[str]) -> bytes:
    ends: dict[str, tuple[int, int]] = {}
    end = 0
    for name in order:
        here = tensors[name]
        start, end = end, end + (here.nbytes if isinstance(here, New) else here.end - here.start)
        ends[name] = start, end
    entries = {
        name: {"dtype": here.dtype, "shape": list(here.shape), "data_offsets": list(ends[name])}
        for name, here in tensors.items()
    }
    return _encoded(entries if metadata is None else {"__metadata__": metadata, **entries})


def change_(values: Tensor, change: Change) -> None:
    """Change in place: computed in float32 (float64 for float64), rounded once.

    Args:
        values: Of any floating dtype.
        change: What becomes of them.
    """
    wide = values.to(torch.float64 if values.dtype == torch.float64 else torch.float32)
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
    advance: Callable[[int], None],
) -> None:
    """Read a tensor some rows at a time, change them and write them."""
    if stored.start == stored.end:
        return
    rows, rest = (stored.shape[0] if stored.shape else 1), stored.shape[1:]
    row_bytes = (stored.end - stored.start) // rows
    step = max(1, _CHUNK // row_bytes)
    buffer = torch.empty(min(rows, step) * row_bytes, dtype=torch.uint8)
    for first in range(0, rows, step):
        here = min(step, rows - first)
        piece = buffer[: here * row_bytes]
        _fill(reader, piece.numpy().data)
        values = piece.view(SCALED_DTYPES[stored.dtype]).view(here, *rest)
        change_(values, change.rows(first, here))
        writer.write(piece.numpy().data)
        advance(len(piece))


def _fill(reader: BinaryIO, buffer: memoryview) -> None:
    while buffer:
        count = reader.readinto(buffer)  # type: ignore[attr-defined]
        if not count:
            raise UserError(f"{reader.name} became shorter while it was read: try again.")
        buffer = buffer[count:]
