"""Continuations from an OpenAI-compatible server: llama.cpp, vLLM, Ollama, a hosted service."""

import ipaddress
import json
import os
import random
import re
import ssl
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import chain, islice
from multiprocessing.pool import ThreadPool
from typing import Any, TypeVar
from urllib.parse import unquote
from urllib.request import getproxies, proxy_bypass

import numpy as np
from urllib3 import PoolManager, ProxyManager, make_headers
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    LocationParseError,
    LocationValueError,
    NewConnectionError,
    ProxyError,
    ReadTimeoutError,
    SSLError,
)
from urllib3.util import Url, parse_url

from sordino.errors import UserError, require_at_least
from sordino.evaluation.answers import (
    FILTERED,
    Choice,
    MalformedError,
    read_adapters,
    read_choices,
    read_models,
    without_key,
    words_of,
)
from sordino.evaluation.measure import ALL
from sordino.evaluation.transport import LONGEST_PAUSE_S, Reply, bound, exchange
from sordino.files import capital, counted, printable
from sordino.models.chat_template import Message
from sordino.models.generation import Continuation, Sampling
from sordino.progress import note
from sordino.registry import did_you_mean

BATCH_PROMPTS = 8
"""Prompts of a batch, the most that a kill loses. It does not depend on the concurrency, so that an
evaluation can continue with another one."""

CHAT_INSTRUCTION = (
    "Continue the text that you are given from exactly where it stops. Write the continuation and "
    "nothing else."
)
"""Makes a server that has only a chat continue a prompt instead of answering it."""

_KEY_VARIABLE = "OPENAI_API_KEY"
BACKOFF_S = 1.0
"""The first pause before a request is tried again, in seconds; the next ones double."""
_TRY_AGAIN = (408, 429, 500, 502, 503, 504)

_MOST_REQUESTS = 1024
_DAY_S = 86_400
_LOWEST_RATE = 0.001
_PROXY_WANTS_PASSWORD = 407
_REDIRECTS = (301, 302, 303, 307, 308)
_ENDS = ("stop", "length", "tool_calls", "function_call")
"""The protocol's own words for why an answer ended; others are the server's."""
_PROBED = 3
"""How many prompts are sent at most to find out what a server understands."""
_NOT_SHOWN = "its words are not shown"

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Access:
    """How a server is accessed.

    Args:
        key_variable: The environment variable that holds the API key; None for OPENAI_API_KEY if
            it is set, else no key.
        concurrency: How many requests are in progress at once.
        timeout_s: How long an answer may take from its first byte to its last, in seconds.
        retries: How often a request is repeated after a failed connection, the answers 408, 429
            and 5xx, or a malformed one. The pauses grow, or are those that the server asks for, up
            to a minute.
        rate: The most requests per minute, evenly spaced; None for no limit. Retries wait by the
            rule above.
        quote: Whether messages may quote a server, which can quote what it was sent.

    Raises:
        UserError: A setting is outside its range, or the named variable is not set.
    """

    key_variable: str | None = None
    concurrency: int = 4
    timeout_s: float = 120.0
    retries: int = 5
    rate: float | None = None
    quote: bool = True

    def __post_init__(self) -> None:
        require_at_least(1, concurrency=self.concurrency)
        require_at_least(0, retries=self.retries)
        if self.concurrency > _MOST_REQUESTS:
            raise UserError(
                f"`concurrency={self.concurrency}` is out of range: it must be at most "
                f"{_MOST_REQUESTS:,}."
            )
        # A number that is none is in no range; sockets and clocks take no endless times.
        if not 0 < self.timeout_s <= _DAY_S:
            raise UserError(
                f"`timeout_s={self.timeout_s:g}` is out of range: it must be above 0 and at most "
                f"{_DAY_S:,} (a day)."
            )
        if self.rate is not None and not _LOWEST_RATE <= self.rate < float("inf"):
            raise UserError(
                f"`rate={self.rate:g}` is out of range: it must be at least {_LOWEST_RATE}, and "
                "finite."
            )
        if self.key_variable is not None and not self._key:
            raise UserError(
                f"The environment variable {self.key_variable}, which should hold the API key, is "
                "not set."
            )
        if not (self._key.isascii() and self._key.isprintable()):
            raise UserError(
                f"The environment variable {self.variable} holds characters that are not allowed "
                "in an API key."
            )

    @property
    def variable(self) -> str:
        """The environment variable that holds the key, if it is set."""
        return self.key_variable or _KEY_VARIABLE

    def headers(self) -> dict[str, str]:
        """The headers of every request."""
        return {"Authorization": f"Bearer {self._key}"} if self._key else {}

    def quote_words(self, words: str) -> str:
        """A server's words for a message: on one line, shortened, without the key."""
        return without_key(words, self._key) if self.quote else _NOT_SHOWN

    def name_shown(self, name: str) -> str:
        """A model's name for messages and results: a server may call it anything."""
        return without_key(name, self._key)

    @property
    def _key(self) -> str:
        return os.environ.get(self.variable, "").strip()


