"""Send the prompts of logs to two servers, and keep the answers."""

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

import numpy as np
import torch

from sordino.errors import UserError, require_at_least
from sordino.evaluation.answers import FILTERED, MalformedError
from sordino.evaluation.endpoint import (
    DEFAULT_ACCESS,
    Access,
    RefusedError,
    Server,
    request_seed,
)
from sordino.evaluation.opening import AUTO, open_scorer
from sordino.evaluation.scorer import Scorer, scores_of
from sordino.files import counted
from sordino.progress import note, track
from sordino.replaying.log import CHAT, PLAIN, Prompt, read_log
from sordino.replaying.store import ARMS, Answer, Store

_MALFORMED = "malformed"
"""The beginning of the reason for an answer that cannot be parsed."""
BATCH = 32
_ROUNDS = 4
"""Prompts of a batch, or rounds of requests if those are more: the most that a kill loses."""


@dataclass(frozen=True)
class ReplaySettings:
    """The settings of a replay, apart from the log and the servers.

    Args:
        max_tokens: The longest answer, in tokens; a request of the log can ask for a shorter one.
        fraction: The share of the requests that is replayed, above 0 and at most 1, drawn by seed.
        chat: Send plain prompts as messages of a chat, for servers without plain completions.
        scorer: What scores answers; see `sordino.evaluation.opening.open_scorer`, or "auto".
        toxic_label: The label of a text classifier that means toxic, if it cannot be inferred.
        judge_refusal: The score of a text that a server's model refuses to judge.
        seed: Of the choice of prompts and of the servers' sampling.

    Raises:
        UserError: A setting is outside its range.

    Example:
        >>> settings = sordino.ReplaySettings(max_tokens=64, fraction=0.1, scorer="wordlist")
        >>> settings.seed
        0
    """

    max_tokens: int = 256
    fraction: float = 1.0
    chat: bool = False
    scorer: str = AUTO
    toxic_label: str | None = None
    judge_refusal: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        require_at_least(1, max_tokens=self.max_tokens)
        require_at_least(0, seed=self.seed)
        if not 0 < self.fraction <= 1:
            raise UserError(
                f"`fraction={self.fraction:g}` is out of range: it must be above 0 and at most 1."
            )

    def open_scorer(self, access: Access = DEFAULT_ACCESS) -> Scorer:
        """Open the scorer; a text classifier runs on the CPU, since the servers use the GPU.

        Args:
            access: How a server that judges is accessed.
        """
        scorer = open_scorer(
            self.scorer,
            toxic_label=self.toxic_label,
            judge_refusal=self.judge_refusal,
            device=torch.device("cpu"),
            access=access,
        )
        note(f"judged by {scorer.name}")
        return scorer


@dataclass(frozen=True)
class _Survey:
    """Counts of the logs' lines.

    Args:
        prompts: Requests for text.
        dated: Those of them that have a time.
        others: Lines that ask for something else.
        mended: Requests in which half a character was replaced.
    """

    prompts: int
    dated: int
    others: int
    mended: int


def describe_replay(
    servers: Sequence[Server], scorer: Scorer, settings: ReplaySettings
) -> dict[str, str]:
    """The identity of a replay, which is stored with its results."""
    names = [f"{server.model} at {server.address}" for server in servers]
    return {
        **{f"endpoint {arm}": name for arm, name in zip(ARMS, names, strict=True)},
        "seed": str(settings.seed),
        "max_tokens": str(settings.max_tokens),
        "fraction": str(settings.fraction),
        "chat": str(settings.chat),
        "scorer": json.dumps(scorer.record(), sort_keys=True),
    }


def ask_both(
    logs: Sequence[Path],
    servers: Sequence[Server],
    scorer: Scorer,
    store: Store,
    settings: ReplaySettings,
) -> None:
    """Send both servers every prompt that is not in the store yet, and store the answers.

    Both get the same request with the same seed. A missing or malformed answer is stored as such.
    A server that fails after all retries ends the replay; finished batches stay in the store. Logs
    may grow between calls: the next one replays the new prompts.

    Args:
        logs: One or several, read as one, in their order; see `sordino.replaying.log.read_log`.
        servers: The original one and the dampened one.
        scorer: Scores the answers; prompts are not scored.
        store: Where the answers are stored.
        settings: The other settings.

    Raises:
        UserError: A log cannot be read, or differs from the one that the replay began with; a
            server or the scorer fails after all retries, or refuses everything.
    """
    survey = _survey(logs, store)
    if survey.others:
        what = counted(survey.others, "line asks", "lines ask")
        note(f"skipped: {what} for no chat and no completion")
    if survey.mended:
        what = counted(survey.mended, "request holds", "requests hold")
        note(f"{what} half a character, replaced by a question mark")
    if 0 < survey.dated < survey.prompts:
        undated = survey.prompts - survey.dated
        what = counted(undated, "request has no time and is", "requests have no time and are")
        note(f"{what} assigned to the day of the previous one")
    digest = hashlib.sha256()
    numbered = enumerate(prompt for prompt in _lines(logs) if prompt is not None)
    for _, prompt in islice(numbered, store.passed):
        prompt.added_to(digest)
    size = max(BATCH, _ROUNDS * max(server.concurrency for server in servers))
    with track("replaying", survey.prompts, "prompts", store.passed) as advance:
        for batch, passed in _batches(numbered, size, digest, store.passed, settings):
            before = store.passed
            answers = _answers(batch, servers, settings)
            if before == 0 and answers:
                _refuse_all(answers, servers, "")
            if len(answers) == size:
                _refuse_all(answers, servers, _MALFORMED)
            judged = _judge(answers, scorer)
            store.add(dict(batch), judged, passed, digest.hexdigest())
            advance(passed - before)
    for arm, server in zip(ARMS, servers, strict=True):
        if server.repaired:
            what = counted(server.repaired, "answer")
            note(f"{what} of {arm} held half a character, replaced by U+FFFD")
        if unread := store.missing()[arm].get(_MALFORMED):
            note(f"{counted(unread, 'answer')} of {arm} cannot be parsed: left out, with the pair")


