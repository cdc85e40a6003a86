"""What all families of quantised checkpoints share: layers made of several tensors.

A quantised linear layer has no weight that could be multiplied. It has codes, scales and perhaps
zero points under names of its own. A family (`Scheme`) knows those names, and turns the factors of
a layer's neurons into changes of its tensors.
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
        name: The prefix of its tensors' names, such as "model.layers.3.mlp.up_proj".
        tensors: By the rest of their names, such as "qweight" or "weight.absmax".
        files: The shard of each, by the same.
        joint: What stands between the two parts of a tensor's name; where it is not a dot, the
            weight is a parameter of the layer's own name (as in fused MoE experts).
    """

    name: str
    tensors: Mapping[str, Stored]
    files: Mapping[str, Path]
    joint: str = "."

    @property
    def weight(self) -> str:
        """The name that its weight would have if it were not quantised."""
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

    def matrix(self, suffix: str) -> tuple[int, int]:
        """A tensor's dimensions.

        Raises:
            UserError: There is no such tensor, or it is not a matrix, or it is empty.
        """
        shape = self.shape(suffix)
        if len(shape) != 2 or 0 in shape:
            raise self.unfit(f"{suffix} has the shape {list(shape)}")
        return shape[0], shape[1]

    def group_of(self, suffix: str, inputs: int, groups: int) -> Tensor:
        """The group of each input, int64 [inputs]: a tensor's values, else one group after another.

        Raises:
            UserError: There is such a tensor, and it is damaged.
        """
        if suffix not in self.tensors:
            return torch.arange(inputs) // -(-inputs // groups)
        self.expect(suffix, ("I32", "I64"), (inputs,))
        index = self.read(suffix).long()
        if not 0 <= int(index.min()) <= int(index.max()) < groups:
            raise self.unfit(f"{suffix} names groups outside 0 to {groups - 1}")
        return index

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
            data = bytearray(file.read(stored.nbytes))
        if len(data) != stored.nbytes:
            raise self.unfit(f"{suffix} became shorter while it was read")
        if not data:
            return torch.empty(stored.shape, dtype=dtype)
        return torch.frombuffer(data, dtype=dtype).view(stored.shape)

    def expect(self, suffix: str, dtypes: tuple[str, ...], shape: tuple[int, ...]) -> None:
        """Raise `UserError` unless a tensor has one of the types, and the shape."""
        stored = self._find(suffix)
        if stored.dtype not in dtypes:
            raise self.unfit(
                f"{suffix} has the type {stored.dtype}, and {' or '.join(dtypes)} is expected"
            )
        if stored.shape != shape:
            raise self.unfit(
                f"{suffix} has the shape {list(stored.shape)}, and {list(shape)} is expected"
            )

    def unfit(self, reason: str) -> UserError:
        """The error for a problem of this layer."""
        file = next(iter(self.files.values()))
        return UserError(
            f"{file} holds the quantised layer {self.name} in a way that cannot be baked: {reason}."
        )

    def _find(self, suffix: str) -> Stored:
        if suffix not in self.tensors:
            raise self.unfit(f"{suffix} is missing beside {', '.join(sorted(self.tensors))}")
        return self.tensors[suffix]


class Fp4Places(NamedTuple):
    """The suffixes of a layer's tensors of 4-bit floats.

    Args:
        codes: Of the codes.
        scales: Of the scales of blocks.
        shared: Of the scale of the whole weight; "" where there is none.
        divides: Whether that scale divides.
    """

    codes: str
    scales: str
    shared: str = ""
    divides: bool = False


@dataclass(frozen=True)
class QuantisedEdit:
    """The changes of a quantised checkpoint.

    Args:
        changes: By the tensor's whole name; None leaves it out.
        rounded: The layers whose codes are rounded again.
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
        """A few words for the checkpoint, such as "GPTQ, 4 bits, groups of 128"."""

    @property
    @abstractmethod
    def marks(self) -> tuple[str, ...]:
        """Suffixes that mark a quantised layer: each has a tensor with one of them."""

    @property
    def joint(self) -> str:
        """What stands before a suffix in a tensor's name; see `Layer`."""
        return "."

    @abstractmethod
    def shape(self, layer: Layer) -> tuple[int, int]:
        """A layer's numbers of neurons and of inputs.

        Raises:
            UserError: Its tensors do not fit together.
        """

    def weight_shape(self, layer: Layer, *, transposed: bool) -> tuple[int, ...]:
        """The shape of its weight in the model.

        Args:
            layer: The layer.
            transposed: Whether the model's linear layers have the inputs first.
        """
        return self.shape(layer)[:: -1 if transposed else 1]

    @abstractmethod
    def changes(self, layer: Layer, factors: Tensor) -> Changes:
        """The changes of a layer's tensors, by suffix.

        Args:
            layer: The layer, whose shape was checked.
            factors: float32 [neurons], not all 1.

        Raises:
            UserError: The format cannot hold the product.
        """

    def fp4(self, layer: Layer) -> Fp4Places | None:  # noqa: ARG002
        """The suffixes of a layer's parts, if it is of 4-bit floats; None otherwise."""
        return None

    @abstractmethod
    def rows(self, layer: Layer) -> Tensor:
        """The layer's weight, de-quantised: float32 [neurons, inputs]."""

    def edit(self, layers: Mapping[str, Layer], factors: Mapping[str, Tensor]) -> QuantisedEdit:
        """The changes of the checkpoint.

        Args:
            layers: All its quantised layers, by the names that their weights would have.
            factors: float32 [neurons], not all 1, by the same names.

        Raises:
            UserError: The format cannot hold the product.
        """
        changes = {
            layers[weight].tensor(suffix): change
            for weight, values in factors.items()
            for suffix, change in self.changes(layers[weight], values).items()
        }
        # Scales have names of their own, so a change under the weight's name is one of codes.
        return QuantisedEdit(changes, tuple(weight for weight in factors if weight in changes))


def read_whole_number(settings: Mapping[str, Any], name: str, default: int) -> int:
    """A setting that is a whole number.

    Raises:
        UserError: It is not.
    """
    value = settings.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool):
        raise UserError(f"The quantisation setting {name} is {value!r}, not a whole number.")
    return value
