"""Nothing but factors and shifts, which Sordino puts on a model by forward hooks."""

from pathlib import Path

from sordino.edits.formats import FORMATS, Format, Written
from sordino.edits.provenance import DAMPENING
from sordino.interventions import Dampening
from sordino.models.reference import ModelRef


def _write(ref: ModelRef, dampening: Dampening, folder: Path, dtype: str) -> Written:  # noqa: ARG001
    """Every format's folder holds the dampening, and this one nothing else."""
    return Written()


FORMATS["hooks"] = Format(
    f"in `{DAMPENING}`, to be put on the model by hooks (no weights are here)", _write
)
