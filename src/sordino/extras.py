"""The optional parts of Sordino, and whether their packages are installed."""

import json
import sys
from importlib.metadata import distribution
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
    "tune": ("optuna", *_REPORT),
    "zero-shot": ("lm_eval", "datasets"),
}
"""The packages of each optional part, by the name of the extra that installs them."""


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
            f"{installing(extra)}."
        )


def started_as(extra: str = "") -> str:
    """The command with which Sordino was started, such as "sordino" or "uvx sordino".

    The environment of `uvx` or `pipx run` is on no path, and nothing can be installed into it:
    there, an extra is part of the command.

    Args:
        extra: The part that the command needs beside the core, a key of `PACKAGES`; "" for none.
            It is ignored if Sordino is installed.

    Example:
        >>> started_as().endswith("sordino")
        True
    """
    where = Path(sys.prefix).parts
    if "archive-v0" in where:  # of uv's cache
        return f"uvx {_name_wanted('--from', extra)}sordino"
    if "pipx" in where and "venvs" not in where:  # where `pipx install` puts things
        return f"pipx run {_name_wanted('--spec', extra)}sordino"
    if Path(sys.argv[0]).parts[-2:] == ("sordino", "__main__.py"):
        return f"{Path(sys.executable).name} -m sordino"
    return "sordino"


def installing(extra: str) -> str:
    """The command that installs an extra, or several with commas, where Sordino runs."""
    again = started_as(extra)
    if again.startswith(("uvx ", "pipx ")):
        return f"{again} …"
    installer = "pipx install --force" if "pipx" in Path(sys.prefix).parts else "pip install"
    return f'{installer} "sordino[{extra}]"'


def _name_wanted(flag: str, extra: str) -> str:
    """The flag that names what to install, if that is more than "sordino" from the index."""
    name = f"sordino[{extra}]" if extra else "sordino"
    source = distribution("sordino").read_text("direct_url.json")  # written by the installer
    if source is None:
        return f'{flag} "{name}" ' if extra else ""
    origin = json.loads(source)
    version_control = origin.get("vcs_info", {}).get("vcs")
    where = f"{version_control}+{origin['url']}" if version_control else origin["url"]
    return f'{flag} "{name} @ {where}" '
