"""The model hub: whether it answers, what it has, and files that are shared on it."""

import errno
import json
import os
import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from sordino.errors import UserError
from sordino.extras import require
from sordino.files import is_disk_full, printable, user_path
from sordino.hub_table import Repository
from sordino.progress import note

_PATIENCE_S = 3
_SHARED = re.compile(
    r"hf:(?P<repository>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^/@]+))?(?:/(?P<file>.+))?"
)
# What is read from a repository if no file is named: the first of these kinds that it has.
_KINDS = ("*.expertise.safetensors", "*dampening.safetensors")
_REPOSITORY = re.compile(r"[\w.-]+(/[\w.-]+)?")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)
_TOO_MANY = 429
_BEGINNING = 64 * 1024


class NotThereError(UserError):
    """The hub does not have what was asked for, or does not answer and the cache lacks it.

    A caller with an alternative can then use that.
    """


@dataclass(frozen=True)
class Wanted:
    """A request to the hub.

    Args:
        repository: Its id, "org/name".
        revision: A branch, tag or commit; None for the main branch.
        kind: Its kind on the hub.
        file: The path of a file in it; "" for the whole repository.
        name: What the user wrote for it; "" for the repository's id.
        instead: What the user can do if it is not available, a clause for the end of a sentence.
    """

    repository: str
    revision: str | None = None
    kind: Literal["model", "dataset"] = "model"
    file: str = ""
    name: str = field(default="", compare=False)
    instead: str = field(default="give a local file", compare=False)

    @property
    def shown(self) -> str:
        """The name for a message."""
        return printable(self.name or self.repository)


@cache
def reachable() -> bool:
    """Whether the model hub answers, asked once per process; never with HF_HUB_OFFLINE=1.

    The hub's own client tries for about 20 seconds before it gives up, for every file again.

    Raises:
        UserError: A setting of the hub's client (its address, a proxy, the token) is invalid.
    """
    import requests
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    _refuse_odd_settings()
    try:
        requests.head(constants.ENDPOINT, timeout=_PATIENCE_S)
    except requests.RequestException:
        return False
    return True


def _refuse_odd_settings() -> None:
    """Raise `UserError` for a setting that would break the hub's client."""
    from huggingface_hub import constants, get_token
    from huggingface_hub.utils import get_session, httpx  # type: ignore[attr-defined]

    try:
        parts = urlsplit(constants.ENDPOINT)
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname)
        _ = parts.port  # a ValueError if it is not a valid port
    except ValueError:
        is_address = False
    if not is_address:
        raise UserError(
            f"HF_ENDPOINT is {printable(constants.ENDPOINT)}, not an address: set it to one "
            "that begins with https:// or http://, or unset it."
        )
    try:
        token = get_token() or ""
    except (OSError, UnicodeDecodeError):
        raise UserError(
            "The file with the hub's token cannot be read: log in with `hf auth login`, or set "
            "HF_TOKEN."
        ) from None
    if token and not re.fullmatch("[!-~]+", token):
        raise UserError(
            "The hub's token (HF_TOKEN, or that of `hf auth login`) has characters that are not "
            "allowed in a token: set it again, or unset it."
        )
    try:
        get_session()
    # The client reads the proxy settings, which may have an unknown scheme, need a package for
    # SOCKS that is not installed, or not be an address.
    except (ValueError, ImportError, httpx.InvalidURL) as error:
        raise UserError(
            "The proxy settings (HTTP_PROXY, HTTPS_PROXY, ALL_PROXY) cannot be used: "
            f"{printable(str(error)).rstrip('.')}."
        ) from None


def failures() -> tuple[type[Exception], ...]:
    """What the hub's client raises if the hub, or the connection to it, fails."""
    from huggingface_hub import errors

    # The first base is the error of its HTTP library, which depends on its version.
    found = (errors.HfHubHTTPError, *errors.HfHubHTTPError.__bases__, OSError)
    # In later versions downloads by the protocol Xet have an error of their own.
    by_xet = getattr(errors, "XetDownloadError", None)
    return (*found, errors.HFValidationError, *((by_xet,) if by_xet else ()))


ODD_ANSWERS: tuple[type[Exception], ...] = (ValueError, KeyError, TypeError)
"""What the hub's client raises if something else than a hub answers, such as a login page."""