DEFAULT_ACCESS = Access()
"""The key of OPENAI_API_KEY, if any, and four requests at once."""


class RefusedError(Exception):
    """A server rejects a request (400 or 422); the message holds its words."""


class Server:
    """An OpenAI-compatible server and one of its models; threads may share it.

    The server is asked for its models at once, so that a wrong address or name shows before any
    work is done. No redirect is followed, so prompts and the key go nowhere else.

    Args:
        address: Such as http://127.0.0.1:8080/v1; without a path, /v1 is added.
        model: The model's name on the server; None for its only one.
        access: How it is accessed.
        argument: The argument that the address came from, for messages.
        model_argument: The one that names the model, for messages.

    Raises:
        UserError: The address is invalid, no server answers, the key is not accepted, or there is
            no such model.

    Attributes:
        model: The model's name for messages and results.
        repaired: How many answers had half a character in them, which became U+FFFD.
    """

    def __init__(
        self, address: str, model: str | None, access: Access, *, argument: str, model_argument: str
    ) -> None:
        self.address = _base(address, argument)
        self.repaired = 0
        self._answering, self._has_changed = "", False
        self._where = f"`{argument}={self.address}`"
        self._access = access
        self._pools = _pools(self.address, access)
        self._pace = _Pace(access.rate)
        self._lock = threading.Lock()
        self._asked_for = self._choose_model(model, model_argument)
        self.model = access.name_shown(self._asked_for)

    @property
    def concurrency(self) -> int:
        """The number of requests that are in progress at once."""
        return self._access.concurrency

    def quote_words(self, words: str) -> str:
        """The server's words, safe for a message."""
        return self._access.quote_words(words)

    def ask(self, path: str, request: dict[str, Any]) -> list[Choice]:
        """Send a request to the model.

        Args:
            path: Below the address, such as "completions".
            request: The request without the model.

        Returns:
            At least one choice, in their order.

        Raises:
            RefusedError: The server rejects the request.
            MalformedError: Its answer cannot be read, after all retries.
            UserError: It does not answer.
        """
        self._pace.wait()
        body = json.dumps({"model": self._asked_for, **request}).encode()
        reply, choices = self._send("POST", f"{self.address}/{path}", read_choices, body)
        if reply.status in (400, 422):
            raise RefusedError(self._words(reply))
        if reply.status in (404, 405):
            other = "`chat=on`" if path == "completions" else "a server that has one"
            raise UserError(
                f"{self._where} has no /{path} ({reply.status}: {self._words(reply)}): try "
                f"{other}, and check that the address ends where /{path} begins, usually in /v1."
            )
        self._check(reply)
        if isinstance(choices, MalformedError):
            raise MalformedError(self._fault(choices))
        with self._lock:
            self.repaired += any(choice.repaired for choice in choices)
            self._watch_model(choices[0].model)
        return choices

    def adapters(self) -> dict[int, str] | None:
        """The files of the LoRA adapters that it has loaded, by number.

        Only llama.cpp's server has such a list, beside OpenAI's protocol; None for any other.
        """
        url = f"{self.address.removesuffix('/v1')}/lora-adapters"
        _, found = self._send("GET", url, read_adapters)
        return None if isinstance(found, MalformedError) else found

    def each(
        self, work: Callable[[_Item], _Result], items: Iterable[_Item]
    ) -> Generator[_Result, None, None]:
        """Do the work on all items, several at once, and yield the results in the items' order.

        When the iterator is closed or the work fails, items that have not begun are dropped, and
        those in progress are not waited for, so that a slow answer does not delay an interrupt.

        Raises:
            UserError: The system gives fewer threads.
        """
        try:
            pool = ThreadPool(self._access.concurrency)
        except (RuntimeError, AttributeError):  # the second arises in the pool's handling of it
            raise UserError(
                f"`concurrency={self._access.concurrency}` is more threads than this system gives: "
                "lower it."
            ) from None
        try:
            yield from pool.imap(work, items)
        finally:
            pool.terminate()

    def without_text(self, choice: Choice) -> str:
        """Why a choice has no text."""
        if choice.ended in _ENDS:
            return f"no text: ended by {choice.ended}"
        told = choice.ended and self._access.quote
        return f"no text: ended by {self.quote_words(choice.ended)}" if told else "no text"

    def problem(self, what: str) -> UserError:
        """An error that names the server and the model."""
        return UserError(f"{self._where}, model {self.model}: {what}")

    def _watch_model(self, name: str) -> None:
        """Say it once if answers come from more than one model, as behind a router."""
        if not name or name == self._answering or self._has_changed:
            return
        before, self._answering = self._answering, name
        if before:
            self._has_changed = True
            two = f"{self.quote_words(before)} and {self.quote_words(name)}"
            names = two if self._access.quote else _NOT_SHOWN
            note(
                f"{self.address} names more than one model in its answers to {self.model} "
                f"({names}): not one model answers, but several."
            )

    def _choose_model(self, wanted: str | None, model_argument: str) -> str:
        reply, found = self._send("GET", f"{self.address}/models", read_models)
        if reply.status in (401, 403, _PROXY_WANTS_PASSWORD, *_TRY_AGAIN, *_REDIRECTS):
            self._check(reply)
        if reply.status != 200:
            return self._take_unlisted(
                wanted, f"does not say which models it has ({reply.status})", model_argument
            )
        if isinstance(found, MalformedError):
            if wanted is None:
                raise UserError(
                    f"{self._where} does not answer as an OpenAI-compatible server does (asked "
                    f"for its models, {self._fault(found)}); check the address, which usually "
                    "ends in /v1."
                )
            return self._take_unlisted(
                wanted, f"lists no models ({self._fault(found)})", model_argument
            )
        there, plain = found
        if wanted in there:
            return wanted
        if wanted is None and plain and len(there) == 1:
            return there[0]
        names = [self._access.name_shown(name) for name in there]
        shown = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if names[10:] else "")
        has = f"it has {shown}" if there else "it has none"
        if wanted is None:
            raise UserError(f"{self._where}: {has}; name a model with {model_argument}.")
        if not plain:
            return self._take_unlisted(
                wanted, f"has no whole list of models ({has})", model_argument
            )
        hint = did_you_mean(wanted, names)
        raise UserError(f"{self._where} has no model '{printable(wanted)}': {hint}{capital(has)}.")

    def _take_unlisted(self, wanted: str | None, why: str, model_argument: str) -> str:
        """The model that the user named, if the server's list cannot confirm it."""
        if wanted is None:
            raise UserError(
                f"{self._where} {why}: name one with {model_argument}, and check the address, "
                "which usually ends in /v1."
            )
        note(f"{self.address} {why}; '{printable(wanted)}' is requested anyway.")
        return wanted

    def _send(
        self, method: str, url: str, read: Callable[[bytes], _Result], body: bytes | None = None
    ) -> tuple[Reply, _Result | MalformedError]:
        """Send a request, with retries; the last reply, and its content.

        The content of a reply whose status is not 200 is a `MalformedError`.
        """
        headers = self._access.headers() | ({"Content-Type": "application/json"} if body else {})
        for tries in range(self._access.retries + 1):
            last = tries == self._access.retries
            pause = _pause(tries)
            try:
                reply = exchange(
                    self._pools,
                    method,
                    url,
                    body=body,
                    headers=headers,
                    timeout_s=self._access.timeout_s,
                )
            except HTTPError as error:
                # An absent server is reported at once; one that is loading is waited for.
                absent = method == "GET" and isinstance(error, (*_ABSENT, ProxyError))
                if last or absent or _is_final(error):
                    raise UserError(f"{self._where}: {self._failure(error)}") from None
            else:
                found = _read(reply, read)
                failed = reply.status in _TRY_AGAIN
                malformed = reply.status == 200 and isinstance(found, MalformedError)
                if last or not (failed or malformed):
                    return reply, found
                if malformed:
                    pause = _jitter()  # only an overloaded server needs growing pauses
                elif reply.pause_s is not None:
                    pause = reply.pause_s
            time.sleep(pause)
        raise AssertionError("the last try returns or raises")

    def _failure(self, error: HTTPError) -> str:
        tries = f"in {self._access.retries + 1} tries" if self._access.retries else "in one try"
        if isinstance(error, ProxyError):
            refused = re.search(r"Tunnel connection failed: (\d+)", str(error))
            does = f"refuses to connect ({refused[1]})" if refused else "does not answer"
            return f"the proxy of the environment {does}; check it, or set NO_PROXY."
        if isinstance(error, LocationValueError):
            return "this is not the address of a server; check it."
        if isinstance(error, _ABSENT):
            return "no server answers there; start it, or check the address."
        if isinstance(error, SSLError):
            return _explain_tls(error, tries)
        if isinstance(error, ReadTimeoutError):
            return (
                f"no answer within {self._access.timeout_s:g} s {tries}; raise `timeout_s`, or "
                "lower `concurrency`."
            )
        said = self.quote_words(str(error))
        return f"no whole answer {tries} ({type(error).__name__}: {said})."

    def _check(self, reply: Reply) -> None:
        status, said = reply.status, self._words(reply)
        if status in _REDIRECTS:
            host = _host(reply.headers.get("Location", ""))
            to = self.quote_words(host) if host and self._access.quote else "another address"
            raise UserError(
                f"{self._where} redirects to {to} ({status}), and redirects are not followed: give "
                "the final address."
            )
        if status == _PROXY_WANTS_PASSWORD:
            raise UserError(
                f"{self._where}: the proxy of the environment wants a name and a password "
                f"({status}: {said}): put them into its address, or set NO_PROXY."
            )
        if status in (401, 403):
            variable = self._access.variable
            mend = (
                f"the API key in {variable} is not accepted"
                if self._access.headers()
                else f"it wants an API key, and {variable} is not set; `key_variable` names another"
            )
            raise UserError(f"{self._where}: {mend} ({status}: {said}).")
        if status in _TRY_AGAIN:
            raise UserError(
                f"{self._where}: still {status} after {self._access.retries} retries ({said}); try "
                "again later or with a lower `concurrency`: finished work is kept."
            )
        if status != 200:
            raise UserError(f"{self._where}: the answer is {status} ({said}); check the address.")

    def _fault(self, error: MalformedError) -> str:
        return f"{error}: {self.quote_words(error.words)}" if error.words else str(error)

    def _words(self, reply: Reply) -> str:
        return self.quote_words(words_of(reply.data))


