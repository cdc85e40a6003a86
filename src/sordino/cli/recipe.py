"""`--recipe`: the options in a recipe, as arguments of the command line."""

from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

from sordino.errors import UserError
from sordino.files import user_path

_FLAG = "--recipe"


def expand(arguments: Sequence[str]) -> list[str]:
    """The arguments with `--recipe FILE` replaced by the recipe's options.

    Typed options override the recipe's.

    Raises:
        UserError: The file is missing or not a recipe, or there are two.
    """
    from sordino.options.recipe import defaults, read, remaining

    given = list(arguments)
    if given[:1] != ["run"]:
        return given
    places = [n for n, one in enumerate(given) if one.partition("=")[0] == _FLAG]
    if not places:
        return given
    if len(places) > 1:
        raise UserError(f"{_FLAG} is given {len(places)} times: give one recipe.")
    [place] = places
    name, equals, value = given.pop(place).partition("=")
    if not equals:
        if place == len(given):
            raise UserError(f"{name} needs a recipe file.")
        value = given.pop(place)
    recipe = remaining(read(user_path(value)), _typed(given[1:]))
    model = recipe.pop("model", None)
    positional = [] if model is None or _has_model(given[1:]) else [str(model)]
    # What is so anyway needs no flag: a switch that is off has none.
    anyway = defaults()
    more = [
        part
        for key, of in recipe.items()
        if key not in anyway or of != anyway[key]
        for part in _flags(key, of)
    ]
    return [given[0], *positional, *given[1:], *more]


def _typed(arguments: Sequence[str]) -> dict[str, list[str]]:
    """What follows each flag that is typed, by the flag without hyphens; "" where nothing does."""
    found: dict[str, list[str]] = {}
    for one, after in zip_longest(arguments, arguments[1:], fillvalue=""):
        flag, equals, value = one.partition("=")
        if flag.startswith("--"):
            name = flag.removeprefix("--").removeprefix("no-")
            found.setdefault(name, []).append(value if equals else after)
    return found


def _has_model(arguments: Sequence[str]) -> bool:
    """Whether the command line names a model, which comes first."""
    return bool(arguments) and not arguments[0].startswith("-")


def _flags(key: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [f"--{key}" if value else f"--no-{key}"]
    # With an equals sign, so that a value may begin with a hyphen.
    return [f"--{key}={one}" for one in (value if isinstance(value, list) else [value])]
