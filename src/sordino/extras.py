"""The optional parts of Sordino, and whether what they need is installed."""

import sys
from importlib.util import find_spec
from pathlib import Path

from sordino.errors import UserError

_REPORT = ("altair", "vl_convert")

PACKAGES = {
    "chat": ("starlette", "uvicorn"),
    "datasets": ("datasets",),
    "parquet": ("pyarrow",),
    "peft": ("peft",),
    "quantised": ("bitsandbytes", "compressed_tensors"),
    "replay": ("duckdb", "pyarrow", *_REPORT),
    "report": _REPORT,
    "tox-block": ("h5py",),
    "tune": ("optuna", *_REPORT),
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
    missing = lacking(extra)
    if missing:
        packages = "the package" if len(missing) == 1 else "the packages"
        verb = "is" if len(missing) == 1 else "are"
        raise UserError(
            f"{what} needs {packages} {' and '.join(missing)}, which {verb} not installed: "
            f"{_installing(extra)}."
        )


def _installing(extra: str) -> str:
    """The command that brings an extra to where Sordino runs.

    What `uvx` and `pipx run` make for one command is nothing that could be installed into.
    """
    part = f'"sordino[{extra}]"'
    where = Path(sys.prefix).parts
    if "archive-v0" in where:  # of uv's cache
        return f"uvx --from {part} sordino …"
    if "pipx" in where:
        return f"pipx run --spec {part} sordino …"
    return f"pip install {part}"
