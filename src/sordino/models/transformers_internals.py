"""The one module that uses what transformers does not promise.

Transformers documents its models, configurations and auto classes. Sordino also needs the tables by
which tensors in files become parameters, the steps of loading, and the inside of experts and
caches. Such names may change with any minor version. They are imported here and nowhere else, each
behind a function or a class that says what it relies on; `make compatibility` tests them with the
oldest and the newest version of `TESTED_TRANSFORMERS`.

A name that the installed version lacks, or a table of another form, is a `UserError` that names it.
Otherwise it would look like a fault of the user's model.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import import_module
from operator import attrgetter
from pathlib import Path
from threading import RLock, get_ident
from types import SimpleNamespace
from typing import Any, Literal, NamedTuple, Protocol

import gguf
import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from packaging.specifiers import SpecifierSet
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from sordino.errors import UserError
from sordino.models.gguf_header import Array, Header
from sordino.progress import note
from sordino.version import TESTED_TRANSFORMERS


@cache
def note_untested_version(installed: str = transformers.__version__) -> None:
    """Say once if the installed transformers is outside the tested range."""
    if not SpecifierSet(TESTED_TRANSFORMERS).contains(installed, prereleases=True):
        note(
            f"transformers {installed} is installed, with which Sordino has not been tested: "
            f"{_MEND}."
        )


_FAULTS = {
    ("llama4", "5.24.0"): (
        "Llama4ForConditionalGeneration fails after every forward pass: it asks its text model for "
        "image_outputs, which that does not give"
    ),
}
"""What one version of transformers itself cannot run, by model type and version."""


def refuse_faulty(
    name: str, config: PretrainedConfig, installed: str = transformers.__version__
) -> None:
    """Raise `UserError` if the installed transformers is known to fail with this model type.

    Args:
        name: The model's name.
        config: Its configuration.
        installed: The version of transformers.
    """
    fault = _FAULTS.get((config.model_type, installed))
    if fault:
        raise UserError(
            f"{name} cannot be run with transformers {installed}, whose {fault}: "
            f'pip install "transformers{TESTED_TRANSFORMERS},!={installed}".'
        )


def _take(module: str, name: str) -> Any:
    """A name of a module of transformers, such as a function or "Class.method".

    Raises:
        UserError: The installed version does not have it.
    """
    whole = f"transformers.{module}"
    try:
        return attrgetter(name)(import_module(whole))
    except AttributeError:
        raise _unlike(f"has no {whole}.{name}") from None
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("transformers"):
            raise
        raise _unlike(f"has no {whole}.{name}") from None


def _unlike(what: str) -> UserError:
    return UserError(
        f"transformers {transformers.__version__} {what} that Sordino relies on: {_MEND}."
    )


_MEND = f'pip install "transformers{TESTED_TRANSFORMERS}"'

_Renaming = _take("core_model_loading", "WeightRenaming")
_Converter = _take("core_model_loading", "WeightConverter")
_rename = _take("core_model_loading", "rename_source_key")
_revert_weight_conversion = _take("core_model_loading", "revert_weight_conversion")
_natural_order = _take("core_model_loading", "dot_natural_key")
_load = _take("core_model_loading", "convert_and_load_state_dict_in_model")
_LoadingPlan = _take("modeling_utils", "LoadStateDictConfig")
_conversion_table = _take("conversion_mapping", "get_model_conversion_mapping")
_experts_functions = _take("integrations.moe", "ALL_EXPERTS_FUNCTIONS")
_gguf_table = _take("integrations.gguf", "get_gguf_conversion_mapping")
_has_gguf_table = _take("integrations.gguf", "is_gguf_arch_supported")
_GGUF_ARCHITECTURES = (
    *_take("integrations.gguf", "GGUF_CONFIG_ARCHS"),
    *_take("modeling_gguf_pytorch_utils", "GGUF_SUPPORTED_ARCHITECTURES"),
)
_take("modeling_gguf_pytorch_utils", "tqdm")
_gguf_reading: Any = import_module("transformers.modeling_gguf_pytorch_utils")
_gguf_names = _take("modeling_gguf_pytorch_utils", "get_gguf_hf_weights_map")
_PROCESSORS = _take("modeling_gguf_pytorch_utils", "TENSOR_PROCESSORS")
_Processor = _take("modeling_gguf_pytorch_utils", "TensorProcessor")
_PASSED_OVER = (_take("integrations.gguf.gguf_conversion_mapping", "PermuteInputFeatures"),)
_ON_ROWS = (
    _take("integrations.gguf.gguf_conversion_mapping", "PermuteRows"),
    _take("integrations.gguf.gguf_conversion_mapping", "Unsqueeze"),
    _take("core_model_loading", "Concatenate"),
)

_Output = _take("modeling_outputs", "CausalLMOutputWithPast")

CACHE = "cache" if "cache" in _Output.__dataclass_fields__ else "past_key_values"
"""The name of a model's argument and output for its cache: 5.24 renamed it and warns of the old."""


