"""What a measure is, and the registry of measures."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal

import torch

from sordino.evaluation.result import Figure
from sordino.models.chat import Chat
from sordino.models.open import OpenModel
from sordino.registry import Registry

Record = list[Any]
"""What a measure notes of one item (a continuation, a text): a list of JSON values."""

ALL = slice(None)
"""All batches."""


@dataclass(frozen=True)
class Column:
    """A column of the tables of studies, which shows one figure of a measure.

    Args:
        heading: What stands above it.
        shown: How the figure is shown: "alone" or "share alone" without its change; "share" with
            its change in points, "number" with its change, "ratio" with after ÷ before; or "times".
        figure: The figure's name; "" for the first.
        place: Columns stand from left to right by this number.
    """

    heading: str
    shown: Literal["alone", "share alone", "share", "number", "ratio", "times"]
    figure: str = ""
    place: int = 100


class Measure(ABC):
    """A measure with its settings: a frozen dataclass whose fields are the settings.

    Settings that several measures have come from parts: `Writing`, `Reading` and `Scoring`, any of
    which can be a base beside others.

    Attributes:
        name: By which it is asked for.
        version: Raised whenever the same settings would give other figures.
        title: What readers of a page see as its name.
        sentence: What it says, in one sentence for them.
        options: The fields that options of the command line set, each with the option's name there.
        budget: On which side of its first figure a budget lies, for a measure of what a change
            costs; "" for the others.
        columns: Its columns in the tables of studies.
    """

    name: ClassVar[str]
    version: ClassVar[int]
    title: ClassVar[str]
    sentence: ClassVar[str]
    options: ClassVar[Mapping[str, str]] = {}
    budget: ClassVar[Literal["<=", ">=", ""]] = ""
    columns: ClassVar[tuple[Column, ...]] = ()
    asks: ClassVar[Literal["", "too", "only"]] = ""
    """Whether a reply to its prompts says something beside their continuation ("too"), or in its
    place ("only")."""

    def __post_init__(self) -> None:  # noqa: B027 - for parts that check their settings
        """Check the settings; a part calls its neighbour's as well."""

    @property
    def key(self) -> str:
        """What it is called in a result; one evaluation takes measures of different keys."""
        return self.name

    def in_chat(self, chat: Chat, template: str) -> "Measure | None":
        """The same in a model's chat template; None for what does not speak with the model.

        Args:
            chat: How the template is used.
            template: Its fingerprint; "" where it is not known.
        """
        del chat, template
        return None

    @abstractmethod
    def prepare(self, seed: int, device: torch.device) -> "Task | JointTask":
        """Get everything ready that does not depend on the model.

        Raises:
            UserError: Something that the settings name is not available.
            NotRun: Something that the measure cannot do without is not to be had here.
        """


class NotRun(Exception):
    """A measure cannot be taken here; the message says why, in half a sentence.

    It is no error: the result says so, and the other measures go on.
    """


@dataclass(frozen=True)
class Summary:
    """What a measure found.

    Args:
        figures: The figures, the most important first.
        samples: Rows for whoever wants to look at single items, as JSON objects.
    """

    figures: tuple[Figure, ...]
    samples: list[dict[str, Any]] = field(default_factory=list)


class Task(ABC):
    """A measure that is ready to be applied to models.

    Attributes:
        protocol: All that decides the figures besides the model and the seed, as JSON values.
        records: How many records a model gives.
        unit: What a record is of, in the plural, for the progress bar.
    """

    protocol: Mapping[str, Any]
    records: int
    unit: str

    @abstractmethod
    def collect(
        self, opened: OpenModel, *, batch_tokens: int, which: slice
    ) -> Iterator[list[Record]]:
        """Apply the measure to a model and yield its records batch by batch.

        The batches and their order depend on nothing but the other arguments, so that an
        interrupted collection goes on to the same end, and several processes can share it.

        Args:
            opened: The model.
            batch_tokens: About how many tokens are in memory at once.
            which: Which of the batches.
        """

    @abstractmethod
    def summarise(self, before: Sequence[Record] | None, after: Sequence[Record]) -> Summary:
        """Figures, with intervals, from all records of each arm; `before` may be missing."""


class PairedTask(Task):
    """A task whose arm after needs what the arm before recorded; it takes two arms."""

    @abstractmethod
    def collect_after(
        self, opened: OpenModel, before: Sequence[Record], *, batch_tokens: int, which: slice
    ) -> Iterator[list[Record]]:
        """As `collect`, for the model after, with all records of the model before."""


class JointTask(ABC):
    """A task that takes both models at the same time, in memory together.

    Attributes:
        protocol: As of a `Task`.
        records: How many records both models give together.
        unit: What a record is of, in the plural.
    """

    protocol: Mapping[str, Any]
    records: int
    unit: str

    @abstractmethod
    def collect_both(
        self, before: OpenModel, after: OpenModel, *, start: int
    ) -> Iterator[list[Record]]:
        """Yield the records batch by batch; `start` batches are done already."""

    @abstractmethod
    def summarise_both(self, records: Sequence[Record]) -> Summary:
        """Figures, with intervals, from all records."""


MEASURES: Registry[type[Measure]] = Registry("measure", "measures", "sordino.evaluation.measures")
"""Measures by name."""


def register(kind: type[Measure]) -> type[Measure]:
    """Register a measure under its name.

    Raises:
        TypeError: It does not declare what a `Measure` must, or an option sets no field of it.
    """
    for attribute in ("name", "version", "title", "sentence"):
        if not hasattr(kind, attribute):
            raise TypeError(f"the measure {kind.__name__} declares no {attribute}")
    # A measure is a dataclass; the base class alone is none.
    known = {one.name for one in fields(kind)}  # type: ignore[arg-type]
    if unknown := kind.options.keys() - known:
        raise TypeError(f"options of {kind.__name__} set {sorted(unknown)}, no fields of it")
    MEASURES[kind.name] = kind
    return kind


def measure(wanted: str | Measure) -> Measure:
    """The measure of that name with its default settings; a measure is given back as it is.

    Raises:
        UserError: There is no measure of that name.
    """
    return wanted if isinstance(wanted, Measure) else MEASURES.named(wanted)()
