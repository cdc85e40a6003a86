"""Write dampening factors into a model for good, one file a target."""

from sordino.edits.baking import bake
from sordino.edits.provenance import read_provenance
from sordino.edits.verification import RowVerification, Verification, verify

__all__ = ["RowVerification", "Verification", "bake", "read_provenance", "verify"]
