"""Compare two models' files: which tensors differ, by how much, and which settings.

Tensors are read as streams and compared as bytes first. Where they differ, each row (or column, for
layers that store their neurons so) is checked for being the other one's times a factor, which is
what dampening leaves behind.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from filecmp import cmp
from fnmatch import fnmatch
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open

from sordino import hub
from sordino.errors import UserError
from sordino.files import has_suffix, parse_json, read_json
from sordino.models import gguf_header
from sordino.models.dtypes import TORCH_DTYPES, rounding_unit, smallest_error
from sordino.models.folder import list_files
from sordino.models.gguf_pieces import read_model
from sordino.models.reference import ModelRef, refuse_adapter, resolve
from sordino.models.safetensors_header import Stored, read_header
from sordino.progress import track

Array = NDArray[np.float64]

CHUNK = 2 * 2**20
"""Bytes of a tensor that are compared at a time."""
_METADATA = "metadata"
_INDEX = "*.safetensors.index.json"
_PRODUCTS = 2.0**-24  # factors are multiplied in float32, also where a weight is wider
# In quantised types the scales of blocks are rounded, to half precision at best.
_BLOCKS = 2.0**-7


@dataclass(frozen=True)
class Factors:
    """What rows were multiplied by.

    Args:
        lines: "rows" or "columns", whichever were multiplied.
        count: How many of those that differ are the other one's times a factor, to rounding.
        smallest: The smallest factor.
        mean: Their mean.
        largest: The largest.
    """

    lines: str
    count: int
    smallest: float
    mean: float
    largest: float


@dataclass(frozen=True)
class TensorChange:
    """A tensor that both have and that differs.

    Args:
        name: Its name.
        dtypes: Its type before and after, as its file calls it.
        shapes: Its shape before and after.
        values: How many values differ; None where only bytes can be compared (packed integers, for
            example), or nothing can (another shape).
        rows: How many rows differ, or columns where `factors` are theirs; None for another shape.
        row_count: How many there are; of a vector, every value is a row.
        factors: What they were multiplied by; None where no row is the other's times a factor, or
            a row is one value.
        norm: The Frobenius norm before; None where it is not finite.
        norm_of_change: The Frobenius norm of the difference.
        largest: The largest absolute difference of two values.
    """

    name: str
    dtypes: tuple[str, str]
    shapes: tuple[tuple[int, ...], tuple[int, ...]]
    values: int | None = None
    rows: int | None = None
    row_count: int | None = None
    factors: Factors | None = None
    norm: float | None = None
    norm_of_change: float | None = None
    largest: float | None = None


@dataclass(frozen=True)
class SettingChange:
    """An entry of the metadata or of a JSON file that differs.

    Args:
        file: The file, or "metadata" for those inside weight files.
        key: Its place there, as keys joined by dots.
        before: Its value as JSON; None where there was none.
        after: Its value as JSON; None where there is none.
    """

    file: str
    key: str
    before: str | None
    after: str | None


@dataclass(frozen=True)
class Difference:
    """All differences between two models' files.

    Args:
        before: The first.
        after: The second.
        unchanged: How many tensors are the same in both.
        changed: The tensors that both have and that differ.
        added: The names of the tensors that the second alone has.
        removed: The names of the tensors that the first alone has.
        settings: The entries of metadata and JSON files that differ.
        files_changed: The other files that both have and that differ.
        files_added: The files that the second alone has.
        files_removed: The files that the first alone has.
    """

    before: str
    after: str
    unchanged: int
    changed: tuple[TensorChange, ...]
    added: tuple[str, ...]
    removed: tuple[str, ...]
    settings: tuple[SettingChange, ...]
    files_changed: tuple[str, ...]
    files_added: tuple[str, ...]
    files_removed: tuple[str, ...]

    @property
    def is_none(self) -> bool:
        """Whether nothing differs."""
        tensors = (*self.changed, *self.added, *self.removed)
        files = (*self.files_changed, *self.files_added, *self.files_removed)
        return not (tensors or self.settings or files)


def diff(before: str | Path | ModelRef, after: str | Path | ModelRef) -> Difference:
    """Compare two models' files, reading a piece of one tensor at a time.

    Args:
        before: A folder, a safetensors file (also an expertise or a dampening), a GGUF file, or the
            name of a model of the hub or the kit.
        after: Another of the same kind. How the tensors of a folder are split into files does not
            matter.

    Returns:
        The tensors, settings and files that differ.

    Raises:
        UserError: One of them cannot be read, or only one of them is a GGUF file.

    Example:
        >>> found = sordino.diff("tiny", "quiet")
        >>> sorted({change.name.split(".")[-2] for change in found.changed})[0]
        'down_proj'
    """
    a, b = _source(before), _source(after)
    if isinstance(a, _Gguf) != isinstance(b, _Gguf):
        raise UserError(
            f"{a.name} and {b.name} are of different kinds, whose tensors have different names: "
            "compare two GGUF files, or two folders."
        )
    both = [name for name in a.tensors if name in b.tensors]
    size = sum(a.tensors[name].bytes for name in both)
    changed = []
    with track("Comparing", size / 1e6, "MB") as advance:
        for name in both:
            found = _compare(name, a, b)
            changed += [found] if found else []
            advance(a.tensors[name].bytes / 1e6)
    shared = sorted(a.files.keys() & b.files.keys())
    files_changed, settings = [], _settings(_METADATA, a.metadata, b.metadata)
    for file in shared:
        if not cmp(a.files[file], b.files[file], shallow=False):
            files_changed.append(file)
            settings += _settings(file, _entries(a.files[file]), _entries(b.files[file]))
    return Difference(
        before=a.name,
        after=b.name,
        unchanged=len(both) - len(changed),
        changed=tuple(changed),
        added=tuple(name for name in b.tensors if name not in a.tensors),
        removed=tuple(name for name in a.tensors if name not in b.tensors),
        settings=tuple(settings),
        files_changed=tuple(files_changed),
        files_added=tuple(sorted(b.files.keys() - a.files.keys())),
        files_removed=tuple(sorted(a.files.keys() - b.files.keys())),
    )


class _Entry(NamedTuple):
    """A tensor's type, shape and size in bytes."""

    dtype: str
    shape: tuple[int, ...]
    bytes: int

    @property
    def rows(self) -> int:
        """The number of rows; of a vector, every value is one."""
        rows = prod(self.shape[:-1]) if len(self.shape) > 1 else prod(self.shape)
        # Where a row is not a whole number of bytes, the tensor counts as one row.
        return rows if not self.bytes or self.bytes % rows == 0 else 1


