"""What every family of quantised checkpoints has in common: layers made of several tensors.

A quantised linear layer has no weight that could be multiplied. It has codes, scales and perhaps
zero points under names of its own. A family (`Scheme`) knows those names; told the factors of a
layer's neurons, it says what becomes of each tensor.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sordino.edits.shard import Change, New
from sordino.errors import UserError
from sordino.models.dtypes import TORCH_DTYPES
from sordino.models.safetensors_header import Stored

Changes = Mapping[str, Change | New | None]


@dataclass(frozen=True)
class Layer:
    """One quantised linear layer of a checkpoint.

    Args:
        name: What its tensors' names begin with, such as "model.layers.3.mlp.up_proj".
        tensors: By the rest of their names, such as "qweight" or "weight.absmax".
        files: The shard of each, by the same.
        joint: What stands between the two parts of a tensor's name; where it is no dot, the weight
            is a parameter of the layer's own name (as those of fused MoE experts are).
    """

    name: str
    tensors: Mapping[str, Stored]
    files: Mapping[str, Path]
    joint: str = "."

    @property
    def weight(self) -> str:
        """What its weight would be called if it were not quantised."""
        return f"{self.name}.weight" if self.joint == "." else self.name

    def tensor(self, suffix: str) -> str:
        """The whole name of one of its tensors."""
        return f"{self.name}{self.joint}{suffix}"

    def shape(self, suffix: str) -> tuple[int, ...]:
        """A tensor's dimensions.

        Raises:
            UserError: There is no such tensor.
        """
        return self._find(suffix).shape

    def dtype(self, suffix: str) -> str:
        """A tensor's type as the format calls it.

        Raises:
            UserError: There is no such tensor.
        """
        return self._find(suffix).dtype

    def torch_dtype(self, suffix: str) -> torch.dtype:
        """A tensor's type as torch calls it.

        Raises:
            UserError: There is no such tensor, or its type is unknown here.
        """
        dtype = self.dtype(suffix)
        if dtype not in TORCH_DTYPES:
            raise self.unfit(f"{suffix} has the type {dtype}")
        return TORCH_DTYPES[dtype]

    def read(self, suffix: str) -> Tensor:
        """A tensor's values.

        Raises:
            UserError: There is no such tensor, or its type is unknown here.
        """
        stored, dtype = self._find(suffix), self.torch_dtype(suffix)
        with self.files[suffix].open("rb") as file:
            file.seek(stored.start)
            data = bytearray(file.read(stored.end - stored.start))
        if len(data) != stored.end - stored.start:
            raise self.unfit(f"{suffix} became shorter while it was read")
        if not data:
            return torch.empty(stored.shape, dtype=dtype)
        return torch.frombuffer(data, dtype=dtype).view(stored.shape)

    def expect(self, suffix: str, dtypes: tuple[str, ...], shape: tuple[int, ...]) -> None:
        """Raise `UserError` unless a tensor has one of the types, and the shape."""
        stored = self._find(suffix)
        if stored.dtype not in dtypes:
            raise self.unfit(
                f"{suffix} has the type {stored.dtype}, where {' or '.join(dtypes)} belongs"
            )
        if stored.shape != shape:
            raise self.unfit(
                f"{suffix} has the shape {list(stored.shape)}, where {list(shape)} belongs"
            )

    def unfit(self, reason: str) -> UserError:
        """The error that says what is wrong with this layer."""
        file = next(iter(self.files.values()))
        return UserError(
            f"{file} holds the quantised layer {self.name} in a way that cannot be baked: {reason}."
        )

    def _find(self, suffix: str) -> Stored:
        if suffix not in self.tensors:
            raise self.unfit(f"{suffix} is missing beside {', '.join(sorted(self.tensors))}")
        return self.tensors[suffix]


class Fp4Places(NamedTuple):
    """By what suffixes the tensors of a layer of 4-bit floats go.

    Args:
        codes: Of the codes.
        scales: Of the scales of blocks.
        shared: Of the number for the whole weight; "" where there is none.
        divides: Whether that divides.
    """

    codes: str
    scales: str
    shared: str = ""
    divides: bool = False


@dataclass(frozen=True)
class Edit:
    """What becomes of a quantised checkpoint.

    Args:
        changes: By the tensor's whole name; None leaves it out.
        rounded: The layers whose codes had to be rounded anew.
        settings: The checkpoint's quantisation settings, if they change.
    """

    changes: Changes
    rounded: tuple[str, ...] = ()
    settings: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Scheme(ABC):
    """How a family of checkpoints stores its quantised layers.

    Args:
        settings: The checkpoint's quantisation settings, as in its config.json.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    @abstractmethod
    def label(self) -> str:
        """What the checkpoint is, in a few words, such as "GPTQ, 4 bits, groups of 128"."""

    @property
    @abstractmethod
    def marks(self) -> tuple[str, ...]:
        """Each quantised layer has a tensor that is called like one of these."""

    @property
    def joint(self) -> str:
        """What stands in front of those in a tensor's name; see `Layer`."""
        return "."

    @abstractmethod
    def shape(self, layer: Layer) -> tuple[int, int]:
        """A layer's numbers of neurons and of inputs.

        Raises:
            UserError: Its tensors do not fit together.
        """

    def weight_shape(self, layer: Layer, *, transposed: bool) -> tuple[int, ...]:
        """What shape its weight has in the model.

        Args:
            layer: The layer.
            transposed: Whether the model's linear layers have the inputs first.
        """
        return self.shape(layer)[:: -1 if transposed else 1]

    @abstractmethod
    def changes(self, layer: Layer, factors: Tensor) -> Changes:
        """What becomes of a layer's tensors, by the rest of their names.

        Args:
            layer: The layer, whose shape was checked.
            factors: float32 [neurons], not all 1.

        Raises:
            UserError: The format cannot hold the product.
        """

    def fp4(self, layer: Layer) -> Fp4Places | None:  # noqa: ARG002
        """Where a layer has its parts, if it is of 4-bit floats; None otherwise."""
        return None

    @abstractmethod
    def rows(self, layer: Layer) -> Tensor:
        """The layer's weight, de-quantised: float32 [neurons, inputs]."""

    def edit(self, layers: Mapping[str, Layer], factors: Mapping[str, Tensor]) -> Edit:
        """What becomes of the checkpoint.

        Args:
            layers: All its quantised layers, by what their weights would be called.
            factors: float32 [neurons], not all 1, by the same.

        Raises:
            UserError: The format cannot hold the product.
        """
        changes = {
            layers[weight].tensor(suffix): change
            for weight, values in factors.items()
            for suffix, change in self.changes(layers[weight], values).items()
        }
        # Scales stand beside the weight: where it changes itself, its codes do.
        return Edit(changes, tuple(weight for weight in factors if weight in changes))


def whole(settings: Mapping[str, Any], name: str, default: int) -> int:
    """A setting that is a whole number.

    Raises:
        UserError: It is not.
    """
    value = settings.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool):
        raise UserError(f"The quantisation setting {name} is {value!r}, which is no whole number.")
    return value
