"""What a wheel and a source archive hold; `python tests/distribution.py dist` checks them."""

import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

import build

ROOT = Path(__file__).parent.parent
KINDS = (".py", ".jinja", ".css", ".js", ".toml", ".yaml", "py.typed")
"""What the package consists of; anything else in it has got there by mistake."""


def sources() -> dict[str, bytes]:
    """The package's files by their names in a wheel."""
    folder = ROOT / "src"
    return {
        file.relative_to(folder).as_posix(): file.read_bytes()
        for file in sorted((folder / "sordino").rglob("*"))
        if file.is_file() and file.parent.name != "__pycache__"
    }


def contents(wheel: Path) -> dict[str, bytes]:
    """A wheel's files by their names."""
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def wheel_from(source_archive: Path, folder: Path) -> Path:
    """Unpack a source archive below a folder and build a wheel of it there."""
    with tarfile.open(source_archive) as archive:
        archive.extractall(folder, filter="data")
    [unpacked] = folder.iterdir()
    return Path(build.ProjectBuilder(unpacked).build("wheel", folder / "built"))


def faults(wheel: Path, source_archive: Path) -> list[str]:
    """What is wrong with the two, a sentence each."""
    inside, wanted, version = contents(wheel), sources(), wheel.name.split("-")[1]
    package = {name for name in inside if not name.startswith(f"sordino-{version}.dist-info/")}
    found = [f"the wheel lacks {name}" for name in sorted(wanted.keys() - package)]
    found += [f"the wheel holds {name}" for name in sorted(package - wanted.keys())]
    found += [f"{name} is no part of a package" for name in sorted(package) if not _is_ours(name)]
    found += [
        f"{name} has other bytes in the wheel"
        for name in sorted(package & wanted.keys())
        if inside[name] != wanted[name]
    ]
    with tempfile.TemporaryDirectory() as folder:
        if contents(wheel_from(source_archive, Path(folder))) != inside:
            found.append("the source archive builds another wheel")
    return found


def _is_ours(name: str) -> bool:
    return name.endswith(KINDS) and not any(part.startswith(".") for part in name.split("/"))


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    [wheel], [source_archive] = folder.glob("*.whl"), folder.glob("*.tar.gz")
    problems = faults(wheel, source_archive)
    print("\n".join(problems) or f"{wheel.name} and {source_archive.name} hold what they should")
    sys.exit(bool(problems))
