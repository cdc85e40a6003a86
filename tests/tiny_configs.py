"""Configurations of any model type in tiny sizes."""

from collections.abc import Callable, Mapping
from typing import Any

import transformers as tf

VOCABULARY = 300
LAYERS = 4

IDS: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
# Sizes as most configurations call them, and as GPT-2's generation did.
NEW: dict[str, Any] = {
    **IDS,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
}
GROUPED = {**NEW, "num_key_value_heads": 2}
OLD: dict[str, Any] = {**IDS, "n_embd": 32, "n_layer": LAYERS, "n_head": 4, "n_positions": 256}

# The same sizes under every name that a configuration may have for them.
_SIZES: dict[str, Any] = {
    **GROUPED,
    **OLD,
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
    "unpadded_vocab_size": VOCABULARY,
    "is_decoder": True,  # without it BERT's kind reads in both directions
}
_SEEING_SIZES: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "embed_dim", "projection_dim", "out_hidden_size"), 32),
    **dict.fromkeys(("vision_output_dim", "output_channels", "d_model", "output_dim"), 32),
    **dict.fromkeys(("projector_input_dim", "projector_output_dim", "encoder_hidden_size"), 32),
    **dict.fromkeys(("num_attention_heads", "num_heads", "attention_heads"), 4),
    **dict.fromkeys(("encoder_attention_heads", "num_key_value_heads"), 4),
    **dict.fromkeys(("num_hidden_layers", "depth", "num_layers", "encoder_layers"), 2),
    **dict.fromkeys(("text_hidden_size", "projector_hidden_size", "projection_hidden_dim"), 32),
    **dict.fromkeys(("intermediate_size", "encoder_ffn_dim"), 48),
    **{"mlp_ratio": 2, "image_size": 28, "patch_size": 14, "head_dim": 8},
    **{"num_channels": 3, "num_global_layers": 1},
}
# Tokens that stand for pictures are the last of the vocabulary, which no text has.
_PICTURES = (
    *("image_token_id", "image_token_index", "video_token_id", "video_token_index"),
    *("vision_start_token_id", "vision_end_token_id", "image_start_token_id", "image_end_token_id"),
    *("boi_token_index", "eoi_token_index", "boi_token_id", "eoi_token_id"),
    *("audio_token_id", "boa_token_id", "eoa_token_id", "eoa_token_index", "image_end_token_index"),
)
_SEEING_LAYERS = 2
_OF_TEXT = ("text_config", "decoder")
"""What configurations call the part that is of text."""


def _three_positions(*sections: int) -> dict[str, Any]:
    """Rotary embeddings of time, height and width."""
    return {
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e4,
            "mrope_section": list(sections),
        }
    }


_GEMMA_4: dict[str, Any] = {
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": VOCABULARY,
    "num_kv_shared_layers": 2,
    "global_head_dim": 16,
}
_GEMMA_3N: dict[str, Any] = {
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": VOCABULARY,
    "num_kv_shared_layers": 2,
    "activation_sparsity_pattern": [0.5, 0.0, 0.0, 0.0],
    "laurel_rank": 8,
    "intermediate_size": [48] * LAYERS,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
}
_INDEXED: dict[str, Any] = {"index_topk": 8, "index_head_dim": 8, "index_n_heads": 2}
_DELTA: dict[str, Any] = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
_TINY_SAM: dict[str, Any] = {"downsample_channels": [32, 32], "global_attn_indexes": [1]}
_NEMOTRON: dict[str, Any] = {
    "layers_block_type": ["linear_attention", "moe", "full_attention", "mlp"],
    "mamba_num_heads": 4,
    "mamba_head_dim": 16,
    "ssm_state_size": 8,
    "n_groups": 1,
}
_QWEN_4: dict[str, Any] = {
    **_DELTA,
    "layer_types": ["linear_attention", "indexed_attention"] * 2,
    "indexer_n_heads": 2,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 8,
    "indexer_budget": 8,
    "indexer_compress_ratio": 4,
    "hc_lowrank": 8,
}
_DOTS_3: dict[str, Any] = {
    **_INDEXED,
    "head_dim": 16,
    "layer_types": ["indexed_attention", "sliding_attention"] * 2,
    "shared_experts_intermediate_size": 24,
    "per_layer_config": {"00": {}},
}
_SOURCES: dict[str, Any] = {
    "kv_source_layers": [0, 1, 2, 3],
    "indexer_types": ["full"] * 4,
    "mlp_layer_types": ["dense", "sparse"] * 2,
    **_INDEXED,
}

