"""Fill in a model's chat template.

`template_worker.py` does so in a process of its own that can be killed. That process is started
once and ends with this one.
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

# On a busy machine a request and a start may take much longer than their processor time.
_WAIT_S, _START_S = 30.0, 120.0
_LOOK_EVERY_S = 0.05

Message = Mapping[str, str]
"""One message of a conversation: its "role" and its "content"."""


class TemplateFailure(UserError):
    """A chat template could not be filled in.

    Args:
        name: The model's.
        reason: Why, in the template's or Python's words.
        endless: Whether its process had to be killed, so that another try is pointless.
    """

    def __init__(self, name: str, reason: str, *, endless: bool) -> None:
        self.endless = endless
        words = printable(reason).rstrip(".")
        self.sentence = f"The chat template of {name} cannot be filled in ({words})"
        super().__init__(f"{self.sentence}.")


class Stopped(Exception):
    """The caller no longer wants the result."""


def _never() -> bool:
    return False


def template_of(ref: ModelRef) -> str | None:
    """A model's chat template, from its files alone; None if there is none.

    Raises:
        UserError: The tokenizer cannot be read, or has no usable template.
    """
    if ref.kind == "gguf":
        with gguf_loading.reading(ref.path) as header:
            found = header.metadata.get("tokenizer.chat_template")
        return found if isinstance(found, str) else None
    tokenizer = open_tokenizer(ref.path, ref.name)
    return _template(tokenizer, ref.name) if tokenizer.chat_template else None


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
        system: The system message; "" for none. Where the template refuses or drops it, it is put
            before the first message's text.
        add_generation_prompt: Whether the assistant's next message is begun.
        variables: The template's other variables, such as {"enable_thinking": False}.
        stopped: Called while the template is being filled in; true to give up.

    Raises:
        TemplateFailure: The template refuses the conversation, is wrong, writes nothing, or takes
            more than `MOST_SECONDS`, `MOST_MEMORY` or `MOST_CHARACTERS`.
        Stopped: `stopped` returned true.
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
        TemplateFailure: There is none, or there are several and no default.
    """
    return _template(opened.tokenizer, opened.ref.name)


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
                "template": template_text(opened),
                "messages": [dict(message) for message in messages],
                "add_generation_prompt": add_generation_prompt,
                "variables": {**opened.tokenizer.special_tokens_map, **variables},
            },
            stopped,
        )
    except _Failed as failed:
        raise TemplateFailure(opened.ref.name, str(failed), endless=failed.endless) from None


def _template(tokenizer: PreTrainedTokenizerBase, name: str) -> str:
    try:
        template: Any = tokenizer.get_chat_template()
    except ValueError:
        reason = "there are several, and none is called default"
        raise TemplateFailure(name, reason, endless=False) from None
    if not isinstance(template, str):
        reason = f"it is not text, but of the type {type(template).__name__}"
        raise TemplateFailure(name, reason, endless=False)
    return template


class _Failed(Exception):
    """The worker could not fill in a template; see `TemplateFailure`."""

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
        """The text that it answers a request with.

        Raises:
            Stopped: `stopped` returned true.
            _Failed: It could not answer, or had to be killed.
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
        except BrokenPipeError:  # it was killed from outside
            line = b""
        except BaseException:
            # Its late answer would be taken for the answer to the next request.
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
        """Kill the process."""
        self._process.kill()
        self._process.wait()
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # from a request that was not written completely
            self._process.stdin.close()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                self._lines.put(line)
        self._lines.put(b"")

    def _line(self, seconds: float, stopped: Callable[[], bool]) -> bytes:
        """Its next line; b"" if it has ended or takes too long."""
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
        raise _Failed("it writes half a surrogate pair, which is not text") from None
    return text


_one_at_a_time = threading.Lock()
_worker: _Worker | None = None


def _ask_worker(asked: Mapping[str, Any], stopped: Callable[[], bool]) -> str:
    """Have the worker answer a request, and start it if it is not running."""
    global _worker
    with _one_at_a_time:
        if _worker is None or not _worker.alive():
            _worker = _Worker()
        return _worker.ask(asked, stopped)


@atexit.register
def end_worker() -> None:
    """End the process that fills templates in; the next template starts another."""
    if _worker is not None:
        _worker.kill()
