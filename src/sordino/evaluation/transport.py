"""HTTP requests with a bound on an answer's time and size, which follow no redirect."""

import http.client
import io
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from urllib3 import HTTPConnectionPool, HTTPSConnectionPool, PoolManager, Timeout
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import HTTPError, InvalidHeader, ReadTimeoutError
from urllib3.util import Retry

MOST_BYTES = 2**24
"""An answer that is longer, compressed or not, is cut off."""

LONGEST_PAUSE_S = 60.0
"""The longest wait between two tries, whatever the server asks for."""

_CONNECT_S = 10.0
_PIECE = 2**16


class _TooLongError(OSError):
    """An answer is longer than allowed."""


class _Bounded(io.RawIOBase):
    """A socket's stream with a deadline and a bound on its bytes.

    A socket's own timeout starts anew with each piece, so one byte per second would never end.
    """

    def __init__(self, raw: io.RawIOBase, sock: socket.socket) -> None:
        self._raw, self._sock = raw, sock
        self._deadline = time.monotonic() + (sock.gettimeout() or float("inf"))
        self._left = MOST_BYTES

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        remaining = self._deadline - time.monotonic()
        if remaining <= 0:
            raise TimeoutError("the time for an answer is over")
        self._sock.settimeout(remaining)
        count: int | None = self._raw.readinto(buffer)
        self._left -= count or 0
        if self._left < 0:
            raise _TooLongError(f"longer than {MOST_BYTES:,} bytes")
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()


class _BoundedResponse(http.client.HTTPResponse):
    def __init__(self, sock: socket.socket, *about: Any, **more: Any) -> None:
        super().__init__(sock, *about, **more)
        self.fp = io.BufferedReader(_Bounded(self.fp.detach(), sock))


class _Connection(HTTPConnection):
    response_class = _BoundedResponse


class _SecureConnection(HTTPSConnection):
    response_class = _BoundedResponse


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Connection


class _SecurePool(HTTPSConnectionPool):
    ConnectionCls = _SecureConnection


@dataclass(frozen=True)
class Reply:
    """A server's reply.

    Args:
        status: Its status.
        data: The body, decompressed, as far as it arrived.
        fault: Why it is not complete, in a few words; "" if it is.
        headers: Its headers.
    """

    status: int
    data: bytes = b""
    fault: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def pause_s(self) -> float | None:
        """The pause that the server asks for, in seconds; None where it asks for none."""
        try:
            # Cut, because Python converts no integer of thousands of digits.
            asked = Retry().parse_retry_after(self.headers.get("Retry-After", "").strip()[:40])
        except (InvalidHeader, ValueError, OverflowError):  # no number or date that a clock has
            return None
        return min(float(asked), LONGEST_PAUSE_S)


def bound(pools: PoolManager) -> PoolManager:
    """Make the connections of these pools keep the bounds on an answer; the same pools."""
    pools.pool_classes_by_scheme = {"http": _Pool, "https": _SecurePool}
    return pools


def exchange(
    pools: PoolManager,
    method: str,
    url: str,
    *,
    body: bytes | None,
    headers: Mapping[str, str],
    timeout_s: float,
) -> Reply:
    """Send a request once and read the reply.

    Args:
        pools: As `bound` gives them.
        method: GET or POST.
        url: Of the request; a redirect is a reply like others.
        body: The request's body.
        headers: The request's headers.
        timeout_s: Seconds that the whole answer may take.

    Raises:
        HTTPError: No reply begins.
    """
    response = pools.urlopen(
        method,
        url,
        body=body,
        headers=headers,
        preload_content=False,
        redirect=False,
        retries=False,
        timeout=Timeout(connect=min(_CONNECT_S, timeout_s), read=timeout_s),
    )
    data, fault = bytearray(), "it was left"
    try:
        for piece in response.stream(_PIECE, decode_content=True):
            data += piece
            if len(data) > MOST_BYTES:
                raise _TooLongError
        fault = ""
    except ReadTimeoutError:
        fault = f"it is not whole after {timeout_s:g} s"
    except (HTTPError, _TooLongError, ValueError) as error:  # such as a piece of negative length
        long = isinstance(error, _TooLongError) or any(
            isinstance(cause, _TooLongError) for cause in error.args
        )
        fault = f"it is longer than {MOST_BYTES >> 20} MiB" if long else "it breaks off"
    finally:
        if fault:
            response.close()
        else:
            response.release_conn()
    return Reply(response.status, bytes(data), fault, response.headers)
