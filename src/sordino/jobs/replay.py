"""Replay a log to two servers, and keep the answers, the figures and a page of them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sordino.errors import UserError
from sordino.evaluation.endpoint import DEFAULT_ACCESS, Access, Server
from sordino.extras import require
from sordino.files import only_one, private_files, user_path, write_json
from sordino.outputs import PAGE, REPLAY, claim_output
from sordino.replaying import ReplayOutcome, ReplaySettings, Store, about, ask_both, outcome_of
from sordino.replaying.store import was_redacted
from sordino.report.article import write_html
from sordino.report.replay import replay_answer, replay_article


@dataclass(frozen=True)
class ReplayResult:
    """What a replay left behind.

    Args:
        outcome: The figures, so far.
        database: The DuckDB file with the answers.
        page: The page to open.
        answer: What was found, in sentences.
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

    The logs' prompts go to both servers, the same with the same seed; answers are scored and kept.
    The page's interval may be looked at every day. The same call continues where it was
    interrupted, and with what has been added to the logs since.

    Args:
        logs: JSON Lines files (or .jsonl.gz), the oldest first, with one request a line.
        servers: The addresses of two OpenAI-compatible servers: the original's, the dampened one's.
        output: The folder for the database, the figures and the page.
        settings: What is asked, and who judges.
        models: The model's name on each server, where a server has several.
        keys: The environment variables that hold the servers' keys.
        access: How servers are asked.
        redact: Keep no text of prompts and answers; what an earlier replay kept is removed.
        command: The command line that does it again, for the page.

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
        raise UserError("There is nothing to replay: give the log of a service, a .jsonl file.")
    folder = user_path(output)
    database, figures, page = (folder / f"replay.{kind}" for kind in ("duckdb", "json", "html"))
    with private_files():
        # What a server says can quote what it was sent.
        quote = not (redact or was_redacted(database))
        asked = [
            Server(
                address,
                model,
                replace(access, key_variable=key, quote=quote),
                flag="--endpoint",
                model_flag="--served-model",
            )
            for address, model, key in zip(servers, models, keys, strict=True)
        ]
        for path, kind in {figures: REPLAY, page: PAGE}.items():
            claim_output(path, kind, force=True, inputs=given)
        with only_one(figures):
            scorer = chosen.open_scorer(replace(access, key_variable=None, quote=quote))
            known = about(asked, scorer, chosen)
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