# What a type needs beside sizes.
_OWN: dict[str, dict[str, Any]] = {
    "axk2": _INDEXED,
    "blt": {"encoder_hash_byte_group_vocab": 50, "decoder_config": {"hidden_size_global": 32}},
    "cohere_compass": {
        "text_config": {
            "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}
        }
    },
    "cohere_compass_text": {
        "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}
    },
    "cosmos3_edge": {"text_config": _three_positions(2, 1, 1)},
    "dbrx": {
        "ffn_config": {"hidden_size": 32, "ffn_hidden_size": 24},
        "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0},
    },
    "deepseek_ocr2": {
        "vision_config": {"sam_config": _TINY_SAM},
        "text_config": {"mlp_layer_types": ["dense", "sparse"] * 2, "num_experts_per_tok": 2},
    },
    "deepseek_v32": _INDEXED,
    "diffusion_gemma": {"text_config": {"global_head_dim": 16, "top_k_experts": 2}},
    "dots3_note_text": _DOTS_3,
    "dots3_note": {
        "text_config": _DOTS_3,
        "vision_config": {"adapter_in_dim": 32, "adapter_out_dim": 32, "num_local_experts": 4},
        "audio_config": {
            "adapter_input_size": 32,
            "adapter_out_dim": 32,
            "downsample_hidden_size": 8,
            "conv_output_size": 128,
        },
    },
    "emu3": {
        "vocabulary_map": {"<image>": 299},
        "vq_config": {"base_channels": 32, "channel_multiplier": [1], "codebook_size": 16},
    },
    "ernie4_5_vl_moe": {
        "text_config": {
            "moe_k": 2,
            "mlp_layer_types": ["dense", "sparse"] * 2,
            **_three_positions(1, 1, 2),
        }
    },
    "gemma3n": {"text_config": _GEMMA_3N},
    "gemma3n_text": _GEMMA_3N,
    "gemma4": {"text_config": _GEMMA_4},
    "gemma4_text": _GEMMA_4,
    "gemma4_unified": {
        "text_config": {"global_head_dim": 16},
        "vision_config": {"mm_embed_dim": 32, "mm_posemb_size": 16, "output_proj_dims": 32},
    },
    "gemma4_unified_text": {"global_head_dim": 16},
    "glm46v": {"text_config": _three_positions(2, 1, 1)},
    "glmga": {"text_config": _three_positions(2, 1, 1)},
    "glm4v": {"text_config": _three_positions(2, 1, 1)},
    "glm4v_moe": {"text_config": {"head_dim": 16, **_three_positions(2, 1, 1)}},
    "glm_ocr": {"text_config": _three_positions(2, 1, 1)},
    "glm5_next": {
        "text_config": {
            **_INDEXED,
            "index_kpool": 4,
            "qk_rope_head_dim": 0,
            "linear_head_dim": 8,
            "linear_num_heads": 4,
        }
    },
    "glm_moe_dsa": _INDEXED,
    "granite4_vision": {
        "spatial_target_layers": [0],
        "deepstack_layer_map": [[0, 0]],
        "downsample_rate": "1/2",
        "vision_config": {"hidden_size": 64},
    },
    "inkling_mm_model": {
        "text_config": {"n_shared_experts": 2},
        "vision_config": {"n_layers": 2},
    },
    "inkling_text": {"n_shared_experts": 2},
    "janus": {
        "vq_config": {
            "base_channels": 32,
            "channel_multiplier": [1],
            "num_embeddings": 16,
            "latent_channels": 8,
        }
    },
    "longcat_flash": {
        **{"zero_expert_num": 2, "moe_topk": 2},
        **{"expert_ffn_hidden_size": 24, "ffn_hidden_size": 48},
    },
    "mistral4": {"head_dim": 16},
    "mistral_large4": {"text_config": _SOURCES},
    "molmo2": {"adapter_config": {"vision_feature_layer": [-1]}},
    "nemotron_h": _NEMOTRON,
    "nemotron_h_omni": {
        "projector_hidden_size": 32,
        "vision_hidden_size": 32,
        "vision_config": {"max_img_size": 56},
        "text_config": _NEMOTRON,
    },
    "ovis2": {
        "visual_indicator_token_ids": [290, 291, 292, 293, 294],
        "hidden_size": 32,
        "vocab_size": 300,
        "vision_config": {"vocab_size": 32},
    },
    "paddleocr_vl": {"text_config": _three_positions(2, 1, 1)},
    "phi4_multimodal": {
        "audio_config": {
            "num_blocks": 2,
            "ext_pw_out_channel": 32,
            "depthwise_separable_out_channel": 32,
            "nemo_conv_channels": 32,
        }
    },
    "pp_formulanet": {
        "vision_config": {
            "post_conv_in_channels": 32,
            "post_conv_mid_channels": 32,
            "post_conv_out_channels": 32,
            "decoder_hidden_size": 32,
        }
    },
    "qwen2_5_omni_thinker": {"text_config": _three_positions(2, 1, 1)},
    "qwen2_5_vl": {"text_config": _three_positions(2, 1, 1)},
    "qwen2_vl": {"text_config": _three_positions(2, 1, 1)},
    "qwen3_5_text": _DELTA,
    "qwen3_next": _DELTA,
    "qwen4_exp": {"text_config": _QWEN_4},
    "qwen4_exp_text": _QWEN_4,
    "reformer": {
        "attn_layers": ["local", "lsh"] * 2,
        "axial_pos_embds_dim": [8, 24],
        "axial_pos_shape": [16, 16],
        "attention_head_size": 8,
        "feed_forward_size": 48,
    },
    "roc_bert": {
        "shape_vocab_size": 20,
        "shape_embed_dim": 8,
        "pronunciation_vocab_size": 20,
        "pronunciation_embed_dim": 8,
    },
    "unlimited_ocr": {"vision_config": {"sam_config": _TINY_SAM}},
    "xmod": {"default_language": "en_XX"},
    "zaya": {"num_experts_per_tok": 1, "router_hidden_size": 16},
    "chameleon": {
        "vocabulary_map": {"<image>": 299},
        "vq_config": {
            "base_channels": 32,
            "channel_multiplier": [1],
            "num_embeddings": 16,
            "embed_dim": 8,
            "latent_channels": 8,
            "resolution": 28,
        },
    },
    "evolla": {
        "resampler_depth": 1,
        "resampler_dim_head": 8,
        "resampler_heads": 4,
        "resampler_num_latents": 4,
        "aligner_num_add_layers": 1,
    },
    "glm4_moe_lite": {"head_dim": 8},
    "hunyuan_vl": {"text_config": _three_positions(2, 1, 1)},
    "idefics": {
        "vision_config": {"patch_size": 14},
        "perceiver_config": {
            "resampler_n_latents": 4,
            "resampler_depth": 1,
            "resampler_n_heads": 4,
            "resampler_head_dim": 8,
        },
    },
    "muse_glimmer": {
        "out_hidden_size": 32,
        "projector_hidden_size": 32,
        "text_config": {"layer_rope_theta": [1e4, 0, 1e4, 0]},
    },
    "muse_spark": {
        "out_hidden_size": 32,
        "projector_hidden_size": 32,
        "audio_config": {
            "hidden_sizes": [8, 8],
            "depths": [1, 1],
            "patch_sizes": [16, 6],
            "num_hidden_layers": 2,
        },
    },
}


