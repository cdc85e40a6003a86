"""Check this machine: packages, devices, disk space, caches and the hub."""

import os
import platform
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Literal

import psutil
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from sordino import hub, kit
from sordino.errors import UserError
from sordino.extras import installing, started_as
from sordino.files import printable, size
from sordino.hub_table import REPOSITORIES, Repository
from sordino.kit.manifest import cache_folder
from sordino.version import TESTED_TRANSFORMERS, __version__

ROOM = 5 * 2**30
"""Bytes that should be free on each disk."""
_NOT_FOR_USERS = ("all", "dev", "dist", "docs", "fuzz")  # "all" is the sum of the others


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Args:
        about: What was checked, in a word or two.
        state: "good"; "missing" if sordino cannot work without it; "optional" if only some
            commands need it.
        says: What was found.
        mend: The command or the setting that changes it; "" if there is nothing to do.
    """

    about: str
    state: Literal["good", "missing", "optional"]
    says: str
    mend: str = ""


def doctor(*, hub: bool = False) -> list[Finding]:
    """Check packages, devices, disk space, caches and the hub, and say how to fix what is missing.

    Args:
        hub: Check instead that the hub has each model, scorer and data set that Sordino uses by
            itself, with the expected files, columns and terms.

    Returns:
        One finding per check.

    Raises:
        UserError: `hub` is set, and no hub answers.

    Example:
        >>> next(finding.state for finding in sordino.doctor() if finding.about == "sordino")
        'good'
    """
    return list(examine_hub() if hub else examine())


def examine() -> Iterator[Finding]:
    """Do all checks, the slowest last."""
    yield Finding("sordino", "good", f"{__version__}, Python {platform.python_version()}")
    yield from _packages()
    yield from _transformers()
    yield from _devices()
    yield from _room()
    yield _kit()
    yield _hub()


def _packages() -> Iterator[Finding]:
    """One finding for the required packages, and one for each extra."""
    by_extra: dict[str, list[Requirement]] = {"": []}
    for line in requires("sordino") or []:
        requirement = Requirement(line)
        by_extra.setdefault(_extra(requirement), []).append(requirement)
    for extra in [name for name in by_extra if name not in _NOT_FOR_USERS]:
        wanted = list(_with_parts(extra, by_extra))
        lacking = [str(one.name) + str(one.specifier) for one in wanted if not _is_there(one)]
        if not extra:
            main = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers"))
            yield Finding(
                "packages",
                "missing" if lacking else "good",
                f"lacks {', '.join(lacking)}" if lacking else f"{main}, and its requirements",
                "pip install --upgrade sordino" if lacking else "",
            )
        elif lacking:
            yield Finding(
                f"extra {extra}",
                "optional",
                f"lacks {', '.join(lacking)}",
                installing(extra),
            )
        else:
            yield Finding(f"extra {extra}", "good", "installed")


def _transformers() -> Iterator[Finding]:
    """Whether transformers, if installed, is of a tested version."""
    try:
        found = version("transformers")
    except PackageNotFoundError:
        return  # reported by `_packages`
    if SpecifierSet(TESTED_TRANSFORMERS).contains(found, prereleases=True):
        yield Finding("transformers", "good", f"{found}, of {TESTED_TRANSFORMERS}")
    else:
        yield Finding(
            "transformers",
            "optional",
            f"{found}, with which Sordino has not been tested ({TESTED_TRANSFORMERS} is)",
            f'pip install "transformers{TESTED_TRANSFORMERS}"',
        )


def _with_parts(extra: str, by_extra: Mapping[str, list[Requirement]]) -> Iterator[Requirement]:
    """The requirements of an extra, and those of the extras that it includes."""
    for requirement in by_extra.get(extra, []):
        if requirement.name == "sordino":
            for part in sorted(requirement.extras):
                yield from _with_parts(part, by_extra)
        else:
            yield requirement


def _extra(requirement: Requirement) -> str:
    """The extra that has a requirement; "" if sordino itself has it."""
    marker = str(requirement.marker or "")
    _, found, rest = marker.partition('extra == "')
    return rest.partition('"')[0] if found else ""


def _is_there(requirement: Requirement) -> bool:
    try:
        found = version(requirement.name)
    except PackageNotFoundError:
        return False
    # Another version of transformers may work: that is a finding of its own.
    return requirement.name == "transformers" or requirement.specifier.contains(
        found, prereleases=True
    )


def _devices() -> Iterator[Finding]:
    import torch

    memory = psutil.virtual_memory()
    yield Finding(
        "processor",
        "good",
        f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, "
        f"{size(memory.available)} of {size(memory.total)} memory free; 16 bits are "
        f"{'fast' if _fast_16_bits() else 'slower than 32 here, so leave --dtype float32'}",
    )
    for number in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(number)
        name = torch.cuda.get_device_name(number)
        yield Finding(f"cuda:{number}", "good", f"{name}, {size(free)} of {size(total)} free")
    if torch.backends.mps.is_available():
        yield Finding("mps", "good", "Apple's graphics processor")
    elif not torch.cuda.device_count():
        yield Finding("accelerator", "optional", "none that this torch sees; the processor works")


def _fast_16_bits() -> bool:
    """Whether the processor multiplies bfloat16 directly, without converting it first."""
    import torch

    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(bool(getattr(torch.cpu, check, lambda: False)()) for check in checks)


def _room() -> Iterator[Finding]:
    from huggingface_hub import constants

    places = {
        "working folder": Path.cwd(),
        "cache of the kit": cache_folder(),
        "cache of the hub": Path(constants.HF_HUB_CACHE),
        "temporary files": Path(os.environ.get("TMPDIR", "/tmp")),  # noqa: S108
    }
    settings = {"cache of the kit": "SORDINO_CACHE", "cache of the hub": "HF_HOME"}
    settings["temporary files"] = "TMPDIR"
    for about, place in places.items():
        there = next(one for one in (place, *place.parents) if one.exists())
        free = shutil.disk_usage(there).free
        mend = f"set {settings[about]} to a folder elsewhere" if about in settings else ""
        if not os.access(there, os.W_OK):
            yield Finding(about, "missing", f"{place} cannot be written", mend)
        elif free < ROOM:
            yield Finding(about, "optional", f"{place}, only {size(free)} free", mend)
        else:
            yield Finding(about, "good", f"{place}, {size(free)} free")


def _kit() -> Finding:
    items = kit.items()
    here = [item for item in items if item.cached]
    says = f"{len(here)} of {len(items)} parts are here ({size(sum(i.size for i in here))})"
    if len(here) == len(items):
        return Finding("demo kit", "good", says)
    return Finding(
        "demo kit",
        "optional",
        f"{says}; others are downloaded when needed",
        f"{started_as()} kit all",
    )


def examine_hub() -> Iterator[Finding]:
    """Compare the repositories that Sordino uses by itself with the hub, one finding for each.

    Raises:
        UserError: No hub answers.
    """
    from huggingface_hub import constants

    if not hub.reachable():
        raise UserError(
            f"The hub {constants.ENDPOINT} does not answer, or HF_HUB_OFFLINE is set, so nothing "
            "can be compared."
        )
    for repository in REPOSITORIES:
        try:
            differences = list(_differences(repository))
        except UserError as error:
            differences = [str(error).rstrip(".")]
        where = f"{repository.used_by}; {repository.licence}; revision {repository.revision[:12]}"
        if differences:
            yield Finding(repository.spec, "missing", f"{'; '.join(differences)} ({where})")
        else:
            yield Finding(repository.spec, "good", where)


def _differences(repository: Repository) -> Iterator[str]:
    """The differences between a repository on the hub and the table, as parts of a sentence."""
    about = hub.describe(repository)
    if about.name != repository.name:
        yield f"was renamed to {printable(about.name)}"
    for pattern in repository.files:
        if not any(fnmatch(file, pattern) for file in about.files):
            yield f"has no file {pattern}"
    if about.gated != repository.gated:
        yield "is gated" if about.gated else "is not gated any more"
    if repository.pickled and any(file.endswith(".safetensors") for file in about.files):
        yield "has its weights in safetensors now"
    if not repository.columns or about.gated:
        return
    source = "config.json" if repository.kind == "scorer" else repository.files[0]
    file = next((file for file in about.files if fnmatch(file, source)), None)
    if file is None:
        return
    head = hub.beginning(repository, file)
    for column in repository.columns:
        # Labels of that form are transformers' defaults, which are not in a config.json.
        if column not in head and not column.startswith("LABEL_"):
            yield f"{file} does not begin with the column {column}"


def _hub() -> Finding:
    from huggingface_hub import constants, get_token

    if constants.HF_HUB_OFFLINE:
        says = "not asked, because HF_HUB_OFFLINE is set; its cache can be used"
        return Finding("model hub", "optional", says, "unset HF_HUB_OFFLINE")
    try:
        answers = hub.reachable()
    except UserError as error:
        return Finding("model hub", "missing", str(error))
    if not answers:
        return Finding(
            "model hub",
            "optional",
            f"{constants.ENDPOINT} does not answer; its cache, local files and the demo kit can be "
            "used",
            "set HF_ENDPOINT to a mirror, or HF_HUB_OFFLINE=1 so that it is not asked",
        )
    token = "with a token" if get_token() else "without a token, so no gated models (hf auth login)"
    return Finding("model hub", "good", f"{constants.ENDPOINT} answers, {token}")


def is_well(findings: list[Finding]) -> bool:
    """Whether nothing is missing that sordino needs."""
    return sys.version_info >= (3, 11) and all(one.state != "missing" for one in findings)
