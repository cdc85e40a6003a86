"""`sordino reproduce`."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from sordino.cli import typed
from sordino.cli.options import JsonOptions, print_json
from sordino.errors import UserError


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
    """Reproduce a published row as its authors did it, and compare our figures with theirs.

    It needs the hub and the memory that --list shows. What was interrupted continues when
    the same command is given again.

    Parameters
    ----------
    name
        A recipe's name (see --list), or a .toml file of the same form.
    output
        The folder for the dampened model, the figures (JSON) and the page (NAME).
    list_
        Say which recipes there are, what each needs, and whether it is at hand here.
    model
        A copy of the recipe's model, where the hub is not to be asked for it.
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
        from sordino.reproduction.page import COLUMNS, reproduction_answer, reproduction_rows
        from sordino.reproduction.reproduce import Changes
        from sordino.reproduction.reproduce import reproduce as carry_out

        recipe = recipe_named(name)
        changes = Changes(model, concept, scorer, max_prompts, device)
        found, page = carry_out(recipe, output, changes, typed.command())
    if printing.json:
        print_json({"page": str(page), **found.model_dump(mode="json")})
        return
    _print(COLUMNS, reproduction_rows(found))
    for sentence in (*reproduction_answer(found), *recipe.notes):
        print(sentence)
    print(f"\nthe page to open: {page}")


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
    _print(
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


def _print(columns: tuple[str, ...], rows: list[list[str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if not console.is_terminal:
        console.width = 240
    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column)
    for row in rows:
        table.add_row(*row)
    console.print(table)
