"""AUROC of a site's neurons: exact ways against each other and against sorting alone."""

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import rankdata

from benchmarks.chunked import by_scikit_learn, workers
from benchmarks.measure import Figure, Options, Result, command, in_turns, ratio
from sordino.expertise.auroc import auroc, strongest

_BLOCK = 128


def data(sentences: int, neurons: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Responses, those of every other neuron with ties, and labels."""
    generator = np.random.default_rng(0)
    responses = generator.standard_normal((sentences, neurons)).astype(np.float32)
    responses[:, ::2] = np.round(responses[:, ::2], 1)
    return responses, generator.random(sentences) < 0.5


def by_scipy(responses: NDArray[np.float32], labels: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Mid-ranks by scipy, block by block."""
    positive = int(labels.sum())
    pairs = positive * (len(labels) - positive)
    result = np.empty(responses.shape[1])
    for start in range(0, responses.shape[1], _BLOCK):
        ranks = rankdata(responses[:, start : start + _BLOCK], axis=0)
        u = ranks[labels].sum(axis=0) - positive * (positive + 1) / 2
        result[start : start + _BLOCK] = u / pairs
    return result


def by_argsort(responses: NDArray[np.float32], labels: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Mid-ranks by numpy's argsort, block by block."""
    sentences, neurons = responses.shape
    positive = int(labels.sum())
    pairs = positive * (sentences - positive)
    result = np.empty(neurons)
    places = np.arange(sentences)
    for start in range(0, neurons, _BLOCK):
        columns = np.ascontiguousarray(responses[:, start : start + _BLOCK].T)
        order = np.argsort(columns, axis=1)
        values = np.take_along_axis(columns, order, axis=1)
        begins = np.ones(values.shape, bool)
        begins[:, 1:] = values[:, 1:] != values[:, :-1]
        first = np.maximum.accumulate(np.where(begins, places, 0), axis=1)
        ends = np.ones(values.shape, bool)
        ends[:, :-1] = begins[:, 1:]
        last = np.where(ends, places, sentences)[:, ::-1]
        last = np.minimum.accumulate(last, axis=1)[:, ::-1]
        ranks = (first + last) / 2 + 1
        u = (ranks * labels[order]).sum(axis=1) - positive * (positive + 1) / 2
        result[start : start + _BLOCK] = u / pairs
    return result


def sort_alone(responses: NDArray[np.float32]) -> None:
    """The floor: whoever ranks by comparing has to sort each neuron's responses; one thread."""
    rows = np.ascontiguousarray(responses.T)
    rows.sort(axis=1)


def run(options: Options) -> Result:
    """AUROC of 4,096 neurons over 2,000 sentences, float32, every other neuron with ties."""
    sentences, neurons = (200, 256) if options.quick else (2000, 4096)
    responses, labels = data(sentences, neurons)
    half = torch.from_numpy(responses).bfloat16()
    with workers() as pool:
        ways = {
            "sorting alone, one thread (floor)": lambda: sort_alone(responses),
            "sordino": lambda: auroc(responses, labels),
            "sordino, bfloat16": lambda: auroc(half, labels),
            "sordino, strongest sentences": lambda: strongest(responses),
            "numpy argsort, blocks": lambda: by_argsort(responses, labels),
            "scipy rankdata, blocks": lambda: by_scipy(responses, labels),
            "scikit-learn, ten columns, two processes": (
                lambda: by_scikit_learn(responses, labels, pool)
            ),
        }
        seconds, given = in_turns(ways, options.rounds(9))
    floor, ours, *_, argsort, scipy, sklearn = ways
    for name in (argsort, scipy, sklearn):
        np.testing.assert_allclose(given[ours], given[name], atol=1e-12)
    settings = {
        "sentences": f"{sentences:,}",
        "neurons": f"{neurons:,}",
        "positive": f"{int(labels.sum()):,}",
        "seed": 0,
    }
    figures = [
        Figure("chunked scikit-learn / sordino", ratio(seconds, sklearn, ours), at_least=20),
        Figure("sordino / sorting alone on one thread", ratio(seconds, ours, floor), at_most=2),
        Figure("scipy rankdata / sordino", ratio(seconds, scipy, ours)),
        Figure("numpy argsort / sordino", ratio(seconds, argsort, ours)),
    ]
    return Result("auroc", settings, seconds, figures)


if __name__ == "__main__":
    command(run)
