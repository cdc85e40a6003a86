"""A sweep's progress, saved to disk at short intervals, so that a killed sweep continues.

Snapshots are taken by time and not by layer, so that they are few for a small model, and a kill
loses little of a large one. Files of hidden states (`states.py`) are part of a snapshot. The
snapshot and these files have checksums: if a byte was changed, the sweep begins anew.
"""

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from pydantic import TypeAdapter
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from sordino.errors import UserError
from sordino.expertise.states import Sums as FileSums
from sordino.expertise.statistic import Part, Statistic, Sum, Tensors
from sordino.files import fingerprint
from sordino.progress import note
from sordino.records import Count, parse

# A snapshot of another layout is ignored.
_LAYOUT = "2"
_Slots = tuple[tuple[Count, Count], ...]
# Slots are ranges of bytes, by first byte and size. All slots of a file have one checksum together,
# because there can be a hundred layers of ten thousand batches.
_FILES = TypeAdapter(list[tuple[_Slots, dict[str, str]]])

EVERY_S = 30.0
"""Seconds between two snapshots, at least."""
SHARE = 20
"""They are that much farther apart than writing one takes: a twentieth of the time at most."""

SWEEP = "sweep"


@dataclass
class Progress:
    """The progress of a sweep.

    Args:
        stage: The current stage.
        batch: The next batch of that stage.
        hidden: Each batch's hidden state (empty if the pass carries none, or they are in files).
        responses: The current stage's responses so far, by site path.
        sums: Attribution's sums so far, by site, statistic and part.
        statistics: The finished sites' statistics.
        phase: The sweep, or a kind of attribution, to which the stage and the batch belong then.
        files: The checksums of states in files.
        needed: The names of those files that are still needed; None for all existing ones.
    """

    stage: int = 0
    batch: int = 0
    hidden: list[torch.Tensor] = field(default_factory=list)
    responses: dict[str, torch.Tensor] = field(default_factory=dict)
    sums: Mapping[Sum, torch.Tensor] = field(default_factory=dict)
    statistics: Tensors = field(default_factory=dict)
    phase: str = SWEEP
    files: FileSums = field(default_factory=dict)
    needed: tuple[str, ...] | None = None


class Snapshots:
    """Saves and restores a sweep's progress.

    Args:
        path: The file; None to save nothing.
        key: A hash of everything that decides the result; a snapshot with another key is ignored.
    """

    def __init__(self, path: Path | None, key: str) -> None:
        self._path = path
        self._key = fingerprint(_LAYOUT, key)
        self._last = time.monotonic()
        self._pause = EVERY_S
        self._files: FileSums = {}

    def restore(self) -> Progress | None:
        """The progress of an interrupted sweep of the same key, or None."""
        if self._path is None or not self._path.exists():
            return None
        try:
            with safe_open(self._path, framework="pt", backend="pread") as file:
                metadata = file.metadata() or {}
                if metadata.get("key") != self._key:
                    return None
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError):
            metadata, tensors = {}, {}
        if metadata.get("sum") != _sum(metadata, tensors) or not self._are_whole(metadata["files"]):
            note(f"{self._path} was changed since it was written: the sweep begins anew")
            return None

        def group(prefix: str) -> dict[str, torch.Tensor]:
            return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

        hidden = group("hidden/")
        sums = {}
        for name, values in group("sums/").items():
            site, statistic, part = name.split("/")
            sums[Sum(site, Statistic(statistic), Part(part))] = values
        statistics: Tensors = {}
        for name, values in group("statistics/").items():
            site, _, statistic = name.partition("/")
            statistics.setdefault(site, {})[Statistic(statistic)] = values
        return Progress(
            int(metadata["stage"]),
            int(metadata["batch"]),
            [hidden[str(index)] for index in range(len(hidden))],
            group("responses/"),
            sums,
            statistics,
            metadata["phase"],
        )

    def due(self) -> bool:
        """Whether the last snapshot was long enough ago."""
        return self._path is not None and time.monotonic() - self._last >= self._pause

    def save(self, now: Progress) -> None:
        """Replace the snapshot on disk by this one."""
        if self._path is None:
            return
        tensors = {f"hidden/{index}": state for index, state in enumerate(now.hidden)}
        tensors |= {f"responses/{site}": values for site, values in now.responses.items()}
        tensors |= {"/".join(("sums", *name)): values for name, values in now.sums.items()}
        for site, found in now.statistics.items():
            tensors |= {f"statistics/{site}/{name}": values for name, values in found.items()}
        tensors = {name: values.cpu().contiguous() for name, values in tensors.items()}
        started = time.monotonic()
        known = self._files | now.files
        kept = {
            file
            for file in {file for file, _ in known}
            if (now.needed is None or file.name in now.needed) and file.exists()
        }
        self._files = {slot: found for slot, found in known.items() if slot[0] in kept}
        metadata = {
            "key": self._key,
            "stage": str(now.stage),
            "batch": str(now.batch),
            "phase": now.phase,
            "files": json.dumps(self._by_slots()),
        }
        metadata["sum"] = _sum(metadata, tensors)
        beside = self._path.with_name(self._path.name + ".new")
        self._path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, beside, metadata)
        beside.replace(self._path)
        self._last = time.monotonic()
        self._pause = max(EVERY_S, SHARE * (self._last - started))

    def _by_slots(self) -> list[tuple[_Slots, dict[str, str]]]:
        """The checksums of state files, by name, grouped by the files' slots."""
        assert self._path is not None
        files: dict[Path, list[tuple[int, int, str]]] = {}
        for (file, start), (size, digest) in self._files.items():
            files.setdefault(file, []).append((start, size, digest))
        found: dict[_Slots, dict[str, str]] = {}
        for file, parts in files.items():
            slots = tuple((start, size) for start, size, _ in sorted(parts))
            name = file.relative_to(self._path.parent).as_posix()
            found.setdefault(slots, {})[name] = fingerprint(*(d for *_, d in sorted(parts)))
        return list(found.items())

    def _are_whole(self, listed: str) -> bool:
        """Whether the state files are unchanged; they are remembered for the next save."""
        assert self._path is not None
        try:
            groups = parse(_FILES, listed, "the snapshot")
        except UserError:
            return False
        for slots, names in groups:
            for name, expected in names.items():
                file = self._path.parent / name
                digests = _digests(file, slots)
                if fingerprint(*digests) != expected:
                    return False
                for (start, size), digest in zip(slots, digests, strict=True):
                    self._files[file, start] = size, digest
        return True


def _digests(file: Path, slots: _Slots) -> list[str]:
    """SHA-256 of each slot of a file; empty if it is not a regular file, or too short."""
    ends = max((start + size for start, size in slots), default=0)
    if file.is_symlink() or not file.is_file() or file.stat().st_size < ends:
        return []
    with file.open("rb") as stream:
        found = []
        for start, size in slots:
            stream.seek(start)
            found.append(hashlib.sha256(stream.read(size)).hexdigest())
    return found


def _sum(metadata: Mapping[str, str], tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over a snapshot."""
    about = sorted((key, value) for key, value in metadata.items() if key != "sum")
    digest = hashlib.sha256(json.dumps(about).encode())
    for name, values in sorted(tensors.items()):
        digest.update(json.dumps([name, str(values.dtype), list(values.shape)]).encode())
        digest.update(values.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
