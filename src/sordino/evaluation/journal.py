"""What a long evaluation has done so far, on disk, so that a killed one goes on from there."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

_FORMAT = "sordino-journal-1"


class Journal:
    """Batches of records by step, written down as they come.

    A file of JSON lines: first a header with the key, then a line a batch. A line that was torn by
    a kill, and all that follows it, is cut off; a journal of another key is started anew, because
    its records answer another question.

    Args:
        path: The file, or None to keep no record on disk.
        key: A hash of everything that decides the result.

    Attributes:
        steps: The batches that are done, by step.
    """

    def __init__(self, path: Path | None, key: str) -> None:
        self._path = path
        self.steps: dict[str, list[list[Any]]] = {}
        self._stream: TextIO | None = None
        if path is not None:
            self._stream = self._open(path, key)

    def batches(self, step: str) -> list[list[Any]]:
        """The batches of a step that are done, in order."""
        return self.steps.get(step, [])

    def take(self, steps: Mapping[str, list[list[Any]]]) -> None:
        """Have these steps, which another process has written down."""
        self.steps = dict(steps)

    def add(self, step: str, batch: list[Any]) -> None:
        """Write down a finished batch of a step; its records are JSON values."""
        if self._stream is not None:
            self._stream.write(json.dumps({"step": step, "batch": batch}) + "\n")
            self._stream.flush()
        self.steps.setdefault(step, []).append(batch)

    def close(self, *, remove: bool) -> None:
        """Let go of the file, and remove it once the result is where it belongs."""
        if self._stream is not None and self._path is not None:
            self._stream.close()
            if remove:
                self._path.unlink(missing_ok=True)

    def _open(self, path: Path, key: str) -> TextIO:
        path.parent.mkdir(parents=True, exist_ok=True)
        good = self._read(path, key) if path.exists() else 0
        if good:
            os.truncate(path, good)
            return path.open("a", encoding="utf-8")
        stream = path.open("w", encoding="utf-8")
        stream.write(json.dumps({"format": _FORMAT, "key": key}) + "\n")
        stream.flush()
        return stream

    def _read(self, path: Path, key: str) -> int:
        """Take in the lines that are whole; their length in bytes, 0 for another key's journal."""
        good = 0
        with path.open("rb") as lines:
            for number, line in enumerate(lines):
                entry = _parse(line)
                if number == 0:
                    if entry != {"format": _FORMAT, "key": key}:
                        return 0
                elif entry is None or entry.keys() != {"step", "batch"}:
                    break
                else:
                    self.steps.setdefault(entry["step"], []).append(entry["batch"])
                good += len(line)
        return good


def _parse(line: bytes) -> dict[str, Any] | None:
    if not line.endswith(b"\n"):
        return None
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) else None
