"""FP8 checkpoints: weights of eight floating bits (E4M3) with scales beside them.

A layer of n neurons and i inputs has

    weight            float8_e4m3fn [n, i]
    weight_scale_inv  (DeepSeek, Qwen, transformers' "fp8") or weight_scale ("fbgemm_fp8", AutoFP8),
                      one of: [n, 1], a scale per neuron; [⌈n / a⌉, ⌈i / b⌉], a scale per block
                      of a neurons and b inputs; a single scale for the whole weight

and stands for the product of both.

**Dampening a scale per neuron** multiplies it by the neuron's factor: exact, but for the rounding
of a product to the type of the scales.

**Dampening a block** (or a whole weight) cannot be exact, because neurons that share a scale have
different factors. Each block's scale is multiplied by the power of two p that is at least the
largest factor among its neurons, which is exact in every type of scale and leaves powers of two
powers of two; each row of the weight is multiplied by its factor / p, which is at most 1, and
rounded to the nearest E4M3. So rows whose factor is a power of two keep their values, and a weight
in any other row is off by at most one part in 16 (half of E4M3's last place; below 2⁻⁶ of the
scale, by 2⁻¹⁰ of it), as when the checkpoint was made. Since 1 is a power of two, rows that are not
dampened stay the same.

**MoE experts of 4-bit floats** (DeepSeek V4) stand in such checkpoints as weights of bytes, int8
[n, i / 2], under scales that are powers of two, [n, i / 32]; see `fp4.py`.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sordino.edits.quantised.fp4 import fp4_changes, fp4_rows, fp4_shape
from sordino.edits.quantised.layer import Changes, Fp4Places, Layer, Scheme
from sordino.edits.shard import Change
from sordino.errors import UserError

BLOCK_SCALES = ("F32", "BF16", "F16", "F8_E8M0")
_SCALE_NAMES = ("weight_scale_inv", "weight_scale")
_SHORT_NAME = "scale"  # DeepSeek V4's, whose scales are powers of two


@dataclass(frozen=True)
class Fp8(Scheme):
    """FP8 of transformers and vLLM, other than compressed-tensors."""

    @property
    def marks(self) -> tuple[str, ...]:
        """Suffixes of scales: every layer has one of them."""
        short = (_SHORT_NAME,) if self.settings.get("scale_fmt") == "ue8m0" else ()
        return (*_SCALE_NAMES, *short)

    @property
    def label(self) -> str:
        """The format's name, and whether it has blocks."""
        block = block_of(self.settings.get("weight_block_size"))
        if self.settings.get("quant_method") == "fbgemm_fp8":
            return "FP8, one scale per neuron"
        return f"FP8, {_blocks(block)}" if block else "FP8, a scale a weight"

    def shape(self, layer: Layer) -> tuple[int, int]:
        """The dimensions of the weight; the scales must fit it."""
        if places := self.fp4(layer):
            return fp4_shape(layer, places)
        return fp8_shape(layer, _scale(layer), block_of(self.settings.get("weight_block_size")))

    def changes(self, layer: Layer, factors: Tensor) -> Changes:
        """A row of scales is a neuron; where neurons share one, the rule for blocks."""
        if places := self.fp4(layer):
            return fp4_changes(layer, places, factors)
        name = _scale(layer)
        if _has_rows(layer, name):
            return {name: Change(factors.view(layer.shape(name)))}
        return block_changes(layer, name, factors, self._block(layer))

    def fp4(self, layer: Layer) -> Fp4Places | None:
        """Layers whose weight is bytes, under powers of two."""
        scale = _scale(layer)
        if scale not in layer.tensors or layer.dtype(scale) not in ("F8_E8M0", "U8"):
            return None
        return Fp4Places("weight", scale) if layer.dtype("weight") in ("I8", "U8") else None

    def rows(self, layer: Layer) -> Tensor:
        """The product of codes and scales."""
        self.shape(layer)
        if places := self.fp4(layer):
            return fp4_rows(layer, places)
        scales = layer.read(_scale(layer)).float()
        if _has_rows(layer, _scale(layer)):
            return layer.read("weight").float() * scales.view(-1, 1)
        return layer.read("weight").float() * spread(
            scales, layer.shape("weight"), self._block(layer)
        )

    def _block(self, layer: Layer) -> tuple[int, int]:
        neurons, inputs = layer.shape("weight")
        whole_weight = max(neurons, 1), max(inputs, 1)
        if len(layer.shape(_scale(layer))) != 2:
            return whole_weight
        return block_of(self.settings.get("weight_block_size")) or whole_weight


