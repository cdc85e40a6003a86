"""Files: names as users type them, outputs that appear only when they are whole, JSON.

An output is built under a hidden name beside it (the *staging path*) and renamed when it is
complete. A staging path has a fixed name, so that a killed command finds its own work again. What
an output may replace is decided in `sordino.outputs`.
"""

import errno
import hashlib
import json
import math
import os
import re
import shutil
import stat
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import fields
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
_LONGEST_PART = 120
"""Bytes of a concept's name in the name of a file."""
_NOT_IN_NAMES = re.compile(r'[/\\:*?"<>|\ufffd]+')
_POINTER = b"version https://git-lfs.github.com/spec/"
_REFUSED = (
    *(errno.EACCES, errno.EPERM, errno.EROFS),
    *(errno.EIO, errno.ESTALE, errno.ENXIO, errno.ENODEV),
    *(errno.EMFILE, errno.ENFILE, errno.EFBIG, errno.EBUSY),
)
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


def name_files(settings: Any) -> None:
    """Replace each `Path` among a frozen dataclass's values by its text, which records can hold."""
    for field in fields(settings):
        value = getattr(settings, field.name)
        if isinstance(value, Path):
            object.__setattr__(settings, field.name, str(value))
        elif isinstance(value, list | tuple) and any(isinstance(one, Path) for one in value):
            named = [str(one) if isinstance(one, Path) else one for one in value]
            object.__setattr__(settings, field.name, type(value)(named))


def is_utf8(name: str) -> bool:
    """Whether a file's name, as Python decoded it, is valid UTF-8."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def user_path(name: str | Path) -> Path:
    """The path that a user typed.

    A leading `~` is a user's home folder, unless a file has that name.

    Raises:
        UserError: No file can have that name.
    """
    text = os.fspath(name)
    if not text:  # it would mean the working folder, as where a shell's variable is not set
        raise UserError("The name of a file or folder is empty: give one.")
    if not is_utf8(text):
        mend = "rename the file"
        if sys.getfilesystemencoding() != "utf-8":  # such as with LC_ALL=C and PYTHONUTF8=0
            mend = "set PYTHONUTF8=1, because this shell's encoding is another, or rename the file"
        raise UserError(f"The file name {printable(text)} is not valid UTF-8: {mend}.") from None
    if "\0" in text:
        raise UserError(f"{printable(text)} is not a file name: it holds a NUL character.")
    path = Path(text if os.path.lexists(text) else os.path.expanduser(text))  # noqa: PTH111
    try:
        path.lstat()
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise UserError(f"{printable(text)} is too long for a file name.") from None
    return path


def refuse_repeated(names: Iterable[str | Path], why: str) -> None:
    """Refuse a name that is given twice, or two names of one file.

    Args:
        names: Of files, folders or of the hub.
        why: What would happen, such as "would count its rows twice".

    Raises:
        UserError: One is.
    """
    seen = set()
    for name in names:
        path = user_path(name)
        place = path.resolve() if path.exists() else name
        if place in seen:
            raise UserError(f"{printable(str(name))} is given twice, which {why}: give it once.")
        seen.add(place)


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

    White space becomes one space, and what `tame` replaces becomes U+FFFD.

    Example:
        >>> printable("a\x1b[31m  b\n")
        'a\ufffd[31m b'
    """
    shown = tame(" ".join(text.split()))
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"


def name_part(text: str) -> str:
    """Foreign text as a part of a file's name: at most 120 bytes, nothing that leads elsewhere.

    Example:
        >>> name_part("../a: b?")
        'a- b'
    """
    plain = _NOT_IN_NAMES.sub("-", printable(text)).encode()[:_LONGEST_PART]
    return plain.decode(errors="ignore").strip("-. ") or "unnamed"


def list_some(names: Sequence[str], most: int) -> str:
    """The first names with commas, and how many more there are.

    Example:
        >>> list_some(["a", "b", "c"], 2)
        'a, b and 1 more'
    """
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(map(printable, names[:most])) + more


def counted(number: int, one: str, more: str = "") -> str:
    """A number of things in words.

    Args:
        number: How many.
        one: What it is if there is one, perhaps with the verb.
        more: What they are otherwise; the same with an "s" if "".

    Example:
        >>> counted(1, "text is", "texts are"), counted(2000, "prompt")
        ('1 text is', '2,000 prompts')
    """
    return f"{number:,} {one if number == 1 else more or one + 's'}"


def capital(text: str) -> str:
    """A text with a capital letter at its beginning.

    Example:
        >>> capital("it has SmolLM2")
        'It has SmolLM2'
    """
    return text[:1].upper() + text[1:]


def create_file(path: Path, mode: int = 0o666) -> BinaryIO:
    """Create a file and open it for writing; an existing one is neither followed nor overwritten.

    Args:
        path: The file.
        mode: Its permissions before the umask.

    Raises:
        FileExistsError: Something has that name, be it a link to nothing.
    """
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_NOFOLLOW", 0)
    return os.fdopen(os.open(path, flags | getattr(os, "O_BINARY", 0), mode), "wb")


