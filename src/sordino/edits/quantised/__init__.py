"""Quantised safetensors checkpoints, dampened by their scales and never quantised again.

One file a family says how its layers are stored and what becomes of them; `layer.py` has what they
share, `folder.py` tells which family a folder is of and puts the edits together.
"""

from sordino.edits.quantised.folder import (
    QuantisedEdit,
    QuantisedFolder,
    edit_quantised,
    quantised_folder,
    read_quantised,
    refuse_unfit_layers,
    with_quantisation,
)
from sordino.edits.quantised.layer import Changes

__all__ = [
    "Changes",
    "QuantisedEdit",
    "QuantisedFolder",
    "edit_quantised",
    "quantised_folder",
    "read_quantised",
    "refuse_unfit_layers",
    "with_quantisation",
]
