"""Texts to tokens, and tokens to batches that need no padding."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase

from sordino.errors import UserError


@dataclass(frozen=True)
class Batch:
    """Sequences of one length.

    Args:
        indices: Which of the texts these are.
        input_ids: int64 [len(indices), length].
    """

    indices: tuple[int, ...]
    input_ids: torch.Tensor

    @property
    def tokens(self) -> int:
        """How many tokens the batch has."""
        return self.input_ids.numel()


def encode(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_tokens: int
) -> list[list[int]]:
    """Token ids of each text, cut at `max_tokens`, with the tokenizer's own special tokens.

    Raises:
        UserError: A text gives no token at all.
    """
    encoded = tokenizer(
        list(texts), truncation=True, max_length=max_tokens, return_attention_mask=False
    )["input_ids"]
    for number, ids in enumerate(encoded, start=1):
        if not ids:
            raise UserError(f"Text {number} of {len(texts)} gives no token: it says nothing.")
    return list(encoded)


def equal_length_batches(encoded: Sequence[Sequence[int]], batch_tokens: int) -> list[Batch]:
    """Group sequences of equal length into batches of at most `batch_tokens` tokens.

    Longest first, so that the largest use of memory comes at once; within a length in the order
    given. A sequence longer than `batch_tokens` makes a batch by itself.
    """
    by_length: dict[int, list[int]] = {}
    for index, ids in enumerate(encoded):
        by_length.setdefault(len(ids), []).append(index)
    batches = []
    for length in sorted(by_length, reverse=True):
        rows = max(1, batch_tokens // length)
        for start in range(0, len(by_length[length]), rows):
            indices = tuple(by_length[length][start : start + rows])
            rows_ids = torch.tensor([list(encoded[i]) for i in indices], dtype=torch.int64)
            batches.append(Batch(indices, rows_ids))
    return batches
