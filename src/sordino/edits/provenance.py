"""The record of an edit beside a model: making and reading it, and a card for it."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sordino.edits import gguf_record
from sordino.edits.formats import FORMATS, Written
from sordino.edits.record import (
    FORMAT,
    Extent,
    Original,
    Provenance,
    Shift,
    SiteChange,
    parse_provenance,
)
from sordino.errors import UserError
from sordino.files import has_suffix, today
from sordino.folders import Folders
from sordino.interventions import Dampening
from sordino.markdown import line
from sordino.models.reference import ModelRef
from sordino.outputs import RECORD
from sordino.records import read_bytes
from sordino.version import __version__

GGUF = ".gguf"
# Not beside the weights: some servers load every *.safetensors that they find there.
EXTRAS = "sordino"
DAMPENING = f"{EXTRAS}/dampening.safetensors"
EARLIER = f"{EXTRAS}/earlier"
"""What an edited model had beside its weights before it was edited again."""
BEFORE = f"{EXTRAS}/before"
"""The rewritten files, as they were before."""
GGUF_COPY = f"{EXTRAS}/provenance.json"
"""A pushed GGUF file's record, for those who do not fetch the file."""


def extras_of(model: Path) -> Path:
    """The folder that Sordino keeps for a model: in its folder, or beside its GGUF file."""
    return model.with_suffix(f".{EXTRAS}") if has_suffix(model, GGUF) else model / EXTRAS


def provenance(
    ref: ModelRef,
    dampening: Dampening,
    fingerprint: str,
    written: Written | None = None,
    *,
    format: str = "weights",
) -> Provenance:
    """The record of an edit.

    Args:
        ref: The model that was edited.
        dampening: The factors written into it.
        fingerprint: Of the model's weights before the edit.
        written: What else was done to its files.
        format: The format in which the factors were written.
    """
    origin, extent, more = dampening.record, summary(dampening), written or Written()
    # Empty values get no key.
    found: dict[str, Any] = {
        "parts": origin.parts,
        "configuration": dict(more.settings),
        "added": more.added,
        "quantised": more.quantised,
        "rewritten": more.rewritten,
        "not_copied": more.not_copied,
        "linked": more.linked,
        "draft_heads": more.draft_heads,
        "earlier": read_provenance(ref.path) if is_dampened(ref.path) else None,
    }
    return Provenance(
        format=FORMAT,
        sordino_version=__version__,
        created=today(),
        model=Original(
            name=ref.name,
            kind=ref.kind,
            revision=ref.revision,
            weights_fingerprint=fingerprint,
        ),
        intervention=origin.intervention,
        expertise=origin.expertise,
        written_as=format,
        neurons=extent.neurons,
        changed=extent.changed,
        sites=extent.sites,
        left_out=tuple(more.left_out),
        **{key: value for key, value in found.items() if value},
    )


def is_dampened(path: Path) -> bool:
    """Whether a folder or a GGUF file holds the record of an edit.

    Raises:
        UserError: A GGUF file is damaged.
    """
    if has_suffix(path, GGUF) and path.is_file():
        return gguf_record.read(path) is not None
    return (path / RECORD).is_file()


def read_provenance(model: str | Path) -> Provenance:
    """The record of the edit that made a model folder or a GGUF file.

    Raises:
        UserError: There is none, or it is of another format.
    """
    path = Path(model)
    if has_suffix(path, GGUF) and path.is_file():
        record = gguf_record.read(path)
        if record is None:
            raise UserError(f"{path} has no record of an edit: Sordino did not make it.")
        return record
    if not path.exists():
        raise UserError(f"{path} does not exist.")
    kept = path / RECORD
    if not kept.is_file():
        raise UserError(f"{path} has no record of an edit ({RECORD}): Sordino did not make it.")
    return parse_provenance(read_bytes(kept, "provenance"), str(kept))


def plain_card(record: Provenance) -> str:
    """A few honest lines for README.md, where there is no full model card."""
    record = record.cleaned(Folders.of_record(record.as_json()))
    written = FORMATS.get(record.written_as)
    where = f"as {line(record.written_as)}" if written is None else written.where
    return (
        f"# {line(Path(record.model.name).name)}, dampened\n\n"
        f"{line(record.model.name)} with the neurons that recognise **{line(record.concept)}** "
        f"dampened by Sordino {line(record.sordino_version)} ({line(record.origin.in_words)}): "
        f"{record.changed:,} of {record.neurons:,} neurons changed, {where}. `{RECORD}` "
        "has the whole record. What this does to the model's output was not evaluated here.\n"
    )


def summary(dampening: Dampening) -> Extent:
    """How many neurons a dampening changes, and by how much at each site."""
    return Extent(
        neurons=dampening.neurons,
        changed=dampening.changed,
        sites={
            site: _of_site(factors, dampening.shifts.get(site))
            for site, factors in dampening.factors.items()
        },
    )


def _of_site(factors: NDArray[np.float32], shifts: NDArray[np.float32] | None) -> SiteChange:
    least, mean = float(factors.min()), float(factors.mean(dtype=np.float64))
    changed = factors != 1
    if shifts is None:
        return SiteChange(
            neurons=factors.size, changed=int(np.count_nonzero(changed)), min=least, mean=mean
        )
    return SiteChange(
        neurons=factors.size,
        changed=int(np.count_nonzero(changed | (shifts != 0))),
        min=least,
        mean=mean,
        shift=Shift(
            min=float(shifts.min()),
            mean=float(shifts.mean(dtype=np.float64)),
            max=float(shifts.max()),
        ),
    )