def block_of(setting: Any) -> tuple[int, int] | None:
    """The neurons and inputs of a block, from the settings; None for no blocks.

    Raises:
        UserError: It is not a pair of positive whole numbers.
    """
    if setting is None:
        return None
    if isinstance(setting, list | tuple) and len(setting) == 2:
        neurons, inputs = setting
        if isinstance(neurons, int) and isinstance(inputs, int) and neurons > 0 and inputs > 0:
            return neurons, inputs
    raise UserError(f"The block size of a quantised weight must be two sizes, not {setting!r}.")


def fp8_shape(layer: Layer, scale: str, block: tuple[int, int] | None) -> tuple[int, int]:
    """A layer's numbers of neurons and inputs.

    Raises:
        UserError: Its weight is not an E4M3 matrix, or its scales do not fit it.
    """
    neurons, inputs = layer.matrix("weight")
    layer.expect("weight", ("F8_E4M3",), (neurons, inputs))
    found = layer.shape(scale)
    fitting: list[tuple[int, ...]] = [(), (1,), (1, 1), (neurons,), (neurons, 1)]
    if block:
        fitting.append((-(-neurons // block[0]), -(-inputs // block[1])))
    if found not in fitting:
        expected = " or ".join(str(list(shape)) for shape in fitting)
        raise layer.unfit(f"{scale} has the shape {list(found)}, and {expected} is expected")
    layer.expect(scale, BLOCK_SCALES, found)
    return neurons, inputs


def block_changes(layer: Layer, scale: str, factors: Tensor, block: tuple[int, int]) -> Changes:
    """The changes of a weight whose neurons share scales; see above.

    Args:
        layer: The layer.
        scale: The suffix of its scales.
        factors: float32 [neurons].
        block: The neurons and inputs of a block.
    """
    rows = block[0]
    blocks = -(-len(factors) // rows)
    padded = torch.zeros(blocks * rows).index_copy_(0, torch.arange(len(factors)), factors.abs())
    powers = power_at_least(padded.view(blocks, rows).amax(1))
    weights = factors / powers.repeat_interleave(rows)[: len(factors)]
    dimensions = len(layer.shape(scale))
    shared = powers[:, None] if dimensions == 2 else powers.view((1,) * dimensions)
    return {"weight": Change(weights[:, None]), scale: Change(shared)}


def power_at_least(values: Tensor) -> Tensor:
    """The smallest power of two that is not below each value; 1 for 0."""
    mantissa, exponent = torch.frexp(values)  # mantissa in [0.5, 1)
    exponent = exponent - (mantissa == 0.5).int()
    return torch.where(values == 0, 1.0, torch.ldexp(torch.ones_like(values), exponent))


def spread(scales: Tensor, shape: tuple[int, ...], block: tuple[int, int]) -> Tensor:
    """Scales of blocks, or of the whole weight, for each number of it: [neurons, inputs]."""
    if scales.numel() == 1:
        return scales.reshape(1, 1)
    spread = scales.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)
    return spread[: shape[0], : shape[1]]


def _scale(layer: Layer) -> str:
    names = (*_SCALE_NAMES, _SHORT_NAME)
    return next((name for name in names if name in layer.tensors), _SCALE_NAMES[0])


def _has_rows(layer: Layer, scale: str) -> bool:
    shape = layer.shape(scale)
    return len(shape) > 0 and shape[0] == layer.shape("weight")[0] and shape[1:] in ((), (1,))


def _blocks(block: tuple[int, int]) -> str:
    return f"blocks of {block[0]} × {block[1]}"
