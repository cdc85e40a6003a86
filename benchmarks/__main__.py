"""Run all benchmarks, each in a process of its own, then fill in the tables.

With --quick, when no figure counts, they share this process: most of their time would be imports.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib import import_module

from benchmarks.measure import command

ALL = (
    *("auroc", "find", "rounding", "memory", "parts", "bake", "generation"),
    *("growth", "enough", "threads", "busy", "device"),
)


def measure(name: str, arguments: Sequence[str]) -> None:
    """Run one of them."""
    module = f"benchmarks.{name}"
    if "--quick" in arguments:
        command(import_module(module).run, arguments)
    else:
        subprocess.run([sys.executable, "-m", module, *arguments], check=True)


def main() -> None:
    """What is given on the command line goes to every one of them."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--only", nargs="+", choices=ALL, default=ALL, help="only these")
    given, rest = parser.parse_known_args()
    for name in given.only:
        print(f"\n## {name}\n", flush=True)
        started = time.monotonic()
        measure(name, rest)
        print(f"\n{name}: {(time.monotonic() - started) / 60:.1f} min", flush=True)
    if "--quick" not in rest and "--output" not in rest:
        subprocess.run([sys.executable, "-m", "benchmarks.tables"], check=True)


if __name__ == "__main__":
    main()
