"""Copy a GGUF file with the rows of its sites multiplied: the same types, the same size.

Only the block scales of the dampened rows change, or their weights where a tensor is not quantised.
The metadata are kept byte for byte, and the record of the edit is added under keys that begin with
"sordino.".
"""

import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import gguf
import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from sordino.edits import gguf_record
from sordino.edits.biases import new_biases, without_bias
from sordino.edits.drafts import Drafts, find_drafts_in_file
from sordino.edits.formats import Written
from sordino.edits.fp4 import Rounding
from sordino.edits.gguf_blocks import KINDS, scale_rows_
from sordino.edits.gguf_names import by_rows, by_tables
from sordino.edits.names import parameter_scales, parameter_shifts
from sordino.edits.provenance import provenance
from sordino.edits.record import Provenance, TensorRounding
from sordino.errors import UserError
from sordino.files import printable, user_path
from sordino.interventions import Dampening
from sordino.models.gguf_header import INT32, Header, Stored
from sordino.models.gguf_loading import is_loadable, module_tree, reading
from sordino.models.gguf_pieces import COUNT, NUMBER, TENSORS, read_model
from sordino.models.reference import ModelRef
from sordino.progress import track

# The difference that rounding explains, relative to the largest weight of a row, and the least that
# it explains; see `FileVerification`.
_UNITS = {"BF16": 2.0**-8, "MXFP4": 2.0**-2, "NVFP4": 2.0**-2}
_UNIT, _SMALLEST = 2.0**-9, 2.0**-12
_CHUNK = 8 * 2**20
# Architectures for which llama.cpp reads a bias for each matrix of the feed-forward part, and
# transformers' configuration has a setting for them.
_BIASES_IN_LLAMA_CPP = ("llama", "nemotron")
Values = NDArray[np.float32]


@dataclass(frozen=True)
class RowChange:
    """The change of a tensor's rows: each times its scale, plus its shift.

    Args:
        scales: [rows]; of a bias, [entries].
        shifts: [entries] of a bias, or None for none.
    """

    scales: Values
    shifts: Values | None = None

    @property
    def is_none(self) -> bool:
        """Whether every row stays as it is."""
        return bool((self.scales == 1).all()) and (self.shifts is None or not self.shifts.any())


@dataclass(frozen=True)
class FileEdit:
    """The plan of baking a GGUF file, checked before anything is written.

    Args:
        header: The source's.
        changes: By tensor name.
        added: New biases by tensor name, float32.
        settings: The settings of transformers' configuration that give the model those biases.
        drafts: The draft heads beside the model.
    """

    header: Header
    changes: Mapping[str, RowChange]
    added: Mapping[str, Values]
    settings: Mapping[str, bool]
    drafts: Drafts = field(default_factory=Drafts)

    def write(self, targets: Sequence[Path], record: Provenance) -> dict[str, Rounding]:
        """Write the edited file, with the record of the edit in its metadata.

        Args:
            targets: The file to write, or one for each file of the source.
            record: The provenance.

        Returns:
            What rounding did, by tensor name.

        Raises:
            UserError: A scale is damaged, or would be too large for half precision.
        """
        roundings = dict.fromkeys(self.changes, Rounding())
        parts = self._parts(targets)
        size = sum(header.path.stat().st_size for header in self.header.files)
        with track("Baking", size / 1e6, "MB") as advance:
            for part in parts:
                with part.target.open("wb") as writer:
                    writer.write(part.head(record, roundings))
                    for source in part.sources:
                        writer.write(b"\0" * (-writer.tell() % source.alignment))
                        roundings |= self._copy(source, writer, advance, whole=not part.added)
                    for values in part.added.values():
                        writer.write(b"\0" * (-writer.tell() % self.header.alignment))
                        writer.write(values.tobytes())
        for part in parts:
            with part.target.open("r+b") as writer:
                writer.write(part.head(record, roundings))  # as long as the first, now complete
        return roundings

    def _parts(self, targets: Sequence[Path]) -> list["_Part"]:
        """The files to write; the last one gets the new biases."""
        files = self.header.files
        sources = [files] if len(targets) == 1 else [(file,) for file in files]
        last = len(sources) - 1
        tensors = len(self.header.tensors) + len(self.added)
        return [
            _Part(target, of_part, self.added if number == last else {}, tensors)
            for number, (target, of_part) in enumerate(zip(targets, sources, strict=True))
        ]

    def _copy(
        self, source: Header, writer: BinaryIO, advance: Callable[[float], None], *, whole: bool
    ) -> dict[str, Rounding]:
        """Copy the tensors of a file, some of them changed; all bytes to its end if `whole`."""
        roundings = {}
        with source.path.open("rb") as reader:
            reader.seek(source.data)
            here = [name for name in self.changes if name in source.tensors]
            for name in sorted(here, key=lambda name: source.tensors[name].start):
                stored = source.tensors[name]
                _copy(reader, writer, stored.start - reader.tell(), advance)
                roundings[name] = _change(reader, writer, stored, self.changes[name], advance)
                _refuse_unusable(source, stored, roundings[name])
            _copy(reader, writer, _end(source, whole=whole) - reader.tell(), advance)
        return roundings


