"""One safetensors file, copied as a stream with some of its tensors changed, added or replaced."""

import errno
import json
import math
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from sordino.errors import UserError
from sordino.models.dtypes import BITS, PLAIN, SCALED, name_of
from sordino.models.safetensors_header import LENGTH_BYTES, Stored, encode_header, read_header

# Bytes changed at a time: they and their float32 copy stay in a core's own cache.
CHUNK = 2**20
# Bytes that the system is asked to copy at a time.
STRETCH = 32 * 2**20
# The errors of a system that cannot copy between two files by itself.
_NOT_IN_THE_SYSTEM = (errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM)


@dataclass(frozen=True)
class Change:
    """The change of a tensor: values · scale + shift.

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
    """The replacement of a tensor whose size changes, or whose new values are not a product.

    Args:
        dtype: The format's name, such as "F32".
        shape: Its dimensions.
        make: Makes the tensor, of that type and shape, when it is written.
    """

    dtype: str
    shape: tuple[int, ...]
    make: Callable[[], Tensor]

    @classmethod
    def of(cls, tensor: Tensor) -> "New":
        """The replacement by a tensor that exists already."""
        return cls(name_of(tensor.dtype), tuple(tensor.shape), lambda: tensor)

    @property
    def nbytes(self) -> int:
        """The size of its data."""
        return BITS[self.dtype] * math.prod(self.shape) // 8


def refuse_unchangeable(
    path: Path,
    name: str,
    stored: Stored,
    change: Change,
    dtypes: Mapping[str, torch.dtype] = PLAIN,
) -> None:
    """Raise `UserError` unless the change can be made to the stored tensor, of one of `dtypes`."""
    if stored.dtype not in dtypes:
        raise UserError(
            f"{path} holds {name} as {stored.dtype}: weights of this type cannot be baked yet; "
            f"use a checkpoint in {', '.join(PLAIN)}."
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

    Only the tensors that change are read; the bytes between them are copied by the system. Pieces
    of the file go to as many threads as torch uses.

    Args:
        source: The file to read.
        target: The file to write; it must not exist.
        changes: By tensor name.
        advance: Called with the number of the source's bytes that were written.
        added: New tensors by name, of a dtype in `PLAIN`. They come last, so that the header grows
            by their entries and the offsets of all others stay.
        removed: Names of tensors to leave out, which were `added` by an earlier edit.
        change: Changes some rows of a tensor in place; `change_finite_` if None.

    Raises:
        UserError: The file is damaged, a tensor cannot be changed or removed, or a changed one
            would hold a number that is not finite.
    """
    for name, tensor in (added or {}).items():
        refuse_overflow(name, tensor)
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
        refuse_unchangeable(source, name, stored, here, SCALED)
    with source.open("rb") as reader, target.open("xb") as writer:
        done = shifted = 0
        if added or gone:
            header = _new_header(reader, added or {}, gone)
            writer.write(header)
            writer.flush()
            done = reader.tell()
            shifted = len(header) - done
            advance(done)
        work: list[Callable[[], int]] = []
        for stored, here, name in touched:
            work += _copies(reader, writer, done, stored.start, shifted)
            apply = change or partial(change_finite_, f"{source}: {name}")
            work += _changes(reader, writer, stored, here, apply, shifted)
            done = stored.end
        work += _copies(reader, writer, done, end, shifted)
        _in_threads(work, advance)
        advance(os.fstat(reader.fileno()).st_size - end)
        writer.seek(end + shifted)
        for tensor in (added or {}).values():
            writer.write(tensor.contiguous().view(torch.uint8).numpy().data)


def _end_of_rest(source: Path, tensors: Mapping[str, Stored], gone: Collection[str]) -> int:
    """The byte after the last tensor that stays; those that are left out must follow it."""
    size = source.stat().st_size
    if not gone:
        return size
    end = size - sum(tensors[name].nbytes for name in gone)
    if any(stored.end > end for name, stored in tensors.items() if name not in gone):
        raise UserError(
            f"{source} was rewritten after it was baked: {min(gone)} is not its last tensor and "
            "cannot be removed."
        )
    return end


