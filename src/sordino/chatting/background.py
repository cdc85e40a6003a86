"""Answers are made in a thread that nobody has to wait for, so that Ctrl-C is always heard."""

import queue
import threading
from collections.abc import Callable, Generator
from dataclasses import dataclass

from sordino.chatting.duet import Answered, Said

Events = Generator[Said | Answered]


@dataclass(frozen=True)
class Ended:
    """There are no more events.

    Args:
        error: What ended them early, if anything did; for the listener to raise.
    """

    error: BaseException | None = None


Deliver = Callable[[Said | Answered | Ended], None]


class Background:
    """One daemon thread, which makes the answers that are asked of it one after the other."""

    def __init__(self) -> None:
        self._asked: queue.SimpleQueue[tuple[Callable[[], Events], Callable[[], bool], Deliver]]
        self._asked = queue.SimpleQueue()
        self._busy = False
        threading.Thread(target=self._run, daemon=True).start()

    @property
    def busy(self) -> bool:
        """Whether answers are being made."""
        return self._busy

    def ask(
        self,
        answers: Callable[[], Events],
        deliver: Deliver,
        gone: Callable[[], bool] = lambda: False,
    ) -> None:
        """Have answers made.

        Args:
            answers: What makes them.
            deliver: Is given each event, in the thread; the last one is an `Ended`.
            gone: Asked between events; where it says yes, nobody listens, and the rest is not made.
        """
        self._asked.put((answers, gone, deliver))

    def _run(self) -> None:
        while True:
            answers, gone, deliver = self._asked.get()
            self._busy = True
            deliver(Ended(_made(answers, deliver, gone)))
            self._busy = False


def _made(
    answers: Callable[[], Events], deliver: Deliver, gone: Callable[[], bool]
) -> BaseException | None:
    """Make answers, and give what ended them early."""
    if gone():
        return None
    events = answers()
    try:
        for event in events:
            deliver(event)
            if gone():
                break
    except BaseException as error:  # noqa: BLE001  whoever asked raises it again
        return error
    finally:
        events.close()
    return None
