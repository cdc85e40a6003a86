"""NVFP4 checkpoints, as NVIDIA's Model Optimizer writes them.

A layer has

    weight          uint8 [n, i / 2]          codes, two per byte
    weight_scale    float8_e4m3fn [n, i / 16] scales of blocks
    weight_scale_2  float32                   the scale of the whole weight
    input_scale     float32                   the scale of the layer's inputs; it stays

and is read and dampened as `fp4.py` says.
"""

from dataclasses import dataclass
from typing import ClassVar

from sordino.edits.quantised.fp4 import Fp4Scheme
from sordino.edits.quantised.layer import Fp4Places
from sordino.models.modelopt import CODES, SCALES, SHARED, refuse_other_algorithms


@dataclass(frozen=True)
class ModelOpt(Fp4Scheme):
    """NVFP4 of Model Optimizer."""

    places: ClassVar[Fp4Places] = Fp4Places(CODES, SCALES, SHARED)

    def __post_init__(self) -> None:
        refuse_other_algorithms(self.settings)

    @property
    def marks(self) -> tuple[str, ...]:
        """Suffixes of a scale of the whole: every layer has one of them."""
        return (SHARED,)

    @property
    def label(self) -> str:
        """The format's name."""
        return "NVFP4 (ModelOpt), 4-bit floats in blocks of 16"
