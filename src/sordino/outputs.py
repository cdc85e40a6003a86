"""Decide where outputs may be written, in one place for all commands and before any work.

An output never is, contains or lies in an input. `force` replaces only what Sordino itself wrote of
the same kind. A file's kind is recognised by marks near its beginning; a folder lists its own files
in its record.
"""

import mmap
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from sordino.errors import UserError
from sordino.files import (
    has_suffix,
    has_working_folder,
    is_regular,
    list_some,
    printable,
    read_json,
    real_path,
    refuse_unwritable,
    user_path,
)

RECORD = "sordino.json"
"""The record of an edit, in the folder that was written."""

_PROVENANCE = "sordino-provenance-"
_NEAR = 1 << 20
_SHOWN = 5


class Kind(Protocol):
    """A kind of output."""

    @property
    def name(self) -> str:
        """Its name in a message, with its article."""

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder and not a file."""

    def foreign(self, there: Path) -> Sequence[str]:
        """The names of files at a path that Sordino did not write as this kind."""


@dataclass(frozen=True)
class FileKind:
    """A kind of file that Sordino writes.

    Args:
        name: Its name in a message, with its article.
        marks: Bytes that every file of this kind has near its beginning.
        searched: The number of bytes in which they are searched.
    """

    name: str
    marks: tuple[bytes, ...]
    searched: int = _NEAR

    is_folder = False

    def holds(self, file: Path) -> bool:
        """Whether a file is of this kind."""
        if not is_regular(file) or not file.stat().st_size:
            return False
        try:
            with (
                file.open("rb") as stream,
                mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content,
            ):
                return all(content.find(mark, 0, self.searched) >= 0 for mark in self.marks)
        except OSError:  # it cannot be read, so its origin is unknown
            return False

    def foreign(self, there: Path) -> Sequence[str]:
        """The path's name, unless the file there is of this kind."""
        return [] if self.holds(there) else [there.name]


EXPERTISE = FileKind("an expertise file", (b"sordino-expertise-",))
DAMPENING = FileKind("a dampening file", (b"sordino-dampening-",))
EVALUATION = FileKind("a result of sordino evaluate", (b'"format": "sordino-evaluation-',))
SAMPLES = FileKind("samples of an evaluation", (b'{"measure": "',))
JUDGED = FileKind("own samples with a judge's labels", (b'{"judged_by": "',))
PAGE = FileKind("a page", (b'<meta name="generator" content="sordino ',))
MARKDOWN_PAGE = FileKind("a study's page", (b"\n## What this cannot promise\n",), 16 << 20)
STUDY = FileKind("a study's record", (b'{\n  "study": "', b'"groups": ['))
TUNED = FileKind("what sordino tune found", (b'"search_prompts": ', b'"report_prompts": '))
REPLAY = FileKind("what sordino replay found", (b'"format": "sordino-replay-',))
REPRODUCTION = FileKind("a reproduction", (b'"format": "sordino-reproduction-',))
RECIPE = FileKind("a recipe", (b"# sordino run --recipe ",))
CARD = FileKind("a model card", (b"Sordino",))
# Its record comes after its vocabulary.
GGUF_MODEL = FileKind("a GGUF file that Sordino wrote", (b"sordino.provenance",), 256 << 20)
_ARTEFACTS = (
    *(EXPERTISE, DAMPENING, EVALUATION, SAMPLES, PAGE, MARKDOWN_PAGE),
    *(JUDGED, STUDY, TUNED, REPLAY, REPRODUCTION, RECIPE),
)


class _ModelFolder:
    """A folder that `bake` or `run` wrote."""

    name = "a model's folder in which Sordino listed what it wrote"
    is_folder = True

    def foreign(self, there: Path) -> Sequence[str]:
        """The files that are neither in the folder's record nor results of Sordino."""
        listed = _read_listed(there)
        if listed is None:
            return [there.name]
        return [
            name for name, file in _files(there) if name not in listed and not is_artefact(file)
        ]


class _Extras:
    """The folder beside a GGUF file that `run` wrote."""

    name = "a folder of sordino run's"
    is_folder = True

    def foreign(self, there: Path) -> Sequence[str]:
        """The files that are not results of Sordino."""
        return [
            name
            for name, file in _files(there)
            if not (is_artefact(file) or (name == "README.md" and CARD.holds(file)))
        ]


MODEL = _ModelFolder()
MODEL_EXTRAS = _Extras()


def model_kind(output: str | Path) -> Kind:
    """The kind of a model's output: a GGUF file if its name ends in .gguf, else a folder."""
    return GGUF_MODEL if has_suffix(output, ".gguf") else MODEL


