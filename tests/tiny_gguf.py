"""Tiny random models in GGUF files, with the tests' tokenizer."""

import json
from pathlib import Path

import gguf
import numpy as np
import torch
import transformers as tf
from transformers.modeling_gguf_pytorch_utils import (
    TENSOR_PROCESSORS,
    TensorProcessor,
    get_gguf_hf_weights_map,
)

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
    add_tokenizer(writer, tokenizer)
    _add_tensors(writer, len(tokenizer), np.random.default_rng(seed))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


# What a file of each architecture says of its sizes, under llama.cpp's keys.
_SIZES = {
    "embedding_length": HIDDEN,
    "block_count": LAYERS,
    "feed_forward_length": INNER,
    "attention.head_count": HEADS,
    "attention.head_count_kv": 2,
    "context_length": 256,
}
_RMS = {"attention.layer_norm_rms_epsilon": 1e-5, "rope.freq_base": 10000.0}
_NORM = {"attention.layer_norm_epsilon": 1e-5}
_HEADS = {"attention.key_length": 16, "attention.value_length": 16}
_WINDOW = {"attention.sliding_window": 16}
_EXPERTS = {"expert_count": 4, "expert_used_count": 2, "expert_feed_forward_length": 32}
ARCHITECTURES = {
    "llama": {**_SIZES, **_RMS, "rope.dimension_count": HIDDEN // HEADS},
    "qwen2": {**_SIZES, **_RMS},
    "qwen3": {**_SIZES, **_RMS},
    "gemma2": {**_SIZES, **_RMS, **_HEADS, **_WINDOW},
    "gemma3": {**_SIZES, **_RMS, **_HEADS, **_WINDOW},
    "phi3": {**_SIZES, **_RMS, "rope.dimension_count": HIDDEN // HEADS},
    "stablelm": {**_SIZES, **_NORM},
    "nemotron": {**_SIZES, "attention.layer_norm_rms_epsilon": 1e-5},
    "starcoder2": {**_SIZES, **_NORM},
    "falcon": {**_SIZES, **_NORM, "attention.head_count_kv": 1},
    "bloom": {**_SIZES, **_NORM},
    "gpt2": {**_SIZES, **_NORM},
    "lfm2": {
        **_SIZES,
        **_RMS,
        "attention.head_count_kv": [0, 2, 0, 2],
        "shortconv.l_cache": 3,
    },
    "qwen2moe": {**_SIZES, **_RMS, **_EXPERTS, "expert_shared_feed_forward_length": 64},
    "qwen3moe": {**_SIZES, **_RMS, **_HEADS, **_EXPERTS},
    "minimax-m2": {
        **_SIZES,
        **_RMS,
        **_HEADS,
        **_EXPERTS,
        "expert_feed_forward_length": 96,
        "expert_gating_func": 2,
        "rope.dimension_count": 8,
    },
}
"""What transformers loads from GGUF files, as tiny as it goes."""


def tiny_of(
    architecture: str,
    path: Path,
    kind: str = "F32",
    seed: int = 0,
    only: str = "",
    wide: bool = False,
    alignment: int | None = None,
) -> Path:
    """Write a random model of any of `ARCHITECTURES`, with the tests' tokenizer.

    Which tensors there are, and how large, is taken from the model that transformers makes of the
    metadata.

    Args:
        architecture: A key of `ARCHITECTURES`.
        path: The file.
        kind: The type of the matrices, where their rows are long enough for it; F32 elsewhere.
        seed: Of the weights.
        only: A part of the names of the matrices that are of that type; F32 elsewhere.
        wide: Make rows of 256 weights, long enough for every type.
        alignment: Of the tensors; None for the format's own.
    """
    bare = path.with_suffix(".bare.gguf")
    sizes = ARCHITECTURES[architecture]
    if wide:
        sizes = sizes | {"embedding_length": 256, "feed_forward_length": 256}
        sizes |= {"rope.dimension_count": 256 // HEADS}
    _write(bare, architecture, sizes, {}, None)
    random = np.random.default_rng(seed)
    tensors = {}
    for name, shape in _shapes(bare, architecture).items():
        matrix = len(shape) > 1
        values = random.standard_normal(shape) * (0.15 if matrix else 0.1) + (not matrix)
        found = values.astype(np.float32), "F32"
        weights = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]][0]
        if matrix and only in name and not shape[-1] % weights and kind != "F32":
            rows = random_rows(kind, int(np.prod(shape[:-1])), shape[-1], int(random.integers(99)))
            found = rows.reshape(*shape[:-1], -1), kind
        tensors[name] = found
    if architecture in ("minimax-m2", "nemotron", "qwen2moe", "stablelm"):
        # Their embeddings llama.cpp does not tie.
        tensors["output.weight"] = tensors["token_embd.weight"]
    bare.unlink()
    return _write(path, architecture, sizes, tensors, alignment)


def _write(
    path: Path, architecture: str, sizes: dict, tensors: dict, alignment: int | None
) -> Path:
    tokenizer = tiny_tokenizer()
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name("tiny")
    if alignment:
        writer.add_custom_alignment(alignment)
    for key, value in sizes.items():
        adds = {int: writer.add_uint32, float: writer.add_float32, list: writer.add_array}
        adds[type(value)](f"{architecture}.{key}", value)
    add_tokenizer(writer, tokenizer)
    for name, (values, kind) in tensors.items():
        writer.add_tensor(name, values, raw_dtype=gguf.GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _shapes(bare: Path, architecture: str) -> dict[str, tuple[int, ...]]:
    """The shapes of a model's tensors in a GGUF file, from one without any."""
    config = tf.AutoConfig.from_pretrained(bare.parent, gguf_file=bare.name)
    config.tie_word_embeddings = True
    if architecture.startswith("qwen") and architecture.endswith("moe"):
        # transformers reads neither
        config.moe_intermediate_size = ARCHITECTURES[architecture]["expert_feed_forward_length"]
        config.shared_expert_intermediate_size = 64
    with torch.device("meta"):
        model = tf.AutoModelForCausalLM.from_config(config)
    sizes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    routing = ((n, b) for n, b in model.named_buffers() if n.endswith("e_score_correction_bias"))
    sizes |= {name: tuple(buffer.shape) for name, buffer in routing}
    if architecture == "lfm2":
        return {_lfm2_name(name): _squeezed(shape) for name, shape in sizes.items()}
    kind = TENSOR_PROCESSORS.get(architecture, TensorProcessor)
    table = get_gguf_hf_weights_map(model, kind(config=config.to_dict()))
    shapes = {}
    for name, parameter in table.items():
        if parameter not in sizes:
            continue
        shape = sizes[parameter]
        if architecture == "gpt2" and len(shape) == 2 and name.startswith("blk."):
            shape = shape[::-1]  # GPT-2's layers keep their weights transposed
        if name.endswith(("gate_exps", "up_exps")):
            shape = (shape[0], shape[1] // 2, shape[2])  # which transformers joins
        if name.endswith("_exps"):
            name += ".weight"
        if name.endswith("ffn_gate_inp_shexp.weight"):
            shape = shape[1:]
        shapes[name] = shape
    return shapes


def _lfm2_name(parameter: str) -> str:
    names = {
        "model.embed_tokens": "token_embd",
        "model.embedding_norm": "token_embd_norm",
        "model.layers": "blk",
        "operator_norm": "attn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.out_proj": "attn_output",
        "self_attn.q_layernorm": "attn_q_norm",
        "self_attn.k_layernorm": "attn_k_norm",
        "feed_forward.w1": "ffn_gate",
        "feed_forward.w3": "ffn_up",
        "feed_forward.w2": "ffn_down",
        "conv.conv": "shortconv.conv",
        "conv.in_proj": "shortconv.in_proj",
        "conv.out_proj": "shortconv.out_proj",
    }
    for ours, theirs in names.items():
        parameter = parameter.replace(ours, theirs)
    return parameter


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (shape[0], shape[2]) if len(shape) == 3 else shape


def add_tokenizer(writer, tokenizer) -> None:
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
    elif kind == "NVFP4":  # each has eight steps an octave
        blocks[..., :4] = random.integers(60, 76, (*blocks.shape[:2], 4))
    else:
        _set_random_scales(kind, blocks, 1.0 if scale is None else scale, random)
    found = blocks.reshape(rows, -1)
    if scale is None:
        values = np.asarray(gguf.dequantize(found, number))
        if kind == "MXFP4":
            shift = round(np.log2(values.std() / 0.15))
            blocks[..., 0] = blocks[..., 0].astype(int) - shift
        elif kind == "NVFP4":
            shift = round(8 * np.log2(values.std() / 0.15))
            blocks[..., :4] = blocks[..., :4].astype(int) - shift
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
