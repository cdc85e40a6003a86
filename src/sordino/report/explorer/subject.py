"""What is explored: an expertise and its factors, from a file, a folder or memory."""

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

# Options of a recipe whose argument of `load_concept` has another name.
_ARGUMENTS = {
    "concept": "spec",
    "concept-config": "config",
    "concept-revision": "revision",
    "stratify": "strata_column",
}

Derivation = Callable[[Expertise], Dampening]
"""A function from an expertise to its factors."""


@dataclass(frozen=True)
class Subject:
    """An expertise with factors.

    Args:
        expertise: The expertise.
        dampening: The factors that were, or would be, baked.
        done: Whether they are baked into a model.
    """

    expertise: Expertise
    dampening: Dampening
    done: bool = False

    @property
    def name(self) -> str:
        """The concept and the model."""
        metadata = self.expertise.shown
        return f"“{metadata['concept']}” in {metadata['model']}"


def read_subject(
    subject: str | Path | Expertise | Subject, rule: Derivation | None = None
) -> Subject:
    """Read an expertise with its factors.

    Args:
        subject: An expertise, its file, or a folder or ".gguf" file that `sordino run` wrote; a
            `Subject` is returned unchanged.
        rule: The rule for an expertise, AurA if None. A baked model has its own factors.

    Raises:
        UserError: There is no expertise, or a rule is given for a baked model.
    """
    if isinstance(subject, Subject):
        return subject
    if isinstance(subject, Expertise):
        return Subject(subject, (rule or dampen)(subject))
    path = user_path(subject)
    if has_suffix(path, ".safetensors") and not path.is_dir():
        if Dampening.is_in(path):
            raise UserError(
                f"{path} holds factors but no expertise: pass the expertise file, or the folder "
                "that sordino run wrote."
            )
        expertise = Expertise.load(path)
        return Subject(expertise, (rule or dampen)(expertise))
    refuse_foreign(path)
    if rule is not None:
        raise UserError(
            f"`intervention`, `strength` and `settings` have no meaning for {path}, which has its "
            "factors already: leave them out, or pass the expertise file."
        )
    return _read_baked(path)


def concept_of_run(subject: str | Path, expertise: Expertise) -> Concept | None:
    """The sentences that the recipe beside a model names.

    Args:
        subject: What the expertise was read from.
        expertise: The expertise that was found with them.

    Returns:
        The sentences; None if there is no recipe, or its sentences have changed since.

    Raises:
        UserError: The recipe is damaged.
    """
    path = extras_of(user_path(subject)) / "recipe.toml"
    if not path.is_file():
        return None
    recipe = parse_toml(read_bytes(path, "recipe"), f"The recipe {path}")
    if recipe.get("stratify") == "length":  # not a column of the data
        del recipe["stratify"]
    kinds = get_type_hints(load_concept) | {"spec": str}
    given = {}
    for key, value in recipe.items():
        name = _ARGUMENTS.get(key, key.replace("-", "_"))
        if name in kinds and key != "revision":  # the model's
            check(TypeAdapter(kinds[name]), value, f"{path}: {key}")
            given[name] = value
    try:
        found = load_concept(**{"spec": "toxicity", **given})
    except UserError:
        return None  # the page says that they are not available
    return found if found.fingerprint == expertise.metadata["concept_fingerprint"] else None


def refuse_foreign(path: Path) -> None:
    """Raise `UserError` unless Sordino wrote this folder or GGUF file."""
    if not path.exists() or not is_dampened(path):
        raise UserError(
            f"{path} is neither an expertise file nor an output of Sordino: pass a file of sordino "
            "find, or what sordino run wrote."
        )


def _read_baked(path: Path) -> Subject:
    extras = extras_of(path)
    files = sorted(extras.glob("*.expertise.safetensors"))
    if len(files) != 1:
        raise UserError(
            f"{extras} holds {len(files)} expertise files instead of the one that sordino run "
            "writes: pass the expertise file with which the model was baked."
        )
    expertise, record = Expertise.load(files[0]), read_provenance(path)
    if (path / DAMPENING).is_file():
        dampening = Dampening.load(path / DAMPENING)
    else:  # beside a GGUF file there are no factors
        rule = record.intervention
        at_its_sites = expertise.at(record.sites)
        dampening = dampen(at_its_sites, rule.name, strength=rule.strength, **rule.settings)
    for site, factors in dampening.factors.items():
        if (
            site in expertise.sites
            and factors.size != expertise.statistics[site][Statistic.AUROC].size
        ):
            raise UserError(f"{files[0]} and the factors of {path} are of different models.")
    return Subject(expertise, dampening, done=True)
