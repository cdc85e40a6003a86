"""Factors and shifts alone, which Sordino applies to a model with forward hooks."""

from pathlib import Path

from sordino.edits.formats import FORMATS, Format, Written
from sordino.edits.provenance import DAMPENING
from sordino.interventions import Dampening
from sordino.models.reference import ModelRef


def _write(ref: ModelRef, dampening: Dampening, folder: Path, dtype: str) -> Written:  # noqa: ARG001
    """Write nothing: `bake` puts the dampening into every format's folder."""
    return Written()


FORMATS["hooks"] = Format(
    f"in `{DAMPENING}`, to be put on the model by hooks (no weights are here)", _write
)