class _Source(ABC):
    """Tensors, metadata and other files of a model."""

    name: str
    tensors: Mapping[str, _Entry]
    metadata: Mapping[str, str]
    files: Mapping[str, Path]

    @abstractmethod
    def rows(self, name: str, first: int, count: int) -> NDArray[Any]:
        """The bytes of some rows, [count, bytes of a row]."""

    @abstractmethod
    def values(self, name: str, rows: NDArray[Any]) -> Array | None:
        """Rows as numbers, [count, values of a row]; None if the type holds no numbers."""


class _Safetensors(_Source):
    """Safetensors files, and the files beside them."""

    def __init__(self, name: str, weights: Sequence[Path], files: Mapping[str, Path]) -> None:
        self.name, self.files = name, files
        self._places: dict[str, tuple[Path, Stored]] = {}
        metadata: dict[str, str] = {}
        for file in weights:
            for tensor, stored in read_header(file).items():
                if tensor in self._places:
                    other = self._places[tensor][0]
                    raise UserError(f"{tensor} is in both {other} and {file}: leave one out.")
                self._places[tensor] = file, stored
            metadata |= _metadata(file)
        self.metadata = metadata
        self.tensors = {
            tensor: _Entry(stored.dtype, stored.shape, stored.nbytes)
            for tensor, (_, stored) in self._places.items()
        }

    def rows(self, name: str, first: int, count: int) -> NDArray[Any]:
        file, stored = self._places[name]
        width = stored.nbytes // self.tensors[name].rows
        start, size = stored.start + first * width, count * width
        return np.fromfile(file, np.uint8, size, offset=start).reshape(count, width)

    def values(self, name: str, rows: NDArray[Any]) -> Array | None:
        dtype = TORCH_DTYPES.get(self.tensors[name].dtype)
        if dtype is None or not dtype.is_floating_point:
            return None
        return torch.from_numpy(rows).view(dtype).double().numpy()


class _Gguf(_Source):
    """A GGUF file."""

    files: Mapping[str, Path] = {}

    def __init__(self, name: str, path: Path) -> None:
        self.name = name
        self._header = header = read_model(path)
        self.metadata = {
            key: json.dumps(
                header.read(value) if isinstance(value, gguf_header.Array) else value,
                ensure_ascii=False,
            )
            for key, value in header.metadata.items()
        }
        self.tensors = {
            tensor.name: _Entry(tensor.kind, tensor.shape, tensor.size)
            for tensor in header.tensors.values()
        }

    def rows(self, name: str, first: int, count: int) -> NDArray[Any]:
        data = self._header.rows(self._header.tensors[name])
        return data.reshape(self.tensors[name].rows, -1)[first : first + count]

    def values(self, name: str, rows: NDArray[Any]) -> Array | None:
        from gguf import GGMLQuantizationType, dequantize

        try:
            found = dequantize(rows, GGMLQuantizationType[self.tensors[name].dtype])
        except NotImplementedError:
            return None
        return np.asarray(found, np.float64)


