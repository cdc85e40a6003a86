"""What is explored: an expertise with the factors that were made of it, from wherever they lie."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import get_type_hints

from pydantic import TypeAdapter

from sordino.concepts import Concept, load_concept
from sordino.edits import is_dampened, read_provenance
from sordino.edits.provenance import DAMPENING, extras_of
from sordino.errors import UserError
from sordino.expertise.artefact import Expertise
from sordino.expertise.statistic import Statistic
from sordino.files import has_suffix, user_path
from sordino.interventions import Dampening, dampen
from sordino.records import check, parse_toml, read_bytes

# The options of a recipe that have another name as an argument of `load_concept`.
_ARGUMENTS = {
    "concept": "spec",
    "concept-config": "config",
    "concept-revision": "revision",
    "stratify": "strata_column",
}

Rule = Callable[[Expertise], Dampening]
"""What gives the factors of an expertise."""


@dataclass(frozen=True)
class Subject:
    """One side of an explorer.

    Args:
        expertise: What was found.
        dampening: What was, or would be, done.
        done: Whether that is written into a model.
    """

    expertise: Expertise
    dampening: Dampening
    done: bool = False

    @property
    def name(self) -> str:
        """The concept and the model in a few words."""
        metadata = self.expertise.shown
        return f"“{metadata['concept']}” in {metadata['model']}"


def read_subject(subject: str | Path | Expertise | Subject, rule: Rule | None = None) -> Subject:
    """Read what a name stands for.

    Args:
        subject: An expertise, its file, or a folder or ".gguf" file that `sordino run` made; what
            was read already is given back as it is.
        rule: What gives the factors of an expertise, AurA if None; what is baked has its own.

    Raises:
        UserError: There is no expertise, or the rule has no meaning.
    """
    if isinstance(subject, Subject):
        return subject
    if isinstance(subject, Expertise):
        return Subject(subject, (rule or dampen)(subject))
    path = user_path(subject)
    if has_suffix(path, ".safetensors") and not path.is_dir():
        if Dampening.is_in(path):
            raise UserError(
                f"{path} holds factors and nothing of what was found: give the expertise file, or "
                "the folder that sordino run made."
            )
        expertise = Expertise.load(path)
        return Subject(expertise, (rule or dampen)(expertise))
    refuse_foreign(path)
    if rule is not None:
        raise UserError(
            f"--intervention, --strength and --set have no meaning for {path}, which has its "
            "factors already: leave them out, or give the expertise file."
        )
    return _baked(path)


def concept_of_run(subject: str | Path, expertise: Expertise) -> Concept | None:
    """The sentences of the recipe that `sordino run` left beside a model.

    Args:
        subject: What the expertise was read from.
        expertise: What was found with them.

    Returns:
        The sentences; None where there is no recipe, or its sentences are no longer those.

    Raises:
        UserError: The recipe is damaged.
    """
    path = extras_of(user_path(subject)) / "recipe.toml"
    if not path.is_file():
        return None
    recipe = parse_toml(read_bytes(path, "recipe"), f"The recipe {path}")
    if recipe.get("stratify") == "length":  # which is no column of the data
        del recipe["stratify"]
    kinds = get_type_hints(load_concept) | {"spec": str}
    given = {}
    for key, value in recipe.items():
        name = _ARGUMENTS.get(key, key.replace("-", "_"))
        if name in kinds and key != "revision":  # which is the model's
            check(TypeAdapter(kinds[name]), value, f"{path}: {key}")
            given[name] = value
    try:
        found = load_concept(**{"spec": "toxicity", **given})
    except UserError:
        return None  # the page says that they are not at hand
    return found if found.fingerprint == expertise.metadata["concept_fingerprint"] else None


def refuse_foreign(path: Path) -> None:
    """Raise `UserError` unless Sordino wrote this folder or GGUF file."""
    if not path.exists() or not is_dampened(path):
        raise UserError(
            f"{path} is no expertise file and nothing that Sordino made: give a file of sordino "
            "find, or what sordino run wrote."
        )


def _baked(path: Path) -> Subject:
    extras = extras_of(path)
    files = sorted(extras.glob("*.expertise.safetensors"))
    if len(files) != 1:
        raise UserError(
            f"{extras} holds {len(files)} expertise files and not one, as sordino run leaves it: "
            "give the expertise file with which the model was baked."
        )
    expertise, record = Expertise.load(files[0]), read_provenance(path)
    if (path / DAMPENING).is_file():
        dampening = Dampening.load(path / DAMPENING)
    else:  # of a GGUF file there are no factors beside it
        rule = record["intervention"]
        at_its_sites = expertise.at(record["sites"])
        dampening = dampen(
            at_its_sites, rule["name"], strength=rule["strength"], **rule["settings"]
        )
    for site, factors in dampening.factors.items():
        if (
            site in expertise.sites
            and factors.size != expertise.statistics[site][Statistic.AUROC].size
        ):
            raise UserError(f"{files[0]} and the factors of {path} are of different models.")
    return Subject(expertise, dampening, done=True)
