"""How AUROC, finding, attribution and generation grow with what they are given.

On one thread, in seconds of processor time, so that other programs hardly touch the figures. Each
series is warmed. Each round gives an exponent: that of the power law fitted to its times by least
squares on the logarithms, over all sizes or the two largest. The table has the mean of the rounds
and Student's interval.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from scipy import stats
from transformers import LlamaConfig

from benchmarks import auroc as auroc_benchmark
from benchmarks.generation import ours
from benchmarks.measure import Figure, Options, Result, command, in_turns, limited_to
from benchmarks.models import random_model, sentences
from benchmarks.parts import attributing
from sordino.concepts.concept import Concept
from sordino.expertise.attribution import AttributionSettings, passages
from sordino.expertise.auroc import auroc
from sordino.expertise.find import find_experts
from sordino.expertise.sweep import BATCH_TOKENS, SweepSettings
from sordino.models.generation import encode_prompts, plan

_VOCABULARY = 2000
_USUAL = 125  # sentences
_LONGEST = 16  # their tokens
_WITHIN_S = 300


@dataclass(frozen=True)
class Series:
    """One thing at several sizes.

    Args:
        what: What is done.
        of: What there is more and more of.
        ways: By how much of it, in rising order, what to call.
    """

    what: str
    of: str
    ways: Mapping[int, Callable[[], Any]]

    def name(self, size: int) -> str:
        """What the way of that size is called."""
        return f"{self.what}, {size:,} {self.of}"


def shape(*, layers: int = 2, neurons: int = 384) -> LlamaConfig:
    """Narrow layers, so that there can be many of them, and many sentences."""
    return LlamaConfig(
        vocab_size=_VOCABULARY,
        hidden_size=128,
        intermediate_size=neurons,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
    )


def concept(count: int) -> Concept:
    """So many short sentences of random words, half of them called positive."""
    texts = sentences(count, _VOCABULARY, longest=_LONGEST)
    return Concept("random", texts[: count // 2], texts[count // 2 :], "random words")


def sizes(smallest: int, options: Options) -> tuple[int, ...]:
    """The smallest size, ten and a hundred times it; quick: not the largest."""
    return (smallest, 10 * smallest, 100 * smallest)[: 2 if options.quick else 3]


def of_auroc(options: Options) -> list[Series]:
    """AUROC by sentences and by neurons."""

    def on(sentences: int, neurons: int) -> Callable[[], Any]:
        return partial(auroc, *auroc_benchmark.data(sentences, neurons))

    return [
        Series("AUROC", "sentences", {n: on(n, 256) for n in sizes(800, options)}),
        Series("AUROC", "neurons", {n: on(500, n) for n in sizes(1600, options)}),
    ]


def of_find(options: Options) -> list[Series]:
    """`find` by sentences, layers and neurons."""

    def on(count: int, config: LlamaConfig) -> Callable[[], Any]:
        opened = random_model("growth", config)
        return partial(find_experts, opened, concept(count))

    layers = {n: on(_USUAL, shape(layers=n)) for n in sizes(2, options)}
    neurons = {n: on(_USUAL, shape(neurons=n)) for n in sizes(600, options)}
    return [
        Series("find", "sentences", {n: on(n, shape()) for n in sizes(100, options)}),
        Series("find", "layers", layers),
        Series("find", "neurons per projection", neurons),
    ]


def of_attribution(options: Options) -> list[Series]:
    """Attribution by sentences."""
    opened = random_model("growth", shape())

    def on(count: int) -> Callable[[], Any]:
        settings = AttributionSettings(per_class=count // 2)
        work = passages(
            opened,
            concept(count),
            settings,
            SweepSettings().max_tokens,
            BATCH_TOKENS,
        )
        return partial(attributing, opened, work)

    return [Series("attribution", "sentences", {n: on(n) for n in sizes(40, options)})]


def of_generation(options: Options) -> list[Series]:
    """Continuations of 20 tokens of 8 prompts, by their number."""
    opened = random_model("growth", shape())
    texts = list(sentences(8, _VOCABULARY, longest=_LONGEST))
    prompts = encode_prompts(opened, texts, max_tokens=128, new_tokens=20)
    ways = {
        count: partial(
            ours,
            opened,
            plan(opened, prompts, continuations=count, new_tokens=20, batch_tokens=8192),
        )
        for count in sizes(5, options)
    }
    return [Series("generation", "continuations per prompt", ways)]


def exponent(
    sizes: Sequence[int], rounds: Sequence[Sequence[float]]
) -> tuple[float, float | None, float | None]:
    """The power with which times grow with sizes.

    Args:
        sizes: The sizes.
        rounds: In each round, the seconds at each size.

    Returns:
        The mean of the rounds' exponents and the ends of its 95 % interval, None for one round.
    """
    slopes = [np.polyfit(np.log(sizes), np.log(seconds), 1)[0] for seconds in rounds]
    mean = float(np.mean(slopes))
    if len(slopes) == 1:
        return mean, None, None
    half = float(stats.t.ppf(0.975, len(slopes) - 1) * stats.sem(slopes))
    return mean, mean - half, mean + half


def run(options: Options) -> Result:
    """How the parts grow: exponents of power laws."""
    parts = of_auroc, of_find, of_attribution, of_generation
    series = [one for part in parts for one in part(options)]
    ways = {one.name(size): way for one in series for size, way in one.ways.items()}
    with limited_to(1):
        for one in series:
            next(iter(one.ways.values()))()  # compiles, and takes memory that is used again
        seconds, _ = in_turns(
            ways,
            options.rounds(5),
            warm=False,
            within_s=_WITHIN_S,
            clock=time.process_time,
        )
    figures = []
    for one in series:
        grown = list(one.ways)
        rounds = list(zip(*(seconds[one.name(size)] for size in grown), strict=True))
        for first in dict.fromkeys((0, len(grown) - 2)):
            value, low, high = exponent(grown[first:], [times[first:] for times in rounds])
            of = f"{grown[first]:,} to {grown[-1]:,} {one.of}"
            figures.append(Figure(f"{one.what}, {of}: exponent", value, "", low=low, high=high))
    about = {
        "model": "random, 2 layers of 128 dimensions and 384 neurons unless stated otherwise",
        "sentences": f"{_USUAL} of at most {_LONGEST} tokens unless stated otherwise",
        "AUROC": "of 256 neurons, or 500 sentences",
        "dtype": "float32",
        "times": "processor time on one thread",
        "seed": 0,
    }
    return Result("growth", about, seconds, figures)


if __name__ == "__main__":
    command(run)
