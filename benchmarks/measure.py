"""Several ways of doing one thing, timed in turns, and a record of what was seen."""

import argparse
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy
import torch
import transformers

from sordino.files import write_json
from sordino.progress import hushed

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Options:
    """What every benchmark can be told.

    Args:
        quick: Everything small, to see that it works; the figures mean nothing.
        repeats: How often each way is timed; None for the benchmark's own number.
        work: A folder for files that are made on the way.
        output: The folder of the records.
    """

    quick: bool
    repeats: int | None
    work: Path
    output: Path

    def rounds(self, usual: int) -> int:
        """How often each way is timed."""
        return self.repeats or (1 if self.quick else usual)


@dataclass(frozen=True)
class Figure:
    """One number that a benchmark is about.

    Args:
        what: What it is, in a few words.
        value: The number.
        unit: "×", "MB", "s", "GB/s", "tokens/s", or "" for a plain number.
        at_least: Its bar, if it has one.
        at_most: Its bar, if it has one.
        low: The lower end of its 95 % interval, if it has one.
        high: The upper end.
    """

    what: str
    value: float
    unit: str = "×"
    at_least: float | None = None
    at_most: float | None = None
    low: float | None = None
    high: float | None = None

    @property
    def met(self) -> bool | None:
        """Whether the bar is met; None without one."""
        if self.at_least is not None:
            return self.value >= self.at_least
        return None if self.at_most is None else self.value <= self.at_most


@dataclass(frozen=True)
class Result:
    """What a benchmark saw.

    Args:
        name: The benchmark's module.
        settings: What was measured: sizes, numbers of sentences, seeds.
        seconds: By way, the seconds of every run, in the order of the rounds.
        figures: The numbers it is about.
        notes: What a reader has to know, in whole sentences.
        runs: How many runs the figures rest on, where no times are kept.
    """

    name: str
    settings: Mapping[str, Any]
    seconds: Mapping[str, Sequence[float]]
    figures: Sequence[Figure]
    notes: Sequence[str] = field(default_factory=tuple)
    runs: int = 1


