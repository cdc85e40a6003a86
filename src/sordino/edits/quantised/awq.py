"""AWQ checkpoints of 4 bits, as AutoAWQ and llm-compressor's older exports write them.

A layer of n neurons and i inputs, with groups of g inputs, has in the layout "gemm"

    qweight  int32 [i, n / 8]          codes q, packed along the neurons in the order below
    qzeros   int32 [i / g, n / 8]      zero points z, packed likewise
    scales   float [i / g, n]

and in the layout "gemv" (both padded beyond i / g)

    qweight  int32 [n, i / 8]          codes, packed along the inputs, one after another
    qzeros   int32 [n, padded / 8]
    scales   float [n, padded]

and stands for the weight  W[m, k] = s · (q − z)  with s and z of neuron m and the group of k.

**Dampening** multiplies the scales of neuron m by its factor: exact, but for the rounding of a
product to the type of the scales.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from sordino.edits.quantised.gptq import SCALES
from sordino.edits.quantised.layer import Changes, Layer, Scheme, read_whole_number
from sordino.edits.quantised.packing import unpack
from sordino.edits.shard import Change
from sordino.errors import UserError

# Where the eight codes of a word belong: its lowest four bits are neuron 0, the next neuron 2, …
_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
_PER_WORD = len(_ORDER)
_BITS = 4


@dataclass(frozen=True)
class Awq(Scheme):
    """AWQ in one of the two layouts."""

    @property
    def marks(self) -> tuple[str, ...]:
        """Suffixes of codes: every layer has one of them."""
        return ("qweight",)

    @property
    def label(self) -> str:
        """Layout, bits and groups."""
        return f"AWQ ({self._layout}), {_BITS} bits, groups of {self._group_size}"

    def shape(self, layer: Layer) -> tuple[int, int]:
        """From the codes; scales and zero points must fit them."""
        words = layer.matrix("qweight")
        layer.expect("qweight", ("I32",), words)
        if self._layout == "gemv":
            neurons, inputs = words[0], words[1] * _PER_WORD
            padded = next(iter(layer.shape("scales")[1:]), 0)
            layer.expect("scales", SCALES, (neurons, padded))
            layer.expect("qzeros", ("I32",), (neurons, padded // _PER_WORD))
            if padded < self._groups(layer, inputs):
                raise layer.unfit(f"scales has {padded} groups for {inputs} inputs")
        else:
            inputs, neurons = words[0], words[1] * _PER_WORD
            groups = self._groups(layer, inputs)
            layer.expect("scales", SCALES, (groups, neurons))
            layer.expect("qzeros", ("I32",), (groups, neurons // _PER_WORD))
        return neurons, inputs

    def changes(self, layer: Layer, factors: Tensor) -> Changes:  # noqa: ARG002
        """A column of scales is a neuron; in "gemv" a row is."""
        return {"scales": Change(factors[:, None] if self._layout == "gemv" else factors[None, :])}

    def rows(self, layer: Layer) -> Tensor:
        """The de-quantised weight, by the formula above."""
        neurons, inputs = self.shape(layer)
        group = torch.arange(inputs) // (inputs // self._groups(layer, inputs))
        scales = layer.read("scales").float()
        if self._layout == "gemv":
            codes = unpack(layer.read("qweight"), _BITS, inputs)
            zeros = unpack(layer.read("qzeros"), _BITS, scales.shape[1])
            return scales[:, group] * (codes - zeros[:, group])
        codes = _in_order(unpack(layer.read("qweight"), _BITS, neurons))
        zeros = _in_order(unpack(layer.read("qzeros"), _BITS, neurons))
        return (scales[group] * (codes - zeros[group])).T

    def _groups(self, layer: Layer, inputs: int) -> int:
        size = self._group_size if self._group_size > 0 else inputs
        if inputs % size:
            raise layer.unfit(f"its {inputs} inputs do not divide into groups of {size}")
        return inputs // size

    @property
    def _group_size(self) -> int:
        name = "q_group_size" if "q_group_size" in self.settings else "group_size"
        return read_whole_number(self.settings, name, 128)

    @property
    def _layout(self) -> str:
        layout = str(self.settings.get("version") or self.settings.get("format") or "gemm").lower()
        default = read_whole_number(self.settings, "w_bit", _BITS)
        bits = read_whole_number(self.settings, "bits", default)
        if layout not in ("gemm", "gemv") or bits != _BITS:
            raise UserError(
                f"AWQ checkpoints in the layout '{layout}' of {bits} bits cannot be baked: use one "
                f"in the layout gemm or gemv, of {_BITS} bits."
            )
        return layout


def _in_order(codes: Tensor) -> Tensor:
    """Put the codes of each word in the neurons' order."""
    words = codes.reshape(len(codes), -1, _PER_WORD)
    ordered = torch.empty_like(words)
    ordered[..., _ORDER] = words
    return ordered.reshape(codes.shape)
