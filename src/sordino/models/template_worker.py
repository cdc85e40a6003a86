"""Fill in chat templates, in a process of its own.

A template is a program that came with a model. It may loop, recurse, or ask for all memory, and
nothing inside Python stops that. `chat_template` therefore starts this file as a script, which
imports neither Sordino nor torch. A request is one line of JSON on standard input, and its answer
one line on standard output. The limits are given on the command line.
"""

import contextlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any


def main(seconds: float, memory: int, characters: int) -> None:
    """Answer requests until standard input ends.

    Args:
        seconds: The processor time of a request; the process ends if one takes more.
        memory: The bytes that a request may take beside those that the process has at its start.
        characters: The most characters of a text.
    """
    # Transformers' own function, so that the text is the one that `apply_chat_template` gives.
    from transformers.utils.chat_template_utils import render_jinja_template

    _limit_memory(memory)
    answers = os.fdopen(os.dup(1), "w", encoding="ascii")
    # Output that a template causes, such as a warning, is discarded.
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    _say(answers, {"ready": True})
    for line in sys.stdin.buffer:
        with _limited_time(seconds):
            answer = _answer(render_jinja_template, line, characters)
        _say(answers, answer)


def _answer(render: Any, line: bytes, characters: int) -> dict[str, str]:
    try:
        asked = json.loads(line)
        [text], _ = render(
            [asked["messages"]],
            chat_template=asked["template"],
            add_generation_prompt=asked["add_generation_prompt"],
            **asked["variables"],
        )
    except MemoryError:
        return {"failed": "it takes too much memory"}
    except Exception as error:  # noqa: BLE001  a template is a program: it may raise anything
        return {"failed": _reason(error)}
    if len(text) > characters:
        return {"failed": f"it writes more than {characters:,} characters"}
    return {"text": text}


def _reason(error: Exception) -> str:
    """Why a template failed, in its own words if it raised the error itself."""
    kind, words = type(error).__name__, str(error)[:1000]
    if kind == "TemplateError":  # of `raise_exception`
        return words or "it raises an exception without words"
    return f"{kind}: {words}" if words else kind


def _say(answers: Any, answer: dict[str, Any]) -> None:
    answers.write(json.dumps(answer) + "\n")
    answers.flush()


@contextlib.contextmanager
def _limited_time(seconds: float) -> Any:
    """End the process if the block takes more processor time, even inside C code."""
    if not hasattr(signal, "setitimer"):  # on Windows only the parent process limits time
        yield
        return
    signal.setitimer(signal.ITIMER_PROF, seconds)
    yield
    signal.setitimer(signal.ITIMER_PROF, 0)


def _limit_memory(memory: int) -> None:
    """Limit the address space, where the system reports how much is used (Linux)."""
    taken = Path("/proc/self/statm")
    if not taken.is_file():
        return
    import resource

    pages = int(taken.read_text().split()[0])
    most = pages * resource.getpagesize() + memory
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard != resource.RLIM_INFINITY:
        most = min(most, hard)
    resource.setrlimit(resource.RLIMIT_AS, (most, hard))


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