def _source(spec: str | Path | ModelRef) -> _Source:
    name = spec.name if isinstance(spec, ModelRef) else str(spec)
    path = spec.path if isinstance(spec, ModelRef) else hub.fetch_if_shared(spec)
    if path.is_file() and has_suffix(path, ".safetensors"):
        return _Safetensors(name, [path], {})
    if not path.is_dir():
        ref = resolve(spec)
        if ref.kind == "gguf":
            return _Gguf(name, ref.path)
        path = ref.path
    return _folder(name, path)


def _folder(name: str, path: Path) -> _Source:
    """A folder of a model, or of an adapter, which has no index."""
    refuse_adapter(path)
    known = (path / "model.safetensors", path / "model.safetensors.index.json")
    if any(file.exists() for file in known):
        weights = ModelRef(name, "folder", path).weight_files
    else:
        weights = sorted(path.glob("*.safetensors"))
    if not weights:
        raise UserError(f"{path} holds no safetensors file: there is nothing to compare.")
    listed = list_files(path)
    every = {str(file): path / file for file in sorted([*listed.inside, *listed.outside])}
    inside = {file.name for file in weights}
    return _Safetensors(name, weights, {k: v for k, v in every.items() if k not in inside})


def _compare(name: str, a: _Source, b: _Source) -> TensorChange | None:
    """How a tensor differs, or None where it does not."""
    before, after = a.tensors[name], b.tensors[name]
    found = TensorChange(name, (before.dtype, after.dtype), (before.shape, after.shape))
    if before.shape != after.shape:
        return found
    if not before.bytes:
        return found if before.dtype != after.dtype else None
    if before.dtype == after.dtype:
        differing = sum(
            int((a.rows(name, *piece) != b.rows(name, *piece)).any(axis=1).sum())
            for piece in _pieces(before)
        )
        if not differing:
            return None
        found = replace(found, rows=differing, row_count=before.rows)
    pairs = _Pairs(name, a, b)
    return replace(found, **_measure(pairs, found.dtypes)) if pairs.are_numbers else found


