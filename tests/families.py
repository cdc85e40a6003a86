"""Tiny random models of many families, with a real tokenizer, for every test that needs a model."""

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import pytest
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

# The same sizes under every name that a configuration may have for them.
_SIZES: dict[str, Any] = {
    **_GROUPED,
    **_OLD,
    **dict.fromkeys(("d_model", "embedding_size", "word_embed_proj_dim"), 32),
    **dict.fromkeys(("n_layers", "num_layers", "decoder_layers", "encoder_layers"), LAYERS),
    **dict.fromkeys(("n_heads", "num_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("encoder_attention_heads", "mamba_n_heads"), 4),
    **dict.fromkeys(("ffn_dim", "d_ff", "decoder_ffn_dim", "encoder_ffn_dim"), 48),
    **dict.fromkeys(("num_local_experts", "num_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_top_k"), 2),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 24),
    **dict.fromkeys(("moe_shared_expert_intermediate_size", "shared_intermediate_size"), 24),
    **dict.fromkeys(("n_group", "topk_group", "n_shared_experts", "first_k_dense_replace"), 1),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "mamba_d_head", "sliding_window"), 16),
    **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim", "head_dim"), 8),
    **dict.fromkeys(("state_size", "mamba_d_state", "d_kv"), 8),
    **dict.fromkeys(("max_seq_len", "max_target_positions"), 256),
    "moe_num_experts": 4,
}


def _small(kind: str, **changes: Any) -> Callable[[], tf.PretrainedConfig]:
    """Makes a configuration of that model type in the sizes above, as far as it has them."""

    def make() -> tf.PretrainedConfig:
        config = tf.AutoConfig.for_model(kind)
        known = config.to_dict()
        sizes = {
            name: value
            for name, value in _SIZES.items()
            if name in known or name in type(config).attribute_map
        }
        if kinds := list(dict.fromkeys(known.get("layer_types") or ())):
            sizes["layer_types"] = [kinds[layer % len(kinds)] for layer in range(LAYERS)]
        return tf.AutoConfig.for_model(kind, **{**sizes, **changes})

    return make


_LATENT = {"head_dim": None, "num_key_value_heads": 4}  # attention by a latent vector
_DELTA: dict[str, Any] = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
_SHORT_CONVOLUTIONS = {"layer_types": ["conv", "full_attention"] * 2}

MORE: dict[str, Callable[[], tf.PretrainedConfig]] = {
    "codegen": _small("codegen", rotary_dim=4, n_ctx=256),
    "gemma4_text": _small(
        "gemma4_text",
        hidden_size_per_layer_input=8,
        vocab_size_per_layer_input=VOCABULARY,
        num_kv_shared_layers=2,
        global_head_dim=16,
    ),
    "gpt_neo": _small("gpt_neo", attention_types=[[["global", "local"], 2]]),
    "minicpm3": _small("minicpm3", **_LATENT),
    "youtu": _small("youtu", **_LATENT),
    **{
        kind: _small(kind)
        for kind in (
            *("apertus", "arcee", "bert", "biogpt", "bitnet", "cohere2", "cwm", "diffllama"),
            *("doge", "ernie4_5", "exaone4", "gemma", "glm", "glm4", "gpt_bigcode"),
            *("gpt_neox_japanese", "helium", "hunyuan_v1_dense", "internlm3", "jais2"),
            *("ministral3", "moshi", "nanochat", "nemotron", "olmo", "olmo3", "openai-gpt"),
            *("persimmon", "seed_oss", "smollm3", "vaultgemma", "xglm"),
        )
    },
}
"""Families without MoE experts that only the architecture matrix tests."""

DECODERS: dict[str, Callable[[], tf.PretrainedConfig]] = {
    kind: _small(kind)
    for kind in (
        *("bart", "bigbird_pegasus", "blenderbot", "blenderbot-small", "marian", "mbart", "mvp"),
        *("pegasus", "plbart", "trocr", "whisper"),
    )
}
"""Decoders of encoder-decoders."""

