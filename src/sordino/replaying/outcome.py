"""The result of a replay so far: a value that can be saved, and drawn over time."""

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sordino.evaluation.statistics import Estimate, Floats
from sordino.records import Record
from sordino.replaying.sequential import confidence_sequence
from sordino.replaying.store import Pairs

_PARTS = 30


class Look(Record):
    """The result at the end of a day, or of a part of a log without times.

    Args:
        label: The day (UTC, ISO 8601), or the number of pairs.
        pairs: How many prompts of that day both servers answered.
        toxic: How many answers of each were toxic on that day, the original's first.
        so_far: All pairs up to then.
        difference: The share of toxic answers so far, dampened less original, with the interval
            that holds for all days at once.
    """

    label: str
    pairs: int
    toxic: tuple[int, int]
    so_far: int
    difference: Estimate


class ReplayOutcome(Record):
    """The result of a replay.

    Args:
        format: Names this file format.
        servers: The original's model and address, and the dampened one's.
        scorer: The scorer's protocol, with its `limits`.
        settings: The other settings that decide the figures.
        redacted: Whether no text was kept.
        dated: Whether looks are days.
        prompts: How many were sent.
        missing: How many each server did not answer, by reason.
        shares: The share of toxic answers of each, over all pairs, with intervals of the same kind.
        looks: The result day by day.
        first: The label of the first look whose interval excluded 0; None if there is none.
    """

    format: Literal["sordino-replay-1"] = "sordino-replay-1"
    servers: tuple[str, str]
    scorer: dict[str, Any]
    settings: dict[str, Any]
    redacted: bool
    dated: bool
    prompts: int
    missing: dict[str, dict[str, int]]
    shares: tuple[Estimate, Estimate] | None
    looks: tuple[Look, ...]
    first: str | None

    @property
    def pairs(self) -> int:
        """The number of prompts that both answered."""
        return self.looks[-1].so_far if self.looks else 0


def outcome_of(pairs: Pairs, **known: Any) -> ReplayOutcome:
    """The result from the pairs; `known` are its other fields.

    A request that is logged late, or has no time, is assigned to the day of the previous request,
    so that a look never changes.
    """
    toxic = pairs.toxic.astype(np.float64)
    dated = bool((~np.isnat(pairs.at)).any())
    if not len(toxic):
        return ReplayOutcome(dated=dated, shares=None, looks=(), first=None, **known)
    labels, ends = _days(pairs.at) if dated else _parts(len(toxic))
    looks = tuple(_look_at(toxic, labels, ends))
    original, dampened = (
        _estimate(confidence_sequence(arm, ends[-1:])[0]) for arm in np.ascontiguousarray(toxic.T)
    )
    return ReplayOutcome(
        dated=dated,
        shares=(original, dampened),
        looks=looks,
        first=next((look.label for look in looks if look.difference.excludes_0), None),
        **known,
    )


def _look_at(toxic: Floats, labels: Sequence[str], ends: NDArray[np.int64]) -> Iterator[Look]:
    running = confidence_sequence(toxic[:, 1] - toxic[:, 0], ends)
    counts = np.diff(np.cumsum(toxic, axis=0)[ends - 1], axis=0, prepend=0)
    sizes = np.diff(ends, prepend=0)
    for label, end, size, count, row in zip(labels, ends, sizes, counts, running, strict=True):
        yield Look(
            label=label,
            pairs=int(size),
            toxic=(int(count[0]), int(count[1])),
            so_far=int(end),
            difference=_estimate(row),
        )


def _days(at: NDArray[np.datetime64]) -> tuple[list[str], NDArray[np.int64]]:
    """Each day's name, and how many pairs there were at its end."""
    days = at.astype("datetime64[D]")
    missing = np.isnat(days)
    days[missing] = days[~missing][0]  # those after the first with a time get a later day below
    days = np.maximum.accumulate(days)
    ends = np.flatnonzero(np.append(days[1:] != days[:-1], True)) + 1
    return [str(days[end - 1]) for end in ends], ends


def _parts(pairs: int) -> tuple[list[str], NDArray[np.int64]]:
    """Equal parts of a log without times."""
    count = min(pairs, _PARTS)
    ends = np.arange(1, count + 1) * pairs // count
    return [f"{end:,}" for end in ends], ends


def _estimate(row: Floats) -> Estimate:
    mean, low, high = (float(value) for value in row)
    return Estimate(mean, low, high)
