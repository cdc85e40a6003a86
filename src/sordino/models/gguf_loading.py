"""Open a GGUF file with transformers, which reads it through our own checked header."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from sordino.errors import UserError
from sordino.files import counted, list_some
from sordino.models.calls import library_errors, quiet_transformers
from sordino.models.gguf_header import Header
from sordino.models.gguf_pieces import read_model
from sordino.models.reference import ModelRef
from sordino.models.transformers_internals import (
    GgufTable,
    forget_quantisation,
    gguf_table,
    knows_gguf,
    note_untested_version,
    reading_through,
)

# Sizes for which transformers takes its defaults and does not read the file's.
_EXPERTS_SIZES = {
    "expert_feed_forward_length": "moe_intermediate_size",
    "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
}

# Tensors of llama.cpp that transformers computes by itself.
_DERIVED = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")

# Architectures that transformers loads without experts only (Mixtral's files are of "llama"), or
# whose experts it looks for under names that llama.cpp does not use.
_WITHOUT_EXPERTS = ("llama", "gpt-oss")


def is_loadable(header: Header) -> bool:
    """Whether transformers loads models of a GGUF file's architecture."""
    if header.architecture in _WITHOUT_EXPERTS and holds_experts(header):
        return False
    return knows_gguf(header.architecture)


def holds_experts(header: Header) -> bool:
    """Whether a GGUF file's metadata say that it has MoE experts."""
    return bool(header.metadata.get(f"{header.architecture}.expert_count"))


@contextmanager
def reading(path: Path) -> Iterator[Header]:
    """Check a GGUF file's header, and make transformers read the file through it in this block.

    Raises:
        UserError: The file is damaged or lacks a piece, or its sizes contradict each other.
    """
    note_untested_version()
    header = read_model(path)
    _refuse_other_blocks(header)
    with reading_through(header):
        yield header


def load(
    ref: ModelRef, options: Mapping[str, Any]
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The de-quantised model of a GGUF file, like one from a plain folder, and its tokenizer.

    Raises:
        UserError: The file is damaged or incomplete.
    """
    with reading(ref.path) as header:
        config, where = module_tree(header).config, _place(ref.path)
        with quiet_transformers(), library_errors(ref.name):
            tokenizer = AutoTokenizer.from_pretrained(**where)
            model = AutoModelForCausalLM.from_pretrained(**where, config=config, **options)
    forget_quantisation(model)
    return model, tokenizer


def config_of(header: Header) -> PretrainedConfig:
    """The transformers configuration of a GGUF file, inside `reading`.

    Biases of the feed-forward part, for which transformers does not look, are turned on if the file
    has them, and experts get the file's sizes.

    Raises:
        UserError: Transformers does not load the file's experts.
    """
    if header.architecture in _WITHOUT_EXPERTS and holds_experts(header):
        raise UserError(
            f"{header.path} holds MoE experts, which transformers does not load from GGUF files of "
            f"the architecture {header.architecture}: find experts in the folder from which it was "
            "made, and bake that expertise into it with `allow_other_weights=True`."
        )
    with quiet_transformers(), library_errors(str(header.path)):
        config = AutoConfig.from_pretrained(**_place(header.path))
    for key, setting in _EXPERTS_SIZES.items():
        size = header.metadata.get(f"{header.architecture}.{key}")
        if isinstance(size, int) and hasattr(config, setting):
            setattr(config, setting, size)
    if getattr(config, "mlp_bias", None) is False:
        config.mlp_bias = "blk.0.ffn_up.bias" in header.tensors
    return config


def _place(path: Path) -> dict[str, Any]:
    """Arguments for transformers' loaders, with an absolute path to the file.

    A relative one would prefer a file of that name in the working directory.
    """
    whole = path.absolute()
    return {
        "pretrained_model_name_or_path": whole.parent,
        "gguf_file": str(whole),
        "trust_remote_code": False,
    }


def module_tree(header: Header) -> PreTrainedModel:
    """The module tree of a GGUF file without its weights, inside `reading`.

    Raises:
        UserError: The file lacks a parameter's tensor, or has it in another size.
    """
    config = config_of(header)
    with quiet_transformers(), library_errors(str(header.path)), torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    _refuse_unfit(header, model)
    return model


def table_of(header: Header, model: PreTrainedModel) -> GgufTable:
    """How the tensors of a GGUF file become its model's parameters, inside `reading`."""
    with library_errors(str(header.path)):
        return gguf_table(header.architecture, model)


def _refuse_other_blocks(header: Header) -> None:
    """Refuse a wrong number of layers, with which others than the file's would be built."""
    said = header.metadata.get(f"{header.architecture}.block_count", 0)
    blocks = {name.split(".")[1] for name in header.tensors if name.startswith("blk.")}
    if isinstance(said, bool) or not isinstance(said, int) or said != len(blocks):
        raise UserError(
            f"{header.path} is damaged, because its block_count is {said} and it has tensors of "
            f"{len(blocks)} layers: get it again."
        )


def _refuse_unfit(header: Header, model: PreTrainedModel) -> None:
    """Refuse missing tensors, which transformers would silently fill with random numbers."""
    stored: defaultdict[str, int] = defaultdict(int)
    names = table_of(header, model).parameters(header.tensors)
    for tensor, target in names.items():
        stored[target] += header.tensors[tensor].elements
    for name, parameter in model.named_parameters():
        if not stored[name]:
            raise UserError(
                f"{header.path} has no tensor for {name}: it is incomplete, or of a variant of "
                f"{header.architecture} that transformers does not load from GGUF files."
            )
        if stored[name] != parameter.numel():
            raise UserError(
                f"{header.path} has {stored[name]:,} weights for {name}, and its metadata say "
                f"{parameter.numel():,}: it is damaged, get it again."
            )
    left_over = sorted(header.tensors.keys() - names.keys() - set(_DERIVED))
    if left_over:
        raise UserError(
            f"{header.path} has {counted(len(left_over), 'tensor')} that {type(model).__name__} "
            f"has no place for ({list_some(left_over, 3)}): it is of a variant of "
            f"{header.architecture} that transformers does not load from GGUF files."
        )
