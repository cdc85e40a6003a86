"""bitsandbytes checkpoints, of 8 and of 4 bits.

**8 bits** ("LLM.int8"). A layer of n neurons and i inputs has

    weight  int8 [n, i]   codes q
    SCB     float32 [n]   the largest absolute weight of each neuron

and stands for  W[m, k] = SCB[m] · q[m, k] / 127. Dampening multiplies SCB: exact, but for the
rounding of a float32.

**4 bits** ("nf4" and "fp4"). The weight is read as one long row, cut into blocks of b weights, and
has

    weight                              two codes per byte, the first in the upper half
    weight.quant_map                    float32 [16], the value of each code
    weight.absmax                       float32 [⌈n · i / b⌉], the largest absolute weights
    weight.quant_state.bitsandbytes__*  uint8, JSON: blocksize, shape, …

and stands for  W = quant_map[q] · absmax. With double quantisation absmax are uint8 codes
themselves, in blocks of B, beside `weight.nested_absmax` (float32) and `weight.nested_quant_map`
(float32 [256]); they stand for nested_quant_map[code] · nested_absmax + nested_offset.

Dampening multiplies the absmax of the blocks of neuron m by its factor: exact, but for the rounding
of a float32. Double quantisation is undone where a layer is dampened, since its codes are too
coarse for a factor: absmax become float32, which every loader accepts, with four bytes per block
instead of one. A block must not span two neurons: the number of inputs must be a multiple of b.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sordino.edits.quantised.layer import Changes, Layer, Scheme
from sordino.edits.shard import Change, New
from sordino.errors import UserError

_LARGEST_CODE = 127
_ABSMAX = "weight.absmax"
_NESTED = ("weight.nested_absmax", "weight.nested_quant_map")
_STATES = tuple(f"weight.quant_state.bitsandbytes__{kind}" for kind in ("nf4", "fp4"))


@dataclass(frozen=True)
class Int8(Scheme):
    """bitsandbytes, 8 bits."""

    @property
    def marks(self) -> tuple[str, ...]:
        """Suffixes of statistics of its rows: every layer has one of them."""
        return ("SCB",)

    @property
    def label(self) -> str:
        """The format's name."""
        return "bitsandbytes, 8 bits, one scale per neuron"

    def shape(self, layer: Layer) -> tuple[int, int]:
        """The dimensions of the weight."""
        neurons, inputs = layer.matrix("weight")
        layer.expect("weight", ("I8",), (neurons, inputs))
        layer.expect("SCB", ("F32",), (neurons,))
        return neurons, inputs

    def changes(self, layer: Layer, factors: Tensor) -> Changes:  # noqa: ARG002
        """Scale the statistics, which have one entry per neuron."""
        return {"SCB": Change(factors)}

    def rows(self, layer: Layer) -> Tensor:
        """The de-quantised weight, by the formula above."""
        self.shape(layer)
        return layer.read("weight").float() * (layer.read("SCB") / _LARGEST_CODE)[:, None]


