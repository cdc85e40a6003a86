"""Write dampening factors into a model for good, one file per target."""

from sordino.edits.baking import bake
from sordino.edits.difference import Difference, diff
from sordino.edits.gguf_file import FileVerification, verify_file
from sordino.edits.provenance import is_dampened, read_provenance
from sordino.edits.undoing import Undone, undo
from sordino.edits.verification import RowVerification, Verification, verify

__all__ = [
    "Difference",
    "FileVerification",
    "RowVerification",
    "Undone",
    "Verification",
    "bake",
    "diff",
    "is_dampened",
    "read_provenance",
    "undo",
    "verify",
    "verify_file",
]
