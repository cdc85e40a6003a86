"""What was done to a model, in a file beside it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sordino.errors import UserError
from sordino.files import read_json, today
from sordino.interventions import Dampening
from sordino.models.reference import ModelRef
from sordino.version import __version__

FILE_NAME = "sordino.json"
FORMAT = "sordino-provenance-1"


def provenance(
    ref: ModelRef, dampening: Dampening, fingerprint: str, left_out: Sequence[str]
) -> dict[str, Any]:
    """The record of an edit; JSON can hold it.

    Args:
        ref: The model that was edited.
        dampening: The factors written into it.
        fingerprint: Of the model's weights before the edit.
        left_out: The source's files that the edited model lacks.
    """
    record: dict[str, Any] = {
        "format": FORMAT,
        "sordino_version": __version__,
        "created": today(),
        "model": {
            "name": ref.name,
            "revision": ref.revision,
            "weights_fingerprint": fingerprint,
        },
        "intervention": {
            "name": dampening.intervention,
            "strength": dampening.strength,
            "settings": dict(dampening.settings),
        },
        "expertise": dict(sorted(dampening.expertise.items())),
        "neurons": dampening.neurons,
        "changed": dampening.changed,
        "sites": {site: _summary(factors) for site, factors in dampening.factors.items()},
        "left_out": list(left_out),
    }
    earlier = ref.path / FILE_NAME
    if ref.kind == "folder" and earlier.is_file():
        record["earlier"] = read_provenance(ref.path)
    return record


def read_provenance(folder: str | Path) -> dict[str, Any]:
    """The record of the edit that made a model folder.

    Raises:
        UserError: The folder has none, or not one of this format.
    """
    path = Path(folder) / FILE_NAME
    record = read_json(path)
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise UserError(f"{path} is no provenance of this version (expected '{FORMAT}').")
    return record


def plain_card(record: dict[str, Any]) -> str:
    """A few honest lines for README.md, for want of a full model card."""
    settings = record["intervention"]
    concept = record["expertise"].get("concept", "a concept")
    return (
        f"# {Path(record['model']['name']).name}, dampened\n\n"
        f"{record['model']['name']} with the neurons that recognise **{concept}** turned down by "
        f"Sordino {record['sordino_version']} ({settings['name']}, strength "
        f"{settings['strength']:g}): {record['changed']:,} of {record['neurons']:,} neurons "
        f"changed, in the weights. `{FILE_NAME}` has the whole record. What this does to the "
        "model's output was not evaluated here.\n"
    )


def _summary(factors: NDArray[np.float32]) -> dict[str, Any]:
    return {
        "neurons": factors.size,
        "changed": int(np.count_nonzero(factors != 1)),
        "min": float(factors.min()),
        "mean": float(factors.mean(dtype=np.float64)),
    }
