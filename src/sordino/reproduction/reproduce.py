"""Carry out a recipe: the whole job on a published model, and our figures beside theirs."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
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
from sordino.reproduction.comparison import Reproduction, compare_with
from sordino.reproduction.page import reproduction_article
from sordino.reproduction.recipe import Recipe, recipe_named

_GB = 10**9


@dataclass(frozen=True)
class Changes:
    """Deviations from a recipe.

    Args:
        model: Another copy of its model: a folder, or a GGUF file.
        concept: Another copy of its sentences, such as Jigsaw's train.csv.
        scorer: A copy of its scorer, such as one converted to safetensors.
        max_prompts: The most prompts for toxicity.
        device: Where it runs, as for `sordino.open_model`.

    Example:
        >>> sordino.Changes(max_prompts=3).device
        'auto'
    """

    model: str | None = None
    concept: str | None = None
    scorer: str | None = None
    max_prompts: int | None = None
    device: str = "auto"


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
        found.append(f"{recipe.disk / _GB:,.0f} GB of disk; {free / _GB:,.0f} are free")
    return found


def reproduce(
    recipe: Recipe | str,
    output: str | Path | None = None,
    changes: Changes | None = None,
    command: Sequence[str] = (),
) -> tuple[Reproduction, Path]:
    """Do the whole job by a recipe, and compare the published figures with ours.

    The dampened model with its own page is in the folder `model` of the output. An interrupted call
    continues; a finished run is only compared.

    Args:
        recipe: The recipe, its name (`sordino reproduce --list` lists them), or a ".toml" file in
            the same format.
        output: The folder to make; None for one of the recipe's name in the current folder.
        changes: Deviations from the recipe.
        command: The command line that repeats it, for the pages.

    Returns:
        The comparison, and its page.

    Raises:
        UserError: A requirement is missing, or the folder is another recipe's.

    Example:
        >>> changes = sordino.Changes(max_prompts=3, device="cpu")
        >>> found, page = sordino.reproduce("tiny.toml", "reproduced", changes)
        >>> page.name
        'reproduction.html'
    """
    if isinstance(recipe, str):
        recipe = recipe_named(recipe)
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
