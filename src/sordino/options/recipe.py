"""Recipes: the options of a run in a TOML file, which every run writes.

A recipe that a run writes states what decides its result, also where that is a default, so that it
means the same to a version with other defaults. What it leaves out is nothing at all: no limit, no
label, no further text.
"""

import json
from codecs import BOM_UTF8
from collections.abc import Collection, Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_origin

from sordino.errors import UserError
from sordino.extras import started_as
from sordino.files import printable
from sordino.options.groups import (
    ChatOptions,
    ConceptOptions,
    ModelOptions,
    OwnOptions,
    RunRuleOptions,
    SweepOptions,
)
from sordino.options.measures import RunMeasureOptions, of_other_measures
from sordino.progress import note
from sordino.registry import did_you_mean

T = TypeVar("T")

GROUPS = (
    *(ConceptOptions, RunRuleOptions, RunMeasureOptions, ModelOptions, SweepOptions, ChatOptions),
    OwnOptions,
)
"""The groups of options that a recipe can contain."""
_FIRST_LINE = "# sordino run --recipe THIS_FILE -o OUTPUT"
_OF_BEFORE = {"intervention": "aura", "chat": "off"}
"""What a run did when it wrote no intervention into its recipe: its defaults were others."""
_WITHOUT_OWN = {"own": False}
"""What a run did when it wrote nothing of own samples into its recipe: there were none."""
_TYPED = ("output", "force", "json", "verbose", "recipe", "no-cache")
"""Options of a run that no recipe holds."""


def read(path: Path) -> dict[str, Any]:
    """The options in a recipe, by their flags without hyphens.

    A recipe that a run wrote means what that run did, also if it is from before `run` had its
    present rule by default.

    Raises:
        UserError: The file is missing or not a recipe.
    """
    from sordino.records import check, parse_toml, read_bytes

    text = read_bytes(path, "recipe").removeprefix(BOM_UTF8)  # which editors on Windows add
    recipe = parse_toml(text, f"The recipe {path}")
    if text.startswith(_FIRST_LINE.encode()) and "intervention" not in recipe:
        recipe = _OF_BEFORE | recipe
        note(
            f"{printable(str(path))} is from before sordino run used contrast by default: this is "
            f"{recipe['intervention']}, with chat {recipe['chat']}"
        )
    if text.startswith(_FIRST_LINE.encode()):
        recipe = _WITHOUT_OWN | recipe
    known = _list_known()
    for key, value in recipe.items():
        if key not in known:
            raise UserError(_describe_unknown(path, key, known))
        check(_adapter(known[key]), _listed(known[key], value), f"{path}: {key}")
        if value == []:
            raise UserError(f"{path}: {key} is an empty list: name one at least, or leave it out.")
    return recipe


def defaults() -> dict[str, Any]:
    """The values of options that a recipe does not have, by their flags without hyphens."""
    every = [field for group in GROUPS for field in fields(group)]
    return {field.name.replace("_", "-"): field.default for field in every}


def group_of(kind: type[T], recipe: Mapping[str, Any]) -> T:
    """A group of options with the values that a recipe has for it.

    Args:
        kind: One of `GROUPS`.
        recipe: As `read` gives it. An empty list counts as no value.
    """
    from sordino.records import kinds

    given = {}
    for name, of in kinds(kind).items():
        value = recipe.get(name.replace("_", "-"), [])
        if value != []:
            text = json.dumps(_listed(of, value))  # JSON has lists for tuples, and texts for paths
            given[name] = _adapter(of).validate_json(text, strict=True)
    return kind(**given)


