"""Pictures of the pages for README and docs, light and dark: `make screenshots`.

    python -m tools.screenshots demo/quiet                # all of them
    python -m tools.screenshots demo/quiet report docs    # some

The folder is what `make demo` makes, the site what `make docs` makes. Chromium has to be installed.
The pages cover what may offend until it is uncovered, and nothing is uncovered here; the chat is
asked something harmless. Look at the pictures before they are committed all the same.
"""

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Page

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "images"
SIZE = {"width": 1280, "height": 820}
MODEL = "kit:smollm2"
PROMPT = "Write one sentence about a walk in the rain."
_PATIENCE_MS = 300_000  # on a machine that is busy
_SORDINO = [sys.executable, "-m", "sordino"]


@contextmanager
def report(quiet: Path) -> Iterator[str]:
    """The address of the page that `sordino run` wrote."""
    yield _existing(quiet / "sordino" / "report.html", "make demo")


@contextmanager
def docs(_: Path) -> Iterator[str]:
    """The address of a page of the site."""
    yield _existing(ROOT / "site" / "idea.html", "make docs")


@contextmanager
def explorer(quiet: Path) -> Iterator[str]:
    """The address of a page that `sordino explore` writes for this."""
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "explorer.html"
        subprocess.run([*_SORDINO, "explore", quiet, "-o", page, "--no-open"], check=True)
        yield page.as_uri()


@contextmanager
def chat(quiet: Path) -> Iterator[str]:
    """The address of a chat that runs for this."""
    how = ["--no-open", "--port", "0", "--temperature", "0", "--new-tokens", "64"]
    command = [*_SORDINO, "chat", MODEL, str(quiet), *how]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line.startswith("http"):
                sys.exit("sordino chat did not start: see above.")
            yield line.split()[0]
        finally:
            process.terminate()


def _ask(page: "Page") -> None:
    """Say something harmless, and wait until both have answered."""
    page.fill("#prompt", PROMPT)
    page.click("#send")
    page.wait_for_selector("#stop", state="visible")
    page.wait_for_selector("#send", state="visible")


def _show_map(page: "Page") -> None:
    """Begin at the map."""
    page.evaluate("document.querySelector('#map-section').scrollIntoView()")


PAGES = {"report": report, "explorer": explorer, "chat": chat, "docs": docs}
BEFORE: dict[str, Callable[["Page"], None]] = {"chat": _ask, "explorer": _show_map}


def find_chromium() -> str | None:
    """The Chromium that is installed, if one is."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)


def take(quiet: Path, names: list[str]) -> None:
    """Take the pictures of these pages in both themes."""
    from playwright.sync_api import sync_playwright

    chromium = find_chromium()
    if chromium is None:
        sys.exit("There is no Chromium here: install it (Debian: apt-get install chromium).")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium)
        for name in names:
            with PAGES[name](quiet) as address:
                for theme in ("light", "dark"):
                    # A context of its own: no page remembers the other theme.
                    page = browser.new_context(color_scheme=theme, viewport=SIZE).new_page()
                    page.set_default_timeout(_PATIENCE_MS)
                    page.goto(address)
                    BEFORE.get(name, lambda _: None)(page)
                    page.wait_for_load_state("networkidle")
                    page.screenshot(path=FOLDER / f"{name}-{theme}.png")
                    page.context.close()
        browser.close()


def _existing(path: Path, made_by: str) -> str:
    if not path.is_file():
        sys.exit(f"{path} is missing: {made_by} makes it.")
    return path.absolute().as_uri()


if __name__ == "__main__":
    asked = sys.argv[2:] or list(PAGES)
    if len(sys.argv) < 2 or not set(asked) <= set(PAGES):
        sys.exit(f"usage: python -m tools.screenshots FOLDER [{' '.join(PAGES)}]")
    FOLDER.mkdir(exist_ok=True)
    take(Path(sys.argv[1]), asked)
