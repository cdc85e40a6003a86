"""`sordino run`."""

import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from sordino.cli import typed
from sordino.cli.evaluate import print_table
from sordino.cli.options import (
    Output,
    OutputOptions,
    print_json,
    print_lines,
)
from sordino.errors import UserError
from sordino.extras import lacking, started_as
from sordino.files import has_suffix
from sordino.options.groups import (
    ChatOptions,
    ConceptOptions,
    ModelOptions,
    OwnOptions,
    RunRuleOptions,
    SweepOptions,
)
from sordino.options.measures import RunMeasureOptions

if TYPE_CHECKING:
    from sordino.evaluation import Measure
    from sordino.expertise.plan import SweepPlan


def run(
    model: str,
    /,
    *,
    output: Output | None = None,
    plan: bool = False,
    beside: tuple[str, ...] = (),
    recipe: Path | None = None,
    no_cache: Annotated[bool, Parameter(env_var="SORDINO_NO_CACHE")] = False,
    seed: int = 0,
    concept: ConceptOptions = ConceptOptions(),
    rule: RunRuleOptions = RunRuleOptions(),
    how: RunMeasureOptions = RunMeasureOptions(),
    opening: ModelOptions = ModelOptions(),
    sweep: SweepOptions = SweepOptions(),
    chat: ChatOptions = ChatOptions(),
    own: OwnOptions = OwnOptions(),
    printing: OutputOptions = OutputOptions(),
) -> None:
    """Do the whole job: find, dampen, bake, measure before and after, report.

    The output is a transformers folder that runs without Sordino; figures, samples, the expertise
    and the page are in its sordino/ folder. A GGUF model can become a GGUF file (-o NAME.gguf),
    with the rest in NAME.sordino/ beside it. To continue an interrupted run, run the same command
    again.

    Parameters
    ----------
    model
        Hub id, transformers folder, .gguf file or model of the kit, such as kit:smollm2.
    output
        The folder to write, or the .gguf file.
    plan
        Write nothing; estimate what finding takes (tokens, bytes to read, memory, time), and list
        what is measured afterwards.
    beside
        Another rule to measure as well, at strength 1, for comparison; repeat for several.
    recipe
        Options from a TOML file, such as the sordino/recipe.toml that every run writes; options on
        the command line override it.
    no_cache
        Measure the original again, and keep nothing. (On a processor, what is measured of it is
        kept in the cache folder, and read from there if nothing has changed since.)
    seed
        Seed of all random choices.
    """
    from sordino.options.job import Job

    with printing.in_force():
        job = Job(model, seed, beside, concept, rule, how, opening, sweep, chat, own)
        if plan:
            print_plan(job.plan(), job.decided, job.measures(), printing.json)
            return
        if output is None:
            raise UserError("There is nothing to write: pass --output FOLDER or --plan.")
        # The recipe's options were expanded before parsing.
        result = job.run(
            output,
            command=typed.command(),
            inputs=[recipe],
            force=printing.force,
            cache=not no_cache,
        )
    if printing.json:
        figures = result.evaluation.model_dump(mode="json") if result.evaluation else None
        others = {name: of.model_dump(mode="json") for name, of in result.beside.items()}
        print_json(
            {
                "output": str(result.folder),
                "page": str(result.page),
                "evaluation": figures,
                "beside": others,
            }
        )
        return
    if result.evaluation:
        print_table(result.evaluation, refusals_protected=sweep.protects_refusals)
    for name, evaluation in result.beside.items():
        print(f"\nfor comparison, {name}:")
        print_table(evaluation)
    print(f"\nthe dampened model: {result.folder}")
    print(f"the page to open:   {result.page}")
    print_lines(*next_steps(model, result.folder))


def print_plan(
    planned: "SweepPlan", rule: RunRuleOptions, measures: "Sequence[Measure]", json: bool
) -> None:
    """Print how long finding will take, and what is measured after it."""
    if json:
        names = [one.key for one in measures]
        print_json({**asdict(planned), "intervention": rule.intervention, "measures": names})
        return
    size = "its own size" if rule.divergence is None else f"a divergence of {rule.divergence:g}"
    print_lines(
        *planned.lines(),
        f"then         {rule.intervention} at {size} is baked, and measured before and after: "
        f"{', '.join(map(describe_cost, measures))}",
    )


def describe_cost(measure: "Measure") -> str:
    """A measure in the words of a plan: how much a model writes or answers for it at most."""
    from sordino.evaluation.measures.piqa import Piqa
    from sordino.evaluation.writing import Writing

    if isinstance(measure, Writing) and measure.max_prompts is not None:
        texts = measure.max_prompts * measure.continuations
        what = "continuations" if measure.chat is None else "replies"
        return f"{measure.key} (at most {texts:,} {what} of {measure.new_tokens} tokens)"
    if isinstance(measure, Piqa) and measure.questions is not None:
        return f"{measure.key} (at most {measure.questions:,} questions)"
    return measure.key


def next_steps(model: str, folder: Path) -> list[str]:
    """The commands that people run next with a dampened model."""
    is_file = has_suffix(folder, ".gguf")
    quiet = shlex.quote(str(folder))
    served = f"llama-server -m {quiet}" if is_file else f"vllm serve {quiet}"
    chat = started_as("chat" if lacking("chat") else "")
    return [
        f"talk to both:       {chat} chat {shlex.quote(model)} {quiet}",
        f"serve it:           {served}",
        f"share it:           {started_as()} push {quiet} YOU/NAME",
    ]
