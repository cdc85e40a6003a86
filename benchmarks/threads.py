"""How AUROC and `find` share their work among threads, and `find` among processes."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from transformers import LlamaConfig

from benchmarks import auroc as auroc_benchmark
from benchmarks.find import bare_decoder
from benchmarks.measure import Options, Result, command, in_turns, limited_to
from benchmarks.models import random_concept, random_model
from sordino.expertise.auroc import auroc
from sordino.expertise.find import find_experts
from sordino.expertise.sweep import SweepSettings
from sordino.models.ranks import sharing
from sordino.progress import hushed

_VOCABULARY = 2000
_SENTENCES = 125
_SWEEPS = 3  # that processes time together
_WITHIN_S = 300


def shape(*, quick: bool) -> LlamaConfig:
    """Eight of SmolLM2's layers with a small vocabulary; quick: tiny."""
    width = 64 if quick else 576
    return LlamaConfig(
        vocab_size=_VOCABULARY,
        hidden_size=width,
        intermediate_size=192 if quick else 1536,
        num_hidden_layers=8,
        num_attention_heads=width // 64,
        num_key_value_heads=1,
    )


def on_threads(threads: int, work: Callable[[], Any]) -> Callable[[], None]:
    """Do it on so many threads."""

    def limited() -> None:
        with limited_to(threads):
            work()

    return limited


def together(quick: bool) -> None:
    """Find among the processes that torchrun started, some times, and print the seconds."""
    torch.set_num_threads(1)
    opened = random_model("threads", shape(quick=quick))
    concept = random_concept(40 if quick else _SENTENCES, _VOCABULARY)
    seconds = []
    with sharing("cpu") as (ranks, _), hushed():
        for _ in range(1 + _SWEEPS):
            ranks.wait()
            started = time.perf_counter()
            find_experts(opened, concept)
            ranks.wait()
            seconds.append(time.perf_counter() - started)
    if ranks.first:
        print(json.dumps(seconds[1:]))


def of_processes(options: Options, most: int) -> dict[str, list[float]]:
    """The seconds of `find` shared by processes of one thread each, by their number."""
    code = f"from benchmarks.threads import together; together({options.quick})"
    script = options.work / "together.py"
    script.write_text(code, encoding="utf-8")
    found = {}
    for number in {most} if options.quick else sorted({1, most}):
        # The script's folder is where torchrun's processes look for modules, and not this one.
        done = subprocess.run(
            [
                *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
                *(f"--nproc-per-node={number}", str(script)),
            ],
            check=True,
            capture_output=True,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        name = f"find, {_SENTENCES} sentences, processes of one thread: {number}"
        found[name] = json.loads(done.stdout.splitlines()[-1])
    script.unlink()
    return found


def run(options: Options) -> Result:
    """The same work on one thread and on all, and in one process and in several."""
    most = torch.get_num_threads()
    data = auroc_benchmark.data(*((125, 256) if options.quick else (2000, 4096)))
    opened = random_model("threads", shape(quick=options.quick))
    concept = random_concept(40 if options.quick else _SENTENCES, _VOCABULARY)
    settings = SweepSettings()
    ways: dict[str, Callable[[], Any]] = {}
    for number in sorted({1, most}):
        for name, work in (
            ("AUROC, 2,000 × 4,096", partial(auroc, *data)),
            (f"bare decoder, {_SENTENCES} sentences", bare_decoder(opened, concept, settings)),
            (
                f"find, {_SENTENCES} sentences",
                partial(find_experts, opened, concept, settings=settings),
            ),
        ):
            ways[f"{name}, threads: {number}"] = on_threads(number, work)
    seconds, _ = in_turns(ways, options.rounds(3), within_s=_WITHIN_S)
    seconds |= of_processes(options, most)
    about = {"model": "random, 8 layers of SmolLM2's shape", "dtype": "float32", "seed": 0}
    return Result("threads", about, seconds, [])


if __name__ == "__main__":
    command(run)
