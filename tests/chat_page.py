"""The chat's page, served to a test."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from sordino.chatting import SIDES, Settings, server

SHORT = Settings(new_tokens=12, seed=3)


@contextmanager
def serving(duet, start: Settings = SHORT) -> Iterator[str]:
    """Serve the page for the length of the block; gives its address."""
    listening = server.listen("127.0.0.1", 0)
    web = server.Server(duet, start, "127.0.0.1")
    thread = threading.Thread(target=web.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        yield server.address(listening, "127.0.0.1")
    finally:
        web.should_exit = True
        thread.join(timeout=30)
        assert not thread.is_alive()


def request(turns, settings: Settings = SHORT, key: str = "one", sides=SIDES) -> dict:
    """What the page sends to have turns answered."""
    return {
        "id": key,
        "turns": [turn.model_dump(mode="json") for turn in turns],
        "sides": list(sides),
        "settings": settings.model_dump(mode="json"),
    }


def events(response) -> Iterator[dict]:
    """What comes back, piece by piece."""
    for line in response.iter_lines():
        if line:
            yield json.loads(line.removeprefix(b"data: "))
