"""The log of a service: one request per line, in the layouts of servers and gateways."""

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sordino.concepts.readers import read_table
from sordino.concepts.text_files import input_path, kind_of, open_input, read_text
from sordino.errors import UserError
from sordino.files import json_kind, parse_json, printable

CHAT = "chat/completions"
PLAIN = "completions"

# Settings that are sent as in the log. Others (model, stream, user, n, seed, …) are not part of the
# prompt, or are set by the replay.
_KEPT = (
    *("stop", "presence_penalty", "frequency_penalty", "logit_bias", "response_format"),
    *("tools", "tool_choice", "chat_template_kwargs"),
    *("top_k", "min_p", "repetition_penalty", "repeat_penalty"),
)
# The defaults of OpenAI's protocol; servers have other defaults.
_SILENT = {"temperature": 1.0, "top_p": 1.0}
_LENGTHS = ("max_completion_tokens", "max_tokens")
_WRAPPERS = ("body", "request")
_TIMES = (
    *("timestamp", "@timestamp", "time", "ts", "datetime", "date"),
    *("created_at", "created", "start_time", "startTime"),
)
_DEEPEST = 4
_DEEPEST_VALUE = 64  # no real request is nested deeper, and some encoders fail
_MARK = b"\xef\xbb\xbf"
_YEARS = range(2000, 2200)  # a number outside is not a time


@dataclass(frozen=True)
class Prompt:
    """One request of the log.

    Args:
        log: The name of its file.
        line: Its line there, from 1.
        at: Its time, in UTC without a time zone; None if the log has no time.
        path: The server's path for it: `CHAT` or `PLAIN`.
        request: The request without the model, the length and the seed.
        length: The log's limit on the answer's tokens; None if it has none.
        mended: Whether half a character was replaced in it.
    """

    log: str
    line: int
    at: datetime | None
    path: str
    request: Mapping[str, Any]
    length: int | None
    mended: bool = False

    @property
    def text(self) -> str:
        """The prompt as JSON: a list of messages, or a string."""
        asked = self.request.get("messages", self.request.get("prompt"))
        return json.dumps(asked, ensure_ascii=False)

    def added_to(self, digest: "hashlib._Hash") -> None:
        """Add the request to a digest, which identifies the beginning of a log."""
        known = [self.path, self.request, self.length, self.at and self.at.isoformat()]
        line = json.dumps(known, sort_keys=True)
        digest.update(f"{len(line)}:{line}".encode())


def read_log(path: Path) -> Iterator[Prompt | None]:
    """Read a log line by line: requests, and None for JSON that does not ask for text.

    A line is OpenAI's request (`messages`, or a `prompt`), or holds one as `body` or `request`, as
    an object or as JSON in a string. Assistants' messages at the end are the old answer and are
    left out. A time is looked for under the usual names, as ISO 8601 or a Unix time. A last line
    that is incomplete is skipped, since the log may still be written. Half a character (of a
    surrogate pair), which servers and databases reject, becomes a question mark.

    Args:
        path: The JSONL file, which may be compressed by gzip. A ".json" file may also hold a
            list of such objects, and a ".parquet" file one per row.

    Raises:
        UserError: It cannot be read, or a line is not a JSON object.
    """
    path = input_path(path, mend="give the log of a service, a .jsonl file")
    for number, row in _reader(path)(path):
        yield _prompt(row, path.name, number)


def _reader(path: Path) -> Callable[[Path], Iterator[tuple[int, dict[str, Any]]]]:
    """How the log's rows are read, by the kind of its file.

    Raises:
        UserError: It is another table than Parquet.
    """
    match kind_of(path):
        case ".csv" | ".tsv" | ".tab" as kind:
            raise UserError(f"{printable(str(path))} is a {kind} file: write the log as .jsonl.")
        case ".parquet":
            return _table_rows
        case ".json" if _holds_list(path):
            return _list_rows
        case _:
            return _json_rows


def _holds_list(path: Path) -> bool:
    """Whether the file is one JSON list."""
    with open_input(path) as stream:
        return stream.read(1024).removeprefix(_MARK).lstrip()[:1] == b"["


def _list_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    shown = printable(str(path))
    for number, row in enumerate(parse_json(read_text(path), shown, distinct=True), start=1):
        yield number, _object(row, f"{shown}, item {number}")


def _object(row: Any, where: str) -> dict[str, Any]:
    """A row of the log.

    Raises:
        UserError: It is no object.
    """
    if isinstance(row, dict):
        return row
    raise UserError(
        f'{where} is not a JSON object but {json_kind(row)}: a request is like {{"prompt": "…"}}, '
        "or holds messages."
    )


