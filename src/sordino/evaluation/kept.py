"""What was measured of the model before, kept for other commands that compare with it.

Each measurement is a file in the cache folder, named by the SHA-256 of everything that decides it:
the bytes of the model's files, the measure's protocol with the prompts and the scorer, the seed,
this program's own files, all installed packages, the processor, the number of threads and the
settings of torch. Only measurements on a processor are kept, where the same input gives the same
bits, and only those whose protocol says all (`Task.reusable`). A file begins with a checksum and
appears by rename; one that is damaged counts as missing. Several processes can read and write at
once: they write the same.
"""

import hashlib
import os
import platform
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from fnmatch import fnmatch
from importlib.metadata import distributions
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import TypeAdapter

from sordino.errors import UserError
from sordino.evaluation.result import Reused
from sordino.files import fingerprint, sha256_of, to_json, today
from sordino.kit import cache_folder
from sordino.models.reference import HUB_FILES, ModelRef
from sordino.progress import note
from sordino.records import Record, parse
from sordino.version import __version__

MOST_BYTES = 512 * 2**20
"""All kept measurements together; beyond it, those that were not used for longest are dropped."""
_SUFFIX = ".json"
PROGRAM = Path(__file__).parents[1]
"""Sordino's own source."""
# Environment variables with these beginnings change how products are computed.
_NUMERICS = (
    *("ATEN_", "DNNL_", "KMP_", "MKL_", "OMP_", "ONEDNN_", "OPENBLAS_"),
    *("PYTORCH_", "TORCH_", "TRANSFORMERS_", "USE_"),
)


class Measured(Record):
    """One measurement of a model.

    Args:
        format: Names this file format.
        key: See `Shelf.key`.
        reused: When it was taken.
        ran: The model's dtype, and on which kind of device it ran.
        batches: The measure's records, batch by batch.
    """

    format: Literal["sordino-measured-1"] = "sordino-measured-1"
    key: str
    reused: Reused
    ran: list[str]
    batches: list[list[list[Any]]]


_MEASURED = TypeAdapter(Measured)


class Shelf:
    """Where the measurements of a model are kept.

    Args:
        folder: The folder; it need not exist.
        deciding: What decides all of them, as JSON values: the model, the settings, the machine.
    """

    def __init__(self, folder: Path, deciding: Sequence[Any]) -> None:
        self._folder, self._deciding = folder, list(deciding)

    @classmethod
    def of(cls, ref: ModelRef, settings: Sequence[Any]) -> "Shelf | None":
        """That of an unedited model on this machine; None if there is no place for one.

        Args:
            ref: The model.
            settings: What else decides its measurements, as JSON values.
        """
        try:
            folder = cache_folder() / "measurements"
        except UserError:  # this user has no home
            return None
        return cls(folder, [_sums(ref), _machine(), _program(), *settings])

    def key(self, *measure: Any) -> str:
        """The SHA-256 of everything that decides a measurement.

        Args:
            measure: The measure, its version and its protocol, as JSON values.
        """
        return fingerprint(to_json([*self._deciding, *measure]))

    def find(self, key: str) -> Measured | None:
        """The measurement with this key; None if it is not there, or damaged."""
        path = self._path(key)
        try:
            check, _, body = path.read_bytes().partition(b"\n")
        except OSError:
            return None
        if check != _check(body):
            return None
        try:
            found = parse(_MEASURED, body, str(path))
        except UserError:
            return None
        with suppress(OSError):
            os.utime(path)  # what is used is not the oldest
        return found if found.key == key else None

    def put(self, key: str, ran: Sequence[str], batches: Sequence[Sequence[Any]]) -> None:
        """Keep a measurement, and drop the oldest ones beyond `MOST_BYTES`.

        Args:
            key: See `key`.
            ran: See `Measured`.
            batches: As there.
        """
        reused = Reused(measured=today(), sordino_version=__version__)
        made = Measured(key=key, reused=reused, ran=[*ran], batches=[[*b] for b in batches])
        body = to_json(made.model_dump(mode="json")).encode()
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            # Only its owner can read it, since what a model wrote may be anything.
            descriptor, name = tempfile.mkstemp(dir=self._folder, prefix=".")
            try:
                with os.fdopen(descriptor, "wb") as stream:
                    stream.write(_check(body) + b"\n" + body)
                Path(name).replace(self._path(key))
            finally:
                Path(name).unlink(missing_ok=True)
            self._drop_oldest()
        except OSError as error:
            note(f"what was measured is not kept in {self._folder} ({error.strerror})")

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}{_SUFFIX}"

    def _drop_oldest(self) -> None:
        """Another process may do the same, or have dropped a file already."""
        files = {}
        for path in self._folder.iterdir():
            with suppress(FileNotFoundError):
                files[path] = path.stat()
        room = MOST_BYTES
        for path, about in sorted(files.items(), key=lambda each: -each[1].st_mtime_ns):
            room -= about.st_size
            if room < 0:
                path.unlink(missing_ok=True)


def _check(body: bytes) -> bytes:
    return hashlib.sha256(body).hexdigest().encode()


def _sums(ref: ModelRef) -> Mapping[str, str]:
    """The SHA-256 of every file that opening a model can read, by its name."""
    if ref.kind == "gguf":
        files = {file.name: file for file in ref.weight_files}
    else:
        files = {
            file.relative_to(ref.path).as_posix(): file
            for file in sorted(ref.path.rglob("*"))
            if file.is_file() and any(fnmatch(file.name, pattern) for pattern in HUB_FILES)
        }
    return {name: sha256_of(file) for name, file in files.items()}


def _program() -> list[Any]:
    """Sordino byte by byte, since its version stays while it is worked on, and all packages."""
    files = [file for file in sorted(PROGRAM.rglob("*")) if file.is_file()]
    parts = [
        part
        for file in files
        if file.parent.name != "__pycache__"
        for part in (file.relative_to(PROGRAM).as_posix(), file.read_bytes())
    ]
    packages = sorted({f"{each.metadata['Name']} {each.version}" for each in distributions()})
    return [fingerprint(*parts), sys.version, packages]


def _machine() -> list[Any]:
    """The processor, and everything that decides how torch computes on it."""
    return [
        platform.platform(),
        describe_processor(),
        torch.backends.cpu.get_cpu_capability(),
        torch.__config__.show(),
        torch.__config__.parallel_info(),
        torch.get_float32_matmul_precision(),
        str(torch.get_default_dtype()),
        torch.are_deterministic_algorithms_enabled(),
        {name: value for name, value in os.environ.items() if name.startswith(_NUMERICS)},
    ]


def describe_processor() -> list[str]:
    """What a processor says of itself; on Linux, of its first core, its name and what it can do."""
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return [platform.processor()]
    first = path.read_text(encoding="utf-8", errors="replace").partition("\n\n")[0]
    about = ("vendor_id", "cpu family", "model", "stepping", "flags", "CPU ", "Features")
    return [line for line in first.splitlines() if line.startswith(about)]
