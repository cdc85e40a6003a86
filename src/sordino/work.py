"""A folder that keeps the finished steps of a long job, with checksums.

After each step, the SHA-256 of every file that it wrote is noted in `steps.json`, which has a
checksum of its own. A command that resumes the job repeats a step if one of its files was changed,
cut off, removed, added or replaced by a link, and all steps that were made of it.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from pydantic import TypeAdapter

from sordino.errors import UserError
from sordino.files import fingerprint, sha256_of, write_json
from sordino.progress import note
from sordino.records import Record, parse, read_bytes

_FILE = "steps.json"

_Sums = dict[str, str]


class _Notes(Record):
    key: str
    steps: dict[str, _Sums]
    sum: str


_NOTES = TypeAdapter(_Notes)


class KeptFiles:
    """The files of steps that do not depend on each other.

    Args:
        folder: Where they are.
        key: A hash of everything that decides the results.
        known: The checksums by step, in the order of the steps.
    """

    def __init__(self, folder: Path, key: str, known: dict[str, _Sums] | None = None) -> None:
        self.folder, self._key, self._known = folder, key, known or {}

    @classmethod
    def open(cls, folder: Path, key: str) -> Self | None:
        """The work of this key that an earlier call began; None if there is none."""
        try:
            notes = parse(_NOTES, read_bytes(folder / _FILE, "list of steps"), _FILE)
        except UserError:
            return None
        if notes.key != key or notes.sum != _sum(key, notes.steps):
            return None
        return cls(folder, key, notes.steps)

    def holds(self, step: str, *paths: Path, apart: str = "") -> bool:
        """Whether a step is done and its files are unchanged; if not, its files are removed.

        Args:
            step: Its name.
            paths: Its files and folders, whether they exist or not.
            apart: The name of a file in those folders that does not belong to the step.
        """
        if step in self._known:
            if self._known[step] == self._sums(paths, apart):
                return True
            self._forget(step)
            self.write()
        if any(path.exists() or path.is_symlink() for path in paths):
            note(f"{paths[0].name} was changed since it was written, and is made again")
        for path in paths:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        return False

    def done(self, step: str, *paths: Path, apart: str = "") -> None:
        """Note that a step is done, with the checksums of its files; arguments as for `holds`."""
        self._known[step] = self._sums(paths, apart)
        self.write()

    def write(self) -> None:
        """Write `steps.json`."""
        notes = _Notes(key=self._key, steps=self._known, sum=_sum(self._key, self._known))
        write_json(self.folder / _FILE, notes.model_dump(mode="json"))

    def _forget(self, step: str) -> None:
        """Forget a step and all that were made of it."""
        del self._known[step]

    def _sums(self, paths: tuple[Path, ...], apart: str) -> _Sums:
        return {
            file.relative_to(self.folder).as_posix(): (
                "a link" if file.is_symlink() else sha256_of(file) if file.is_file() else "no file"
            )
            for path in paths
            for file in _files(path)
            if file.relative_to(path).as_posix() != apart
        }


class WorkFolder(KeptFiles):
    """The files of a job whose steps each build on the ones before."""

    def _forget(self, step: str) -> None:
        order = list(self._known)
        self._known = {name: self._known[name] for name in order[: order.index(step)]}


def _files(path: Path) -> Iterator[Path]:
    """The file itself, or all files below a folder."""
    if path.is_symlink() or path.is_file():
        yield path
    elif path.is_dir():
        yield from (
            file for file in sorted(path.rglob("*")) if file.is_symlink() or not file.is_dir()
        )


def _sum(key: str, steps: dict[str, _Sums]) -> str:
    return fingerprint(key, json.dumps(steps))
