"""A GGUF file opened through transformers, which sees it through our own checked header.

transformers reads a file's metadata three times with a reader that makes an array of every token,
and makes the table of tensor names anew for every module of the model; between them they cost ten
times what de-quantising costs. For the length of a load both are replaced: the reader by one over a
header that is read once, the table by itself remembered.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache, cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.core_model_loading import WeightRenaming, rename_source_key
from transformers.integrations.gguf import (
    GGUF_CONFIG_ARCHS,
    get_gguf_conversion_mapping,
    is_gguf_arch_supported,
)
from transformers.modeling_gguf_pytorch_utils import (
    GGUF_SUPPORTED_ARCHITECTURES,
    TENSOR_PROCESSORS,
    TensorProcessor,
    get_gguf_hf_weights_map,
)

from sordino.errors import UserError
from sordino.files import printable
from sordino.models.calls import library_errors, quiet_transformers
from sordino.models.gguf_header import Array, Header, read_header
from sordino.models.reference import ModelRef

# Sizes that transformers does not read, but takes the defaults of.
_EXPERTS_SIZES = {
    "expert_feed_forward_length": "moe_intermediate_size",
    "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
}

# What llama.cpp computes with and transformers computes by itself.
_DERIVED = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")


# Architectures that transformers loads without experts only (Mixtral's files are of "llama"), or
# whose experts it looks for under names that llama.cpp does not use.
_WITHOUT_EXPERTS = ("llama", "gpt-oss")


def is_loadable(header: Header) -> bool:
    """Whether transformers loads models of a GGUF file's architecture."""
    if header.architecture in _WITHOUT_EXPERTS and holds_experts(header):
        return False
    name = header.architecture.replace("-", "_")
    names = {header.architecture, name, f"{name.removesuffix('moe')}_moe"}
    return not names.isdisjoint({*GGUF_SUPPORTED_ARCHITECTURES, *GGUF_CONFIG_ARCHS})


def holds_experts(header: Header) -> bool:
    """Whether a GGUF file's metadata say that it has MoE experts."""
    return bool(header.metadata.get(f"{header.architecture}.expert_count"))


@contextmanager
def reading(path: Path) -> Iterator[Header]:
    """Check a GGUF file's header, and have transformers read the file through it in this block.

    Raises:
        UserError: The file is damaged, is one piece of several, or its sizes contradict each other.
    """
    header = read_header(path)
    _refuse_pieces(header)
    _refuse_other_blocks(header)
    reader, original = _Reader(header), gguf.GGUFReader
    table = gguf.get_tensor_name_map
    gguf.GGUFReader = lambda file, *rest: (
        reader if Path(file).resolve() == path.resolve() else original(file, *rest)
    )
    gguf.get_tensor_name_map = cache(table)
    try:
        yield header
    finally:
        gguf.GGUFReader, gguf.get_tensor_name_map = original, table


