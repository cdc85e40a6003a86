"""Whole commands on a machine that does something else, too, against the same on a quiet one.

Beside them runs one process per core that never rests. A program that has its fair share of such a
machine takes twice its quiet time.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch

from benchmarks.measure import Figure, Options, Result, command, in_turns, ratio
from benchmarks.models import SHAPES, random_model, sentences

_CORES = os.cpu_count() or 1
_RIVAL = "find"
"""The command that is also timed with threads that spin while they wait."""


@contextmanager
def others(count: int) -> Iterator[None]:
    """So many processes that each keep a core busy, and end with this one if it is killed."""
    code = f"import os\nwhile os.getppid() == {os.getpid()}: pass"
    loops = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(count)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def sordino(arguments: Sequence[str | Path], environment: Mapping[str, str]) -> None:
    """One command in a process of its own."""
    subprocess.run(
        [sys.executable, "-m", "sordino", *arguments],
        check=True,
        env={**os.environ, **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def beside(count: int, work: Callable[[], None]) -> None:
    """The work beside so many busy processes."""
    with others(count):
        work()


def commands(work: Path) -> dict[str, list[str | Path]]:
    """The commands that are timed, each with what it needs made ready in a folder."""
    model, count = "kit:smollm2", "60"
    expertise = work / "busy.expertise.safetensors"
    found = ["find", model, "--concept", "insults", "--max-per-class", count, "--force", "-o"]
    sordino([*found, expertise], {})
    judged = ["--measure", "toxicity", "--scorer", "alt-profanity-check", "--prompts", "kit"]
    return {
        _RIVAL: [*found, work / "found.safetensors"],
        "find --attribution": [
            *(*found, work / "attributed.safetensors"),
            *("--attribution", "--attribution-per-class", count),
        ],
        "bake": ["bake", model, expertise, "--force", "-o", work / "baked.gguf"],
        "evaluate": [
            *("evaluate", model, *judged, "--max-prompts", "8"),
            *("--force", "-o", work / "evaluation.json"),
        ],
    }


def quick_command(work: Path) -> dict[str, list[str | Path]]:
    """One command on a random model; of each, most is a process that imports everything."""
    model, table = work / "tiny", work / "words.csv"
    opened = random_model("tiny", SHAPES["tiny"])
    opened.model.save_pretrained(model)
    opened.tokenizer.save_pretrained(model)
    rows = [f"{index % 2},{text}" for index, text in enumerate(sentences(60, 1000))]
    table.write_text("\n".join(["label,text", *rows]) + "\n")
    sizes = ["--max-per-class", "20", "--force", "-o", work / "found.safetensors"]
    return {_RIVAL: ["find", model, "--concept", table, *sizes]}


def run(options: Options) -> Result:
    """Commands beside a busy process per core; threads that spin while they wait are the rival."""
    passive, active = {"OMP_WAIT_POLICY": "passive"}, {"OMP_WAIT_POLICY": "active"}
    ways: dict[str, Callable[[], None]] = {}
    folder = options.work / "busy"
    folder.mkdir(exist_ok=True)
    named = quick_command(folder) if options.quick else commands(folder)
    for name, arguments in named.items():
        work = partial(sordino, arguments, passive)
        ways |= {f"{name}, quiet": work, f"{name}, busy": partial(beside, _CORES, work)}
    if not options.quick:
        work = partial(sordino, named[_RIVAL], active)
        ways |= {
            f"{_RIVAL}, quiet, spinning": work,
            f"{_RIVAL}, busy, spinning": partial(beside, _CORES, work),
        }
    seconds, _ = in_turns(ways, options.rounds(3), warm=False)
    figures = [
        Figure(
            f"{name}: busy / quiet", ratio(seconds, f"{name}, busy", f"{name}, quiet"), at_most=2.5
        )
        for name in named
    ]
    quiet, busy = (f"{_RIVAL}, {how}" for how in ("quiet", "busy"))
    if not options.quick:
        figures += [
            Figure(
                f"{_RIVAL}: busy / quiet, spinning",
                ratio(seconds, f"{busy}, spinning", f"{quiet}, spinning"),
            ),
            Figure(
                f"{_RIVAL}: quiet / quiet, spinning", ratio(seconds, quiet, f"{quiet}, spinning")
            ),
        ]
    shutil.rmtree(folder)
    about = {
        "model": "random" if options.quick else "SmolLM2-135M-Instruct",
        "busy processes": _CORES,
        "torch threads": torch.get_num_threads(),
        "seed": 0,
    }
    return Result("busy", about, seconds, figures)


if __name__ == "__main__":
    command(run)