def copy(source: Path, target: Path, advance: Callable[[int], None]) -> None:
    """Copy a file of any kind.

    Args:
        source: The file to read.
        target: The file to write; it must not exist.
        advance: Called with the number of bytes that were written.
    """
    with source.open("rb") as reader, target.open("xb") as writer:
        _in_threads(_copies(reader, writer, 0, os.fstat(reader.fileno()).st_size, 0), advance)


def _new_header(reader: BinaryIO, added: Mapping[str, Tensor], gone: Collection[str]) -> bytes:
    """Read the header, and return it without some entries and with those of added tensors."""
    length = int.from_bytes(reader.read(LENGTH_BYTES), "little")
    header = json.loads(reader.read(length))
    header = {name: entry for name, entry in header.items() if name not in gone}
    ends = (entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__")
    end = max(ends, default=0)
    for name, tensor in added.items():
        start, end = end, end + tensor.nbytes
        header[name] = {
            "dtype": name_of(tensor.dtype),
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    return encode_header(header)


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
        advance: Called with the number of the source's bytes that were dealt with.

    Raises:
        UserError: The file is damaged, a tensor cannot be changed, or a changed one would hold a
            number that is not finite.
    """
    tensors = read_header(source)
    # What stays and what replaces, in the order of the header's entries; additions come last.
    kept: dict[str, Stored | New] = {}
    for name, stored in tensors.items():
        change = changes.get(name, stored)
        if isinstance(change, Change):
            refuse_unchangeable(source, name, stored, change, SCALED)
        if change is not None:
            kept[name] = change if isinstance(change, New) else stored
    kept |= {name: new for name, new in changes.items() if isinstance(new, New)}
    order = sorted(kept, key=lambda name: -BITS[kept[name].dtype])
    with source.open("rb") as reader, target.open("xb") as writer:
        length = int.from_bytes(reader.read(LENGTH_BYTES), "little")
        header = json.loads(reader.read(length))
        advance(reader.tell())
        writer.write(_header(header.get("__metadata__"), kept, order))
        writer.flush()
        at = writer.tell()
        for name in order:
            here, change = kept[name], changes.get(name)
            old = tensors.get(name)
            if isinstance(here, New):
                made = here.make()
                refuse_overflow(name, made)
                data = made.contiguous().reshape(-1).view(torch.uint8).numpy().data
                _write(writer, data, at)
                at += len(data)
                advance(old.nbytes if old else 0)
                continue
            shifted = at - here.start
            if isinstance(change, Change):
                in_place = partial(change_finite_, f"{source}: {name}")
                work = _changes(reader, writer, here, change, in_place, shifted)
            else:
                work = _copies(reader, writer, here.start, here.end, shifted)
            _in_threads(work, advance)
            at += here.nbytes
        advance(sum(old.nbytes for name, old in tensors.items() if name not in kept))


def _header(metadata: object, tensors: Mapping[str, Stored | New], order: Sequence[str]) -> bytes:
    ends: dict[str, tuple[int, int]] = {}
    end = 0
    for name in order:
        here = tensors[name]
        start, end = end, end + here.nbytes
        ends[name] = start, end
    entries = {
        name: {"dtype": here.dtype, "shape": list(here.shape), "data_offsets": list(ends[name])}
        for name, here in tensors.items()
    }
    return encode_header(entries if metadata is None else {"__metadata__": metadata, **entries})


def change_(values: Tensor, change: Change) -> None:
    """Change in place: computed in float32 (float64 for float64), rounded once."""
    wide = values.to(torch.float64 if values.dtype == torch.float64 else torch.float32)
    wide = wide.mul_(change.scale)  # several times faster than `values.mul_(scale)` in 16 bits
    values.copy_(wide if change.shift is None else wide.add_(change.shift))


def change_finite_(name: str, values: Tensor, change: Change) -> None:
    """Change in place like `change_`, and refuse values that are not finite.

    Raises:
        UserError: A value is infinite or not a number, before or after.
    """
    if not _is_finite(values):
        raise UserError(
            f"{name} holds values that are infinite or not numbers: the model is damaged, get it "
            "again."
        )
    change_(values, change)
    refuse_overflow(name, values)


def refuse_overflow(name: str, values: Tensor) -> None:
    """Raise `UserError` if a changed tensor holds a value that is not finite."""
    if not _is_finite(values):
        raise UserError(
            f"{name} would overflow its type ({str(values.dtype).removeprefix('torch.')}): the "
            "factors are too large, choose a smaller `strength`."
        )


def _is_finite(values: Tensor) -> bool:
    if not values.is_floating_point():
        return True
    # Torch has few functions for floats of eight bits.
    wide = values.float() if values.element_size() == 1 else values
    return bool(torch.isfinite(wide).all())


def _copies(
    reader: BinaryIO, writer: BinaryIO, start: int, end: int, shifted: int
) -> list[Callable[[], int]]:
    """Pieces of work that copy the bytes from `start` to `end`, to places `shifted` further on."""
    return [
        partial(_copy, reader, writer, first, min(STRETCH, end - first), first + shifted)
        for first in range(start, end, STRETCH)
    ]


def _changes(
    reader: BinaryIO,
    writer: BinaryIO,
    stored: Stored,
    change: Change,
    apply: Callable[[Tensor, Change], None],
    shifted: int,
) -> list[Callable[[], int]]:
    """Pieces of work that change a tensor, some rows each."""
    if stored.start == stored.end:
        return []
    rows, rest = (stored.shape[0] if stored.shape else 1), stored.shape[1:]
    row_bytes = stored.nbytes // rows
    step = max(1, CHUNK // row_bytes)
    work: list[Callable[[], int]] = []
    for first in range(0, rows, step):
        here = min(step, rows - first)
        start = stored.start + first * row_bytes
        part = Stored(stored.dtype, (here, *rest), start, start + here * row_bytes)
        rows_here = change.rows(first, here)
        work.append(partial(_change, reader, writer, part, rows_here, apply, start + shifted))
    return work


def _in_threads(work: Iterable[Callable[[], int]], advance: Callable[[int], None]) -> None:
    """Do all pieces of work, on as many threads as torch uses; each returns the bytes it wrote."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # in each thread of the pool: they work side by side
    try:
        with ThreadPoolExecutor(threads) as pool:
            for count in pool.map(lambda piece: piece(), work):
                advance(count)
    finally:
        torch.set_num_threads(threads)


def _copy(reader: BinaryIO, writer: BinaryIO, start: int, count: int, at: int) -> int:
    """Copy `count` bytes from `start` to `at`, in the system where it can (shared, even)."""
    done = 0
    try:
        while done < count:
            copied = os.copy_file_range(
                reader.fileno(), writer.fileno(), count - done, start + done, at + done
            )
            if not copied:
                break  # the file became shorter, or is of a kind that cannot be copied like this
            done += copied
    except AttributeError:
        pass  # not Linux
    except OSError as error:
        if error.errno not in _NOT_IN_THE_SYSTEM:
            raise
    buffer = memoryview(bytearray(min(count - done, CHUNK)))
    while done < count:
        piece = buffer[: count - done]
        _read(reader, piece, start + done)
        _write(writer, piece, at + done)
        done += len(piece)
    _write_out(writer, at, count)
    return count


def _change(
    reader: BinaryIO,
    writer: BinaryIO,
    stored: Stored,
    change: Change,
    apply: Callable[[Tensor, Change], None],
    at: int,
) -> int:
    """Read some rows of a tensor, change them and write them."""
    count = stored.nbytes
    buffer = torch.empty(count, dtype=torch.uint8)
    _read(reader, buffer.numpy().data, stored.start)
    apply(buffer.view(SCALED[stored.dtype]).view(stored.shape), change)
    _write(writer, buffer.numpy().data, at)
    _write_out(writer, at, count)
    return count


def _read(reader: BinaryIO, buffer: memoryview, start: int) -> None:
    while buffer:
        count = os.preadv(reader.fileno(), [buffer], start)
        if not count:
            raise UserError(f"{reader.name} became shorter while it was read: try again.")
        buffer, start = buffer[count:], start + count


def _write(writer: BinaryIO, buffer: memoryview, start: int) -> None:
    while buffer:
        count = os.pwrite(writer.fileno(), buffer, start)
        buffer, start = buffer[count:], start + count


def _write_out(writer: BinaryIO, start: int, count: int) -> None:
    """Let the disk begin with these bytes, so that little is left to wait for at the end.

    They stay cached: only clean pages are dropped on this advice, and these are being written.
    """
    with suppress(AttributeError):  # not on every system
        os.posix_fadvise(writer.fileno(), start, count, os.POSIX_FADV_DONTNEED)