def remaining(recipe: Mapping[str, Any], typed: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """What is left of a recipe where some options are given otherwise.

    Args:
        recipe: As `read` gives it.
        typed: The other options' values, by their flags without hyphens.
    """
    # The settings of one measure are added to those of others.
    gone, measured = {*typed} - {"measure-set"}, typed.get("measure")
    replaced = {one.partition("=")[0] for one in typed.get("measure-set", ())}
    if "preset" in typed:
        from sordino.evaluation.writing import PRESETS

        gone |= {name.replace("_", "-") for name in PRESETS.get(typed["preset"][-1], {})}
    if measured is not None:  # the settings of other measures are none of theirs
        others = of_other_measures(measured) - {"texts"}  # which may set the size of the edit
        gone |= {name.replace("_", "-") for name in others}
    if "intervention" in typed:
        gone.add("set")  # they are another rule's
    left = {key: value for key, value in recipe.items() if key not in gone}
    if "intervention" in typed and left.get("own") and not _uses_own(typed["intervention"][-1]):
        left["own"] = False
    alone = [
        one
        for one in several(left.pop("measure-set", ()))
        if one.partition("=")[0] not in replaced
        and one.partition("=")[0].rpartition(".")[2] not in gone
        and (measured is None or one.partition(".")[0] in measured)
    ]
    settings = several(left.pop("set", ()))
    if "divergence" in typed and "intervention" in recipe:
        from sordino.interventions import RULES

        dial = RULES.named(recipe["intervention"]).dial
        settings = [one for one in settings if one.partition("=")[0] != dial]
    lists = {"measure-set": alone, "set": settings}
    return left | {key: value for key, value in lists.items() if value}


def _uses_own(rule: str) -> bool:
    from sordino.expertise.statistic import Statistic
    from sordino.interventions import RULES

    return Statistic.OWN in RULES.named(rule).uses


def recipe_of(given: Mapping[str, Any], *options: Any, idle: Collection[str] = ()) -> str:
    """A recipe as TOML.

    Args:
        given: Values that are always written, by their flags without hyphens.
        options: Dataclasses of options. They are written with their defaults, but without what is
            nothing: None, and empty texts and lists.
        idle: Names of options that decide nothing here; they are left out at their defaults.
    """
    blocks = [dict(given)]
    for group in options:
        block = {}
        for field in fields(group):
            value = getattr(group, field.name)
            assert field.default is not MISSING  # every option has one
            if value not in (None, "", ()) and not (field.name in idle and value == field.default):
                block[field.name.replace("_", "-")] = value
        blocks.append(block)
    written = [
        "\n".join(f"{key} = {_toml(value)}" for key, value in block.items())
        for block in blocks
        if block
    ]
    return "\n".join([_FIRST_LINE, "\n\n".join(written)]) + "\n"


def schema() -> dict[str, Any]:
    """The JSON schema of recipes, for editors; `docs/recipe.schema.json` is a copy."""
    text = {"type": "string"}
    properties: dict[str, Any] = {
        "model": text,
        "seed": {"type": "integer", "minimum": 0, "default": 0},
        "beside": {"type": "array", "items": text, "default": []},
    }
    for group in GROUPS:
        found = _adapter(group).json_schema()["properties"]
        properties |= {name.replace("_", "-"): of for name, of in found.items()}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A recipe of sordino run",
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
    }


def _adapter(kind: Any) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def _listed(kind: Any, value: Any) -> Any:
    """A value, in a list if its option takes several."""
    return [value] if get_origin(kind) is tuple and not isinstance(value, list) else value


def several(value: Any) -> list[str]:
    """The values of an option that takes several, of which one may stand without a list."""
    return [value] if isinstance(value, str) else list(value)


def _describe_unknown(path: Path, key: str, known: Mapping[str, Any]) -> str:
    if key in _TYPED:
        return f"{path}: {key} does not belong in a recipe: pass it on the command line."
    options = f"{started_as()} run --help names the options."
    hint = did_you_mean(key.lower().replace("_", "-"), known).rstrip() or options
    return f"{path}: there is no option {printable(key)}: {hint}"


def _list_known() -> dict[str, Any]:
    """The types of a recipe's values, by key."""
    from pydantic import Field

    from sordino.records import kinds

    known: dict[str, Any] = {
        "model": Annotated[str, Field(pattern="^[^-]")],  # a leading hyphen would make it a flag
        "seed": Annotated[int, Field(ge=0, lt=2**63)],
        "beside": tuple[str, ...],
    }
    for group in GROUPS:
        known |= {name.replace("_", "-"): kind for name, kind in kinds(group).items()}
    return known


def _toml(value: Any) -> str:
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, bool | int | float):
        return json.dumps(value)
    # JSON strings are TOML strings, once the one control character is escaped that JSON leaves.
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
