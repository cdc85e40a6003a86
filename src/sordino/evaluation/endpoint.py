"""Continuations from an OpenAI-compatible server: llama.cpp, vLLM, Ollama, a hosted service."""

import difflib
import os
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, TypeVar
from urllib.request import getproxies, proxy_bypass

import numpy as np
from pydantic import BaseModel, Field, ValidationError
from urllib3 import BaseHTTPResponse, PoolManager, ProxyManager, Retry, Timeout
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    LocationParseError,
    MaxRetryError,
    NewConnectionError,
    ReadTimeoutError,
)
from urllib3.util import parse_url

from sordino.errors import UserError
from sordino.evaluation.measure import ALL
from sordino.models.generation import Continuation, Sampling
from sordino.progress import note

BATCH_PROMPTS = 8
"""Prompts of a batch: so many are lost at most when an evaluation is killed. It does not depend on
the concurrency, so that an evaluation may go on with another one."""

CHAT_INSTRUCTION = (
    "Continue the text that you are given from exactly where it stops. Write the continuation and "
    "nothing else."
)
"""What a server that has only a chat is told, so that it continues a prompt and does not answer."""

_KEY_VARIABLE = "OPENAI_API_KEY"
_CONNECT_S = 10.0
_BACKOFF_S = 1.0
_LONGEST_WAIT_S = 60
_TRY_AGAIN = (408, 429, 500, 502, 503, 504)

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Access:
    """How a server is asked.

    Args:
        key_variable: The environment variable that holds the API key; None for OPENAI_API_KEY if
            it is set, else no key.
        concurrency: How many requests are under way at once.
        timeout_s: How long an answer may take, in seconds.
        retries: How often a request is tried again after a failed connection or the answers 408,
            429 and 5xx, with growing pauses, or with those that the server asks for.
        rate: At most so many requests a minute, at even distances; None for no limit. Those that
            are tried again wait by the rule above.

    Raises:
        UserError: A setting is outside its range, or the variable that is named is not set.
    """

    key_variable: str | None = None
    concurrency: int = 4
    timeout_s: float = 120.0
    retries: int = 5
    rate: float | None = None

    def __post_init__(self) -> None:
        rate = 1 if self.rate is None else self.rate
        checks = [
            (rate > 0, "--rate", rate, "above 0"),
            (self.concurrency >= 1, "--concurrency", self.concurrency, "at least 1"),
            (self.timeout_s > 0, "--request-timeout", self.timeout_s, "above 0"),
            (self.retries >= 0, "--retries", self.retries, "0 or more"),
        ]
        for good, flag, value, wanted in checks:
            if not good:
                raise UserError(f"{flag} {value:g} is out of range: it must be {wanted}.")
        if self.key_variable is not None and not self._key:
            raise UserError(
                f"The environment variable {self.key_variable}, which should hold the API key, is "
                "not set."
            )
        if not (self._key.isascii() and self._key.isprintable()):
            raise UserError(
                f"The environment variable {self.variable} holds characters that no API key has."
            )

    @property
    def variable(self) -> str:
        """The environment variable that holds the key, if it is set."""
        return self.key_variable or _KEY_VARIABLE

    def headers(self) -> dict[str, str]:
        """What every request carries."""
        return {"Authorization": f"Bearer {self._key}"} if self._key else {}

    @property
    def _key(self) -> str:
        return os.environ.get(self.variable, "").strip()


DEFAULT_ACCESS = Access()
"""No key but that of OPENAI_API_KEY, four requests at once."""


class _Message(BaseModel):
    content: str | None = None
    refusal: str | None = None


class Choice(BaseModel):
    """One of a server's answers to a request: a text, or a message of a chat."""

    index: int = 0
    text: str | None = None
    message: _Message | None = None
    finish_reason: str | None = None

    @property
    def content(self) -> str | None:
        """What was written; None if nothing was."""
        return self.text if self.message is None else self.message.content


class _Answer(BaseModel):
    choices: list[Choice] = Field(min_length=1)


class _Model(BaseModel):
    id: str


class _Models(BaseModel):
    data: list[_Model]


class _Error(BaseModel):
    message: str


class _ErrorAnswer(BaseModel):
    error: _Error


class RefusedError(Exception):
    """A server does not take a request as it is (400 or 422); the message holds its words."""