@dataclass(frozen=True)
class _Part:
    """A file to write.

    Args:
        target: The file.
        sources: The files whose tensors it gets.
        added: New biases by tensor name, float32.
        tensors: How many tensors the whole model has.
    """

    target: Path
    sources: tuple[Header, ...]
    added: Mapping[str, Values]
    tensors: int

    def head(self, record: Provenance, roundings: Mapping[str, Rounding]) -> bytes:
        """Everything before the tensors."""
        first = self.sources[0]
        pairs = [*self._keep_pairs(), *gguf_record.pairs(record, roundings)]
        entries, end, count = b"", 0, len(self.added)
        for source in self.sources:
            begin = -(-end // first.alignment) * first.alignment
            entries += b"".join(
                _entry(each.name, each.shape, each.kind, begin + each.start - source.data)
                for each in source.tensors.values()
            )
            end = begin + _end(source, whole=not self.added) - source.data
            count += len(source.tensors)
        for name, values in self.added.items():
            start = -(-end // first.alignment) * first.alignment
            entries += _entry(name, values.shape, "F32", start)
            end = start + values.nbytes
        counts = count, len(pairs)
        head = struct.pack("<4sIQQ", b"GGUF", first.version, *counts) + b"".join(pairs) + entries
        return head + b"\0" * (-len(head) % first.alignment)

    def _keep_pairs(self) -> list[bytes]:
        """The first source's pairs of metadata, without those about pieces if these are joined."""
        first = self.sources[0]
        with first.path.open("rb") as file:
            data = file.read(first.data)
        joined = (NUMBER, COUNT, TENSORS) if len(self.sources) > 1 else ()
        kept = {
            key: data[slice(*place)]
            for key, place in first.places.items()
            if not key.startswith(gguf_record.KEY) and key not in joined
        }
        if TENSORS in kept and first.metadata[TENSORS] != self.tensors:
            kept[TENSORS] = gguf_record.text(TENSORS) + struct.pack("<Ii", INT32, self.tensors)
        return list(kept.values())


def bake(
    ref: ModelRef, dampening: Dampening, fingerprint: str, targets: Sequence[Path]
) -> Provenance:
    """Write a dampened copy of a GGUF file.

    Args:
        ref: The GGUF file.
        dampening: Factors for its sites.
        fingerprint: Of its weights.
        targets: The file to write, or as many as the model has.

    Returns:
        The provenance, with what rounding did by tensor.

    Raises:
        UserError: See `plan` and `FileEdit.write`.
    """
    edit = plan(ref, dampening)
    edit.drafts.tell(ref.name)
    written = Written(settings=edit.settings, draft_heads=edit.drafts.record)
    record = provenance(ref, dampening, fingerprint, written)
    rounding = {
        name: TensorRounding(largest=of.largest, coarse=of.coarse, zeroed=of.zeroed)
        for name, of in edit.write(targets, record).items()
    }
    return record.model_copy(update={"rounding": rounding})


def plan(ref: ModelRef, dampening: Dampening) -> FileEdit:
    """Work out which rows of a GGUF file change, and check that they can.

    Raises:
        UserError: The dampening does not fit the model, a site is not in the file as rows, is of a
            type that cannot be changed, or lacks a bias that llama.cpp would read; or the file is
            damaged.
    """
    with reading(ref.path) as header:
        added: dict[str, Values] = {}
        settings: Mapping[str, bool] = {}
        if is_loadable(header):
            model = module_tree(header)
            scales = by_rows(header, model, parameter_scales(model, dampening))
            # Files hold whole gains of norms, also where the model's weight is the gain less 1.
            of_biases = parameter_shifts(model, dampening, gains=False)
            shifts = by_rows(header, model, of_biases)
            if without_bias(model, dampening):
                added, settings = _new_biases(header, model, dampening)
        else:
            scales, shifts = by_tables(header, dampening)
    changes = {name: RowChange(values, shifts.get(name)) for name, values in scales.items()}
    for name in changes:
        if header.tensors[name].kind not in KINDS:
            raise UserError(
                f"{header.path} holds {name} as {header.tensors[name].kind}, which cannot be "
                f"scaled by rows: use a file in {', '.join(KINDS)}."
            )
    changed = {name: change for name, change in changes.items() if not change.is_none}
    return FileEdit(header, changed, added, settings, find_drafts_in_file(header))


def _new_biases(
    header: Header, model: PreTrainedModel, dampening: Dampening
) -> tuple[dict[str, Values], Mapping[str, bool]]:
    """The biases that shifts need, by tensor name; zeros for others that the setting adds."""
    if header.architecture not in _BIASES_IN_LLAMA_CPP:
        site = without_bias(model, dampening)[0]
        raise UserError(
            f"{site} has no bias to hold its shifts, and llama.cpp reads none there for "
            f"{header.architecture}: use `format=hooks`, or choose an `intervention` without "
            "shifts."
        )
    biases = new_biases(model.config, model.config.to_dict(), without_bias(model, dampening))
    wanted = parameter_shifts(biases.model, dampening)
    columns = {}
    for name in biases.names:
        weight = f"{name.removesuffix('bias')}weight"
        zeros = torch.zeros(model.get_parameter(weight).shape[0])
        columns[weight] = wanted.get(name, zeros)[:, None]
    # A bias has the order of its weight's rows.
    rows = by_rows(header, model, columns)
    added = {f"{name.removesuffix('weight')}bias": values for name, values in rows.items()}
    return added, biases.settings


def _entry(name: str, shape: Sequence[int], kind: str, offset: int) -> bytes:
    """A tensor's line in the table of tensors."""
    sizes = struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))
    number = int(gguf.GGMLQuantizationType[kind])
    return gguf_record.text(name) + sizes + struct.pack("<IQ", number, offset)


