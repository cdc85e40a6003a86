"""What a sweep has so far, on disk at short intervals, so that a killed one goes on.

Snapshots go by time and not by layer: a small model pays for few of them and a large one loses
little. Where hidden states wait in files (`states.py`), these are part of what is kept.
"""

import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

_EVERY_S = 30.0
_SHARE = 20  # writing them takes at most one part in so many of the time

SWEEP = "sweep"


@dataclass
class Progress:
    """Where a sweep stands.

    Args:
        stage: The stage that is running.
        batch: The next batch of that stage.
        hidden: Each batch's hidden state (empty where the pass carries none, or files do).
        responses: The running stage's responses so far, by site path.
        statistics: The finished sites' statistics, by "site.statistic".
        phase: What runs: the sweep, or a way of attribution, to which the stage and the batch
            belong then, and of which `responses` are the sums so far.
    """

    stage: int = 0
    batch: int = 0
    hidden: list[torch.Tensor] = field(default_factory=list)
    responses: dict[str, torch.Tensor] = field(default_factory=dict)
    statistics: dict[str, torch.Tensor] = field(default_factory=dict)
    phase: str = SWEEP


class Snapshots:
    """Saves and restores a sweep's progress.

    Args:
        path: The file, or None to keep nothing.
        key: What determines the result; a snapshot of another key is of no use.
    """

    def __init__(self, path: Path | None, key: str) -> None:
        self._path = path
        self._key = key
        self._last = time.monotonic()
        self._pause = _EVERY_S

    def restore(self) -> Progress | None:
        """The progress of an interrupted sweep of the same key, or None."""
        if self._path is None or not self._path.exists():
            return None
        try:
            with safe_open(self._path, framework="pt", backend="pread") as file:
                metadata = file.metadata() or {}
                if metadata.get("key") != self._key or "phase" not in metadata:
                    return None
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError):
            return None  # damaged, so there is nothing to go on from

        def group(prefix: str) -> dict[str, torch.Tensor]:
            return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

        hidden = group("hidden/")
        return Progress(
            int(metadata["stage"]),
            int(metadata["batch"]),
            [hidden[str(index)] for index in range(len(hidden))],
            group("responses/"),
            group("statistics/"),
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
        tensors |= {f"statistics/{name}": values for name, values in now.statistics.items()}
        metadata = {
            "key": self._key,
            "stage": str(now.stage),
            "batch": str(now.batch),
            "phase": now.phase,
        }
        started = time.monotonic()
        beside = self._path.with_name(self._path.name + ".new")
        self._path.parent.mkdir(parents=True, exist_ok=True)
        save_file({k: v.cpu().contiguous() for k, v in tensors.items()}, beside, metadata)
        beside.replace(self._path)
        self._last = time.monotonic()
        self._pause = max(_EVERY_S, _SHARE * (self._last - started))
