"""Directions that are added to what modules put out, and subspaces that are taken out of it.

What a factor for each neuron cannot say: it is here for the rivals that studies compare with. The
modules need not be sites; a decoder layer's output is the residual stream behind it. Added to a
linear layer, a direction is a bias; taken out of its outputs, a subspace with the projection P is
the edit W ← (I − P)·W of its weight (and bias), which costs nothing at run time. On the residual
stream both need hooks.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from sordino.files import fingerprint
from sordino.models.hooks import forward_hooks

Arrays = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Steering:
    """Outputs z become z − strength · P·z + strength · shift.

    Args:
        intervention: What gave it.
        shifts: By module path, float32 [width].
        subspaces: By module path, orthonormal rows that span what is taken out, float32
            [rank, width].
        strength: 0 for no change, 1 for it as it is; of a subspace nothing is left at 1.
    """

    intervention: str
    shifts: Arrays = field(default_factory=dict)
    subspaces: Arrays = field(default_factory=dict)
    strength: float = 1.0

    @property
    def changed(self) -> int:
        """How many outputs are changed, of all modules together."""
        if self.strength == 0:
            return 0
        widths = {path: of.shape[-1] for path, of in self.subspaces.items()}
        moved = {path: int(np.count_nonzero(of)) for path, of in self.shifts.items()}
        return sum((moved | widths).values())

    @property
    def fingerprint(self) -> str:
        """SHA-256 over all that it does."""
        kinds = {"shift": self.shifts, "subspace": self.subspaces}
        return fingerprint(
            f"strength:{self.strength!r}",
            *(
                f"{kind}:{path}:{values.shape}:{values.tobytes().hex()}"
                for kind, by_path in kinds.items()
                for path, values in by_path.items()
            ),
        )

    def scaled(self, strength: float) -> "Steering":
        """The same at another strength."""
        return replace(self, strength=self.strength * strength)

    def applied(self, model: nn.Module) -> AbstractContextManager[None]:
        """Steer with forward hooks inside the block.

        Args:
            model: A model with these modules, whose outputs are tensors, or tuples that begin with
                one.
        """
        return forward_hooks(
            (
                model.get_submodule(path),
                _hook(self.shifts.get(path), self.subspaces.get(path), self.strength),
            )
            for path in dict.fromkeys([*self.shifts, *self.subspaces])
        )


def _hook(
    shift: NDArray[np.float32] | None, subspace: NDArray[np.float32] | None, strength: float
) -> Callable[..., Any]:
    @cache
    def fitting(device: torch.device, dtype: torch.dtype) -> list[torch.Tensor | None]:
        given = None if shift is None else strength * shift, subspace
        return [None if one is None else torch.from_numpy(one).to(device, dtype) for one in given]

    def steer(output: torch.Tensor) -> torch.Tensor:
        moved, rows = fitting(output.device, output.dtype)
        if rows is not None:
            output = output - strength * (output @ rows.T) @ rows
        return output if moved is None else output + moved

    def hook(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return steer(output[0]), *output[1:]
        return steer(output)

    return hook
