"""Several processes that work together, as torchrun and accelerate start them.

Every rank forms the same batches and takes every size-th. In a sweep, an all-to-all after each
stage gives each rank the responses of all sentences for its share of the neurons; in an evaluation
all ranks get all records. Both are in the order of a single process, so that every number is the
same as there.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from datetime import timedelta
from itertools import accumulate
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from sordino import progress
from sordino.errors import UserError
from sordino.files import counted
from sordino.models.open import ALL_GPUS, choose_device

T = TypeVar("T")
K = TypeVar("K")

_PATIENCE = timedelta(minutes=30)


class Ranks:
    """A process among the processes of a run; a single process is rank 0 of 1.

    Attributes:
        rank: This process's number.
        size: How many there are.
    """

    def __init__(self) -> None:
        connected = dist.is_available() and dist.is_initialized()
        self.rank: int = dist.get_rank() if connected else 0
        self.size: int = dist.get_world_size() if connected else 1

    @property
    def first(self) -> bool:
        """Whether this rank prints and writes for all."""
        return self.rank == 0

    @property
    def name(self) -> str:
        """A name for this rank's own files."""
        return f"rank-{self.rank}-of-{self.size}"

    def deal(self, things: Sequence[T]) -> Sequence[T]:
        """The things of this rank, every size-th, from those that all ranks have in one order.

        Raises:
            UserError: There are fewer things than ranks.
        """
        if len(things) < self.size:
            raise UserError(
                f"{counted(len(things), 'batch is', 'batches are')} too few for {self.size} "
                "processes: start fewer, or give a smaller `batch_tokens`."
            )
        return things[self.rank :: self.size]

    def rounds(self, count: int) -> int:
        """How many rounds the ranks need for `count` things, if each takes one per round."""
        return -(-count // self.size)

    def rows(self, sizes: Sequence[int]) -> list[list[int]]:
        """For each rank the rows of its batches, given the number of rows of each batch."""
        starts = [0, *accumulate(sizes)]
        return [
            [
                row
                for batch in range(rank, len(sizes), self.size)
                for row in range(starts[batch], starts[batch + 1])
            ]
            for rank in range(self.size)
        ]

    def share(self, neurons: int, rank: int | None = None) -> slice:
        """A rank's share of a site's neurons; this rank's by default."""
        number = self.rank if rank is None else rank
        return slice(number * neurons // self.size, (number + 1) * neurons // self.size)

    def exchange(self, responses: torch.Tensor, rows: Sequence[Sequence[int]]) -> torch.Tensor:
        """Exchange all neurons of this rank's rows for this rank's neurons of all rows.

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

    def each(self, values: Mapping[K, torch.Tensor]) -> list[Mapping[K, torch.Tensor]]:
        """Each rank's values, in the order of the ranks."""
        return [values] if self.size == 1 else self._gather(values)

    def join(self, statistics: Mapping[K, torch.Tensor]) -> dict[K, torch.Tensor]:
        """Each statistic of all neurons, from each rank's share [its neurons]."""
        parts = self.each(statistics)
        return {name: torch.cat([part[name] for part in parts]) for name in statistics}

    def all(self, condition: bool) -> bool:
        """Whether it holds for all ranks."""
        if self.size == 1:
            return condition
        where = "cuda" if dist.get_backend() == "nccl" else "cpu"
        least = torch.tensor(int(condition), device=where)
        dist.all_reduce(least, dist.ReduceOp.MIN)
        return bool(least)

    def from_first(self, value: T) -> T:
        """The first rank's value."""
        if self.size == 1:
            return value
        given = [value]
        dist.broadcast_object_list(given, src=0)
        return given[0]

    def in_turn(self, mine: Iterator[T]) -> Iterator[T]:
        """All ranks' items: each round one item of each rank, in the order of the ranks."""
        if self.size == 1:
            yield from mine
            return
        while True:
            given = self._gather(next(mine, None))
            there = [one for one in given if one is not None]
            yield from there
            if not there:
                return

    def agree(self, value: object) -> bool:
        """Whether all ranks have the same value."""
        return self.size == 1 or all(one == value for one in self._gather(value))

    def wait(self) -> None:
        """Wait for all ranks."""
        if self.size > 1:
            dist.barrier()

    @contextmanager
    def together(self) -> Iterator[None]:
        """Inside the block, the loss of another rank is a `UserError`."""
        try:
            yield
        except RuntimeError as error:
            lost = any(word in str(error) for word in ("Connection", "gloo", "NCCL", "peer"))
            if self.size == 1 or not lost:
                raise
            raise UserError(
                "Another process of this run ended: its own message says why. The same command "
                "continues from here."
            ) from error

    def _gather(self, value: T) -> list[T]:
        given: list[Any] = [None] * self.size
        dist.all_gather_object(given, value)
        return given


@contextmanager
def sharing(device: str) -> Iterator[tuple[Ranks, str]]:
    """Share the work of the block with the processes that torchrun or accelerate started.

    Only the first rank shows progress. A single process shares with none.

    Args:
        device: Where models run; "auto" and "cuda" become each rank's own GPU. Ranks on GPUs
            communicate by nccl, others by gloo.

    Yields:
        The ranks, and this rank's device.

    Raises:
        UserError: There are more processes than GPUs, or the others cannot be reached.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Ranks(), device
        return
    if device == ALL_GPUS:
        raise UserError(
            f"`device={ALL_GPUS}` spreads the model of a single process, and this run has "
            f"{os.environ['WORLD_SIZE']} processes: leave it out, or start one process."
        )
    on_gpus = choose_device(device).type == "cuda"
    if on_gpus:
        local, gpus = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if local >= gpus:
            raise UserError(
                f"This machine has fewer GPUs ({gpus}) than processes of this run: start one "
                "process per GPU, or give `device=cpu`."
            )
        device = f"cuda:{local}"
        torch.cuda.set_device(device)
    try:
        dist.init_process_group("nccl" if on_gpus else "gloo", timeout=_PATIENCE)
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"The other processes of this run could not be reached ({reason}): check the address "
            "that torchrun was given."
        ) from None
    ranks = Ranks()
    try:
        with nullcontext() if ranks.first else progress.hushed():
            yield ranks, device
    finally:
        with suppress(RuntimeError):  # another rank may have ended
            dist.destroy_process_group()
