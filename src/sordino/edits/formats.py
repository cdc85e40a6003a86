"""What a dampening can be written as: each format says all of itself in the file that writes it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sordino.interventions import Dampening
from sordino.models.reference import ModelRef
from sordino.registry import Registry


@dataclass(frozen=True)
class Format:
    """A format in which `sordino bake` writes a folder.

    Args:
        where: Where the factors are, for the card, such as "in the weights".
        write: Fills an empty folder, given the model, the dampening, the folder and the dtype
            ("auto" unless the format is a model); returns what `provenance` takes of that.
        card: Makes the README.md of the record of an edit; None for the plain one.
        files: The names that files with what is loaded can have, unless it is a model.
        is_model: Whether the folder is a model that can be run as it is.
        is_ranked: Whether its size is a rank, the most rows of each matrix that it can change.
    """

    where: str
    write: Callable[[ModelRef, Dampening, Path, str], Mapping[str, Any]]
    card: Callable[[Mapping[str, Any]], str] | None = None
    files: tuple[str, ...] = ()
    is_model: bool = False
    is_ranked: bool = False


FORMATS: Registry[Format] = Registry("format", "formats", "sordino.edits")
"""Formats by name, which is what `--format` takes."""

RANK = 64
"""The rank of a format that has one, where none is given: servers take that much without ado."""
