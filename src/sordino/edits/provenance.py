"""What was done to a model, in a file beside it."""

from collections.abc import Mapping, Sequence
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
# Not beside the weights: some servers load every *.safetensors that they find there.
HOOKS = "sordino/hooks.safetensors"


def provenance(
    ref: ModelRef,
    dampening: Dampening,
    fingerprint: str,
    left_out: Sequence[str] = (),
    settings: Mapping[str, bool] | None = None,
    *,
    hooks: bool = False,
    quantised: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The record of an edit; JSON can hold it.

    Args:
        ref: The model that was edited.
        dampening: The factors written into it.
        fingerprint: Of the model's weights before the edit.
        left_out: The source's files that the edited model lacks.
        settings: What was changed in the configuration, for biases that the model lacked.
        hooks: Whether the factors were written to a file of their own and not into weights.
        quantised: How the weights are quantised and what their edit rounded, if they are.
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
        "sites": {
            site: _summary(factors, dampening.shifts.get(site))
            for site, factors in dampening.factors.items()
        },
        "left_out": list(left_out),
    }
    if settings:
        record["configuration"] = dict(settings)
    if hooks:
        record["hooks"] = HOOKS
    if quantised:
        record["quantised"] = dict(quantised)
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
    where = (
        f"in `{record['hooks']}`, to be put on the model by hooks (no weights are here)"
        if "hooks" in record
        else "in the weights"
    )
    return (
        f"# {Path(record['model']['name']).name}, dampened\n\n"
        f"{record['model']['name']} with the neurons that recognise **{concept}** turned down by "
        f"Sordino {record['sordino_version']} ({settings['name']}, strength "
        f"{settings['strength']:g}): {record['changed']:,} of {record['neurons']:,} neurons "
        f"changed, {where}. `{FILE_NAME}` has the whole record. What this does to the "
        "model's output was not evaluated here.\n"
    )


def _summary(factors: NDArray[np.float32], shifts: NDArray[np.float32] | None) -> dict[str, Any]:
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
