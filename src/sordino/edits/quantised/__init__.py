"""Quantised safetensors checkpoints, dampened by their scales and never quantised again.

Each family of formats has a file that says how its layers are stored and edited. `layer.py` has
what they share; `folder.py` finds a folder's family and joins the edits of its layers.
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
