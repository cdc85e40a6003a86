"""Files: names as users type them, outputs that appear only when they are whole, JSON.

An output is built under a hidden name beside it (the *staging path*) and becomes the output by a
rename. A staging path has a fixed name, so that a killed command finds its own work again. What an
output may replace is decided in `sordino.outputs`.
"""

import errno
import hashlib
import json
import math
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

from sordino.errors import UserError
from sordino.progress import note, tame

_LONGEST_NAME = 255
"""Bytes that a file's name may have on the file systems in use."""
_LONGEST_ADDITION = len("..samples.jsonl.partial")
"""What Sordino adds to an output's name for the files beside it."""
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


def user_path(name: str | Path) -> Path:
    """The path that a user typed.

    A leading `~` is the home folder of a user who exists, unless a file is called so.

    Raises:
        UserError: No file can have that name.
    """
    text = os.fspath(name)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError(
            f"The file name {printable(text)} is not valid UTF-8: rename the file."
        ) from None
    if "\0" in text:
        raise UserError(f"{printable(text)} is not a file name: it holds a NUL character.")
    path = Path(text if os.path.lexists(text) else os.path.expanduser(text))  # noqa: PTH111
    try:
        path.lstat()
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise UserError(f"{printable(text)} is too long for a file name.") from None
    return path


def has_suffix(name: str | Path, suffix: str) -> bool:
    """Whether a file's name ends in a suffix such as ".gguf", in whatever case."""
    return Path(name).suffix.lower() == suffix


