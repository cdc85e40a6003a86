"""Markdown in which foreign text stays text, and the YAML in front of a card."""

import re
from collections.abc import Mapping
from typing import Any

import yaml
from huggingface_hub.repocard import REGEX_YAML_BLOCK

from sordino.files import printable

_LONGEST = 2000
# Markup inside a line: emphasis, code, links, pictures, HTML, cells, formulas, entities, and
# addresses, which GitHub's dialect links by itself.
_INLINE = re.compile(
    r"[\\`*\[\]<|~$]|&(?=#?\w+;)|(?<![^\W_])_|_(?![^\W_])|:(?=//)|(?<=\bwww)\.|(?<=\w)@(?=\w)",
    re.IGNORECASE,
)
# What starts a heading, a quotation, a rule or a list, at the beginning of a line.
_START = re.compile(r"^([>#=]|[+-](?=[\s+-]|$))|^(\d{1,9})([.)])(?=\s|$)")


def line(text: str) -> str:
    """Foreign text for Markdown: one line that is shown literally.

    Only what would be markup is escaped, since cards are read as plain text as well.

    Example:
        >>> line("[a](b)  <c>")
        '\\\\[a\\\\](b) \\\\<c>'
    """
    return literal(printable(text, _LONGEST))


def literal(text: str) -> str:
    """A line of foreign text as Markdown that shows it literally.

    Example:
        >>> literal("1. $x$")
        '1\\\\. \\\\$x\\\\$'
    """
    return _START.sub(_escaped_start, _INLINE.sub(r"\\\g<0>", text))


def _escaped_start(found: re.Match[str]) -> str:
    return f"\\{found[1]}" if found[1] else f"{found[2]}\\{found[3]}"


def front_matter(card: str | None) -> dict[str, Any]:
    """The YAML header of a card; empty if there is none or it cannot be read."""
    found = REGEX_YAML_BLOCK.search(card or "")
    if found is None:
        return {}
    try:
        value = yaml.safe_load(found[2])
    except (yaml.YAMLError, ValueError, RecursionError):  # ValueError: a date such as 2026-99-99
        return {}
    return {str(k): v for k, v in value.items()} if isinstance(value, Mapping) else {}


def body(card: str) -> str:
    """A card without its YAML header."""
    return REGEX_YAML_BLOCK.sub("", card, count=1).lstrip()


def with_front(front: Mapping[str, Any], body: str) -> str:
    """A card: a YAML header, and Markdown below it."""
    text = yaml.safe_dump(dict(front), sort_keys=False, allow_unicode=True)
    return f"---\n{text}---\n\n{body.lstrip()}"
