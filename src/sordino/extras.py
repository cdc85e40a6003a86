"""The optional parts of Sordino, and whether what they need is installed."""

from importlib.util import find_spec

from sordino.errors import UserError

PACKAGES = {
    "chat": ("starlette", "uvicorn"),
    "datasets": ("datasets",),
    "peft": ("peft",),
    "replay": ("duckdb",),
    "tune": ("optuna",),
    "zero-shot": ("lm_eval", "datasets"),
}
"""What each optional part imports, by the name of the extra that installs it."""


def lacking(extra: str) -> list[str]:
    """The packages of an optional part that are not installed."""
    return [package for package in PACKAGES[extra] if find_spec(package) is None]


def require(extra: str, what: str) -> None:
    """Raise `UserError` unless the packages of an optional part are installed.

    Args:
        extra: The part, a key of `PACKAGES`.
        what: What needs it, as the subject of a sentence.
    """
    if missing := lacking(extra):
        raise UserError(
            f"{what} needs the package {' and '.join(missing)}, which is not installed: "
            f'pip install "sordino[{extra}]".'
        )
