"""The journal of a long computation, on disk, so that a killed one continues from there."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from sordino.errors import UserError
from sordino.files import is_regular, parse_json
from sordino.progress import note

_FORMAT = "sordino-journal-2"


class Journal:
    """Batches of records by step, written to disk as they come.

    A file of JSON lines: first a header with the key, then one line per batch. Each line ends in a
    checksum of itself and of the line before it. A last line that was torn by a kill is cut off. If
    any other line has changed, it and all lines after it are dropped with a note, and their batches
    are done again. A journal with another key or an older format is started again.

    Args:
        path: The file, or None to keep no record on disk.
        key: A hash of everything that decides the result.

    Attributes:
        steps: The batches that are done, by step.
    """

    def __init__(self, path: Path | None, key: str) -> None:
        self._path = path
        self._check = ""
        self.steps: dict[str, list[list[Any]]] = {}
        self._stream: TextIO | None = None
        if path is not None:
            self._stream = self._open(path, key)

    def batches(self, step: str) -> list[list[Any]]:
        """The batches of a step that are done, in order."""
        return self.steps.get(step, [])

    def take(self, steps: Mapping[str, list[list[Any]]]) -> None:
        """Take over the steps that another process has read."""
        self.steps = dict(steps)

    def add(self, step: str, batch: list[Any]) -> None:
        """Record a finished batch of a step; its records are JSON values."""
        if self._stream is not None:
            self._write(self._stream, {"step": step, "batch": batch})
        self.steps.setdefault(step, []).append(batch)

    def close(self) -> None:
        """Close the file."""
        if self._stream is not None:
            self._stream.close()

    def _write(self, stream: TextIO, entry: dict[str, Any]) -> None:
        text = json.dumps(entry)
        self._check = _check(self._check, text)
        stream.write(f"{text}\t{self._check}\n")
        stream.flush()

    def _open(self, path: Path, key: str) -> TextIO:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not is_regular(path):
            raise UserError(f"{path} is not a file, but progress is kept there: remove it.")
        good = self._read(path, key) if path.exists() else 0
        if good:
            os.truncate(path, good)
            return path.open("a", encoding="utf-8")
        stream = path.open("w", encoding="utf-8")
        self._write(stream, {"format": _FORMAT, "key": key})
        return stream

    def _read(self, path: Path, key: str) -> int:
        """Read the intact lines; their length in bytes, 0 for a journal of another key."""
        good = 0
        with path.open("rb") as lines:
            for number, line in enumerate(lines):
                entry, check = _parse(line, self._check)
                if number == 0:
                    if entry != {"format": _FORMAT, "key": key}:
                        return 0
                elif entry is None:
                    if next(lines, None) is not None:
                        note(f"{path} was changed since it was written: the rest is done again")
                    break
                else:
                    self.steps.setdefault(entry["step"], []).append(entry["batch"])
                self._check = check
                good += len(line)
        return good


def _check(before: str, text: str) -> str:
    return hashlib.sha256(f"{before}{text}".encode()).hexdigest()[:32]


def _parse(line: bytes, before: str) -> tuple[dict[str, Any] | None, str]:
    """A line's entry, None if it is torn or changed, and its checksum."""
    try:
        text, _, check = line.decode("utf-8").partition("\t")
        if check != _check(before, text) + "\n":
            return None, ""
        entry = parse_json(text, "a line")
    except (UnicodeDecodeError, UserError):
        return None, ""
    return entry, check.rstrip("\n")
