"""What was done to a model, in a file beside it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sordino.edits import gguf_record
from sordino.edits.formats import FORMATS
from sordino.edits.record import FORMAT, parse_provenance
from sordino.errors import UserError
from sordino.files import has_suffix, today
from sordino.folders import Folders
from sordino.interventions import Dampening
from sordino.markdown import line
from sordino.models.reference import ModelRef
from sordino.records import read_bytes
from sordino.version import __version__

FILE_NAME = "sordino.json"
GGUF = ".gguf"
# Not beside the weights: some servers load every *.safetensors that they find there.
EXTRAS = "sordino"
DAMPENING = f"{EXTRAS}/dampening.safetensors"
EARLIER = f"{EXTRAS}/earlier"
"""What an edited model had beside its weights before it was edited again."""
BEFORE = f"{EXTRAS}/before"
"""The files that were rewritten, as they were."""


def extras_of(model: Path) -> Path:
    """The folder of what Sordino keeps beside a model: in its folder, or beside its GGUF file."""
    return model.with_suffix(f".{EXTRAS}") if has_suffix(model, GGUF) else model / EXTRAS


def provenance(
    ref: ModelRef,
    dampening: Dampening,
    fingerprint: str,
    left_out: Sequence[str] = (),
    settings: Mapping[str, bool] | None = None,
    added: Sequence[str] = (),
    *,
    format: str = "weights",
    quantised: Mapping[str, Any] | None = None,
    rewritten: Sequence[str] = (),
    not_copied: Sequence[str] = (),
    linked: Sequence[str] = (),
    drafts: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The record of an edit; JSON can hold it.

    Args:
        ref: The model that was edited.
        dampening: The factors written into it.
        fingerprint: Of the model's weights before the edit.
        left_out: The source's files that hold undampened weights, which the edited model lacks.
        settings: What was changed in the configuration, for biases that the model lacked.
        added: The names of the tensors that were added for them.
        format: What the factors were written as.
        quantised: How the weights are quantised and what their edit rounded, if they are.
        rewritten: The files of the configuration that were changed; `BEFORE` has the old ones.
        not_copied: The other files in the source's folder, which do not belong to a model.
        linked: The weight files that the source's folder has by a link to elsewhere.
        drafts: What became of draft heads; see `sordino.edits.drafts`.
    """
    record: dict[str, Any] = {
        "format": FORMAT,
        "sordino_version": __version__,
        "created": today(),
        "model": {
            "name": ref.name,
            "kind": ref.kind,
            "revision": ref.revision,
            "weights_fingerprint": fingerprint,
        },
        **dampening.record,
        "written_as": format,
        **summary(dampening),
        "left_out": list(left_out),
    }
    if settings:
        record["configuration"] = dict(settings)
    if added:
        record["added"] = list(added)
    if quantised:
        record["quantised"] = dict(quantised)
    if rewritten:
        record["rewritten"] = list(rewritten)
    if not_copied:
        record["not_copied"] = list(not_copied)
    if linked:
        record["linked"] = list(linked)
    record |= drafts or {}
    if is_dampened(ref.path):
        record["earlier"] = read_provenance(ref.path)
    return record


def is_dampened(path: Path) -> bool:
    """Whether a folder or a GGUF file holds the record of an edit.

    Raises:
        UserError: A GGUF file is damaged.
    """
    if has_suffix(path, GGUF) and path.is_file():
        return gguf_record.read(path) is not None
    return (path / FILE_NAME).is_file()


def read_provenance(model: str | Path) -> dict[str, Any]:
    """The record of the edit that made a model folder or a GGUF file.

    Raises:
        UserError: There is none, or not one of this format.
    """
    path = Path(model)
    if has_suffix(path, GGUF) and path.is_file():
        record = gguf_record.read(path)
        if record is None:
            raise UserError(f"{path} has no record of an edit: Sordino did not make it.")
        return record
    path /= FILE_NAME
    return parse_provenance(read_bytes(path, "provenance"), str(path))


def plain_card(record: Mapping[str, Any]) -> str:
    """A few honest lines for README.md, for want of a full model card."""
    record = Folders.of_record(record).cleaned(record)
    concept = str(record["expertise"].get("concept", "a concept"))
    model = record["model"]["name"]
    written = FORMATS.get(record["written_as"])
    where = f"as {line(record['written_as'])}" if written is None else written.where
    return (
        f"# {line(Path(model).name)}, dampened\n\n"
        f"{line(model)} with the neurons that recognise **{line(concept)}** dampened by "
        f"Sordino {line(record['sordino_version'])} ({line(in_words(record))}): "
        f"{record['changed']:,} of {record['neurons']:,} neurons changed, {where}. `{FILE_NAME}` "
        "has the whole record. What this does to the model's output was not evaluated here.\n"
    )


def in_words(record: Mapping[str, Any]) -> str:
    """The rule and the strength that a record names, of every part where it has several."""
    rule = record["intervention"]
    if "parts" not in record:
        return f"{rule['name']}, strength {rule['strength']:g}"
    parts = "; then ".join(
        f"{part['expertise'].get('concept', 'a concept')}: {in_words(part)}"
        for part in record["parts"]
    )
    return parts if rule["strength"] == 1 else f"{parts}; all at strength {rule['strength']:g}"


def summary(dampening: Dampening) -> dict[str, Any]:
    """How many neurons a dampening changes, and by how much, site by site."""
    return {
        "neurons": dampening.neurons,
        "changed": dampening.changed,
        "sites": {
            site: _of_site(factors, dampening.shifts.get(site))
            for site, factors in dampening.factors.items()
        },
    }


def _of_site(factors: NDArray[np.float32], shifts: NDArray[np.float32] | None) -> dict[str, Any]:
    found: dict[str, Any] = {
        "neurons": factors.size,
        "changed": int(np.count_nonzero(factors != 1)),
        "min": float(factors.min()),
        "mean": float(factors.mean(dtype=np.float64)),
    }
    if shifts is not None:
        found["changed"] = int(np.count_nonzero((factors != 1) | (shifts != 0)))
        found["shift"] = {
            "min": float(shifts.min()),
            "mean": float(shifts.mean(dtype=np.float64)),
            "max": float(shifts.max()),
        }
    return found
