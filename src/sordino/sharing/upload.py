"""Pushing to the hub: large files first, then one commit, then a check of what arrived."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sordino import hub
from sordino import progress as show
from sordino.errors import UserError
from sordino.files import printable, sha256_of, user_path
from sordino.sharing.bundle import Bundle, bundle

_HUBS_OWN = (".gitattributes",)  # in every repository
_SAID = 300
# What the hub's client raises for failed uploads and malformed answers.
_ODD_ANSWERS: tuple[type[Exception], ...] = (RuntimeError, *hub.ODD_ANSWERS)


@dataclass(frozen=True)
class Pushed:
    """The result of a push, or of a dry run.

    Args:
        repository: Its name on the hub.
        address: Its web address; "" after a dry run.
        commit: The commit that holds the files; "" after a dry run.
        kind: See `Bundle`.
        files: The size of each file, in bytes.
        left_out: Why files were not pushed; see `Bundle`.
        changed: How files were changed before the push; see `Bundle`.
        older: Other files that were in the repository before.
    """

    repository: str
    address: str
    commit: str
    kind: str
    files: dict[str, int]
    left_out: dict[str, str]
    changed: dict[str, str]
    older: tuple[str, ...]


def push(
    subject: str | Path,
    repository: str,
    *,
    private: bool = False,
    revision: str | None = None,
    message: str | None = None,
    license: str | None = None,
    base_model: str | None = None,
    samples: bool = False,
    dry_run: bool = False,
) -> Pushed:
    """Push an output to a model repository of the hub, which is created if necessary.

    Large files are uploaded one by one. They become visible with everything else in one commit at
    the end, after which sizes and checksums are compared. A failed push changes nothing visible,
    and the next push does not upload its files again. The token is HF_TOKEN's, or that of
    `hf auth login`.

    Args:
        subject: A folder or ".gguf" file that Sordino wrote, an expertise or a dampening file.
        repository: "org/name".
        private: Make the repository private.
        revision: A branch, created from main if necessary; None for main.
        message: The commit's message.
        license: The original's licence, by the hub's name for it, if its card names none.
        base_model: The hub's name of the original, if the record has none.
        samples: Include the continuations, which hold harmful text in the clear.
        dry_run: Return what would be pushed, without asking the hub.

    Raises:
        UserError: Something cannot be pushed, or the hub refused it. In the latter case, the same
            call continues.

    Example:
        >>> pushed = sordino.push("quiet", "someone/quiet", license="apache-2.0", dry_run=True)
        >>> "model.safetensors" in pushed.files
        True
    """
    with bundle(
        subject, repository, license=license, base_model=base_model, samples=samples
    ) as found:
        address, commit = "", ""
        older: tuple[str, ...] = ()
        if not dry_run:
            upload = _Upload(found, repository, revision, private=private)
            address, commit, older = upload.carry_out(
                message or f"{user_path(subject).resolve().name}, by Sordino"
            )
        return Pushed(
            repository,
            address,
            commit,
            found.kind,
            {name: _size(content) for name, content in sorted(found.files.items())},
            found.left_out,
            found.changed,
            older,
        )


class _Upload:
    def __init__(
        self, found: Bundle, repository: str, revision: str | None, *, private: bool
    ) -> None:
        from huggingface_hub import CommitOperationAdd, HfApi, constants

        self._repository, self._revision, self._private = repository, revision, private
        self._api = HfApi(endpoint=constants.ENDPOINT)
        self._files = found.files
        self._additions = [
            CommitOperationAdd(
                name, content if isinstance(content, bytes) else str(content.absolute())
            )
            for name, content in sorted(found.files.items())
        ]
        self._done: list[str] = []

    def carry_out(self, message: str) -> tuple[str, str, tuple[str, ...]]:
        """Create the repository, upload, commit, check; the address, the commit, older files."""
        if not hub.reachable():
            from huggingface_hub import constants

            raise UserError(
                f"Nothing was pushed: the hub {constants.ENDPOINT} does not answer (or "
                "HF_HUB_OFFLINE is set). Try again when it does."
            )
        with self._failures(), _bars():
            self._repository = self._make_repository()
            older = self._older()
            for addition in self._additions:
                show.note(f"uploading {addition.path_in_repo}")
                self._api.preupload_lfs_files(
                    self._repository,
                    [addition],
                    revision=self._revision,
                    free_memory=False,
                    gitignore_content="",  # what is pushed is chosen here
                )
                self._done.append(addition.path_in_repo)
            commit = self._api.create_commit(
                self._repository,
                self._additions,
                commit_message=message,
                revision=self._revision,
            )
            show.note("checking what arrived")
            self._check(commit.oid)
        return f"{self._api.endpoint}/{self._repository}", commit.oid, older

    def _make_repository(self) -> str:
        """The repository's full name, once it and the branch are there."""
        url = self._api.create_repo(self._repository, private=self._private or None, exist_ok=True)
        info = self._api.model_info(url.repo_id)
        if self._private and not info.private:
            raise UserError(
                f"Nothing was pushed: {url.repo_id} exists already and is public. Make it private "
                "on the hub first, or push without `private`."
            )
        if self._revision:
            self._api.create_branch(url.repo_id, branch=self._revision, exist_ok=True)
        return url.repo_id

    def _older(self) -> tuple[str, ...]:
        there = self._api.list_repo_files(self._repository, revision=self._revision)
        return tuple(sorted(set(there) - set(self._files) - set(_HUBS_OWN)))

    def _check(self, commit: str) -> None:
        """Compare sizes and checksums on the hub with those here."""
        from huggingface_hub.hf_api import RepoFile

        names = list(self._files)
        there = {
            info.path: info
            for some in _chunks(names, 100)
            for info in self._api.get_paths_info(self._repository, some, revision=commit)
            if isinstance(info, RepoFile)
        }
        for name, content in self._files.items():
            info = there.get(name)
            if info is None:
                wrong = "is missing"
            elif info.size != _size(content):
                wrong = f"has {info.size:,} bytes instead of {_size(content):,}"
            elif info.lfs and info.lfs.sha256 != _sha256(content):
                wrong = f"has another SHA-256 ({info.lfs.sha256})"
            elif not info.lfs and info.blob_id != _git_name(content):
                wrong = f"has other bytes (git calls them {info.blob_id})"
            else:
                continue
            raise UserError(
                f"{name} does not match what was uploaded: on the hub it {wrong}. Run the same "
                "command again."
            )

    @contextmanager
    def _failures(self) -> Iterator[None]:
        """Turn the hub's refusals into one sentence, with what is missing and what to do."""
        try:
            yield
        except (*hub.failures(), *_ODD_ANSWERS) as error:
            raise UserError(f"{self._why(error)} {self._missing()}") from error

    def _why(self, error: Exception) -> str:
        from huggingface_hub.errors import HfHubHTTPError

        name = self._repository
        cause = next((e for e in _causes(error) if isinstance(e, HfHubHTTPError)), None)
        if cause is None:
            said = printable(str(error), _SAID)
            return f"The push to {name} failed ({type(error).__name__}: {said})."
        status = cause.response.status_code
        said = printable(cause.server_message or str(cause), _SAID)
        if status == 401:
            return f"The hub needs a login to push to {name}: run `hf auth login`, or set HF_TOKEN."
        if status == 403 and "quota" not in said.lower() and "storage" not in said.lower():
            return f"The token may not write to {name} ({said}): use one that may, or another name."
        if status in (402, 403, 413, 507):
            return f"The hub has no storage left for {name} ({said}): free some, or ask for more."
        return f"The push to {name} failed (status {status}: {said})."

    def _missing(self) -> str:
        missing = [name for name in self._files if name not in self._done]
        if missing and self._done:
            some = ", ".join(sorted(missing)[:3]) + (", …" if len(missing) > 3 else "")
            what = f"{len(missing)} of {len(self._files)} files are missing ({some})"
        elif missing:
            what = "Nothing was uploaded"
        else:
            what = "All files are uploaded, but not committed"
        return f"{what}. Run the same command again to continue."


@contextmanager
def _bars() -> Iterator[None]:
    """Show the hub's progress bars on a terminal only."""
    from huggingface_hub.utils.tqdm import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    if show.is_live() or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _chunks(names: Sequence[str], size: int) -> Iterator[list[str]]:
    for start in range(0, len(names), size):
        yield list(names[start : start + size])


def _size(content: Path | bytes) -> int:
    return len(content) if isinstance(content, bytes) else content.stat().st_size


def _sha256(content: Path | bytes) -> str:
    return hashlib.sha256(content).hexdigest() if isinstance(content, bytes) else sha256_of(content)


def _git_name(content: Path | bytes) -> str:
    """The name of a file of these bytes in git."""
    data = content if isinstance(content, bytes) else content.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
