"""Turn texts into tokens, and tokens into batches that need no padding."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sordino.errors import UserError
from sordino.files import counted, printable
from sordino.models.open import OpenModel
from sordino.progress import note


@dataclass(frozen=True)
class Placed:
    """The tokens of a text, with those before it.

    Args:
        ids: All tokens.
        start: Where the text's own tokens begin; they reach to the end.
    """

    ids: tuple[int, ...]
    start: int = 0


@dataclass(frozen=True)
class Batch:
    """Sequences of one length.

    Args:
        indices: The texts' indices.
        input_ids: int64 [len(indices), length].
        starts: Where each text's own tokens begin; () where all tokens are the texts' own.
    """

    indices: tuple[int, ...]
    input_ids: torch.Tensor
    starts: tuple[int, ...] = ()

    @property
    def tokens(self) -> int:
        """The number of tokens of the batch."""
        return self.input_ids.numel()


def encode(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_tokens: int
) -> list[list[int]]:
    """Token ids of each text, cut at `max_tokens`, with the tokenizer's own special tokens.

    Raises:
        UserError: A text has no tokens.
    """
    encoded = tokenizer(
        list(texts), truncation=True, max_length=max_tokens, return_attention_mask=False
    )["input_ids"]
    for number, ids in enumerate(encoded, start=1):
        if not ids:
            raise UserError(f"Text {number} of {len(texts)} has no tokens: remove it.")
    return list(encoded)


def encode_for(
    opened: OpenModel, texts: Sequence[str], max_tokens: int, nouns: str = ""
) -> list[list[int]]:
    """Token ids of each text as `encode` gives them, also cut at the model's positions.

    Args:
        opened: The model.
        texts: The texts.
        max_tokens: They are cut at this many tokens.
        nouns: What the note about cut texts calls them, in the plural; "" to note only those that
            the model has no positions for.

    Raises:
        UserError: A text has no tokens, or one for which the model has no embedding.
    """
    room = positions(opened.model)
    most = max_tokens if room is None else min(max_tokens, room)
    if nouns or most < max_tokens:
        encoded = encode_noted(opened, texts, most, nouns or "texts")
    else:
        encoded = encode(opened.tokenizer, texts, most)
    refuse_unknown(opened, encoded)
    return encoded


def encode_noted(
    opened: OpenModel, texts: Sequence[str], max_tokens: int, nouns: str
) -> list[list[int]]:
    """Token ids of each text as `encode` gives them; a note says how many are cut.

    Args:
        opened: The model.
        texts: The texts.
        max_tokens: They are cut at this many tokens.
        nouns: What the note calls them, in the plural.

    Raises:
        UserError: A text has no tokens.
    """
    encoded = encode(opened.tokenizer, texts, max_tokens)
    cut = count_cut(opened.tokenizer, texts, encoded, max_tokens)
    note_cut(opened, cut, len(texts), nouns, max_tokens)
    return encoded


def count_cut(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    encoded: Sequence[Sequence[int]],
    max_tokens: int,
) -> int:
    """How many of the texts that `encode` gave have more tokens than those."""
    full = [text for text, ids in zip(texts, encoded, strict=True) if len(ids) >= max_tokens]
    whole = tokenizer(full, return_attention_mask=False, verbose=False)["input_ids"] if full else []
    return sum(len(ids) > max_tokens for ids in whole)


def note_cut(opened: OpenModel, cut: int, of: int, nouns: str, max_tokens: int) -> None:
    """Note that texts are cut, if any is.

    Args:
        opened: The model.
        cut: How many texts are.
        of: How many there are.
        nouns: What they are, in the plural.
        max_tokens: How many tokens are left of each.
    """
    if cut:
        note(
            f"{opened.ref.name} reads only {max_tokens:,} tokens of long {nouns}: {cut:,} of "
            f"{of:,} cut"
        )


def positions(model: PreTrainedModel) -> int | None:
    """The most tokens for which the model has positions; None if there is no limit."""
    config = model.config.get_text_config(decoder=True)
    said = getattr(config, "max_position_embeddings", None) or getattr(config, "max_seq_len", None)
    limits = [said] if isinstance(said, int) and said > 0 else []  # XLNet says -1: no limit
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            # RoBERTa counts positions from the one after the padding's.
            skipped = 0 if module.padding_idx is None else module.padding_idx + 1
            limits.append(module.num_embeddings - skipped)
    return min(limits, default=None)


def refuse_unknown(opened: OpenModel, encoded: Sequence[Sequence[int]]) -> None:
    """Raise `UserError` if a text has a token for which the model has no embedding."""
    embedding = opened.model.get_input_embeddings()
    known = getattr(embedding, "num_embeddings", None)
    if not isinstance(known, int):
        return
    beyond = sorted({token for ids in encoded for token in ids if token >= known})
    if beyond:
        names = opened.tokenizer.convert_ids_to_tokens(beyond[:3])
        shown = ", ".join(
            f"'{printable(str(name), 40)}' ({token})"
            for name, token in zip(names, beyond, strict=False)
        )
        raise UserError(
            f"The tokenizer of {opened.ref.name} gives {counted(len(beyond), 'token')} for which "
            f"the model has no embedding, such as {shown}; it has {known:,}, numbered from 0: use "
            "the tokenizer that belongs to the model, or resize the model's embeddings "
            "(resize_token_embeddings) and train them."
        )


def equal_length_batches(
    encoded: Sequence[Sequence[int] | Placed], batch_tokens: int
) -> list[Batch]:
    """Group sequences of equal length into batches of at most `batch_tokens` tokens.

    The longest come first, so that memory peaks at once; within a length the order stays. A
    sequence longer than `batch_tokens` is a batch of its own.
    """
    placed = [one if isinstance(one, Placed) else Placed(tuple(one)) for one in encoded]
    by_length: dict[int, list[int]] = {}
    for index, one in enumerate(placed):
        by_length.setdefault(len(one.ids), []).append(index)
    batches = []
    for length in sorted(by_length, reverse=True):
        rows = max(1, batch_tokens // length)
        for first in range(0, len(by_length[length]), rows):
            indices = tuple(by_length[length][first : first + rows])
            ids = torch.tensor([placed[i].ids for i in indices], dtype=torch.int64)
            starts = tuple(placed[i].start for i in indices)
            batches.append(Batch(indices, ids, starts if any(starts) else ()))
    return batches
