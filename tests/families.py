"""Tiny random models of many families, with a real tokenizer, for every test that needs a model."""

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import BPE

from sordino.models.classes import auto_class
from tiny_configs import GROUPED, IDS, LAYERS, NEW, OLD, VOCABULARY, small

BOS, EOS, PAD = "<s>", "</s>", "<pad>"
_FALCON: dict[str, Any] = {
    **IDS,
    "hidden_size": 32,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
}
_WINDOW = {**GROUPED, "head_dim": 8, "sliding_window": 16}

FAMILIES: dict[str, Callable[[], tf.PretrainedConfig]] = {
    "gpt2": lambda: tf.GPT2Config(**OLD),
    "gpt_neox": lambda: tf.GPTNeoXConfig(**NEW),
    "gptj": lambda: tf.GPTJConfig(**OLD, rotary_dim=4),
    "opt": lambda: tf.OPTConfig(
        **{k: v for k, v in NEW.items() if k != "intermediate_size"},
        ffn_dim=48,
        word_embed_proj_dim=32,
    ),
    "bloom": lambda: tf.BloomConfig(**IDS, hidden_size=32, n_layer=LAYERS, n_head=4),
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
    "mpt": lambda: tf.MptConfig(**IDS, d_model=32, n_layers=LAYERS, n_heads=4, max_seq_len=256),
    "llama": lambda: tf.LlamaConfig(**GROUPED),
    "llama_biased": lambda: tf.LlamaConfig(**GROUPED, mlp_bias=True, attention_bias=True),
    "mistral": lambda: tf.MistralConfig(**GROUPED, sliding_window=16),
    "qwen2": lambda: tf.Qwen2Config(**GROUPED),
    "qwen3": lambda: tf.Qwen3Config(**GROUPED, head_dim=8),
    "gemma2": lambda: tf.Gemma2Config(**_WINDOW, query_pre_attn_scalar=8),
    "gemma3": lambda: tf.Gemma3TextConfig(**_WINDOW, query_pre_attn_scalar=8),
    "phi": lambda: tf.PhiConfig(**NEW),
    "phi3": lambda: tf.Phi3Config(**GROUPED),
    "olmo2": lambda: tf.Olmo2Config(**GROUPED),
    "stablelm": lambda: tf.StableLmConfig(**GROUPED),
    "cohere": lambda: tf.CohereConfig(**GROUPED),
    "starcoder2": lambda: tf.Starcoder2Config(**GROUPED, use_bias=True),
    "granite": lambda: tf.GraniteConfig(**GROUPED),
}
"""Families whose every feed-forward matrix is a site."""

_SHORT_CONVOLUTIONS = {"layer_types": ["conv", "full_attention"] * 2}

MORE: dict[str, Callable[[], tf.PretrainedConfig]] = {
    "codegen": small("codegen", rotary_dim=4, n_ctx=256),
    "gpt_neo": small("gpt_neo", attention_types=[[["global", "local"], 2]]),
    **{
        kind: small(kind)
        for kind in (
            *("apertus", "arcee", "bert", "biogpt", "bitnet", "cohere2", "cwm", "diffllama"),
            *("doge", "ernie4_5", "exaone4", "gemma", "glm", "glm4", "gpt_bigcode"),
            *("gpt_neox_japanese", "helium", "hunyuan_v1_dense", "internlm3", "jais2"),
            *("ministral3", "moshi", "nanochat", "nemotron", "olmo", "olmo3", "openai-gpt"),
            *("persimmon", "seed_oss", "smollm3", "vaultgemma", "xglm", "gemma4_text", "minicpm3"),
            *("youtu", "big_bird", "camembert", "bert-generation", "cohere_compass_text", "ctrl"),
            *("data2vec-text", "electra", "ernie", "gemma3n_text", "gemma4_unified_text", "git"),
            *("gpt-sw3", "granite_swa", "hyperclovax", "iquestcoder", "megatron-bert", "ministral"),
            *("modernbert-decoder", "moss_transcribe_diarize", "phi4_multimodal"),
            *("rembert", "roberta", "roberta-prelayernorm", "roc_bert", "roformer", "xlm-roberta"),
            *("xlm-roberta-xl", "xmod"),
        )
    },
}
"""Families without MoE experts that only the architecture matrix tests."""

DECODERS: dict[str, Callable[[], tf.PretrainedConfig]] = {
    kind: small(kind)
    for kind in (
        *("bart", "bigbird_pegasus", "blenderbot", "blenderbot-small", "marian", "mbart", "mvp"),
        *("pegasus", "plbart", "trocr", "whisper"),
    )
}
"""Decoders of encoder-decoders."""

