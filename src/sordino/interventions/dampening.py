"""Dampening factors, and their use on a model in memory."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers.pytorch_utils import Conv1D

from sordino.errors import UserError


@dataclass(frozen=True)
class Dampening:
    """One factor a neuron, by which its output is multiplied.

    Args:
        factors: By site path, float32 [neurons], finite.
        intervention: The rule that gave them, such as "aura".
        strength: 1 for the rule as it is, 0 for no change.
        settings: The rule's other settings, such as {"k": 100}.
        expertise: The metadata of the expertise that they were derived from.
    """

    factors: Mapping[str, NDArray[np.float32]]
    intervention: str
    strength: float = 1.0
    settings: Mapping[str, Any] = field(default_factory=dict)
    expertise: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for site, factors in self.factors.items():
            if not np.all(np.isfinite(factors)):
                raise UserError(f"The dampening factors of {site} are not all finite numbers.")

    @property
    def changed(self) -> int:
        """How many neurons have a factor other than 1."""
        return sum(int(np.count_nonzero(factors != 1)) for factors in self.factors.values())

    @property
    def neurons(self) -> int:
        """How many neurons have a factor at all."""
        return sum(factors.size for factors in self.factors.values())

    def scaled(self, strength: float) -> "Dampening":
        """The same dampening at another strength: factors 1 − strength · (1 − factor).

        Args:
            strength: From 0 (no change) to 1 (these factors).

        Raises:
            UserError: The strength is outside [0, 1].
        """
        if not 0 <= strength <= 1:
            raise UserError(f"--strength {strength:g} is outside 0 to 1.")
        factors = {
            site: (1 - strength * (1 - values)).astype(np.float32)
            for site, values in self.factors.items()
        }
        return replace(self, factors=factors, strength=self.strength * strength)

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Dampen the sites' outputs by hooks inside the block; the weights stay as they are.

        Args:
            model: A model with this dampening's sites.

        Raises:
            UserError: The model lacks a site, or the site has another number of neurons.
        """
        handles = []
        try:
            for site, factors in self.factors.items():
                module = _module(model, site, factors.size)
                weight = module.weight
                # The factor takes the output's dtype, so that a bfloat16 model stays one.
                scale = torch.from_numpy(factors).to(weight.device, weight.dtype)
                handles.append(module.register_forward_hook(_multiply_by(scale)))
            yield
        finally:
            for handle in handles:
                handle.remove()

    @torch.no_grad()
    def bake_into(self, model: nn.Module) -> None:
        """Multiply the rows of the weights (and the biases) in place, for good.

        Args:
            model: A model with this dampening's sites.

        Raises:
            UserError: The model lacks a site, or the site has another number of neurons; then
                nothing was changed.
        """
        modules = {site: _module(model, site, f.size) for site, f in self.factors.items()}
        for site, module in modules.items():
            factors = torch.from_numpy(self.factors[site])
            scale_rows_(module.weight, factors, transposed=isinstance(module, Conv1D))
            if module.bias is not None:
                scale_rows_(module.bias, factors)


def scale_rows_(tensor: torch.Tensor, factors: torch.Tensor, *, transposed: bool = False) -> None:
    """Multiply each neuron's row of a weight, or entry of a bias, by its factor, in place.

    The product is taken in float32 and rounded once to the tensor's own dtype.

    Args:
        tensor: [neurons, inputs]; [inputs, neurons] where transposed; [neurons] for a bias.
        factors: float32 [neurons].
        transposed: Whether neurons are the last dimension.
    """
    factors = factors.to(tensor.device)
    if tensor.dim() > 1 and not transposed:
        factors = factors[:, None]
    tensor.copy_(tensor.float() * factors if tensor.dtype != torch.float64 else tensor * factors)


def _multiply_by(scale: torch.Tensor) -> Any:
    def hook(_module: nn.Module, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
        return output * scale

    return hook


def _module(model: nn.Module, site: str, neurons: int) -> Any:
    try:
        module = model.get_submodule(site)
    except AttributeError:
        raise UserError(
            f"The model has no module {site}: the dampening was found on another architecture."
        ) from None
    if not isinstance(module, nn.Linear | Conv1D):
        raise UserError(f"{site} is a {type(module).__name__}, not a linear layer.")
    size = module.weight.shape[1 if isinstance(module, Conv1D) else 0]
    if size != neurons:
        raise UserError(
            f"{site} has {size} neurons, but the dampening has {neurons} factors for it."
        )
    return module
