"""NVFP4 checkpoints, as NVIDIA's Model Optimizer writes them.

A layer has

    weight          uint8 [n, i / 2]          codes, two per byte
    weight_scale    float8_e4m3fn [n, i / 16] scales of blocks
    weight_scale_2  float32                   the scale of the whole weight
    input_scale     float32                   the scale of the layer's inputs; it stays

and is read and dampened as `fp4.py` says.
"""

from dataclasses import dataclass

from torch import Tensor

from sordino.edits.quantised.fp4 import fp4_changes, fp4_rows, fp4_shape
from sordino.edits.quantised.layer import Changes, Fp4Places, Layer, Scheme
from sordino.models.modelopt import CODES, SCALES, SHARED, refuse_other_algorithms

_PLACES = Fp4Places(CODES, SCALES, SHARED)


@dataclass(frozen=True)
class ModelOpt(Scheme):
    """NVFP4 of Model Optimizer."""

    def __post_init__(self) -> None:
        refuse_other_algorithms(self.settings)

    @property
    def marks(self) -> tuple[str, ...]:
        """A layer has a scale of the whole."""
        return (SHARED,)

    @property
    def label(self) -> str:
        """There is one kind."""
        return "NVFP4 (ModelOpt), 4-bit floats in blocks of 16"

    def shape(self, layer: Layer) -> tuple[int, int]:
        """From the scales; the codes must fit them."""
        return fp4_shape(layer, _PLACES)

    def changes(self, layer: Layer, factors: Tensor) -> Changes:
        """The nearest scales and codes."""
        return fp4_changes(layer, _PLACES, factors)

    def fp4(self, layer: Layer) -> Fp4Places:  # noqa: ARG002
        """All layers are."""
        return _PLACES

    def rows(self, layer: Layer) -> Tensor:
        """The product of the three."""
        return fp4_rows(layer, _PLACES)
