"""A table of sentences and labels, from any source."""

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sordino.errors import UserError

TEXT_COLUMNS = (
    *("text", "prompt", "passage", "sentence"),
    *("comment_text", "comment", "content", "tweet"),
)
"""Names of columns that hold texts, in lower case; the first one that a row has counts."""
LABEL_COLUMNS = ("label", "labels", "target", "class", "toxic", "toxicity", "is_toxic", "insult")
"""Names of columns that hold labels, in lower case."""


def known_values(row: Mapping[str, Any], known: Container[str], where: str) -> dict[str, Any]:
    """A row's values in the columns that are known, by their names in lower case.

    Args:
        row: The values by column.
        known: Names in lower case.
        where: The row's place, for a message.

    Raises:
        UserError: Two columns differ in nothing but capitals, as `text` and `Text` do.
    """
    found: dict[str, Any] = {}
    for name, value in row.items():
        lower = name.lower()
        if lower in found:
            raise UserError(
                f"{where} has two columns called {lower}, with and without capitals: rename one."
            )
        if lower in known:
            found[lower] = value
    return found


@dataclass(frozen=True)
class Table:
    """Columns by name, and what to call a row in a message.

    Args:
        source: The file's or data set's name.
        names: The columns there are.
        column: Reads one column: one value per row, None where it has none.
        unit: The word for a row: "line", "row" or "item".
        numbers: The number of each row in the source.
        editable: Whether it is the user's own file, in which an empty text is an error, and not a
            published data set, in which such a row is skipped.
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

    def rows(self, wanted: Container[str] | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
        """Each row's index and its values by column, without those that are missing.

        Args:
            wanted: The columns, by their names in lower case; None for all.
        """
        names = [name for name in self.names if wanted is None or name.lower() in wanted]
        columns = [self.column(name) for name in names]
        for index in range(len(self.numbers)):
            values = ((name, column[index]) for name, column in zip(names, columns, strict=True))
            yield index, {name: value for name, value in values if value is not None}