HYBRIDS: dict[str, Callable[[], tf.PretrainedConfig]] = {
    "bamba": small("bamba", attn_layer_indices=[1, 3]),
    "falcon_h1": small("falcon_h1", mamba_d_ssm=64, mamba_n_groups=1),
    "granitemoehybrid_dense": small(
        "granitemoehybrid",
        layer_types=["linear_attention", "full_attention"] * 2,
        num_local_experts=0,
    ),
    "lfm2": small("lfm2", **_SHORT_CONVOLUTIONS, block_auto_adjust_ff_dim=False),
    "olmo_hybrid": small("olmo_hybrid"),
    "lfm3": small("lfm3"),
    "qwen3_5_text": small("qwen3_5_text"),
    "recurrent_gemma": small("recurrent_gemma"),
    "rwkv": small("rwkv"),
}
"""Families in which something else than attention mixes tokens, in some layers or in all."""

PURE: dict[str, Callable[[], tf.PretrainedConfig]] = {
    "falcon_mamba": small("falcon_mamba"),
    "mamba": small("mamba"),
    "mamba2": small("mamba2", num_heads=8, head_dim=8, n_groups=1, chunk_size=16),
}
"""Families that have nothing but what mixes tokens."""

MIXTURES: dict[str, Callable[[], tf.PretrainedConfig]] = {
    "deepseek_v2": small("deepseek_v2"),
    "deepseek_v3": small("deepseek_v3"),
    "granitemoehybrid": small(
        "granitemoehybrid", layer_types=["linear_attention", "full_attention"] * 2
    ),
    "jamba": small("jamba", attn_layer_period=2, attn_layer_offset=1),
    "lfm2_moe": small("lfm2_moe", **_SHORT_CONVOLUTIONS, num_dense_layers=1),
    "llama4_text": small("llama4_text", intermediate_size_mlp=48, moe_layers=[1, 3]),
    "gemma4_moe": small(
        "gemma4_text",
        enable_moe_block=True,
        num_experts=4,
        top_k_experts=2,
        moe_intermediate_size=24,
    ),
    **{
        kind: small(kind)
        for kind in (
            *("afmoe", "cohere2_moe", "dots1", "ernie4_5_moe", "exaone_moe", "flex_olmo"),
            *("glm4_moe", "gpt_oss", "granitemoe", "granitemoeshared", "hunyuan_v1_moe"),
            *("mimo_v2_flash", "minimax", "minimax_m2", "mixtral", "olmoe", "phimoe"),
            *("qwen2_moe", "qwen3_moe", "nemotron_h", "qwen3_next", "aria_text", "axk1", "axk2"),
            *("bailing_hybrid", "beam", "deepseek_v32", "deepseek_v4", "dots3_note_text", "flint"),
            *("glm4_moe_lite", "glm_moe_dsa", "granitemoe_swa", "hy_v3", "hy_v4", "inkling2_text"),
            *("inkling_text", "kimi_linear", "kolibri1", "laguna", "longcat_flash", "mellum"),
            *("minimax_m3_vl_text", "qwen3_5_moe_text", "qwen4_exp_text", "solar_open", "zaya"),
        )
    },
}
"""Families with MoE experts."""

FAULTY = {"5.24.0": ("llama4",)}.get(tf.__version__, ())
"""Families with pictures that the installed transformers itself cannot run."""

VISION: dict[str, Callable[[], tf.PretrainedConfig]] = {
    "gemma3_vision": small("gemma3"),
    **{
        kind: small(kind)
        for kind in (
            *("glm4v", "qwen2_vl", "qwen2_5_vl", "glm4v_moe"),
            *("aria", "aya_vision", "deepseek_vl", "idefics3", "internvl"),
            *("llava", "llava_next", "llava_onevision", "mistral3", "mllama"),
            *("qwen3_vl", "qwen3_5", "lfm2_vl"),
            *("smolvlm", "vipllava"),
            *("chameleon", "cohere2_vision", "cohere_compass", "cosmos3_edge", "cosmos3_omni"),
            *("deepseek_ocr2", "deepseek_vl_hybrid", "dots3_note", "emu3", "exaone4_5", "fuyu"),
            *("gemma4", "gemma4_unified", "glm46v", "glm5_next", "glm_ocr", "glmga", "got_ocr2"),
            *("granite4_vision", "granite_docling", "hunyuan_vl", "hyperclovax_vision_v2"),
            *("idefics2", "inkling2", "inkling_mm_model", "janus", "kimi_k25", "kosmos-2.5"),
            *("lfm3_vl", "lighton_ocr", "llama4", "llava_next_video", "minicpm_ocr"),
            *("minicpmv4_6", "minicpmv4_7", "minimax_m3_vl", "mistral4", "mistral_large4"),
            *("molmo2", "muse_glimmer", "muse_spark", "nemotron_h_omni", "ovis2", "paddleocr_vl"),
            *("pp_chart2table", "qianfan_ocr", "qwen2_5_omni_thinker", "qwen3_5_moe"),
            *("qwen3_omni_moe_thinker", "qwen3_vl_moe", "qwen4_exp", "step3p7", "unlimited_ocr"),
            *("video_llama_3", "video_llava"),
        )
        if kind not in FAULTY
    },
}
"""Families that take pictures beside text."""

