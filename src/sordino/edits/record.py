"""What the record of an edit holds, whether it lies in `sordino.json` or in a GGUF file."""

from typing import Any, Literal

from pydantic import BaseModel, TypeAdapter

from sordino.files import parse_json
from sordino.interventions.dampening import Origin
from sordino.records import Count, Site, parse_format

FORMAT = "sordino-provenance-1"


class _Model(BaseModel):
    name: str
    kind: Literal["folder", "gguf"]
    revision: str
    weights_fingerprint: str


class _Shift(BaseModel):
    min: float
    mean: float
    max: float


class _Changes(BaseModel):
    neurons: Count
    changed: Count
    min: float
    mean: float
    shift: _Shift | None = None


class _Quantised(BaseModel):
    scheme: str


class _DraftHeads(BaseModel):
    names: list[str]
    dampened: list[str]


class Provenance(Origin):
    """The record of an edit; keys of other versions may stand beside these."""

    format: Literal["sordino-provenance-1"]
    sordino_version: str
    created: str
    model: _Model
    written_as: str
    neurons: Count
    changed: Count
    sites: dict[Site, _Changes]
    left_out: list[str]
    configuration: dict[str, bool] | None = None
    added: list[str] | None = None
    files: list[str] | None = None
    rewritten: list[str] | None = None
    not_copied: list[str] | None = None
    linked: list[str] | None = None
    quantised: _Quantised | None = None
    draft_heads: _DraftHeads | None = None
    earlier: "Provenance | None" = None


_PROVENANCE = TypeAdapter(Provenance)


def parse_provenance(text: str | bytes, what: str) -> dict[str, Any]:
    """The record of an edit that JSON text holds, with all its keys.

    Args:
        text: JSON.
        what: What it is called in a message.

    Raises:
        UserError: It is none, or a value in it is of another type.
    """
    parse_format(_PROVENANCE, text, what, "provenance", FORMAT)
    record: dict[str, Any] = parse_json(text, what, strict=True)
    return record
