"""The log of a service: one request a line, in the shapes that servers and gateways keep."""

import gzip
import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sordino.errors import UserError

CHAT = "chat/completions"
PLAIN = "completions"

# What is sent as the log has it. The rest (model, stream, user, n, seed, …) is not the prompt's, or
# is replay's own to say.
_KEPT = (
    *("stop", "presence_penalty", "frequency_penalty", "logit_bias", "response_format"),
    *("tools", "tool_choice", "chat_template_kwargs"),
    *("top_k", "min_p", "repetition_penalty", "repeat_penalty"),
)
# What OpenAI's protocol means where a request is silent; servers have other ideas of their own.
_SILENT = {"temperature": 1.0, "top_p": 1.0}
_LENGTHS = ("max_completion_tokens", "max_tokens")
_WRAPPERS = ("body", "request")
_TIMES = (
    *("timestamp", "@timestamp", "time", "ts", "datetime", "date"),
    *("created_at", "created", "start_time", "startTime"),
)
_DEEPEST = 4
_YEARS = range(2000, 2200)  # what is outside is no time


@dataclass(frozen=True)
class Prompt:
    """One request of the log.

    Args:
        log: The name of the file that it stands in.
        line: Its line there, from 1.
        at: When it was made, in UTC without a time zone; None where the log does not say.
        path: To which of a server's ways it goes: `CHAT` or `PLAIN`.
        request: What is sent, but for the model, the length and the seed.
        length: How many tokens the log allows the answer; None where it does not say.
    """

    log: str
    line: int
    at: datetime | None
    path: str
    request: Mapping[str, Any]
    length: int | None

    @property
    def text(self) -> str:
        """What was asked, as JSON: a list of messages, or a string."""
        asked = self.request.get("messages", self.request.get("prompt"))
        return json.dumps(asked, ensure_ascii=False)

    def added_to(self, digest: "hashlib._Hash") -> None:
        """Have a digest take in the request, by which the beginning of a log is known again."""
        known = [self.path, self.request, self.length, self.at and self.at.isoformat()]
        line = json.dumps(known, sort_keys=True)
        digest.update(f"{len(line)}:{line}".encode())


def read_log(path: Path) -> Iterator[Prompt | None]:
    """Read a log line by line: requests, and None for what is JSON but asks for no text.

    A line is OpenAI's request (`messages`, or a `prompt`), or holds one as `body` or `request`, as
    an object or as JSON in a string. Assistants' messages at the end are the answer that was given
    then; they are left out. A time is looked for under the usual names, as ISO 8601 or a Unix time.
    A last line that is not whole yet is passed over: a log is being written.

    Args:
        path: The JSONL file; with ".gz" at the end, compressed.

    Raises:
        UserError: It cannot be read, or a line is no JSON object.
    """
    for number, raw, whole in _lines(path):
        if not raw.strip():
            continue
        try:
            row = json.loads(raw)
        except (ValueError, RecursionError) as error:
            if not whole:
                return
            raise UserError(
                f"{path}, line {number} is not valid JSON ({error}): a log has one request a line."
            ) from None
        if not isinstance(row, dict):
            raise UserError(f"{path}, line {number} is no JSON object: each line must be one.")
        if b"\\ud" in raw.lower():  # half a character, which no server and no database takes
            row = json.loads(json.dumps(row, ensure_ascii=False).encode("utf-8", "replace"))
        yield _prompt(row, path.name, number)


def _lines(path: Path) -> Iterator[tuple[int, bytes, bool]]:
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rb") as stream:
            for number, raw in enumerate(stream, start=1):
                if number == 1:
                    raw = raw.removeprefix(b"\xef\xbb\xbf")
                yield number, raw, raw.endswith(b"\n")
    except FileNotFoundError:
        raise UserError(
            f"{path} does not exist: give the log of a service, a .jsonl file."
        ) from None
    except (gzip.BadGzipFile, EOFError, OSError) as error:
        raise UserError(f"{path} cannot be read: {error}.") from None


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
    asked = _asked(row)
    if asked is None:
        return None
    settings = {name: row[name] for name in _KEPT if row.get(name) is not None}
    for name, usual in _SILENT.items():
        settings[name] = usual if row.get(name) is None else row[name]
    length = next((row[name] for name in _LENGTHS if _is_count(row.get(name))), None)
    return Prompt(log, line, at, CHAT if "messages" in asked else PLAIN, asked | settings, length)


def _asked(row: Mapping[str, Any]) -> dict[str, Any] | None:
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