_ABSENT = (NewConnectionError, ConnectTimeoutError)
_NO_TLS = ("WRONG_VERSION_NUMBER", "HTTP_REQUEST")
"""OpenSSL's words for a server that speaks something else."""
_UNTRUSTED = (2, 18, 19, 20, 21)
"""OpenSSL's numbers for certificates whose authority is unknown or cannot be verified."""


def _is_final(error: HTTPError) -> bool:
    """Whether a retry does not mend a failure. TLS can break off like any other connection."""
    return isinstance(error, LocationValueError) or (
        isinstance(error, SSLError)
        and (
            isinstance(_tls_cause(error), ssl.SSLCertVerificationError)
            or _tls_reason(error) in _NO_TLS
        )
    )


def _tls_cause(error: SSLError) -> ssl.SSLError | None:
    return next((one for one in error.args if isinstance(one, ssl.SSLError)), None)


def _tls_reason(error: SSLError) -> str:
    """OpenSSL's word for a failure; "" if it has none, as where a connection breaks off."""
    return str(getattr(_tls_cause(error), "reason", None) or "")


def _explain_tls(error: SSLError, tries: str) -> str:
    cause = _tls_cause(error)
    if isinstance(cause, ssl.SSLCertVerificationError):
        if cause.verify_code in _UNTRUSTED:
            return (
                "its certificate is not trusted on this machine; name the file of its authority's "
                "certificate in SSL_CERT_FILE, or check the address."
            )
        why = printable(str(cause.verify_message)).rstrip(".")
        return f"its certificate is not valid ({why}); check the address and the certificate."
    reason = _tls_reason(error)
    if reason in _NO_TLS:
        return "no https there; check the address, which may begin with http://."
    why = printable(reason) or "it breaks off"
    return (
        f"no https connection {tries} ({why}); check the server, its version of TLS and "
        "whether it wants a certificate of the client, which is not sent."
    )


