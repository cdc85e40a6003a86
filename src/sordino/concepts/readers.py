"""Readers: each makes a `Table` (or plain sentences) of one kind of source."""

import csv
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sordino import hub
from sordino.concepts.table import Table
from sordino.errors import UserError


def read_table(path: Path) -> Table:
    """Read a CSV, TSV, JSONL or Parquet file, by its suffix.

    Raises:
        UserError: The file is missing, empty, of another kind or not what its suffix says.
    """
    if not path.exists():
        raise UserError(
            f"The concept file {path} does not exist: give a file, a data set of the hub as "
            "hf:org/name, or a built-in concept."
        )
    if not path.is_file():
        raise UserError(f"{path} is no file: give --concept one of its files.")
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise UserError(
            f"{path} is of no kind that a concept is read from: give a .csv, .tsv, .jsonl or "
            ".parquet file, or two text files with --negatives."
        )
    if path.stat().st_size == 0:
        raise UserError(f"{path} is empty: it has no sentences.")
    table = reader(path)
    if not table.numbers:
        raise UserError(f"{path} has no rows: it has no sentences.")
    return table


def read_sentences(path: Path) -> list[str]:
    """Read a plain text file with one sentence a line.

    Raises:
        UserError: The file is missing or empty, or a line is.
    """
    if not path.is_file():
        raise UserError(f"The text file {path} does not exist.")
    # Not splitlines(), which also breaks at form feeds and at Unicode's line separators.
    lines = _text(path).replace("\r\n", "\n").split("\n")
    if not lines[-1]:
        lines.pop()
    if not lines:
        raise UserError(f"{path} is empty: it has no sentences.")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            raise UserError(f"{path}, line {number}: the line is empty: remove it.")
    return lines


def _text(path: Path) -> str:
    """The file's text, from UTF-8 with or without a byte order mark."""
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # The decoder counts from after the byte order mark.
        start = error.start + len(data) - len(error.object)
        line = data.count(b"\n", 0, start) + 1
        raise UserError(
            f"{path}, line {line}: the byte 0x{data[start]:02x} is not UTF-8: save the file as "
            "UTF-8."
        ) from None


def _read_csv(path: Path) -> Table:
    return _separated(path, ",")


def _read_tsv(path: Path) -> Table:
    return _separated(path, "\t")


def _separated(path: Path, delimiter: str) -> Table:
    # A field may be longer than the 128 KiB at which the module stops by default.
    csv.field_size_limit(sys.maxsize)
    reader = csv.reader(io.StringIO(_text(path), newline=""), delimiter=delimiter, strict=True)
    rows: list[list[str]] = []
    numbers: list[int] = []
    header: list[str] = []
    line = 1
    try:
        for row in reader:
            if row and not header:
                header = [name.strip() for name in row]
                if len(set(header)) < len(header):
                    raise UserError(f"{path}, line {line}: two columns have the same name.")
            elif row:
                if len(row) != len(header):
                    raise UserError(
                        f"{path}, line {line}: there are {len(row)} fields, where the first line "
                        f"names {len(header)} columns: put quotes around a text that holds the "
                        "separator or a line break."
                    )
                rows.append(row)
                numbers.append(line)
            line = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"{path}, line {line}: the row is malformed ({error}).") from None

    def column(name: str) -> list[str]:
        index = header.index(name)
        return [row[index] for row in rows]

    return Table(str(path), tuple(header), column, "line", numbers)


def _read_jsonl(path: Path) -> Table:
    rows: list[dict[str, Any]] = []
    numbers: list[int] = []
    # Split at line feeds alone: JSON's strings may hold Unicode's line separators.
    for number, line in enumerate(_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(
                f"{path}, line {number}: the line is not JSON ({error.msg} at character "
                f"{error.colno})."
            ) from None
        if not isinstance(row, dict):
            raise UserError(f'{path}, line {number}: the line is no JSON object {{"text": …}}.')
        rows.append(row)
        numbers.append(number)
    names = tuple(dict.fromkeys(name for row in rows for name in row))
    return Table(str(path), names, lambda name: [row.get(name) for row in rows], "line", numbers)


def _read_parquet(path: Path) -> Table:
    import pyarrow
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path} cannot be read as Parquet: {_first_line(error)}.") from None

    def column(name: str) -> list[Any]:
        try:
            values: list[Any] = file.read(columns=[name]).column(name).to_pylist()
        except UnicodeDecodeError:
            raise UserError(
                f"{path}: the column '{name}' is not UTF-8: write the file again from valid text."
            ) from None
        except (pyarrow.ArrowException, OSError) as error:
            raise UserError(
                f"{path}: the column '{name}' cannot be read: {_first_line(error)}."
            ) from None
        return values

    names = tuple(file.schema_arrow.names)
    return Table(str(path), names, column, "row", range(1, file.metadata.num_rows + 1))


_READERS: dict[str, Callable[[Path], Table]] = {
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".parquet": _read_parquet,
}


def read_hub(name: str, *, config: str | None, revision: str | None, split: str) -> Table:
    """Read a split of a data set of the hub; a data set's code is never run.

    Args:
        name: The data set, "org/name".
        config: Its configuration, where it has several.
        revision: A branch, tag or commit.
        split: The split, such as "train".

    Raises:
        UserError: `datasets` is not installed, or the data set cannot be had.
    """
    if not name:
        raise UserError("hf: names no data set: give hf:org/name.")
    try:
        import datasets
    except ImportError:
        raise UserError(
            f"hf:{name} needs the package datasets: pip install 'sordino[datasets]'."
        ) from None
    from datasets.exceptions import DatasetsError
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError

    if not hub.reachable() and not constants.HF_HUB_OFFLINE:
        raise UserError(
            f"hf:{name} cannot be loaded, for the hub {constants.ENDPOINT} does not answer: check "
            "the network, or set HF_HUB_OFFLINE=1 to use what was downloaded before."
        )
    try:
        data = datasets.load_dataset(name, config, split=split, revision=revision)
    # ValueError: no such split or configuration; OSError: no such data set or no connection;
    # RuntimeError: the data set is a program.
    except (DatasetsError, HfHubHTTPError, ValueError, OSError, RuntimeError) as error:
        reason = _first_line(error.__cause__ or error)
        raise UserError(
            f"hf:{name} cannot be loaded ({reason}): check its name, --concept-config, --split "
            "and --concept-revision."
        ) from None

    def column(wanted: str) -> list[Any]:
        values: list[Any] = data[wanted][:]
        feature = data.features[wanted]
        if isinstance(feature, datasets.ClassLabel):
            # The number of a class says nothing; its name may.
            return [None if value in (None, -1) else feature.names[value] for value in values]
        return values

    names = tuple(data.column_names)
    rows = range(1, len(data) + 1)
    return Table(f"hf:{name}, {split}", names, column, "row", rows, editable=False)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
