"""Codes of a few bits in words of 32, as GPTQ, AWQ and compressed-tensors pack them."""

import numpy as np
import torch
from torch import Tensor

WORD = 32


def unpack(words: Tensor, bits: int, count: int) -> Tensor:
    """The codes in a stream of words: code k is bits k · b to (k + 1) · b − 1 of its row.

    Bits are counted from the lowest of the first word on; a code of 3 bits may lie in two words.

    Args:
        words: int32 [rows, words].
        bits: The size of a code, 8 at most.
        count: How many codes a row has; what follows them is padding.

    Returns:
        int32 [rows, count].
    """
    stream = np.unpackbits(words.contiguous().numpy().view(np.uint8), axis=1, bitorder="little")
    codes = stream[:, : count * bits].reshape(len(words), count, bits)
    values = np.packbits(codes, axis=2, bitorder="little")[..., 0]
    return torch.from_numpy(values.astype(np.int32))


def words_for(count: int, bits: int) -> int:
    """How many words one row of `count` codes takes."""
    return -(-count * bits // WORD)