def small(kind: str, **changes: Any) -> Callable[[], tf.PretrainedConfig]:
    """Makes a configuration of that model type in the sizes above, as far as it has them.

    Args:
        kind: The model type.
        changes: Other settings; those of a part, such as "text_config", are laid over its sizes.
    """

    def make() -> tf.PretrainedConfig:
        base = tf.AutoConfig.for_model(kind)
        parts = _parts_fitting(base)
        own = {} if set(_OF_TEXT) & parts.keys() else _fitting(base, _SIZES, LAYERS)
        known = base.to_dict()
        pictures = {name: VOCABULARY - 1 - i for i, name in enumerate(_PICTURES) if name in known}
        made = _laid_over({**own, **pictures, **parts}, _OWN.get(kind, {}))
        return tf.AutoConfig.for_model(kind, **_laid_over(made, changes))

    return make


def _laid_over(below: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **below,
        **{
            name: _laid_over(below[name], value)
            if isinstance(value, dict) and isinstance(below.get(name), dict) and "config" in name
            else value
            for name, value in changes.items()
        },
    }


def _parts_fitting(base: tf.PretrainedConfig) -> dict[str, dict[str, Any]]:
    """The configurations inside a configuration, in tiny sizes, with one for pictures."""
    found = {}
    for name, its_class in base.sub_configs.items():
        part = getattr(base, name, None)
        if part is None and name == "vision_config":
            part = its_class()
        if not isinstance(part, tf.PretrainedConfig):
            continue
        is_text = name in _OF_TEXT
        sizes, layers = (_SIZES, LAYERS) if is_text else (_SEEING_SIZES, _SEEING_LAYERS)
        known = {key: value for key, value in part.to_dict().items() if key != "per_layer_config"}
        found[name] = {**known, **_fitting(part, sizes, layers), **_parts_fitting(part)}
    return found


def _fitting(config: tf.PretrainedConfig, sizes: Mapping[str, Any], layers: int) -> dict[str, Any]:
    """Those of the sizes that a configuration has, in its types, and what it says of each layer."""
    known = config.to_dict()
    made = {
        name: _like(known.get(name), value)
        for name, value in sizes.items()
        if name in known or name in config.attribute_map
    }
    if "kv_lora_rank" in known:  # attention by a latent vector, with as many keys as queries
        made["num_key_value_heads"] = 4
        if known.get("head_dim") in (None, known.get("qk_rope_head_dim")):
            made["head_dim"] = known.get("head_dim") and 8
    return made | _of_layers(config, layers)


def _like(old: Any, new: Any) -> Any:
    """A size in the type of the one that it replaces."""
    if isinstance(old, list | tuple):
        return [new] * len(old)
    return float(new) if isinstance(old, float) else new


def _of_layers(config: tf.PretrainedConfig, layers: int) -> dict[str, Any]:
    """What a configuration says of every layer, for fewer layers, so that all kinds are there."""
    count = getattr(config, "num_hidden_layers", None)
    found: dict[str, Any] = {}
    for name, value in config.to_dict().items():
        if isinstance(value, list) and len(value) == count:
            kinds = list(dict.fromkeys(value)) if isinstance(value[0], str) else value
            found[name] = [kinds[layer % len(kinds)] for layer in range(layers)]
    return found