@contextmanager
def in_one_sentence(wanted: Wanted) -> Iterator[None]:
    """Turn what the hub's client raises inside the block into a `UserError`.

    A full disk is raised as it is: the command line reports that for all commands.
    """
    try:
        yield
    except (*failures(), *ODD_ANSWERS) as error:
        if isinstance(error, OSError) and is_disk_full(error):
            raise
        raise _explain(error, wanted) from None


def _explain(error: Exception, wanted: Wanted) -> UserError:
    from huggingface_hub import constants, errors

    if isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__ is not None:
        error = error.__cause__ if isinstance(error.__cause__, failures()) else error
    name, repository = wanted.shown, wanted.repository
    if isinstance(error, errors.GatedRepoError):
        return UserError(
            f"{name} is gated on the hub: accept its terms at {constants.ENDPOINT}/{repository}, "
            "then log in with `hf auth login`."
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return NotThereError(
            f"{repository} has no revision '{printable(wanted.revision or 'main')}' on the hub."
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return NotThereError(
            f"{name} is not a {wanted.kind} repository that can be read on the hub: check its "
            f"name, log in with `hf auth login`, or {wanted.instead}."
        )
    if isinstance(error, errors.LocalEntryNotFoundError):
        return NotThereError(
            f"{name} is not in the hub's cache, or not completely, and the hub does not answer: "
            f"try again later, or {wanted.instead}."
        )
    if isinstance(error, errors.EntryNotFoundError):
        return NotThereError(f"{repository} has no file {printable(wanted.file)} on the hub.")
    if isinstance(error, errors.HFValidationError):
        return NotThereError(f"{name} is not a valid name on the hub: {wanted.instead}.")
    if isinstance(error, ODD_ANSWERS):
        return UserError(
            f"{name} could not be downloaded, because what answers at {constants.ENDPOINT} is no "
            "hub (perhaps a login page of this network): check the connection and HF_ENDPOINT, or "
            f"{wanted.instead}."
        )
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    if status in (401, 403, 407):
        who = "The proxy" if status == 407 else "The hub"
        return UserError(
            f"{who} refuses {name} for this token ({status}): renew HF_TOKEN or log in with "
            "`hf auth login`, or unset it for public repositories."
        )
    if status == _TOO_MANY:
        return UserError(
            f"The hub limits requests and does not give {name} now ({status}): wait a while, or "
            "log in with `hf auth login`, and run the same command again."
        )
    if status is not None:
        return UserError(
            f"{name} could not be downloaded from the hub ({status}): try again later, or "
            f"{wanted.instead}."
        )
    if isinstance(error, OSError) and error.errno in _UNWRITABLE:
        place = error.filename or constants.HF_HUB_CACHE
        return UserError(
            f"{name} cannot be stored at {printable(str(place))}: set HF_HOME to a folder that can "
            "be written to."
        )
    return UserError(
        f"{name} could not be downloaded from the hub ({type(error).__name__}): try again later; "
        f"run the same command again to continue, or {wanted.instead}."
    )


def fetch_files(
    wanted: Wanted, patterns: Sequence[str], check: Callable[[Sequence[str]], None] | None = None
) -> Path:
    """A folder of the hub's cache with a repository's files, named after the commit.

    If the hub does not answer, or fails, the cached files are used.

    Args:
        wanted: The repository.
        patterns: Of the files to fetch.
        check: Called with the names of all its files before anything is fetched; it can raise.

    Raises:
        UserError: It is not available (`NotThereError` if it does not exist), or `check` refuses
            it.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError, RevisionNotFoundError

    fetch = partial(
        snapshot_download,
        wanted.repository,
        repo_type=wanted.kind,
        revision=wanted.revision,
        allow_patterns=list(patterns),
    )
    with in_one_sentence(wanted):
        if not reachable():
            return Path(fetch(local_files_only=True))
        try:
            about = HfApi().repo_info(
                wanted.repository, revision=wanted.revision, repo_type=wanted.kind
            )
        except RevisionNotFoundError:
            raise
        except (*failures(), *ODD_ANSWERS) as error:
            try:
                folder = Path(fetch(local_files_only=True))
            except LocalEntryNotFoundError:
                raise error from None
            note(f"{_explain(error, wanted)} The copy in the hub's cache is used.")
            return folder
        if check is not None:
            check([file.rfilename for file in getattr(about, "siblings", None) or ()])
        if about.id and about.id != wanted.repository:
            note(f"{wanted.shown} was renamed to {printable(about.id)} on the hub")
        return Path(fetch())


@dataclass(frozen=True)
class About:
    """The hub's description of a repository.

    Args:
        name: Its current name.
        files: The names of its files.
        gated: Whether its terms must be accepted first.
    """

    name: str
    files: tuple[str, ...]
    gated: bool


def describe(repository: Repository) -> About:
    """The hub's description of a repository of the table, at its revision.

    Raises:
        UserError: There is no such repository or revision, or the hub fails.
    """
    from huggingface_hub import HfApi

    with in_one_sentence(_want(repository)):
        found = HfApi().repo_info(
            repository.name, revision=repository.revision, repo_type=repository.repo_type
        )
    files = tuple(file.rfilename for file in getattr(found, "siblings", None) or ())
    return About(found.id or repository.name, files, bool(getattr(found, "gated", False)))


def beginning(repository: Repository, file: str) -> str:
    """The first 64 KiB of a file of the table's repository, as far as they are text.

    Raises:
        UserError: The hub fails, or does not have it.
    """
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import (  # type: ignore[attr-defined]
        build_hf_headers,
        get_session,
        hf_raise_for_status,
    )

    address = hf_hub_url(
        repository.name, file, repo_type=repository.repo_type, revision=repository.revision
    )
    headers = {**build_hf_headers(), "Range": f"bytes=0-{_BEGINNING - 1}"}
    with in_one_sentence(_want(repository, file)):
        answer = get_session().get(address, headers=headers, follow_redirects=True)
        hf_raise_for_status(answer)
    return bytes(answer.content[:_BEGINNING]).decode(errors="replace")


@cache
def fetch_file(wanted: Wanted) -> Path:
    """A file of a repository in the hub's cache, below a folder that is named after the commit.

    Raises:
        UserError: It is not available (`NotThereError` if it does not exist).
    """
    from huggingface_hub import hf_hub_download

    with in_one_sentence(wanted):
        return Path(
            hf_hub_download(
                wanted.repository,
                wanted.file,
                repo_type=wanted.kind,
                revision=wanted.revision,
                local_files_only=not reachable(),
            )
        )


def fetch_known(repository: Repository, instead: str) -> Path:
    """The one file of a data set of the table, in the hub's cache.

    Args:
        repository: The data set.
        instead: What the user can do if it is not available.

    Raises:
        UserError: It is not available (`NotThereError` if it does not exist).
    """
    [file] = repository.files
    return fetch_file(_want(repository, file, instead))


def _want(repository: Repository, file: str = "", instead: str = "see its page") -> Wanted:
    return Wanted(
        repository.name,
        repository.revision,
        repository.repo_type,
        file,
        repository.spec,
        instead,
    )


def load_data_set(wanted: Wanted, split: str, config: str | None = None) -> Any:
    """A split of a data set, read with the package datasets; the data set's code is never run.

    Args:
        wanted: The data set.
        split: The split, such as "train".
        config: Its configuration, where it has several.

    Raises:
        UserError: The package is not installed, or the data set is not available.
    """
    from huggingface_hub import constants

    if not _REPOSITORY.fullmatch(wanted.repository):
        raise UserError(f"{wanted.shown} names no data set: give hf:org/name.")
    require("datasets", wanted.shown)
    if os.path.isdir(wanted.repository):  # noqa: PTH112 - unlike Path's, it raises nothing
        note(f"{wanted.shown} is a folder here, which is read instead of the hub's data set")
    elif not reachable() and not constants.HF_HUB_OFFLINE:
        raise NotThereError(
            f"{wanted.shown} cannot be read, because the hub {constants.ENDPOINT} does not answer: "
            f"{wanted.instead}, or set HF_HUB_OFFLINE=1 to use what was downloaded before."
        )
    import datasets

    try:
        return datasets.load_dataset(
            wanted.repository, config, split=split, revision=wanted.revision
        )
    # ValueError: no such split or configuration; RuntimeError: the data set needs its own code.
    except (
        *(datasets.exceptions.DatasetsError, ValueError, RuntimeError),
        *failures(),
    ) as error:
        if isinstance(error, OSError) and is_disk_full(error):
            raise
        cause = error.__cause__ or error
        raise UserError(
            f"{wanted.shown} could not be read from the hub ({type(cause).__name__}: "
            f"{printable(str(cause))}): check its name, its split and its configuration, or "
            f"{wanted.instead}."
        ) from None


def refuse_pickles(
    name: str, files: Sequence[str], auto_class: str, revision: str | None = None
) -> None:
    """Raise `UserError` if there are no safetensors, saying how to convert a pickle to them.

    Args:
        name: A repository of the hub, or a folder.
        files: The names of its files.
        auto_class: The class of transformers that opens such a model.
        revision: The branch, tag or commit of the repository.
    """
    if any(file.endswith(".safetensors") for file in files):
        return
    shown = printable(name)
    found = next((file for file in files if file.endswith(_PICKLES)), None)
    if found is not None:
        raise UserError(
            f"{shown} has its weights only as a pickle ({printable(found)}), which can hold a "
            "program and is not read here: if you trust it, convert it with "
            f"`{conversion(name, auto_class, revision)}`, and use the folder that this writes."
        )
    ggufs = [file for file in files if file.endswith(".gguf")]
    if ggufs:
        raise UserError(
            f"{shown} holds GGUF files and no safetensors: fetch one, such as "
            f"{printable(ggufs[0])}, with `hf download`, and use that file."
        )
    raise UserError(f"{shown} holds no weights in safetensors: choose another model.")


def conversion(name: str, auto_class: str, revision: str | None = None) -> str:
    """The shell command that reads a pickle with transformers and writes safetensors.

    Transformers could also ask a service to publish converted weights, which is switched off.
    """
    source = json.dumps(name) + (f", revision={json.dumps(revision)}" if revision else "")
    target = json.dumps(f"{Path(name).name}-safetensors")
    code = (
        f"from transformers import {auto_class} as M, AutoTokenizer as T; "
        f'M.from_pretrained({source}, dtype="auto").save_pretrained({target}); '
        f"T.from_pretrained({source}).save_pretrained({target})"
    )
    return f"DISABLE_SAFETENSORS_CONVERSION=1 python -c {shlex.quote(code)}"


def is_shared(path: str | Path) -> bool:
    """Whether a name means a file on the hub ("hf:org/name")."""
    return str(path).startswith("hf:")


def fetch_if_shared(path: str | Path) -> Path:
    """The path of an expertise or dampening file, downloaded first if it is on the hub.

    Args:
        path: A file, or "hf:org/name" for the one expertise (else the one dampening) of a
            repository; "hf:org/name@revision" for another branch, tag or commit than main, and
            "hf:org/name/file" or "hf:org/name@revision/file" for one of several.

    Raises:
        UserError: The repository or the file is not available.
    """
    return _fetch(str(path)) if is_shared(path) else user_path(path)


def _fetch(name: str) -> Path:
    found = _SHARED.fullmatch(name)
    if found is None:
        raise UserError(
            f"{printable(name)} does not name a file of the hub: write hf:org/name, or "
            "hf:org/name@revision/file."
        )
    repository, revision, file = found.group("repository", "revision", "file")
    wanted = Wanted(repository, revision, name=name)
    return fetch_file(replace(wanted, file=file or _the_one(name, _listing(wanted))))


def _listing(wanted: Wanted) -> list[str]:
    """The names of a repository's files; without a hub, of those that its cache has."""
    from huggingface_hub import HfApi, snapshot_download

    with in_one_sentence(wanted):
        if reachable():
            return HfApi().list_repo_files(wanted.repository, revision=wanted.revision)
        folder = Path(
            snapshot_download(wanted.repository, revision=wanted.revision, local_files_only=True)
        )
    return [file.relative_to(folder).as_posix() for file in sorted(folder.rglob("*.safetensors"))]


def _the_one(name: str, files: list[str]) -> str:
    for kind in _KINDS:
        found = [file for file in files if fnmatch(file, kind) and "earlier/" not in file]
        if len(found) == 1:
            return found[0]
        if found:
            raise UserError(
                f"{name} has several files of that kind ({', '.join(map(printable, found))}): "
                f"choose one, such as {name}/{printable(found[0])}."
            )
    raise UserError(
        f"{name} has no expertise and no dampening ({' or '.join(_KINDS)}): name the file, such as "
        f"{name}/FILE.safetensors."
    )
