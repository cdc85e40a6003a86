"""compressed-tensors checkpoints, as llm-compressor writes them.

A layer of n neurons and i inputs has its codes q either as they are or packed,

    weight         int8 or float8_e4m3fn [n, i]
    weight_packed  int32 [n, ⌈i · bits / 32⌉]  codes less their smallest value, along the inputs
    weight_shape   int [2]                     n and i, beside packed codes

and beside them

    weight_scale       one of: [n, 1] ("channel"); [n, groups] ("group"); [⌈n / a⌉, ⌈i / b⌉]
                       ("block"); a single one ("tensor")
    weight_zero_point  z, like the scales, packed along the neurons where the codes are packed;
                       absent where it is 0
    weight_g_idx       int [i], the group of each input (absent: one after another)

and stands for the weight  W[m, k] = s · (q[m, k] − z)  with s and z of neuron m and of k's group.

**Dampening channels and groups** multiplies the scales of neuron m by its factor: exact, but for
the rounding of a product to the type of the scales.

**A single scale** becomes one per neuron, [n, 1], each times its factor: as exact. The strategy
"tensor" becomes "channel" in config.json, for all layers of the checkpoint (whose scales are
repeated n times where nothing is dampened), since servers fuse layers and want them alike.

**Blocks** of FP8 are rounded again, by the rule in `fp8.py`.

**4-bit floats** (the formats "nvfp4-pack-quantized" and "mxfp4-pack-quantized") have their codes in
weight_packed, uint8 [n, i / 2], their scales in weight_scale and, in NVFP4, weight_global_scale,
which divides. They are rounded again, by the rule in `fp4.py`.
"""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sordino.edits.quantised.fp4 import fp4_changes, fp4_rows, fp4_shape
from sordino.edits.quantised.fp8 import block_changes, block_of, fp8_shape, spread
from sordino.edits.quantised.gptq import SCALES
from sordino.edits.quantised.layer import Changes, Fp4Places, Layer, QuantisedEdit, Scheme
from sordino.edits.quantised.packing import WORD, unpack, words_for
from sordino.edits.shard import Change, New
from sordino.errors import UserError

_FORMATS = (
    *("pack-quantized", "int-quantized", "float-quantized", "naive-quantized"),
    *("mixed-precision", "dense", "nvfp4-pack-quantized", "mxfp4-pack-quantized"),
)
_PACKED, _SCALE, _SHARED = "weight_packed", "weight_scale", "weight_global_scale"


