"""The header of a safetensors file, checked without mapping the file.

The library maps the whole file while it opens it, which counts in full towards a limit on address
space: a shard larger than the space left could not be opened.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sordino.errors import UserError
from sordino.files import printable, refuse_pointer, unique
from sordino.models.dtypes import BITS

LENGTH_BYTES = 8
"""The header's length, in front of it."""
_LONGEST = 100_000_000  # the library's own limit


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

    @property
    def nbytes(self) -> int:
        """The size of its data."""
        return self.end - self.start


def encode_header(entries: Mapping[str, object]) -> bytes:
    """A header with its length, as it stands at the beginning of a file.

    Args:
        entries: By tensor name the dtype, the shape and the offsets; the metadata under
            "__metadata__".
    """
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % LENGTH_BYTES)  # the data that follow stay aligned
    return len(text).to_bytes(LENGTH_BYTES, "little") + text


def read_header(path: Path) -> dict[str, Stored]:
    """The tensors of a safetensors file by name, in the header's order.

    Raises:
        UserError: It is damaged.
    """
    return _read(path)[0]


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file; none where it has none.

    Raises:
        UserError: It is damaged.
    """
    return _read(path)[1]


def _read(path: Path) -> tuple[dict[str, Stored], dict[str, str]]:
    try:
        with path.open("rb") as file:
            refuse_pointer(file.read(100), str(path))
            size = file.seek(0, 2)
            file.seek(0)
            length = int.from_bytes(file.read(LENGTH_BYTES), "little")
            if size < LENGTH_BYTES or length > min(_LONGEST, size - LENGTH_BYTES):
                raise ValueError("its header does not fit it")
            header = json.loads(file.read(length).decode(), object_pairs_hook=unique)
        if not isinstance(header, dict):
            raise ValueError("its header is not an object")
        data = LENGTH_BYTES + length
        metadata = header.pop("__metadata__", None)
        metadata = {} if metadata is None else metadata
        stored = {name: _read_entry(entry, data) for name, entry in header.items()}
        _refuse_other_than_text(metadata)
        _refuse_gaps(stored, data, size)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from None
    except (ValueError, RecursionError) as error:
        reason = printable(str(error)) or type(error).__name__
        raise UserError(
            f"{path} is damaged or not a safetensors file ({reason}): get it again."
        ) from None
    return stored, metadata


def _read_entry(entry: Any, data: int) -> Stored:
    if not isinstance(entry, dict) or not entry.keys() >= {"dtype", "shape", "data_offsets"}:
        raise ValueError("an entry lacks a dtype, a shape or its offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise ValueError("a dtype is unknown")
    if not (_are_counts(shape) and _are_counts(offsets) and len(offsets) == 2):
        raise ValueError("a shape or an offset is not a whole number")
    start, end = offsets
    if BITS[dtype] * math.prod(shape) != 8 * (end - start):
        raise ValueError("a tensor's size does not match its shape")
    return Stored(dtype, tuple(shape), data + start, data + end)


def _are_counts(values: Any) -> bool:
    """Whether something is a list of whole numbers of 0 or more."""
    return isinstance(values, list) and all(type(one) is int and one >= 0 for one in values)


def _refuse_other_than_text(metadata: Any) -> None:
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise ValueError("its metadata are not text")


def _refuse_gaps(stored: dict[str, Stored], data: int, size: int) -> None:
    """One tensor begins where another ends, from the first byte to the last."""
    place = data
    for start, end in sorted((tensor.start, tensor.end) for tensor in stored.values()):
        if start != place:
            raise ValueError("its tensors overlap or leave gaps")
        place = end
    if place != size:
        raise ValueError("its tensors do not end where the file does")