def _table_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    table = read_table(path)
    for index, row in table.rows():
        # Parquet also has times, decimal numbers and bytes, which JSON lacks.
        yield table.numbers[index], json.loads(json.dumps(row, default=str))


def _json_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    shown = printable(str(path))
    for number, raw, whole in _lines(path):
        if not raw.strip():
            continue
        try:
            row = parse_json(_decode(raw), f"{shown}, line {number}", distinct=True)
        except UserError:
            if not whole:
                return
            raise
        yield number, _object(row, f"{shown}, line {number}")


def _decode(raw: bytes) -> str | bytes:
    """The line, with halves of surrogate pairs unchanged; as bytes if it is not UTF-8."""
    try:
        return raw.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return raw


def _lines(path: Path) -> Iterator[tuple[int, bytes, bool]]:
    """Each line's number, its bytes, and whether it has ended."""
    number = 0
    with open_input(path) as stream:
        for raw in stream:
            ended = raw.endswith(b"\n")
            # JSON's strings contain no line breaks, so a carriage return is one, too.
            *parts, last = raw.removesuffix(b"\n").removesuffix(b"\r").split(b"\r")
            for part, whole in (*((part, True) for part in parts), (last, ended)):
                number += 1
                yield number, part.removeprefix(_MARK) if number == 1 else part, whole


def _prompt(row: Mapping[str, Any], log: str, line: int) -> Prompt | None:
    at = None
    for _ in range(_DEEPEST):
        at = at or _time(row)
        inner = next((row[name] for name in _WRAPPERS if name in row), None)
        if "messages" in row or "prompt" in row or inner is None:
            break
        if isinstance(inner, str):
            try:
                inner = json.loads(inner)
            except (ValueError, RecursionError):
                return None
        if not isinstance(inner, dict):
            return None
        row = inner
    asked = _read_asked(row)
    if asked is None:
        return None
    settings = {name: row[name] for name in _KEPT if row.get(name) is not None}
    for name, usual in _SILENT.items():
        settings[name] = usual if row.get(name) is None else row[name]
    length = next((row[name] for name in _LENGTHS if _is_count(row.get(name))), None)
    request = asked | settings
    try:
        whole = _sendable(request, _DEEPEST_VALUE)
    except ValueError:
        return None
    path = CHAT if "messages" in asked else PLAIN
    return Prompt(log, line, at, path, whole, length, whole != request)


def _sendable(value: Any, deepest: int) -> Any:
    """The value with half characters replaced.

    Raises:
        ValueError: It is nested too deeply, or holds a number that is not finite, which JSON lacks.
    """
    if deepest == 0:
        raise ValueError("nested too deeply")
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, list):
        return [_sendable(one, deepest - 1) for one in value]
    if isinstance(value, dict):
        return {_sendable(key, 1): _sendable(one, deepest - 1) for key, one in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value} is not JSON")
    return value


def _read_asked(row: Mapping[str, Any]) -> dict[str, Any] | None:
    messages, prompt = row.get("messages"), row.get("prompt")
    if isinstance(messages, list):
        kept = list(messages)
        while kept and isinstance(kept[-1], dict) and kept[-1].get("role") == "assistant":
            kept.pop()
        good = all(isinstance(one, dict) and isinstance(one.get("role"), str) for one in kept)
        if good and any(one["role"] == "user" for one in kept):
            return {"messages": kept}
        return None
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if isinstance(prompt, str) and prompt.strip():
        return {"prompt": prompt}
    return None


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _time(row: Mapping[str, Any]) -> datetime | None:
    return next(filter(None, (_moment(row[name]) for name in _TIMES if name in row)), None)


def _moment(value: object) -> datetime | None:
    """A time in UTC without a time zone, from ISO 8601 or a Unix time in s, ms, µs or ns."""
    if isinstance(value, str):
        with suppress(ValueError):
            value = float(value)
    try:
        if isinstance(value, str):
            found = datetime.fromisoformat(value.strip())
            found = found if found.tzinfo else found.replace(tzinfo=UTC)
        elif isinstance(value, int | float) and not isinstance(value, bool) and value > 0:
            steps = max(0, math.floor((math.log10(value) - 8) / 3))
            found = datetime.fromtimestamp(value / 1000**steps, UTC)
        else:
            return None
        found = found.astimezone(UTC).replace(tzinfo=None)
        return found if found.year in _YEARS else None
    except (ValueError, OverflowError, OSError):
        return None