def counts_anew(model: PreTrainedModel) -> bool:
    """Whether a model counts positions from 0 again after the tokens in its cache.

    Bamba does (5.23), unless it is given the positions, as `generate` does.
    """
    return bool(model.config.get_text_config(decoder=True).model_type == "bamba")


for _method in (
    "_adjust_missing_and_unexpected_keys",
    "_finalize_model_loading",
    "_get_dtype_plan",
):
    _take("modeling_utils", f"PreTrainedModel.{_method}")

DynamicLayer = _take("cache_utils", "DynamicLayer")
"""A layer of a cache that grows by concatenation.

Relied on: `is_initialized`; `keys` and `values`, [rows, heads, tokens, dimensions]; `update`, which
gives both with what it was given; `reorder_cache`; `get_seq_length`.
"""

DynamicSlidingWindowLayer = _take("cache_utils", "DynamicSlidingWindowLayer")
"""The same with a `sliding_window`, which counts all tokens in `cumulative_length`."""


# How tensors in files become parameters


class Placement(NamedTuple):
    """Where a tensor of a file is loaded.

    Args:
        parameter: The parameter that it is loaded into; the first one if it is split.
        operations: The names of the operations on the way, such as "Concatenate"; none if the
            tensor is only renamed.
    """

    parameter: str
    operations: tuple[str, ...] = ()


