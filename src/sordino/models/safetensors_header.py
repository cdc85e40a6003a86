"""What a safetensors file holds, checked without mapping the file.

The library maps a file as a whole while it opens it, if only for a moment, and that counts in full
towards a limit on address space: a shard larger than what is left of it could not be opened.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sordino.errors import UserError
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
            size = file.seek(0, 2)
            file.seek(0)
            length = int.from_bytes(file.read(LENGTH_BYTES), "little")
            if size < LENGTH_BYTES or length > min(_LONGEST, size - LENGTH_BYTES):
                raise ValueError("its header does not fit it")
            header = json.loads(file.read(length).decode(), object_pairs_hook=_unique)
        data = LENGTH_BYTES + length
        metadata = header.pop("__metadata__", None)
        metadata = {} if metadata is None else metadata
        stored = {name: _read_entry(entry, data) for name, entry in header.items()}
        _refuse_other_than_text(metadata)
        _refuse_gaps(stored, data, size)
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        reason = str(error) or type(error).__name__
        raise UserError(
            f"{path} is damaged or no safetensors file ({reason}): get it again."
        ) from None
    return stored, metadata


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of the header, in which no key stands twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name stands in its header twice")
    return found


def _read_entry(entry: Any, data: int) -> Stored:
    dtype, shape, (start, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(shape, list) or not all(
        type(number) is int and number >= 0 for number in (*shape, start, end)
    ):
        raise ValueError("a shape or an offset is no whole number")
    if BITS[dtype] * math.prod(shape) != 8 * (end - start):
        raise ValueError("a tensor is not as large as its shape says")
    return Stored(dtype, tuple(shape), data + start, data + end)


def _refuse_other_than_text(metadata: Any) -> None:
    if not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("its metadata are no text")


def _refuse_gaps(stored: dict[str, Stored], data: int, size: int) -> None:
    """One tensor begins where another ends, from the first byte to the last."""
    place = data
    for start, end in sorted((tensor.start, tensor.end) for tensor in stored.values()):
        if start != place:
            raise ValueError("its tensors overlap or leave gaps")
        place = end
    if place != size:
        raise ValueError("its tensors end elsewhere than it does")
