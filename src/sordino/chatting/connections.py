"""Connections to the page: limited in number, and closed if they send no request."""

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

MOST_CONNECTIONS = 64  # at once

REQUEST_S = 10.0
"""Seconds from a connection's opening, or a request's first byte, to the request's last byte."""

_FULL = b"There are too many connections: close some windows of the chat, and load this again.\n"
_REFUSAL = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain\r\nConnection: close\r\n"
    b"Content-Length: %d\r\n\r\n%s" % (len(_FULL), _FULL)
)


class Connection(H11Protocol):
    """A connection that is closed if no complete request arrives in time.

    If there are too many connections, the one that has waited longest for a request is closed; if
    all are waiting for answers, the new one is refused.
    """

    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for a request, if there is room."""
        super().connection_made(transport)
        self._await_request()
        # Connections that are closing do not count.
        known = [one for one in self.connections if isinstance(one, Connection)]
        known = [one for one in known if not one.transport.is_closing()]
        if len(known) <= MOST_CONNECTIONS:
            return
        if idle := [one for one in known if one is not self and one.is_idle]:
            min(idle, key=lambda one: one.since).transport.abort()
        else:
            transport.write(_REFUSAL)
            transport.close()

    def data_received(self, data: bytes) -> None:
        """Handle received bytes."""
        if self.transport.is_closing():  # it was refused
            return
        if self._late is None and self.is_idle:
            self._await_request()
        super().data_received(data)

    def on_response_complete(self) -> None:
        """Wait for the next request once it begins; uvicorn closes idle connections."""
        self._awaits_nothing()
        super().on_response_complete()
        if self.cycle.more_body and not self.cycle.response_complete:  # it has begun already
            self._await_request()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._awaits_nothing()
        super().connection_lost(exc)

    def shutdown(self) -> None:
        """Close at once, or after the current answer."""
        if self.is_idle:
            self.transport.abort()
        else:
            super().shutdown()

    @property
    def is_idle(self) -> bool:
        """Whether no complete request is waiting for its answer."""
        cycle = self.cycle
        return cycle is None or cycle.more_body or cycle.response_complete

    def _await_request(self) -> None:
        self.since = self.loop.time()
        self._late = self.loop.call_later(REQUEST_S, self._close_if_idle)

    def _awaits_nothing(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _close_if_idle(self) -> None:
        self._late = None
        if self.is_idle:
            self.transport.abort()