def _read(reply: Reply, read: Callable[[bytes], _Result]) -> _Result | MalformedError:
    try:
        if reply.fault or reply.status != 200:
            raise MalformedError(reply.fault or f"its status is {reply.status}")
        return read(reply.data)
    except MalformedError as error:
        return error


def _pause(tries: int) -> float:
    """Seconds to wait after a try: none after the first, then exponentially more, with jitter."""
    if not tries:
        return 0.0
    return min(BACKOFF_S * 2 ** min(tries, 16) + _jitter(), LONGEST_PAUSE_S)


def _jitter() -> float:
    return random.random() * BACKOFF_S  # noqa: S311


class _Pace:
    """Evenly spaced turns, for threads that share a rate."""

    def __init__(self, per_minute: float | None) -> None:
        self._gap = 0.0 if per_minute is None else 60 / per_minute
        self._next = 0.0
        self._lock = threading.Lock()

    def wait(self) -> None:
        """Wait for this caller's turn."""
        with self._lock:
            now = time.monotonic()
            turn = max(now, self._next)
            self._next = turn + self._gap
        if turn > now:
            time.sleep(turn - now)


@dataclass(frozen=True)
class _Dialect:
    """What a server understands: how many continuations at once, and settings beyond OpenAI's."""

    at_once: int
    extras: bool


