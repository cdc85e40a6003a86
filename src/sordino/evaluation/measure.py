"""Measures: their interface and registry."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Generic, Literal, TypeVar

import torch

from sordino.evaluation.result import Figure
from sordino.evaluation.texts import Text
from sordino.files import name_files
from sordino.models.chat import Chat
from sordino.models.open import OpenModel
from sordino.registry import Registry

R = TypeVar("R", bound=tuple[Any, ...])
"""A measure's notes on one item (a continuation, a text): a `NamedTuple` of JSON values."""
S = TypeVar("S", bound=tuple[Any, ...])
"""The same of the arm after, where they differ."""

ALL = slice(None)
"""All batches."""


@dataclass(frozen=True)
class Column:
    """A column of the tables of studies, which shows one figure of a measure.

    Args:
        heading: Its heading.
        shown: How the figure is shown: "alone" or "share alone" without its change; "share" with
            its change in points, "number" with its change, "ratio" with after ÷ before; or "times".
        figure: The figure's name; "" for the first.
        place: Columns are ordered from left to right by this number.
    """

    heading: str
    shown: Literal["alone", "share alone", "share", "number", "ratio", "times"]
    figure: str = ""
    place: int = 100


class Measure(ABC):
    """A measure with its settings: a frozen dataclass whose fields are the settings.

    Settings that several measures share come from the bases `Writing`, `Reading` and `Scoring`,
    which can be combined.

    Attributes:
        name: Its name in the registry.
        version: Raised whenever the same settings would give other figures.
        title: Its name on pages.
        sentence: What it measures, in one sentence for readers of a page.
        options: The fields that options of the command line set, each with the option's name there.
        budget: On which side of its first figure a budget lies, for a measure of a change's cost;
            "" for the others.
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
    """Whether replies to its prompts in a chat template are measured beside continuations ("too"),
    or in their place ("only")."""
    streamable: ClassVar[bool] = True
    """Whether it can be taken of a model that is read layer by layer."""

    def __post_init__(self) -> None:
        """Check the settings; each base calls the next one's. A file may be given as a `Path`."""
        name_files(self)

    @property
    def key(self) -> str:
        """Its name in a result; the measures of one evaluation have different keys."""
        return self.name

    def in_chat(self, chat: Chat, template: str) -> "Measure | None":
        """The same measure in a model's chat template; None for one that does not prompt the model.

        Args:
            chat: How the template is used.
            template: Its fingerprint; "" if unknown.
        """
        del chat, template
        return None

    @abstractmethod
    def prepare(self, seed: int, device: torch.device) -> "AnyTask":
        """Prepare everything that does not depend on the model.

        Raises:
            UserError: Something that the settings name is not available.
            NotRun: Something that the measure requires is not available here.
        """


class NotRun(Exception):
    """A measure cannot be taken here; the message says why, in half a sentence.

    This is not an error: the result says so, and the other measures are taken.
    """


@dataclass(frozen=True)
class Summary:
    """What a measure found.

    Args:
        figures: The figures, the most important first.
        samples: Single items, as JSON objects.
    """

    figures: tuple[Figure, ...]
    samples: list[dict[str, Any]] = field(default_factory=list)


class Ready(ABC):
    """What a measure has prepared, to be applied to models.

    Attributes:
        protocol: Everything that decides the figures besides the model and the seed, as JSON
            values.
        records: How many records a model gives, or both together where they are taken together.
        unit: The kind of item that a record describes, in the plural, for the progress bar.
        texts: The prompts or texts that it takes, which nothing may be chosen or protected by.
        reusable: Whether the records depend on nothing but the model, the seed, the installed
            packages and what `protocol` names, so that they can be kept for other evaluations
            (`sordino.evaluation.kept`).
    """

    protocol: Mapping[str, Any]
    records: int
    unit: str
    texts: Sequence[Text] = ()
    reusable: bool = False


class Task(Ready, Generic[R]):
    """A measure that is ready to be applied to models.

    Attributes:
        record: The kind of its records.
    """

    record: Callable[..., R]

    @abstractmethod
    def collect(self, opened: OpenModel, *, batch_tokens: int, which: slice) -> Iterator[list[R]]:
        """Apply the measure to a model and yield its records batch by batch.

        The batches and their order depend on the arguments alone, so that an interrupted collection
        continues to the same end, and several processes can share it.

        Args:
            opened: The model.
            batch_tokens: About how many tokens are in memory at once.
            which: Which of the batches.
        """

    @abstractmethod
    def summarise(self, before: Sequence[R] | None, after: Sequence[R]) -> Summary:
        """Figures, with intervals, from all records of each arm; `before` may be missing."""


class PairedTask(Ready, Generic[R, S]):
    """A task whose arm after needs the records of the arm before; it takes two arms.

    Attributes:
        record: The kind of the records of the arm before.
        record_after: The kind of those of the arm after.
    """

    record: Callable[..., R]
    record_after: Callable[..., S]

    @abstractmethod
    def collect(self, opened: OpenModel, *, batch_tokens: int, which: slice) -> Iterator[list[R]]:
        """Records of the model before, in lists, as from `Task.collect`."""

    @abstractmethod
    def collect_after(
        self, opened: OpenModel, before: Sequence[R], *, batch_tokens: int, which: slice
    ) -> Iterator[list[S]]:
        """As `collect`, for the model after, with all records of the model before."""

    @abstractmethod
    def summarise(self, before: Sequence[R], after: Sequence[S]) -> Summary:
        """Figures, with intervals, from all records of both arms."""


class JointTask(Ready, Generic[R]):
    """A task that needs both models in memory at the same time.

    Attributes:
        record: The kind of its records.
    """

    record: Callable[..., R]

    @abstractmethod
    def collect_both(self, before: OpenModel, after: OpenModel, *, start: int) -> Iterator[list[R]]:
        """Yield the records batch by batch, without the first `start` batches, which are done."""

    @abstractmethod
    def summarise_both(self, records: Sequence[R]) -> Summary:
        """Figures, with intervals, from all records."""


AnyTask = Task[Any] | PairedTask[Any, Any] | JointTask[Any]


MEASURES: Registry[type[Measure]] = Registry("measure", "measures", "sordino.evaluation.measures")
"""Measures by name."""


def register(kind: type[Measure]) -> type[Measure]:
    """Register a measure under its name.

    Raises:
        TypeError: An attribute of `Measure` is missing, or an option sets a field that does not
            exist.
    """
    for attribute in ("name", "version", "title", "sentence"):
        if not hasattr(kind, attribute):
            raise TypeError(f"the measure {kind.__name__} declares no {attribute}")
    # Every measure is a dataclass, though the base class is not.
    known = {one.name for one in fields(kind)}  # type: ignore[arg-type]
    if unknown := kind.options.keys() - known:
        raise TypeError(f"options of {kind.__name__} set {sorted(unknown)}, no fields of it")
    MEASURES[kind.name] = kind
    return kind


def measure(wanted: str | Measure) -> Measure:
    """The measure of that name with its default settings; a measure is returned unchanged.

    Raises:
        UserError: There is no measure of that name.
    """
    return wanted if isinstance(wanted, Measure) else MEASURES.named(wanted)()
