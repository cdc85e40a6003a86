"""`find` end to end, against the bare decoder and against the ordinary way."""

import shutil
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

from benchmarks import ordinary
from benchmarks.chunked import workers
from benchmarks.measure import Figure, Options, Result, command, in_turns, ratio
from benchmarks.models import SHAPES, random_concept, random_model
from sordino.concepts.concept import Concept
from sordino.concepts.load import load_concept
from sordino.expertise.auroc import auroc, strongest
from sordino.expertise.find import SweepSettings, find_experts
from sordino.models.open import OpenModel, open_model
from sordino.models.tokenise import encode, equal_length_batches

DTYPES = ("float32", "bfloat16")


def model_and_concept(options: Options, dtype: str) -> tuple[OpenModel, Concept]:
    """SmolLM2 and 1,000 comments of the kit, half of them insulting; quick: random ones."""
    if options.quick:
        opened = random_model("tiny", SHAPES["tiny"], dtype=getattr(torch, dtype))
        return opened, random_concept(60, 1000)
    concept = load_concept("insults").sampled(max_per_class=500, seed=0)
    return open_model("kit:smollm2", dtype=dtype), concept


def bare_decoder(
    opened: OpenModel, concept: Concept, settings: SweepSettings
) -> Callable[[], None]:
    """The floor: the decoder alone over the same batches, nobody watching."""
    encoded = encode(opened.tokenizer, concept.sentences, settings.max_tokens)
    inputs = [
        batch.input_ids.to(opened.device)
        for batch in equal_length_batches(encoded, settings.batch_tokens)
    ]
    decoder = opened.model.get_decoder()

    @torch.inference_mode()
    def forward() -> None:
        for ids in inputs:
            decoder(input_ids=ids, use_cache=False)

    return forward


def after_forward(found: ordinary.Found, concept: Concept) -> None:
    """What `find` does of what comes after the forward."""
    for responses in found.responses.values():
        auroc(responses, concept.labels)
        strongest(responses)


def run(options: Options) -> Result:
    """Finding the neurons of a concept, the model already loaded."""
    settings = SweepSettings()
    folder = options.work / "responses"
    ways: dict[str, Callable[[], Any]] = {}
    concept = model_and_concept(options, DTYPES[0])[1]
    after: dict[str, list[float]] = {dtype: [] for dtype in DTYPES}
    tokens = 0
    with workers() as pool:

        def the_ordinary_way(opened: OpenModel, dtype: str) -> ordinary.Found:
            found = ordinary.find(opened, concept, folder, pool)
            after[dtype].append(found.after_forward_s)
            return found

        def clean() -> None:
            shutil.rmtree(folder, ignore_errors=True)

        for dtype in DTYPES:
            opened, _ = model_and_concept(options, dtype)
            tokens = sum(len(ids) for ids in encode(opened.tokenizer, concept.sentences, 128))
            ways[f"bare decoder, {dtype} (floor)"] = bare_decoder(opened, concept, settings)
            ways[f"sordino find, {dtype}"] = partial(
                find_experts, opened, concept, settings=settings
            )
            ways[f"ordinary way, {dtype}"] = partial(the_ordinary_way, opened, dtype)
        seconds, given = in_turns(ways, options.rounds(3), warm=False, between=clean)
        clean()
    notes = []
    figures = []
    for dtype in DTYPES:
        bare, ours, theirs = (
            f"{way}, {dtype}{end}"
            for way, end in (
                ("bare decoder", " (floor)"),
                ("sordino find", ""),
                ("ordinary way", ""),
            )
        )
        found = given[theirs]
        again, _ = in_turns({"after": partial(after_forward, found, concept)}, 5)
        seconds[f"ordinary way, {dtype}: responses to expertise"] = after[dtype]
        seconds[f"sordino, {dtype}: responses to expertise"] = again["after"]
        single = dtype == "float32"
        figures += [
            Figure(f"{dtype}: sordino / bare decoder", ratio(seconds, ours, bare), at_most=1.1),
            Figure(
                f"{dtype}: ordinary way / sordino",
                ratio(seconds, theirs, ours),
                at_least=4 if single else None,
            ),
            Figure(
                f"{dtype}: responses to expertise, ordinary way / sordino",
                statistics.median(after[dtype]) / statistics.median(again["after"]),
                at_least=50 if single else None,
            ),
        ]
        apart = max(
            float(np.abs(given[ours]["auroc"][site] - value).max())
            for site, value in found.auroc.items()
        )
        notes.append(
            f"Largest difference of an AUROC between the two ways in {dtype}: {apart:.2g} "
            "(padding changes how a sum is rounded)."
        )
    both = (f"sordino find, {DTYPES[0]}", f"sordino find, {DTYPES[1]}")
    figures.append(Figure("sordino: float32 / bfloat16", ratio(seconds, *both), at_least=2))
    about = {
        "model": "random" if options.quick else "SmolLM2-135M-Instruct",
        "sentences": f"{len(concept.sentences):,}",
        "tokens": f"{tokens:,}",
        "seed": 0,
    }
    return Result("find", about, seconds, figures, notes)


if __name__ == "__main__":
    command(run)
