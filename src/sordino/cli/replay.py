"""`sordino replay`."""

from dataclasses import dataclass
from pathlib import Path

from cyclopts import Parameter

from sordino.cli import typed
from sordino.cli.options import AccessOptions, JsonOptions, JudgeOptions, Output, print_json
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
    """Send plain prompts as chat messages, for servers without plain completions."""


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
    """Send the prompts of a log to the original and the dampened server, and compare.

    Both servers get the same prompts with the same seed; their answers are scored and kept in a
    DuckDB file. You may look at the page's interval every day. To continue after an interruption,
    or when the log has grown, run the same command again.

    Parameters
    ----------
    logs
        JSONL files (or .jsonl.gz), the oldest first, with one request per line: {"messages": …},
        {"prompt": …}, or one of these as "body" or "request"; a time is optional.
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
    from sordino.jobs.replay import replay as ask
    from sordino.replaying import ReplaySettings

    with printing.in_force():
        settings = ReplaySettings(
            max_tokens,
            fraction,
            servers.chat,
            judging.scorer,
            judging.toxic_label,
            judging.judge_refusal,
            seed,
        )
        if logs and len(servers.endpoint) != 2:
            raise UserError("Pass --endpoint twice: the original server's first.")
        found = ask(
            logs,
            servers.endpoint,
            output,
            settings=settings,
            models=_of_both("--served-model", servers.served_model),
            keys=_of_both("--api-key-env", servers.api_key_env),
            access=servers.access(None),
            redact=redact,
            command=typed.command(),
        )
    if printing.json:
        print_json({"page": str(found.page), **found.outcome.model_dump(mode="json")})
        return
    for line in found.answer:
        print(line)
    print(f"\nthe answers:      {found.database}")
    print(f"the page to open: {found.page}")


def _of_both(flag: str, given: tuple[str, ...]) -> tuple[str | None, str | None]:
    """A value for each server, from one for both or one for each."""
    if len(given) > 2:
        raise UserError(f"{flag} is given {len(given)} times, but there are two servers.")
    if not given:
        return None, None
    return given[0], given[-1]
