"""`--recipe`: the options in a recipe, as arguments of the command line."""

from collections.abc import Sequence
from typing import Any

from sordino.errors import UserError
from sordino.files import user_path

_FLAG = "--recipe"


def expand(arguments: Sequence[str]) -> list[str]:
    """The arguments with `--recipe FILE` replaced by the recipe's options.

    Typed options override the recipe's.

    Raises:
        UserError: The file is missing or not a recipe.
    """
    from sordino.options.recipe import defaults, read

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
    # What is so anyway needs no flag: a switch that is off has none.
    anyway = defaults()
    more = [
        part
        for key, of in recipe.items()
        if f"--{key}" not in flags and (key not in anyway or of != anyway[key])
        for part in _flags(key, of)
    ]
    return [given[0], *positional, *given[1:], *more]


def _has_model(arguments: Sequence[str]) -> bool:
    """Whether the command line names a model, which comes first."""
    return bool(arguments) and not arguments[0].startswith("-")


def _flags(key: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [f"--{key}" if value else f"--no-{key}"]
    # With an equals sign, so that a value may begin with a hyphen.
    return [f"--{key}={one}" for one in (value if isinstance(value, list) else [value])]
