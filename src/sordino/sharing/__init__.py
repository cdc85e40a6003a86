"""Pushing to the hub: which files of an output are pushed, its card, and the upload."""

from sordino.sharing.bundle import Bundle, bundle
from sordino.sharing.upload import Pushed, push

__all__ = ["Bundle", "Pushed", "bundle", "push"]
