"""Read tables of separated values, without losing rows to quotation marks."""

import csv
import io
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from sordino.concepts.table import Table
from sordino.concepts.text_files import split_lines
from sordino.errors import UserError
from sordino.files import counted, printable
from sordino.progress import note

_TAB = "\t"
_NAMES = {",": "commas", ";": "semicolons", _TAB: "tabs", "|": "vertical bars"}
"""The usual separators, and what they are called."""
# Excel writes it as the first line.
_DECLARED = re.compile(r'"?sep=([,;|])"?')
_SPECIAL = '\t\r\n"'
"""The characters of a field that must be in quotation marks."""


@dataclass(frozen=True)
class _Row:
    line: int  # where it begins
    last: int  # where it ends
    cells: list[str]


class _RowError(Exception):
    def __init__(self, line: int, problem: str) -> None:
        super().__init__(problem)
        self.line = line


def read_separated(text: str, source: str, separator: str) -> Table:
    r"""The table that a text of separated values holds.

    Where the first line does not hold the separator but another usual one, the latter counts, and a
    note says so: spreadsheets write semicolons into a CSV wherever a comma separates decimals.

    In a CSV, quotation marks are syntax. In a TSV they are syntax only if the whole file uses them
    as such, and text otherwise. It does so if a name in the first line is in quotation marks, or if
    exactly those fields are that need them: those with a tab, a line end or a quotation mark (or,
    as a spreadsheet writes it, a comma).

    Raises:
        UserError: A row has too many or too few fields, a quotation does not end, or the text
            between two quotation marks looks like rows of the table.
    """
    lines = split_lines(text)
    declared = _DECLARED.fullmatch(lines[0]) if lines else None
    found = declared[1] if declared else _separator_of(lines, separator)
    if found != separator:
        note(f"{source} is separated by {_NAMES[found]}")
    try:
        if separator == found == _TAB:
            rows = _tab_separated(text, lines)
        else:
            rows = _read_quoted(text, found)[1 if declared else 0 :]
            _refuse_swallowed(rows, lines, found)
        return _table(rows, source)
    except _RowError as error:
        raise UserError(f"{source}, line {error.line}: {error}.") from None


def _separator_of(lines: Sequence[str], expected: str) -> str:
    """The separator in the first line that is not empty: the expected one if it is there."""
    first = next((line for line in lines if line), "")
    return next((one for one in (expected, *_NAMES) if one in first), expected)


def _tab_separated(text: str, lines: Sequence[str]) -> list[_Row]:
    first = next((line for line in lines if line), "")
    if any(len(name) > 1 and name[0] == name[-1] == '"' for name in first.split(_TAB)):
        return _read_quoted(text, _TAB)
    if not any(cell.startswith('"') for line in lines for cell in line.split(_TAB)):
        return _read_unquoted(lines)
    try:
        rows = _read_quoted(text, _TAB)
    except _RowError:
        return _read_unquoted(lines)
    ragged = any(len(row.cells) != len(rows[0].cells) for row in rows)
    if ragged or not _is_consistent(rows, lines):
        return _read_unquoted(lines)
    _refuse_swallowed(rows, lines, _TAB)
    return rows


def _read_unquoted(lines: Sequence[str]) -> list[_Row]:
    return [_Row(n, n, line.split(_TAB)) for n, line in enumerate(lines, start=1) if line]


def _read_quoted(text: str, separator: str) -> list[_Row]:
    # By default the module refuses fields of more than 128 KiB.
    csv.field_size_limit(sys.maxsize)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    rows: list[_Row] = []
    line = 1
    try:
        for cells in reader:
            if cells:
                rows.append(_Row(line, reader.line_num, cells))
            line = reader.line_num + 1
    except csv.Error as error:
        if "unexpected end" in str(error):
            problem = "a quotation mark opens here and is never closed"
        else:
            problem = (
                "the row is malformed: a quotation mark closes before the end of its field; write "
                'each mark inside a text twice, as in "a ""b"" c"'
            )
        raise _RowError(line, problem) from None
    return rows


def _is_consistent(rows: Sequence[_Row], lines: Sequence[str]) -> bool:
    """Whether a writer that quotes exactly the fields that need it would write these lines."""
    return any(
        all(
            "\n".join(split_lines(_write_cells(row.cells, special) + "\n"))
            == "\n".join(lines[row.line - 1 : row.last])
            for row in rows
        )
        for special in (_SPECIAL, _SPECIAL + ",")
    )


def _write_cells(cells: Sequence[str], special: str) -> str:
    doubled = ((cell, cell.replace('"', '""')) for cell in cells)
    return _TAB.join(
        f'"{inside}"' if any(mark in cell for mark in special) else cell for cell, inside in doubled
    )


def _refuse_swallowed(rows: Sequence[_Row], lines: Sequence[str], separator: str) -> None:
    """Raise if two quotation marks that are text may have turned several rows into one field.

    That is so if at least two of the lines between them, taken alone, have as many fields as the
    table has columns. Because sentences contain commas, such lines of a CSV must also look alike in
    one column, as labels do: their values there occur in other rows, or repeat among themselves.
    """
    columns = len(rows[0].cells) if rows else 0
    # The row itself is among them: it can have swallowed all others of its label.
    seen = [set(column) for column in zip(*(row.cells for row in rows), strict=False)]
    for row in rows:
        if row.line == row.last:
            continue
        alone = [line.split(separator) for line in lines[row.line - 1 : row.last]]
        alike = [cells for cells in alone if len(cells) == columns]
        if len(alike) > 1 and (
            separator == _TAB
            or any(
                all(cell in values for cell in column) or 2 * len(set(column)) <= len(column)
                for values, column in zip(seen, zip(*alike, strict=True), strict=False)
            )
        ):
            raise _RowError(
                row.line,
                f"a quotation mark opens here and closes in line {row.last}, and the lines between "
                "look like rows of the table: if the marks are text, write the file as .jsonl; if "
                "they hold one text together, put the names in the first line of a .tsv in "
                "quotation marks, or write the file as .jsonl",
            )


def _table(rows: Sequence[_Row], source: str) -> Table:
    """The table, whose first row names its columns."""
    header = [name.strip() for name in rows[0].cells] if rows else []
    # Spreadsheets write empty columns and cells at the end of rows.
    width = max((n for n, name in enumerate(header, start=1) if name), default=0)
    named = [name for name in header if name]
    if rows and not named:
        raise _RowError(rows[0].line, "the first line names no column")
    twice = next((name for n, name in enumerate(named) if name in named[:n]), None)
    if twice is not None:
        raise _RowError(rows[0].line, f"two columns have the same name, {printable(twice, 40)}")
    beyond = 0
    for row in rows[1:]:
        if len(row.cells) == width:
            continue
        filled = max((n for n, cell in enumerate(row.cells, start=1) if cell.strip()), default=0)
        if len(row.cells) < width or filled > len(header):
            raise _RowError(
                row.line,
                f"it has {counted(len(row.cells), 'field')}, where the first line names {width} "
                "columns: "
                "put quotes around a text that holds the separator or a line break, with no space "
                "before them",
            )
        beyond += any(
            cell.strip() and not name for name, cell in zip(header, row.cells, strict=False)
        )
    if beyond:
        what = counted(beyond, "row has", "rows have")
        note(f"{source}: {what} values in columns without a name, which are not read")

    def column(name: str) -> list[str]:
        index = header.index(name)
        return [row.cells[index] for row in rows[1:]]

    return Table(source, tuple(named), column, "line", [row.line for row in rows[1:]])