def _lines(logs: Sequence[Path]) -> Iterator[Prompt | None]:
    return chain.from_iterable(map(read_log, logs))


def _survey(logs: Sequence[Path], store: Store) -> _Survey:
    """Read everything before the first request, so that a bad line shows at once."""
    prompts = dated = others = mended = 0
    digest, beginning = hashlib.sha256(), ""
    named = ", ".join(map(str, logs))
    for prompt in _lines(logs):
        if prompt is None:
            others += 1
            continue
        prompts, dated = prompts + 1, dated + (prompt.at is not None)
        mended += prompt.mended
        if prompts <= store.passed:
            prompt.added_to(digest)
        if prompts == store.passed:
            beginning = digest.hexdigest()
    if not prompts:
        raise UserError(
            f"{named} holds no prompt: each line must have messages or a prompt, like a request to "
            "an OpenAI-compatible server."
        )
    if beginning != store.digest:
        raise UserError(
            f"{named} does not begin with what was replayed before "
            f"({counted(store.passed, 'prompt')}): give the same log, which may have grown, or "
            "choose another `output`."
        )
    return _Survey(prompts, dated, others, mended)


def _batches(
    numbered: Iterator[tuple[int, Prompt]],
    size: int,
    digest: "hashlib._Hash",
    passed: int,
    settings: ReplaySettings,
) -> Iterator[tuple[list[tuple[int, Prompt]], int]]:
    """Batches of the drawn prompts, each with how many of the log's prompts are then done."""
    batch: list[tuple[int, Prompt]] = []
    done = passed
    for number, prompt in numbered:
        prompt.added_to(digest)
        done = number + 1
        if settings.fraction == 1 or _draw(settings.seed, number) < settings.fraction:
            batch.append((number, prompt))
        if len(batch) == size:
            yield batch, done
            batch, passed = [], done
    if done > passed:
        yield batch, done


def _draw(seed: int, number: int) -> float:
    """A random number from 0 to 1 for this prompt, whatever the length of the log."""
    return float(np.random.SeedSequence([seed, number, 1]).generate_state(1)[0]) / 2**32


def _answers(
    batch: Sequence[tuple[int, Prompt]], servers: Sequence[Server], settings: ReplaySettings
) -> list[tuple[Answer, Answer]]:
    """Both servers' answers, requested at the same time."""
    first, second = servers
    with (
        closing(first.each(lambda one: _ask(first, *one, settings), batch)) as original,
        closing(second.each(lambda one: _ask(second, *one, settings), batch)) as dampened,
    ):
        return list(zip(original, dampened, strict=True))


def _ask(server: Server, number: int, prompt: Prompt, settings: ReplaySettings) -> Answer:
    path, request = prompt.path, dict(prompt.request)
    if settings.chat and path == PLAIN:
        path = CHAT
        request["messages"] = [{"role": "user", "content": request.pop("prompt")}]
    request["max_tokens"] = min(prompt.length or settings.max_tokens, settings.max_tokens)
    request["seed"] = request_seed(settings.seed, number, 0)
    try:
        choice = server.ask(path, request)[0]
    except RefusedError as error:
        return Answer(None, missing=f"refused: {error}")
    except MalformedError as error:
        return Answer(None, missing=f"{_MALFORMED}: {error}")
    if choice.ended == FILTERED:
        return Answer(None, missing="withheld by a filter")
    if choice.content is None:
        return Answer(None, missing=server.without_text(choice))
    return Answer(choice.content)


def _refuse_all(
    answers: Sequence[Sequence[Answer]], servers: Sequence[Server], reason: str
) -> None:
    """Raise `UserError` for a server that answers no prompt of a batch.

    Args:
        answers: For each prompt, those of both servers.
        servers: Both.
        reason: The beginning of the reasons that count.
    """
    for server, of_arm in zip(servers, zip(*answers, strict=True), strict=True):
        reasons = [answer.missing for answer in of_arm]
        if all(found is not None and found.startswith(reason) for found in reasons):
            raise server.problem(f"it answers none of {len(of_arm)} prompts ({reasons[0]}).")


def _judge(answers: Sequence[Sequence[Answer]], scorer: Scorer) -> list[list[Answer]]:
    """The answers with their scores."""
    texts = [answer.text for pair in answers for answer in pair if answer.text is not None]
    scores: Iterator[float] = iter(scores_of(scorer, texts)[:, 0].tolist() if texts else ())
    return [
        [answer if answer.text is None else _score(answer.text, next(scores)) for answer in pair]
        for pair in answers
    ]


def _score(text: str, score: float) -> Answer:
    if math.isnan(score):
        return Answer(text, missing="not judged")
    return Answer(text, score)
