"""Tensors that wait between stages, one per batch: in memory, or in files if they are large.

Files are written without mapping, so that a full disk is an error, and read through maps, so that
the disk's cache is not copied.
"""

import hashlib
import os
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np
import torch

Sums = dict[tuple[Path, int], tuple[int, str]]
"""By file and first byte: the number of bytes, and their SHA-256."""


class States(Protocol):
    """Tensors by name and batch."""

    def read(self, name: str, batch: int) -> torch.Tensor:
        """The tensor that was last written under this name."""
        ...

    def write(self, name: str, batch: int, state: torch.Tensor) -> None:
        """Keep a tensor, whose first dimensions are the batch's sentences and tokens."""
        ...

    def secure(self) -> list[torch.Tensor]:
        """The tensors for a snapshot, one per batch; none if they are in files."""
        ...

    def sums(self) -> Sums:
        """The checksums of the files."""
        ...

    def keep(self, *names: str) -> None:
        """Remove the tensors of all other names."""
        ...


class InMemory:
    """The last tensor of each batch, under whatever name."""

    def __init__(self) -> None:
        self._last: dict[int, torch.Tensor] = {}

    def read(self, name: str, batch: int) -> torch.Tensor:
        """The batch's last tensor."""
        del name
        return self._last[batch]

    def write(self, name: str, batch: int, state: torch.Tensor) -> None:
        """Replace the batch's tensor."""
        del name
        self._last[batch] = state

    def secure(self) -> list[torch.Tensor]:
        """The tensors, in the batches' order."""
        return [self._last[batch] for batch in sorted(self._last)]

    def sums(self) -> Sums:
        """No files, so none."""
        return {}

    def keep(self, *names: str) -> None:
        """Do nothing: there are no files."""


class InFiles:
    """Each name's tensors in a file of that name.

    Files of an earlier process are reused; its snapshot says which batches are in them.

    Args:
        folder: The folder of the files, created when needed.
        tokens: How many tokens each batch has.
        device: The device for tensors that are read.
    """

    def __init__(self, folder: Path, tokens: Sequence[int], device: torch.device) -> None:
        self._folder, self._device = folder, device
        self._starts = list(accumulate(tokens, initial=0))
        self._forms: dict[int, torch.Tensor] = {}
        self._open: dict[str, BinaryIO] = {}
        self._sums: Sums = {}

    def read(self, name: str, batch: int) -> torch.Tensor:
        """The batch's tensor; changes in place do not reach the file."""
        form = self._forms[batch]
        start = self._starts[batch] * self._per_token(batch)
        raw = np.memmap(self._path(name), np.uint8, "c", start, (form.nbytes,))
        return torch.from_numpy(raw).view(form.dtype).view(form.shape).to(self._device)

    def write(self, name: str, batch: int, state: torch.Tensor) -> None:
        """Write the batch's tensor at its place; a batch's tensors have one shape and dtype."""
        self._forms[batch] = state.to("meta")
        file, start = self._file(name), self._starts[batch] * self._per_token(batch)
        data = state.detach().cpu().contiguous().view(torch.uint8).numpy().data
        file.seek(start)
        file.write(data)
        file.flush()
        self._sums[self._path(name), start] = data.nbytes, hashlib.sha256(data).hexdigest()

    def secure(self) -> list[torch.Tensor]:
        """Flush the files to disk, so that a snapshot can rely on them."""
        for file in self._open.values():
            os.fsync(file.fileno())
        return []

    def sums(self) -> Sums:
        """The checksums of everything that this process has written and kept."""
        return dict(self._sums)

    def keep(self, *names: str) -> None:
        """Remove the files of all other names."""
        for path in self._folder.glob("*"):
            if path.name not in names:
                if path.name in self._open:
                    self._open.pop(path.name).close()
                path.unlink()
        self._sums = {
            (path, start): found
            for (path, start), found in self._sums.items()
            if path.name in names
        }

    def _path(self, name: str) -> Path:
        return self._folder / name

    def _file(self, name: str) -> BinaryIO:
        if name not in self._open:
            self._folder.mkdir(parents=True, exist_ok=True)
            path = self._path(name)
            path.touch()
            self._open[name] = path.open("r+b")
        return self._open[name]

    def _per_token(self, batch: int) -> int:
        return self._forms[batch].nbytes // (self._starts[batch + 1] - self._starts[batch])
