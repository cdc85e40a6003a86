"""MXFP4 checkpoints of MoE experts, as OpenAI's gpt-oss has them.

The matrices of all experts of a layer are one parameter. A matrix P of e experts with n neurons
and i inputs has

    P_blocks  uint8 [e, n, i / 32, 16]
    P_scales  uint8 [e, n, i / 32]

which are read and dampened as `fp4.py` says. The model itself has the inputs first: [e, i, n].
"""

from dataclasses import dataclass
from typing import ClassVar

from sordino.edits.quantised.fp4 import Fp4Scheme
from sordino.edits.quantised.layer import Fp4Places, Layer


@dataclass(frozen=True)
class Mxfp4(Fp4Scheme):
    """MXFP4 in tensors of blocks and of scales; rows are one expert's after the other's."""

    places: ClassVar[Fp4Places] = Fp4Places("blocks", "scales")

    @property
    def marks(self) -> tuple[str, ...]:
        """Suffixes of blocks: every matrix has one of them."""
        return ("blocks",)

    @property
    def joint(self) -> str:
        """An underscore: the matrices are parameters, not modules."""
        return "_"

    @property
    def label(self) -> str:
        """The format's name."""
        return "MXFP4, 4-bit floats in blocks of 32"

    def shape(self, layer: Layer) -> tuple[int, int]:
        """The number of neurons of all experts together, and of inputs."""
        if len(layer.shape("scales")) != 3:
            raise layer.unfit(f"scales has the shape {list(layer.shape('scales'))}")
        return super().shape(layer)

    def weight_shape(self, layer: Layer, *, transposed: bool) -> tuple[int, ...]:  # noqa: ARG002
        """The numbers of experts, inputs and neurons."""
        _, inputs = self.shape(layer)
        experts, neurons, _ = layer.shape("scales")
        return experts, inputs, neurons
