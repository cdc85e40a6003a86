"""Open a model for analysis: weights, tokenizer and sites together."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from inspect import signature
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import (
    CompressedTensorsConfig,
    GenerationConfig,
    Mxfp4Config,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import GENERATION_CONFIG_NAME

from sordino.errors import UserError
from sordino.extras import started_as
from sordino.models import gguf_loading, modelopt
from sordino.models.calls import (
    library_errors,
    open_config,
    open_tokenizer,
    quiet_transformers,
    read_settings,
    refuse_odd_generation,
)
from sordino.models.causality import refuse_both_directions, refuse_random
from sordino.models.checkpoint import (
    quantisation_of,
    refuse_counts,
    refuse_differences,
    refuse_not_finite,
    refuse_plain,
    refuse_unfit,
)
from sordino.models.classes import auto_class, refuse_other_kinds
from sordino.models.dtypes import COMPUTE_DTYPES
from sordino.models.hooks import lay_out_before_logits
from sordino.models.memory import available, for_device
from sordino.models.reference import ModelRef, resolve
from sordino.models.safetensors_header import read_header
from sordino.models.sites import Site, decoder_of, find_sites
from sordino.models.streaming import INPUT, StoredTensors, StreamedWeights
from sordino.models.transformers_internals import (
    is_quantised,
    note_untested_version,
    refuse_faulty,
)
from sordino.progress import note

ALL_GPUS = "all"
"""The device that is all GPUs of the machine, each with some of the layers."""

_WITHOUT_PACKAGES = (
    "baking does not load the model: with `allow_other_weights=True` it takes the expertise of the "
    "model from which this one was quantised"
)
# Memory that using a model takes beside its weights: libraries, activations, responses.
_BESIDE_WEIGHTS = 1 << 30


@dataclass(frozen=True)
class OpenModel:
    """A causal language model in evaluation mode, with its tokenizer.

    Args:
        ref: Where it came from.
        model: The transformers model.
        tokenizer: Its tokenizer.
        site_pattern: The argument `sites` of `open_model`.
        streamed: Brings the weights into memory part by part; None if all are there.
        taken: Bytes of memory that the process used before loading the weights; 0 if unknown.

    Example:
        >>> sordino.open_model("tiny").dtype_name
        'float32'
    """

    ref: ModelRef
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    site_pattern: str | None = None
    streamed: StreamedWeights | None = None
    taken: int = 0

    @cached_property
    def sites(self) -> tuple[Site, ...]:
        """The model's sites; see `sordino.models.sites.find_sites`."""
        return find_sites(self.model, self.site_pattern)

    @property
    def device(self) -> torch.device:
        """The device of the model's weights; of several devices, that of the input."""
        return self.streamed.device if self.streamed else self.model.device

    @property
    def devices(self) -> tuple[torch.device, ...]:
        """All devices that have some of the weights."""
        return tuple(dict.fromkeys([self.device, *self._places.values()]))

    def device_of(self, path: str) -> torch.device:
        """The device on which the module or the parameter at that path computes."""
        names = path.split(".")
        for length in range(len(names), 0, -1):
            if place := self._places.get(".".join(names[:length])):
                return place
        return self.device

    @cached_property
    def _places(self) -> dict[str, torch.device]:
        """The parts' devices by module path, if the model is spread over several."""
        places = getattr(self.model, "hf_device_map", {})
        if len(set(places.values())) < 2:
            return {}
        # Offloaded parts are moved to the input's device when they are needed.
        return {
            path: self.device if place in ("cpu", "disk") else torch.device(place)
            for path, place in places.items()
        }

    @property
    def dtype_name(self) -> str:
        """The weights' dtype, such as "float32"."""
        return str(self.model.dtype).removeprefix("torch.")

    @property
    def decoder_config(self) -> Any:
        """The decoder's part of the configuration."""
        return self.model.config.get_text_config(decoder=True)

    @property
    def width(self) -> int:
        """The width of the residual stream."""
        return int(self.decoder_config.hidden_size)

    @property
    def vocabulary(self) -> int:
        """The number of logits of a position."""
        return int(self.decoder_config.vocab_size)

    def whole_forwards(self) -> AbstractContextManager[None]:
        """A block in which the ordinary forward runs, whether or not the weights are streamed."""
        return nullcontext() if self.streamed is None else self.streamed.bring_when_called()

    def positions(self, logits: int) -> int:
        """How many positions have that many logits together, on a GPU more; at least 1."""
        return max(1, for_device(logits, self.device) // self.vocabulary)


def open_model(
    spec: str | Path | ModelRef | OpenModel,
    *,
    device: str = "auto",
    dtype: str = "auto",
    revision: str | None = None,
    sites: str | None = None,
    stream: bool | None = False,
) -> OpenModel:
    """Load a model and its tokenizer.

    Args:
        spec: A hub id, a transformers folder, a ".gguf" file, or a model of the kit
            ("kit:smollm2"); a model that is open already is returned as it is.
        device: "auto" (a GPU if there is one), "all" (every GPU of the machine, some of the layers
            on each), or a torch device such as "cpu" or "cuda:1".
        dtype: "auto" (the checkpoint's own; float32 for GGUF), "float32", "bfloat16", "float16".
        revision: A branch, tag or commit of the hub.
        sites: "attention", "all", "norms" or a regular expression over module paths that chooses
            the sites; see `sordino.models.sites.find_sites`.
        stream: Leave the weights in their files and read them layer by layer, which is enough for
            `find_experts`; None: if they do not fit into memory.

    Raises:
        UserError: The model, the device or the dtype is not available.

    Example:
        >>> opened = sordino.open_model("tiny")
        >>> len(opened.sites) > 0
        True
    """
    if isinstance(spec, OpenModel):
        return spec
    note_untested_version()
    ref = resolve(spec, revision)
    devices = choose_devices(device)
    target = devices[0]
    if stream is None:
        stream = has_to_stream(ref, device, dtype)
        if stream:
            note(f"{ref.name} does not fit into memory: its weights are read layer by layer")
    if stream:
        return _open_streamed(ref, target, dtype, sites)
    taken = psutil.Process().memory_info().rss
    options: dict[str, Any] = {"dtype": _dtype(dtype, ref), **_spread(devices)}
    if ref.kind == "gguf":
        model, tokenizer = gguf_loading.load(ref, options)
        model = _place(ref, model, target)
    else:
        model, tokenizer = _open_folder(ref, target, options)
        if quantisation_of(ref.path) and dtype != "auto" and not is_quantised(model):
            model = model.to(COMPUTE_DTYPES[dtype])  # the loader gives it to some weights alone
    refuse_not_finite(ref.name, model.named_parameters(), _mend_not_finite(model))
    refuse_both_directions(ref.name, model.eval())
    lay_out_before_logits(model)
    return OpenModel(ref, model, tokenizer, sites, taken=taken)


def _open_folder(
    ref: ModelRef, target: torch.device, options: Mapping[str, Any]
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A folder's model in memory and its tokenizer; it is checked before its weights are read."""
    settings = quantisation_of(ref.path)
    config, model = _module_tree(ref)
    refuse_faulty(ref.name, config)
    if settings is None:
        refuse_unfit(ref.name, model, StoredTensors(ref).empty)
    else:
        refuse_plain(ref.name, settings, (one.dtype for one in StoredTensors(ref).empty.values()))
    tokenizer = open_tokenizer(ref.path, ref.name)
    if settings is not None and settings.get("quant_method") == "modelopt":
        return _place(ref, _dequantise(ref, config, model, settings, options), target), tokenizer
    quantised = {} if settings is None else _quantised_options(config, settings, target)
    with quiet_transformers(), library_errors(ref.name, _WITHOUT_PACKAGES if quantised else ""):
        model, found = auto_class(config).from_pretrained(
            ref.path,
            config=config,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            **{**options, **quantised},
        )
    # Only their loader knows the tensors of quantised layers.
    refuse_differences(
        ref.name,
        model,
        missing=found["missing_keys"],
        left_over=() if quantised else found["unexpected_keys"],
        mismatched={},
    )
    if quantised:
        return model, tokenizer  # its layers were made on the target device
    return _place(ref, model, target), tokenizer


def _dequantise(
    ref: ModelRef,
    config: PretrainedConfig,
    empty: PreTrainedModel,
    settings: Mapping[str, Any],
    options: Mapping[str, Any],
) -> PreTrainedModel:
    """The de-quantised model of a checkpoint that transformers cannot read.

    Args:
        ref: The folder.
        config: Its configuration; its quantisation settings are removed.
        empty: Its module tree on the "meta" device.
        settings: The quantisation settings.
        options: Further options for `from_pretrained`.
    """
    modelopt.refuse_other_algorithms(settings)
    note(f"De-quantising {ref.name} …")
    given = options["dtype"]
    dtype = given if isinstance(given, torch.dtype) else empty.dtype
    tensors = dict(modelopt.plain_tensors(StoredTensors(ref), dtype))
    refuse_unfit(ref.name, empty, {name: value.to("meta") for name, value in tensors.items()})
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with quiet_transformers(), library_errors(ref.name):
        model: PreTrainedModel = type(empty).from_pretrained(
            None, config=config, state_dict=tensors, **{**options, "dtype": dtype}
        )
    return model


def _place(ref: ModelRef, model: PreTrainedModel, target: torch.device) -> PreTrainedModel:
    """The model on its device, unless it is spread over several."""
    if getattr(model, "hf_device_map", None):
        _refuse_offloaded(ref, model)
        return model
    return model.to(target)


def _mend_not_finite(model: PreTrainedModel) -> str:
    if model.dtype == torch.float16:
        return "its files are damaged, or hold numbers too large for it: try `dtype=bfloat16`"
    return "its files are damaged, get them again"


def streamable(ref: ModelRef) -> bool:
    """Whether a model can be read layer by layer: a folder whose weights are not quantised."""
    return ref.kind == "folder" and quantisation_of(ref.path) is None


def has_to_stream(ref: ModelRef, device: str, dtype: str) -> bool:
    """Whether a model can be read layer by layer, and does not fit into free memory otherwise."""
    return streamable(ref) and not fits(ref, choose_devices(device), dtype)


def fits(ref: ModelRef, devices: Sequence[torch.device], dtype: str = "auto") -> bool:
    """Whether a transformers folder fits into the memory that is free.

    Args:
        ref: The folder.
        devices: The devices that share its weights.
        dtype: See `open_model`.

    Raises:
        UserError: The folder has no safetensors files, or the dtype is unknown.
    """
    wanted = _dtype(dtype, ref)
    stored = StoredTensors(ref)
    size = sum(tensor.nbytes for tensor in stored.empty.values())
    if isinstance(wanted, torch.dtype) and wanted != stored.dtype:
        size = size * wanted.itemsize // stored.dtype.itemsize
    size += size // 20
    if len(devices) > 1:
        return size <= sum(max(available(place) - _BESIDE_WEIGHTS, 0) for place in devices)
    # On its way to another device it passes through the processor's memory.
    return all(
        size + _BESIDE_WEIGHTS <= available(place) for place in {*devices, torch.device("cpu")}
    )


def _spread(devices: Sequence[torch.device]) -> dict[str, object]:
    """Options that load a model onto several devices; none for one device."""
    if len(devices) == 1:
        return {}
    room = {place.index: max(available(place) - _BESIDE_WEIGHTS, 0) for place in devices}
    return {"device_map": "auto", "max_memory": room}


def _refuse_offloaded(ref: ModelRef, model: PreTrainedModel) -> None:
    """Offloaded weights are moved at every call, which is slower than reading each layer once."""
    if {"cpu", "disk"} & set(model.hf_device_map.values()):
        raise UserError(
            f"{ref.name} does not fit on the GPUs of this machine together: leave out "
            f"`device={ALL_GPUS}`, so that `{started_as()} find` reads its weights layer by layer."
        )


def _open_streamed(ref: ModelRef, device: torch.device, dtype: str, sites: str | None) -> OpenModel:
    if not streamable(ref):
        kind = "a GGUF file" if ref.kind == "gguf" else "quantised"
        raise UserError(
            f"{ref.name} is {kind}, which cannot be read layer by layer: leave out `stream`, or "
            "use the transformers folder from which it was made."
        )
    wanted = _dtype(dtype, ref)
    stored = StoredTensors(ref)
    config, model = _module_tree(ref, None if isinstance(wanted, str) else wanted, stored.dtype)
    refuse_faulty(ref.name, config)
    if (ref.path / GENERATION_CONFIG_NAME).is_file():  # as `from_pretrained` does
        with quiet_transformers():
            model.generation_config = GenerationConfig.from_pretrained(ref.path)
    streamed = StreamedWeights(ref, stored, model, device)
    tokenizer = open_tokenizer(ref.path, ref.name)
    streamed.hold(INPUT)
    with streamed.make_up():
        refuse_both_directions(ref.name, model, without_head=True)
    lay_out_before_logits(model)
    return OpenModel(ref, model, tokenizer, sites, streamed)


def _module_tree(
    ref: ModelRef, dtype: torch.dtype | None = None, otherwise: torch.dtype = torch.float32
) -> tuple[PretrainedConfig, PreTrainedModel]:
    """A folder's configuration, and its module tree on the "meta" device.

    Args:
        ref: The folder.
        dtype: The weights' dtype; None for the configuration's.
        otherwise: Their dtype where the configuration does not name one either.

    Raises:
        UserError: The configuration cannot be read, or describes more than the files can hold.
    """
    names = [name for path in ref.weight_files for name in read_header(path)]
    refuse_counts(ref.name, read_settings(ref.path), names)
    refuse_odd_generation(ref.path)
    config = open_config(ref.path, ref.name)
    refuse_other_kinds(ref.name, config)
    with quiet_transformers(), library_errors(ref.name), torch.device("meta"):
        own = config.dtype or config.get_text_config(decoder=True).dtype
        model = auto_class(config).from_config(
            config, dtype=dtype or own or otherwise, trust_remote_code=False
        )
    _refuse_other_inputs(ref.name, model)
    refuse_random(ref.name, model)
    return config, model


def _refuse_other_inputs(name: str, model: PreTrainedModel) -> None:
    """Raise `UserError` if the model takes anything but text, or is not a decoder."""
    kind = type(model).__name__
    if model.config.is_encoder_decoder:
        raise UserError(
            f"{name} is an encoder-decoder ({kind}), and Sordino dampens only decoders: choose a "
            "causal language model."
        )
    parameters = signature(decoder_of(model).forward).parameters.values()
    needed = [
        p.name for p in parameters if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD
    ]
    others = [wanted for wanted in (model.main_input_name, *needed) if wanted != "input_ids"]
    if others:
        raise UserError(
            f"{name} does not take text alone ({kind} wants {others[0]}), and Sordino measures "
            "with text only: choose a causal language model."
        )


def _quantised_options(
    config: PretrainedConfig, settings: Mapping[str, Any], target: torch.device
) -> dict[str, Any]:
    """Options that load a folder of quantised weights.

    Args:
        config: Its configuration; settings under an old name are moved to the new one.
        settings: The quantisation settings in its config.json.
        target: The device of the weights.
    """
    if hasattr(config, "compression_config"):
        config.quantization_config = dict(settings)
        del config.compression_config
    options: dict[str, Any] = {"device_map": {"": target}}
    match settings.get("quant_method"):
        case "compressed-tensors":
            # Otherwise the layers have no weights before the first forward pass.
            options["quantization_config"] = CompressedTensorsConfig(dequantize=True)
        case "mxfp4":
            # Otherwise the experts' outputs are not visible.
            options["quantization_config"] = Mxfp4Config(dequantize=True)
    return options


def empty_model(ref: ModelRef) -> PreTrainedModel:
    """The model's module tree without its weights, on torch's "meta" device.

    Raises:
        UserError: The files do not hold the model that they describe. For quantised weights only
            the number of layers is checked.
    """
    note_untested_version()
    if ref.kind == "gguf":
        with gguf_loading.reading(ref.path) as header:
            return gguf_loading.module_tree(header)
    _, model = _module_tree(ref)
    if quantisation_of(ref.path) is None:
        refuse_unfit(ref.name, model, StoredTensors(ref).empty)
    return model


def choose_devices(name: str) -> tuple[torch.device, ...]:
    """The torch devices of that name, that of the input first; see `open_model`.

    Raises:
        UserError: There is no such device here.
    """
    if name != ALL_GPUS:
        return (choose_device(name),)
    if not torch.cuda.is_available():
        raise UserError(f"`device={ALL_GPUS}` needs GPUs, and this machine has none.")
    return tuple(torch.device("cuda", number) for number in range(torch.cuda.device_count()))


def choose_device(name: str) -> torch.device:
    """The torch device of that name; "auto" is a GPU if there is one, else the processor.

    Raises:
        UserError: There is no such device here.
    """
    if name == ALL_GPUS:
        return choose_devices(name)[0]
    if name == "auto":
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        return accelerator or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"`device={name}` cannot be used here: {reason}") from None
    return device


def _dtype(name: str, ref: ModelRef) -> torch.dtype | str:
    if name == "auto":
        return torch.float32 if ref.kind == "gguf" else "auto"
    if name not in COMPUTE_DTYPES:
        raise UserError(f"`dtype={name}` is unknown: choose auto, {', '.join(COMPUTE_DTYPES)}.")
    return COMPUTE_DTYPES[name]
