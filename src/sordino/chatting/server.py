"""The chat in the browser: a page, and answers streamed to it as server-sent events."""

import asyncio
import ipaddress
import json
import os
import secrets
import signal
import socket
import threading
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from types import FrameType
from typing import Annotated, Any
from urllib.parse import urlsplit

import uvicorn
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from sordino.chatting.background import Background, Ended
from sordino.chatting.connections import Connection
from sordino.chatting.conversation import Settings, Side, Turn
from sordino.chatting.page import render
from sordino.chatting.voices import Answered, Said, Voices
from sordino.errors import UserError
from sordino.files import printable

_MOST_BYTES = 2**22  # of a request; longer than any conversation between people
_GRACE_S = 2  # for answers under way when the server ends

_Name = Annotated[str, Field(max_length=100)]


class _Wanted(BaseModel):
    """The page's request for answers to the last turn; `id` is the name for stopping it."""

    model_config = ConfigDict(extra="forbid")

    id: _Name
    turns: list[Turn] = Field(min_length=1)
    sides: list[Side] = Field(min_length=1, max_length=2)
    settings: Settings


class _Kept(BaseModel):
    model_config = ConfigDict(extra="forbid")

    turns: list[Turn]


_STOPPED: TypeAdapter[str] = TypeAdapter(_Name)


