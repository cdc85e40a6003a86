"""Peak memory of `find` above the loaded model, in a process of its own."""

import ctypes
import gc
import json
import subprocess
import sys
import threading
import time
from pathlib import Path

from benchmarks.find import model_and_concept
from benchmarks.measure import Figure, Options, Result, command
from sordino.expertise.find import find_experts
from sordino.progress import hushed

_EVERY_S = 0.002
_RUNS = (("float32", 250), ("float32", 1000), ("bfloat16", 1000))


def resident_mb() -> float:
    """The memory of this process that is resident."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 1e6


class Peak(threading.Thread):
    """Watches the resident memory until it is stopped."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.mb = resident_mb()
        self._stopped = threading.Event()

    def run(self) -> None:
        while not self._stopped.wait(_EVERY_S):
            self.mb = max(self.mb, resident_mb())

    def stop(self) -> float:
        """The largest seen."""
        self._stopped.set()
        self.join()
        return self.mb


def child(quick: bool, dtype: str, sentences: int) -> None:
    """Find, in a process that has nothing else to do, and print what that took."""
    opened, concept = model_and_concept(Options(quick, None, Path(), Path()), dtype)
    if not quick:
        concept = concept.sampled(max_per_class=sentences // 2, seed=0)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what loading left behind is not the model's
    before = resident_mb()
    model_mb = sum(p.nbytes for p in opened.model.parameters()) / 1e6
    peak = Peak()
    peak.start()
    started = time.perf_counter()
    with hushed():
        find_experts(opened, concept)
    taken = time.perf_counter() - started
    print(json.dumps({"above": peak.stop() - before, "model": model_mb, "s": taken}))


def in_a_process(quick: bool, dtype: str, sentences: int) -> dict[str, float]:
    """What `child` prints, in a process of its own."""
    code = f"from benchmarks.memory import child; child({quick}, {dtype!r}, {sentences})"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    seen: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return seen


def run(options: Options) -> Result:
    """Resident memory above that of the loaded model, while `find` runs."""
    figures = []
    for dtype, count in (("float32", 60),) if options.quick else _RUNS:
        runs = [in_a_process(options.quick, dtype, count) for _ in range(options.rounds(3))]
        seen = max(runs, key=lambda each: each["above"])
        bar = 600 if (dtype, count) == ("float32", 1000) else None
        figures.append(
            Figure(
                f"{dtype}, {count:,} sentences: above the model's {seen['model']:,.0f} MB",
                seen["above"],
                "MB",
                at_most=bar,
            )
        )
    about = {
        "model": "random" if options.quick else "SmolLM2-135M-Instruct",
        "seed": 0,
        "sampled every": f"{_EVERY_S * 1000:g} ms",
        "runs": options.rounds(3),
    }
    return Result("memory", about, {}, figures, runs=options.rounds(3))


if __name__ == "__main__":
    command(run)