def in_turns(
    ways: Mapping[str, Callable[[], Any]],
    rounds: int,
    *,
    warm: bool = True,
    between: Callable[[], None] = lambda: None,
    within_s: float = math.inf,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Time the ways in turns, each round beginning with another one.

    So a machine that becomes slower or faster meanwhile does so for all of them.

    Args:
        ways: What to call, by name.
        rounds: How often.
        warm: Whether each is called once before, untimed.
        between: Called before each call, untimed.
        within_s: A round that would probably end later than so many seconds from the start is
            left out, and so are those after it; the first never is.
        clock: Gives the seconds that are kept. `time.process_time` counts those in which the
            processor worked for this process, which other programs hardly touch.

    Returns:
        The seconds of every call, and what the last call gave, by name.
    """
    names = list(ways)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    given: dict[str, Any] = {}
    last = 0.0
    begun = time.perf_counter()
    for turn in range(-warm, rounds):
        now = time.perf_counter()
        if turn > 0 and now - begun + last > within_s:
            break
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            given.pop(name, None)
            between()
            started = clock()
            given[name] = ways[name]()
            taken = clock() - started
            if turn >= 0:
                seconds[name].append(taken)
        last = time.perf_counter() - now
    return seconds, given


@contextmanager
def limited_to(threads: int) -> Iterator[None]:
    """Compute on so many threads inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def ratio(seconds: Mapping[str, Sequence[float]], slower: str, faster: str) -> float:
    """How many times longer one way took than another, by their medians."""
    return statistics.median(seconds[slower]) / statistics.median(seconds[faster])


def command(
    run: Callable[[Options], Result | None],
    arguments: Sequence[str] | None = None,
    parents: Sequence[argparse.ArgumentParser] = (),
) -> None:
    """Run a benchmark from the command line: measure, print, write the record.

    Args:
        run: The benchmark.
        arguments: The arguments; None for the process's own.
        parents: Parsers of a benchmark's own options, for the help; it has parsed them before.
    """
    description = getattr(run, "func", run).__doc__
    parser = argparse.ArgumentParser(description=description, parents=list(parents))
    parser.add_argument("--quick", action="store_true", help="everything small, to see it work")
    parser.add_argument("--rounds", type=int, help="how often each way is timed at most")
    parser.add_argument("--work", type=Path, default=Path("build/benchmarks"), help="for files")
    parser.add_argument("--output", type=Path, help="the folder of the records")
    given = parser.parse_args(arguments)
    # What is quick is no figure to keep.
    usual = given.work / "results" if given.quick else RESULTS
    options = Options(given.quick, given.rounds, given.work, given.output or usual)
    options.work.mkdir(parents=True, exist_ok=True)
    before = os.getloadavg()[0]
    with hushed():
        result = run(options)
    if result is None:
        return
    record = {
        **asdict(result),
        "figures": [asdict(figure) | {"met": figure.met} for figure in result.figures],
        "quick": options.quick,
        "machine": machine(before),
    }
    options.output.mkdir(parents=True, exist_ok=True)
    write_json(options.output / f"{result.name}.json", record)
    print(table(record))


def machine(load_before: float) -> dict[str, Any]:
    """What a reader has to know of the machine, its load included."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "processor": _cpuinfo("model name") or platform.processor(),
        "cores": os.cpu_count(),
        "amx": has("amx_bf16"),
        "avx512_bf16": has("avx512_bf16"),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "gpu": gpu,
        "threads": torch.get_num_threads(),
        "load_before": round(load_before, 2),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "numpy": numpy.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "date": datetime.now(UTC).date().isoformat(),
    }


def has(flag: str) -> bool:
    """Whether the processor says that it has this."""
    return flag in _cpuinfo("flags").split()


def _cpuinfo(key: str) -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(key)), "")


def table(record: Mapping[str, Any]) -> str:
    """A record as Markdown."""
    lines = []
    runs = [len(seconds) for seconds in record["seconds"].values()]
    # One run says nothing about the scatter, so a bar that rests on it is not called met.
    fewest = min(runs, default=record.get("runs", 1))  # records from before have no such number
    reached = "met" if fewest > 1 else "reached in one run"
    if record["figures"]:
        lines += ["| what | measured | bar |", "|---|---|---|"]
        for figure in record["figures"]:
            value = f"{amount(figure['value'])} {figure['unit']}".strip()
            if figure.get("low") is not None:  # records from before have no intervals
                value += f" ({amount(figure['low'])} to {amount(figure['high'])})"
            bar = ""
            for name, sign in (("at_least", "≥"), ("at_most", "≤")):
                if figure[name] is not None:
                    met = reached if figure["met"] else "**missed**"
                    bar = f"{sign} {figure[name]:,g} {figure['unit']}".strip() + f", {met}"
            lines.append(f"| {figure['what']} | {value} | {bar} |")
        lines.append("")
    if runs and max(runs) == 1:
        lines += ["| way | time of one run |", "|---|---|"]
        lines += [f"| {way} | {amount(one)} s |" for way, (one,) in record["seconds"].items()]
        lines.append("")
    elif runs:
        lines += ["| way | median | quickest | slowest | runs |", "|---|---|---|---|---|"]
        for way, seconds in record["seconds"].items():
            three = (statistics.median(seconds), min(seconds), max(seconds))
            cells = [f"{amount(value)} s" for value in three]
            if len(seconds) == 1:
                cells[1:] = ["–", "–"]
            lines.append(f"| {way} | {' | '.join(cells)} | {len(seconds)} |")
        lines.append("")
    lines += [f"{note}\n" for note in record["notes"]]
    settings = ", ".join(f"{key} {value}" for key, value in record["settings"].items())
    about = record["machine"]
    device = about["gpu"] or f"{about['processor']}, {about['cores']} cores"
    # Records from before say nothing of the second.
    kind = "AMX" if about["amx"] else "AVX-512 BF16" if about.get("avx512_bf16") else ""
    with_16_bits = f" with {kind}" if kind and not about["gpu"] else ""
    lines.append(
        f"({settings}; {device}{with_16_bits}, "
        f"{about['threads']} threads, load {about['load_before']} "
        f"before; torch {about['torch']}, {about['date']}"
        f"{'; QUICK: the figures mean nothing' if record['quick'] else ''})"
    )
    return "\n".join(lines)


def amount(value: float) -> str:
    """Three digits, or all of them before the point."""
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    if abs(value) >= 0.001:
        return f"{value:.3g}"
    return f"{value:.1e}"
