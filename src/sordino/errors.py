"""Errors that the user can correct."""

from typing import SupportsIndex


class UserError(Exception):
    """Something in the input that the user can correct.

    The message is one sentence that names the file or the argument and says what to do. Arguments
    are in backticks, with a value as in `device=cpu`; the command line turns them into flags,
    prints the message to standard error without a traceback, and exits with status 2.
    """


def require_whole(**settings: object) -> None:
    """Refuse settings that are no whole numbers; None is allowed.

    Raises:
        UserError: A setting is not.

    Example:
        >>> require_whole(seed=3)
    """
    for name, value in settings.items():
        if value is not None and not isinstance(value, SupportsIndex):
            raise UserError(f"`{name}={value}` is not a whole number: give one.")


def require_at_least(least: int, **settings: int | None) -> None:
    """Refuse settings below a bound, or that are no whole numbers; None is not bounded.

    Raises:
        UserError: A setting is.

    Example:
        >>> require_at_least(1, rounds=3, rows=None)
    """
    require_whole(**settings)
    for name, value in settings.items():
        if value is not None and value < least:
            raise UserError(f"`{name}={value}` is out of range: it must be at least {least}.")


def refuse_text(**settings: object) -> None:
    """Refuse one text where a list of texts is expected, since its letters would be taken for them.

    Raises:
        UserError: A setting is a text.

    Example:
        >>> refuse_text(measures=["perplexity"])
    """
    for name, value in settings.items():
        if isinstance(value, str):
            raise UserError(f"`{name}={value}` is one text, and a list is expected: give a list.")
