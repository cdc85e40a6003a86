"""How long baking a GGUF file takes, against `cp` and `sync`: `docs/formats.md`.

    python benchmarks/gguf_copy.py [KIND] [GIBIBYTES]
    python benchmarks/gguf_copy.py kit:smollm2

A llama of random blocks of one type (Q4_K) and about that size (1) is written to a folder of the
working directory; then both copy it, in turns, three times each, and everything is removed. A file
that is there already (kit:NAME, or its path) is copied as it is: of a small one most of the time
goes into its metadata, which the third line is: what comes before the first byte is written.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import gguf
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from families import random_factors, tiny_tokenizer
from sordino.edits import bake
from sordino.edits.gguf_file import plan
from sordino.interventions import Dampening
from sordino.models.open import empty_model
from sordino.models.reference import resolve
from sordino.models.sites import find_sites
from tiny_gguf import ARCHITECTURES, add_tokenizer, random_rows

HIDDEN, INNER, HEADS = 2048, 8192, 16
TIMES = 3


def main() -> None:
    """Print the times."""
    kind = sys.argv[1] if len(sys.argv) > 1 else "Q4_K"
    size = float(sys.argv[2]) if len(sys.argv) > 2 else 1.0
    with tempfile.TemporaryDirectory(dir=".") as name:
        folder = Path(name)
        if kind in gguf.GGMLQuantizationType.__members__:
            source = model(folder / "model.gguf", kind, size * 2**30)
        else:
            source = resolve(kind).path
        sites = {site.path: site.neurons for site in find_sites(empty_model(resolve(source)))}
        dampening = Dampening(random_factors(sites), "aura")
        subprocess.run(["sync"], check=True)
        times: dict[str, list[float]] = {"cp and sync": [], "sordino bake": [], "metadata": []}
        for _ in range(TIMES):
            start = time.perf_counter()
            subprocess.run(["cp", source, folder / "copy.gguf"], check=True)
            subprocess.run(["sync", folder / "copy.gguf"], check=True)
            times["cp and sync"].append(time.perf_counter() - start)
            (folder / "copy.gguf").unlink()
            start = time.perf_counter()
            bake(source, dampening, folder / "quiet.gguf")
            times["sordino bake"].append(time.perf_counter() - start)
            (folder / "quiet.gguf").unlink()
            start = time.perf_counter()
            plan(resolve(source), dampening)
            times["metadata"].append(time.perf_counter() - start)
        print(f"{kind}, {source.stat().st_size / 2**30:.2f} GiB, half of the neurons dampened")
        for what, taken in times.items():
            print(f"{what}: {', '.join(f'{seconds:.2f}' for seconds in taken)} s")
        fastest = [min(taken) for taken in times.values()]
        print(f"the fastest of each: {fastest[1] / fastest[0]:.2f} times as long")
        print(f"beyond the metadata: {fastest[1] - fastest[2]:.2f} s")


def model(path: Path, kind: str, size: float) -> Path:
    """A llama of about that many bytes."""
    number = gguf.GGMLQuantizationType[kind]
    weights, block = gguf.GGML_QUANT_SIZES[number]
    matrices = {
        **{"attn_q": (HIDDEN, HIDDEN), "attn_k": (HIDDEN, HIDDEN), "attn_v": (HIDDEN, HIDDEN)},
        **{"attn_output": (HIDDEN, HIDDEN), "ffn_gate": (INNER, HIDDEN)},
        **{"ffn_up": (INNER, HIDDEN), "ffn_down": (HIDDEN, INNER)},
    }
    layer = sum(rows * columns for rows, columns in matrices.values()) / weights * block
    layers = max(1, round(size / layer))
    writer = gguf.GGUFWriter(path, "llama")
    sizes = ARCHITECTURES["llama"] | {"embedding_length": HIDDEN, "feed_forward_length": INNER}
    sizes |= {"attention.head_count": HEADS, "attention.head_count_kv": HEADS}
    sizes |= {"rope.dimension_count": HIDDEN // HEADS, "block_count": layers}
    for key, value in sizes.items():
        add = writer.add_uint32 if isinstance(value, int) else writer.add_float32
        add(f"llama.{key}", value)
    tokenizer = tiny_tokenizer()
    add_tokenizer(writer, tokenizer)
    ones = np.ones(HIDDEN, np.float32)
    writer.add_tensor("token_embd.weight", np.ones((len(tokenizer), HIDDEN), np.float32))
    writer.add_tensor("output_norm.weight", ones)
    rows = {shape: random_rows(kind, *shape, 0) for shape in set(matrices.values())}
    for index in range(layers):
        writer.add_tensor(f"blk.{index}.attn_norm.weight", ones)
        writer.add_tensor(f"blk.{index}.ffn_norm.weight", ones)
        for name, shape in matrices.items():
            writer.add_tensor(f"blk.{index}.{name}.weight", rows[shape], raw_dtype=number)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


main()
