"""Output formats of a dampening; each one is declared in the file that writes it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sordino.edits.record import DraftHeads, Provenance, Quantisation
from sordino.interventions import Dampening
from sordino.models.reference import ModelRef
from sordino.registry import Registry


@dataclass(frozen=True)
class Written:
    """What an edit did to a model's files: fields of `Provenance` (`settings`: `configuration`)."""

    left_out: tuple[str, ...] = ()
    settings: Mapping[str, bool] = field(default_factory=dict)
    added: tuple[str, ...] = ()
    quantised: Quantisation | None = None
    rewritten: tuple[str, ...] = ()
    not_copied: tuple[str, ...] = ()
    linked: tuple[str, ...] = ()
    draft_heads: DraftHeads | None = None


@dataclass(frozen=True)
class Format:
    """A format of a folder that `bake` writes.

    Args:
        where: Where the factors are, for the card, such as "in the weights".
        write: Fills an empty folder, given the model, the dampening, the folder and the dtype
            ("auto" unless the format is a model).
        card: Makes a README.md from the record of the edit; None for the plain one.
        files: The possible names of the file that a program loads; () if the folder is a model.
        is_model: Whether the folder is a model that runs as it is.
        is_ranked: Whether it has a rank: the most rows of a matrix that it can change.
    """

    where: str
    write: Callable[[ModelRef, Dampening, Path, str], Written]
    card: Callable[[Provenance], str] | None = None
    files: tuple[str, ...] = ()
    is_model: bool = False
    is_ranked: bool = False


FORMATS: Registry[Format] = Registry("format", "formats", "sordino.edits")
"""Formats by name, as the argument `format` takes them."""

RANK = 64
"""The default rank, for formats that have one."""
