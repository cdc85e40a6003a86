"""Good inputs from which the fuzzers start."""

import json
import struct
from pathlib import Path

import gguf
import numpy as np
from safetensors.numpy import save


def seeds(target: str, folder: Path) -> list[bytes]:
    """Small good inputs of one target; `folder` is scratch space."""
    if target == "gguf":
        return [_gguf(folder / f"{number}.gguf", number) for number in range(4)]
    if target == "safetensors":
        tensors = {"a.weight": np.ones((2, 3), np.float32), "a.bias": np.ones(2, np.float16)}
        empty = {"e": np.ones((0, 4), np.float32), "scalar": np.ones((), np.float64)}
        made = [bytes([33, *range(start, 40 + start)]) for start in range(0, 60, 5)]
        return [save(tensors, {"format": "pt"}), save(empty), save({}), b"!", *made]
    names = {"a.weight": "one.safetensors", "b.weight": "two.safetensors"}
    return [
        json.dumps({"metadata": {"total_size": 10}, "weight_map": names}).encode(),
        json.dumps({"weight_map": {"a.weight": "../out"}}).encode(),
        json.dumps({"weight_map": {}}).encode(),
        *(bytes([33, *range(start, 6 + start)]) for start in range(0, 30, 3)),
    ]


def _gguf(path: Path, number: int) -> bytes:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    if number == 1:
        writer.add_custom_alignment(64)
    if number >= 2:
        writer.add_token_list(["a", "b", "long" * 9])
        writer.add_token_scores([0.0, 1.0, 2.0])
        writer.add_bool("tokenizer.ggml.add_bos_token", True)
        writer.add_float64("x", 1.5)
    for name in ("token_embd.weight", "blk.0.ffn_up.weight", "blk.0.ffn_up.bias")[:number]:
        kind = gguf.GGMLQuantizationType.Q8_0 if number == 3 else gguf.GGMLQuantizationType.F32
        values = np.ones((2, 32) if name.endswith("weight") else 2, np.float32)
        quantised = number == 3 and values.ndim == 2
        writer.add_tensor(
            name,
            gguf.quantize(values, kind) if quantised else values,
            raw_dtype=kind if quantised else None,
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


def words(target: str) -> list[bytes]:
    """Pieces that mean something in an input, for the fuzzer's dictionary."""
    if target == "gguf":
        numbers = [0, 1, 2, 3, 8, 9, 31, 32, 2**31, 2**32 - 1, 2**63, 2**64 - 1]
        packed = [struct.pack(form, n) for n in numbers for form in ("<Q", "<I") if n < 2**32]
        packed += [struct.pack("<Q", n) for n in numbers]
        return [b"GGUF", b"general.alignment", b"general.architecture", b"blk.0.", *packed]
    return [
        *(b'"dtype":"F32"', b'"shape":[', b'"data_offsets":[0,', b"__metadata__", b'"weight_map":'),
        *(b"18446744073709551615", b"-1", b"1e999", b"[[[[", b"../", b"\\u0000", b"\\ud800"),
    ]
