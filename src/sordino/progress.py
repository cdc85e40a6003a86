"""Progress with a rate and the time left, on standard error.

On a terminal a live bar; into a pipe a plain line every few seconds. `hushed` silences both.
"""

import sys
import time
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_LINE_EVERY_S = 10.0
_MARKS_OF_DIRECTION = (
    "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufeff"
)
_hushing: list[object] = []
"""One entry for each block of `hushed` that any thread is in; they may end in any order."""
_wording: list[Callable[[str], str]] = []
"""The rewordings of notes that are in force, one for each block of `worded`."""


@contextmanager
def hushed() -> Iterator[None]:
    """Silence all progress inside the block."""
    block = object()
    _hushing.append(block)
    try:
        yield
    finally:
        _hushing.remove(block)


@contextmanager
def worded(words: Callable[[str], str]) -> Iterator[None]:
    """Reword notes inside the block, such as to name flags in place of arguments."""
    _wording.append(words)
    try:
        yield
    finally:
        _wording.remove(words)


def is_live() -> bool:
    """Whether bars may be shown: on a terminal, unless hushed."""
    return not _hushing and sys.stderr.isatty()


def note(message: str) -> None:
    """Print one plain line to standard error, unless hushed."""
    for words in _wording:
        message = words(message)
    if not _hushing:
        print(tame(message), file=sys.stderr, flush=True)


def tame(text: str) -> str:
    """Make text safe for a terminal, and keep its line breaks.

    Controls (C0 and C1), marks of writing direction and halves of surrogate pairs become U+FFFD.
    """
    if text.isprintable():
        return text
    return "".join(
        "\N{REPLACEMENT CHARACTER}"
        if letter in _MARKS_OF_DIRECTION
        or (letter != "\n" and unicodedata.category(letter) in ("Cc", "Cs", "Cn"))
        else letter
        for letter in text
    )


@contextmanager
def track(
    label: str, total: float, unit: str, done: float = 0
) -> Iterator[Callable[[float], None]]:
    """Show progress towards `total` units; the yielded function adds finished ones.

    Args:
        label: What is being done, in a few words.
        total: The number of all units.
        unit: The unit's name in the plural, such as "tokens".
        done: Units that an earlier, interrupted run has finished; they count as progress, but not
            in the rate.
    """
    if _hushing:
        yield lambda _: None
    elif is_live():
        yield from _bar(label, total, unit, done)
    else:
        yield from _lines(label, total, unit, done)


def _bar(label: str, total: float, unit: str, done: float) -> Iterator[Callable[[float], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
    from rich.text import Text

    started, before = time.monotonic(), done

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(_rate(task.completed - before, time.monotonic() - started, unit))

    class Left(ProgressColumn):
        def render(self, task: Task) -> Text:
            elapsed = time.monotonic() - started
            return Text(_tell_left(task.completed - before, total - task.completed, elapsed))

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
    )
    with Progress(*columns, Rate(), Left(), console=Console(stderr=True)) as progress:
        task = progress.add_task(label, total=total, completed=round(done))
        yield lambda step: progress.advance(task, step)


def _lines(label: str, total: float, unit: str, done: float) -> Iterator[Callable[[float], None]]:
    started = last = time.monotonic()
    before = done

    def say(now: float) -> None:
        new, elapsed = done - before, now - started
        share = 100 * done / total if total else 100
        rate, left = _rate(new, elapsed, unit), _tell_left(new, total - done, elapsed)
        note(f"{label}: {share:3.0f} %, {rate}, {left}")

    def advance(step: float) -> None:
        nonlocal done, last
        done += step
        now = time.monotonic()
        if now - last >= _LINE_EVERY_S and done < total:
            last = now
            say(now)

    yield advance
    elapsed = time.monotonic() - started
    note(f"{label}: done in {_clock(elapsed)}, {_rate(done - before, elapsed, unit)}")


def _rate(new: float, elapsed: float, unit: str) -> str:
    rate = new / elapsed if elapsed > 0 else 0.0
    if rate == 0 or rate >= 10:
        return f"{rate:,.0f} {unit}/s"
    # Rates of slow things are per minute or per hour.
    for factor, time_unit in ((1, "s"), (60, "min")):
        if rate * factor >= 1:
            return f"{rate * factor:.1f} {unit}/{time_unit}"
    return f"{rate * 3600:.1f} {unit}/h"


def _tell_left(new: float, remaining: float, elapsed: float) -> str:
    return f"{_clock(remaining * elapsed / new)} left" if new > 0 else "-:-- left"


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
