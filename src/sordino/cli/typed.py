"""The command line as typed, for the records that keep it."""

from collections.abc import Sequence
from contextvars import ContextVar

_TYPED: ContextVar[tuple[str, ...]] = ContextVar("typed", default=())


def remember(arguments: Sequence[str]) -> None:
    """Keep the arguments of the command line, before a recipe is expanded."""
    _TYPED.set(tuple(arguments))


def command() -> list[str]:
    """The command line, starting with the program's name."""
    return ["sordino", *_TYPED.get()]