HYBRIDS: dict[str, Callable[[], tf.PretrainedConfig]] = {
    "bamba": _small("bamba", attn_layer_indices=[1, 3]),
    "falcon_h1": _small("falcon_h1", mamba_d_ssm=64, mamba_n_groups=1),
    "granitemoehybrid_dense": _small(
        "granitemoehybrid",
        layer_types=["linear_attention", "full_attention"] * 2,
        num_local_experts=0,
    ),
    "lfm2": _small("lfm2", **_SHORT_CONVOLUTIONS, block_auto_adjust_ff_dim=False),
    "olmo_hybrid": _small("olmo_hybrid"),
    "qwen3_5_text": _small("qwen3_5_text", **_DELTA),
    "recurrent_gemma": _small("recurrent_gemma"),
    "rwkv": _small("rwkv"),
}
"""Families in which something else than attention mixes tokens, in some layers or in all."""

PURE: dict[str, Callable[[], tf.PretrainedConfig]] = {
    "falcon_mamba": _small("falcon_mamba"),
    "mamba": _small("mamba"),
    "mamba2": _small("mamba2", num_heads=8, head_dim=8, n_groups=1, chunk_size=16),
}
"""Families that have nothing but what mixes tokens."""

MIXTURES: dict[str, Callable[[], tf.PretrainedConfig]] = {
    "deepseek_v2": _small("deepseek_v2", **_LATENT),
    "deepseek_v3": _small("deepseek_v3", **_LATENT),
    "granitemoehybrid": _small(
        "granitemoehybrid", layer_types=["linear_attention", "full_attention"] * 2
    ),
    "jamba": _small("jamba", attn_layer_period=2, attn_layer_offset=1),
    "lfm2_moe": _small("lfm2_moe", **_SHORT_CONVOLUTIONS, num_dense_layers=1),
    "llama4_text": _small("llama4_text", intermediate_size_mlp=48, interleave_moe_layer_step=2),
    "nemotron_h": _small(
        "nemotron_h",
        layers_block_type=["linear_attention", "moe", "full_attention", "mlp"],
        mamba_num_heads=4,
        mamba_head_dim=16,
        ssm_state_size=8,
        n_groups=1,
    ),
    "qwen3_next": _small("qwen3_next", **_DELTA),
    **{
        kind: _small(kind)
        for kind in (
            *("afmoe", "cohere2_moe", "dots1", "ernie4_5_moe", "exaone_moe", "flex_olmo"),
            *("glm4_moe", "gpt_oss", "granitemoe", "granitemoeshared", "hunyuan_v1_moe"),
            *("mimo_v2_flash", "minimax", "minimax_m2", "mixtral", "olmoe", "phimoe"),
            *("qwen2_moe", "qwen3_moe"),
        )
    },
}
"""Families with MoE experts."""

_VISION_SIZES: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "embed_dim", "projection_dim", "out_hidden_size"), 32),
    **dict.fromkeys(("vision_output_dim", "output_channels"), 32),
    **dict.fromkeys(("num_attention_heads", "num_heads", "attention_heads"), 4),
    **dict.fromkeys(("num_hidden_layers", "depth", "num_layers"), 2),
    **{"intermediate_size": 48, "mlp_ratio": 2, "image_size": 28, "patch_size": 14},
    **{"num_channels": 3, "num_global_layers": 1},
}
# Tokens that stand for pictures are the last of the vocabulary, which no text has.
_PICTURES = (
    *("image_token_id", "image_token_index", "video_token_id", "video_token_index"),
    *("vision_start_token_id", "vision_end_token_id", "image_start_token_id", "image_end_token_id"),
    *("boi_token_index", "eoi_token_index", "boi_token_id", "eoi_token_id"),
)


def _seeing(kind: str, **text: Any) -> Callable[[], tf.PretrainedConfig]:
    """Makes a configuration of that model type, its text part with these changes."""

    def make() -> tf.PretrainedConfig:
        base = tf.AutoConfig.for_model(kind)
        known = base.to_dict()
        pictures = {name: VOCABULARY - 1 - i for i, name in enumerate(_PICTURES) if name in known}
        sizes = {"text_config": (_SIZES, text), "vision_config": (_VISION_SIZES, {})}
        parts = {}
        for name, (small, changes) in sizes.items():
            part = getattr(base, name)
            made = part.to_dict()
            made |= {k: v for k, v in small.items() if k in made or k in part.attribute_map}
            if kinds := list(dict.fromkeys(made.get("layer_types") or ())):
                made["layer_types"] = [kinds[layer % len(kinds)] for layer in range(LAYERS)]
            parts[name] = {**made, **changes}
        return tf.AutoConfig.for_model(kind, **parts, **pictures)

    return make


