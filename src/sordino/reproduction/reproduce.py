"""Carry out a recipe: the whole job on a published model, and our figures beside theirs."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sordino import hub
from sordino.concepts import load_concept
from sordino.concepts.concept import Concept
from sordino.edits.provenance import extras_of
from sordino.errors import UserError
from sordino.evaluation import Evaluation
from sordino.extras import installing
from sordino.files import only_one, read_json, user_path, write_json
from sordino.models.memory import available
from sordino.models.open import choose_device
from sordino.outputs import PAGE, REPRODUCTION, claim_output
from sordino.pipeline import RunSettings, run
from sordino.report.article import write_html
from sordino.reproduction.again import Again, is_run, repeat
from sordino.reproduction.changes import Changes
from sordino.reproduction.comparison import Reproduction, compare_with
from sordino.reproduction.page import reproduction_article
from sordino.reproduction.recipe import Recipe, recipe_named

_GB = 10**9


def lacking(recipe: Recipe, changes: Changes, place: Path) -> list[str]:
    """The missing requirements of a recipe, in half sentences; empty if it can begin.

    Args:
        recipe: The recipe.
        changes: Deviations from it.
        place: The folder of the output.
    """
    wanted = [
        name
        for name in recipe.from_hub
        if not (changes.model and name == recipe.model)
        and not (changes.concept and name == "Jigsaw's comments")
        and not (changes.scorer and name in recipe.scorers)
    ]
    found = []
    extras = recipe.missing_extras()
    if extras:
        found.append(installing(",".join(extras)))
    if wanted and not hub.reachable():
        found.append(f"a hub that answers (for {', '.join(wanted)})")
    device = choose_device(changes.device)
    left = available(device)
    if left < recipe.memory:
        found.append(
            f"{recipe.memory / _GB:,.0f} GB of memory on {device.type}, which has "
            f"{left / _GB:,.0f} free"
        )
    while not place.exists():
        place = place.absolute().parent
    free = shutil.disk_usage(place).free
    if free < recipe.disk:
        found.append(f"{recipe.disk / _GB:,.0f} GB of disk, where {free / _GB:,.0f} are free")
    return found


def reproduce(
    subject: Recipe | str | Path,
    output: str | Path | None = None,
    changes: Changes | None = None,
    command: Sequence[str] = (),
) -> tuple[Reproduction | Again, Path]:
    """Do the whole job by a published row's recipe or by somebody's run, and compare the figures.

    Of a row, the dampened model with its own page is in the folder `model` of the output; of a run,
    it is `model`, or `model.gguf` if theirs is a GGUF file. An interrupted call continues; what is
    finished is only compared.

    Args:
        subject: A recipe, its name (`sordino reproduce --list` lists them), or a ".toml" file in
            the same format; or a run: "hf:org/name", or a folder or GGUF file that `sordino.run`
            wrote. Files that a run read are looked for where it named them.
        output: The folder to make; None for one in the current folder, with the recipe's name or
            "NAME-again".
        changes: Deviations from the recipe or the run.
        command: The command line that repeats it, for the pages.

    Returns:
        Of a row, the comparison and its page; of a run, the comparison and its JSON file.

    Raises:
        UserError: A requirement is missing, an input cannot be used, or the folder is another
            recipe's.

    Example:
        >>> changes = sordino.Changes(max_prompts=3, device="cpu")
        >>> found, page = sordino.reproduce("tiny.toml", "reproduced", changes)
        >>> page.name
        'reproduction.html'
    """
    if isinstance(subject, Recipe):
        return _carry_out(subject, output, changes, command)
    if is_run(str(subject)):
        return repeat(str(subject), output, changes, command)
    return _carry_out(recipe_named(str(subject)), output, changes, command)


def _carry_out(
    recipe: Recipe, output: str | Path | None, changes: Changes | None, command: Sequence[str]
) -> tuple[Reproduction, Path]:
    """Do the whole job by a recipe."""
    output, changes = user_path(output or recipe.name), changes or Changes()
    measures = recipe.build(changes.max_prompts, changes.scorer)
    folder, mark = output / "model", output / "recipe.json"
    asked = {"recipe": recipe.model_dump(mode="json"), "changes": _deciding(changes)}
    figures = extras_of(folder) / "evaluation.json"
    begun = read_json(mark) if mark.exists() else None
    if begun != asked and (mark.exists() or figures.exists()):
        raise UserError(
            f"{output} is of another recipe or other settings: choose another `output`."
        )
    results = claim_output(output / "reproduction.json", REPRODUCTION, force=True)
    page = claim_output(output / "reproduction.html", PAGE, force=True)
    with only_one(results):
        if not figures.exists():
            missing = lacking(recipe, changes, output)
            if missing:
                raise UserError(f"{recipe.name} cannot be reproduced here: it lacks {missing[0]}.")
            write_json(mark, asked)
            settings = RunSettings(
                intervention=recipe.intervention,
                measures=measures,
                device=changes.device,
                dtype=recipe.dtype,
                seed=recipe.seed,
                stream=False,
            )
            run(
                changes.model or recipe.model,
                _sentences(recipe, changes),
                folder,
                settings,
                command=command,
            )
        evaluation = Evaluation.load(figures)
        found = Reproduction(
            recipe=recipe,
            model=changes.model or recipe.model,
            concept=read_json(folder / "sordino.json")["expertise"]["concept_source"],
            dtype=evaluation.after.dtype,
            device=evaluation.after.device,
            compared=tuple(compare_with(one, evaluation) for one in recipe.published),
        )
        write_json(results, found.model_dump(mode="json"))
        write_html(reproduction_article(found, command), page)
    return found, page


def _sentences(recipe: Recipe, changes: Changes) -> Concept:
    """The recipe's sentences, or a copy of them; a substitute is refused."""
    concept = load_concept(changes.concept or recipe.concept, seed=recipe.seed)
    if concept.source_is_substitute:
        raise UserError(
            f"{recipe.name} needs Jigsaw's comments, and no hub answers: give its train.csv as "
            "`concept`."
        )
    return concept


def _deciding(changes: Changes) -> dict[str, Any]:
    """The deviations that affect the figures; the device does not."""
    return {
        "model": changes.model,
        "concept": changes.concept,
        **({"scorer": changes.scorer} if changes.scorer else {}),
        "max_prompts": changes.max_prompts,
    }
