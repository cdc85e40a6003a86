"""Altair, imported with the first chart that is drawn: most commands draw none."""

from importlib import import_module
from typing import Any

from sordino.extras import require


def __getattr__(name: str) -> Any:
    require("report", "A page with charts")
    return getattr(import_module("altair"), name)