@dataclass
class Service:
    """Answers one request at a time, in their order; `ending` says when the server ends."""

    duet: Voices
    ending: Callable[[], bool] = lambda: False
    _background: Background = field(default_factory=Background)
    _under_way: dict[str, threading.Event] = field(default_factory=dict)
    _waiting: int = 0

    @property
    def busy(self) -> bool:
        """Whether an answer is being generated, even if nobody waits for it."""
        return self._background.busy

    def stop(self, key: str) -> bool:
        """Stop the request of that name; False if there is none."""
        stopping = self._under_way.pop(key, None)
        if stopping is None:
            return False
        stopping.set()
        return True

    async def events(self, wanted: _Wanted) -> AsyncGenerator[dict[str, Any]]:
        """The events for the page, until the last turn is answered.

        If the listener goes, this is closed, and generation ends with the current token.
        """
        stopping, gone = threading.Event(), threading.Event()
        self._under_way[wanted.id] = stopping
        self._waiting += 1
        try:
            if self._waiting > 1:
                yield {"kind": "waiting", "before": self._waiting - 1}
            async with aclosing(self._answers(wanted, stopping, gone)) as events:
                async for event in events:
                    yield event
        except UserError as error:
            yield {"kind": "error", "says": str(error)}
        finally:
            gone.set()
            self._waiting -= 1
            if self._under_way.get(wanted.id) is stopping:
                del self._under_way[wanted.id]
        yield {"kind": "end"}

    async def _answers(
        self, wanted: _Wanted, stopping: threading.Event, gone: threading.Event
    ) -> AsyncGenerator[dict[str, Any]]:
        loop, heard = asyncio.get_running_loop(), asyncio.Queue[Said | Answered | Ended]()

        def stopped() -> bool:
            return stopping.is_set() or gone.is_set() or self.ending()

        def deliver(event: Said | Answered | Ended) -> None:
            with suppress(RuntimeError):  # the loop is closed: nobody listens
                loop.call_soon_threadsafe(heard.put_nowait, event)

        self._background.ask(
            lambda: self.duet.answers(wanted.turns, wanted.settings, wanted.sides, stopped),
            deliver,
            gone.is_set,
        )
        shown: dict[Side, str] = dict.fromkeys(wanted.sides, "")
        while not isinstance(event := await self._next(heard), Ended):
            if isinstance(event, Answered):
                answer = event.answer.model_dump(mode="json")
                yield {"kind": "answered", "side": event.side, "answer": answer}
            elif event.text.startswith(shown[event.side]):
                more = event.text[len(shown[event.side]) :]
                if more:
                    yield {"kind": "more", "side": event.side, "text": more}
                shown[event.side] = event.text
            else:  # a further token can change how earlier ones are decoded
                yield {"kind": "instead", "side": event.side, "text": event.text}
                shown[event.side] = event.text
        if event.error is not None:
            raise event.error

    async def _next(self, heard: asyncio.Queue[Said | Answered | Ended]) -> Said | Answered | Ended:
        """The next event; when the server ends, slow ones are not waited for."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(_GRACE_S / 2):
                    return await heard.get()
            if self.ending():
                return Ended(UserError("The chat has ended before the answer."))


def refusal(method: str, headers: Mapping[str, str], served: str) -> str:
    """Why a request is refused; "" if it is not.

    A page elsewhere on the web can make a browser send requests to this machine. But it cannot
    choose the origin that the browser sends, nor send JSON without a preflight request. If it
    points its own name at this machine (DNS rebinding), that name is in Host; a numeric address
    cannot be pointed elsewhere.

    Args:
        method: The request's method, such as "GET".
        headers: The headers by lower-case name.
        served: The name or address at which the server listens.
    """
    host = headers.get("host", "")
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        name = ""
    if name not in ("localhost", served.casefold()) and not _is_address(name):
        return "Refused: the request names another host. Open the address that was printed."
    origin = headers.get("origin")
    if origin is not None and origin != f"http://{host}":
        return "Refused: the request comes from another page."
    if method in ("GET", "HEAD"):
        return ""
    if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        return "Refused: the request comes from another page."
    if headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        return "Refused: requests are JSON."
    return ""


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


class _SameOrigin:
    """Middleware that answers 403 to what `refusal` refuses."""

    def __init__(self, app: ASGIApp, served: str) -> None:
        self._app, self._served = app, served

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return  # no web sockets
        why = refusal(scope["method"], Headers(scope=scope), self._served)
        if why:
            await PlainTextResponse(f"{why}\n", status_code=403)(scope, receive, send)
        else:
            await self._app(scope, receive, send)


def application(service: Service, start: Settings, served: str = "127.0.0.1") -> Starlette:
    """The web application.

    Args:
        service: Answers requests.
        start: The page's initial settings.
        served: The name or address at which it is served.
    """

    def page(_: Request) -> Response:
        nonce = secrets.token_urlsafe(16)
        policy = (
            f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; "
            "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
            "frame-ancestors 'none'"
        )
        html = render(service.duet, start, nonce)
        return HTMLResponse(html, headers={**_HEADERS, "Content-Security-Policy": policy})

    async def answer(request: Request) -> Response:
        # In a thread, since parsing a long conversation must not delay other requests.
        wanted = await run_in_threadpool(_Wanted.model_validate_json, await _body(request))
        return _EventStream(service.events(wanted))

    async def stop(request: Request) -> Response:
        found = service.stop(_STOPPED.validate_json(await _body(request)))
        return Response(status_code=204 if found else 404)

    def read(body: bytes) -> str:
        return service.duet.conversation(_Kept.model_validate_json(body).turns).markdown()

    async def markdown(request: Request) -> Response:
        text = await run_in_threadpool(read, await _body(request))
        return PlainTextResponse(text, media_type="text/markdown", headers=_HEADERS)

    return Starlette(
        routes=[
            Route("/", page),
            Route("/answer", answer, methods=["POST"]),
            Route("/stop", stop, methods=["POST"]),
            Route("/markdown", markdown, methods=["POST"]),
        ],
        middleware=[Middleware(_SameOrigin, served=served)],
        exception_handlers={
            UserError: _answer_mistake,
            ValidationError: _answer_mistake,
            ClientDisconnect: _answer_mistake,
        },
    )


_HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


async def _body(request: Request) -> bytes:
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > _MOST_BYTES:
            raise UserError("The conversation is too long to send: save it, and clear it.")
    return bytes(body)


def _answer_mistake(_: Request, error: Exception) -> Response:
    said = str(error)
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"]))
        said = f"The request cannot be read: {where or 'all of it'}: {first['msg']}."
    elif isinstance(error, ClientDisconnect):
        said = "The request ended early."
    return PlainTextResponse(printable(said, 1000), status_code=400)


class _EventStream(StreamingResponse):
    """Server-sent events, whose source is closed as soon as the listener goes."""

    def __init__(self, events: AsyncGenerator[dict[str, Any]]) -> None:
        self._events = events
        super().__init__(self._lines(), media_type="text/event-stream", headers=_HEADERS)

    async def stream_response(self, send: Send) -> None:
        async with aclosing(self._events):
            await super().stream_response(send)

    async def _lines(self) -> AsyncGenerator[str]:
        async for event in self._events:
            yield f"data: {json.dumps(event, ensure_ascii=False)}\n\n"


def listen(host: str, port: int) -> socket.socket:
    """A listening socket, so that a browser can connect before the models are open.

    Args:
        host: A name or address of this machine.
        port: The port; 0 for any free one.

    Raises:
        UserError: Nothing can listen there.
    """
    if not host.strip():  # it would mean all addresses, as where a shell's variable is not set
        raise UserError("`host` is empty: give an address, such as 127.0.0.1.")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen()
    except (OSError, OverflowError, ValueError) as error:  # no such name, port or text
        listening.close()
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"Nothing can be served at {printable(host)}, port {port} ({reason}): `port=0` takes "
            "any free port."
        ) from None
    return listening


def address(listening: socket.socket, host: str) -> str:
    """The page's address for a browser on this machine."""
    there, port, *_ = listening.getsockname()
    shown = f"[{host}]" if ":" in host else host
    name = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(there, shown)  # noqa: S104
    return f"http://{name}:{port}/"


class Server(uvicorn.Server):
    """Serves the page: `run(sockets=[…])` does so until interrupted, or `should_exit` is set.

    Answers under way then end with the current token. A second interruption ends the process.

    Args:
        duet: The two sides.
        start: The page's initial settings.
        host: The name or address at which it is served.
    """

    def __init__(self, duet: Voices, start: Settings, host: str) -> None:
        self._service = Service(duet, lambda: self.should_exit)
        super().__init__(
            uvicorn.Config(
                application(self._service, start, host),
                http=Connection,
                ws="none",
                lifespan="off",
                log_config=None,
                log_level="error",  # odd requests are no news for the terminal
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=_GRACE_S,
            )
        )

    @property
    def busy(self) -> bool:
        """Whether an answer is being generated, even if nobody waits for it."""
        return self._service.busy

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Exit gracefully at the first signal, and at once at a second Ctrl-C."""
        if self.should_exit and sig == signal.SIGINT:
            os._exit(130)
        super().handle_exit(sig, frame)
