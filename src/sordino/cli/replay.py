"""`sordino replay`."""

from dataclasses import dataclass, replace
from pathlib import Path

from cyclopts import Parameter

from sordino.cli import typed
from sordino.cli.options import AccessOptions, JsonOptions, Output, print_json
from sordino.errors import UserError


@Parameter(name="*", group="Servers")
@dataclass(frozen=True)
class ServersOptions(AccessOptions):
    """The two servers that are asked."""

    endpoint: tuple[str, ...] = ()
    """Address of an OpenAI-compatible server, twice: the original's, then the dampened one's."""
    served_model: tuple[str, ...] = ()
    """The model's name there, where a server has several: once for both, or twice."""
    api_key_env: tuple[str, ...] = ()
    """Environment variable with the key (OPENAI_API_KEY): once for both, or twice."""
    chat: bool = False
    """Ask plain prompts as messages, where the servers have nothing but a chat."""


@Parameter(name="*", group="Judging")
@dataclass(frozen=True)
class JudgeOptions:
    """Who judges the answers."""

    scorer: str = "auto"
    """As for evaluate: auto, alt-profanity-check, tox-block, hf:org/name, an address, …"""
    toxic_label: str | None = None
    """The classifier's label that means toxic, where that is not plain."""
    judge_refusal: float | None = None
    """What an answer counts as that a server's model will not judge, from 0 to 1."""


def replay(
    *logs: Path,
    output: Output,
    max_tokens: int = 256,
    fraction: float = 1.0,
    redact: bool = False,
    seed: int = 0,
    servers: ServersOptions = ServersOptions(),
    judging: JudgeOptions = JudgeOptions(),
    printing: JsonOptions = JsonOptions(),
) -> None:
    """Ask the original and the dampened server what people really asked, and compare over time.

    The logs' prompts go to both servers, the same with the same seed; answers are scored and kept
    in a DuckDB file. The page's interval may be looked at every day. The same command goes on
    where it was interrupted, and with what has been added to the logs since.

    Parameters
    ----------
    logs
        JSONL files (or .jsonl.gz), the oldest first, one request a line: {"messages": …},
        {"prompt": …}, or one of these as "body" or "request"; with a time, if it has one.
    output
        The folder for the database, the figures (JSON) and the page (HTML).
    max_tokens
        The longest answer, in tokens; a request of the log can ask for a shorter one.
    fraction
        Replay this share of the requests, drawn by --seed.
    redact
        Keep no text of prompts and answers; what an earlier run kept is removed.
    seed
        Seed of the draw, and of the servers' sampling.
    """
    from sordino.evaluation.endpoint import Server
    from sordino.extras import require
    from sordino.files import only_one, private_files, write_json
    from sordino.outputs import PAGE, REPLAY, claim_output
    from sordino.replay import ReplaySettings, Store, about, outcome_of
    from sordino.replay import replay as carry_out
    from sordino.replay.store import was_redacted
    from sordino.report.article import write_html
    from sordino.report.replay import replay_answer, replay_article

    with printing.in_force(), private_files():
        settings = ReplaySettings(
            max_tokens,
            fraction,
            servers.chat,
            judging.scorer,
            judging.toxic_label,
            judging.judge_refusal,
            seed,
        )
        require("replay", "A replay")
        if not logs:
            raise UserError("There is nothing to replay: give the log of a service, a .jsonl file.")
        if len(servers.endpoint) != 2:
            raise UserError(
                f"--endpoint is given {len(servers.endpoint)} times: give it twice, the original "
                "server's first."
            )
        models = _of_both("--served-model", servers.served_model)
        keys = _of_both("--api-key-env", servers.api_key_env)
        database, figures, page = (output / f"replay.{kind}" for kind in ("duckdb", "json", "html"))
        # What a server says can quote what it was sent.
        quote = not (redact or was_redacted(database))
        asked = [
            Server(
                address,
                model,
                replace(servers.access(key), quote=quote),
                flag="--endpoint",
                model_flag="--served-model",
            )
            for address, model, key in zip(servers.endpoint, models, keys, strict=True)
        ]
        for path, kind in {figures: REPLAY, page: PAGE}.items():
            claim_output(path, kind, force=True, inputs=logs)
        with only_one(figures):
            scorer = settings.open_scorer(replace(servers.access(None), quote=quote))
            known = about(asked, scorer, settings)
            store = Store(database, known, redact=redact)
            try:
                carry_out(logs, asked, scorer, store, settings)
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
            article = replay_article(outcome, str(database), typed.command())
            write_html(article, page)
    if printing.json:
        print_json({"page": str(page), **outcome.model_dump(mode="json")})
        return
    for line in replay_answer(outcome):
        print(line)
    print(f"\nthe answers:      {database}")
    print(f"the page to open: {page}")


def _of_both(flag: str, given: tuple[str, ...]) -> tuple[str | None, str | None]:
    """What was given once for both servers, or for each."""
    if len(given) > 2:
        raise UserError(f"{flag} is given {len(given)} times, and there are two servers.")
    if not given:
        return None, None
    return given[0], given[-1]
