"""A tiny random Llama in a GGUF file, with the tests' tokenizer."""

import json
from pathlib import Path

import gguf
import numpy as np

from families import LAYERS, tiny_tokenizer

HIDDEN, INNER, HEADS = 64, 96, 4


def tiny_gguf(path: Path, seed: int = 0) -> Path:
    """Write the file: Q8_0 matrices, float32 norms, tied embeddings."""
    tokenizer = tiny_tokenizer()
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(256)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(tokenizer))
    _add_tokenizer(writer, tokenizer)
    _add_tensors(writer, len(tokenizer), np.random.default_rng(seed))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_tokenizer(writer, tokenizer) -> None:
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * 3 + [1] * (len(tokens) - 3))
    writer.add_token_merges([" ".join(pair) for pair in model["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_pad_token_id(2)
    writer.add_chat_template(tokenizer.chat_template)


def _add_tensors(writer, vocabulary: int, random: np.random.Generator) -> None:
    def matrix(name: str, rows: int, columns: int) -> None:
        values = (0.15 * random.standard_normal((rows, columns))).astype(np.float32)
        kind = gguf.GGMLQuantizationType.Q8_0
        writer.add_tensor(f"{name}.weight", gguf.quantize(values, kind), raw_dtype=kind)

    def norm(name: str) -> None:
        values = 1 + 0.1 * random.standard_normal(HIDDEN)
        writer.add_tensor(f"{name}.weight", values.astype(np.float32))

    matrix("token_embd", vocabulary, HIDDEN)
    norm("output_norm")
    for layer in range(LAYERS):
        block = f"blk.{layer}"
        norm(f"{block}.attn_norm")
        norm(f"{block}.ffn_norm")
        matrix(f"{block}.attn_q", HIDDEN, HIDDEN)
        matrix(f"{block}.attn_k", HIDDEN // 2, HIDDEN)
        matrix(f"{block}.attn_v", HIDDEN // 2, HIDDEN)
        matrix(f"{block}.attn_output", HIDDEN, HIDDEN)
        matrix(f"{block}.ffn_gate", INNER, HIDDEN)
        matrix(f"{block}.ffn_up", INNER, HIDDEN)
        matrix(f"{block}.ffn_down", HIDDEN, INNER)


def random_rows(
    kind: str, rows: int, columns: int, seed: int, scale: float | None = None
) -> np.ndarray:
    """Random rows of a tensor type, uint8 [rows, bytes of a row], with finite block scales.

    Every bit pattern of the integers occurs; the scales are normal-distributed times `scale`, or
    times what makes weights of about 0.15 where it is None.
    """
    random = np.random.default_rng(seed)
    number = gguf.GGMLQuantizationType[kind]
    floats = {"F32": np.float32, "F16": np.float16}
    if kind in (*floats, "BF16"):
        values = (0.15 * random.standard_normal((rows, columns))).astype(np.float32)
        if kind == "BF16":
            return gguf.quantize(values, number)
        return values.astype(floats[kind]).view(np.uint8)
    weights, size = gguf.GGML_QUANT_SIZES[number]
    blocks = random.integers(0, 256, (rows, columns // weights, size), np.uint8)
    if kind == "MXFP4":
        blocks[..., 0] = random.integers(118, 130, blocks.shape[:2])
    else:
        _set_random_scales(kind, blocks, 1.0 if scale is None else scale, random)
    found = blocks.reshape(rows, -1)
    if scale is None:
        values = np.asarray(gguf.dequantize(found, number))
        if kind == "MXFP4":
            blocks[..., 0] -= round(np.log2(values.std() / 0.15))
        else:
            random = np.random.default_rng(seed)
            _set_random_scales(kind, blocks, 0.15 / values.std(), random)
    return found


def _set_random_scales(kind: str, blocks: np.ndarray, scale: float, random) -> None:
    """Where each type keeps its scales, by the table of the format's description."""
    size = blocks.shape[-1]
    places = {
        **dict.fromkeys(("Q4_1", "Q5_1", "Q4_K", "Q5_K"), (0, 2)),
        **dict.fromkeys(("Q3_K", "Q6_K", "TQ1_0", "TQ2_0"), (size - 2,)),
        "Q2_K": (size - 4, size - 2),
    }
    for place in places.get(kind, (0,)):
        values = scale * random.standard_normal(blocks.shape[:2])
        bits = values.astype(np.float16).view(np.uint16)
        if kind == "IQ1_M":
            for word in range(4):
                high = size - 8 + 2 * word + 1
                blocks[..., high] = blocks[..., high] & 15 | ((bits >> 4 * word & 15) << 4)
        else:
            blocks[..., place] = bits & 255
            blocks[..., place + 1] = bits >> 8
