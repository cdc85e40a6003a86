"""GPTQ checkpoints, as AutoGPTQ, GPTQModel and optimum write them.

A layer of n neurons and i inputs has

    qweight  int32 [i · bits / 32, n]       codes q, packed along the inputs
    qzeros   int32 [groups, n · bits / 32]  zero points z, packed along the neurons
    scales   float [groups, n]
    g_idx    int32 [i]                      the group of each input (absent: one after another)

and stands for the weight  W[m, k] = scales[g(k), m] · (q[k, m] − z[g(k), m]). The older format
("gptq") stores z − 1, the newer one ("gptq_v2") z.

**Dampening** multiplies column m of `scales` by the factor of neuron m, for any bits, groups, order
and zero points: exact, but for the rounding of a product to the type of the scales.
"""

from dataclasses import dataclass

from torch import Tensor

from sordino.edits.quantised.layer import Changes, Layer, Scheme, read_whole_number
from sordino.edits.quantised.packing import WORD, unpack, words_for
from sordino.edits.shard import Change
from sordino.errors import UserError

SCALES = ("F16", "BF16", "F32")
_FORMATS = ("gptq", "gptq_v2")
_BITS = (2, 3, 4, 8)


@dataclass(frozen=True)
class Gptq(Scheme):
    """GPTQ, 2, 3, 4 or 8 bits."""

    @property
    def marks(self) -> tuple[str, ...]:
        """Suffixes of codes: every layer has one of them."""
        return ("qweight",)

    @property
    def label(self) -> str:
        """Format, bits, groups and their order."""
        size = read_whole_number(self.settings, "group_size", -1)
        order = ", act-order" if self.settings.get("desc_act") else ""
        groups = f"groups of {size}" if size > 0 else "one group a neuron"
        bits = read_whole_number(self.settings, "bits", 4)
        return f"GPTQ ({self._require_format()}), {bits} bits, {groups}{order}"

    def shape(self, layer: Layer) -> tuple[int, int]:
        """One neuron per column, and as many inputs as codes fit into a column."""
        self._require_format()
        groups, neurons = layer.matrix("scales")
        words, _ = layer.matrix("qweight")
        bits = _bits(layer)
        inputs = words * WORD // bits
        layer.expect("scales", SCALES, (groups, neurons))
        layer.expect("qweight", ("I32",), (words_for(inputs, bits), neurons))
        layer.expect("qzeros", ("I32",), (groups, words_for(neurons, bits)))
        if "g_idx" in layer.tensors:
            layer.expect("g_idx", ("I32", "I64"), (inputs,))
        return neurons, inputs

    def changes(self, layer: Layer, factors: Tensor) -> Changes:  # noqa: ARG002
        """A column of scales is a neuron."""
        return {"scales": Change(factors[None, :])}

    def rows(self, layer: Layer) -> Tensor:
        """The de-quantised weight, by the formula above."""
        neurons, inputs = self.shape(layer)
        bits = _bits(layer)
        codes = unpack(layer.read("qweight").T, bits, inputs)
        zeros = unpack(layer.read("qzeros"), bits, neurons).T
        if self._require_format() == "gptq":
            zeros = (zeros + 1) % 2**bits
        group = layer.group_of("g_idx", inputs, layer.shape("scales")[0])
        return layer.read("scales").float().T[:, group] * (codes - zeros[:, group])

    def _require_format(self) -> str:
        """The name of the format, which must be one whose scales can be edited."""
        named = self.settings.get("checkpoint_format") or self.settings.get("format") or "gptq"
        if self.settings.get("is_marlin_format"):
            named = "marlin"
        if named not in _FORMATS:
            raise UserError(
                f"GPTQ checkpoints in the format '{named}' cannot be baked, since their scales are "
                f"laid out for one kernel: use one in the format {' or '.join(_FORMATS)}."
            )
        return str(named)


def _bits(layer: Layer) -> int:
    """The size of a layer's codes; the settings may name others for some layers."""
    neurons = layer.matrix("scales")[1]
    bits = layer.matrix("qzeros")[1] * WORD // neurons
    if bits not in _BITS:
        raise layer.unfit(f"its zero points have {bits} bits, and only {_BITS} are known")
    return bits
