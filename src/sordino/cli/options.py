"""Options that several commands share, and how commands print."""

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from sordino import progress

if TYPE_CHECKING:
    from rich.text import Text

    from sordino.evaluation import Access


_PIPE_WIDTH = 240

_OUTPUT = Parameter(name=["--output", "-o"])
Output = Annotated[Path, _OUTPUT]
FileOutput = Annotated[str, _OUTPUT]
"""A file to write; as a text it keeps a slash at its end, which `Path` drops."""


@dataclass(frozen=True)
class AccessOptions:
    """How servers are asked; a subclass names the group in the help."""

    concurrency: int = 4
    """Concurrent requests per server."""
    request_timeout: float = 120
    """Seconds to wait for an answer."""
    retries: int = 5
    """How often a failed request is retried."""
    rate: float | None = None
    """The largest number of requests per minute and server."""

    def access(self, key_variable: str | None) -> "Access":
        """These, with the variable that holds the key."""
        from sordino.evaluation import Access

        return Access(key_variable, self.concurrency, self.request_timeout, self.retries, self.rate)


@Parameter(name="*", group="Judging")
@dataclass(frozen=True)
class JudgeOptions:
    """How answers are scored."""

    scorer: str = "auto"
    """As for evaluate: auto, alt-profanity-check, tox-block, hf:org/name, an address, …"""
    toxic_label: str | None = None
    """The classifier's label that means toxic, if it cannot be inferred."""
    judge_refusal: float | None = None
    """Score of an answer that a server's model refuses to judge, from 0 to 1."""


@Parameter(name="*", group="Output")
@dataclass(frozen=True)
class JsonOptions:
    """How results are printed, for commands that never replace anything."""

    json: bool = False
    """Print the result as JSON on standard output, without progress."""
    verbose: Annotated[bool, Parameter(name=["--verbose", "-v"])] = False
    """Show the libraries' own messages."""

    @contextmanager
    def in_force(self) -> Iterator[None]:
        """Apply these options to progress and messages; the work begins.

        Garbage is collected again from here on (see `sordino.cli.app.main`).
        """
        import gc
        import logging
        import warnings

        gc.enable()
        products = logging.getLogger("bitsandbytes")
        with ExitStack() as stack:
            if self.verbose:
                logging.basicConfig(level=logging.INFO)
            else:
                stack.enter_context(warnings.catch_warnings(action="ignore"))
                stack.callback(products.setLevel, products.level)
                products.setLevel(logging.ERROR)  # it has a line for every product
            if self.json:
                stack.enter_context(progress.hushed())
            yield


@Parameter(name="*", group="Output")
@dataclass(frozen=True)
class OutputOptions(JsonOptions):
    """How results are printed."""

    force: bool = False
    """Replace an existing output."""


def open_in_browser(address: str, *, anyway: bool = False) -> None:
    """Open an address in the browser, unless that would be a text browser in this terminal.

    Args:
        address: The address.
        anyway: Open it even if there is no sign of a display.
    """
    import webbrowser

    windows = sys.platform in ("darwin", "win32") or any(
        os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY")
    )
    if windows or anyway:
        webbrowser.open(address)


def print_lines(*lines: str) -> None:
    """Print lines on standard output, without control characters from foreign text."""
    for line in lines:
        print(progress.tame(line.replace("\n", " ")))


def print_paragraphs(*texts: str) -> None:
    """Print texts on standard output, each after an empty line and in lines of at most 80."""
    for text in texts:
        print("", *wrap(progress.tame(text), 80, break_on_hyphens=False), sep="\n")


def print_columns(columns: Sequence[str], rows: Iterable[Sequence["str | Text"]]) -> None:
    """Print a table on standard output.

    Args:
        columns: The headings; without any, no heading is printed.
        rows: The cells. In those that are strings, nothing is markup or a control character.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    if not console.is_terminal:
        console.width = _PIPE_WIDTH
    table = Table(box=None, pad_edge=False, show_header=any(columns))
    for column in columns:
        table.add_column(column, overflow="fold")  # cells are never cut
    for row in rows:
        table.add_row(*(Text(progress.tame(c)) if isinstance(c, str) else c for c in row))
    console.print(table)


def print_json(value: Any) -> None:
    """Print a value as JSON on standard output."""
    from sordino.files import to_json

    print(to_json(value), end="")