_THREE_POSITIONS: dict[str, Any] = {
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}
}

VISION: dict[str, Callable[[], tf.PretrainedConfig]] = {
    "gemma3_vision": _seeing("gemma3"),
    **{kind: _seeing(kind, **_THREE_POSITIONS) for kind in ("glm4v", "qwen2_vl", "qwen2_5_vl")},
    "glm4v_moe": _seeing("glm4v_moe", head_dim=16, **_THREE_POSITIONS),
    **{
        kind: _seeing(kind)
        for kind in (
            *("aria", "aya_vision", "deepseek_vl", "idefics3", "internvl"),
            *("llava", "llava_next", "llava_onevision", "mistral3", "mllama", "paligemma"),
            *("qwen3_vl", "qwen3_5", "lfm2_vl"),
            *("smolvlm", "vipllava"),
        )
    },
}
"""Families that take pictures beside text."""

UNCOVERED: dict[str, Callable[[], tf.PretrainedConfig]] = {"jetmoe": _small("jetmoe")}
"""Families with a feed-forward matrix that no site covers."""

NOT_BAKED: dict[str, Callable[[], tf.PretrainedConfig]] = {"qwen3_vl_moe": _seeing("qwen3_vl_moe")}
"""Families that can be measured and hooked, but not baked as they lie in their files."""

NOT_FOUND: dict[str, Callable[[], tf.PretrainedConfig]] = {"prophetnet": _small("prophetnet")}
"""Families that cannot be measured."""

BROKEN: dict[str, Callable[[], tf.PretrainedConfig]] = {"xlstm": _small("xlstm")}
"""Families that fail in transformers itself."""

SUPPORTED = FAMILIES | MORE | DECODERS | HYBRIDS | PURE | MIXTURES | VISION
ALL = SUPPORTED | UNCOVERED | NOT_BAKED | NOT_FOUND | BROKEN

# Of the families that resemble others, the default tests take these; the slow ones take all.
_EVERYDAY = FAMILIES.keys() | {
    *("bert", "bitnet", "cohere2", "gemma", "glm4", "gpt_bigcode", "gpt_neo", "olmo", "smollm3"),
    *("bart", "falcon_h1", "lfm2", "qwen3_5_text", "recurrent_gemma", "mamba"),
    *("llava", "qwen2_5_vl", "mllama"),
    *("deepseek_v3", "gpt_oss", "granitemoe", "llama4_text", "mixtral", "qwen3_moe"),
}


def everyday(names: Collection[str]) -> list[Any]:
    """Parameters of a test: these families, of which some are for the slow tests only."""
    return [
        name if name in _EVERYDAY else pytest.param(name, marks=pytest.mark.slow) for name in names
    ]


SITES = dict.fromkeys(PURE, "all")
"""What --sites has to say, where the default finds none."""


def class_of(name: str) -> Any:
    """The auto class that opens models of that family."""
    seeing = name in VISION or name in NOT_BAKED
    return tf.AutoModelForImageTextToText if seeing else tf.AutoModelForCausalLM


def tiny_model(
    name: str, seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any
) -> tf.PreTrainedModel:
    """A random model of that family, in evaluation mode.

    Every parameter is random, also those that initialisation leaves at 0 or 1 (biases, norms), so
    that a test which forgets one of them fails. `changes` are set on the configuration.
    """
    config = ALL[name]()
    for key, value in changes.items():
        setattr(config, key, value)
    with torch.random.fork_rng():
        # What transformers draws stays beneath what is added to it (GPT-OSS's sinks and router).
        torch.manual_seed(seed)
        model = class_of(name).from_config(config)
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
        name: A key of `ALL`.
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
