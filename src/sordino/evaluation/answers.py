"""Answers of servers that speak OpenAI's protocol, parsed without trusting any of it."""

import html
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from sordino.errors import UserError
from sordino.files import parse_json, printable

FILTERED = "content_filter"
"""The end of an answer that a filter withheld."""

_DEEPEST = 4
"""The deepest nesting of the parts of a text."""
_TEXT_KINDS = (None, "text", "output_text", "input_text")
_KEY_SHOWN = "[the API key]"
_LONGEST = 200
"""How many characters of a server's words a message quotes."""
_ESCAPE = re.compile(r"\\u([0-9a-fA-F]{4})|\\(.)")


class MalformedError(Exception):
    """An answer does not follow the protocol.

    Args:
        reason: Why, in a few words of ours.
        words: The server's own words, to be quoted through `without_key` only.
    """

    def __init__(self, reason: str, words: str = "") -> None:
        super().__init__(reason)
        self.words = words


@dataclass(frozen=True)
class Choice:
    """One of a server's answers to a request: a text, or a message of a chat.

    Args:
        content: The text; None if there is none. It can always be encoded.
        ended: The server's word for why it ended; "" if it has none.
        refusal: The server's words for why it wrote nothing; "" if it has none.
        repaired: Whether half a character of the text was replaced by U+FFFD.
        model: The server's name for the model that answered; "" if it gives none.
    """

    content: str | None
    ended: str = ""
    refusal: str = ""
    repaired: bool = False
    model: str = ""


def read_choices(data: bytes) -> list[Choice]:
    """The choices of an answer, in the order of their numbers if each has its own.

    Args:
        data: The answer.

    Raises:
        MalformedError: It does not follow the protocol, or none of its choices does.
    """
    text = data.decode("utf-8-sig", "replace")
    value = _json(text)
    given = value.get("choices") if isinstance(value, dict) else None
    if not isinstance(given, list):
        raise MalformedError("it has no choices", words_of(data))
    if not given:
        raise MalformedError("its list of choices is empty")
    numbers = [one.get("index") if isinstance(one, dict) else None for one in given]
    known = [number for number in numbers if type(number) is int]
    if len(set(known)) == len(given):
        given = [one for _, one in sorted(zip(known, given, strict=True), key=lambda two: two[0])]
    cut, model = not _is_utf8(data), _word(value.get("model"))
    read, faults = [], []
    for one in given:
        try:
            read.append(_choice(one, model, cut=cut))
        except MalformedError as fault:
            faults.append(fault)
    if not read:
        raise faults[0]
    return read


def read_adapters(data: bytes) -> dict[int, str]:
    """The files of llama.cpp's LoRA adapters by number.

    Raises:
        MalformedError: It is not such a list.
    """
    value = _json(data.decode("utf-8-sig", "replace"))
    if not isinstance(value, list):
        raise MalformedError("it is not a list of adapters", words_of(data))
    found = {}
    for one in value:
        number, path = (one.get("id"), one.get("path")) if isinstance(one, dict) else (None, None)
        if type(number) is not int or not isinstance(path, str):
            raise MalformedError("it is not a list of adapters", words_of(data))
        found[number] = path
    return found


def read_models(data: bytes) -> tuple[list[str], bool]:
    """The names of the models that a server lists, each once, and whether the list is complete.

    A complete list has names alone, at least one, and no name with a wildcard.

    Raises:
        MalformedError: It is not a list of models.
    """
    value = _json(data.decode("utf-8-sig", "replace"))
    rows = value.get("data") if isinstance(value, dict) else value
    if rows is None and isinstance(value, dict) and "data" in value:
        rows = []
    if not isinstance(rows, list):
        raise MalformedError("it has no list of models", words_of(data))
    found = [row.get("id") if isinstance(row, dict) else None for row in rows]
    names = list(dict.fromkeys(name for name in found if isinstance(name, str) and name))
    plain = bool(found) and all(name in names and "*" not in name for name in found)
    return names, plain


def words_of(data: bytes) -> str:
    """A server's message about an error, or everything that it sent."""
    text = data.decode("utf-8-sig", "replace")
    try:
        value = _json(text)
    except MalformedError:
        return text
    error = value.get("error", value) if isinstance(value, dict) else value
    said = error.get("message") if isinstance(error, dict) else error
    return said if isinstance(said, str) else text


def without_key(words: str, key: str) -> str:
    """A server's words for a message: one line, shortened, and without the API key.

    Args:
        words: Foreign text.
        key: The key, or "" for none. Words that hold it escaped or percent-encoded are withheld as
            a whole.
    """
    # Long enough that no part of a key that is cut here is shown.
    words = " ".join(words.split())[: _LONGEST * (len(key) + 2)]
    shown = printable(words, len(words) + 1)
    if key:
        shown = re.sub(re.escape(key), _KEY_SHOWN, shown, flags=re.IGNORECASE)
        if any(_letters(key) in form for form in _disguises(shown)):
            shown = f"[words that hold {_KEY_SHOWN[1:-1]}]"
    return printable(shown, _LONGEST).rstrip(".") or "nothing"


def repair_text(text: str) -> str:
    """Text that can be encoded: halves of surrogate pairs are joined, or become U+FFFD."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _disguises(text: str) -> Iterable[str]:
    """The letters of the text, and of the text with one or two layers of escapes undone."""
    yield _letters(text)
    for _ in range(2):
        for undo in (unquote, html.unescape, _unescape):
            text = undo(text)
        yield _letters(text)


def _letters(text: str) -> str:
    """The visible ASCII characters, of which keys consist, without anything between them."""
    return "".join(letter for letter in text.lower() if "!" <= letter <= "~")


def _unescape(text: str) -> str:
    return _ESCAPE.sub(lambda m: chr(int(m[1], 16)) if m[1] else m[2], text)


def _json(text: str) -> Any:
    try:
        return parse_json(text, "it")
    except UserError:
        raise MalformedError("it is not JSON", text) from None


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _choice(value: Any, model: str, *, cut: bool) -> Choice:
    if not isinstance(value, dict):
        raise MalformedError("a choice is not an object")
    message = value.get("message")
    if message is not None and not isinstance(message, dict):
        raise MalformedError("a message is not an object")
    holder: Mapping[str, Any] = value if message is None else message
    content = _text(value.get("text") if message is None else holder.get("content"))
    whole = None if content is None else repair_text(content)
    return Choice(
        whole,
        ended=_word(value.get("finish_reason")),
        refusal=_word(holder.get("refusal")),
        repaired=whole != content or (cut and "\ufffd" in (whole or "")),
        model=model,
    )


def _word(value: Any) -> str:
    return repair_text(value) if isinstance(value, str) else ""


def _text(value: Any, depth: int = 0) -> str | None:
    """A text as servers give it: a string, parts of a message, or nested parts."""
    if value is None or isinstance(value, str):
        return value
    if depth == _DEEPEST:
        raise MalformedError("its text is nested too deeply")
    if isinstance(value, list):
        parts = [part for part in (_text(one, depth + 1) for one in value) if part is not None]
        return "".join(parts) if parts else None
    if isinstance(value, dict):
        # Thoughts, pictures and tool calls are parts, too, but not of the text.
        if value.get("type") not in _TEXT_KINDS:
            return None
        held = next((value[key] for key in ("text", "value", "content") if key in value), None)
        return _text(held, depth + 1)
    raise MalformedError(f"its text is a {type(value).__name__}")
