"""Sordino's tests of what transformers does not promise, with other versions of transformers.

    python -m tools.compatibility oldest newest     # both ends of the tested range
    python -m tools.compatibility released          # the newest release, whatever the range says
    python -m tools.compatibility newest --tests streaming experts    # some of the files

The slow tests are among them, for they have every family of models. Each end has an environment of
its own, `.compatibility/END`: transformers, what that version needs otherwise than it is here, and
for everything else the environment that runs this script.
"""

import argparse
import subprocess
import sys
import sysconfig
import time
from collections.abc import Sequence
from pathlib import Path

from packaging.specifiers import SpecifierSet

from sordino.version import TESTED_TRANSFORMERS

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / ".compatibility"
TESTS = (
    *("transformers_internals", "architectures", "experts", "checkpoint", "streaming"),
    *("generation", "gguf_header", "gguf_file", "gguf_experts"),
    *("edits_names", "edits_bake", "edits_families"),
)
_OLDEST = next(one.version for one in SpecifierSet(TESTED_TRANSFORMERS) if one.operator == ">=")
ENDS = {
    "oldest": f"transformers=={_OLDEST}",
    "newest": f"transformers{TESTED_TRANSFORMERS}",
    "released": "transformers",
}


def main() -> None:
    """Run the tests at each end that is named; the exit status counts the ends that failed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("ends", nargs="+", choices=ENDS)
    parser.add_argument("--tests", nargs="+", choices=TESTS, default=TESTS)
    given = parser.parse_args()
    sys.exit(sum(not passes(end, given.tests) for end in given.ends))


def passes(end: str, names: Sequence[str] = TESTS) -> bool:
    """Whether the tests pass at one end; what they say goes to the terminal."""
    python = prepare(end)
    start = time.perf_counter()
    tests = [ROOT / "tests" / f"test_{name}.py" for name in names]
    ended = subprocess.run(
        [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "", *tests],
        cwd=ROOT,
        check=False,
    )
    version = subprocess.run(
        [python, "-c", "import transformers; print(transformers.__version__)"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    outcome = "failed" if ended.returncode else "passed"
    print(
        f"transformers {version} ({end}): {outcome} in {time.perf_counter() - start:.0f} s",
        flush=True,
    )
    return not ended.returncode


def prepare(end: str) -> Path:
    """The interpreter of an end's environment, which is made or brought up to date."""
    folder = FOLDER / end
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        # Everything that is not installed in it is found in the environment that runs this.
        [packages] = folder.glob("lib/python*/site-packages")
        places = f"{ROOT / 'src'}\n{sysconfig.get_path('purelib')}\n"
        (packages / "base.pth").write_text(places, encoding="utf-8")
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--upgrade", ENDS[end]], check=True)
    return python


if __name__ == "__main__":
    main()