@dataclass(frozen=True)
class CompressedTensors(Scheme):
    """Integers of up to 8 bits, and FP8."""

    @property
    def marks(self) -> tuple[str, ...]:
        """Suffixes of scales: every layer has one of them."""
        return ("weight_scale",)

    @property
    def label(self) -> str:
        """The format of each group of layers."""
        kinds = dict.fromkeys(_kind(weights) for weights in self._weights)
        return f"compressed-tensors, {'; '.join(kinds)}"

    def shape(self, layer: Layer) -> tuple[int, int]:
        """From the weight, or its packed codes; the scales must fit it."""
        self._refuse_formats()
        if places := self.fp4(layer):
            return fp4_shape(layer, places)
        if "weight_packed" in layer.tensors:
            neurons, inputs = self._packed_shape(layer)
        elif layer.dtype("weight") == "F8_E4M3":
            return fp8_shape(layer, "weight_scale", self._block)
        else:
            neurons, inputs = layer.matrix("weight")
            layer.expect("weight", ("I8",), (neurons, inputs))
        scales = layer.shape("weight_scale")
        layer.expect("weight_scale", SCALES, scales)
        if not (self._single(layer) or (_is_by_row(scales, neurons) and 0 not in scales)):
            raise layer.unfit(
                f"weight_scale has the shape {list(scales)}, and one scale per neuron, a row of "
                "them or a single one is expected"
            )
        if "weight_zero_point" in layer.tensors:
            self._expect_zeros(layer, neurons, inputs)
        return neurons, inputs

    def changes(self, layer: Layer, factors: Tensor) -> Changes:
        """By the strategy that the shape of the scales shows."""
        if places := self.fp4(layer):
            return fp4_changes(layer, places, factors)
        scales = layer.shape("weight_scale")
        if self._single(layer):
            if "weight_zero_point" in layer.tensors:
                raise layer.unfit("it has a single scale and a zero point")
            return {"weight_scale": _one_a_neuron(layer, factors)}
        if _is_by_row(scales, len(factors)):
            return {"weight_scale": Change(factors[:, None] if len(scales) == 2 else factors)}
        return block_changes(layer, "weight_scale", factors, self._block_in(layer))

    def fp4(self, layer: Layer) -> Fp4Places | None:
        """Layers whose packed codes are bytes."""
        if _PACKED not in layer.tensors or layer.dtype(_PACKED) != "U8":
            return None
        return Fp4Places(_PACKED, _SCALE, _SHARED if _SHARED in layer.tensors else "", divides=True)

    def rows(self, layer: Layer) -> Tensor:
        """The de-quantised weight, by the formula above."""
        if places := self.fp4(layer):
            return fp4_rows(layer, places)
        neurons, inputs = self.shape(layer)
        scales = layer.read("weight_scale").float()
        groups = scales.shape[1] if scales.dim() == 2 else 1
        if "weight_packed" in layer.tensors:
            words = layer.shape("weight_packed")[1]
            bits = words * WORD // inputs
            if words != words_for(inputs, bits):
                raise layer.unfit(f"its codes of {bits} bits are packed in an older way")
            smallest = -(2 ** (bits - 1))
            codes = (unpack(layer.read("weight_packed"), bits, inputs) + smallest).float()
            zeros = torch.zeros(neurons, groups)
            if "weight_zero_point" in layer.tensors:
                packed = layer.read("weight_zero_point").T
                zeros = (unpack(packed, bits, neurons).T + smallest).float()
        else:
            codes = layer.read("weight").float()
            zeros = torch.zeros(1, groups)
            if "weight_zero_point" in layer.tensors:
                zeros = layer.read("weight_zero_point").float().reshape(-1, groups)
        if _is_by_row(tuple(scales.shape), neurons) and groups > 1:
            group = layer.group_of("weight_g_idx", inputs, groups)
            return (codes - zeros[:, group]) * scales[:, group]
        if _is_by_row(tuple(scales.shape), neurons) or _is_single(tuple(scales.shape)):
            return (codes - zeros) * scales.reshape(-1, 1)
        return codes * spread(scales, (neurons, inputs), self._block_in(layer))

    def edit(self, layers: Mapping[str, Layer], factors: Mapping[str, Tensor]) -> QuantisedEdit:
        """Where a dampened layer has a single scale, all layers of the checkpoint change."""
        edit = super().edit(layers, factors)
        changes, settings = dict(edit.changes), None
        if any(self._single(layers[weight]) for weight in factors):
            settings = self._by_channel(layers)
            for weight, layer in layers.items():
                if weight not in factors and self._single(layer):
                    ones = torch.ones(self.shape(layer)[0])
                    changes[f"{layer.name}.weight_scale"] = _one_a_neuron(layer, ones)
        return QuantisedEdit(changes, edit.rounded, settings)

    def _single(self, layer: Layer) -> bool:
        """Whether a layer has a single scale, and not because it is a single block."""
        return (
            _is_single(layer.shape("weight_scale")) and self._block is None and not self.fp4(layer)
        )

    def _packed_shape(self, layer: Layer) -> tuple[int, int]:
        packed = layer.shape("weight_packed")
        if layer.dtype("weight_packed") != "I32" or len(packed) != 2:
            raise layer.unfit(
                f"its codes are {layer.dtype('weight_packed')} of the shape {list(packed)}, and "
                "integers in words of 32 bits or pairs of 4-bit floats are expected"
            )
        layer.expect("weight_shape", ("I64", "I32"), (2,))
        neurons, inputs = layer.read("weight_shape").tolist()
        if neurons != packed[0] or not 0 < packed[1] * WORD // 8 <= inputs <= packed[1] * WORD:
            raise layer.unfit(
                f"weight_shape says {neurons} neurons and {inputs} inputs, and weight_packed has "
                f"the shape {list(packed)}"
            )
        return neurons, inputs

    def _expect_zeros(self, layer: Layer, neurons: int, inputs: int) -> None:
        scales = layer.shape("weight_scale")
        if "weight_packed" in layer.tensors:
            bits = layer.shape("weight_packed")[1] * WORD // inputs
            groups = scales[1] if len(scales) == 2 else 1
            layer.expect("weight_zero_point", ("I32",), (words_for(neurons, bits), groups))
        else:
            layer.expect("weight_zero_point", ("I8",), scales)

    def _by_channel(self, layers: Mapping[str, Layer]) -> Mapping[str, Any]:
        """The settings with "channel" for "tensor"."""
        settings = copy.deepcopy(dict(self.settings))
        for group in _groups(settings):
            weights = group.get("weights") or {}
            if _strategy(weights) != "tensor":
                continue
            inputs = group.get("input_activations") or {"dynamic": True}
            if not inputs.get("dynamic") and any(".experts." in name for name in layers):
                raise UserError(
                    "The checkpoint has MoE experts with a single scale each and static scales of "
                    "their inputs, which cannot be baked, because servers take scales per neuron "
                    "only with dynamic ones: use the model from which it was quantised."
                )
            weights["strategy"] = "channel"
        return settings

    def _refuse_formats(self) -> None:
        named = [self.settings.get("format"), *(g.get("format") for g in _groups(self.settings))]
        for name in named:
            if name is not None and name not in _FORMATS:
                raise UserError(
                    f"compressed-tensors checkpoints in the format '{name}' cannot be baked: their "
                    "scales are too coarse for a factor, or laid out for one kernel. Use the "
                    "model from which it was quantised."
                )

    @property
    def _weights(self) -> Iterator[Mapping[str, Any]]:
        return (group.get("weights") or {} for group in _groups(self.settings))

    @property
    def _block(self) -> tuple[int, int] | None:
        found = {block_of(weights.get("block_structure")) for weights in self._weights} - {None}
        if len(found) > 1:
            raise UserError("The checkpoint has blocks of several sizes, which cannot be baked.")
        return next(iter(found), None)

    def _block_in(self, layer: Layer) -> tuple[int, int]:
        neurons, inputs = layer.shape("weight")
        single = _is_single(layer.shape("weight_scale"))
        return (neurons, inputs) if single or self._block is None else self._block


