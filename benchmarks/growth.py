"""How AUROC, `find` and generation grow with sentences, neurons, layers and threads."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig

from benchmarks import auroc as auroc_benchmark
from benchmarks.find import bare_decoder
from benchmarks.generation import ours
from benchmarks.measure import Options, Result, command, in_turns
from benchmarks.models import random_concept, random_model, sentences
from sordino.expertise.auroc import auroc
from sordino.expertise.find import find_experts
from sordino.expertise.ranks import sharing
from sordino.expertise.sweep import SweepSettings
from sordino.models.generation import encode_prompts, plan
from sordino.progress import hushed

_VOCABULARY = 2000
_USUAL = 125  # sentences
_SWEEPS = 3  # that processes time together
_WITHIN_S = 300


def shape(options: Options, *, layers: int = 8, neurons: int = 1536) -> LlamaConfig:
    """SmolLM2's layers with a small vocabulary; quick: tiny."""
    width = 64 if options.quick else 576
    return LlamaConfig(
        vocab_size=_VOCABULARY,
        hidden_size=width,
        intermediate_size=neurons // 8 if options.quick else neurons,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        num_key_value_heads=1,
    )


def on_threads(threads: int, work: Callable[[], Any]) -> Callable[[], None]:
    """Do it on so many threads."""

    def limited() -> None:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            work()
        finally:
            torch.set_num_threads(before)

    return limited


def of_auroc(options: Options, threads: list[int]) -> dict[str, Callable[[], Any]]:
    """AUROC by sentences, neurons and threads."""
    part = 16 if options.quick else 1
    ways: dict[str, Callable[[], Any]] = {}
    for count in (500, 1000, 2000, 4000, 8000):
        data = auroc_benchmark.data(count // part, 4096 // part)
        ways[f"AUROC, {count:,} sentences × 4,096 neurons"] = partial(auroc, *data)
    for neurons in (1024, 2048, 8192, 16384):
        data = auroc_benchmark.data(2000 // part, neurons // part)
        ways[f"AUROC, 2,000 sentences × {neurons:,} neurons"] = partial(auroc, *data)
    data = auroc_benchmark.data(2000 // part, 4096 // part)
    for number in threads:
        name = f"AUROC, 2,000 × 4,096, threads: {number}"
        ways[name] = on_threads(number, partial(auroc, *data))
    return ways


def of_find(options: Options, threads: list[int]) -> dict[str, Callable[[], Any]]:
    """`find` and the bare decoder on random models, by sentences, layers, neurons and threads."""
    part = 16 if options.quick else 1
    ways: dict[str, Callable[[], Any]] = {}
    settings = SweepSettings()

    def add(what: str, config: LlamaConfig, count: int, number: int | None = None) -> None:
        opened = random_model(what, config)
        concept = random_concept(max(40, count // part), _VOCABULARY)
        for name, work in (
            ("bare decoder", bare_decoder(opened, concept, settings)),
            ("find", partial(find_experts, opened, concept, settings=settings)),
        ):
            ways[f"{name}, {what}"] = on_threads(number or torch.get_num_threads(), work)

    for count in (_USUAL, 250, 500, 1000):
        add(f"{count:,} sentences", shape(options), count)
    for layers in (2, 4, 16):
        add(f"{layers} layers", shape(options, layers=layers), _USUAL)
    for neurons in (512, 3072, 6144):
        add(f"{neurons:,} neurons per projection", shape(options, neurons=neurons), _USUAL)
    for number in threads:
        add(f"{_USUAL} sentences, threads: {number}", shape(options), _USUAL, number)
    return ways


def of_generation(options: Options) -> dict[str, Callable[[], Any]]:
    """Continuations of 20 prompts, by their number."""
    opened = random_model("growth", shape(options))
    texts = list(sentences(2 if options.quick else 20, _VOCABULARY, longest=16))
    prompts = encode_prompts(opened, texts, max_tokens=128, new_tokens=20)
    return {
        f"generation, {count} continuations per prompt": partial(
            ours,
            opened,
            plan(opened, prompts, continuations=count, new_tokens=20, batch_tokens=8192),
        )
        for count in (1, 5, 25, 50)
    }


def together(quick: bool) -> None:
    """Find among the processes that torchrun started, some times, and print the seconds."""
    torch.set_num_threads(1)
    options = Options(quick, None, Path(), Path())
    opened = random_model("growth", shape(options))
    concept = random_concept(40 if quick else _USUAL, _VOCABULARY)
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
    code = f"from benchmarks.growth import together; together({options.quick})"
    script = options.work / "together.py"
    script.write_text(code, encoding="utf-8")
    found = {}
    for number in sorted({1, most}):
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
        name = f"find, {_USUAL} sentences, processes of one thread: {number}"
        found[name] = json.loads(done.stdout.splitlines()[-1])
    script.unlink()
    return found


def run(options: Options) -> Result:
    """How the parts grow."""
    most = torch.get_num_threads()
    threads = sorted({1, most})
    # The first of all compiles; these take so little that they can be warmed and repeated.
    seconds, _ = in_turns(of_auroc(options, threads), options.rounds(5))
    ways = of_find(options, threads) | of_generation(options)
    longer, _ = in_turns(ways, options.rounds(3), warm=False, within_s=_WITHIN_S)
    seconds |= longer
    seconds |= of_processes(options, most)
    about = {
        "model": "random, 8 layers of SmolLM2's shape unless stated otherwise",
        "sentences": f"{_USUAL} unless stated otherwise",
        "dtype": "float32",
        "seed": 0,
    }
    return Result("growth", about, seconds, [])


if __name__ == "__main__":
    command(run)
