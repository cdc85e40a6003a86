"""The record of an edit in a GGUF file's own metadata."""

import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import FiniteFloat, TypeAdapter, ValidationError

from sordino.edits.fp4 import Rounding
from sordino.edits.record import Provenance, TensorRounding, parse_provenance
from sordino.errors import UserError
from sordino.models.folder import piece_files
from sordino.models.gguf_header import ARRAY, FLOAT32, STRING, UINT64, Array, read_header
from sordino.records import Count, fault

KEY = "sordino."
"""The prefix of the keys."""
_RECORD = f"{KEY}provenance"
_TENSORS, _LARGEST, _COARSE, _ZEROED = (
    f"{KEY}rounding.{name}" for name in ("tensors", "largest", "coarse", "zeroed")
)

_ROWS = TypeAdapter(list[tuple[str, FiniteFloat, Count, Count]])


def pairs(record: Provenance, roundings: Mapping[str, Rounding]) -> list[bytes]:
    """The record of an edit as pairs of metadata, whose length does not depend on the roundings.

    One pair holds the whole record as JSON; others repeat what llama.cpp shows while it loads.
    """
    rule, found = record.intervention, list(roundings.values())
    texts = {
        _RECORD: json.dumps(record.as_json(), ensure_ascii=False, separators=(",", ":")),
        f"{KEY}version": record.sordino_version,
        f"{KEY}intervention": rule.name,
        f"{KEY}strength": f"{rule.strength:g}",
        f"{KEY}concept": record.expertise.get("concept", ""),
    }
    made = [text(key) + struct.pack("<I", STRING) + text(content) for key, content in texts.items()]
    if not roundings:
        return made
    arrays = {
        _TENSORS: (STRING, b"".join(map(text, roundings))),
        _LARGEST: (FLOAT32, np.array([each.largest for each in found], "<f4").tobytes()),
        _COARSE: (UINT64, np.array([each.coarse for each in found], "<u8").tobytes()),
        _ZEROED: (UINT64, np.array([each.zeroed for each in found], "<u8").tobytes()),
    }
    for key, (kind, data) in arrays.items():
        made.append(text(key) + struct.pack("<IIQ", ARRAY, kind, len(roundings)) + data)
    return made


def text(content: str) -> bytes:
    """A string as the format writes it."""
    data = content.encode("utf-8", "replace")
    return struct.pack("<Q", len(data)) + data


def read(path: Path) -> Provenance | None:
    """The record of the edit that made a GGUF file, or None where there was none.

    Raises:
        UserError: The file is damaged, or its record is.
    """
    header = read_header(piece_files(path)[0])
    content = header.metadata.get(_RECORD)
    if content is None:
        return None
    record = parse_provenance(str(content), f"{path}, its metadata {_RECORD},")
    found = [header.metadata.get(key) for key in (_TENSORS, _LARGEST, _COARSE, _ZEROED)]
    columns = [header.read(value) for value in found if isinstance(value, Array)]
    if len({len(column) for column in columns}) == 1 and len(columns) == len(found):
        try:
            rows = _ROWS.validate_python(list(zip(*columns, strict=True)), strict=True)
        except ValidationError as error:
            raise UserError(f"{path} has a damaged {KEY}rounding: {fault(error)}.") from None
        rounding = {
            name: TensorRounding(largest=largest, coarse=coarse, zeroed=zeroed)
            for name, largest, coarse, zeroed in rows
        }
        record = record.model_copy(update={"rounding": rounding})
    return record


def is_in(path: Path) -> bool:
    """Whether this very file has a record.

    Raises:
        UserError: The file is damaged.
    """
    return _RECORD in read_header(path).metadata


def rewrite(path: Path, change: Callable[[Any], Any]) -> None:
    """Change the record in a GGUF file in place; the new one must not be longer than the old.

    Args:
        path: A file with a record.
        change: From the record as it stands in the file to another.

    Raises:
        UserError: The file is damaged.
    """
    header = read_header(path)
    before = str(header.metadata[_RECORD]).encode()
    record = change(json.loads(before))
    after = json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode()
    assert len(after) <= len(before), "a record grew"
    with path.open("r+b") as file:
        file.seek(header.places[_RECORD][1] - len(before))
        file.write(after.ljust(len(before)))
