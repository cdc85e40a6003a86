"""Train the kit's SmolLM2 a little further, for questions about a model and its sibling.

`sordino study transfer` asks whether what was found on a model holds for one that was made of it by
more training. No such pair is on the package index, so this makes one: paragraphs of WikiText-2,
plain next-token training, all weights, float32.
"""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from sordino.files import new_folder
from sordino.kit import data_file
from sordino.models.open import OpenModel, open_model
from sordino.models.tokenise import encode, equal_length_batches
from sordino.progress import track

RATE, SHORTEST, LONGEST, HELD_OUT = 1e-4, 20, 128, 100


def paragraphs(split: str) -> list[str]:
    """The split's paragraphs of more than a few words, without its headings."""
    lines = data_file(f"wikitext-2/{split}.txt").read_text(encoding="utf-8").splitlines()
    return [text for line in lines if len((text := line.strip()).split()) > SHORTEST]


def loss(opened: OpenModel, ids: torch.Tensor) -> torch.Tensor:
    """The mean negative log-likelihood of every token but the first, nats."""
    ids = ids.to(opened.device)
    logits = opened.model(input_ids=ids, use_cache=False).logits[:, :-1]
    return cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten())


@torch.inference_mode()
def perplexity(opened: OpenModel, texts: Sequence[str], batch_tokens: int) -> float:
    """Of all tokens of the texts together."""
    batches = equal_length_batches(encode(opened.tokenizer, texts, LONGEST), batch_tokens)
    sizes = np.array([batch.input_ids[:, 1:].numel() for batch in batches])
    nats = np.array([loss(opened, batch.input_ids).item() for batch in batches])
    return math.exp(float((sizes * nats).sum() / sizes.sum()))


def main() -> None:
    """Train, say what that did to held-out paragraphs, and save a folder."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--model", default="kit:smollm2")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch-tokens", type=int, default=1024)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--output", type=Path, required=True)
    given = parser.parse_args()
    opened = open_model(given.model, device=given.device, dtype="float32")
    held_out = paragraphs("test")[:HELD_OUT]
    before = perplexity(opened, held_out, given.batch_tokens)
    batches = equal_length_batches(
        encode(opened.tokenizer, paragraphs("train"), LONGEST), given.batch_tokens
    )
    order = np.random.default_rng(given.seed).permutation(len(batches))[: given.steps]
    optimiser = torch.optim.AdamW(opened.model.parameters(), lr=RATE)
    with track("training", len(order), "steps") as advance:
        for index in order:
            loss(opened, batches[index].input_ids).backward()
            optimiser.step()
            optimiser.zero_grad()
            advance(1)
    after = perplexity(opened, held_out, given.batch_tokens)
    print(f"perplexity of {len(held_out)} held-out paragraphs: {before:.2f} -> {after:.2f}")
    with new_folder(given.output) as stage:
        opened.model.save_pretrained(stage)
        opened.tokenizer.save_pretrained(stage)


if __name__ == "__main__":
    main()
