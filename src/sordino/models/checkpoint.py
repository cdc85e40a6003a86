"""Check that a folder's files hold the model that its config.json describes.

Transformers fills missing weights with random numbers and ignores unknown tensors, with a warning
at most. Here both are refused by name, before any weight is read: the names, shapes and types in
the headers of the files are compared with the module tree by transformers' own conversion tables.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sordino.errors import UserError
from sordino.files import counted, list_some, printable, read_json
from sordino.models.calls import quiet_transformers, read_settings
from sordino.models.dtypes import PLAIN
from sordino.models.transformers_internals import Conversions, compare
from sordino.progress import note

# Where a config.json has the quantisation settings: the first of these.
_PLACES = (
    *(("quantization_config",), ("compression_config",)),
    *(("text_config", "quantization_config"), ("llm_config", "quantization_config")),
)
# Separate files, in which AutoGPTQ and AutoAWQ used to write them.
_APART = ("quantize_config.json", "quant_config.json")
# The file of NVIDIA Model Optimizer, whose older exports have no other.
_MODELOPT = "hf_quant_config.json"

# How many modules of a kind there are, as configurations call it.
_COUNT = re.compile(r"(layers?|blocks?|experts?|depth)$", re.IGNORECASE)
_ANYHOW = 512  # a module tree of this size takes a second, whatever the files hold
_NAMED = 3  # this many tensors are named, and the others counted
# Parts that some checkpoints have and a class may ignore: heads that predict further tokens, heads
# of earlier training, and encoders of pictures or sounds.
_PARTS = re.compile(
    r"^(mtp\w*|nextn\w*|pooler|cls|lm_head|v_head|encoder|vision_\w+|visual|audio_\w+|"
    r"multi_modal_projector|embed_vision|embed_audio)$"
)
# Buffers of earlier versions of transformers, which are computed today.
_BUFFERS = re.compile(
    r"(^|\.)(attn|attention)\.(attention\.)?(masked_)?bias$|\.causal_mask$|inv_freq$|position_ids$"
)


def quantisation(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The quantisation settings in a config.json; None if there are none."""
    for place in _PLACES:
        found: Any = config
        for key in place:
            found = found.get(key) if isinstance(found, Mapping) else None
        if isinstance(found, Mapping):
            return found
    return None


def quantisation_of(folder: Path) -> Mapping[str, Any] | None:
    """The quantisation settings of a model's folder; None if its weights are plain.

    Those that Model Optimizer writes into a separate file are read from there.

    Raises:
        UserError: They are in another separate file, where most readers would not see them.
    """
    found = quantisation(read_settings(folder))
    if found is None and (folder / _MODELOPT).exists():
        return _of_modelopt(folder / _MODELOPT)
    apart = next((name for name in _APART if (folder / name).exists()), None)
    if found is None and apart:
        raise UserError(
            f"{folder / apart} says that the weights are quantised, and config.json does not: "
            "move its settings into config.json as quantization_config, with their quant_method, "
            "or remove the file if the weights are plain."
        )
    return found


def _of_modelopt(file: Path) -> Mapping[str, Any]:
    """The settings in Model Optimizer's own file, as config.json would have them."""
    found = read_json(file)
    inner = found.get("quantization") if isinstance(found, dict) else None
    if not isinstance(inner, dict):
        raise UserError(
            f"{file} has no settings under 'quantization', which say how the weights are "
            "quantised: get it again, or remove it if the weights are plain."
        )
    return {"quant_method": "modelopt", **inner}


def refuse_plain(name: str, settings: Mapping[str, Any], dtypes: Iterable[torch.dtype]) -> None:
    """Raise `UserError` if a model is quantised by its settings, and its files hold plain weights.

    Transformers may read them as they are on a processor, and misread them on a GPU.

    Args:
        name: What the user called the model.
        settings: Its quantisation settings.
        dtypes: Those of all tensors in its files.
    """
    if all(dtype in PLAIN.values() for dtype in dtypes):
        raise UserError(
            f"{name} is quantised by its settings ({printable(str(settings.get('quant_method')))}),"
            " and its files hold plain weights alone: get its files again, or remove "
            "quantization_config from config.json if they are meant to be plain."
        )


def refuse_counts(name: str, settings: Mapping[str, Any], tensors: Iterable[str]) -> None:
    """Raise `UserError` if config.json has more layers or experts than the files can hold.

    A module tree takes memory and time with their number, so this is checked before it is built.

    Args:
        name: What the user called the model.
        settings: Its config.json.
        tensors: The names of the tensors in its files.
    """
    most = max(_ANYHOW, sum(1 for _ in tensors))
    for key, count in _counts(settings):
        if count > most:
            raise UserError(
                f"The config.json of {name} has {key} = {count:.6g}, and its files hold at most "
                f"{most:,} tensors: one of them is damaged or of another model."
            )


def refuse_unfit(name: str, model: PreTrainedModel, tensors: Mapping[str, Tensor]) -> None:
    """Raise `UserError` unless a checkpoint's tensors are exactly the model's.

    Tensors that transformers itself ignores or computes are allowed, and so are tied weights. Parts
    that the class does not have, such as a pooler, are noted.

    Args:
        name: What the user called the model.
        model: Its module tree on the "meta" device; its parameters are replaced.
        tensors: By their names in the files, on the "meta" device.
    """
    _refuse_codes(name, model, tensors)
    with quiet_transformers():
        found = compare(model, tensors)
    old = {key for key in found.left_over if key in tensors and _is_old(key, tensors[key])}
    refuse_differences(
        name,
        model,
        missing=found.missing | found.failed,
        left_over=found.left_over - old,
        mismatched=found.mismatched,
        stored=tensors,
    )