def _end(source: Header, *, whole: bool) -> int:
    """Where a file's tensors end: with the file, or with the last of them."""
    if whole:
        return source.path.stat().st_size
    return max((tensor.end for tensor in source.tensors.values()), default=source.data)


def _copy(reader: BinaryIO, writer: BinaryIO, count: int, advance: Callable[[float], None]) -> None:
    buffer = memoryview(bytearray(min(count, _CHUNK)))
    while count > 0:
        piece = buffer[: min(count, _CHUNK)]
        _fill(reader, piece)
        writer.write(piece)
        advance(len(piece) / 1e6)
        count -= len(piece)


def _change(
    reader: BinaryIO,
    writer: BinaryIO,
    stored: Stored,
    change: RowChange,
    advance: Callable[[float], None],
) -> Rounding:
    """Read a tensor some rows at a time, change them and write them."""
    rounding = Rounding()
    width = stored.size // max(change.scales.size, 1)
    for here in _slices(change.scales.size, width):
        scales = change.scales[here]
        shifts = None if change.shifts is None else change.shifts[here]
        piece = np.empty((scales.size, width), np.uint8)
        _fill(reader, piece.data.cast("B"))
        rounding += scale_rows_(stored.kind, piece, scales, shifts)
        writer.write(piece.data)
        advance(piece.nbytes / 1e6)
    return rounding


def _fill(reader: BinaryIO, buffer: memoryview) -> None:
    while buffer:
        count = reader.readinto(buffer)  # type: ignore[attr-defined]
        if not count:
            raise UserError(f"{reader.name} became shorter while it was read: try again.")
        buffer = buffer[count:]


def _refuse_unusable(header: Header, stored: Stored, rounding: Rounding) -> None:
    if rounding.damaged:
        raise UserError(
            f"{header.path} has {rounding.damaged:,} numbers in {stored.name} that are infinite or "
            "not numbers: it is damaged, get it again."
        )
    if rounding.overflowed:
        raise UserError(
            f"{rounding.overflowed:,} numbers of {stored.name} would overflow {stored.kind}: "
            "choose a smaller `strength`."
        )