class Server:
    """An OpenAI-compatible server, and the model on it that is asked; threads may share it.

    The server is asked for its models at once, so that a wrong address or name shows before any
    work is done.

    Args:
        address: Such as http://127.0.0.1:8080/v1; without a path, /v1 is meant.
        model: The model's name on the server; None for the only one that it has.
        access: How it is asked.
        flag: The flag that the address came from, for messages.
        model_flag: How the user names the model, for messages.

    Raises:
        UserError: The address is none, nothing answers there, the key is not accepted, or there is
            no such model.
    """

    def __init__(
        self, address: str, model: str | None, access: Access, *, flag: str, model_flag: str
    ) -> None:
        self.address = _base(address, flag)
        self._where = f"{flag} {self.address}"
        self._access = access
        self._retry = Retry(
            total=access.retries,
            allowed_methods=None,
            status_forcelist=_TRY_AGAIN,
            backoff_factor=_BACKOFF_S,
            backoff_jitter=_BACKOFF_S,
            backoff_max=_LONGEST_WAIT_S,
            retry_after_max=_LONGEST_WAIT_S,
            raise_on_status=False,
        )
        self._pool = _pool(self.address, access)
        self._pace = _Pace(access.rate)
        self.model = self._choose_model(model, model_flag)

    @property
    def concurrency(self) -> int:
        """How many requests are under way at once."""
        return self._access.concurrency

    def ask(self, path: str, request: dict[str, Any]) -> list[Choice]:
        """Send a request to the model.

        Args:
            path: Below the address, such as "completions".
            request: All of it but the model.

        Returns:
            At least one choice, in their order.

        Raises:
            RefusedError: The server does not take the request as it is.
            UserError: It does not answer, or not as it should.
        """
        self._pace.wait()
        response = self._send("POST", path, self._retry, {"model": self.model, **request})
        if response.status in (400, 422):
            raise RefusedError(_words(response))
        if response.status in (404, 405):
            other = "--chat" if path == "completions" else "a server that has one"
            raise UserError(
                f"{self._where} has no /{path} ({response.status}: {_words(response)}): try "
                f"{other}, and check that the address ends where /{path} begins, usually in /v1."
            )
        self._check(response)
        try:
            answer = _Answer.model_validate_json(response.data)
        except ValidationError:
            raise self._malformed(response) from None
        return sorted(answer.choices, key=lambda choice: choice.index)

    def each(
        self, work: Callable[[_Item], _Result], items: Iterable[_Item]
    ) -> Generator[_Result, None, None]:
        """Do the work on all items, several at once, and yield the results in the items' order.

        What has not begun is dropped when the iterator is closed or the work fails.
        """
        pool = ThreadPoolExecutor(self._access.concurrency)
        try:
            yield from pool.map(work, items)
        finally:
            pool.shutdown(cancel_futures=True)

    def problem(self, what: str) -> UserError:
        """An error that says where it happened."""
        return UserError(f"{self._where}, model {self.model}: {what}")

    def _choose_model(self, wanted: str | None, model_flag: str) -> str:
        # A server that is not there is told at once; one that is still loading is waited for.
        response = self._send("GET", "models", self._retry.new(connect=0))
        if response.status in (404, 405):
            if wanted is None:
                raise UserError(
                    f"{self._where} does not say which models it has: name one with {model_flag}, "
                    "and check the address, which usually ends in /v1."
                )
            return wanted
        self._check(response)
        try:
            there = [model.id for model in _Models.model_validate_json(response.data).data]
        except ValidationError:
            raise self._malformed(response) from None
        if wanted in there:
            return wanted
        if wanted is None and len(there) == 1:
            return there[0]
        shown = ", ".join(there[:10]) + (f" and {len(there) - 10} more" if there[10:] else "")
        has = f"it has {shown}" if there else "it has none"
        if wanted is None:
            raise UserError(f"{self._where}: {has}; name a model with {model_flag}.")
        close = difflib.get_close_matches(wanted, there, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise UserError(f"{self._where} has no model '{wanted}': {hint}{has[0].upper()}{has[1:]}.")

    def _send(
        self, method: str, path: str, retry: Retry, body: dict[str, Any] | None = None
    ) -> BaseHTTPResponse:
        try:
            return self._pool.request(
                method,
                f"{self.address}/{path}",
                json=body,
                headers=self._access.headers(),
                retries=retry,
                timeout=Timeout(connect=_CONNECT_S, read=self._access.timeout_s),
            )
        except HTTPError as error:
            raise UserError(f"{self._where}: {self._failure(error)}") from None

    def _failure(self, error: HTTPError) -> str:
        reason = error.reason if isinstance(error, MaxRetryError) and error.reason else error
        if isinstance(reason, NewConnectionError | ConnectTimeoutError):
            return "no server answers there; start it, or check the address."
        tries = f"in {self._access.retries + 1} tries" if self._access.retries else "in one try"
        if isinstance(reason, ReadTimeoutError):
            return (
                f"no answer within {self._access.timeout_s:g} s {tries}; raise --request-timeout, "
                "or lower --concurrency."
            )
        return f"no whole answer {tries} ({type(reason).__name__}: {shortened(str(reason))})."

    def _check(self, response: BaseHTTPResponse) -> None:
        status, said = response.status, _words(response)
        if status in (401, 403):
            variable = self._access.variable
            mend = (
                f"the API key in {variable} is not accepted"
                if self._access.headers()
                else f"it wants an API key, and {variable} is not set; --api-key-env names another"
            )
            raise UserError(f"{self._where}: {mend} ({status}: {said}).")
        if status in _TRY_AGAIN:
            raise UserError(
                f"{self._where}: still {status} after {self._access.retries} retries ({said}); try "
                "again later or with a lower --concurrency: what is done is kept."
            )
        if status != 200:
            raise UserError(f"{self._where}: the answer is {status} ({said}); check the address.")

    def _malformed(self, response: BaseHTTPResponse) -> UserError:
        return UserError(
            f"{self._where} does not answer as an OpenAI-compatible server does (it said: "
            f"{_words(response)}); check the address, which usually ends in /v1."
        )


class _Pace:
    """Turns at even distances, for threads that share them."""

    def __init__(self, per_minute: float | None) -> None:
        self._gap = 0.0 if per_minute is None else 60 / per_minute
        self._next = 0.0
        self._lock = threading.Lock()

    def wait(self) -> None:
        """Come back when it is this caller's turn."""
        with self._lock:
            now = time.monotonic()
            turn = max(now, self._next)
            self._next = turn + self._gap
        if turn > now:
            time.sleep(turn - now)


@dataclass(frozen=True)
class _Dialect:
    """What a server was found to understand: how many continuations at once, and the extras."""

    at_once: int
    extras: bool


class Endpoint:
    """A model behind an OpenAI-compatible server, of which nothing but its texts can be had.

    Args:
        address: Such as http://127.0.0.1:8080/v1; without a path, /v1 is meant.
        model: The model's name on the server; None for the only one that it has.
        chat: Ask its chat to continue the prompts, for servers that have nothing else. That is
            another task than continuing a raw text, and its figures are not comparable.
        access: How the server is asked.

    Raises:
        UserError: As for `Server`.

    Attributes:
        name: What the model is called in a result.
        fingerprint: Server, model and way of asking. Nothing tells the weights behind a server: one
            that is given other weights under the old name looks the same.
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
            address, model, access, flag="--endpoint", model_flag="--served-model"
        )
        self._chat = chat
        self.name = f"{self._server.model} at {self._server.address}"
        path = "chat/completions" if chat else "completions"
        self.fingerprint = f"endpoint: {self._server.address}/{path} {self._server.model}"

    def generate(
        self,
        prompts: Sequence[str],
        sampling: Sampling,
        *,
        seed: int,
        continuations: int,
        which: slice = ALL,
    ) -> Iterator[list[Continuation]]:
        """Have every prompt continued, and yield the continuations of `BATCH_PROMPTS` at a time.

        They come in the order of the prompts and, within a prompt, of their numbers, in whatever
        order the server finishes. Their `ids` are None: a server gives text.

        Args:
            prompts: As raw text.
            sampling: How tokens are chosen.
            seed: Each request has a seed of its own, made of this one, the prompt and the number
                of the continuation.
            continuations: How many of each prompt.
            which: Which of the batches.

        Raises:
            UserError: The server fails for good, filters, or cannot sample as it should.
        """
        starts = range(0, len(prompts), BATCH_PROMPTS)[which]
        batches = [range(start, min(start + BATCH_PROMPTS, len(prompts))) for start in starts]
        if not batches:
            return
        dialect = self._agree(prompts[0], sampling, seed, continuations)

        def work(prompt: int) -> list[Continuation]:
            texts = self._continue(prompts[prompt], prompt, sampling, seed, continuations, dialect)
            return [Continuation(prompt, number, None, text) for number, text in enumerate(texts)]

        results = iter(self._server.each(work, list(chain.from_iterable(batches))))
        for batch in batches:
            yield list(chain.from_iterable(islice(results, len(batch))))

    def _agree(self, prompt: str, sampling: Sampling, seed: int, continuations: int) -> _Dialect:
        """Find out by the first prompt what the server understands, the best way first."""
        needs_extras = bool(sampling.top_k) or sampling.repetition_penalty != 1
        refusal = ""
        for extras in (True,) if needs_extras else (True, False):
            for at_once in dict.fromkeys((continuations, 1)):
                dialect = _Dialect(at_once, extras)
                try:
                    texts = self._ask(prompt, sampling, request_seed(seed, 0, 0), at_once, dialect)
                except RefusedError as error:
                    refusal = str(error)
                    continue
                # Some servers give one choice whatever the number, or the same one several times.
                if len(texts) < at_once:
                    continue
                if at_once > 1 and sampling.temperature > 0 and len(set(texts)) == 1:
                    continue
                if not extras:
                    note(
                        f"{self.name} takes OpenAI's own settings only: top-k, min-p and the "
                        "repetition penalty are as the server has them."
                    )
                return dialect
        if needs_extras:
            refusal += " (--top-k and --repetition-penalty are not part of OpenAI's own protocol)"
        raise self._server.problem(f"it refuses to continue a prompt: {refusal}.")

    def _continue(
        self,
        text: str,
        prompt: int,
        sampling: Sampling,
        seed: int,
        continuations: int,
        dialect: _Dialect,
    ) -> list[str]:
        texts: list[str] = []
        while len(texts) < continuations:
            wanted = min(dialect.at_once, continuations - len(texts))
            own = request_seed(seed, prompt, len(texts))
            try:
                texts += self._ask(text, sampling, own, wanted, dialect)[:wanted]
            except RefusedError as error:
                raise self._server.problem(f"it refuses prompt {prompt + 1}: {error}.") from None
        return texts

    def _ask(
        self, prompt: str, sampling: Sampling, seed: int, count: int, dialect: _Dialect
    ) -> list[str]:
        request: dict[str, Any] = {
            "max_tokens": sampling.new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "n": count,
            "seed": seed,
        }
        if dialect.extras:
            # Where a request is silent, servers sample by settings of their own: llama.cpp among
            # the 40 likeliest tokens without the unlikely ones, vLLM as the model's
            # generation_config.json says. The penalty has one name in vLLM and another in
            # llama.cpp, where it looks back 64 tokens unless told otherwise.
            penalty = sampling.repetition_penalty
            request |= {"top_k": sampling.top_k, "min_p": 0.0}
            request |= {"repetition_penalty": penalty, "repeat_penalty": penalty}
            if penalty != 1:
                request["repeat_last_n"] = -1
        if self._chat:
            request["messages"] = one_message(CHAT_INSTRUCTION, prompt)
        else:
            request["prompt"] = prompt
        path = "chat/completions" if self._chat else "completions"
        return [self._text(choice) for choice in self._server.ask(path, request)]

    def _text(self, choice: Choice) -> str:
        if choice.finish_reason == "content_filter":
            raise self._server.problem(
                "its content filter withheld a continuation, so its figures would be those of the "
                "filter; switch it off, or measure the model itself."
            )
        text = choice.content
        if text is None:
            raise self._server.problem(
                f"an answer holds no text (it ended by: {choice.finish_reason}); a model that "
                "thinks before it writes cannot be measured by its first tokens."
            )
        return text


def request_seed(seed: int, prompt: int, number: int) -> int:
    """The seed of one request, from 0 to 2³¹ - 1, which is what every server takes."""
    return int(np.random.SeedSequence([seed, prompt, number]).generate_state(1)[0]) >> 1


def one_message(instruction: str, text: str) -> list[dict[str, str]]:
    """A chat of one message: not every model's template knows a system's part."""
    return [{"role": "user", "content": f"{instruction}\n\n{text}"}]


def _base(address: str, flag: str) -> str:
    try:
        url = parse_url(address.strip())
    except LocationParseError:
        url = parse_url("")
    if url.scheme not in ("http", "https") or not url.host or url.query or url.fragment:
        raise UserError(
            f"{flag} {address} is not the address of a server: give one like "
            "http://127.0.0.1:8080/v1."
        )
    if url.auth:
        raise UserError(
            f"{flag}: an address with a password in it would be written into the result; put the "
            "API key into an environment variable."
        )
    path = (url.path or "").rstrip("/") or "/v1"
    return f"{url.scheme}://{url.netloc}{path}"


def _pool(address: str, access: Access) -> PoolManager:
    url = parse_url(address)
    host = str(url.host)
    proxy = getproxies().get(str(url.scheme))
    if proxy and host not in ("localhost", "127.0.0.1", "[::1]") and not proxy_bypass(host):
        return ProxyManager(proxy, maxsize=access.concurrency)
    return PoolManager(maxsize=access.concurrency)


def _words(response: BaseHTTPResponse) -> str:
    """What the server says of an error, or the beginning of whatever it sent."""
    try:
        said = _ErrorAnswer.model_validate_json(response.data).error.message
    except ValidationError:
        said = response.data.decode("utf-8", "replace")
    return shortened(said) or "nothing"


def shortened(text: str) -> str:
    """The beginning of a text on one line, to be quoted in a message."""
    return " ".join(text.split())[:200].rstrip(".")
