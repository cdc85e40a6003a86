"""Conversations as the text that a model's chat template makes of them.

The template is filled in by `template_worker.py`, in a process of its own that can be killed. That
process is started once, stays, and ends with this one.
"""

import atexit
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from sordino.errors import UserError
from sordino.files import fingerprint, printable
from sordino.models import gguf_loading
from sordino.models.calls import open_tokenizer
from sordino.models.open import OpenModel
from sordino.models.reference import ModelRef

MOST_SECONDS = 2.0
"""The processor time that filling in a template may take."""

MOST_MEMORY = 2**29
"""The bytes of memory that filling in a template may take."""

MOST_CHARACTERS = 2**23
"""The longest text that a template may write."""

# A busy machine may take much longer than the processor time of a request, and starting.
_WAIT_S, _START_S = 30.0, 120.0
_LOOK_EVERY_S = 0.05

Message = Mapping[str, str]
"""One message of a conversation: its "role" and its "content"."""


class TemplateFailure(UserError):
    """A chat template could not be filled in.

    Args:
        name: The model's.
        reason: Why, in the template's or Python's words.
        endless: Whether its process had to be ended, so that it is not worth another try.
    """

    def __init__(self, name: str, reason: str, *, endless: bool) -> None:
        self.endless = endless
        words = printable(reason).rstrip(".")
        self.sentence = f"The chat template of {name} cannot be filled in ({words})"
        super().__init__(f"{self.sentence}.")


class Stopped(Exception):
    """What was asked for is not wanted any more."""


def _never() -> bool:
    return False


def template_of(ref: ModelRef) -> str | None:
    """A model's chat template, of its files alone; None where there is none to be taken.

    Raises:
        UserError: The tokenizer cannot be read.
    """
    if ref.kind == "gguf":
        with gguf_loading.reading(ref.path) as header:
            found = header.metadata.get("tokenizer.chat_template")
        return found if isinstance(found, str) else None
    tokenizer = open_tokenizer(ref.path, ref.name)
    if not tokenizer.chat_template:
        return None
    try:
        return _template(tokenizer)
    except _Failed as failed:
        raise TemplateFailure(ref.name, str(failed), endless=False) from None


def fingerprint_of(template: str) -> str:
    """Tells a chat template from others, in sixteen letters."""
    return fingerprint(template)[:16]


def has_template(opened: OpenModel) -> bool:
    """Whether the model's tokenizer says how a conversation is written."""
    return bool(opened.tokenizer.chat_template)


def render(
    opened: OpenModel,
    messages: Sequence[Message],
    *,
    system: str = "",
    add_generation_prompt: bool = True,
    variables: Mapping[str, bool] | None = None,
    stopped: Callable[[], bool] = _never,
) -> str:
    """The text that a model's chat template makes of a conversation.

    It is the text of `tokenizer.apply_chat_template(..., tokenize=False)`.

    Args:
        opened: The model.
        messages: The conversation, at least one message.
        system: What the system says at the beginning. Where the template refuses or drops a
            system's message, it stands before the first message; "" for nothing.
        add_generation_prompt: Whether the assistant's next message is begun.
        variables: What else the template is told, such as {"enable_thinking": False}.
        stopped: Asked while the template is being filled in.

    Raises:
        TemplateFailure: The template refuses the conversation, is wrong, writes nothing, or takes
            more than `MOST_SECONDS`, `MOST_MEMORY` or `MOST_CHARACTERS`.
        Stopped: `stopped` has said yes.
    """

    def filled(given: Sequence[Message]) -> str:
        return _fill_in(opened, given, add_generation_prompt, variables or {}, stopped)

    if not system:
        return filled(messages)
    try:
        text = filled([{"role": "system", "content": system}, *messages])
    except TemplateFailure as failure:  # such as of a template that refuses the role
        if failure.endless:
            raise
        text = ""
    if system in text:
        return text
    first = {**messages[0], "content": f"{system}\n\n{messages[0]['content']}"}
    return filled([first, *messages[1:]])


def template_text(opened: OpenModel) -> str:
    """The model's chat template.

    Raises:
        TemplateFailure: There is none, or none among several that could be taken.
    """
    try:
        return _template(opened.tokenizer)
    except _Failed as failed:
        raise TemplateFailure(opened.ref.name, str(failed), endless=False) from None


def text_ids(opened: OpenModel, text: str) -> list[int]:
    """The tokens of a text to which the tokenizer adds nothing of its own."""
    [ids] = texts_ids(opened, [text])
    return ids