def load(
    ref: ModelRef, options: Mapping[str, Any]
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The de-quantised model of a GGUF file, as if it never had been one, and its tokenizer.

    Args:
        ref: The file.
        options: For transformers' `from_pretrained`.

    Raises:
        UserError: The file is damaged or incomplete.
    """
    with reading(ref.path) as header:
        config, where = module_tree(header).config, _place(ref.path)
        with quiet_transformers(), library_errors(ref.name):
            tokenizer = AutoTokenizer.from_pretrained(**where)
            model = AutoModelForCausalLM.from_pretrained(**where, config=config, **options)
    _forget(model)
    return model, tokenizer


def config_of(header: Header) -> PretrainedConfig:
    """The transformers configuration of a GGUF file, inside `reading`.

    Biases of the feed-forward part, which transformers does not look for, are turned on where the
    file has them, and experts have the sizes that it says.

    Raises:
        UserError: Transformers does not load the file's experts.
    """
    if header.architecture in _WITHOUT_EXPERTS and holds_experts(header):
        raise UserError(
            f"{header.path} holds MoE experts, which transformers does not load from GGUF files of "
            f"the architecture {header.architecture}: find on the folder from which it was made, "
            "and bake that expertise into it with --allow-other-weights."
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
    """A GGUF file, as transformers' loaders take it: the name has to be absolute.

    A file of that name in the working directory would be taken before the one in the folder.
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


def parameter_names(header: Header, model: PreTrainedModel) -> dict[str, str]:
    """By tensor name, the parameter that transformers loads a tensor into.

    Of tensors that are loaded into no parameter there is no entry; of several that are loaded into
    one parameter, each has one.
    """
    if is_gguf_arch_supported(header.architecture):
        return _by_conversions(header, model)
    with library_errors(str(header.path)):
        table = get_gguf_hf_weights_map(model, processor_of(header, model))
    found = {}
    for name in header.tensors:
        # Experts' matrices are parameters by themselves, whose names do not end in ".weight".
        parameter = table.get(name) or table.get(name.removesuffix(".weight"))
        if parameter is not None:
            found[name] = parameter
    return found


def processor_of(header: Header, model: PreTrainedModel) -> TensorProcessor:
    """What transformers sends this architecture's de-quantised tensors through."""
    kind: type[TensorProcessor] = TENSOR_PROCESSORS.get(header.architecture, TensorProcessor)
    return kind(config=model.config.to_dict())


class _Reader:
    """As much of `gguf.GGUFReader` as transformers uses.

    Args:
        header: The file's header.
    """

    def __init__(self, header: Header) -> None:
        self._header = header
        self.fields = {key: _Field(header, key) for key in header.metadata}

    @property
    def tensors(self) -> list[SimpleNamespace]:
        header = self._header
        return [
            SimpleNamespace(
                name=tensor.name,
                tensor_type=gguf.GGMLQuantizationType[tensor.kind],
                data=header.rows(tensor).reshape(*tensor.shape[:-1], -1),
            )
            for tensor in header.tensors.values()
        ]


class _Field:
    """A pair of key and value, as `gguf.GGUFReader` gives it, with the values as they are.

    Args:
        header: The file's header.
        key: The key.
    """

    types = (None,)  # no number of the format's: transformers then leaves the parts as they are

    def __init__(self, header: Header, key: str) -> None:
        self._header, self._key = header, key

    @cached_property
    def parts(self) -> list[Any]:
        value = self._header.metadata[self._key]
        if not isinstance(value, Array):
            return [value]
        values = self._header.read(value)
        # Of a list with one element transformers takes that element: so the whole array is one.
        return values if len(values) == 1 else [values]

    @property
    def data(self) -> range:
        return range(len(self.parts))


def _by_conversions(header: Header, model: PreTrainedModel) -> dict[str, str]:
    """The names by transformers' conversion tables, for the architectures that have them."""
    conversions = get_gguf_conversion_mapping(header.architecture, model.config)
    renamings = [entry for entry in conversions if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in conversions if not isinstance(entry, WeightRenaming)]
    expected = model.state_dict()
    found = {
        name: rename_source_key(name, renamings, converters, model.base_model_prefix, expected)[0]
        for name in header.tensors
    }
    return {name: parameter for name, parameter in found.items() if parameter in expected}


def _refuse_pieces(header: Header) -> None:
    pieces = header.metadata.get("split.count", 1)
    if isinstance(pieces, int) and pieces > 1:
        raise UserError(
            f"{header.path} is one of {pieces} pieces of a model: join them with llama.cpp's "
            "llama-gguf-split --merge."
        )


def _refuse_other_blocks(header: Header) -> None:
    """Other layers than the file has would be built, or left out, before it is found out."""
    said = header.metadata.get(f"{header.architecture}.block_count", 0)
    blocks = {name.split(".")[1] for name in header.tensors if name.startswith("blk.")}
    if isinstance(said, bool) or not isinstance(said, int) or said != len(blocks):
        raise UserError(
            f"{header.path} is damaged, for it says that it has {said} layers and has tensors of "
            f"{len(blocks)} (block_count): get it again."
        )


def _refuse_unfit(header: Header, model: PreTrainedModel) -> None:
    """What the file lacks, transformers would fill with random numbers without a word."""
    stored: defaultdict[str, int] = defaultdict(int)
    names = parameter_names(header, model)
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
        more = f" and {len(left_over) - 3:,} more" if len(left_over) > 3 else ""
        raise UserError(
            f"{header.path} has {len(left_over):,} tensors that {type(model).__name__} has no "
            f"place for ({', '.join(map(printable, left_over[:3]))}{more}): it is of a variant of "
            f"{header.architecture} that transformers does not load from GGUF files."
        )


def _forget(model: PreTrainedModel) -> None:
    """Drop the marks of the GGUF source: the weights are plain now and can be saved as such."""
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    for mark in ("hf_quantizer", "quantization_method"):
        if hasattr(model, mark):
            delattr(model, mark)
    model.is_quantized = False
