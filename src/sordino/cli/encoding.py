"""Output for terminals and pipes that are not UTF-8."""

import codecs
import io
import unicodedata
from typing import TextIO

_ERRORS = "sordino.plain"
_PLAIN = {
    "−": "-",
    "…": "...",
    "→": "->",
    "×": "x",
    "÷": "/",
    "–": "-",
    "—": "-",
    "≤": "<=",
    "≥": ">=",
}


def speak_plainly(*streams: TextIO | None) -> None:
    """Make these streams accept any text, whatever their encoding.

    Characters that the encoding lacks become similar ASCII or an escape such as \\u4e2d, since an
    hour's work must not end in an encoding error.
    """
    codecs.register_error(_ERRORS, _plainly)
    for stream in streams:
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_ERRORS)


def _plainly(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    letters = error.object[error.start : error.end]
    return "".join(map(_ascii, letters)), error.end


def _ascii(letter: str) -> str:
    plain = _PLAIN.get(letter) or unicodedata.normalize("NFKD", letter)
    if "BOX DRAWINGS" in unicodedata.name(letter, ""):
        return "-" if "HORIZONTAL" in unicodedata.name(letter) else "|"
    return plain if plain.isascii() else letter.encode("ascii", "backslashreplace").decode()
