"""`sordino reproduce`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from sordino.cli import typed
from sordino.cli.options import JsonOptions, print_columns, print_json, print_paragraphs
from sordino.errors import UserError

if TYPE_CHECKING:
    from sordino.evaluation.statistics import Estimate
    from sordino.reproduction.again import Again
    from sordino.reproduction.comparison import Reproduction


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
        the folder or .gguf file that sordino run wrote.
    output
        The folder for the dampened model, the figures (JSON) and, for a recipe, the page (NAME; for
        a run NAME-again).
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
        from sordino.reproduction.again import Again
        from sordino.reproduction.changes import Changes
        from sordino.reproduction.recipe import recipes
        from sordino.reproduction.reproduce import reproduce as carry_out

        if name is None:
            raise UserError(f"Name a recipe: {', '.join(recipes())}; --list shows what each needs.")
        changes = Changes(model, concept, scorer, max_prompts, device)
        found, file = carry_out(name, output, changes, typed.command())
    if isinstance(found, Again):
        _print_again(found, file, as_json=printing.json)
    else:
        _print_row(found, file, as_json=printing.json)


def _print_row(found: "Reproduction", page: Path, *, as_json: bool) -> None:
    from sordino.reproduction.page import COLUMNS, reproduction_answer, reproduction_rows

    if as_json:
        print_json({"page": str(page), **found.model_dump(mode="json")})
        return
    print_columns(COLUMNS, reproduction_rows(found))
    for sentence in (*reproduction_answer(found), *found.recipe.notes):
        print(sentence)
    print(f"\nthe page to open: {page}")


def _print_again(found: "Again", file: Path, *, as_json: bool) -> None:
    if as_json:
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
        f"other's 95 % intervals; written: {file}"
    )


def _format_estimate(estimate: "Estimate | None") -> str:
    if estimate is None or estimate.value is None:
        return "–"
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.4g}"
    return f"{estimate.value:.4g} ({estimate.low:.4g} to {estimate.high:.4g})"


def _list(device: str, *, as_json: bool) -> None:
    from sordino.reproduction.changes import Changes
    from sordino.reproduction.recipe import recipes
    from sordino.reproduction.reproduce import lacking

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
        ("recipe", "model", "memory", "disk", "extras"),
        [
            [
                recipe.name,
                recipe.model + (" (gated)" if recipe.gated else ""),
                f"{recipe.memory / 10**9:.0f} GB",
                f"{recipe.disk / 10**9:.0f} GB",
                ", ".join(recipe.extras),
            ]
            for recipe, _ in found
        ],
    )
    shared = [recipe.name for recipe, _ in found if recipe.published[0].whole_paper]
    print_paragraphs(
        f"One published figure is about all models of a paper: {', '.join(shared)}.",
        *(
            f"Here, {recipe.name} {'lacks ' + '; '.join(missing) if missing else 'can run'}."
            for recipe, missing in found
        ),
    )
