"""`sordino replay`."""

from dataclasses import dataclass
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
    """The classifier's label that means toxic, if it cannot be inferred."""
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
    """Send the prompts of logs to the original and the dampened server, and compare over time.

    The logs' prompts go to both servers, the same with the same seed; answers are scored and kept
    in a DuckDB file. The page's interval may be looked at every day. The same command
    continues where it was interrupted, also with what was added to the logs since.

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
            raise UserError(
                f"--endpoint is given {len(servers.endpoint)} times: give it twice, the original "
                "server's first."
            )
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
    """What was given once for both servers, or for each."""
    if len(given) > 2:
        raise UserError(f"{flag} is given {len(given)} times, and there are two servers.")
    if not given:
        return None, None
    return given[0], given[-1]
