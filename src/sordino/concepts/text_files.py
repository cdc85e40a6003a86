"""The user's text files: their kind, bytes, text and lines."""

import codecs
import gzip
import json
import os
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedIOBase
from pathlib import Path

from sordino.concepts.table import LABEL_COLUMNS, TEXT_COLUMNS
from sordino.errors import UserError
from sordino.files import is_regular, printable, refuse_pointer, user_path
from sordino.progress import note

GZIP = ".gz"
_GZIPPED = b"\x1f\x8b"
_TEXT = (".txt", ".text")
# UTF-32 comes first, because its mark begins with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_BEGINNINGS = {
    b"PAR1": "Parquet",
    b"ARROW1": "Arrow",
    b"GGUF": "GGUF",
    b"%PDF-": "PDF",
    b"SQLite format 3\0": "SQLite",
    b"PK\x03\x04": "ZIP or Excel",
    _GZIPPED: "gzip",
    b"BZh91AY&SY": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "Zstandard",
}
_LINE_END = re.compile("\r\n|\r|\n")
_WORD = re.compile(r"[\w.]+")


def input_path(name: str | Path, *, what: str | None = None, mend: str) -> Path:
    """The path of a file to be read, as the user typed it.

    A pipe is refused, because some files are read more than once, and opening a pipe without a
    writer would block for ever.

    Args:
        name: What the user typed.
        what: The file's name in messages; None for `name`.
        mend: What to do if there is no such file.

    Raises:
        UserError: It does not exist, or is a folder, a pipe or a device.
    """
    path = user_path(name)
    shown = what or printable(str(path))
    if not os.path.exists(path):  # noqa: PTH110 - unlike Path's, it raises nothing
        raise UserError(f"{shown} does not exist: {mend}.")
    if path.is_dir():
        raise UserError(f"{shown} is a folder, not a file: {mend}.")
    if not is_regular(path):
        raise UserError(
            f"{shown} is a pipe or a device, which cannot be read twice: save its output to a file "
            "first."
        )
    return path


def text_or_file(given: str, argument: str) -> str:
    """A text that was typed, or the text of the file whose name was typed.

    Args:
        given: The text, or the file.
        argument: The argument that holds it, such as "system", for messages.

    Raises:
        UserError: The file cannot be read, or is empty.
    """
    if not _names_file(given):
        return whole_text(given, f"`{argument}`").strip()
    shown = f"`{argument}={printable(given)}`"
    text = "\n".join(read_lines(input_path(given, what=shown, mend="give a text file"))).strip()
    if not text:
        raise UserError(f"{shown} is empty: write the text into it.")
    return text


def _names_file(given: str) -> bool:
    """Whether there is such a file or folder; a text that is too long for a name is none."""
    try:
        return os.path.exists(user_path(given))  # noqa: PTH110 - unlike Path's, it raises nothing
    except UserError:
        return False


