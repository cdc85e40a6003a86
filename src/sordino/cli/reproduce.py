"""`sordino reproduce`."""

import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from sordino.cli import typed
from sordino.cli.options import JsonOptions, print_columns, print_json
from sordino.errors import UserError

if TYPE_CHECKING:
    from sordino.evaluation.statistics import Estimate


def reproduce(
    name: str | None = None,
    /,
    *,
    output: Annotated[Path | None, Parameter(name=["--output", "-o"])] = None,
    list_: Annotated[bool, Parameter(name="--list")] = False,
    model: str | None = None,
    concept: str | None = None,
    scorer: str | None = None,
    max_prompts: int | None = None,
    device: str = "auto",
    printing: JsonOptions = JsonOptions(),
) -> None:
    """Repeat a published result or a run, and compare the figures.

    A published result needs the hub and the memory that --list shows. A run, of yours or somebody
    else's, needs what it needed the first time. To continue after an interruption, run the same
    command again.

    Parameters
    ----------
    name
        A recipe's name (see --list), or a .toml file of the same form; or a run: hf:org/name, or
        the folder that sordino run wrote.
    output
        The folder for the dampened model, the figures (JSON) and the page (NAME).
    list_
        List the recipes, what each needs, and whether this machine has it.
    model
        A copy of the recipe's model, instead of the hub's.
    concept
        A copy of its sentences: Jigsaw's train.csv.
    scorer
        A copy of its scorer: the folder of the same classifier in safetensors.
    max_prompts
        The largest number of prompts for toxicity, instead of the recipe's own.
    device
        Where it runs: auto (a GPU if there is one), cpu, cuda, cuda:1, mps, …
    """
    with printing.in_force():
        if list_:
            _list(device, as_json=printing.json)
            return
        from sordino.reproduction.recipe import recipe_named, recipes

        if name is None:
            raise UserError(f"Name a recipe: {', '.join(recipes())}; --list shows what each needs.")
        from sordino.reproduction.again import is_run
        from sordino.reproduction.page import COLUMNS, reproduction_answer, reproduction_rows
        from sordino.reproduction.reproduce import Changes
        from sordino.reproduction.reproduce import reproduce as carry_out

        if is_run(name):
            _repeat(name, output, _overrides(model, concept, scorer, max_prompts, device), printing)
            return
        recipe = recipe_named(name)
        changes = Changes(model, concept, scorer, max_prompts, device)
        found, page = carry_out(recipe, output, changes, typed.command())
    if printing.json:
        print_json({"page": str(page), **found.model_dump(mode="json")})
        return
    print_columns(COLUMNS, reproduction_rows(found))
    for sentence in (*reproduction_answer(found), *recipe.notes):
        print(sentence)
    print(f"\nthe page to open: {page}")


def _overrides(
    model: str | None, concept: str | None, scorer: str | None, max_prompts: int | None, device: str
) -> list[str]:
    """The options that replace the run's, as arguments of `sordino run`."""
    flags = {"concept": concept, "scorer": scorer, "max-prompts": max_prompts}
    given = [f"--{flag}={value}" for flag, value in flags.items() if value is not None]
    given += [] if device == "auto" else [f"--device={device}"]
    return [*([] if model is None else [model]), *given]


def _repeat(
    name: str, output: Path | None, overrides: Sequence[str], printing: JsonOptions
) -> None:
    """Repeat somebody's run from its recipe, and print their figures beside ours."""
    from sordino.cli.app import app
    from sordino.cli.recipe import expand
    from sordino.files import write_json
    from sordino.outputs import REPRODUCTION, claim_output
    from sordino.progress import note
    from sordino.reproduction.again import compare_runs, figures_of, pushed_run

    theirs = pushed_run(name)
    called = name.removeprefix("hf:").partition("@")[0].rstrip("/").rpartition("/")[2]
    place = output or Path(f"{called}-again")
    target = place / theirs.output
    results = claim_output(place / "again.json", REPRODUCTION, force=True)
    if figures_of(target).is_file():
        note(f"{target} exists already: only comparing it.")
    else:
        place.mkdir(parents=True, exist_ok=True)
        # Everything is measured here and now: that is what repeating is for.
        typed_ = ["run", *overrides, f"--recipe={theirs.recipe}", f"--output={target}"]
        typed_.append("--no-cache")
        quiet = ["--json"] if printing.json else []
        with redirect_stdout(sys.stderr):
            app([*expand(typed_), *quiet], exit_on_error=False, print_error=False)
    found = compare_runs(theirs, target)
    write_json(results, found.model_dump(mode="json"))
    if printing.json:
        print_json(found.model_dump(mode="json"))
        return
    rows = [
        [
            each.measure,
            each.label,
            _format_estimate(each.theirs),
            _format_estimate(each.ours),
            each.verdict,
        ]
        for each in found.figures
    ]
    print_columns(("measure", "figure", "theirs", "ours", "verdict"), rows)
    for difference in found.differences:
        print(f"different from theirs: {difference}")
    same = sum(each.verdict == "same" for each in found.figures)
    inside = sum(each.verdict == "inside" for each in found.figures)
    print(
        f"\nof {len(found.figures)} figures, {same} are the same and {inside} are inside each "
        f"other's 95 % intervals; written: {results}"
    )


def _format_estimate(estimate: "Estimate | None") -> str:
    if estimate is None or estimate.value is None:
        return "–"
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.4g}"
    return f"{estimate.value:.4g} ({estimate.low:.4g} to {estimate.high:.4g})"


def _list(device: str, *, as_json: bool) -> None:
    from sordino.reproduction.recipe import recipes
    from sordino.reproduction.reproduce import Changes, lacking

    found = [(one, lacking(one, Changes(device=device), Path())) for one in recipes().values()]
    if as_json:
        print_json(
            [
                {
                    **recipe.model_dump(mode="json"),
                    "memory": recipe.memory,
                    "disk": recipe.disk,
                    "extras": recipe.extras,
                    "lacking": missing,
                }
                for recipe, missing in found
            ]
        )
        return
    print_columns(
        ("recipe", "model", "memory", "disk", "extras", "their figures are of", "here"),
        [
            [
                recipe.name,
                recipe.model + (" (gated)" if recipe.gated else ""),
                f"{recipe.memory / 10**9:.0f} GB",
                f"{recipe.disk / 10**9:.0f} GB",
                ", ".join(recipe.extras),
                "all their models" if recipe.published[0].whole_paper else "this model",
                f"lacks {'; '.join(missing)}" if missing else "yes",
            ]
            for recipe, missing in found
        ],
    )
