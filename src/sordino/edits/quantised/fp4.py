"""Layers of 4-bit floats: blocks of codes that share a scale of eight bits.

A layer of n neurons and i inputs has

    codes   uint8 (or int8) [n, i / 2], or [n, i / b, b / 2]; two per byte, the lower half first
    scales  MXFP4: uint8 or float8_e8m0fnu [n, i / 32], the powers of two s
            NVFP4: float8_e4m3fn [n, i / 16]
    shared  NVFP4: float32, one number g for the whole weight, which multiplies or divides

and stands for  W[m, k] = g · s[m, block of k] · e2m1(code[m, k]).

**Dampening** cannot be exact, because the scales are as coarse as the codes: each block gets the
scale and the codes that are nearest to the product (`sordino.edits.fp4`). The shared number stays,
since servers fuse layers and want it alike. The error is computed before anything is written; a
layer whose weights would be off by more than `MOST` of the product, in the root mean square, is
refused. For normally distributed weights no factor comes near that (`benchmarks/fp4_rounding.py`),
unless the products are too small for their type of scale.
"""

from collections.abc import Callable
from math import prod
from typing import ClassVar

import torch
from torch import Tensor

from sordino.edits.fp4 import E4M3, E8M0, Bytes, Rounding, Scales, rescale_
from sordino.edits.quantised.layer import Changes, Fp4Places, Layer, Scheme
from sordino.edits.shard import New
from sordino.models.fp4 import weights_of

MOST = 0.2
"""The largest error that an edit may make, relative to the product, root mean square."""
_KINDS = {"F8_E4M3": (E4M3, 16), "F8_E8M0": (E8M0, 32), "U8": (E8M0, 32)}
_CODES = ("U8", "I8")


def fp4_shape(layer: Layer, places: Fp4Places) -> tuple[int, int]:
    """A layer's numbers of neurons (of all experts together, where it has several) and of inputs.

    Raises:
        UserError: Its tensors do not fit together.
    """
    scales = layer.shape(places.scales)
    kind = layer.dtype(places.scales)
    if kind not in _KINDS or len(scales) < 2 or 0 in scales:
        raise layer.unfit(f"{places.scales} is {kind} of the shape {list(scales)}")
    size = _KINDS[kind][1]
    codes = layer.shape(places.codes)
    whole = (*scales[:-1], scales[-1] * size // 2)
    layer.expect(places.codes, _CODES, codes if codes == (*scales, size // 2) else whole)
    if places.shared:
        found = layer.shape(places.shared)
        layer.expect(places.shared, ("F32",), found if found == (1,) else ())
    return prod(scales[:-1]), scales[-1] * size


def fp4_changes(layer: Layer, places: Fp4Places, factors: Tensor) -> Changes:
    """The changes of codes and scales."""
    product = _Product(layer, places, factors)
    return {
        suffix: New(layer.dtype(suffix), layer.shape(suffix), product.maker(suffix))
        for suffix in (places.codes, places.scales)
    }


def fp4_rounding(layer: Layer, places: Fp4Places, factors: Tensor) -> Rounding:
    """What rounding does to a layer's weights.

    Raises:
        UserError: The error is too large, a scale would overflow, or one is not a number.
    """
    found = _rescale_parts(layer, places, factors)[2]
    if found.damaged:
        raise layer.unfit(f"{found.damaged:,} of its {places.scales} are not numbers")
    if found.overflowed:
        raise layer.unfit(
            f"{places.scales} times the factors is too large for {layer.dtype(places.scales)} in "
            f"{found.overflowed:,} blocks"
        )
    if found.relative > MOST:
        raise layer.unfit(
            f"the nearest scales and codes would be off by {found.relative:.0%} of the product, "
            f"and {MOST:.0%} is allowed; use the model from which it was quantised"
        )
    return found


def fp4_rows(layer: Layer, places: Fp4Places) -> Tensor:
    """By the formula above: float32 [neurons, inputs]."""
    fp4_shape(layer, places)
    codes, scales, kind = _blocks(layer, places)
    values = torch.from_numpy(kind.values).float()
    shared = layer.read(places.shared).reshape(1) if places.shared else torch.ones(1)
    factor = 1 / shared if places.divides else shared
    index = torch.from_numpy(scales).int().clamp(max=len(values) - 1)
    return weights_of(torch.from_numpy(codes), values[index] * factor)


class Fp4Scheme(Scheme):
    """A family whose layers are all 4-bit floats, stored under the same suffixes.

    Attributes:
        places: The suffixes.
    """

    places: ClassVar[Fp4Places]

    def shape(self, layer: Layer) -> tuple[int, int]:
        """From the scales; the codes must fit them."""
        return fp4_shape(layer, self.places)

    def changes(self, layer: Layer, factors: Tensor) -> Changes:
        """The nearest scales and codes."""
        return fp4_changes(layer, self.places, factors)

    def fp4(self, layer: Layer) -> Fp4Places:  # noqa: ARG002
        """The same suffixes for all layers."""
        return self.places

    def rows(self, layer: Layer) -> Tensor:
        """The de-quantised weight, by the formula above."""
        return fp4_rows(layer, self.places)


class _Product:
    """A layer's codes and scales times the factors, made once for both."""

    def __init__(self, layer: Layer, places: Fp4Places, factors: Tensor) -> None:
        self._of = layer, places, factors
        self._made: dict[str, Tensor] = {}

    def maker(self, suffix: str) -> Callable[[], Tensor]:
        """Makes the codes or the scales when they are written."""
        layer, places, _ = self._of

        def make() -> Tensor:
            if suffix not in self._made:
                codes, scales, _ = _rescale_parts(*self._of)
                self._made = {
                    name: torch.from_numpy(data)
                    for name, data in ((places.codes, codes), (places.scales, scales))
                }
            # It is not kept: asked for again, it is computed again.
            return self._made.pop(suffix).view(layer.torch_dtype(suffix)).view(layer.shape(suffix))

        return make


def _rescale_parts(
    layer: Layer, places: Fp4Places, factors: Tensor
) -> tuple[Bytes, Bytes, Rounding]:
    codes, scales, kind = _blocks(layer, places)
    return codes, scales, rescale_(codes, scales, factors.numpy(), kind)


def _blocks(layer: Layer, places: Fp4Places) -> tuple[Bytes, Bytes, Scales]:
    """uint8 [neurons, blocks, bytes] and [neurons, blocks], and the type of the latter."""
    kind, size = _KINDS[layer.dtype(places.scales)]
    scales = layer.read(places.scales).view(torch.uint8)
    scales = scales.view(-1, scales.shape[-1])
    codes = layer.read(places.codes).view(torch.uint8).view(*scales.shape, size // 2)
    return codes.numpy(), scales.numpy(), kind