def kind_of(path: Path) -> str:
    """The suffix of a file's kind in lower case, such as ".jsonl" for `P.JSONL.gz`."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] == GZIP:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


@contextmanager
def open_input(path: Path) -> Iterator[BufferedIOBase]:
    """Open a file for reading bytes, decompressed if it is compressed by gzip, whatever its name.

    Raises:
        UserError: It cannot be opened, or reading fails inside the block.
    """
    try:
        with path.open("rb") as stream:
            packed = stream.read(len(_GZIPPED)) == _GZIPPED
        if path.suffix.lower() == GZIP and not packed:
            raise UserError(
                f"{printable(str(path))} cannot be read: its name ends in {GZIP}, and it is not "
                "compressed by gzip: rename it."
            )
        with (gzip.open if packed else open)(path, "rb") as stream:
            yield stream
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"{printable(str(path))} cannot be read: {printable(reason)}.") from None


def read_text(path: Path) -> str:
    """A file's whole text: UTF-8, or UTF-16 or UTF-32 with a byte order mark.

    Raises:
        UserError: It cannot be read, is in another encoding, or is not text.
    """
    with open_input(path) as stream:
        data = stream.read()
    shown = printable(str(path))
    refuse_pointer(data, shown)
    for beginning, kind in _BEGINNINGS.items():
        if data.startswith(beginning):
            raise UserError(
                f"{shown} is not text but looks like {kind}: use a file that matches its name."
            )
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "utf-8-sig")
    if encoding == "utf-8-sig" and data[:2].count(0) == 1:
        raise UserError(
            f"{shown} looks like UTF-16 without a byte order mark: save the file as UTF-8."
        )
    try:
        # Files that were joined may begin with more than one mark.
        return data.decode(encoding).lstrip("\ufeff")
    except UnicodeDecodeError as error:
        if encoding != "utf-8-sig":
            raise UserError(
                f"{shown} has the mark of {encoding.upper()} and is not: save the file as UTF-8."
            ) from None
        # The decoder counts from after the byte order mark.
        start = error.start + len(data) - len(error.object)
        line = len(re.findall(b"\r\n|\r|\n", data[:start])) + 1
        raise UserError(
            f"{shown}, line {line}: the byte 0x{data[start]:02x} is not UTF-8: save the file as "
            "UTF-8."
        ) from None


def split_lines(text: str) -> list[str]:
    r"""The lines of a text, which end in `\n`, `\r\n` or `\r` only.

    `str.splitlines` also breaks at form feeds and Unicode's line separators, which occur inside
    sentences.
    """
    lines = _LINE_END.split(text)
    return lines if lines[-1] else lines[:-1]


def read_lines(path: Path) -> list[str]:
    """The lines of a plain text file.

    Raises:
        UserError: It cannot be read or is not plain text: it holds a NUL character, or it looks
            like a table and its name is not that of a text file.
    """
    text = read_text(path)
    lines = split_lines(text)
    shown = printable(str(path))
    for number, line in enumerate(lines, start=1):
        if "\0" in line:
            raise UserError(f"{shown}, line {number}: it holds a NUL character, so it is not text.")
    kind, suffix = _looks_like(text, lines)
    if kind and kind_of(path) in _TEXT:
        note(
            f"{shown} looks like {kind} and is read as plain text, line by line: if it is a table, "
            f"give it a name that ends in {suffix}"
        )
    elif kind:
        raise UserError(
            f"{shown} looks like {kind}: give it a name that ends in {suffix}, or in .txt if it is "
            "plain text."
        )
    return lines


def one_line(text: str) -> str:
    """A text with single spaces, by which it is the same text wherever it is written."""
    return " ".join(text.split())


def whole_text(text: str, where: str) -> str:
    """The text itself, if all its characters are complete.

    Raises:
        UserError: It holds half of a surrogate pair, which JSON can write and tokenizers refuse.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError(
            f"{where}: the text holds half of a surrogate pair, which is not valid Unicode: write "
            "the text again or remove it."
        ) from None
    return text


def _looks_like(text: str, lines: list[str]) -> tuple[str, str]:
    """The kind of table that a text looks like, and its suffix; "" and "" for plain text."""
    first = next((line.strip() for line in lines if line.strip()), "")
    if first in ("[", "{", "[{"):
        return "JSON", ".json"
    if first[:1] in ("[", "{"):
        for one, kind, suffix in ((first, "JSON Lines", ".jsonl"), (text, "JSON", ".json")):
            with suppress(ValueError, RecursionError):
                value = json.loads(one)
                if isinstance(value, dict):
                    return kind, suffix
                if isinstance(value, list) and value and isinstance(value[0], dict):
                    return "JSON", ".json"
    for separator, kind, suffix in (("\t", "TSV", ".tsv"), (",", "CSV", ".csv")):
        cells = [cell.strip('"').lower() for cell in first.split(separator)]
        known = {*TEXT_COLUMNS, *LABEL_COLUMNS} & set(cells)
        if len(cells) > 1 and known and all(map(_WORD.fullmatch, cells)):
            return kind, suffix
    return "", ""
