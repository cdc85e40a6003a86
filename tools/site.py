"""Hooks of the documentation site: pages that are made, and what may not be on any page."""

import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

from sordino.cli.app import COMMANDS, describe

# The page that `make results` makes, in hours: a checkout may be without it.
_UNMEASURED = (
    "# Results\n\nThis checkout has none yet. `make results` measures and writes this page.\n"
)

# What a browser would fetch by itself, as against a link that is followed by hand.
_LOADED = re.compile(
    r"""<(?:script|img|iframe|source|video|audio)\b[^>]*\bsrc=["']?((?:https?:)?//[^"'\s>]+)"""
    r"""|<link\b[^>]*\brel=["']?(?:stylesheet|preload|preconnect|icon)[^>]*"""
    r"""\bhref=["']?((?:https?:)?//[^"'\s>]+)"""
)
_LINKED = re.compile(r"""<a\b[^>]*\bhref=["'](\w+:[^"']*)["']""")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Have the page of the command line show the whole help of each command."""
    describe(*COMMANDS)
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the notebooks as pages, and the results' page where it is missing."""
    if files.get_file_from_path("results.md") is None:
        files.append(File.generated(config, "results.md", content=_UNMEASURED))
    for notebook in sorted((Path(config.docs_dir) / "notebooks").glob("*.ipynb")):
        page = as_markdown(json.loads(notebook.read_text(encoding="utf-8")), notebook.name)
        files.append(File.generated(config, f"notebooks/{notebook.stem}.md", content=page))
    return files


def on_post_page(output: str, page: Any, config: MkDocsConfig) -> str:
    """Refuse what a page would fetch from elsewhere, and links that lead nowhere by their form."""
    del config
    where = page.file.src_uri
    for found in _LOADED.finditer(output):
        raise PluginError(f"{where} would fetch {found[1] or found[2]} from elsewhere.")
    for found in _LINKED.finditer(output):
        scheme, host, *_ = urlsplit(found[1])
        if scheme != "https" or "." not in host:
            raise PluginError(f"{where} has the link {found[1]}, which is no https address.")
    return output


def as_markdown(notebook: dict[str, Any], name: str) -> str:
    """A notebook's cells and what they gave, as a page."""
    parts = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"]).strip()
        if cell["cell_type"] == "markdown":
            parts.append(source)
        elif cell["cell_type"] == "code":
            parts.append(f"```python\n{source}\n```")
            parts += [shown for output in cell["outputs"] if (shown := _shown(output))]
    title, *rest = parts
    return "\n\n".join([title, f"[The notebook]({name}) itself.", *rest]) + "\n"


def _shown(output: dict[str, Any]) -> str:
    """One output of a cell: a drawing, else its text."""
    data = output.get("data", {})
    if svg := "".join(data.get("image/svg+xml", "")):
        return f'<div class="drawing">{svg}</div>'
    if text := "".join(data.get("text/plain", output.get("text", ""))).strip():
        return f"```text\n{text}\n```"
    return ""
