"""Outputs that appear only when they are whole.

Work happens under a hidden name beside the target (the *stage*), which becomes the target by a
rename. A stage has a fixed name, so that a killed command finds its own work again.
"""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from sordino.errors import UserError


def refuse_existing(target: Path, *, force: bool) -> None:
    """Raise `UserError` if `target` exists and `force` is not set, or if it cannot be created."""
    if target.exists() and not force:
        raise UserError(f"{target} exists already: choose another -o, or --force to replace it.")
    folder = target.absolute().parent
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UserError(f"{target} cannot be written: {folder} is not a folder one may write to.")


def stage_path(target: Path) -> Path:
    """The hidden name beside `target` under which it is built."""
    return target.absolute().parent / f".{target.name}.partial"


def _aside(target: Path) -> Path:
    return target.absolute().parent / f".{target.name}.old"


@contextmanager
def only_one(target: Path) -> Iterator[None]:
    """Hold the lock on building `target`; `UserError` when another process holds it."""
    target.absolute().parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(stage_path(target).with_suffix(".lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(
            f"{target} is being written by another sordino process: wait for it, or choose "
            "another -o."
        ) from None
    try:
        if _aside(target).exists() and not target.exists():
            _aside(target).rename(target)  # killed between the two renames of `publish`
        yield
    finally:
        lock.release()
        Path(lock.lock_file).unlink(missing_ok=True)


@contextmanager
def new_file(target: Path, *, force: bool = False) -> Iterator[Path]:
    """Yield a path to write to; it becomes `target` when the block ends well, else it goes."""
    refuse_existing(target, force=force)
    stage = stage_path(target)
    stage.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield stage
        publish(stage, target)
    except BaseException:
        stage.unlink(missing_ok=True)
        raise


@contextmanager
def new_folder(target: Path, *, force: bool = False) -> Iterator[Path]:
    """Yield an empty folder to fill; it becomes `target` when the block ends well, else it goes."""
    refuse_existing(target, force=force)
    stage = stage_path(target)
    shutil.rmtree(stage, ignore_errors=True)
    stage.mkdir(parents=True)
    try:
        yield stage
        publish(stage, target)
    except BaseException:
        shutil.rmtree(stage, ignore_errors=True)
        raise


def publish(stage: Path, target: Path) -> None:
    """Flush `stage` (file or folder) to disk and rename it to `target`, replacing what is there."""
    for file in [stage] if stage.is_file() else sorted(p for p in stage.rglob("*") if p.is_file()):
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    if target.is_dir():
        # A folder cannot be renamed onto a full one: the old one steps aside first.
        aside = _aside(target)
        shutil.rmtree(aside, ignore_errors=True)
        target.rename(aside)
        stage.rename(target)
        shutil.rmtree(aside)
    elif target.exists() and stage.is_dir():
        target.unlink()
        stage.rename(target)
    else:
        stage.replace(target)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as readable JSON with a stable order, whole or not at all."""
    with new_file(path, force=True) as stage:
        stage.write_text(to_json(value), encoding="utf-8")


def to_json(value: Any) -> str:
    """`value` as readable JSON; not-a-number and infinity are refused, for no JSON has them."""
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def read_json(path: Path) -> Any:
    """Read a JSON file; `UserError` names the file and the place when it is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist.") from None
    except (
        ValueError,
        RecursionError,
    ) as error:  # not JSON, not UTF-8, too long a number, too deep
        raise UserError(f"{path} is not valid JSON: {error}.") from None


def fingerprint(*parts: bytes | str) -> str:
    """SHA-256 over the parts, each preceded by its length, so that no two lists collide."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def today() -> str:
    """The date in UTC, or that of SOURCE_DATE_EPOCH where it is set.

    A day and not a second, so that a command repeated, or resumed after a kill, gives the same
    bytes; SOURCE_DATE_EPOCH makes them the same for ever.
    """
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    moment = datetime.fromtimestamp(int(epoch), UTC) if epoch else datetime.now(UTC)
    return moment.date().isoformat()


def is_disk_full(error: OSError) -> bool:
    """Whether the error says that no space (or quota) is left."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def is_memory_full(error: Exception) -> bool:
    """Whether the error says that no memory is left, on whatever device."""
    said = str(error).lower()
    return isinstance(error, MemoryError) or (
        "out of memory" in said
        or "can't allocate memory" in said
        or "cannot allocate memory" in said
    )