@dataclass(frozen=True)
class _Wanted:
    """How many continuations are wanted of each prompt, how they are sampled, and by which seed."""

    sampling: Sampling
    seed: int
    continuations: int


_Prompt = str | Sequence[Message]
"""A raw text, or the messages of a conversation."""


class Endpoint:
    """A model behind an OpenAI-compatible server, which gives text alone.

    Args:
        address: Such as http://127.0.0.1:8080/v1; without a path, /v1 is added.
        model: The model's name on the server; None for its only one.
        chat: Ask its chat to continue the prompts, for servers that have nothing else. This is not
            the same task as continuing a raw text, and its figures are not comparable.
        access: How the server is accessed.

    Raises:
        UserError: As for `Server`.

    Attributes:
        name: The model's name in a result.
        fingerprint: Server, model and kind of request. It does not identify the weights: a server
            that serves other weights under the same name looks the same.
    """

    def __init__(
        self,
        address: str,
        model: str | None = None,
        *,
        chat: bool = False,
        access: Access = DEFAULT_ACCESS,
    ) -> None:
        self._server = Server(
            address, model, access, argument="endpoint", model_argument="`Endpoint.model`"
        )
        self._chat = chat
        self.name = f"{self._server.model} at {self._server.address}"
        path = "chat/completions" if chat else "completions"
        self.fingerprint = f"endpoint: {self._server.address}/{path} {self._server.model}"

    def generate(
        self,
        prompts: Sequence[_Prompt],
        sampling: Sampling,
        *,
        seed: int,
        continuations: int,
        which: slice = ALL,
    ) -> Iterator[list[Continuation]]:
        """Have every prompt continued, and yield the continuations of `BATCH_PROMPTS` at a time.

        They come in the order of the prompts and, within a prompt, of their numbers, whatever the
        order in which the server finishes. Their `ids` are None: a server gives text.

        Args:
            prompts: Raw texts, or the messages of conversations, to which the server's chat
                replies.
            sampling: How tokens are chosen.
            seed: The seed of each request is made of this one, the prompt and the number of the
                continuation.
            continuations: How many for each prompt.
            which: Which of the batches.

        Raises:
            UserError: The server fails after all retries, filters, or cannot sample as required.
        """
        starts = range(0, len(prompts), BATCH_PROMPTS)[which]
        batches = [range(start, min(start + BATCH_PROMPTS, len(prompts))) for start in starts]
        if not batches:
            return
        wanted = _Wanted(sampling, seed, continuations)
        dialect = self._agree(prompts[:_PROBED], wanted)

        def work(number: int) -> list[Continuation]:
            return self._continue(prompts[number], number, wanted, dialect)

        missing = 0
        with closing(self._server.each(work, list(chain.from_iterable(batches)))) as results:
            for batch in batches:
                written = list(chain.from_iterable(islice(results, len(batch))))
                without = [one.missing for one in written if one.missing]
                # The first batch, or a whole one; a last one may be a single prompt.
                if len(without) == len(written) and (
                    not batch.start or len(batch) == BATCH_PROMPTS
                ):
                    raise self._explain_nothing(len(batch), without[0])
                missing += len(without)
                yield written
        if missing:
            note(f"{self.name} gave no text for {counted(missing, 'continuation')}.")
        if self._server.repaired:
            note(
                f"{self.name} gave half a character in {counted(self._server.repaired, 'answer')}, "
                "replaced by U+FFFD."
            )

    def _explain_nothing(self, prompts: int, reason: str) -> UserError:
        thinks = (
            "a model that thinks before it writes cannot be measured by its first tokens"
            if reason.startswith("no text")
            else "finished work is kept"
        )
        return self._server.problem(
            f"it gives no text for any of {prompts} prompts ({reason}); {thinks}."
        )

    def _agree(self, prompts: Sequence[_Prompt], wanted: _Wanted) -> _Dialect:
        """Find out what the server understands, by the first prompt with a well-formed answer."""
        fault = ""
        for number, prompt in enumerate(prompts):
            try:
                return self._agree_by(prompt, number, wanted)
            except MalformedError as error:
                fault = str(error)
        raise self._server.problem(
            f"it does not answer as an OpenAI-compatible server does: {fault}; check the address, "
            "which usually ends in /v1."
        )

    def _agree_by(self, prompt: _Prompt, number: int, wanted: _Wanted) -> _Dialect:
        """The best kind of request for a prompt's continuations that the server understands."""
        sampling = wanted.sampling
        refusal = ""
        for extras in (True,) if needs_extras(sampling) else (True, False):
            for at_once in dict.fromkeys((wanted.continuations, 1)):
                request = sampling_request(
                    sampling, request_seed(wanted.seed, number, 0), extras=extras
                )
                try:
                    choices = self._ask(prompt, {"n": at_once, **request})
                except RefusedError as error:
                    refusal = str(error)
                    continue
                # Some servers give one choice whatever `n` is, or the same one several times.
                if len(choices) < at_once:
                    continue
                texts = {choice.content for choice in choices}
                if at_once > 1 and sampling.temperature > 0 and len(texts) == 1:
                    continue
                if not extras:
                    note(
                        f"{self.name} accepts OpenAI's own settings only: top-k, min-p and the "
                        "repetition penalty are the server's."
                    )
                return _Dialect(at_once, extras)
        if needs_extras(sampling):
            refusal += " (`top_k` and `repetition_penalty` are not part of OpenAI's own protocol)"
        raise self._server.problem(f"it refuses to continue a prompt: {refusal}.")

    def _continue(
        self, prompt: _Prompt, number: int, wanted: _Wanted, dialect: _Dialect
    ) -> list[Continuation]:
        written: list[Continuation] = []
        while len(written) < wanted.continuations:
            count = min(dialect.at_once, wanted.continuations - len(written))
            seed = request_seed(wanted.seed, number, len(written))
            request = sampling_request(wanted.sampling, seed, extras=dialect.extras)
            try:
                choices = self._ask(prompt, {"n": count, **request})[:count]
                found = [self._read_written(choice) for choice in choices]
            except RefusedError as error:
                raise self._server.problem(f"it refuses prompt {number + 1}: {error}.") from None
            except MalformedError as error:
                found = [("", f"malformed: {error}")] * count
            written += [
                Continuation(number, len(written) + more, None, *one)
                for more, one in enumerate(found)
            ]
        return written

    def _ask(self, prompt: _Prompt, request: dict[str, Any]) -> list[Choice]:
        """Send a prompt with these settings of the request."""
        if isinstance(prompt, str) and not self._chat:
            return self._server.ask("completions", {**request, "prompt": prompt})
        messages = (
            one_message(CHAT_INSTRUCTION, prompt)
            if isinstance(prompt, str)
            else [dict(message) for message in prompt]
        )
        return self._server.ask("chat/completions", {**request, "messages": messages})

    def _read_written(self, choice: Choice) -> tuple[str, str]:
        """A continuation's text, and why it is missing ("" if it is not)."""
        if choice.ended == FILTERED:
            raise self._server.problem(
                "its content filter withheld a continuation, so the filter would be measured; "
                "switch it off, or measure the model itself."
            )
        if choice.content is None:
            return "", self._server.without_text(choice)
        return choice.content, ""