def texts_ids(opened: OpenModel, texts: Sequence[str]) -> list[list[int]]:
    """The tokens of texts to which the tokenizer adds nothing of its own."""
    if not texts:
        return []
    ids = opened.tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    return [list(row) for row in ids]


def _fill_in(
    opened: OpenModel,
    messages: Sequence[Message],
    add_generation_prompt: bool,
    variables: Mapping[str, bool],
    stopped: Callable[[], bool],
) -> str:
    if stopped():
        raise Stopped
    try:
        return _ask_worker(
            {
                "template": _template(opened.tokenizer),
                "messages": [dict(message) for message in messages],
                "add_generation_prompt": add_generation_prompt,
                "variables": {**opened.tokenizer.special_tokens_map, **variables},
            },
            stopped,
        )
    except _Failed as failed:
        raise TemplateFailure(opened.ref.name, str(failed), endless=failed.endless) from None


def _template(tokenizer: PreTrainedTokenizerBase) -> str:
    try:
        template: Any = tokenizer.get_chat_template()
    except ValueError:  # several by name, and none of them the default
        raise _Failed("there are several, and none is called default") from None
    if not isinstance(template, str):
        raise _Failed(f"it is no text, but of the type {type(template).__name__}")
    return template


class _Failed(Exception):
    """Why a template could not be filled in; see `TemplateFailure`."""

    def __init__(self, reason: str, *, endless: bool = False) -> None:
        super().__init__(reason)
        self.endless = endless


class _Worker:
    """The process that fills in templates."""

    def __init__(self) -> None:
        limits = map(str, (MOST_SECONDS, MOST_MEMORY, MOST_CHARACTERS))
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(Path(__file__).with_name("template_worker.py")), *limits],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # It finds the same packages, and Ctrl-C in the terminal is not meant for it.
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            start_new_session=True,
        )
        self._lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        threading.Thread(target=self._listen, daemon=True).start()
        self._ready = False

    def alive(self) -> bool:
        """Whether it can be asked."""
        return self._process.poll() is None

    def ask(self, asked: Mapping[str, Any], stopped: Callable[[], bool]) -> str:
        """The text that it makes of a request.

        Raises:
            Stopped: `stopped` has said yes.
            _Failed: It could not, or had to be killed.
        """
        if not self._ready:
            if not self._line(_START_S, stopped):
                raise RuntimeError("The process that fills in chat templates could not be started.")
            self._ready = True
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(asked).encode("ascii") + b"\n")
            self._process.stdin.flush()
            line = self._line(_WAIT_S, stopped)
        except BrokenPipeError:  # it was ended from outside
            line = b""
        except BaseException:
            # What it still says would be taken for the answer to the next request.
            self.kill()
            raise
        if not line:
            reason = self._why_ended()
            self.kill()
            raise _Failed(reason, endless=True)
        answer = json.loads(line)
        if "failed" in answer:
            raise _Failed(answer["failed"])
        return _sound(answer["text"])

    def kill(self) -> None:
        """End it, whatever it does."""
        self._process.kill()
        self._process.wait()
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # of what was not written any more
            self._process.stdin.close()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                self._lines.put(line)
        self._lines.put(b"")

    def _line(self, seconds: float, stopped: Callable[[], bool]) -> bytes:
        """Its next line; b"" where it has ended, or is to be killed for taking too long."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                return self._lines.get(timeout=_LOOK_EVERY_S)
            except queue.Empty:
                if stopped():
                    raise Stopped from None
        return b""

    def _why_ended(self) -> str:
        slow = f"it takes more than {MOST_SECONDS:g} seconds"
        try:
            status = self._process.wait(timeout=1)
        except subprocess.TimeoutExpired:
            return slow
        if hasattr(signal, "SIGPROF") and status == -signal.SIGPROF:
            return slow
        return f"its process ended with status {status}"


def _sound(text: str) -> str:
    if not text:
        raise _Failed("it writes nothing")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise _Failed("it writes half a surrogate pair, which is no text") from None
    return text


_one_at_a_time = threading.Lock()
_worker: _Worker | None = None


def _ask_worker(asked: Mapping[str, Any], stopped: Callable[[], bool]) -> str:
    """Have a request answered by the worker, which is started where there is none."""
    global _worker
    with _one_at_a_time:
        if _worker is None or not _worker.alive():
            _worker = _Worker()
        return _worker.ask(asked, stopped)


@atexit.register
def _end_worker() -> None:
    if _worker is not None:
        _worker.kill()
