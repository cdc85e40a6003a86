"""Run all benchmarks, each in a process of its own, then fill in the tables."""

import argparse
import subprocess
import sys
import time

ALL = (
    *("auroc", "find", "rounding", "memory", "parts", "bake", "generation"),
    *("growth", "threads", "busy", "device"),
)


def main() -> None:
    """What is given on the command line goes to every one of them."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--only", nargs="+", choices=ALL, default=ALL, help="only these")
    given, rest = parser.parse_known_args()
    for name in given.only:
        print(f"\n## {name}\n", flush=True)
        started = time.monotonic()
        subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *rest], check=True)
        print(f"\n{name}: {(time.monotonic() - started) / 60:.1f} min", flush=True)
    if "--quick" not in rest and "--output" not in rest:
        subprocess.run([sys.executable, "-m", "benchmarks.tables"], check=True)


if __name__ == "__main__":
    main()
