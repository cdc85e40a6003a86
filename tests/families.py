"""Tiny random models of many families, with a real tokenizer, for every test that needs a model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as tf
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import BPE

BOS, EOS, PAD = "<s>", "</s>", "<pad>"
VOCABULARY = 300
LAYERS = 4

_IDS: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
# Sizes as most configurations call them, and as GPT-2's generation did.
_NEW: dict[str, Any] = {
    **_IDS,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
}
_GROUPED = {**_NEW, "num_key_value_heads": 2}
_OLD: dict[str, Any] = {**_IDS, "n_embd": 32, "n_layer": LAYERS, "n_head": 4, "n_positions": 256}
_FALCON: dict[str, Any] = {
    **_IDS,
    "hidden_size": 32,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
}
_WINDOW = {**_GROUPED, "head_dim": 8, "sliding_window": 16}

FAMILIES: dict[str, Callable[[], tf.PretrainedConfig]] = {
    "gpt2": lambda: tf.GPT2Config(**_OLD),
    "gpt_neox": lambda: tf.GPTNeoXConfig(**_NEW),
    "gptj": lambda: tf.GPTJConfig(**_OLD, rotary_dim=4),
    "opt": lambda: tf.OPTConfig(
        **{k: v for k, v in _NEW.items() if k != "intermediate_size"},
        ffn_dim=48,
        word_embed_proj_dim=32,
    ),
    "bloom": lambda: tf.BloomConfig(**_IDS, hidden_size=32, n_layer=LAYERS, n_head=4),
    "falcon_new": lambda: tf.FalconConfig(**_FALCON, new_decoder_architecture=True, num_kv_heads=2),
    "falcon_parallel": lambda: tf.FalconConfig(
        **_FALCON, new_decoder_architecture=False, parallel_attn=True, multi_query=True
    ),
    "falcon_sequential": lambda: tf.FalconConfig(
        **_FALCON,
        new_decoder_architecture=False,
        parallel_attn=False,
        multi_query=False,
        alibi=True,
        bias=True,
    ),
    "mpt": lambda: tf.MptConfig(**_IDS, d_model=32, n_layers=LAYERS, n_heads=4, max_seq_len=256),
    "llama": lambda: tf.LlamaConfig(**_GROUPED),
    "llama_biased": lambda: tf.LlamaConfig(**_GROUPED, mlp_bias=True, attention_bias=True),
    "mistral": lambda: tf.MistralConfig(**_GROUPED, sliding_window=16),
    "qwen2": lambda: tf.Qwen2Config(**_GROUPED),
    "qwen3": lambda: tf.Qwen3Config(**_GROUPED, head_dim=8),
    "gemma2": lambda: tf.Gemma2Config(**_WINDOW, query_pre_attn_scalar=8),
    "gemma3": lambda: tf.Gemma3TextConfig(**_WINDOW, query_pre_attn_scalar=8),
    "phi": lambda: tf.PhiConfig(**_NEW),
    "phi3": lambda: tf.Phi3Config(**_GROUPED),
    "olmo2": lambda: tf.Olmo2Config(**_GROUPED),
    "stablelm": lambda: tf.StableLmConfig(**_GROUPED),
    "cohere": lambda: tf.CohereConfig(**_GROUPED),
    "starcoder2": lambda: tf.Starcoder2Config(**_GROUPED, use_bias=True),
    "granite": lambda: tf.GraniteConfig(**_GROUPED),
}
"""Families whose every feed-forward matrix is a site."""

UNCOVERED: dict[str, Callable[[], tf.PretrainedConfig]] = {
    "mixtral": lambda: tf.MixtralConfig(**_GROUPED, num_local_experts=4, num_experts_per_tok=2),
}
"""Families with a feed-forward matrix that no site covers."""


def tiny_model(
    name: str, seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any
) -> tf.PreTrainedModel:
    """A random model of that family, in evaluation mode.

    Every parameter is random, also those that initialisation leaves at 0 or 1 (biases, norms), so
    that a test which forgets one of them fails. `changes` are set on the configuration.
    """
    config = (FAMILIES | UNCOVERED)[name]()
    for key, value in changes.items():
        setattr(config, key, value)
    model = tf.AutoModelForCausalLM.from_config(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() > 1:
                parameter.copy_(0.15 * noise)
            else:
                parameter.add_(0.1 * noise)
    model.generation_config.pad_token_id = 2
    return model.to(dtype).eval()


def tiny_tokenizer(*, bos: bool = True) -> tf.PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of `VOCABULARY` tokens that encodes any text.

    Args:
        bos: Whether it puts the BOS token in front of every text.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([BOS, EOS, PAD, *alphabet])}
    merges: list[tuple[str, str]] = []
    for left, right in (pair.split() for pair in _MERGES):
        merges.append((left, right))
        vocabulary[left + right] = len(vocabulary)
    assert len(vocabulary) <= VOCABULARY
    tokenizer = Tokenizer(BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{BOS} $A", special_tokens=[(BOS, vocabulary[BOS])]
        )
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        model_max_length=256,
        chat_template="{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}",
    )


_MERGES = (
    "Ġ t",
    "Ġ a",
    "h e",
    "i n",
    "r e",
    "o n",
    "Ġt he",
    "e r",
    "Ġ s",
    "a t",
    "Ġ w",
    "Ġ o",
    "e n",
    "Ġ c",
    "i t",
    "i s",
    "a n",
    "o r",
    "e s",
    "Ġ b",
    "e d",
    "Ġ f",
    "in g",
    "Ġ p",
    "o u",
    "Ġa n",
    "a l",
    "a r",
    "Ġt o",
    "Ġ m",
    "Ġo f",
    "Ġ in",
    "Ġ d",
    "Ġ h",
    "Ġan d",
)


def tiny_folder(
    name: str,
    tmp_path: Path,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    bos: bool = True,
    shard: str | None = None,
    **changes: Any,
) -> Path:
    """Save a tiny model and its tokenizer as a transformers folder, and give its path.

    Args:
        name: A key of `FAMILIES` or `UNCOVERED`.
        tmp_path: The folder in which the model's folder, called like the family, is made.
        seed: Of the random weights.
        dtype: Of the saved weights.
        bos: Whether the tokenizer puts a BOS token in front.
        shard: The largest size of a shard, such as "20KB"; None for one file.
        changes: Set on the configuration.
    """
    folder = tmp_path / name
    model = tiny_model(name, seed, dtype, **changes)
    model.save_pretrained(folder, **({"max_shard_size": shard} if shard else {}))
    tiny_tokenizer(bos=bos).save_pretrained(folder)
    return folder


def random_factors(sites: dict[str, int], seed: int = 0) -> dict[str, Any]:
    """Dampening factors in [0, 1], about half of them 1, for sites given with their neurons."""
    generator = torch.Generator().manual_seed(seed)
    factors = {}
    for site, neurons in sites.items():
        values = torch.rand(neurons, generator=generator)
        keep = torch.rand(neurons, generator=generator) < 0.5
        factors[site] = torch.where(keep, torch.ones(neurons), values).numpy()
    return factors
