"""What was done to a model, in a file beside it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sordino.edits import gguf_record
from sordino.errors import UserError
from sordino.files import read_json, today
from sordino.interventions import Dampening
from sordino.models.reference import ModelRef
from sordino.version import __version__

FILE_NAME = "sordino.json"
GGUF = ".gguf"
FORMAT = "sordino-provenance-1"
# Not beside the weights: some servers load every *.safetensors that they find there.
EXTRAS = "sordino"
DAMPENING = f"{EXTRAS}/dampening.safetensors"
EARLIER = f"{EXTRAS}/earlier"
"""What an edited model had beside its weights before it was edited again."""
BEFORE = f"{EXTRAS}/before"
"""The files that were rewritten, as they were."""

Format = Literal["weights", "ia3", "hooks"]
"""What a dampening is written as: into weights, as an (IA)³ adapter, as factors alone."""


def provenance(
    ref: ModelRef,
    dampening: Dampening,
    fingerprint: str,
    left_out: Sequence[str] = (),
    settings: Mapping[str, bool] | None = None,
    added: Sequence[str] = (),
    *,
    format: Format = "weights",
    quantised: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The record of an edit; JSON can hold it.

    Args:
        ref: The model that was edited.
        dampening: The factors written into it.
        fingerprint: Of the model's weights before the edit.
        left_out: The source's files that the edited model lacks.
        settings: What was changed in the configuration, for biases that the model lacked.
        added: The names of the tensors that were added for them.
        format: What the factors were written as.
        quantised: How the weights are quantised and what their edit rounded, if they are.
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
    if is_dampened(ref.path):
        record["earlier"] = read_provenance(ref.path)
    return record


def is_dampened(path: Path) -> bool:
    """Whether a folder or a GGUF file holds the record of an edit.

    Raises:
        UserError: A GGUF file is damaged.
    """
    if path.suffix == GGUF and path.is_file():
        return gguf_record.read(path) is not None
    return (path / FILE_NAME).is_file()


def read_provenance(model: str | Path) -> dict[str, Any]:
    """The record of the edit that made a model folder or a GGUF file.

    Raises:
        UserError: There is none, or not one of this format.
    """
    path = Path(model)
    if path.suffix == GGUF and path.is_file():
        record: Any = gguf_record.read(path)
    else:
        path /= FILE_NAME
        record = read_json(path)
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise UserError(f"{path} is no provenance of this version (expected '{FORMAT}').")
    return record


def plain_card(record: Mapping[str, Any]) -> str:
    """A few honest lines for README.md, for want of a full model card."""
    concept = record["expertise"].get("concept", "a concept")
    where = {
        "weights": "in the weights",
        "ia3": "as an (IA)³ adapter for PEFT (no weights are here)",
        "hooks": f"in `{DAMPENING}`, to be put on the model by hooks (no weights are here)",
    }[record["written_as"]]
    return (
        f"# {Path(record['model']['name']).name}, dampened\n\n"
        f"{record['model']['name']} with the neurons that recognise **{concept}** turned down by "
        f"Sordino {record['sordino_version']} ({in_words(record)}): {record['changed']:,} of "
        f"{record['neurons']:,} neurons changed, {where}. `{FILE_NAME}` has the whole record. "
        "What this does to the model's output was not evaluated here.\n"
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
