"""Small safetensors files that are read as a whole: expertise and dampening factors."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from sordino.errors import UserError
from sordino.files import printable, refuse_missing
from sordino.models.safetensors_header import read_header, read_metadata


def read_about(path: Path, noun: str) -> dict[str, str]:
    """The metadata of a safetensors file.

    Args:
        path: The file.
        noun: What it should be, such as "expertise".

    Raises:
        UserError: It is missing or damaged.
    """
    refuse_missing(path, f"The {noun} file {printable(str(path))}")
    return read_metadata(path)


def read_tensors(path: Path, noun: str, dtypes: Collection[str]) -> dict[str, NDArray[Any]]:
    """All tensors of a safetensors file, arrays of one dimension by name.

    Args:
        path: The file.
        noun: What it should be, such as "expertise".
        dtypes: The format's names of the dtypes that its tensors may have, such as "F32".

    Raises:
        UserError: It is damaged, or holds a tensor of another dtype or shape.
    """
    for name, stored in read_header(path).items():
        if stored.dtype not in dtypes or len(stored.shape) != 1:
            raise UserError(
                f"{path} holds '{printable(name)}' of dtype {stored.dtype} and shape "
                f"{list(stored.shape)}, which no {noun} has: it is damaged, or another file."
            )
    try:
        with safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path} is not a readable safetensors file: {printable(str(error))}."
        ) from None
