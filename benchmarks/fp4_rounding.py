"""How much 4-bit floats lose when rows are multiplied by a factor.

    python benchmarks/fp4_rounding.py

Normally distributed weights (256 rows of 4,096, seed 0), quantised to the nearest scale and code,
times factors from 0.5 to 1: what becomes of one factor, becomes of its double.
"""

import numpy as np
import torch

from sordino.edits.fp4 import E4M3, E8M0, Scales, rescale_
from sordino.models.fp4 import MAGNITUDES, weights_of

ROWS, INPUTS = 256, 4096
FACTORS = np.linspace(0.5, 1, 51)[:-1]


def quantised(weights: torch.Tensor, kind: Scales, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes [rows, blocks, bytes] and the bytes of scales [rows, blocks]."""
    blocks = weights.view(ROWS, -1, size)
    tops = blocks.abs().amax(2)
    if kind is E8M0:
        scales = (torch.log2(tops).floor() - 2 + 127).to(torch.uint8)
    else:
        scales = (tops / 6).to(torch.float8_e4m3fn).view(torch.uint8)
    steps = torch.from_numpy(kind.values).float()[scales.int()]
    ratio = blocks / steps[..., None]
    nearest = (ratio.abs()[..., None] - torch.tensor(MAGNITUDES)).abs().argmin(-1)
    codes = (nearest + 8 * (ratio < 0)).to(torch.uint8)
    return codes[..., 0::2] | codes[..., 1::2] << 4, scales


def main() -> None:
    """Print the table."""
    weights = torch.randn(ROWS, INPUTS, generator=torch.Generator().manual_seed(0))
    print(
        "| format | quantisation itself | mean over factors | worst factor | largest of a block |"
    )
    print("|---|--:|--:|--:|--:|")
    for name, kind, size, spread in (("MXFP4", E8M0, 32, 0.02), ("NVFP4", E4M3, 16, 50.0)):
        codes, scales = quantised(weights * spread, kind, size)
        made = weights_of(codes, torch.from_numpy(kind.values).float()[scales.int()])
        own = float((made - weights * spread).norm() / made.norm())
        found = [
            rescale_(codes.numpy().copy(), scales.numpy().copy(), here, kind)
            for here in (np.full(ROWS, factor, np.float32) for factor in FACTORS)
        ]
        mean = np.sqrt(np.mean([each.relative**2 for each in found]))
        cells = own, mean, max(r.relative for r in found), max(r.largest for r in found)
        print(f"| {name} | {' | '.join(f'{100 * cell:.2g} %' for cell in cells)} |")


if __name__ == "__main__":
    main()