def _pieces(entry: _Entry) -> Iterator[tuple[int, int]]:
    """The tensor's rows in pieces of a few megabytes: the first row of each and their number."""
    rows = entry.rows if entry.bytes else 0
    step = max(1, CHUNK * rows // max(entry.bytes, 1))
    for first in range(0, rows, step):
        yield first, min(step, rows - first)


class _Pairs:
    """The numbers of a tensor in both files, piece by piece; it can be iterated repeatedly."""

    def __init__(self, name: str, a: _Source, b: _Source) -> None:
        self._name, self._a, self._b = name, a, b
        self.shape = a.tensors[name].shape

    @property
    def are_numbers(self) -> bool:
        """Whether both files hold the tensor in a type of numbers."""
        return all(
            source.values(self._name, source.rows(self._name, 0, 1)) is not None
            for source in (self._a, self._b)
        )

    def __iter__(self) -> Iterator[tuple[Array, Array]]:
        name = self._name
        for piece in _pieces(self._a.tensors[name]):
            x = self._a.values(name, self._a.rows(name, *piece))
            y = self._b.values(name, self._b.rows(name, *piece))
            assert x is not None
            assert y is not None
            yield x, y


@dataclass(frozen=True)
class _Lines:
    """The rows or the columns of a tensor: which differ, and what they were multiplied by.

    Args:
        name: "rows" or "columns".
        differ: bool [lines].
        factors: float64 [lines]; NaN where a line is not the other's times a factor.
    """

    name: str
    differ: NDArray[np.bool_]
    factors: Array

    @property
    def explained(self) -> Array:
        """The factors of the lines that differ and are the other's times a factor."""
        return self.factors[self.differ & ~np.isnan(self.factors)]

    @property
    def share(self) -> float:
        """The share of these among the lines that differ."""
        return float(self.explained.size / max(1, self.differ.sum()))


@np.errstate(all="ignore")  # infinities and NaN give no figure
def _measure(pairs: _Pairs, dtypes: tuple[str, str]) -> dict[str, Any]:
    """The figures of a tensor that differs."""
    slack = _Slack(
        2 * max(_PRODUCTS, *(rounding_unit(dtype) or _BLOCKS for dtype in dtypes)),
        max(map(smallest_error, dtypes)),
    )
    values, squares, squares_of_change, largest = 0, 0.0, 0.0, 0.0
    differ, factors = [], []
    for x, y in pairs:
        moved = _find_moved(x, y)
        change = y - x
        values += int(moved.sum())
        squares += float((x * x).sum())
        squares_of_change += float((change * change).sum())
        largest = max(largest, float(np.abs(change).max()))
        differ.append(moved.any(axis=1))
        factors.append(_factors(x, y, slack))
    lines = _Lines("rows", np.concatenate(differ), np.concatenate(factors))
    if len(pairs.shape) == 2 and lines.share < 1:
        lines = max(lines, _columns(pairs, slack), key=lambda found: found.share)
    explained = lines.explained if len(pairs.shape) > 1 and pairs.shape[-1] > 1 else np.empty(0)
    return {
        "values": values,
        "rows": int(lines.differ.sum()),
        "row_count": lines.differ.size,
        "factors": (
            Factors(
                lines.name,
                explained.size,
                float(explained.min()),
                float(explained.mean()),
                float(explained.max()),
            )
            if explained.size
            else None
        ),
        "norm": _finite(np.sqrt(squares)),
        "norm_of_change": _finite(np.sqrt(squares_of_change)),
        "largest": _finite(largest),
    }


class _Slack(NamedTuple):
    """The most that rounding moves a line from the other's times a factor."""

    relative: float
    absolute: float


def _factors(x: Array, y: Array, slack: _Slack) -> Array:
    """By row, the factor from x to y; NaN where there is none."""
    factors = (x * y).sum(axis=1) / (x * x).sum(axis=1)
    off = y - factors[:, None] * x
    return _accept(factors, (off * off).sum(axis=1), (y * y).sum(axis=1), x.shape[1], slack)


def _accept(factors: Array, off: Array, squares: Array, size: int, slack: _Slack) -> Array:
    allowed = slack.relative * np.sqrt(squares) + slack.absolute * np.sqrt(size)
    return np.where(np.sqrt(off) <= allowed, factors, np.nan)


def _columns(pairs: _Pairs, slack: _Slack) -> _Lines:
    """The same for columns, which takes two more passes, since no piece has a whole column."""
    count, width = pairs.shape
    xx, xy, yy, off = np.zeros((4, width))
    differ = np.zeros(width, bool)
    for x, y in pairs:
        xx += (x * x).sum(axis=0)
        xy += (x * y).sum(axis=0)
        yy += (y * y).sum(axis=0)
        differ |= _find_moved(x, y).any(axis=0)
    factors = xy / xx
    for x, y in pairs:
        off += np.square(y - factors * x).sum(axis=0)
    return _Lines("columns", differ, _accept(factors, off, yy, count, slack))


def _find_moved(x: Array, y: Array) -> NDArray[np.bool_]:
    return ~((x == y) | (np.isnan(x) & np.isnan(y)))


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _settings(
    file: str, before: Mapping[str, str], after: Mapping[str, str]
) -> list[SettingChange]:
    return [
        SettingChange(file, key, before.get(key), after.get(key))
        for key in (*before, *(key for key in after if key not in before))
        if before.get(key) != after.get(key)
    ]


def _entries(path: Path) -> dict[str, str]:
    """The entries of a JSON file by their places; nothing of other files and of indices."""
    if path.suffix != ".json" or fnmatch(path.name, _INDEX):
        return {}
    try:
        return _flat(read_json(path))
    except (UserError, RecursionError):  # not JSON, or nested too deeply
        return {}


def _metadata(path: Path) -> dict[str, str]:
    with safe_open(path, framework="numpy") as file:
        return _flat({key: _unpack(text) for key, text in (file.metadata() or {}).items()})


def _unpack(text: str) -> Any:
    """A value of metadata, parsed if it is the text of a JSON object."""
    if not text.startswith("{"):
        return text
    try:
        value = parse_json(text, "metadata")
        _flat(value)
    except (UserError, RecursionError):
        return text
    return value


def _flat(value: Any, place: str = "") -> dict[str, str]:
    """The leaves of nested objects as JSON, by their keys joined by dots."""
    if not isinstance(value, dict):
        return {place: json.dumps(value, ensure_ascii=False)} if place else {}
    found: dict[str, str] = {}
    for key, inner in value.items():
        found |= _flat(inner, f"{place}.{key}" if place else str(key))
    return found