def is_regular(path: Path) -> bool:
    """Whether a path is a regular file, through links; a pipe or a device is not. Opens nothing."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except (OSError, ValueError):
        return False


def printable(text: str, limit: int = 200) -> str:
    """Foreign text for a message or a table: one line, without control characters, shortened.

    What could command a terminal, turn the direction of writing or not be encoded (C0 and C1
    controls, marks of direction, halves of surrogate pairs) becomes U+FFFD; white space becomes
    one space.

    Example:
        >>> printable("a\x1b[31m  b\n")
        'a\ufffd[31m b'
    """
    shown = tame(" ".join(text.split()))
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"


def create_file(path: Path, mode: int = 0o666) -> BinaryIO:
    """Open a file for writing that is made now; nothing there is followed or written over.

    Args:
        path: Where.
        mode: Its permissions, of which the umask takes some away.

    Raises:
        FileExistsError: Something has that name, be it a link to nothing.
    """
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_NOFOLLOW", 0)
    return os.fdopen(os.open(path, flags | getattr(os, "O_BINARY", 0), mode), "wb")


@contextmanager
def private_files(needed: bool = True) -> Iterator[None]:
    """Inside the block new files and folders are their owner's only, from their first byte.

    Args:
        needed: Whether they are to be; else nothing changes.
    """
    if not needed:
        yield
        return
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)


def is_private(path: Path) -> bool:
    """Whether a file is there that only its owner can read."""
    return is_regular(path) and not path.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH)


def staging_path(target: Path) -> Path:
    """The hidden path beside `target` under which it is built."""
    return target.absolute().parent / f".{target.name}.partial"


def previous_path(target: Path) -> Path:
    """The hidden path beside the folder `target` at which the old one waits to be deleted."""
    return target.absolute().parent / f".{target.name}.sordino-old"


def drop_link(path: Path) -> Path:
    """Remove a link that lies where Sordino keeps its work, and give the path.

    Whoever planted it would redirect what is written there.
    """
    if path.is_symlink():
        path.unlink()
    return path


def refuse_unwritable(target: Path) -> None:
    """Raise `UserError` if nothing new can be written at `target`."""
    if len(os.fsencode(target.name)) > _LONGEST_NAME - _LONGEST_ADDITION:
        raise UserError(
            f"The output's name {printable(target.name, 60)} is too long: choose one of at most "
            f"{_LONGEST_NAME - _LONGEST_ADDITION} bytes."
        )
    folder = target.absolute().parent
    while not os.path.lexists(folder):
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UserError(f"{target} cannot be written: {folder} is not a folder one may write to.")


@contextmanager
def only_one(target: Path) -> Iterator[None]:
    """Hold the lock on building `target`; `UserError` when another process holds it."""

    def refuse() -> None:
        raise UserError(
            f"{target} is being written by another sordino process: wait for it, or choose "
            "another `output`."
        )

    target.absolute().parent.mkdir(parents=True, exist_ok=True)
    lock = staging_path(target).with_suffix(".lock")
    with locked(lock, on_busy=refuse):
        try:
            previous = previous_path(target)
            if previous.exists() and not os.path.lexists(target):
                previous.rename(target)  # killed between the two renames of `publish`
            yield
        finally:
            lock.unlink(missing_ok=True)


@contextmanager
def locked(lock_file: Path, *, on_busy: Callable[[], None]) -> Iterator[None]:
    """Hold a lock, after waiting for another process that has it.

    On a file system without locks there is none, and a note says so.

    Args:
        lock_file: In a folder that exists.
        on_busy: Called before the waiting; what it raises ends the attempt.
    """
    if not _has_locks(lock_file.parent):
        folder = lock_file.parent
        note(f"{folder} has no file locks: nothing keeps a second process from writing there")
        yield
        return
    lock = FileLock(lock_file)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        on_busy()
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _has_locks(folder: Path) -> bool:
    """Whether files in a folder can be locked, tried on one that nobody else has.

    The library takes a lock that the file system does not have for one that another process
    holds (NFS without its lock service), or falls back to a mere file, which outlives its process
    (Lustre).
    """
    try:
        import fcntl
    except ImportError:  # Windows has its own, always
        return True
    with tempfile.TemporaryFile(dir=folder) as probe:
        try:
            fcntl.flock(probe, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            return False
    return True


def clear_staging(target: Path) -> Path:
    """Remove what a killed command left at `target`'s staging path, and give that path.

    A link that lies there goes; what it points to stays.
    """
    staging = staging_path(target)
    if staging.is_dir() and not staging.is_symlink():
        shutil.rmtree(staging)
    else:
        staging.unlink(missing_ok=True)
    return staging


@contextmanager
def new_file(target: Path, *, force: bool = False, mode: int = 0o666) -> Iterator[Path]:
    """Yield a path to write to; it becomes `target` when the block ends well, else it goes.

    Args:
        target: The file. Where it is a link, the file that it points to is written.
        force: Replace a file that is there; a folder is never replaced.
        mode: The file's permissions, of which the umask takes some away.

    Raises:
        UserError: Something is there that is not to be replaced, or nothing can be written there.
    """
    target = real_path(target)
    if target.exists() and not force:
        raise UserError(
            f"{target} exists already: choose another `output`, or `force=True` to replace it."
        )
    refuse_unwritable(target)
    target.absolute().parent.mkdir(parents=True, exist_ok=True)
    staging = clear_staging(target)
    create_file(staging, mode).close()
    try:
        yield staging
        publish(staging, target)
    except BaseException:
        staging.unlink(missing_ok=True)
        raise


@contextmanager
def new_folder(target: Path, *, force: bool = False) -> Iterator[Path]:
    """Yield an empty folder to fill; it becomes `target` when the block ends well, else it goes.

    What `force` may replace is for the caller to decide before (`sordino.outputs`).

    Raises:
        UserError: Something is there that is not to be replaced, or nothing can be written there.
    """
    target = real_path(target)
    if target.exists() and not force:
        raise UserError(
            f"{target} exists already: choose another `output`, or `force=True` to replace it."
        )
    refuse_unwritable(target)
    staging = clear_staging(target)
    staging.mkdir(parents=True)
    try:
        yield staging
        publish(staging, target)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def publish(staging: Path, target: Path) -> None:
    """Flush `staging` (a file or a folder) to disk and rename it to `target`.

    Raises:
        UserError: A folder is there and a file would replace it, or the other way round.
    """
    target = real_path(target)
    if target.exists() and target.is_dir() != staging.is_dir():
        what, other = ("folder", "file") if target.is_dir() else ("file", "folder")
        raise UserError(f"{target} is a {what}, which a {other} does not replace.")
    for file in [staging] if staging.is_file() else sorted(filter(is_regular, staging.rglob("*"))):
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    if not target.is_dir():
        staging.replace(target)
        return
    # A folder cannot be renamed onto a full one: the old one steps aside first.
    previous = previous_path(target)
    shutil.rmtree(previous, ignore_errors=True)
    target.rename(previous)
    staging.rename(target)
    shutil.rmtree(previous)


def real_path(target: Path) -> Path:
    """What an output's name stands for: of a link what it points to, be it there or not.

    Raises:
        UserError: The link leads back to itself.
    """
    if not target.is_symlink():
        return target
    try:
        return target.resolve()
    except (RuntimeError, OSError):  # before Python 3.13, resolve() raises RuntimeError at a loop
        raise UserError(f"{target} is a link that leads back to itself: remove it.") from None


def write_json(path: Path, value: Any) -> None:
    """Write `value` as readable JSON with a stable order, whole or not at all."""
    with new_file(path, force=True) as stage:
        stage.write_text(to_json(value), encoding="utf-8")


def to_json(value: Any) -> str:
    """`value` as readable JSON; not-a-number and infinity are refused, for no JSON has them."""
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def read_json(path: Path) -> Any:
    """Read a JSON file; `UserError` names the file and the place when it is not JSON."""
    if not path.exists():
        raise UserError(f"{path} does not exist.")
    if not is_regular(path):
        raise UserError(f"{path} is not a file.")
    return parse_json(path.read_bytes(), str(path))


def parse_json(text: str | bytes, what: str, *, strict: bool = False) -> Any:
    """The value that JSON text holds.

    Args:
        text: From wherever.
        what: What it is called in a message.
        strict: Refuse what Python reads and JSON does not allow or leaves open: numbers that are
            not finite, and a key that stands twice in an object.

    Raises:
        UserError: It is not JSON, not UTF-8, nested too deeply or has too long a number.
    """
    hooks: dict[str, Any] = {}
    if strict:
        hooks = {"parse_float": _finite, "parse_constant": _finite, "object_pairs_hook": _unique}
    try:
        return json.loads(text if isinstance(text, str) else text.decode("utf-8"), **hooks)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{what} is not valid JSON: {printable(str(error))}.") from None


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is no finite number")
    return number


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for n, (key, _) in enumerate(pairs) if key in dict(pairs[:n]))
        raise ValueError(f"the key {twice} stands twice in an object")
    return found


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

    Raises:
        UserError: SOURCE_DATE_EPOCH is not a number of seconds.
    """
    epoch = os.environ.get("SOURCE_DATE_EPOCH", "").strip()
    if not epoch:  # container builds leave it empty
        return datetime.now(UTC).date().isoformat()
    try:
        return datetime.fromtimestamp(int(epoch), UTC).date().isoformat()
    except (ValueError, OverflowError, OSError):
        raise UserError(
            f"SOURCE_DATE_EPOCH is {printable(epoch, 40)}, and not a number of seconds since 1970: "
            "unset it, or set it to one such as 1764547200."
        ) from None


def is_disk_full(error: OSError) -> bool:
    """Whether an error means that the disk (or a quota) is full."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def is_memory_full(error: Exception) -> bool:
    """Whether an error means that memory ran out, on any device."""
    said = str(error).lower()
    return isinstance(error, MemoryError) or (
        "out of memory" in said
        or "can't allocate memory" in said
        or "cannot allocate memory" in said
    )
