"""How far dampened weights of each GGUF type are from the exact product: `docs/formats.md`.

    python benchmarks/gguf_rounding.py

Rows of 4,096 weights whose standard deviation is 0.02 are multiplied by factors drawn evenly from
0.4 to 1, and de-quantised by the gguf package. Where it can quantise to a type, the rows are
normal-distributed weights quantised by it; for the others the integers are random and the scales
are such as give that deviation.
"""

import sys
from pathlib import Path

import gguf
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from sordino.edits.gguf_blocks import KINDS, scale_rows_
from tiny_gguf import random_rows

ROWS, COLUMNS, DEVIATION, SEED = 256, 4096, 0.02, 0


def main() -> None:
    """Print the table in Markdown."""
    print(f"{ROWS} rows of {COLUMNS:,} weights each, deviation {DEVIATION}, seed {SEED}\n")
    print(
        "| type | largest error of a scale | of a weight, of its row's largest | root mean square |"
    )
    print("|---|--:|--:|--:|")
    for kind in KINDS:
        factors = np.random.default_rng(SEED).uniform(0.4, 1, ROWS).astype(np.float32)
        rows, source = made(kind)
        before = values(kind, rows)
        scale_rows_(kind, rows, factors)
        error = np.abs(values(kind, rows) - before * factors[:, None])
        tops = np.abs(before).max(axis=1, keepdims=True)
        figures = ((error / tops).max(), np.sqrt(((error / tops) ** 2).mean()))
        shown = " | ".join(f"{100 * figure:.2g} %" for figure in figures)
        print(f"| {kind}{source} | {shown} |")


def made(kind: str) -> tuple[np.ndarray, str]:
    """Rows of a type, and a mark where they are not quantised from weights."""
    number = gguf.GGMLQuantizationType[kind]
    random = np.random.default_rng(SEED)
    weights = (DEVIATION * random.standard_normal((ROWS, COLUMNS))).astype(np.float32)
    try:
        return gguf.quantize(weights, number).view(np.uint8), ""
    except NotImplementedError:
        rows = random_rows(kind, ROWS, COLUMNS, SEED, scale=1.0)
        scale = DEVIATION / values(kind, rows).std()
        return random_rows(kind, ROWS, COLUMNS, SEED, scale=scale), " *"


def values(kind: str, rows: np.ndarray) -> np.ndarray:
    """De-quantised rows."""
    found = gguf.dequantize(rows.copy(), gguf.GGMLQuantizationType[kind])
    return np.asarray(found, np.float64).reshape(ROWS, COLUMNS)


main()
