"""Recipes: the options of `sordino run` in a TOML file, which every run writes."""

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Annotated, Any, get_origin

from sordino.errors import UserError
from sordino.extras import started_as
from sordino.files import printable, user_path

_FLAG = "--recipe"
_TYPED = ("output", "force", "json", "verbose", "recipe", "no-cache")
"""Options of a run that no recipe holds."""


def expand(arguments: Sequence[str]) -> list[str]:
    """The arguments with `--recipe FILE` replaced by the recipe's options.

    Typed options override the recipe's.

    Raises:
        UserError: The file is missing or not a recipe.
    """
    given = list(arguments)
    if given[:1] != ["run"]:
        return given
    place = next((n for n, one in enumerate(given) if one.partition("=")[0] == _FLAG), None)
    if place is None:
        return given
    name, equals, value = given.pop(place).partition("=")
    if not equals:
        if place == len(given):
            raise UserError(f"{name} needs a recipe file.")
        value = given.pop(place)
    recipe = read(user_path(value))
    model = recipe.pop("model", None)
    positional = [] if model is None or _has_model(given[1:]) else [str(model)]
    flags = {one.partition("=")[0].replace("--no-", "--") for one in given}
    flags |= {"--output"} if "-o" in flags else set()
    more = [
        part for key, of in recipe.items() if f"--{key}" not in flags for part in _flags(key, of)
    ]
    return [given[0], *positional, *given[1:], *more]


def _has_model(arguments: Sequence[str]) -> bool:
    """Whether the command line names a model, which comes first."""
    return bool(arguments) and not arguments[0].startswith("-")


def read(path: Path) -> dict[str, Any]:
    """The options in a recipe, by their flags without hyphens.

    Raises:
        UserError: The file is missing or not a recipe.
    """
    from pydantic import TypeAdapter

    from sordino.records import check, parse_toml, read_bytes

    recipe = parse_toml(read_bytes(path, "recipe"), f"The recipe {path}")
    known = _list_known()
    for key, value in recipe.items():
        if key not in known:
            raise UserError(_describe_unknown(path, key, known))
        several = get_origin(known[key]) is tuple
        given = [value] if several and not isinstance(value, list) else value
        check(TypeAdapter(known[key]), given, f"{path}: {key}")
    return recipe


def _describe_unknown(path: Path, key: str, known: Mapping[str, Any]) -> str:
    if key in _TYPED:
        return f"{path}: {key} does not belong in a recipe: pass it on the command line."
    close = difflib.get_close_matches(key.lower().replace("_", "-"), known, n=1)
    options = f": {started_as()} run --help names the options."
    hint = f", did you mean {close[0]}?" if close else options
    return f"{path}: there is no option {printable(key)}{hint}"


def _list_known() -> dict[str, Any]:
    """The types of a recipe's values, by key."""
    from pydantic import Field

    from sordino.records import kinds

    known: dict[str, Any] = {
        "model": Annotated[str, Field(pattern="^[^-]")],  # a leading hyphen would make it a flag
        "seed": Annotated[int, Field(ge=0, lt=2**63)],
        "beside": tuple[str, ...],
    }
    for group in _groups():
        known |= {name.replace("_", "-"): kind for name, kind in kinds(group).items()}
    return known


def _groups() -> tuple[Any, ...]:
    """The groups of options that a recipe can contain."""
    from sordino.cli import options
    from sordino.cli.evaluate import MeasureOptions

    return (
        options.ConceptOptions,
        options.RunRuleOptions,
        MeasureOptions,
        options.ModelOptions,
        options.SweepOptions,
        options.ChatOptions,
        options.OwnOptions,
    )


def _flags(key: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [f"--{key}" if value else f"--no-{key}"]
    # With an equals sign, so that a value may begin with a hyphen.
    return [f"--{key}={one}" for one in (value if isinstance(value, list) else [value])]


def recipe_of(given: Mapping[str, Any], *options: Any) -> str:
    """A recipe as TOML.

    Args:
        given: Values that are always written, by their flags without hyphens.
        options: Dataclasses of options; those that differ from their defaults are written.
    """
    values = dict(given)
    for group in options:
        for field in fields(group):
            value = getattr(group, field.name)
            assert field.default is not MISSING  # every option has one
            if value != field.default:
                values[field.name.replace("_", "-")] = value
    lines = [f"{key} = {_toml(value)}" for key, value in values.items()]
    return "\n".join(["# sordino run --recipe THIS_FILE -o OUTPUT", *lines]) + "\n"


def _toml(value: Any) -> str:
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, bool | int | float):
        return json.dumps(value)
    return json.dumps(str(value), ensure_ascii=False)  # JSON strings are TOML strings


def schema() -> dict[str, Any]:
    """The JSON schema of recipes, for editors; `docs/recipe.schema.json` is a copy."""
    from pydantic import TypeAdapter

    text = {"type": "string"}
    properties: dict[str, Any] = {
        "model": text,
        "seed": {"type": "integer", "minimum": 0, "default": 0},
        "beside": {"type": "array", "items": text, "default": []},
    }
    for group in _groups():
        found = TypeAdapter(group).json_schema()["properties"]
        properties |= {name.replace("_", "-"): of for name, of in found.items()}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A recipe of sordino run",
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
    }
