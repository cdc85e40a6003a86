"""What the README and the documentation's pages tell a reader to type."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[1]
PAGES = [
    *("README.md", "CONTRIBUTING.md"),
    *sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("docs/*.md")),
]

_SHELL = {"", "sh", "bash", "shell", "console"}  # an unmarked block is for the shell
_ENDS = {"&&", "||", "|", ";", "&", "(", ")", ");"}


@dataclass(frozen=True)
class Block:
    """A fenced block: where it begins, whether it is for the shell or Python, and what it says."""

    page: str
    line: int
    language: str
    text: str

    @property
    def where(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(page: str) -> list[Block]:
    """The blocks of a page that are to be typed, in order."""
    tokens = MarkdownIt("commonmark").parse((ROOT / page).read_text(encoding="utf-8"))
    found = []
    for token in tokens:
        kind = token.info.strip().lower()
        if token.type == "fence" and (kind in _SHELL or kind == "python"):
            language = "python" if kind == "python" else "shell"
            found.append(Block(page, token.map[0] + 1, language, token.content))
    return found


def commands(text: str) -> Iterator[list[str]]:
    """The simple commands of a block: words as the shell would see them, without redirections."""
    for line in text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(re.sub(r"(^|\s)#.*$", "", line), posix=True, punctuation_chars=True)
        lexer.whitespace_split, lexer.commenters = True, ""
        words: list[str] = []
        for word in [*lexer, ";"]:
            if word not in _ENDS:
                words.append(word)
                continue
            while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                words.pop(0)
            if words:
                yield words[: words.index(">")] if ">" in words else words
            words = []


def to_sordino(words: list[str]) -> list[str] | None:
    """What `sordino` is given in a command; None where it is another program."""
    if words[0] == "sordino":
        return words[1:]
    if "-m" in words and words[words.index("-m") + 1] == "sordino":
        return words[words.index("-m") + 2 :]
    return None


def inline_flags(page: str) -> Iterator[str]:
    """The flags that running text names in code, such as `--force`."""
    for token in MarkdownIt("commonmark").parse((ROOT / page).read_text(encoding="utf-8")):
        for child in token.children or []:
            if child.type == "code_inline":
                yield from re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", child.content)
