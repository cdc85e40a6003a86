"""Read a `Table` (or plain sentences) from each kind of source."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sordino import hub
from sordino.concepts.separated import read_separated
from sordino.concepts.table import TEXT_COLUMNS, Table
from sordino.concepts.text_files import (
    GZIP,
    input_path,
    kind_of,
    open_input,
    read_lines,
    read_text,
    split_lines,
)
from sordino.errors import UserError
from sordino.extras import require
from sordino.files import json_kind, parse_json, printable, refuse_pointer


def is_table(path: Path) -> bool:
    """Whether a file is a table by its name, and not plain text."""
    return kind_of(path) in _READERS


def read_table(path: Path) -> Table:
    """Read a CSV, TSV, JSON, JSON Lines or Parquet file, by its suffix.

    Raises:
        UserError: The file is missing, empty, of another kind or does not match its suffix.
    """
    path = input_path(
        path,
        what=f"The file {printable(str(path))}",
        mend="give a file, a data set of the hub as hf:org/name, or a built-in concept",
    )
    shown = printable(str(path))
    reader = _READERS.get(kind_of(path))
    if reader is None:
        raise UserError(
            f"{shown} is not a table: give a .csv, .tsv, .json, .jsonl or .parquet file (for a "
            "concept also two text files, one as `negatives`)."
        )
    if path.stat().st_size == 0:
        raise UserError(f"{shown} is empty.")
    table = reader(path, shown)
    if not table.numbers:
        raise UserError(f"{shown} has no rows.")
    return table


def _read_csv(path: Path, shown: str) -> Table:
    return read_separated(read_text(path), shown, ",")


def _read_tsv(path: Path, shown: str) -> Table:
    return read_separated(read_text(path), shown, "\t")


def _read_jsonl(path: Path, shown: str) -> Table:
    return _json_lines(read_text(path), shown)


def _json_lines(text: str, shown: str) -> Table:
    rows: list[dict[str, Any]] = []
    numbers: list[int] = []
    for number, line in enumerate(split_lines(text), start=1):
        if line.strip():
            where = f"{shown}, line {number}"
            rows.append(_json_row(parse_json(line, where, distinct=True), where))
            numbers.append(number)
    return _of_rows(rows, shown, "line", numbers)


def _json_row(value: Any, where: str) -> dict[str, Any]:
    if isinstance(value, dict):
        return value
    instead = ", or the texts into a .txt file, one a line" if isinstance(value, str) else ""
    raise UserError(
        f'{where} is not a JSON object {{"text": …}} but {json_kind(value)}: write each as one'
        f"{instead}."
    )


def _of_rows(
    rows: Sequence[Mapping[str, Any]], shown: str, unit: str, numbers: Sequence[int]
) -> Table:
    names = tuple(dict.fromkeys(name for row in rows for name in row))
    return Table(shown, names, lambda name: [row.get(name) for row in rows], unit, numbers)


def _read_json(path: Path, shown: str) -> Table:
    """Read a list of objects, or an object of columns (lists, or objects as pandas writes them)."""
    text = read_text(path)
    if _is_json_lines(text):
        return _json_lines(text, shown)
    value = parse_json(text, shown, distinct=True)
    if isinstance(value, dict) and value:
        _refuse_wrapped(value, shown)
        columns = [
            list(column.values()) if isinstance(column, dict) else column
            for column in value.values()
        ]
        if all(isinstance(column, list) for column in columns):
            if len(set(map(len, columns))) > 1 or (
                len({tuple(column) for column in value.values() if isinstance(column, dict)}) > 1
            ):
                raise UserError(f"{shown}: its columns do not have the same rows.")
            named = dict(zip(value, columns, strict=True))
            rows = range(1, len(columns[0]) + 1)
            return Table(shown, tuple(named), named.__getitem__, "item", rows)
        value = [value]
    if not isinstance(value, list):
        raise UserError(f"{shown} is neither a JSON list of objects nor an object of columns.")
    items = [_json_row(row, f"{shown}, item {n}") for n, row in enumerate(value, start=1)]
    return _of_rows(items, shown, "item", range(1, len(items) + 1))


def _refuse_wrapped(value: Mapping[str, Any], shown: str) -> None:
    """Raise `UserError` for an object that holds its rows under a name of no column."""
    if any(name.lower() in (*TEXT_COLUMNS, "messages") for name in value):
        return
    lists = [name for name, rows in value.items() if isinstance(rows, list) and rows]
    holding = [name for name in lists if all(isinstance(row, dict) for row in value[name])]
    if len(lists) == len(holding) == 1:
        raise UserError(
            f"{shown} holds its rows under '{printable(holding[0], 40)}': leave only that list in "
            'it, as [{"text": …}, …].'
        )


def _is_json_lines(text: str) -> bool:
    """Whether a JSON file has one object per line, as some data sets of the hub do."""
    lines = [line for line in split_lines(text) if line.strip()]
    if len(lines) < 2:
        return False
    try:
        return isinstance(json.loads(lines[0]), dict)
    except (ValueError, RecursionError):
        return False


def _read_parquet(path: Path, shown: str) -> Table:
    require("parquet", f"{shown} is Parquet and")
    import pyarrow
    from pyarrow import parquet

    if path.suffix.lower() == GZIP:
        raise UserError(f"{shown} is Parquet inside gzip: unpack it with gunzip.")
    with open_input(path) as stream:
        refuse_pointer(stream.read(100), shown)
    try:
        file = parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{shown} cannot be read as Parquet: {_first_line(error)}.") from None
    names = tuple(file.schema_arrow.names)
    twice = next((name for n, name in enumerate(names) if name in names[:n]), None)
    if twice is not None:
        raise UserError(f"{shown}: two columns have the same name, {printable(twice, 40)}.")

    def column(name: str) -> list[Any]:
        try:
            values: list[Any] = file.read(columns=[name]).column(name).to_pylist()
        except UnicodeDecodeError:
            raise UserError(
                f"{shown}: the column '{name}' is not UTF-8: write the file again from valid text."
            ) from None
        except (pyarrow.ArrowException, OSError) as error:
            raise UserError(
                f"{shown}: the column '{name}' cannot be read: {_first_line(error)}."
            ) from None
        return values

    return Table(shown, names, column, "row", range(1, file.metadata.num_rows + 1))


_READERS: dict[str, Callable[[Path, str], Table]] = {
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".tab": _read_tsv,
    ".json": _read_json,
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".parquet": _read_parquet,
}


def read_sentences(path: Path) -> list[str]:
    """Read a plain text file with one sentence per line.

    Raises:
        UserError: The file is missing or empty, or a line is.
    """
    path = input_path(
        path, what=f"The text file {printable(str(path))}", mend="give one with a sentence per line"
    )
    lines = read_lines(path)
    shown = printable(str(path))
    if not lines:
        raise UserError(f"{shown} is empty: it has no sentences.")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            raise UserError(f"{shown}, line {number}: the line is empty: remove it.")
    return lines


def read_hub(name: str, *, config: str | None, revision: str | None, split: str) -> Table:
    """Read a split of a data set of the hub; a data set's code is never run.

    Args:
        name: The data set, "org/name".
        config: Its configuration, where it has several.
        revision: A branch, tag or commit.
        split: The split, such as "train".

    Raises:
        UserError: `datasets` is not installed, or the data set is not available.
    """
    instead = "give a file, or other `config`, `split` and `load_concept.revision`"
    wanted = hub.Wanted(name, revision, "dataset", "", f"hf:{name}", instead)
    data = hub.load_data_set(wanted, split, config)
    import datasets

    def column(wanted: str) -> list[Any]:
        values: list[Any] = data[wanted][:]
        feature = data.features[wanted]
        if isinstance(feature, datasets.ClassLabel):
            # The number of a class is arbitrary, but its name may mean something.
            return [None if value in (None, -1) else feature.names[value] for value in values]
        return values

    names = tuple(data.column_names)
    rows = range(1, len(data) + 1)
    return Table(f"hf:{name}, {split}", names, column, "row", rows, editable=False)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return printable(lines[0]).rstrip(".") if lines else type(error).__name__
