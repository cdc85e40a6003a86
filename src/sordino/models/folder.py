"""List the files of a model's folder, and decide which links to follow."""

import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

from sordino.errors import UserError
from sordino.files import is_utf8, printable

OUTSIDE = "a link out of the folder"
# Files of a causal model beside its weights, as transformers and the hub name them.
_SETTINGS = (
    *("config.json", "generation_config.json", "*processor_config.json"),
    *("quantize_config.json", "quant_config.json", "hf_quant_config.json"),
    *("quantization_config.json",),
    *("model.safetensors.index.json", "adapter_config.json"),
)
_VOCABULARY = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "vocab.txt", "merges.txt", "*.tiktoken", "tekken.json", "*.spm"),
    *("tokenizer.model", "tokenizer.model.v*", "spiece.model", "sentencepiece*.model"),
    *("chat_template.jinja", "chat_template.json", "additional_chat_templates/*.jinja"),
)
_TERMS = ("licen[cs]e", "licen[cs]e[.-]*", "notice", "notice.*", "use_policy*", "copying")
# One of several files of a GGUF model, as llama.cpp names them.
_PIECE = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.gguf)", re.I)
_CACHED = "models--"
_OF_OTHER_PROGRAMS = ("__pycache__", "*.incomplete", "*.partial", "*.lock")


@dataclass(frozen=True)
class FolderFiles:
    """The files of a folder, in a stable order.

    Args:
        inside: Regular files in the folder, or behind links into the hub's cache.
        outside: Regular files behind links to anywhere else.
        left_out: By path, why anything else does not belong to the model; a folder's path ends with
            a slash.
    """

    inside: tuple[PurePosixPath, ...]
    outside: tuple[PurePosixPath, ...]
    left_out: dict[str, str]


def list_files(folder: Path) -> FolderFiles:
    """List the files of a model's folder; none is opened.

    Links are followed inside the folder, and into the hub's cache of models, whose snapshots
    consist of links. Hidden files do not belong to the model.

    Raises:
        UserError: A folder in it cannot be read.
    """
    return _Walk(folder).files()


def is_settings(file: PurePosixPath) -> bool:
    """Whether a file has the name of a model's configuration, or of another short JSON file."""
    return _is_called(file, _SETTINGS) or file.as_posix() == "tokenizer_config.json"


def is_vocabulary(path: Path) -> bool:
    """Whether a file beside a model's weights has the name of a tokenizer's file."""
    file = PurePosixPath(path.name)
    return _is_called(file, _VOCABULARY) and "chat_template" not in file.name


def is_terms(file: PurePosixPath) -> bool:
    """Whether a file has the name of a licence or a notice."""
    return _is_called(file, _TERMS)


def is_of_model(file: PurePosixPath) -> bool:
    """Whether a file has the name of one that opening a model reads, weights aside."""
    return _is_called(file, (*_SETTINGS, *_VOCABULARY))


def _is_called(file: PurePosixPath, patterns: tuple[str, ...]) -> bool:
    name = file.as_posix().lower()
    # A * in a pattern would match slashes, too.
    return any(fnmatch(name, one) and name.count("/") == one.count("/") for one in patterns)


class _Walk:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._root = folder.resolve()
        self._inside: list[PurePosixPath] = []
        self._outside: list[PurePosixPath] = []
        self._left_out: dict[str, str] = {}

    def files(self) -> FolderFiles:
        self._visit(PurePosixPath(), linked=False)
        return FolderFiles(tuple(self._inside), tuple(self._outside), self._left_out)

    def _visit(self, place: PurePosixPath, *, linked: bool) -> None:
        try:
            names = sorted(path.name for path in self._folder.joinpath(place).iterdir())
        except OSError as error:
            raise UserError(
                f"{printable(str(self._folder / place))} cannot be read: {error.strerror}."
            ) from None
        for name in names:
            self._sort(place / name, linked=linked)

    def _sort(self, file: PurePosixPath, *, linked: bool) -> None:
        """Put one entry of a folder into its list."""
        path = self._folder / file
        is_folder, is_link = stat.S_ISDIR(_mode(path)), stat.S_ISLNK(_mode(path, follow=False))
        reason = self._reason(file, path, is_link=is_link, linked=linked)
        if reason:
            self._left_out[printable(str(file)) + "/" * is_folder] = reason
        elif is_folder:
            self._visit(file, linked=linked or is_link)
        elif self._is_followed(path.resolve()):
            self._inside.append(file)
        else:
            self._outside.append(file)

    def _reason(self, file: PurePosixPath, path: Path, *, is_link: bool, linked: bool) -> str:
        """Why an entry does not belong to the model; "" if it does."""
        mode = _mode(path)
        if file.name.startswith("."):
            return "hidden"
        if not is_utf8(file.name):  # records and cards could not name it
            return "its name is not UTF-8"
        if any(fnmatch(file.name, pattern) for pattern in _OF_OTHER_PROGRAMS):
            return "another program's"
        if not mode:
            return "a link that leads nowhere" if is_link else "it cannot be read"
        if not stat.S_ISDIR(mode):
            return "" if stat.S_ISREG(mode) else "a pipe, a socket or a device"
        if not is_link:
            return ""
        real = path.resolve()
        if not real.is_relative_to(self._root):
            return OUTSIDE
        # Links below a linked folder could form a circle.
        if linked or path.parent.resolve().is_relative_to(real):
            return "a link to a folder that is listed already"
        return ""

    def _is_followed(self, real: Path) -> bool:
        places = (self._root, *_blobs(self._root, real))
        return any(real.is_relative_to(place) for place in places)


def _mode(path: Path, *, follow: bool = True) -> int:
    """The mode of a path; 0 if it cannot be read."""
    try:
        return path.stat(follow_symlinks=follow).st_mode
    except OSError:
        return 0


def _blobs(root: Path, real: Path) -> Iterator[Path]:
    """The folders of the hub's cache that hold the files of a snapshot, or of a link's model."""
    from huggingface_hub import constants

    repository = root.parent.parent
    if root.parent.name == "snapshots" and repository.name.startswith(_CACHED):
        yield repository / "blobs"  # in any cache
    cache = Path(constants.HF_HUB_CACHE).resolve()
    if real.is_relative_to(cache) and real.relative_to(cache).parts[0].startswith(_CACHED):
        yield cache / real.relative_to(cache).parts[0] / "blobs"


def piece_files(path: Path) -> list[Path]:
    """The files of a model, by the name of one of them: that file alone if its name has no numbers.

    Args:
        path: A file, whether it exists or not.

    Example:
        >>> [file.name for file in piece_files(Path("tiny-00001-of-00002.gguf"))]
        ['tiny-00001-of-00002.gguf', 'tiny-00002-of-00002.gguf']
    """
    found = _PIECE.fullmatch(path.name)
    count = int(found["count"]) if found else 1
    if not found or not 1 <= int(found["number"]) <= count:
        return [path]
    stem, suffix = found["stem"], found["suffix"]
    return [
        path.with_name(f"{stem}-{number:05}-of-{count:05}{suffix}")
        for number in range(1, count + 1)
    ]