@dataclass(frozen=True)
class FileVerification:
    """How far the weights of an edited GGUF file are from the original's times their factors.

    Args:
        largest_difference: The largest absolute difference of two weights.
        largest_relative: The largest difference relative to the largest weight that its row had
            before the edit.
        weights: The number of weights that were compared: those of all changed tensors.
        others_equal: Whether all other tensors have the same bytes in both.
        share_of_rounding: The largest difference in a row as a share of what rounding explains
            there: 2⁻⁹ (2⁻⁸ for BF16, 2⁻² for MXFP4 and NVFP4, whose codes are rounded) of its
            largest weight, and 2⁻¹² for scales that are too small for all digits.
    """

    largest_difference: float
    largest_relative: float
    weights: int
    others_equal: bool
    share_of_rounding: float

    @property
    def within_rounding(self) -> bool:
        """Whether rounding explains the difference."""
        return self.others_equal and self.share_of_rounding <= 1

    @property
    def line(self) -> str:
        """The same in words."""
        others = "the same bytes" if self.others_equal else "NOT the same bytes"
        return (
            f"largest difference between a weight and its factor times what it was: "
            f"{self.largest_difference:.3g} ({100 * self.largest_relative:.2g} % of the largest "
            f"that its row had, {100 * self.share_of_rounding:.2g} % of what rounding explains; "
            f"{self.weights:,} weights); all other tensors are {others}"
        )


def verify_file(ref: ModelRef, dampening: Dampening, baked: str | Path) -> FileVerification:
    """Compare a baked GGUF file with the original, both de-quantised by the gguf package.

    Args:
        ref: The GGUF model as it was before the edit.
        dampening: The factors that were baked.
        baked: The file that was written.

    Raises:
        UserError: A file is damaged, or the dampening does not fit it.
    """
    baked = user_path(baked)
    edit, after = plan(ref, dampening), read_model(baked)
    difference = relative = of_rounding = 0.0
    equal, count = True, 0
    if unlike := after.tensors.keys() ^ (edit.header.tensors.keys() | edit.added.keys()):
        raise UserError(
            f"{baked} and an edit of {ref.path} do not have the same tensors (such as "
            f"{printable(min(unlike))}): it was not baked from it."
        )
    for name, stored in edit.header.tensors.items():
        other = after.tensors[name]
        if (other.kind, other.shape) != (stored.kind, stored.shape):
            raise UserError(
                f"{baked} has {name} in another type or shape than {ref.path}: it was not baked "
                "from it."
            )
        old, new = edit.header.rows(stored), after.rows(other)
        if name not in edit.changes:
            equal = equal and all(
                np.array_equal(old[here], new[here]) for here in _slices(*old.shape)
            )
            continue
        change = edit.changes[name]
        # A bias has one entry per neuron, and several rows of them for MoE experts.
        old, new = (rows.reshape(change.scales.size, -1) for rows in (old, new))
        for here in _slices(*old.shape):
            original = _values(stored.kind, old[here])
            expected = original * change.scales[here, None]
            if change.shifts is not None:
                expected += change.shifts[here, None]
            off = np.abs(_values(stored.kind, new[here]) - expected)
            tops = np.abs(original).max(axis=1, initial=0)
            off = np.nan_to_num(off.max(axis=1, initial=0), nan=np.inf)
            unit = _UNITS.get(stored.kind, _UNIT)
            allowed = unit * np.abs(expected).max(axis=1, initial=0) + _SMALLEST
            of_rounding = max(of_rounding, float((off / allowed).max(initial=0)))
            difference = max(difference, float(off.max(initial=0)))
            relative = max(relative, float((off[tops > 0] / tops[tops > 0]).max(initial=0)))
            count += original.size
    for name, values in edit.added.items():
        equal = equal and np.array_equal(_values("F32", after.rows(after.tensors[name]))[0], values)
    return FileVerification(difference, relative, count, equal, of_rounding)


def _slices(rows: int, width: int) -> Iterator[slice]:
    step = max(1, _CHUNK // max(width, 1))
    return (slice(first, first + step) for first in range(0, rows, step))


def _values(kind: str, rows: NDArray[np.uint8]) -> NDArray[np.float64]:
    """De-quantised rows, float64 [rows, weights of a row]."""
    found = gguf.dequantize(np.ascontiguousarray(rows), gguf.GGMLQuantizationType[kind])
    return np.asarray(found, np.float64).reshape(len(rows), -1)