@contextmanager
def private_files(needed: bool = True) -> Iterator[None]:
    """Inside the block only the owner can read new files and folders, from their first byte on.

    Args:
        needed: Whether to do so; otherwise nothing changes.
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
    """Whether a path is a file that only its owner can read."""
    return is_regular(path) and not path.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH)


def staging_path(target: Path) -> Path:
    """The hidden path beside `target` under which it is built."""
    return target.absolute().parent / f".{target.name}.partial"


def previous_path(target: Path) -> Path:
    """The hidden path beside the folder `target` to which the old one moves before its deletion."""
    return target.absolute().parent / f".{target.name}.sordino-old"


def drop_link(path: Path) -> Path:
    """Remove a link where Sordino keeps its work, which would redirect it; return the path."""
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
            _free_previous(target)
            yield
        finally:
            lock.unlink(missing_ok=True)


@contextmanager
def locked(lock_file: Path, *, on_busy: Callable[[], None]) -> Iterator[None]:
    """Hold a lock, and wait for another process that holds it.

    On a file system without locks nothing is locked, and a note says so.

    Args:
        lock_file: A file in an existing folder.
        on_busy: Called before waiting; it can raise to give up instead.
    """
    if not _has_locks(lock_file.parent):
        folder = lock_file.parent
        note(f"{folder} has no file locks: a second process could write there, too")
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
    """Whether files in a folder can be locked, tried on a new temporary file.

    Where a file system has no locks, the library believes that another process holds the lock (NFS
    without its lock service), or falls back to a plain file, which outlives its process (Lustre).
    """
    try:
        import fcntl
    except ImportError:  # Windows has its own, always
        return True
    try:
        probe = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed below
    except OSError as error:
        if is_disk_full(error):
            raise
        raise UserError(
            f"Nothing can be written in {folder} ({error.strerror}): choose another `output`."
        ) from None
    with probe:
        try:
            fcntl.flock(probe, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            return False
    return True


def clear_staging(target: Path) -> Path:
    """Remove what a killed command left at `target`'s staging path, and return that path.

    A link there is removed; what it points to stays.
    """
    staging = staging_path(target)
    if staging.is_dir() and not staging.is_symlink():
        shutil.rmtree(staging)
    else:
        staging.unlink(missing_ok=True)
    return staging


@contextmanager
def new_file(target: Path, *, force: bool = False, mode: int = 0o666) -> Iterator[Path]:
    """Yield a path to write to; it becomes `target` if the block succeeds, else it is removed.

    Args:
        target: The file. Where it is a link, the file that it points to is written.
        force: Replace an existing file; a folder is never replaced.
        mode: The file's permissions before the umask.

    Raises:
        UserError: Something there must not be replaced, or nothing can be written there.
    """
    target, staging = _begin(target, force=force)
    staging.parent.mkdir(parents=True, exist_ok=True)
    create_file(staging, mode).close()
    try:
        yield staging
        publish(staging, target)
    except BaseException:
        staging.unlink(missing_ok=True)
        raise


@contextmanager
def new_files(targets: Sequence[Path], *, force: bool = False) -> Iterator[list[Path]]:
    """Yield a path to write to for each of several files that belong together, as `new_file` does.

    The first becomes its target last, and one that it replaces is removed before the others are
    replaced. So if a replacement is interrupted, there is no first file, and what is left is not
    taken for a whole.

    Raises:
        UserError: As `new_file`.
    """
    with ExitStack() as stack:
        stages = [stack.enter_context(new_file(target, force=force)) for target in targets]
        yield stages
        for stage in stages:
            flush(stage)
        first = real_path(targets[0])
        if len(targets) > 1 and first.is_file():
            first.unlink()


@contextmanager
def new_folder(target: Path, *, force: bool = False) -> Iterator[Path]:
    """Yield an empty folder to fill; it becomes `target` if the block succeeds, else it is removed.

    The caller decides what `force` may replace (`sordino.outputs`).

    Raises:
        UserError: Something there must not be replaced, or nothing can be written there.
    """
    target, staging = _begin(target, force=force)
    staging.mkdir(parents=True)
    try:
        yield staging
        publish(staging, target)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def _begin(target: Path, *, force: bool) -> tuple[Path, Path]:
    """Check that an output can be written; return its real path and its free staging path."""
    target = real_path(target)
    if target.exists() and not force:
        raise UserError(
            f"{target} exists already: choose another `output`, or `force=True` to replace it."
        )
    refuse_unwritable(target)
    return target, clear_staging(target)


def publish(staging: Path, target: Path) -> None:
    """Flush `staging` (a file or a folder) to disk and rename it to `target`.

    Raises:
        UserError: A file would replace a folder, or a folder a file.
    """
    target = real_path(target)
    if target.exists() and target.is_dir() != staging.is_dir():
        what, other = ("folder", "file") if target.is_dir() else ("file", "folder")
        raise UserError(f"{target} is a {what}, and a {other} cannot replace it.")
    flush(staging)
    if not target.is_dir():
        staging.replace(target)
        return
    # A folder cannot be renamed onto a full one, so the old one is moved away first.
    previous = _free_previous(target)
    target.rename(previous)
    staging.rename(target)
    try:
        shutil.rmtree(previous)
    except OSError as error:  # the output is there, and that is what counts
        note(
            f"{target} is replaced, but what was there before cannot be removed ({error.strerror}) "
            f"and is now {previous}"
        )


def flush(path: Path) -> None:
    """Wait until a file, or all files of a folder, are on the disk."""
    for file in [path] if path.is_file() else sorted(filter(is_regular, path.rglob("*"))):
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _free_previous(target: Path) -> Path:
    """The path to which the old folder moves, without what an earlier command left there.

    Raises:
        UserError: That cannot be removed: it has files of another user, or on NFS files that a
            server has open.
    """
    previous = previous_path(target)
    try:
        if previous.exists():
            shutil.rmtree(previous)
    except OSError as error:
        raise UserError(
            f"{previous}, which an earlier command left, cannot be removed ({error.strerror}): "
            "remove it, and run the same command again."
        ) from None
    return previous


def real_path(target: Path) -> Path:
    """The path itself, or the target of a link, whether it exists or not.

    Raises:
        UserError: The link leads back to itself.
    """
    if not target.is_symlink():
        return target
    try:
        return target.resolve()
    except (RuntimeError, OSError):  # before Python 3.13, resolve() raises RuntimeError at a loop
        raise UserError(f"{target} is a link that leads back to itself: remove it.") from None


def write_text(path: Path, text: str, *, force: bool = True) -> None:
    """Write a text file, completely or not at all.

    Raises:
        UserError: As `new_file`.
    """
    with new_file(path, force=force) as stage:
        stage.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any, *, force: bool = True) -> None:
    """Write `value` as readable JSON in a stable order, completely or not at all."""
    write_text(path, to_json(value), force=force)


def to_json(value: Any) -> str:
    """`value` as readable JSON, without NaN and infinity, which JSON does not have."""
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def read_json(path: Path) -> Any:
    """Read a JSON file; `UserError` names the file and the place when it is not JSON."""
    refuse_missing(path, str(path))
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None
    refuse_pointer(data, str(path))
    return parse_json(data, str(path))


def refuse_missing(path: Path, what: str) -> None:
    """Raise `UserError` unless a path is a regular file, called `what` in the message."""
    if not path.exists():
        raise UserError(f"{what} does not exist.")
    if not is_regular(path):
        raise UserError(f"{what} is not a file.")


def refuse_pointer(beginning: bytes, what: str) -> None:
    """Raise `UserError` for what a clone without Git LFS leaves in place of a large file.

    Args:
        beginning: The file's bytes, or the first hundred of them.
        what: What the file is called in the message.
    """
    if beginning.startswith(_POINTER):
        raise UserError(f"{what} is a Git LFS pointer to the file: fetch that with git lfs pull.")


def json_kind(value: Any) -> str:
    """What a value from JSON is, in words."""
    kinds = {dict: "an object", list: "a list", str: "a text", bool: "true or false"}
    return "null" if value is None else kinds.get(type(value), "a number")


def parse_json(
    text: str | bytes, what: str, *, strict: bool = False, distinct: bool = False
) -> Any:
    """The value that JSON text holds.

    Args:
        text: JSON.
        what: What it is called in a message.
        strict: Refuse what Python reads and JSON does not allow or leaves open: numbers that are
            not finite, and a key that occurs twice in an object.
        distinct: Refuse the latter only, since Python would lose the first of the two values.

    Raises:
        UserError: It is not JSON, not UTF-8, nested too deeply or has too long a number.
    """
    hooks: dict[str, Any] = {"object_pairs_hook": unique} if strict or distinct else {}
    if strict:
        hooks |= {"parse_float": _finite, "parse_constant": _finite}
    try:
        return json.loads(text if isinstance(text, str) else text.decode("utf-8"), **hooks)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{what} is not valid JSON: {printable(str(error))}.") from None


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is not a finite number")
    return number


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON; a ValueError where a key occurs in it twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        [(twice, _)] = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"the key {twice} occurs twice in an object")
    return found


def size(count: float) -> str:
    """Bytes with a unit, such as "2.1 GB"."""
    for unit in ("B", "kB", "MB"):
        if count < 999.5:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:,.1f} GB"


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

    It is a day and not a second, so that a command that is repeated, or resumed after a kill, gives
    the same bytes.

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


def has_working_folder() -> bool:
    """Whether the process's working folder still exists."""
    try:
        Path.cwd()
    except FileNotFoundError:
        return False
    return True


def is_refused(error: OSError) -> bool:
    """Whether an error means that the system does not let the user read or write a file.

    So it is without permission, on a disk that is read-only, gone or broken, and beyond the limits
    on open files and on a file's size, and where something is mounted.
    """
    return error.errno in _REFUSED


def is_memory_full(error: Exception) -> bool:
    """Whether an error means that memory ran out, on any device."""
    said = str(error).lower()
    return isinstance(error, MemoryError) or (
        "out of memory" in said
        or "can't allocate memory" in said
        or "cannot allocate memory" in said
    )
