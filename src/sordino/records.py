"""Files that people pass on to each other, read by types.

Reading such a file gives a value of the type that was asked for, or one sentence that names the
file and the key.
"""

import json
import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError

from sordino.errors import UserError
from sordino.files import parse_json, printable, refuse_missing

T = TypeVar("T")

Count = Annotated[int, Field(ge=0, lt=2**63)]
"""A number of things."""
Site = Annotated[str, Field(pattern=r"^[^\s\p{C}]+$", max_length=500)]
"""A module path: no white space, no control characters."""


def _refuse_integer(value: Any) -> Any:
    if isinstance(value, int):
        raise ValueError("is too large a whole number")
    return value


Number = int | float
"""A number that is written as it was read: 1 does not become 1.0."""
Setting = (
    str
    | bool
    | Annotated[int, Field(gt=-(2**63), lt=2**63)]
    | Annotated[float, BeforeValidator(_refuse_integer)]
)
"""The value of a setting of a rule or a measure."""


class Record(BaseModel):
    """A value that is written to a file as it is; other keys than its own are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Kept(BaseModel):
    """A value of a file that may have keys of other versions.

    It is written as it was read: with those keys, and without fields that were never set.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    def as_json(self) -> dict[str, Any]:
        """The value as JSON, with keys in the order of the fields."""
        return self.model_dump(mode="json", exclude_unset=True)


def read_bytes(path: Path, noun: str) -> bytes:
    """The bytes of a file that someone named.

    Args:
        path: The file.
        noun: What it should be, such as "recipe".

    Raises:
        UserError: It does not exist, is not a regular file, or may not be read.
    """
    what = f"The {noun} {printable(str(path))}"
    refuse_missing(path, what)
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{what} cannot be read: {error.strerror}.") from None


def parse(kind: TypeAdapter[T], text: str | bytes, what: str) -> T:
    """The value of a type that JSON text holds; numbers and texts are not converted to each other.

    Args:
        kind: The type.
        text: JSON.
        what: What it is called in a message.

    Raises:
        UserError: It is not JSON, or holds something else; the message names the key.
    """
    parse_json(text, what, strict=True)
    try:
        return kind.validate_json(text, strict=True)
    except ValidationError as error:
        raise UserError(f"{printable(what)} is damaged: {fault(error)}.") from None


def parse_format(kind: TypeAdapter[T], text: str | bytes, what: str, noun: str, format: str) -> T:
    """The same for an object that names its format, which must be this one.

    Args:
        kind: The type.
        text: JSON.
        what: What it is called in a message.
        noun: What it should be, such as "evaluation".
        format: What its key "format" must say.

    Raises:
        UserError: It is not JSON, of another format, or holds something else.
    """
    value: Any = parse_json(text, what, strict=True)
    if not isinstance(value, dict) or value.get("format") != format:
        raise UserError(f"{printable(what)} is not in the {noun} format of this version, {format}.")
    return parse(kind, text, what)


def check(kind: TypeAdapter[Any], value: Any, what: str) -> None:
    """Raise `UserError` if a value, such as one from TOML, is not of a type.

    Args:
        kind: The type.
        value: The value.
        what: What it is called in a message.
    """
    try:
        text = json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError):  # a date, infinity or NaN, nested too deeply
        raise UserError(
            f"{printable(what)} must be text, a number, true or false, or a list of these."
        ) from None
    try:
        kind.validate_json(text, strict=True)
    except ValidationError as error:
        raise UserError(f"{printable(what)} cannot be that: {fault(error)}.") from None


def kinds(of: Any) -> dict[str, Any]:
    """The types of a dataclass's fields, by name."""
    hints = get_type_hints(of)
    return {field.name: hints[field.name] for field in fields(of)}


def parse_toml(text: bytes, what: str) -> dict[str, Any]:
    """What TOML text holds.

    Args:
        text: TOML; a byte order mark in front of it, which editors on Windows add, is passed over.
        what: What it is called in a message.

    Raises:
        UserError: It is not TOML.
    """
    try:
        return tomllib.loads(text.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:  # not UTF-8, too long a number, too deep
        raise UserError(
            f"{printable(what)} cannot be read as TOML: {printable(str(error))}."
        ) from None


def fault(error: ValidationError) -> str:
    """The first error with its place, such as "sites.0: Input should be a valid string"."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    said = first["msg"].removeprefix("Value error, ").rstrip(".")
    return printable(f"{where}: {said}" if where else said)
