"""The settings of a rule: its keyword arguments, checked when it is registered."""

import inspect
import types
from collections.abc import Callable
from dataclasses import dataclass
from operator import index
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

_NAMES: dict[type, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
}
_FLAGS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
_NONE = "none"


@dataclass(frozen=True)
class Setting:
    """One of a rule's keyword arguments.

    Args:
        name: Its name.
        kind: Its type; for a choice, that of the values.
        choices: The values that it can have; () for any of its type.
        optional: Whether None is a value of it, too.
        needed: Whether it has no default.
        default: What it is where nothing is given.
    """

    name: str
    kind: type
    choices: tuple[Any, ...] = ()
    optional: bool = False
    needed: bool = False
    default: Any = None

    @property
    def values(self) -> str:
        """The values that it takes, in words."""
        what = " or ".join(map(str, self.choices)) or _NAMES[self.kind]
        return f"{what} or {_NONE}" if self.optional else what

    def read(self, value: Any) -> Any:
        """A value of the setting's type, from one or from text.

        Raises:
            ValueError: It is none.
        """
        if self.optional and (value is None or value == _NONE):
            return None
        read = _read(self.kind, value)
        if self.choices and read not in self.choices:
            raise ValueError(value)
        return read


def _read(kind: type, value: Any) -> Any:
    is_text = isinstance(value, str)
    try:
        if kind is bool:
            return _FLAGS[value.casefold()] if is_text else {True: True, False: False}[value]
        if kind is int:
            whole = isinstance(value, float) and value.is_integer()
            return int(value) if is_text or whole else index(value)
        if kind is float:
            return float(value)
    except (KeyError, TypeError) as error:
        raise ValueError(value) from error
    if not is_text:
        raise ValueError(value)
    return value


def settings_of(rule: Callable[..., Any]) -> dict[str, Setting]:
    """The settings of a rule, by name: all its parameters but the first.

    Raises:
        TypeError: One of them has no type that a setting can have.
    """
    parameters = list(inspect.signature(rule).parameters.values())[1:]
    # The rule's other annotations may name what is imported for type checkers alone.
    annotations = {one.name: one.annotation for one in parameters}
    kinds = get_type_hints(
        types.SimpleNamespace(__annotations__=annotations),
        globalns=getattr(rule, "__globals__", {}),
    )
    return {one.name: _setting(rule.__name__, one, kinds[one.name]) for one in parameters}


def _setting(rule: str, parameter: inspect.Parameter, kind: Any) -> Setting:
    name = parameter.name
    wrong = TypeError(
        f"the setting {name} of {rule} must be an int, float, bool, str, a Literal of one of "
        "these, or one of these or None"
    )
    if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
        raise wrong
    if name == "strength":
        raise TypeError(f"{rule} has a setting called strength, which every rule has already")
    optional = get_origin(kind) in (Union, types.UnionType) and type(None) in get_args(kind)
    if optional:
        others = [one for one in get_args(kind) if one is not type(None)]
        kind = others[0] if len(others) == 1 else None
    choices: tuple[Any, ...] = ()
    if get_origin(kind) is Literal:
        choices = get_args(kind)
        kinds = {type(one) for one in choices}
        kind = kinds.pop() if len(kinds) == 1 else None
    if kind not in _NAMES:
        raise wrong
    needed = parameter.default is parameter.empty
    default = None if needed else parameter.default
    setting = Setting(name, kind, choices, optional, needed, default)
    if not setting.needed:
        try:
            setting.read(parameter.default)
        except ValueError:
            raise TypeError(
                f"the default of the setting {name} of {rule} is not {setting.values}"
            ) from None
    return setting
