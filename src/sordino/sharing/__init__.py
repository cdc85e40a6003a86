"""From this machine to the hub: what is pushed of an output, its card, and the upload."""

from sordino.sharing.bundle import Bundle, bundle
from sordino.sharing.upload import Pushed, push

__all__ = ["Bundle", "Pushed", "bundle", "push"]
