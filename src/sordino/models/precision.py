"""Float64, which not every device has."""

import torch
from torch import Tensor


def has_float64(device: torch.device) -> bool:
    """Whether a device computes in float64; Apple's GPUs do not."""
    return device.type != "mps"


def where_float64(tensor: Tensor) -> Tensor:
    """The tensor itself, or a copy on the processor if its device has no float64."""
    return tensor if has_float64(tensor.device) else tensor.cpu()


def double(tensor: Tensor) -> Tensor:
    """A tensor in float64, on the processor if its device has none."""
    return where_float64(tensor).double()