def _one_a_neuron(layer: Layer, factors: Tensor) -> New:
    """A single scale, repeated for each neuron and times the factors: [neurons, 1]."""

    def make() -> Tensor:
        scale = layer.read("weight_scale")
        return (scale.float().reshape(1, 1) * factors[:, None]).to(scale.dtype)

    return New(layer.dtype("weight_scale"), (len(factors), 1), make)


def _is_by_row(scales: tuple[int, ...], neurons: int) -> bool:
    return len(scales) in (1, 2) and scales[0] == neurons


def _is_single(shape: tuple[int, ...]) -> bool:
    return shape in ((), (1,), (1, 1))


def _groups(settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    groups = settings.get("config_groups")
    if not isinstance(groups, dict) or not all(
        isinstance(group, dict) for group in groups.values()
    ):
        raise UserError("The quantisation settings have no config_groups.")
    return list(groups.values())


def _strategy(weights: Mapping[str, Any]) -> str:
    """The strategy, inferred as compressed-tensors does if it is not named."""
    size = weights.get("group_size")
    inferred = "tensor" if size is None else "channel" if size == -1 else "group"
    return str(weights.get("strategy") or inferred)


def _kind(weights: Mapping[str, Any]) -> str:
    strategy = _strategy(weights)
    shared = {
        "tensor": "one scale a weight",
        "channel": "one scale per neuron",
        "group": f"groups of {weights.get('group_size')}",
        "tensor_group": f"groups of {weights.get('group_size')} under one scale",
        "block": f"blocks of {' × '.join(map(str, weights.get('block_structure') or []))}",
    }.get(strategy, strategy)
    kind = "FP" if weights.get("type") == "float" else "INT"
    return f"{kind}{weights.get('num_bits', 8)}, {shared}"
