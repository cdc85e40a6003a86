"""The memory that this process may still take."""

import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import torch

_GROUPS = Path("/sys/fs/cgroup")
_GIB = 1 << 30
_PART_OF_GPU, _MOST_PARTS = 8 * _GIB, 8


def for_device(count: int, device: torch.device) -> int:
    """The batch size for a device, given one that suits the processor.

    A GPU takes one such batch for each 8 GiB of its memory, at most eight. That depends on the kind
    of GPU and not on free memory, so that the same command rounds in the same way again.

    Args:
        count: How many tokens or logits suit the processor.
        device: The device.

    Example:
        >>> for_device(2048, torch.device("cpu"))
        2048
    """
    if device.type != "cuda":
        return count
    total = torch.cuda.get_device_properties(device).total_memory
    # An "80 GB" card shows a little less, because the driver takes some.
    return count * min(max(round(total / _PART_OF_GPU), 1), _MOST_PARTS)


def available(device: torch.device) -> int:
    """Bytes that this process can still take on a device.

    On the processor it is the least of the machine's free memory, what the control groups of this
    process leave, and what its limits on address space and data (`ulimit -v`, `-d`) leave.
    """
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return min(psutil.virtual_memory().available, *_read_groups(), *_read_limits())


def _read_limits() -> Iterator[int]:
    if sys.platform == "win32":
        return
    import resource

    taken = psutil.Process().memory_info()
    # Data means private, writable memory; some systems report only the whole address space.
    for limit, used in (
        (resource.RLIMIT_AS, taken.vms),
        (resource.RLIMIT_DATA, getattr(taken, "data", taken.vms)),
    ):
        soft, _ = resource.getrlimit(limit)
        if soft != resource.RLIM_INFINITY:
            yield max(soft - used, 0)


def _read_groups(root: Path = _GROUPS, own: Path = Path("/proc/self/cgroup")) -> Iterator[int]:
    """The bytes that each control group above this process leaves; cached files count as free."""
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
        # In a container the path may be the host's, whose lower folders are not visible.
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
