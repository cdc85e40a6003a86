"""Fuzz one of our readers with coverage guidance: `python tests/fuzz TARGET RUNS [CORPUS]`.

A finding is printed with its input and ends the run with a status other than 0. Every input is
given some seconds and half a gibibyte above what the process takes at the start.
"""

import resource
import sys
import tempfile
from collections import Counter
from pathlib import Path

import atheris

with atheris.instrument_imports(
    include=["sordino.models", "sordino.edits.shard", "sordino.files", "targets"]
):
    from targets import TARGETS

from seeds import seeds, words

_MEMORY = 512 * 2**20
_LONGEST = 4096


def main() -> None:
    """Run the fuzzer; it ends the process itself."""
    name, runs = sys.argv[1], int(sys.argv[2])
    corpus = Path(sys.argv[3] if len(sys.argv) > 3 else tempfile.mkdtemp())
    corpus.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        for number, seed in enumerate(seeds(name, Path(scratch))):
            (corpus / f"seed-{number}").write_bytes(seed)
    dictionary = Path(tempfile.mkdtemp()) / "words"
    escaped = ("".join(f"\\x{byte:02x}" for byte in word) for word in words(name))
    dictionary.write_text("".join(f'"{word}"\n' for word in escaped))
    target, counts = TARGETS[name], Counter()

    def one(data: bytes) -> None:
        counts["taken" if target(data) else "refused"] += 1
        if counts.total() == runs:
            print(f"{name}: {runs:,} inputs, {dict(counts)}, nothing found", flush=True)

    atheris.Setup(
        [
            sys.argv[0],
            *(f"-runs={runs}", "-timeout=10", f"-max_len={_LONGEST}", "-print_final_stats=1"),
            *(f"-dict={dictionary}", str(corpus)),
        ],
        one,
    )
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + _MEMORY, used + _MEMORY))
    atheris.Fuzz()


main()
