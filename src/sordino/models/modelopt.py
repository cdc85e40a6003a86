"""De-quantise NVFP4 checkpoints of NVIDIA's Model Optimizer, which transformers cannot open."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from sordino.errors import UserError
from sordino.files import printable
from sordino.models.fp4 import weights_of
from sordino.models.streaming import StoredTensors

CODES, SCALES, SHARED = "weight", "weight_scale", "weight_scale_2"
"""The suffixes of a layer's codes, its scales of blocks, and the scale of the whole."""
_ALGORITHM = "NVFP4"
# Tensors beside weights: scales of layers' inputs, and of cached keys and values.
_BESIDE = ("_scale", "_scale_2")


def refuse_other_algorithms(settings: Mapping[str, Any]) -> None:
    """Raise `UserError` unless the settings are those of plain NVFP4."""
    algorithm = settings.get("quant_algo")
    if algorithm != _ALGORITHM:
        raise UserError(
            f"Model Optimizer's checkpoints are supported in {_ALGORITHM}, and this one is "
            f"{printable(str(algorithm), 60)}: use the model from which it was quantised."
        )


def plain_tensors(stored: StoredTensors, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a checkpoint by name, with weights in place of codes and scales.

    Raises:
        UserError: A layer's tensors do not fit together.
    """
    for name in stored.empty:
        owner = name.removesuffix(CODES)
        if f"{owner}{SHARED}" in stored.empty and name.endswith(f".{CODES}"):
            yield name, _weight(stored, owner).to(dtype)
        elif not name.endswith(_BESIDE):
            yield name, stored[name][...]


def _weight(stored: StoredTensors, owner: str) -> Tensor:
    """One layer's weight: float32 [neurons, inputs]."""
    codes, scales = (stored.empty.get(f"{owner}{end}") for end in (CODES, SCALES))
    if (
        codes is None
        or scales is None
        or (codes.dtype, scales.dtype) != (torch.uint8, torch.float8_e4m3fn)
        or codes.dim() != 2
        or codes.shape != (scales.shape[0], scales.shape[-1] * 8)
        or stored.empty[f"{owner}{SHARED}"].numel() != 1
    ):
        raise UserError(
            f"The tensors of the quantised layer {printable(owner.rstrip('.'))} do not fit "
            "together: get its files again."
        )
    block = stored[f"{owner}{SCALES}"][...].float() * stored[f"{owner}{SHARED}"][...].float()
    return weights_of(stored[f"{owner}{CODES}"][...].view(*block.shape, 8), block)
