"""The model hub: whether it can be asked, and files that are shared on it."""

import re
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

from sordino.errors import UserError

_PATIENCE_S = 3
_SHARED = re.compile(
    r"hf:(?P<repository>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^/@]+))?(?:/(?P<file>.+))?"
)
# What is taken of a repository where no file is named: the first kind of which there is one.
_KINDS = ("*.expertise.safetensors", "*dampening.safetensors")


@cache
def reachable() -> bool:
    """Whether the model hub answers, asked once in a process; never with HF_HUB_OFFLINE=1.

    The hub's own client tries for some 20 seconds before it gives up, for every file again.
    """
    import requests
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        requests.head(constants.ENDPOINT, timeout=_PATIENCE_S)
    except requests.RequestException:
        return False
    return True


def failures() -> tuple[type[Exception], ...]:
    """What the hub's client raises where the hub, or the way to it, fails."""
    from huggingface_hub.errors import HfHubHTTPError

    # The first base is the error of its HTTP library; which library, depends on its version.
    return (HfHubHTTPError, *HfHubHTTPError.__bases__, OSError)


def is_shared(path: str | Path) -> bool:
    """Whether a name stands for a file on the hub ("hf:org/name")."""
    return str(path).startswith("hf:")


def local(path: str | Path) -> Path:
    """Where an expertise or dampening file lies, fetched from the hub if it is there.

    Args:
        path: A file, or "hf:org/name" for the one expertise (else the one dampening) of a
            repository; "hf:org/name@revision" for another branch, tag or commit than main, and
            "hf:org/name/file" or "hf:org/name@revision/file" for one of several.

    Raises:
        UserError: The repository or the file is not to be had.
    """
    return _fetched(str(path)) if is_shared(path) else Path(path).expanduser()


@cache
def _fetched(name: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    found = _SHARED.fullmatch(name)
    if found is None:
        raise UserError(
            f"{name} names no file of the hub: give hf:org/name, or hf:org/name@revision/file."
        )
    repository, revision, file = found.group("repository", "revision", "file")
    offline = not reachable()
    try:
        wanted = file or _the_one(name, _listing(repository, revision, offline=offline))
        return Path(
            hf_hub_download(repository, wanted, revision=revision, local_files_only=offline)
        )
    except GatedRepoError:
        raise UserError(
            f"{name} is gated on the hub: accept its terms there, then log in with `hf auth login`."
        ) from None
    except RevisionNotFoundError:
        raise UserError(f"{repository} has no revision '{revision}' on the hub.") from None
    except RepositoryNotFoundError:
        raise UserError(
            f"{repository} is no model repository of the hub that may be read: check its name, or "
            "log in with `hf auth login`."
        ) from None
    except LocalEntryNotFoundError:
        raise UserError(
            f"{name} is not in the hub's cache, and the hub does not answer: try again later, or "
            "give a file that is here."
        ) from None
    except EntryNotFoundError:
        raise UserError(f"{repository} has no file {file} on the hub.") from None
    except failures() as error:
        raise UserError(
            f"{name} could not be had from the hub ({type(error).__name__}): try again later, or "
            "give a file that is here."
        ) from None


def _listing(repository: str, revision: str | None, *, offline: bool) -> list[str]:
    """The names of a repository's files; without a hub, of those that its cache has."""
    from huggingface_hub import HfApi, snapshot_download

    if not offline:
        return HfApi().list_repo_files(repository, revision=revision)
    folder = Path(snapshot_download(repository, revision=revision, local_files_only=True))
    return [file.relative_to(folder).as_posix() for file in sorted(folder.rglob("*.safetensors"))]


def _the_one(name: str, files: list[str]) -> str:
    for kind in _KINDS:
        found = [file for file in files if fnmatch(file, kind) and "earlier/" not in file]
        if len(found) == 1:
            return found[0]
        if found:
            raise UserError(
                f"{name} has several files of that kind ({', '.join(found)}): name one, as in "
                f"{name}/{found[0]}."
            )
    raise UserError(
        f"{name} has no expertise and no dampening ({' or '.join(_KINDS)}): name the file, as in "
        f"{name}/FILE.safetensors."
    )
