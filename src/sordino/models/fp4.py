"""De-quantise 4-bit floats (E2M1) in blocks that share a scale, as in MXFP4 and NVFP4."""

import torch
from torch import Tensor

MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""The values of the lower three bits of a code; the highest bit is the sign."""
_VALUES = torch.tensor([*MAGNITUDES, *(-value for value in MAGNITUDES)])


def weights_of(codes: Tensor, scales: Tensor) -> Tensor:
    """The weights that codes and scales stand for.

    Args:
        codes: uint8 [rows, blocks, bytes]; the lower half of a byte is the first of its two codes.
        scales: float32 [rows, blocks].

    Returns:
        float32 [rows, blocks · bytes · 2].

    Example:
        >>> weights_of(torch.tensor([[[0x92]]], dtype=torch.uint8), torch.tensor([[3.0]]))
        tensor([[ 3.0000, -1.5000]])
    """
    values = torch.stack((_VALUES[(codes & 15).int()], _VALUES[(codes >> 4).int()]), -1)
    return (values.flatten(2) * scales[..., None]).flatten(1)
