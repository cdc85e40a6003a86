"""`sordino evaluate`."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from sordino.cli.flags import in_flags
from sordino.cli.options import (
    AccessOptions,
    FileOutput,
    OutputOptions,
    print_columns,
    print_json,
)
from sordino.errors import UserError
from sordino.options.groups import (
    ChatOptions,
    InterventionOptions,
    OpeningOptions,
)
from sordino.options.measures import MeasureOptions

if TYPE_CHECKING:
    from sordino.evaluation import Endpoint, Evaluation


@Parameter(name="*", group="Evaluation: a served model")
@dataclass(frozen=True)
class EndpointOptions(AccessOptions):
    """A server to measure instead of a model in this process."""

    endpoint: str | None = None
    """Address of an OpenAI-compatible server (vLLM, llama.cpp, …), instead of MODEL."""
    served_model: str | None = None
    """The model's name on the server, if it has several."""
    continue_in_chat: bool = False
    """Ask the server's chat to continue the prompt as raw text, for servers without plain
    completions. (With --chat on, it replies to the prompt.)"""
    api_key_env: str | None = None
    """Environment variable with the key (OPENAI_API_KEY)."""

    def refuse_idle(self, scorers: Sequence[str]) -> None:
        """Refuse what decides nothing without a server that is measured, or one that judges."""
        from sordino.evaluation.opening import is_address

        if self.endpoint is not None:
            return
        judged = any(map(is_address, scorers))
        for field in fields(self):
            is_of_all = field.name in {of.name for of in fields(AccessOptions)}
            if getattr(self, field.name) != field.default and not (judged and is_of_all):
                raise UserError(
                    f"`{field.name}` is for a server, and none is asked: leave it out, or pass "
                    "--endpoint" + (" or a --scorer on a server." if is_of_all else ".")
                )

    def subject(self, model: str | None) -> "str | Endpoint":
        """The server, or else the model of that name."""
        from sordino.evaluation import Endpoint

        if self.endpoint is None:
            if model is None:
                raise UserError("There is nothing to evaluate: pass a MODEL or --endpoint.")
            return model
        if model is not None:
            raise UserError(f"Pass the model {model} or --endpoint, not both.")
        access = self.access(self.api_key_env)
        return Endpoint(self.endpoint, self.served_model, chat=self.continue_in_chat, access=access)


def evaluate(
    model: str | None = None,
    /,
    *,
    output: FileOutput,
    against: str | None = None,
    dampening: tuple[Path, ...] = (),
    seed: int = 0,
    batch_tokens: int | None = None,
    stream: Annotated[bool | None, Parameter(negative="--no-stream")] = None,
    no_cache: Annotated[bool, Parameter(env_var="SORDINO_NO_CACHE")] = False,
    rule: InterventionOptions = InterventionOptions(),
    how: MeasureOptions = MeasureOptions(),
    server: EndpointOptions = EndpointOptions(),
    opening: OpeningOptions = OpeningOptions(),
    chat: ChatOptions = ChatOptions(),
    printing: OutputOptions = OutputOptions(),
) -> None:
    """Measure a model, or a dampened one against its original.

    Both see the same prompts and the same random numbers. The figures go into the JSON file, the
    continuations into NAME.samples.jsonl. An interrupted evaluation continues where it stopped.
    Processes started by torchrun share the prompts and texts.

    Parameters
    ----------
    model
        The model to measure, unless it is on a server (--endpoint).
    against
        The original to compare it with.
    dampening
        An expertise file, to which the intervention is applied, or a dampening file (hf:org/name
        for one on the hub): the model is measured with these factors, applied by forward hooks.
        Repeat for several; their factors are multiplied.
    output
        The JSON file to write.
    seed
        Seed of all random choices.
    batch_tokens
        About how many tokens are in memory at once; by default 8,192, or more on a GPU.
    stream
        Read the weights layer by layer from their files, again for every batch of texts and for
        every token that is written; by default only for a model that does not fit into memory.
    no_cache
        Measure the original again, and keep nothing. (On a processor, what is measured of it is
        kept in the cache folder, and read from there if nothing has changed since.)
    """
    from sordino.jobs.evaluate import evaluate as measure
    from sordino.models.ranks import sharing

    if dampening and server.endpoint is not None:
        raise UserError(
            "--dampening changes a model in this process, not one on a server: leave out "
            "--endpoint and pass the MODEL."
        )
    server.refuse_idle(how.scorer)
    with printing.in_force(), sharing(opening.device) as (ranks, device):
        result = measure(
            server.subject(model),
            against,
            measures=how.measures(server.access(None), sizing=rule.divergence is not None),
            dampening=dampening,
            intervention=rule.intervention,
            strength=rule.strength,
            settings=rule.settings(),
            divergence=rule.divergence,
            texts=how.clean_texts,
            device=device,
            dtype=opening.dtype,
            revision=opening.revision,
            stream=stream,
            seed=seed,
            batch_tokens=batch_tokens,
            output=output,
            force=printing.force,
            inputs=vars(how).values(),
            cache=not no_cache,
            chat=chat.settings(),
        )
    if not ranks.first:
        return
    if printing.json:
        print_json({"output": str(output), **result.model_dump(mode="json")})
    else:
        print_table(result)
        print(f"written: {output}")


def print_table(result: "Evaluation", *, refusals_protected: bool = False) -> None:
    """Print the before/after table without its details, and what the scorer cannot see.

    Args:
        result: The figures.
        refusals_protected: Whether the edit protects the model's refusals.
    """
    from rich.console import Console

    from sordino.report.outcome import damage, measure_limits, refusing

    # What others wrote, such as a scorer's name or a package's extra, is no markup.
    console, rows = Console(soft_wrap=True, markup=False, emoji=False), result.table()
    columns = ["before", "after", "change", "95 % interval"] if result.before else ["figure"]
    cells = [
        [row.label, row.before, row.after, row.change, row.interval, row.n]
        if result.before
        else [row.label, row.after, row.n]
        for row in rows
        if not row.figure.detail
    ]
    for said in refusing(rows, refusals_protected=refusals_protected).values():
        console.print(said, style="bold")
    print_columns(("", *columns, "n"), cells)
    details = len(rows) - len(cells)
    if details:
        console.print(
            f"{details} more figures, by label and group, are in the JSON file.", style="dim"
        )
    if caution := damage(rows):
        console.print(caution, style="bold")
    for name, measured in result.measures.items():
        if measured.not_run:
            console.print(in_flags(f"{name} is not run: {measured.not_run}."))
    for limits in measure_limits(result):
        console.print(limits, style="dim")
