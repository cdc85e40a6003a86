"""Low-rank changes of weights: what training gives, for the rivals that studies compare with."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save_file
from torch import nn
from transformers import Conv1D

from sordino.files import fingerprint, new_file

_ENTRY = "adapter"

Arrays = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Adapter:
    """Weights W become W + strength · up · down, as a merged LoRA.

    Args:
        intervention: What gave it.
        down: By the linear layer's path, float32 [rank, inputs].
        up: The same, float32 [outputs, rank].
        strength: 0 for no change, 1 for it as it is.
    """

    intervention: str
    down: Arrays
    up: Arrays
    strength: float = 1.0

    @property
    def changed(self) -> int:
        """The number of neurons whose row of weights differs."""
        return sum(int(up.any(axis=1).sum()) for up in self.up.values() if self.strength != 0)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over its matrices and its strength."""
        kinds = {"down": self.down, "up": self.up}
        return fingerprint(
            f"strength:{self.strength!r}",
            *(
                f"{kind}:{path}:{values.shape}:{values.tobytes().hex()}"
                for kind, by_path in kinds.items()
                for path, values in sorted(by_path.items())
            ),
        )

    def scaled(self, strength: float) -> "Adapter":
        """The same at another strength."""
        return replace(self, strength=self.strength * strength)

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Change the weights inside the block, rounded once to their own dtype.

        Args:
            model: A model with these linear layers, in memory.
        """
        before: dict[str, torch.Tensor] = {}
        try:
            for path, down in self.down.items():
                module = model.get_submodule(path)
                weight = module.weight
                assert isinstance(weight, torch.Tensor)
                change = torch.from_numpy(self.strength * (self.up[path] @ down)).to(weight.device)
                change = change.T if isinstance(module, Conv1D) else change
                before[path] = weight.detach().clone()
                with torch.no_grad():
                    weight.copy_(weight.float() + change)
            yield
        finally:
            for path, weight in before.items():
                module = model.get_submodule(path)
                assert isinstance(module.weight, torch.Tensor)
                with torch.no_grad():
                    module.weight.copy_(weight)

    def save(self, path: Path) -> None:
        """Write it to a safetensors file, which appears when it is whole."""
        tensors = {f"{site}.down": np.ascontiguousarray(of) for site, of in self.down.items()}
        tensors |= {f"{site}.up": np.ascontiguousarray(of) for site, of in self.up.items()}
        about = {"intervention": self.intervention, "strength": self.strength}
        with new_file(path, force=True) as stage:
            # One entry, because the library writes several in an order that changes.
            save_file(tensors, stage, metadata={_ENTRY: json.dumps(about)})

    @classmethod
    def load(cls, path: Path) -> "Adapter":
        """Read what `save` wrote."""
        with safe_open(path, framework="numpy") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata()
        # Older files hold the intervention alone, at strength 1.
        about = json.loads(metadata[_ENTRY]) if _ENTRY in metadata else metadata
        down, up = (
            {path.removesuffix(end): of for path, of in tensors.items() if path.endswith(end)}
            for end in (".down", ".up")
        )
        return cls(about["intervention"], down, up, about.get("strength", 1.0))