@dataclass(frozen=True)
class FourBit(Scheme):
    """bitsandbytes, 4 bits."""

    @property
    def marks(self) -> tuple[str, ...]:
        """Suffixes of statistics of its blocks: every layer has one of them."""
        return (_ABSMAX,)

    @property
    def label(self) -> str:
        """The format's name, its type and its nesting."""
        twice = ", double quantisation" if self.settings.get("bnb_4bit_use_double_quant") else ""
        return f"bitsandbytes, 4 bits ({self.settings.get('bnb_4bit_quant_type', 'fp4')}){twice}"

    def shape(self, layer: Layer) -> tuple[int, int]:
        """From the state; codes and statistics must fit it."""
        state = _State.of(layer)
        stored = layer.tensors.get("weight")
        if stored is None or stored.nbytes != -(-state.size // 2):
            raise layer.unfit(
                f"its codes are not those of {state.neurons} × {state.inputs} weights"
            )
        layer.expect("weight.quant_map", ("F32",), (16,))
        layer.expect(_ABSMAX, ("U8",) if state.nested else ("F32",), (state.blocks,))
        if state.nested:
            layer.expect(_NESTED[0], ("F32",), (-(-state.blocks // state.nested),))
            layer.expect(_NESTED[1], ("F32",), (256,))
        return state.neurons, state.inputs

    def changes(self, layer: Layer, factors: Tensor) -> Changes:
        """Each neuron has a whole number of blocks."""
        state = _State.of(layer)
        if state.inputs % state.block:
            raise layer.unfit(
                f"its blocks of {state.block} weights span neurons of {state.inputs} inputs, which "
                "have different factors; use the model from which it was quantised"
            )

        def make() -> Tensor:
            return (_absmax(layer, state).view(state.neurons, -1) * factors[:, None]).reshape(-1)

        absmax = New("F32", (state.blocks,), make)
        if not state.nested:
            return {_ABSMAX: absmax}
        text = torch.frombuffer(bytearray(state.unnest()), dtype=torch.uint8)
        plain = New("U8", tuple(text.shape), lambda: text)
        return {_ABSMAX: absmax, state.name: plain, **dict.fromkeys(_NESTED)}

    def rows(self, layer: Layer) -> Tensor:
        """The de-quantised weight, by the formula above."""
        self.shape(layer)
        state = _State.of(layer)
        packed = layer.read("weight").reshape(-1).view(torch.uint8)
        codes = torch.stack((packed >> 4, packed & 15), -1).reshape(-1)[: state.size].long()
        scales = _absmax(layer, state).repeat_interleave(state.block)[: state.size]
        values = layer.read("weight.quant_map")[codes] * scales
        return values.view(state.neurons, state.inputs)


@dataclass(frozen=True)
class _State:
    """The JSON beside a layer's codes.

    Args:
        name: The tensor that holds it.
        values: All of it.
        neurons: Rows of the weight.
        inputs: Columns of the weight.
        block: Weights in a block.
        nested: Blocks in a block of blocks; 0 without double quantisation.
        offset: What is added to the doubly quantised absmax.
    """

    name: str
    values: Mapping[str, Any]
    neurons: int
    inputs: int
    block: int
    nested: int
    offset: float

    @property
    def size(self) -> int:
        """The number of weights."""
        return self.neurons * self.inputs

    @property
    def blocks(self) -> int:
        """The number of blocks."""
        return -(-self.size // self.block)

    def unnest(self) -> bytes:
        """The JSON without double quantisation."""
        kept = {key: v for key, v in self.values.items() if not key.startswith("nested_")}
        return json.dumps(kept).encode()

    @classmethod
    def of(cls, layer: Layer) -> "_State":
        """A layer's state.

        Raises:
            UserError: There is none, or it is damaged.
        """
        name = next((name for name in _STATES if name in layer.tensors), _STATES[0])
        try:
            values = json.loads(bytes(layer.read(name).reshape(-1).view(torch.uint8).tolist()))
            neurons, inputs = values["shape"]
            nested = values["nested_blocksize"] if _NESTED[0] in layer.tensors else 0
            offset = float(values["nested_offset"]) if nested else 0.0
            sizes = (neurons, inputs, values["blocksize"], nested)
            if not all(type(size) is int for size in sizes) or min(sizes[:3]) < 1 or nested < 0:
                raise ValueError(f"sizes {sizes}")
        except (ValueError, KeyError, TypeError) as error:
            raise layer.unfit(f"{name} is damaged ({type(error).__name__}: {error})") from None
        if not math.isfinite(offset):
            raise layer.unfit(f"{name} has the offset {offset}")
        return cls(name, values, neurons, inputs, values["blocksize"], nested, offset)


def _absmax(layer: Layer, state: _State) -> Tensor:
    """The largest absolute weight of each block, double quantisation undone: float32 [blocks]."""
    stored = layer.read(_ABSMAX)
    if not state.nested:
        return stored
    outer = layer.read(_NESTED[0]).repeat_interleave(state.nested)[: state.blocks]
    return layer.read(_NESTED[1])[stored.long()] * outer + state.offset


def bitsandbytes(settings: Mapping[str, Any]) -> Scheme:
    """The scheme of a bitsandbytes checkpoint.

    Raises:
        UserError: The settings name neither.
    """
    if settings.get("load_in_8bit"):
        return Int8(settings)
    if settings.get("load_in_4bit"):
        return FourBit(settings)
    raise UserError("The bitsandbytes settings name neither load_in_8bit nor load_in_4bit.")
