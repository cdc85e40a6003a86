"""A GGUF model in several files, as llama.cpp's gguf-split writes them.

The files are called NAME-00001-of-00003.gguf and so on. Each is a GGUF file of its own: the first
has the model's metadata, each has its number (`split.no`, from 0), how many there are
(`split.count`), and how many tensors they hold together (`split.tensors.count`).
"""

from dataclasses import replace
from pathlib import Path

from sordino.errors import UserError
from sordino.models.folder import piece_files
from sordino.models.gguf_header import Header, read_header

NUMBER, COUNT, TENSORS = "split.no", "split.count", "split.tensors.count"
"""The keys of a piece's number, of how many there are, and of how many tensors they hold."""


def read_model(path: Path) -> Header:
    """The header of a GGUF model, those of its files joined into one.

    Args:
        path: The file, or one of several.

    Raises:
        UserError: A file is damaged, or one of several is missing or of another model.
    """
    header = read_header(path)
    count = header.metadata.get(COUNT, 0)
    if not isinstance(count, int) or count < 2:
        return header
    files = piece_files(path)
    if len(files) != count:
        raise UserError(
            f"{path} is one of {count} pieces of a model, which are found by their names: rename "
            f"them to NAME-00001-of-{count:05}.gguf and so on."
        )
    for file in files:
        if not file.is_file():
            raise UserError(
                f"{path} is one of {count} pieces of a model, and {file.name} is missing beside "
                "it: get that, too."
            )
    pieces = tuple(read_header(file) for file in files)
    _refuse_unlike(pieces)
    tensors = {name: stored for piece in pieces for name, stored in piece.tensors.items()}
    return replace(pieces[0], tensors=tensors, pieces=pieces)


def _refuse_unlike(pieces: tuple[Header, ...]) -> None:
    """Raise `UserError` unless the pieces are those of one model."""
    first = pieces[0]
    names: set[str] = set()
    for number, piece in enumerate(pieces):
        said = piece.metadata.get(NUMBER), piece.metadata.get(COUNT)
        if said != (number, len(pieces)):
            raise UserError(
                f"{piece.path} says that it is piece {_count_from_one(said[0])} of {said[1]}, and "
                f"its name says piece {number + 1} of {len(pieces)}: it belongs to another model."
            )
        if piece.metadata.get(TENSORS) != first.metadata.get(TENSORS):
            raise UserError(
                f"{piece.path} says {piece.metadata.get(TENSORS)} tensors in all, and "
                f"{first.path} says {first.metadata.get(TENSORS)}: it belongs to another model."
            )
        if piece.alignment != first.alignment:
            raise UserError(
                f"{piece.path} is aligned to {piece.alignment} bytes and {first.path} to "
                f"{first.alignment}: join them with llama.cpp's llama-gguf-split --merge."
            )
        if twice := names & piece.tensors.keys():
            raise UserError(
                f"{piece.path} has the tensor {min(twice)}, which another piece has: it belongs "
                "to another model."
            )
        names |= piece.tensors.keys()
    if len(names) != first.metadata.get(TENSORS):
        raise UserError(
            f"{first.path} says {first.metadata.get(TENSORS)} tensors, and the {len(pieces)} "
            f"pieces hold {len(names):,}: one of them is damaged, get it again."
        )


def _count_from_one(number: object) -> object:
    return number + 1 if isinstance(number, int) else number