def refuse_differences(
    name: str,
    model: PreTrainedModel,
    *,
    missing: Iterable[str],
    left_over: Iterable[str],
    mismatched: Mapping[str, tuple[tuple[int, ...], ...]],
    stored: Iterable[str] = (),
) -> None:
    """Raise `UserError` if a checkpoint and the model differ; note the parts that are ignored.

    Args:
        name: What the user called the model.
        model: The model.
        missing: The parameters that the files lack.
        left_over: The tensors that the model has no place for.
        mismatched: By parameter, its shape in the files and in the model.
        stored: The names of all tensors in the files, to find a common prefix.
    """
    missing, left_over = sorted(missing), sorted(left_over)
    parts = {key: part for key in left_over if (part := _part_of(model, key))}
    left_over = [key for key in left_over if key not in parts]
    kind = type(model).__name__
    said = []
    if missing:
        some = list_some(missing, _NAMED)
        said.append(f"its files lack {counted(len(missing), 'weight')} of {kind} ({some})")
    if left_over:
        some = list_some(left_over, _NAMED)
        said.append(
            f"its files hold {counted(len(left_over), 'tensor')} that {kind} has no place for "
            f"({some})"
        )
    if mismatched:
        first = min(mismatched)
        there, wanted = mismatched[first]
        said.append(
            f"its files hold {counted(len(mismatched), 'weight')} in other shapes than config.json "
            f"says ({printable(first)} is {list(there)}, and should be {list(wanted)})"
        )
    if said:
        raise UserError(
            f"The model {name} could not be loaded: {'; '.join(said)}. "
            f"{_mend(model, missing, left_over, stored)}"
        )
    for part in sorted(set(parts.values())):
        count = sum(found == part for found in parts.values())
        note(
            f"{name}: {part} ({counted(count, 'tensor')}) is ignored, because {kind} has no such "
            "part."
        )


def refuse_not_finite(name: str, tensors: Iterable[tuple[str, Tensor]], mend: str) -> None:
    """Raise `UserError` if a weight is infinite or not a number.

    Args:
        name: What the user called the model.
        tensors: Weights by name; those that are not floating are ignored.
        mend: What to do about it.
    """
    for key, tensor in tensors:
        if tensor.dtype not in PLAIN.values() or tensor.is_meta:
            continue
        # One pass, and no copy: the sum is not finite if one of its terms is not.
        if not torch.isfinite(tensor.sum()) and not torch.isfinite(tensor).all():
            raise UserError(
                f"{name} has weights in {key} that are not finite numbers "
                f"({str(tensor.dtype).removeprefix('torch.')}): {mend}."
            )


def _counts(settings: Mapping[str, Any], place: str = "") -> Iterator[tuple[str, int | float]]:
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _counts(value, f"{place}{key}.")
        elif _COUNT.search(key) and isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{place}{printable(key, 60)}", value


def _refuse_codes(name: str, model: PreTrainedModel, tensors: Mapping[str, Tensor]) -> None:
    """Raise `UserError` for integers in place of weights: they are codes of quantised weights."""
    odd = [key for key, tensor in tensors.items() if tensor.dtype not in PLAIN.values()]
    if not odd:
        return
    wanted = model.state_dict()
    for key, (target, _) in Conversions(model).place(odd).items():
        if target in wanted and wanted[target].is_floating_point():
            stored = str(tensors[key].dtype).removeprefix("torch.")
            raise UserError(
                f"The model {name} could not be loaded: its files hold {printable(key)} as "
                f"{stored}, which are codes of quantised weights, and config.json does not say how "
                "they were quantised: add the settings there as quantization_config, or use the "
                "model from which it was made."
            )


def _is_old(key: str, tensor: Tensor) -> bool:
    """Whether a tensor is a buffer that earlier versions of transformers stored."""
    return bool(_BUFFERS.search(key)) and (
        tensor.numel() == 1 or tensor.shape[:2] == (1, 1) or not tensor.dim() > 1
    )


def _part_of(model: nn.Module, key: str) -> str:
    """The part of a tensor, if the model lacks that whole part and may ignore it; "" otherwise."""
    module, path = model, []
    for name in key.split("."):
        path.append(name)
        inner = getattr(module, name, None)
        if not isinstance(inner, nn.Module):
            return ".".join(path) if _PARTS.match(name) else ""
        module = inner
    return ""


def _mend(
    model: PreTrainedModel, missing: list[str], left_over: list[str], stored: Iterable[str]
) -> str:
    if prefix := _prefix(missing, stored):
        return (
            f"The names in its files begin with '{printable(prefix, 60)}', as of a wrapper: remove "
            "that prefix, or save the model inside the wrapper with save_pretrained."
        )
    if any("lora_" in key for key in left_over):
        return "They are of an adapter: merge it (PEFT's merge_and_unload) and save the model."
    layers = getattr(model.config.get_text_config(decoder=True), "num_hidden_layers", 0)
    held = [int(found[1]) for key in left_over if (found := re.search(r"\.(\d+)\.", f".{key}"))]
    if held and isinstance(layers, int) and max(held) >= layers > 0:
        return (
            f"config.json has {layers} layers, and the files hold layers up to number "
            f"{max(held)}, counted from 0: one of them is of another model."
        )
    if any(key.endswith(("_scale", "qweight", "scales", "qzeros", "absmax")) for key in left_over):
        return (
            "The weights are quantised, and config.json does not say how: add the settings there "
            "as quantization_config, or use the model from which it was made."
        )
    return "Get its files again, or the config.json that belongs to them."


def _prefix(missing: list[str], stored: Iterable[str]) -> str:
    """The prefix of a missing weight's name in the files; "" if there is none."""
    names = list(stored)
    for key in missing[:_NAMED]:
        for name in names:
            if name.endswith(f".{key}"):
                return name.removesuffix(key)
    return ""
