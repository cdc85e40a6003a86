"""A thread that generates answers, so that Ctrl-C is always handled."""

import queue
import threading
from collections.abc import Callable, Generator
from dataclasses import dataclass

from sordino.chatting.voices import Answered, Said
from sordino.errors import UserError
from sordino.files import is_memory_full

Events = Generator[Said | Answered]


@dataclass(frozen=True)
class Ended:
    """The last event, with the error that ended them early, for the listener to raise."""

    error: BaseException | None = None


Deliver = Callable[[Said | Answered | Ended], None]


class Background:
    """A daemon thread that generates answers one after the other."""

    def __init__(self) -> None:
        self._asked: queue.SimpleQueue[tuple[Callable[[], Events], Callable[[], bool], Deliver]]
        self._asked = queue.SimpleQueue()
        self._busy = False
        threading.Thread(target=self._run, daemon=True).start()

    @property
    def busy(self) -> bool:
        """Whether answers are being generated."""
        return self._busy

    def ask(
        self,
        answers: Callable[[], Events],
        deliver: Deliver,
        gone: Callable[[], bool] = lambda: False,
    ) -> None:
        """Queue answers.

        Args:
            answers: Generates them.
            deliver: Called in the thread with each event; the last one is an `Ended`.
            gone: Called between events; once it returns True, the rest is not generated.
        """
        self._asked.put((answers, gone, deliver))

    def _run(self) -> None:
        while True:
            answers, gone, deliver = self._asked.get()
            self._busy = True
            deliver(Ended(_deliver_all(answers, deliver, gone)))
            self._busy = False


def _deliver_all(
    answers: Callable[[], Events], deliver: Deliver, gone: Callable[[], bool]
) -> BaseException | None:
    """Deliver all events; the error that ended them early, if one did."""
    if gone():
        return None
    events = answers()
    try:
        for event in events:
            deliver(event)
            if gone():
                break
    except BaseException as error:  # noqa: BLE001  the listener raises it again
        if isinstance(error, Exception) and is_memory_full(error):
            return UserError(
                "Memory ran out: ask for fewer new tokens, or start a new conversation."
            )
        return error
    finally:
        events.close()
    return None
