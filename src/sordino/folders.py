"""Remove from texts what identifies the machine on which they were written: folders and servers."""

import json
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any
from urllib.parse import urlsplit

from sordino.errors import UserError

# The beginning of a path; a path has at least two parts, or one after such a beginning.
_START = r"(?:file://|~[\w.-]*|\.{1,2}|[A-Za-z]:|\\\\[^\s/\\]+)"
_PART = r"[/\\][^\s/\\\"'<>|,;:()]+"
_INSIDE = re.compile(rf"(?<![\w./\\~%])(?:{_START}(?:{_PART})+|(?:{_PART}){{2,}})")
_WHOLE = re.compile(rf"(?:{_START}[/\\]|/[^/\s]).*", re.DOTALL)
_ADDRESS = re.compile(r"\bhttps?://[^\s\"'<>|)]*", re.IGNORECASE)
# Public places that a record may name.
_PUBLIC = ("huggingface.co", "github.com", "arxiv.org", "pypi.org", "localhost", "127.0.0.1")
_ELSEWHERE = re.compile(r"(?:hf|kit|https?):", re.IGNORECASE)
_DATA = re.compile(
    r"\.(?:txt|csv|tsv|json|jsonl|ndjson|parquet|gguf|safetensors|toml|html|md|gz)", re.IGNORECASE
)


class Folders:
    """Removes folders and the addresses of servers from texts.

    A text that is one path becomes its last part. Inside other text, known paths (which may have
    spaces) are replaced first, and then whatever looks like a path.

    Args:
        known: Texts that may be paths, such as the values of a recipe.
        files: Texts that are paths if they have a slash, such as the name of a model that is not on
            the hub.
    """

    def __init__(self, known: Iterable[str], files: Iterable[str] = ()) -> None:
        paths = {text for text in known if _WHOLE.fullmatch(text) or _is_relative(text)}
        paths |= {text for text in files if re.search(r"[/\\]", text) and not _is_elsewhere(text)}
        self._known = sorted(paths, key=len, reverse=True)

    @classmethod
    def of_record(cls, record: Mapping[str, Any], more: Iterable[str] = ()) -> "Folders":
        """A remover that knows the paths in the record of an edit (`sordino.json`)."""
        files = [name for one in _records(record) for name in _model_names(one)]
        sources = [text for one in _records(record) for text in _sources(one.get("expertise", {}))]
        return cls([*texts(record), *sources, *more], files)

    @classmethod
    def of_metadata(cls, *metadata: Mapping[str, Any]) -> "Folders":
        """A remover that knows the paths in the metadata of expertise files."""
        files = [name for one in metadata for name in _model_names({"expertise": one})]
        return cls([text for one in metadata for text in _sources(one)], files)

    def also(self, other: "Folders") -> "Folders":
        """A remover that also knows another one's paths."""
        return Folders((), [*self._known, *other._known])

    def without(self, text: str) -> str:
        """The text with the last parts of paths only, and without servers."""
        if text in self._known:
            return _name(text)
        if _WHOLE.fullmatch(text) and not re.search(r"[,;:] ", text):
            return _name(text)
        text = _ADDRESS.sub(_public_address, self.without_known(text))
        return _INSIDE.sub(lambda found: _name(found[0]), text)

    def without_known(self, text: str) -> str:
        """The text with the last parts of known paths only."""
        for path in self._known:
            text = text.replace(path, _name(path))
        return text

    def cleaned(self, value: Any) -> Any:
        """A value of JSON whose texts are all without folders."""
        if isinstance(value, str):
            return self.without(value)
        if isinstance(value, Mapping):
            return {
                self.without(key) if isinstance(key, str) else key: self.cleaned(one)
                for key, one in value.items()
            }
        if isinstance(value, list | tuple):
            return [self.cleaned(one) for one in value]
        return value

    def recipe(self, text: str) -> str:
        """A recipe without folders and without comments.

        Raises:
            UserError: It is not a recipe.
        """
        try:
            lines = [
                f"{key} = {json.dumps(self.cleaned(value), ensure_ascii=False, allow_nan=False)}"
                for key, value in tomllib.loads(text).items()
            ]
        except (tomllib.TOMLDecodeError, ValueError, TypeError, RecursionError) as error:
            raise UserError(f"The recipe cannot be read: {error}.") from None
        return "\n".join(["# sordino run --recipe THIS_FILE -o OUTPUT", *lines]) + "\n"


def texts(value: Any) -> Iterator[str]:
    """All texts in a value of JSON."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from texts(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from texts(one)


def of_this_machine(subject: Path) -> list[str]:
    """The folders that a pushed text must not name: home, the working folder, the subject's."""
    places = {Path.home(), Path.cwd(), subject.resolve().parent}
    return sorted(f"{place}/" for place in places if len(place.parts) > 1)


def is_path(text: str) -> bool:
    """Whether a text as a whole is a path of at least two parts, from a root or a home folder."""
    return _INSIDE.fullmatch(text) is not None and not text.startswith(".")


def _records(record: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """A record, its parts, and those of earlier edits."""
    yield record
    earlier = record.get("earlier")
    for one in (*record.get("parts", ()), *([earlier] if earlier else ())):
        if isinstance(one, Mapping):
            yield from _records(one)


def _model_names(record: Mapping[str, Any]) -> Iterator[str]:
    """The names of models in a record that are not on the hub: those without a revision."""
    for about, key in ((record.get("model"), "name"), (record.get("expertise"), "model")):
        if isinstance(about, Mapping) and not about.get("revision"):
            yield str(about.get(key, ""))


def _sources(metadata: Mapping[str, Any]) -> list[str]:
    """The model's name, and the files that a concept's source begins with."""
    source = str(metadata.get("concept_source", ""))
    for mark in (" (positive) and ", " (negative)"):
        source = source.replace(mark, ": ")
    parts = source.split(": ")
    return [str(metadata.get("model", "")), *parts, *(part.partition(", ")[0] for part in parts)]


def _is_elsewhere(text: str) -> bool:
    return _ELSEWHERE.match(text) is not None


def _is_relative(text: str) -> bool:
    """Whether a text is a file's relative path: it has a suffix of data, or it exists."""
    if not re.search(r"\w[/\\]", text) or _is_elsewhere(text) or len(text) > 4096:
        return False
    if _DATA.fullmatch(PurePosixPath(text).suffix) and not re.search(r"[,;:] ", text):
        return True
    try:
        return Path(text).exists()
    except (OSError, ValueError):  # no file can have that name
        return False


def _public_address(found: re.Match[str]) -> str:
    """A public address itself; "a server" for any other."""
    try:
        parts = urlsplit(found[0])
        host = parts.hostname or ""
    except ValueError:
        return "a server"
    public = any(host == one or host.endswith(f".{one}") for one in _PUBLIC)
    return found[0] if public and not parts.username and not parts.query else "a server"


def _name(path: str) -> str:
    pure = PureWindowsPath(path) if "\\" in path else PurePosixPath(path)
    return pure.name if pure.name.strip() else path
