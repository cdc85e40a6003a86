"""Whole commands on a machine that does something else, too, against the same on a quiet one.

Beside them runs one process per core that never rests. A program that has its fair share of such a
machine takes twice its quiet time.
"""

import os
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
    """So many processes that each keep a core busy."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
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


def commands(options: Options) -> dict[str, list[str | Path]]:
    """The commands that are timed, each with what it needs made ready."""
    model: str | Path = "kit:smollm2"
    concept, prompts = "insults", "kit"
    count = "60"
    if options.quick:
        model, count = options.work / "tiny", "20"
        opened = random_model("tiny", SHAPES["tiny"])
        opened.model.save_pretrained(model)
        opened.tokenizer.save_pretrained(model)
        table = options.work / "words.csv"
        rows = [f"{index % 2},{text}" for index, text in enumerate(sentences(60, 1000))]
        table.write_text("\n".join(["label,text", *rows]) + "\n")
        lines = options.work / "prompts.txt"
        lines.write_text("\n".join(sentences(4, 1000, longest=8)) + "\n")
        concept, prompts = str(table), str(lines)
    expertise = options.work / "busy.expertise.safetensors"
    sizes = ["--max-per-class", count]
    found = ["find", model, "--concept", concept, *sizes, "--force", "-o"]
    sordino([*found, expertise], {})
    judged = ["--measure", "toxicity", "--scorer", "alt-profanity-check", "--prompts", prompts]
    return {
        "find": [*found, options.work / "found.safetensors"],
        "find --attribution": [
            *(*found, options.work / "attributed.safetensors"),
            *("--attribution", "--attribution-per-class", count),
        ],
        "bake": ["bake", model, expertise, "--force", "-o", _baked(options, model)],
        "evaluate": [
            *("evaluate", model, *judged, "--max-prompts", "4" if options.quick else "8"),
            *("--force", "-o", options.work / "evaluation.json"),
        ],
    }


def _baked(options: Options, model: str | Path) -> Path:
    return options.work / ("baked" if isinstance(model, Path) else "baked.gguf")


def run(options: Options) -> Result:
    """Commands beside a busy process per core; threads that spin while they wait are the rival."""
    passive, active = {"OMP_WAIT_POLICY": "passive"}, {"OMP_WAIT_POLICY": "active"}
    ways: dict[str, Callable[[], None]] = {}
    named = commands(options)
    if options.quick:  # each is a process that imports everything
        named = {_RIVAL: named[_RIVAL]}
    for name, arguments in named.items():
        work = partial(sordino, arguments, passive)
        ways |= {f"{name}, quiet": work, f"{name}, busy": partial(beside, _CORES, work)}
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
    figures += [
        Figure(
            f"{_RIVAL}: busy / quiet, spinning",
            ratio(seconds, f"{busy}, spinning", f"{quiet}, spinning"),
        ),
        Figure(f"{_RIVAL}: quiet / quiet, spinning", ratio(seconds, quiet, f"{quiet}, spinning")),
    ]
    about = {
        "model": "random" if options.quick else "SmolLM2-135M-Instruct",
        "busy processes": _CORES,
        "torch threads": torch.get_num_threads(),
        "seed": 0,
    }
    return Result("busy", about, seconds, figures)


if __name__ == "__main__":
    command(run)
