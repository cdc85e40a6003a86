"""A table of sentences and labels, whatever it was read from."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Table:
    """Columns by name, and what to call a row in a message.

    Args:
        source: The file's or data set's name.
        names: The columns there are.
        column: Reads one column: one value a row.
        unit: What a row is called: "line" or "row".
        numbers: The number of each row in the source.
        editable: Whether it is the user's own file, in which an empty text is an error to mend,
            and not a published data set, in which such a row is passed over.
    """

    source: str
    names: tuple[str, ...]
    column: Callable[[str], Sequence[Any]]
    unit: str
    numbers: Sequence[int]
    editable: bool = True

    def where(self, row: int) -> str:
        """The source and the place of a row, for a message."""
        return f"{self.source}, {self.unit} {self.numbers[row]}"