def needs_extras(sampling: Sampling) -> bool:
    """Whether the sampling needs settings beyond OpenAI's."""
    return bool(sampling.top_k) or sampling.repetition_penalty != 1


def sampling_request(sampling: Sampling, seed: int, *, extras: bool) -> dict[str, Any]:
    """The sampling settings of a request.

    Args:
        sampling: The settings.
        seed: Of this request.
        extras: Whether to send settings beyond OpenAI's. Without them servers use their own:
            llama.cpp samples among the 40 likeliest tokens without the unlikely ones, vLLM as the
            model's generation_config.json says.
    """
    request: dict[str, Any] = {
        "max_tokens": sampling.new_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "seed": seed,
    }
    if extras:
        # The penalty has one name in vLLM and another in llama.cpp, where it covers 64 tokens by
        # default.
        penalty = sampling.repetition_penalty
        request |= {"top_k": sampling.top_k, "min_p": 0.0}
        request |= {"repetition_penalty": penalty, "repeat_penalty": penalty}
        if penalty != 1:
            request["repeat_last_n"] = -1
    return request


def request_seed(seed: int, prompt: int, number: int) -> int:
    """The seed of one request, from 0 to 2³¹ - 1, which every server accepts."""
    return int(np.random.SeedSequence([seed, prompt, number]).generate_state(1)[0]) >> 1