class Conversions:
    """Transformers' table by which the tensors of a model's files become its parameters.

    Relied on: a table is a list of `WeightRenaming` and `WeightConverter`; renamings come first,
    then at most one converter; a converter has patterns of source and target, and operations.

    Args:
        model: The module tree.
        table: Its table; None for that of its class for safetensors files.

    Raises:
        UserError: The table has another kind of entry.
    """

    def __init__(self, model: PreTrainedModel, table: list[Any] | None = None) -> None:
        self.table: list[Any] = _conversion_table(model) if table is None else table
        for entry in self.table:
            if not isinstance(entry, _Renaming | _Converter):
                raise _unlike(
                    f"converts {type(model).__name__} with {type(entry).__name__}, which is not a "
                    "kind of entry"
                )
        self._model, self._parameters = model, model.state_dict()
        self._renamings = [entry for entry in self.table if isinstance(entry, _Renaming)]
        self._converters = [entry for entry in self.table if isinstance(entry, _Converter)]

    def place(self, names: Iterable[str]) -> dict[str, Placement]:
        """Where each tensor is loaded, in the order in which transformers loads them.

        A name that is a parameter's already, as `save_pretrained` once wrote them, is not renamed.
        """
        return {name: self._place(name) for name in sorted(set(names), key=_natural_order)}

    def _place(self, name: str) -> Placement:
        prefix, expected = self._model.base_model_prefix, self._parameters
        found, pattern = _rename(name, self._renamings, self._converters, prefix, expected)
        if found not in expected and name in expected:
            found, pattern = _rename(name, [], [], prefix, expected)
        return Placement(found, () if pattern is None else _names(self._converter(pattern)))

    def renamed(self, name: str) -> str:
        """What the renamings alone make of a name, whether or not it is a parameter's already."""
        found: str = _rename(name, self._renamings, [])[0]
        return found

    def _converter(self, pattern: str) -> Any:
        return next(entry for entry in self._converters if pattern in entry.source_patterns)

    def turned_by_shape(self, names: Iterable[str]) -> dict[str, str]:
        """The tensors that are transposed only if their shape differs from their parameter's.

        Relied on: `Transpose` has `check_dims` in that case.

        Returns:
            By tensor, its parameter.
        """
        prefix, found = self._model.base_model_prefix, {}
        for name in names:
            target, pattern = _rename(
                name, self._renamings, self._converters, prefix, self._parameters
            )
            operations = () if pattern is None else self._converter(pattern).operations
            if any(getattr(operation, "check_dims", False) for operation in operations):
                found[name] = target
        return found

    def revert(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Convert values from parameters back to the tensors in files, as `save_pretrained` does.

        Only the entries that `place` has used are reverted: others belong to other files.

        Args:
            values: By parameter, with those of all `companions`.
        """
        self._model._weight_conversions = self._used
        found: dict[str, Tensor] = _revert_weight_conversion(self._model, dict(values))
        return found

    def companions(self, parameters: Iterable[str]) -> dict[str, tuple[str, ...]]:
        """The parameters that share a tensor with these, and the operations of loading each.

        These are among them; one that is only renamed has no operations.
        """
        used = [entry for entry in reversed(self._used) if isinstance(entry, _Converter)]
        reverse = [entry.reverse_transform() for entry in used]
        operations = {
            pattern: _names(entry)
            for entry, back in zip(used, reverse, strict=True)
            for pattern in back.source_patterns
        }
        groups = {name: _rename(name, [], reverse) for name in self._parameters}
        wanted = {groups[name][0] for name in parameters}
        return {
            name: () if pattern is None else operations[pattern]
            for name, (group, pattern) in groups.items()
            if group in wanted
        }

    @property
    def _used(self) -> list[Any]:
        return [entry for entry in self.table if entry.was_used()]


def _names(converter: Any) -> tuple[str, ...]:
    return tuple(type(operation).__name__ for operation in converter.operations)


# The steps of loading


class Loaded(NamedTuple):
    """The differences between tensors and a model's parameters.

    Args:
        missing: The parameters without a tensor.
        left_over: The tensors without a parameter.
        mismatched: By parameter, its shape in the files and in the model.
        failed: The parameters whose conversion failed.
    """

    missing: set[str]
    left_over: set[str]
    mismatched: dict[str, tuple[tuple[int, ...], ...]]
    failed: set[str]


def load_tensors(
    model: PreTrainedModel,
    tensors: Mapping[str, Any],
    conversions: Conversions,
    device: torch.device,
) -> Loaded:
    """Load tensors into a model's parameters, converted and in its dtypes.

    Relied on: `convert_and_load_state_dict_in_model`, and that it reads a tensor by indexing it.

    Args:
        model: The model; parameters without a tensor stay as they are.
        tensors: By their names in the files; unread tensors, or "meta" tensors in their place.
        conversions: The model's.
        device: The device to load them to.
    """
    return _report_loaded(_load(model, dict(tensors), _plan(model, conversions, device))[0])


def compare(model: PreTrainedModel, tensors: Mapping[str, Tensor]) -> Loaded:
    """Which tensors and parameters do not fit together, without those that transformers computes.

    Relied on: `_adjust_missing_and_unexpected_keys`, which removes tied and computed weights.

    Args:
        model: The module tree on the "meta" device; its parameters are replaced.
        tensors: By their names in the files, on the "meta" device.
    """
    plan = _plan(model, Conversions(model), torch.device("meta"))
    found, _ = _load(model, dict(tensors), plan)
    model.tie_weights(missing_keys=found.missing_keys, recompute_mapping=False)
    model._adjust_missing_and_unexpected_keys(found)
    return _report_loaded(found)


def finish_loading(
    model: PreTrainedModel,
    tensors: Mapping[str, Tensor],
    conversions: Conversions,
    device: torch.device,
) -> None:
    """Tie weights, and fill buffers that are in no file, as `from_pretrained` does.

    Relied on: `_finalize_model_loading`.

    Args:
        model: The module tree on the "meta" device.
        tensors: All tensors of its files, on the "meta" device.
        conversions: The model's.
        device: The device of the buffers.
    """
    found, _ = _load(model, dict(tensors), _plan(model, conversions, torch.device("meta")))
    PreTrainedModel._finalize_model_loading(model, _plan(model, conversions, device), found)


def _plan(model: PreTrainedModel, conversions: Conversions, device: torch.device) -> Any:
    return _LoadingPlan(
        device_map={"": device},
        dtype=model.dtype,
        dtype_plan=model._get_dtype_plan(model.dtype),
        weight_mapping=conversions.table,
    )


def _report_loaded(found: Any) -> Loaded:
    return Loaded(
        set(found.missing_keys),
        set(found.unexpected_keys),
        {name: tuple(map(tuple, shapes)) for name, *shapes in found.mismatched_keys},
        set(found.conversion_errors),
    )


def is_quantised(model: PreTrainedModel) -> bool:
    """Whether a model in memory has quantised layers. Relied on: `quantization_method`."""
    return getattr(model, "quantization_method", None) is not None


def forget_quantisation(model: PreTrainedModel) -> None:
    """Remove the marks of a quantised source from a model whose weights are plain.

    Relied on: a loader leaves only these marks.
    """
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    for mark in ("hf_quantizer", "quantization_method"):
        if hasattr(model, mark):
            delattr(model, mark)
    model.is_quantized = False


def attention_of(config: PretrainedConfig) -> str | None:
    """The attention that a configuration asks for. Relied on: `_attn_implementation`."""
    found: str | None = getattr(config, "_attn_implementation", None)
    return found


def use_own_attention(config: PretrainedConfig) -> None:
    """Make transformers use torch's own attention for a configuration."""
    config._attn_implementation = None


# MoE experts whose weights are one tensor


def register_experts(name: str, forward: Callable[..., Tensor]) -> None:
    """Register a function that computes experts, for `set_experts_implementation`.

    Relied on: it is called with the module, the hidden states, and the indices and weights of each
    token's experts; the module has `num_experts`, `has_gate`, `act_fn` and `has_post_expert_norm`.
    """
    _experts_functions.register(name, forward)


ExpertsKind = Literal["interface", "llama4", "longcat", "step", "inkling shared"]

_OWN_EXPERTS: dict[str, ExpertsKind] = {
    "Llama4TextExperts": "llama4",
    "LongcatFlashExperts": "longcat",
    "Step3p7Experts": "step",
    "InklingSharedExperts": "inkling shared",
}


def experts_kind(module: nn.Module) -> ExpertsKind | None:
    """The kind of a module of fused experts; None for other modules.

    Relied on: the experts interface leaves `is_transposed`, `has_bias` and `_is_expert_parallel` in
    the module; the other classes have these names.
    """
    if own := _OWN_EXPERTS.get(type(module).__name__):
        return own
    marks = vars(module)
    return "interface" if "is_transposed" in marks and "_is_expert_parallel" in marks else None


def has_gate_step(module: nn.Module) -> bool:
    """Whether a module of experts has a step of its own for `apply_gate`."""
    return hasattr(module, "_apply_gate")


def apply_gate(module: Any, outputs: Tensor) -> Tensor:
    """The inputs of experts' down projection, [tokens, inner], from [tokens, 2 · inner].

    Relied on: `_apply_gate`.

    Raises:
        UserError: The module has no such step.
    """
    if not has_gate_step(module):
        raise _unlike(f"computes {type(module).__name__} without the _apply_gate")
    gated: Tensor = module._apply_gate(outputs)
    return gated


# GGUF files


class GgufTable(Protocol):
    """How transformers loads the tensors of a GGUF file."""

    def parameters(self, names: Iterable[str]) -> dict[str, str]:
        """By tensor, the parameter that it is loaded into; tensors without one are left out."""
        ...

    def convert(self, name: str, weights: NDArray[Any]) -> NDArray[Any]:
        """A tensor's parameter for these weights, [rows, columns]; columns may be in any order.

        If the parameter is made of several tensors, the others' weights are zeros.

        Raises:
            ValueError: It cannot be made from weights of this shape.
            UserError: It takes an operation that is not known here.
        """
        ...


def knows_gguf(architecture: str) -> bool:
    """Whether transformers loads models of a GGUF architecture, such as "qwen3moe"."""
    name = architecture.replace("-", "_")
    names = {architecture, name, f"{name.removesuffix('moe')}_moe"}
    return not names.isdisjoint(_GGUF_ARCHITECTURES)


def gguf_table(architecture: str, model: PreTrainedModel) -> GgufTable:
    """How the tensors of an architecture's GGUF files become a model's parameters.

    Relied on: newer architectures have a table of conversions, and the others a map of names and a
    `TensorProcessor`.
    """
    if _has_gguf_table(architecture):
        return _GgufConversions(model, _gguf_table(architecture, model.config))
    return _GgufProcessor(architecture, model)


class _GgufConversions(Conversions):
    def parameters(self, names: Iterable[str]) -> dict[str, str]:
        return {
            name: placement.parameter
            for name, placement in self.place(names).items()
            if placement.parameter in self._parameters
        }

    def convert(self, name: str, weights: NDArray[Any]) -> NDArray[Any]:
        _, pattern = _rename(name, self._renamings, self._converters)
        if pattern is None:
            return weights
        converter, values = self._converter(pattern), torch.from_numpy(weights.copy())
        sources, targets = converter.source_patterns, converter.target_patterns
        for operation in converter.operations:
            if isinstance(operation, _PASSED_OVER):
                continue  # it reorders columns
            if not isinstance(operation, _ON_ROWS):
                raise _unlike(
                    f"loads {name} with {type(operation).__name__}, which is not an operation"
                )
            given = {source: torch.zeros_like(values) for source in sources} | {pattern: values}
            [values] = operation.convert(given, sources, targets).values()
            sources = [pattern := targets[0]]
        return values.numpy()


class _GgufProcessor:
    def __init__(self, architecture: str, model: PreTrainedModel) -> None:
        kind = _PROCESSORS.get(architecture, _Processor)
        self._processor = kind(config=model.config.to_dict())
        self._names: dict[str, str] = _gguf_names(model, self._processor)

    def parameters(self, names: Iterable[str]) -> dict[str, str]:
        # Experts' matrices are parameters by themselves, whose names do not end in ".weight".
        found = {
            name: self._names.get(name) or self._names.get(name.removesuffix(".weight"))
            for name in names
        }
        return {name: parameter for name, parameter in found.items() if parameter is not None}

    def convert(self, name: str, weights: NDArray[Any]) -> NDArray[Any]:
        parsed: dict[str, dict[str, Tensor]] = {"tensors": {}}
        found = self._processor.process(
            weights=weights, name=name, tensor_key_mapping=self._names, parsed_parameters=parsed
        )
        if found.name is None:  # it was put into a larger parameter
            [whole] = parsed["tensors"].values()
            return whole.numpy()
        return np.asarray(found.weights)


_patching = RLock()


@contextmanager
def reading_through(header: Header) -> Iterator[None]:
    """Make transformers read a GGUF file through its checked header, inside the block.

    Transformers reads a file's metadata three times with a reader that makes an array of every
    token, and makes the table of tensor names again for every module of the model. Together that
    takes ten times as long as de-quantising, and transformers accepts no other reader. So both are
    replaced: the reader for this file and this thread, the table by one that is cached, and its
    bar, which has no switch, by the tensors alone. Another thread's block waits until this one
    ends, so that they do not see each other's replacements.

    Relied on: transformers imports `GGUFReader` and `get_tensor_name_map` from gguf where it uses
    them, and of the reader uses what `_Reader` has; its bar is `tqdm` in the module that reads.
    """
    with _patching:
        reader, table, here = gguf.GGUFReader, gguf.get_tensor_name_map, get_ident()
        ours, path = _Reader(header), header.path.resolve()

        def read(file: Any, *rest: Any) -> Any:
            mine = get_ident() == here and Path(file).resolve() == path
            return ours if mine else reader(file, *rest)

        bar = _gguf_reading.tqdm
        gguf.GGUFReader, gguf.get_tensor_name_map = read, cache(table)
        _gguf_reading.tqdm = lambda tensors, **_: tensors
        try:
            yield
        finally:
            gguf.GGUFReader, gguf.get_tensor_name_map = reader, table
            _gguf_reading.tqdm = bar


class _Reader:
    """The part of `gguf.GGUFReader` that transformers uses."""

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


@dataclass
class _Field:
    """A pair of key and value like `gguf.GGUFReader`'s, with values that are decoded already."""

    header: Header
    key: str
    types = (None,)  # no type of the format, so that transformers leaves the parts as they are

    @cached_property
    def parts(self) -> list[Any]:
        value = self.header.metadata[self.key]
        if not isinstance(value, Array):
            return [value]
        values = self.header.read(value)
        # Transformers takes the element of a list of one, so the array becomes that element.
        return values if len(values) == 1 else [values]

    @property
    def data(self) -> range:
        return range(len(self.parts))
