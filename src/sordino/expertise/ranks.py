"""Several processes that sweep together, as torchrun and accelerate start them.

Batches are formed once, by every rank in the same way, and dealt out whole. After each stage an
all-to-all gives each rank the responses of all sentences for its share of the neurons, in the order
of a single process; so each number comes out of the same computation as there.
"""

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import timedelta

import torch
import torch.distributed as dist

from sordino.errors import UserError

_PATIENCE = timedelta(minutes=30)


class Ranks:
    """A process among its like; a process by itself is rank 0 of 1.

    Attributes:
        rank: This process's number.
        size: How many there are.
    """

    def __init__(self) -> None:
        connected = dist.is_available() and dist.is_initialized()
        self.rank: int = dist.get_rank() if connected else 0
        self.size: int = dist.get_world_size() if connected else 1

    def mine(self, count: int) -> range:
        """Which of `count` things, numbered in their order, this rank does: every size-th."""
        return range(self.rank, count, self.size)

    def share(self, neurons: int, rank: int | None = None) -> slice:
        """Which of a site's neurons a rank (this one, if none is named) looks at."""
        number = self.rank if rank is None else rank
        return slice(number * neurons // self.size, (number + 1) * neurons // self.size)

    def exchange(self, responses: torch.Tensor, rows: Sequence[Sequence[int]]) -> torch.Tensor:
        """From all neurons of this rank's rows to this rank's neurons of all rows.

        Args:
            responses: float32 [this rank's rows, neurons].
            rows: For each rank the places of its rows among all rows.

        Returns:
            float32 [all rows, this rank's neurons], each row at its place.
        """
        if self.size == 1:
            return responses
        neurons = responses.shape[1]
        shares = [self.share(neurons, rank) for rank in range(self.size)]
        widths = [share.stop - share.start for share in shares]
        sent = torch.cat([responses[:, share].reshape(-1) for share in shares])
        counts = [len(places) for places in rows]
        width = widths[self.rank]
        received = sent.new_empty(sum(counts) * width)
        dist.all_to_all_single(
            received,
            sent,
            [count * width for count in counts],
            [counts[self.rank] * width_there for width_there in widths],
        )
        order = torch.tensor([place for places in rows for place in places], device=sent.device)
        whole = received.new_empty(sum(counts), width)
        whole[order] = received.view(-1, width)
        return whole

    def each(self, values: Mapping[str, torch.Tensor] | None) -> list[Mapping[str, torch.Tensor]]:
        """What each rank has to give, in the order of the ranks; None of one that has nothing.

        A single process would come to these values in the same order.
        """
        if self.size == 1:
            return [] if values is None else [values]
        given: list[Mapping[str, torch.Tensor] | None] = [None] * self.size
        dist.all_gather_object(given, values)
        return [one for one in given if one is not None]

    def joined(self, statistics: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Each statistic of all neurons, from the shares [neurons of a rank] of all ranks."""
        parts = self.each(statistics)
        return {name: torch.cat([part[name] for part in parts]) for name in statistics}

    def agreed(self, value: int) -> int:
        """The least of what the ranks have."""
        if self.size == 1:
            return value
        where = "cuda" if dist.get_backend() == "nccl" else "cpu"
        least = torch.tensor(value, device=where)
        dist.all_reduce(least, dist.ReduceOp.MIN)
        return int(least)

    def wait(self) -> None:
        """Until all ranks are here."""
        if self.size > 1:
            dist.barrier()


def connect(device: str) -> Ranks:
    """Join the processes that torchrun or accelerate started; a process by itself is alone.

    Args:
        device: Where models run: on GPUs the ranks speak by nccl, else by gloo.

    Raises:
        UserError: The others cannot be reached.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        on_gpus = device.startswith("cuda")
        if on_gpus:
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        try:
            dist.init_process_group("nccl" if on_gpus else "gloo", timeout=_PATIENCE)
        except (RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"The other processes of this run could not be reached ({reason}): check the "
                "address that torchrun was given."
            ) from None
    return Ranks()


def part() -> None:
    """Leave the other processes, if there are any."""
    if dist.is_available() and dist.is_initialized():
        with suppress(RuntimeError):
            dist.destroy_process_group()