def claim_output(
    output: str | Path,
    kind: Kind,
    *,
    force: bool = False,
    inputs: Iterable[object] = (),
) -> Path:
    """Decide whether an output may be written, before any work.

    Args:
        output: As the user typed it.
        kind: What will be written.
        force: Replace what Sordino wrote of this kind.
        inputs: What the command reads: files and folders; other names (of the hub or the kit, None)
            are ignored.

    Returns:
        The path to write to: the output, or the target if it is a link.

    Raises:
        UserError: Something there must not be replaced, the output overlaps an input, or nothing
            can be written there.
    """
    if isinstance(output, str) and output.endswith(("/", os.sep)) and not kind.is_folder:
        raise UserError(
            f"`output={printable(output)}` is the name of a folder, and {kind.name} is a file: add "
            "the file's name."
        )
    typed = user_path(output)
    target = real_path(typed)
    if target.name in ("", ".."):  # of the working folder and others, beside which it is built
        target = target.resolve()
    for source in _existing(inputs):
        _refuse_overlap(typed, target, kind, source)
    refuse_unwritable(target)
    if not os.path.lexists(target):
        return target
    _refuse_immovable(typed, target)
    if not force:
        raise UserError(
            f"{typed} exists already: choose another `output`, or `force=True` to replace it."
        )
    if target.is_dir() != kind.is_folder:
        what = "a folder" if target.is_dir() else "a file"
        raise UserError(f"{typed} is {what}, and not {kind.name}: choose another `output`.")
    if kind.is_folder and not any(target.iterdir()):
        return target
    if foreign := kind.foreign(target):
        if foreign == [target.name]:
            raise UserError(
                f"{typed} exists and is not {kind.name}, so `force=True` does not replace it: "
                "choose another `output`."
            )
        raise UserError(
            f"{typed} holds files that Sordino did not write ({list_some(foreign, _SHOWN)}), so "
            "`force=True` does not replace it: move them elsewhere, or choose another `output`."
        )
    return target


def is_artefact(file: Path) -> bool:
    """Whether a file is a result that Sordino wrote, of any kind."""
    return any(kind.holds(file) for kind in _ARTEFACTS)


def listing(folder: Path) -> list[str]:
    """The files of a folder that was just written, for its record, as sorted paths with slashes."""
    return sorted({RECORD, "README.md", *(name for name, _ in _files(folder))})


def named_files(*given: object) -> Iterator[Path]:
    """The files among the values of options, such as "prompts.txt"; not folders and other words."""
    for value in given:
        if isinstance(value, str | Path):
            if (path := _path(value)) and is_regular(path):
                yield path
        elif isinstance(value, Iterable):
            yield from named_files(*value)


def _existing(inputs: Iterable[object]) -> Iterator[Path]:
    for given in inputs:
        if isinstance(given, str | Path) and (path := _path(given)) and path.exists():
            yield path


def _path(value: str | Path) -> Path | None:
    try:
        return user_path(value)
    except UserError:  # no file can have that name, which reading the input reports
        return None


def _refuse_immovable(typed: Path, target: Path) -> None:
    """Raise `UserError` for what cannot be moved away when the new output takes its place."""
    if os.path.ismount(target):  # also a file, as containers mount them
        place = "a name inside it" if target.is_dir() else "another `output`"
        raise UserError(
            f"{typed} is where a disk or a volume is mounted, which cannot be replaced: choose "
            f"{place}."
        )
    if has_working_folder() and Path.cwd().is_relative_to(target.resolve()):
        raise UserError(
            f"{typed} is the working folder or holds it, so it cannot be replaced: choose another "
            "`output`, or run the command in another folder."
        )


def _refuse_overlap(typed: Path, target: Path, kind: Kind, source: Path) -> None:
    there, given = target.resolve(), source.resolve()
    if there == given or (target.exists() and target.samefile(source)):
        raise UserError(f"`output={typed}` is an input of this command: choose another `output`.")
    # What was measured of a baked model may lie in its folder.
    within = given in there.parents and (kind.is_folder or _record(given) is None)
    if within or there in given.parents:
        raise UserError(
            f"`output={typed}` and the input {source} overlap: choose another `output`."
        )


def _record(folder: Path) -> dict[str, Any] | None:
    """The record of the edit that wrote a folder; None where there is none."""
    if not is_regular(folder / RECORD):
        return None
    try:
        record = read_json(folder / RECORD)
    except UserError:
        return None
    known = isinstance(record, dict) and str(record.get("format")).startswith(_PROVENANCE)
    return record if known else None


def _read_listed(folder: Path) -> set[str] | None:
    """The files that a folder's record lists; None where it has no record that lists them."""
    files = (_record(folder) or {}).get("files")
    return {str(name) for name in files} if isinstance(files, list) else None


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    """All files below a folder, with their paths with slashes; links are not followed."""
    for place, folders, files in os.walk(folder):
        links = [name for name in folders if (Path(place) / name).is_symlink()]
        for name in sorted([*files, *links]):
            path = Path(place) / name
            yield path.relative_to(folder).as_posix(), path
