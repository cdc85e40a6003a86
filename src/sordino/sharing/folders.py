"""Records without the folders of the machine that they were made on."""

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

# The beginning of a path, and two parts of one at least, or one below a folder that says where.
_START = r"(?:file://|~|\.{1,2}|[A-Za-z]:)"
_PART = r"[/\\][^\s/\\\"'<>|,;:()]+"
_INSIDE = re.compile(rf"(?<![\w.:/\\~%])(?:{_START}(?:{_PART})+|(?:{_PART}){{2,}})")
_WHOLE = re.compile(rf"(?:{_START}[/\\]|/[^/\s]).*", re.DOTALL)


class Folders:
    """What takes folders out of text.

    A text that is a path as a whole becomes its last part. Inside other text, paths that are known
    are replaced first (they may hold spaces), and then what looks like one.

    Args:
        known: Texts that may be paths, such as the values of a recipe.
    """

    def __init__(self, known: Iterable[str]) -> None:
        paths = {text for text in known if _WHOLE.fullmatch(text)}
        self._known = sorted(paths, key=len, reverse=True)

    def also(self, known: Iterable[str]) -> "Folders":
        """The same, with more known paths."""
        return Folders([*self._known, *known])

    def without(self, text: str) -> str:
        """The text with the names of files alone."""
        if _WHOLE.fullmatch(text) and (text in self._known or not re.search(r"[,;:] ", text)):
            return _name(text)
        for path in self._known:
            text = text.replace(path, _name(path))
        return _INSIDE.sub(lambda found: _name(found[0]), text)

    def cleaned(self, value: Any) -> Any:
        """A value of JSON, all of whose texts are without folders."""
        if isinstance(value, str):
            return self.without(value)
        if isinstance(value, dict):
            return {key: self.cleaned(one) for key, one in value.items()}
        if isinstance(value, list | tuple):
            return [self.cleaned(one) for one in value]
        return value

    def recipe(self, text: str) -> str:
        """A recipe, whose lines are KEY = VALUE with values that JSON has, too."""
        lines = []
        for line in text.splitlines():
            key, equals, value = line.partition(" = ")
            if equals and not line.startswith("#"):
                line = f"{key} = {json.dumps(self.cleaned(json.loads(value)), ensure_ascii=False)}"
            lines.append(line)
        return "\n".join(lines) + "\n"


def texts(value: Any) -> Iterator[str]:
    """All texts in a value of JSON."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for one in value.values():
            yield from texts(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from texts(one)


def of_this_machine(subject: Path) -> list[str]:
    """The folders that no pushed text may name: home, where we are, and where the subject is."""
    places = {Path.home(), Path.cwd(), subject.resolve().parent}
    return sorted(f"{place}/" for place in places if len(place.parts) > 1)


def _name(path: str) -> str:
    pure = PureWindowsPath(path) if "\\" in path else PurePosixPath(path)
    return pure.name or path
