"""How much memory this process may still take."""

import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import torch

_GROUPS = Path("/sys/fs/cgroup")
_GIB = 1 << 30
_PART_OF_GPU, _MOST_PARTS = 8 * _GIB, 8


def for_device(count: int, device: torch.device) -> int:
    """How much to have in memory at once on a device, from what suits the processor.

    A GPU is idle on a processor's batches. It takes as many times more as its memory has pieces of
    8 GiB, at most eight times. That depends on the kind of GPU and not on what is free, so that the
    same command rounds in the same way again.

    Args:
        count: How many tokens or logits suit the processor.
        device: Where they will be.

    Example:
        >>> for_device(2048, torch.device("cpu"))
        2048
    """
    if device.type != "cuda":
        return count
    total = torch.cuda.get_device_properties(device).total_memory
    # An "80 GB" card has a little less; the driver takes a part.
    return count * min(max(round(total / _PART_OF_GPU), 1), _MOST_PARTS)


def available(device: torch.device) -> int:
    """Bytes that can still be taken on a device before something is refused or killed.

    For the processor the least of what the machine has free, what the control groups of this
    process leave it, and what its limits on address space and data (`ulimit -v`, `-d`) leave it.
    """
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return min(psutil.virtual_memory().available, *_read_groups(), *_read_limits())


def _read_limits() -> Iterator[int]:
    if sys.platform == "win32":
        return
    import resource

    taken = psutil.Process().memory_info()
    # Data are what is private and writable; of some systems only the whole address space is known.
    for limit, used in (
        (resource.RLIMIT_AS, taken.vms),
        (resource.RLIMIT_DATA, getattr(taken, "data", taken.vms)),
    ):
        soft, _ = resource.getrlimit(limit)
        if soft != resource.RLIM_INFINITY:
            yield max(soft - used, 0)


def _read_groups(root: Path = _GROUPS, own: Path = Path("/proc/self/cgroup")) -> Iterator[int]:
    """What each control group above this process leaves; files that it has cached can go."""
    if not own.exists():
        return
    for line in own.read_text(encoding="utf-8").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:  # version 2
            base, limit, usage, cached = root, "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            base, limit = root / "memory", "memory.limit_in_bytes"
            usage, cached = "memory.usage_in_bytes", "total_inactive_file"
        else:
            continue
        # In a container the path may be the host's, of which only the upper end is there.
        group = base / path.lstrip("/")
        for folder in (group, *group.parents):
            left = _read_group(folder, limit, usage, cached)
            if left is not None:
                yield left
            if folder == base:
                break


def _read_group(folder: Path, limit: str, usage: str, cached: str) -> int | None:
    try:
        most = (folder / limit).read_text(encoding="utf-8").strip()
        if most == "max":
            return None
        statistics = (folder / "memory.stat").read_text(encoding="utf-8").split()
        counts = dict(zip(statistics[::2], statistics[1::2], strict=True))
        used = int((folder / usage).read_text(encoding="utf-8"))
        return max(int(most) - used + int(counts.get(cached, 0)), 0)
    except (OSError, ValueError):
        return None
