"""Open a model, find its sites, tokenise, generate."""

from sordino.models.open import OpenModel, open_model
from sordino.models.reference import ModelRef, resolve
from sordino.models.sites import Site, find_sites

__all__ = ["ModelRef", "OpenModel", "Site", "find_sites", "open_model", "resolve"]
