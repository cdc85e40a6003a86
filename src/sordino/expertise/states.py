"""What waits between stages, one tensor a batch: in memory, or in files where it is much.

Files are written and not mapped, so that a full disk is an error; they are read as maps, so that
nothing is copied that the disk's cache holds already.
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
"""By file and first byte: how many bytes lie there, and their SHA-256."""


class States(Protocol):
    """Tensors by name and batch."""

    def read(self, name: str, batch: int) -> torch.Tensor:
        """What was written last under this name."""
        ...

    def write(self, name: str, batch: int, state: torch.Tensor) -> None:
        """Keep a tensor, whose first dimensions are the batch's sentences and tokens."""
        ...

    def secure(self) -> list[torch.Tensor]:
        """What a snapshot has to hold of them: one tensor a batch, or nothing if files do."""
        ...

    def sums(self) -> Sums:
        """The sums of what lies in files."""
        ...

    def keep(self, *names: str) -> None:
        """Forget all others."""
        ...


class InMemory:
    """The last tensor of each batch; those before it are forgotten at once."""

    def __init__(self) -> None:
        self._last: dict[int, torch.Tensor] = {}

    def read(self, name: str, batch: int) -> torch.Tensor:
        """The batch's last tensor."""
        del name
        return self._last[batch]

    def write(self, name: str, batch: int, state: torch.Tensor) -> None:
        """Keep this tensor in place of the batch's last one."""
        del name
        self._last[batch] = state

    def secure(self) -> list[torch.Tensor]:
        """The tensors, in the batches' order."""
        return [self._last[batch] for batch in sorted(self._last)]

    def sums(self) -> Sums:
        """Nothing lies in files."""
        return {}

    def keep(self, *names: str) -> None:
        """Do nothing: no files are kept."""


class InFiles:
    """Each name's tensors in a file of that name.

    A file that an earlier process left is gone on with: whoever reads from it has to know from a
    snapshot which batches are in it.

    Args:
        folder: Where the files are; made when it is needed.
        tokens: How many tokens each batch has.
        device: Where tensors are wanted.
    """

    def __init__(self, folder: Path, tokens: Sequence[int], device: torch.device) -> None:
        self._folder, self._device = folder, device
        self._starts = list(accumulate(tokens, initial=0))
        self._forms: dict[int, torch.Tensor] = {}
        self._open: dict[str, BinaryIO] = {}
        self._sums: Sums = {}

    def read(self, name: str, batch: int) -> torch.Tensor:
        """The batch's tensor; what is done to it in place does not reach the file."""
        form = self._forms[batch]
        start = self._starts[batch] * self._per_token(batch)
        raw = np.memmap(self._path(name), np.uint8, "c", start, (form.nbytes,))
        return torch.from_numpy(raw).view(form.dtype).view(form.shape).to(self._device)

    def write(self, name: str, batch: int, state: torch.Tensor) -> None:
        """Put the batch's tensor into its place in the file; all names have tensors of one form."""
        self._forms[batch] = state.to("meta")
        file, start = self._file(name), self._starts[batch] * self._per_token(batch)
        data = state.detach().cpu().contiguous().view(torch.uint8).numpy().data
        file.seek(start)
        file.write(data)
        file.flush()
        self._sums[self._path(name), start] = data.nbytes, hashlib.sha256(data).hexdigest()

    def secure(self) -> list[torch.Tensor]:
        """Bring what was written to the disk, so that a snapshot can rely on it."""
        for file in self._open.values():
            os.fsync(file.fileno())
        return []

    def sums(self) -> Sums:
        """Those of everything that this process has written."""
        return dict(self._sums)

    def keep(self, *names: str) -> None:
        """Remove the files of all other names."""
        for path in self._folder.glob("*"):
            if path.name not in names:
                if path.name in self._open:
                    self._open.pop(path.name).close()
                path.unlink()

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