REFUSED: dict[str, Callable[[], tf.PretrainedConfig]] = {
    kind: small(kind)
    for kind in (
        *("blip", "blip-2", "blt", "cpmant", "dbrx", "diffusion_gemma", "ernie4_5_vl_moe"),
        *("florence2", "hrm_text", "idefics", "instructblip", "instructblipvideo", "jetmoe"),
        *("kosmos-2", "paligemma", "pi0", "pix2struct", "pp_formulanet", "prophetnet", "reformer"),
        *("shieldgemma2", "t5gemma2", "udop", "vision-encoder-decoder", "xlm", "xlnet", "zamba"),
        "zamba2",
    )
}
"""Families that Sordino refuses, at the latest when they are baked."""

BROKEN: dict[str, Callable[[], tf.PretrainedConfig]] = {"xlstm": small("xlstm")}
"""Families that fail in transformers itself."""

NOT_TRIED: dict[str, str] = {
    "evolla": "transformers' own auto classes do not open it",
    "fast_vlm": "its part for pictures takes timm, which is not among Sordino's packages",
    "gemma3n": "its part for pictures takes timm, which is not among Sordino's packages; "
    "gemma3n_text is its text part",
    "gemma4_assistant": "a draft model, which runs on another model's hidden states",
    "gemma4_unified_assistant": "a draft model, which runs on another model's hidden states",
    "musicgen": "it writes audio codes, not text",
    "musicgen_melody": "it writes audio codes, not text",
    "perception_lm": "its part for pictures takes timm, which is not among Sordino's packages",
}
"""Why a type of transformers' mappings is none of these families."""

SUPPORTED = FAMILIES | MORE | DECODERS | HYBRIDS | PURE | MIXTURES | VISION
ALL = SUPPORTED | REFUSED | BROKEN | {kind: small(kind) for kind in FAULTY}

# Of the families that resemble others, the default tests take these; the slow ones take all.
_EVERYDAY = FAMILIES.keys() | {
    *("bert", "bitnet", "gemma", "gpt_bigcode"),
    *("bart", "falcon_h1", "lfm2", "qwen3_5_text", "recurrent_gemma", "mamba"),
    *("gemma3n_text", "modernbert-decoder", "llava", "mllama", "qwen3_vl_moe"),
    *("deepseek_v3", "gpt_oss", "llama4_text", "mixtral", "qwen3_moe"),
    *("deepseek_v4", "inkling_text"),
}


def everyday(names: Collection[str], quick: Collection[str] = _EVERYDAY) -> list[Any]:
    """Parametrise a test by these families; those that are not quick are marked slow."""
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in names]


SITES = dict.fromkeys(PURE, "all")
"""What --sites has to say, where the default finds none."""


def class_of(name: str) -> Any:
    """The auto class that opens models of that family."""
    return auto_class(ALL[name]())


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
        for name, buffer in model.named_buffers():
            if name.endswith("tid2eid"):  # DeepSeek V4's table of which tokens go to which experts
                first, second = torch.arange(len(buffer))[:, None], torch.arange(buffer.shape[1])
                buffer.copy_((first + second) % config.num_local_experts)
    if hasattr(model, "generation_config"):
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


def assert_hooks_equal_baked(opened, dampening, atol: float) -> None:
    """Logits under forward hooks are those of the changed weights, and the hooks leave no trace."""
    ids = torch.arange(24).reshape(2, 12) + 3
    with torch.inference_mode():
        original = opened.model(ids).logits
        with dampening.applied(opened.model):
            hooked = opened.model(ids).logits
        torch.testing.assert_close(opened.model(ids).logits, original, rtol=0, atol=0)
        dampening.bake_into(opened.model)
        baked = opened.model(ids).logits
    torch.testing.assert_close(baked, hooked, rtol=1e-4, atol=atol)
    assert (baked - original).abs().max() > 1e-2
