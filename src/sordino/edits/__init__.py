"""Write dampening factors into a model for good, one file a target."""

from sordino.edits.baking import bake
from sordino.edits.difference import Difference, diff
from sordino.edits.provenance import read_provenance
from sordino.edits.undoing import Undone, undo
from sordino.edits.verification import Verification, verify

__all__ = [
    "Difference",
    "Undone",
    "Verification",
    "bake",
    "diff",
    "read_provenance",
    "undo",
    "verify",
]
