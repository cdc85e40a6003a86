"""Norms between a block's output and the residual stream.

Such a norm's outputs are what the block adds to the stream, and its gain has one number for each of
them, so a gain can be scaled like a row of a matrix.
"""

import re
from collections.abc import Iterator
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.func import functional_call

from sordino.errors import UserError

_AFTER_BLOCK = re.compile(r"^post_(feedforward_layernorm|mlp_layernorm|self_attn_layernorm)$")
# If the feed-forward part has a norm after it, this one is after attention; else it is before the
# feed-forward part.
_AFTER_ATTENTION, _BESIDE = "post_attention_layernorm", "post_feedforward_layernorm"


class NormGain:
    """The gain of a norm: one number for each of its outputs.

    Args:
        module: The norm.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    @property
    def weight(self) -> nn.Parameter:
        """The parameter that holds the gain less `offset`, [neurons]."""
        weight = self.module.weight
        assert isinstance(weight, nn.Parameter)
        return weight

    @property
    def bias(self) -> nn.Parameter | None:
        """The norm's bias, [neurons], or None."""
        bias = getattr(self.module, "bias", None)
        return bias if isinstance(bias, nn.Parameter) else None

    @property
    def neurons(self) -> int:
        """The number of outputs."""
        return self.weight.shape[0]

    @cached_property
    def offset(self) -> float:
        """What the norm adds to its weight before multiplying: 1 in Gemma's norms, 0 in most.

        No attribute holds it, so the norm is tried: with a weight of 0 its output is the offset
        times the normed input, and with a weight of 1 once more of that.

        Raises:
            UserError: The norm's outputs are not a gain times something.
        """
        inputs = torch.linspace(-1, 2, self.neurons)[None]
        with torch.no_grad():
            zero, one = (self._with_weight(value, inputs) for value in (0.0, 1.0))
        normed = one - zero
        for offset in (0.0, 1.0):
            if normed.any() and torch.allclose(zero, offset * normed, rtol=1e-4, atol=1e-5):
                return offset
        raise UserError(
            f"{type(self.module).__name__} does not multiply by its weight, so its gain cannot be "
            "scaled: choose other `sites`."
        )

    def _with_weight(self, value: float, inputs: Tensor) -> Tensor:
        parameters = {
            name: torch.full(parameter.shape, value if name == "weight" else 0.0)
            for name, parameter in self.module.named_parameters()
        }
        outputs: Tensor = functional_call(self.module, parameters, (inputs,))
        return outputs.float()

    def scaled_by(self, factors: Tensor) -> Tensor | None:
        """What to add to the weight times these factors, [neurons]; None for nothing.

        A gain of w + 1 times α is (α · w + α − 1) + 1.
        """
        return self.offset * (factors - 1) if self.offset else None


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a norm with one gain for each output."""
    weight = getattr(module, "weight", None)
    return (
        type(module).__name__.endswith("Norm")
        and isinstance(weight, nn.Parameter)
        and weight.dim() == 1
    )


def norms_after_blocks(layer: nn.Module) -> Iterator[tuple[str, NormGain]]:
    """The norms in a decoder's layer through which a block's output goes, by name."""
    children = dict(layer.named_children())
    for name, module in children.items():
        after = _AFTER_BLOCK.search(name) or (name == _AFTER_ATTENTION and _BESIDE in children)
        if after and is_norm(module):
            yield name, NormGain(module)
