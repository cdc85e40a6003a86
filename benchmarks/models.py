"""Random weights of real shapes, a tokenizer for them, and sentences of random words."""

from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    OlmoeConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
)

from sordino.concepts.concept import Concept
from sordino.models.open import OpenModel
from sordino.models.reference import ModelRef

SHAPES = {
    "tiny": LlamaConfig(
        vocab_size=1000,
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
    ),
    "TinyLlama-1.1B": LlamaConfig(
        vocab_size=32000,
        hidden_size=2048,
        intermediate_size=5632,
        num_hidden_layers=22,
        num_attention_heads=32,
        num_key_value_heads=4,
    ),
    "Llama-2-7B": LlamaConfig(
        vocab_size=32000,
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=32,
    ),
    "Qwen3-8B": Qwen3Config(
        vocab_size=151936,
        hidden_size=4096,
        intermediate_size=12288,
        num_hidden_layers=36,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
    ),
    "OLMoE-1B-7B": OlmoeConfig(
        vocab_size=50304,
        hidden_size=2048,
        intermediate_size=1024,
        num_hidden_layers=16,
        num_attention_heads=16,
        num_key_value_heads=16,
        num_experts=64,
        num_experts_per_tok=8,
    ),
}


def random_model(
    name: str,
    config: PretrainedConfig,
    *,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> OpenModel:
    """An open model of that configuration whose weights are random, and belong to no file."""
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    vocabulary = {f"w{index}": index for index in range(config.vocab_size)}
    words = Tokenizer(WordLevel(vocabulary, unk_token="w0"))
    words.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w2", eos_token="w1")
    model.generation_config.eos_token_id = 1
    model.generation_config.pad_token_id = 2
    # The artefact names its weights by a file's sum. These have none, so this file stands for them.
    ref = ModelRef(f"random {name}", "gguf", Path(__file__))
    return OpenModel(ref, model.eval(), tokenizer)


def sentences(count: int, words: int, *, seed: int = 0, longest: int = 128) -> tuple[str, ...]:
    """Sentences of random words, about as long as comments are in tokens."""
    generator = np.random.default_rng(seed)
    lengths = np.clip(np.exp(generator.normal(3.6, 0.9, count)), 4, longest).astype(int)
    return tuple(
        " ".join(f"w{index}" for index in generator.integers(3, words, length))
        for length in lengths
    )


def random_concept(count: int, words: int) -> Concept:
    """As many random sentences, half of them called positive."""
    texts = sentences(count, words)
    half = count // 2
    return Concept("random", texts[:half], texts[half:], "random words")
