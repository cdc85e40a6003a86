"""Replay a log to two servers, and write the answers, the figures and a page."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sordino.errors import UserError, refuse_text
from sordino.evaluation.endpoint import DEFAULT_ACCESS, Access, Server
from sordino.extras import require
from sordino.files import only_one, private_files, refuse_repeated, user_path, write_json
from sordino.outputs import PAGE, REPLAY, claim_output
from sordino.replaying import (
    ReplayOutcome,
    ReplaySettings,
    Store,
    ask_both,
    describe_replay,
    outcome_of,
)
from sordino.replaying.store import ARMS, was_redacted
from sordino.report.article import write_html
from sordino.report.replay import replay_answer, replay_article


@dataclass(frozen=True)
class ReplayResult:
    """The result of a replay.

    Args:
        outcome: The figures so far.
        database: The DuckDB file with the answers.
        page: The page to open.
        answer: The answer in sentences.
    """

    outcome: ReplayOutcome
    database: Path
    page: Path
    answer: tuple[str, ...]


def replay(
    logs: str | Path | Sequence[str | Path],
    servers: Sequence[str],
    output: str | Path,
    *,
    settings: ReplaySettings | None = None,
    models: tuple[str | None, str | None] = (None, None),
    keys: tuple[str | None, str | None] = (None, None),
    access: Access = DEFAULT_ACCESS,
    redact: bool = False,
    command: Sequence[str] = (),
) -> ReplayResult:
    """Send the prompts of logs to the original and the dampened server, and compare over time.

    Both servers get the same prompts with the same seed; their answers are scored and kept. You may
    look at the page's interval every day. The same call continues after an interruption, and when
    the logs have grown.

    Args:
        logs: JSON Lines files (or .jsonl.gz), the oldest first, with one request per line.
        servers: The addresses of two OpenAI-compatible servers, first the original's, then the
            dampened one's.
        output: The folder for the database, the figures and the page.
        settings: What is asked and how answers are scored.
        models: The model's name on each server; None if the server has only one.
        keys: The environment variables that hold the servers' keys.
        access: How servers are asked.
        redact: Keep no text of prompts and answers; what an earlier replay kept is removed.
        command: The command line that continues it, for the page.

    Raises:
        UserError: An input cannot be used, or a server does not answer.

    Example:
        >>> settings = sordino.ReplaySettings(scorer="wordlist")
        >>> servers = ["http://127.0.0.1:8000/v1", "http://127.0.0.1:8001/v1"]
        >>> result = sordino.replay("requests.jsonl", servers, "replayed", settings=settings)
        >>> result.outcome.prompts
        4
    """
    require("replay", "A replay")
    given = [logs] if isinstance(logs, str | Path) else list(logs)
    chosen = settings or ReplaySettings()
    if not given:
        raise UserError("There is nothing to replay: pass the log of a service, a .jsonl file.")
    refuse_text(servers=servers, models=models, keys=keys)
    for name, each in {"servers": servers, "models": models, "keys": keys}.items():
        if len(each) != len(ARMS):
            raise UserError(
                f"`{name}` has {len(each)} values: give two, the original server's first."
            )
    refuse_repeated(given, "would count its prompts twice")
    folder = user_path(output)
    database, figures, page = (folder / f"replay.{kind}" for kind in ("duckdb", "json", "html"))
    with private_files():
        # A server's messages can quote the prompt.
        quote = not (redact or was_redacted(database))
        asked = [
            Server(
                address,
                model,
                replace(access, key_variable=key, quote=quote),
                argument="endpoint",
                model_argument="`Endpoint.model`",
            )
            for address, model, key in zip(servers, models, keys, strict=True)
        ]
        for path, kind in {figures: REPLAY, page: PAGE}.items():
            claim_output(path, kind, force=True, inputs=given)
        with only_one(figures):
            scorer = chosen.open_scorer(replace(access, key_variable=None, quote=quote))
            known = describe_replay(asked, scorer, chosen)
            store = Store(database, known, redact=redact)
            try:
                ask_both([Path(log) for log in given], asked, scorer, store, chosen)
                outcome = outcome_of(
                    store.pairs(),
                    servers=(known["endpoint A"], known["endpoint B"]),
                    scorer={**scorer.record(), "limits": scorer.limits},
                    settings={
                        name: known[name] for name in ("seed", "max_tokens", "fraction", "chat")
                    },
                    redacted=store.redacted,
                    prompts=store.prompts(),
                    missing=store.missing(),
                )
            finally:
                store.close()
            write_json(figures, outcome.model_dump(mode="json"))
            write_html(replay_article(outcome, str(database), command), page)
    return ReplayResult(outcome, database, page, tuple(replay_answer(outcome)))
