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
from benchmarks.measure import Figure, Options, Result, command, has, in_turns, ratio
from benchmarks.models import SHAPES, random_concept, random_model
from sordino.concepts.concept import Concept
from sordino.concepts.load import load_concept
from sordino.expertise.auroc import auroc, strongest
from sordino.expertise.find import find_experts
from sordino.expertise.sweep import SweepSettings
from sordino.models.open import OpenModel, open_model
from sordino.models.tokenise import encode, equal_length_batches

DTYPES = ("float32", "bfloat16")
_WITHIN_S = 660
_ORDINARY = 128
"""So many sentences of each class for the ordinary way: two of its batches."""


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
        for batch in equal_length_batches(encoded, settings.at_once(opened.device))
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
    ways: dict[str, Callable[[], Any]] = {}
    models: dict[str, OpenModel] = {}
    concept = model_and_concept(options, DTYPES[0])[1]
    for dtype in DTYPES:
        models[dtype], _ = model_and_concept(options, dtype)
        ways[f"bare decoder, {dtype} (floor)"] = bare_decoder(models[dtype], concept, settings)
        ways[f"sordino find, {dtype}"] = partial(
            find_experts, models[dtype], concept, settings=settings
        )
    seconds, _ = in_turns(ways, options.rounds(3), warm=False, within_s=_WITHIN_S)
    bare, ours, bare_half, ours_half = ways

    # The ordinary way takes several times as long as all others: it is given fewer sentences.
    few, opened = concept.sampled(max_per_class=_ORDINARY, seed=0), models[DTYPES[0]]
    folder = options.work / "responses"
    of_few = f"{DTYPES[0]}, {len(few.sentences):,} sentences"
    theirs, ours_of_few = f"ordinary way, {of_few}", f"sordino find, {of_few}"
    rests: list[float] = []
    with workers() as pool:

        def by_files() -> ordinary.Found:
            shutil.rmtree(folder, ignore_errors=True)
            found = ordinary.find(opened, few, folder, pool)
            rests.append(found.after_forward_s)
            return found

        more, given = in_turns(
            {theirs: by_files, ours_of_few: partial(find_experts, opened, few, settings=settings)},
            options.rounds(3),
            warm=False,
        )
    shutil.rmtree(folder)
    found: ordinary.Found = given[theirs]
    again, _ = in_turns({"after": partial(after_forward, found, few)}, 5)
    seconds |= more
    seconds[f"{theirs}: responses to expertise"] = rests
    seconds[f"sordino, {of_few}: responses to expertise"] = again["after"]
    apart = max(
        float(np.abs(given[ours_of_few]["auroc"][site] - value).max())
        for site, value in found.auroc.items()
    )
    notes = [
        f"Largest difference of an AUROC between the two ways in float32: {apart:.2g} (padding "
        "changes how a sum is rounded)."
    ]
    amx = has("amx_bf16")
    if not amx:
        notes.append(
            "The bar for bfloat16 is one for processors with AMX, which this one lacks: it "
            f"{'multiplies by AVX-512 BF16' if has('avx512_bf16') else 'has no 16-bit products'}."
        )
    figures = [
        Figure("float32: sordino / bare decoder", ratio(seconds, ours, bare), at_most=1.1),
        Figure("float32: ordinary way / sordino", ratio(seconds, theirs, ours_of_few), at_least=4),
        Figure(
            "float32: responses to expertise, ordinary way / sordino",
            statistics.median(rests) / statistics.median(again["after"]),
            at_least=50,
        ),
        Figure("bfloat16: sordino / bare decoder", ratio(seconds, ours_half, bare_half)),
        Figure(
            "sordino: float32 / bfloat16",
            ratio(seconds, ours, ours_half),
            at_least=2 if amx else None,
        ),
    ]
    tokens = sum(
        len(ids)
        for ids in encode(models[DTYPES[0]].tokenizer, concept.sentences, settings.max_tokens)
    )
    about = {
        "model": "random" if options.quick else "SmolLM2-135M-Instruct",
        "sentences": f"{len(concept.sentences):,}",
        "tokens": f"{tokens:,}",
        "seed": 0,
    }
    return Result("find", about, seconds, figures, notes)


if __name__ == "__main__":
    command(run)
