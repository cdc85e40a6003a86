"""Baking a folder against copying it, both flushed to the disk."""

import gc
import os
import shutil
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from benchmarks.measure import Figure, Options, Result, command, in_turns, ratio
from benchmarks.models import SHAPES, random_model
from sordino.edits import bake
from sordino.edits.shard import Change, change_
from sordino.interventions import Dampening
from sordino.models.open import OpenModel

_WITHIN_S = 300
_PIECE = 2**19  # weights changed at a time: as many as `bake` takes


def model_folder(folder: Path, shape: str, shard: str) -> Dampening:
    """Save random weights of a real shape in bfloat16, and give factors for half of the neurons."""
    shutil.rmtree(folder, ignore_errors=True)
    opened = random_model(shape, SHAPES[shape], dtype=torch.bfloat16)
    opened.model.save_pretrained(folder, max_shard_size=shard)
    opened.tokenizer.save_pretrained(folder)
    return some_factors(opened)


def some_factors(opened: OpenModel) -> Dampening:
    """Random factors for about half of the neurons, and 1 for the others."""
    generator = np.random.default_rng(0)
    factors = {}
    for site in opened.sites:
        values = generator.random(site.neurons, dtype=np.float32)
        factors[site.path] = np.where(generator.random(site.neurons) < 0.5, 1, values)
    return Dampening(factors, "aura")


def by_transformers(source: Path, dampening: Dampening, target: Path, shard: str) -> None:
    """The ordinary way: load, change, save."""
    model = AutoModelForCausalLM.from_pretrained(source, dtype="auto")
    dampening.bake_into(model)
    model.save_pretrained(target, max_shard_size=shard)


def multiplication() -> dict[str, Callable[[], None]]:
    """Changing 1 GB of weights in the pieces that `bake` takes, against copying it."""
    threads = torch.get_num_threads()
    weights = torch.zeros(2**29, dtype=torch.bfloat16)
    weights.normal_(generator=torch.Generator().manual_seed(0))
    out = torch.empty_like(weights)
    change = Change(torch.rand(_PIECE // 2048, 1))
    pieces = range(0, weights.numel(), _PIECE)

    def in_threads(work: Callable[[int], Any]) -> None:
        torch.set_num_threads(1)
        try:
            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(work, pieces))
        finally:
            torch.set_num_threads(threads)

    def piece(tensor: torch.Tensor, start: int) -> torch.Tensor:
        return tensor[start : start + _PIECE]

    return {
        "multiplying 1 GB in place": lambda: in_threads(
            lambda start: change_(piece(weights, start).view(-1, 2048), change)
        ),
        "copying 1 GB in memory": lambda: in_threads(
            lambda start: piece(out, start).copy_(piece(weights, start))
        ),
    }


def run(options: Options) -> Result:
    """Baking a folder of 2.2 GB, from the call to bytes on the disk."""
    shape, shard = ("tiny", "100KB") if options.quick else ("TinyLlama-1.1B", "500MB")
    source, target = options.work / "model", options.work / "copy"
    dampening = model_folder(source, shape, shard)
    gc.collect()
    size = sum(file.stat().st_size for file in source.iterdir())
    subprocess.run(["cat", *source.iterdir()], check=True, stdout=subprocess.DEVNULL)

    def flushed(work: Callable[[], Any]) -> Callable[[], None]:
        def both() -> None:
            work()
            os.sync()

        return both

    def clean() -> None:
        shutil.rmtree(target, ignore_errors=True)
        os.sync()

    ways = {
        "cp -r and sync (floor)": flushed(
            lambda: subprocess.run(["cp", "-r", source, target], check=True)
        ),
        "sordino bake": flushed(lambda: bake(source, dampening, target)),
        "transformers: load, change, save": flushed(
            lambda: by_transformers(source, dampening, target, shard)
        ),
    }
    seconds, _ = in_turns(ways, options.rounds(5), between=clean, within_s=_WITHIN_S)
    clean()
    floor, ours, ordinary = ways
    _same_weights(source, dampening, options.work, shard)
    shutil.rmtree(source)
    if not options.quick:
        more, _ = in_turns(multiplication(), options.rounds(7))
        seconds |= more
    figures = [
        Figure("sordino bake / cp -r and sync", ratio(seconds, ours, floor), at_most=1.3),
        Figure("load, change, save / sordino bake", ratio(seconds, ordinary, ours)),
        Figure("sordino bake", size / 1e9 / min(seconds[ours]), "GB/s, at best"),
    ]
    if not options.quick:
        multiplied, copied = more
        figures.append(
            Figure("multiplying / copying in memory", ratio(seconds, multiplied, copied))
        )
    about = {
        "shape": shape,
        "dtype": "bfloat16",
        "size": f"{size / 1e9:.2f} GB",
        "shards": shard,
        "source": "in the page cache",
    }
    return Result("bake", about, seconds, figures)


def _same_weights(source: Path, dampening: Dampening, work: Path, shard: str) -> None:
    """Make sure that the quick way and the ordinary one write the same."""
    ours, theirs = work / "ours", work / "theirs"
    try:
        bake(source, dampening, ours)
        by_transformers(source, dampening, theirs, shard)
        # Transformers may cut its shards elsewhere than those that it once read.
        written = {name: file for file in theirs.glob("*.safetensors") for name in _names(file)}
        for file in ours.glob("*.safetensors"):
            for name in _names(file):
                with safe_open(file, "pt") as a, safe_open(written[name], "pt") as b:
                    if not torch.equal(a.get_tensor(name), b.get_tensor(name)):
                        raise AssertionError(f"{name} differs from what transformers writes")
    finally:
        shutil.rmtree(ours, ignore_errors=True)
        shutil.rmtree(theirs, ignore_errors=True)


def _names(file: Path) -> list[str]:
    with safe_open(file, "pt") as opened:
        return list(opened.keys())


if __name__ == "__main__":
    command(run)