def one_message(instruction: str, text: str) -> list[dict[str, str]]:
    """A chat of one message, because some models' templates have no system message."""
    return [{"role": "user", "content": f"{instruction}\n\n{text}"}]


def _base(address: str, argument: str) -> str:
    url = _parse(address.strip())
    if url.auth or "@" in (url.netloc or address):
        raise UserError(
            f"`{argument}`: an address with a password in it would be written into the result; "
            "put the API key into an environment variable."
        )
    if url.scheme not in ("http", "https") or not url.host or url.query or url.fragment:
        shown = printable(address.partition("?")[0])  # the query may hold a key
        raise UserError(
            f"`{argument}={shown}` is not the address of a server: give one like "
            "http://127.0.0.1:8080/v1."
        )
    path = (url.path or "").rstrip("/") or "/v1"
    return f"{url.scheme}://{url.netloc}{path}"


def _parse(address: str) -> Url:
    try:
        return parse_url(address)
    except (LocationParseError, UnicodeError):  # an invalid host name, or one not encodable
        return parse_url("")


def _host(address: str) -> str:
    """The host and port of an address; "" where it has none."""
    url = _parse(address)
    return (url.host or "") + (f":{url.port}" if url.port else "")


def _pools(address: str, access: Access) -> PoolManager:
    url = _parse(address)
    proxy = getproxies().get(str(url.scheme))
    if not proxy or _is_loopback(str(url.host)) or proxy_bypass(str(url.host)):
        return bound(PoolManager(maxsize=access.concurrency))
    # The proxy's address may hold a password, which must not be in a message.
    own = _parse(proxy if "://" in proxy else f"http://{proxy}")
    if own.scheme not in ("http", "https") or not own.host:
        raise UserError(
            f"The environment's proxy for {url.scheme} is not an http proxy: change "
            f"{url.scheme}_proxy, or name {url.host} in NO_PROXY."
        )
    asking = make_headers(proxy_basic_auth=unquote(own.auth)) if own.auth else {}
    bare = f"{own.scheme}://{own.netloc}"
    return bound(ProxyManager(bare, maxsize=access.concurrency, proxy_headers=asking))


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
