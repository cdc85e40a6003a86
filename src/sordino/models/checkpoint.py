"""Whether a folder's files hold the model that its config.json describes.

Transformers fills what a checkpoint lacks with random numbers and passes over what it does not
know, with a warning at most. Here both are refused by name, before any weight is read: the names,
shapes and types in the headers of the files are held against the module tree by transformers' own
conversion tables.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sordino.errors import UserError
from sordino.files import printable, read_json
from sordino.models.calls import quiet_transformers, read_settings
from sordino.models.dtypes import PLAIN
from sordino.models.transformers_internals import Conversions, compare
from sordino.progress import note

# Where a config.json has the settings of quantisation: the first of these.
_PLACES = (
    *(("quantization_config",), ("compression_config",)),
    *(("text_config", "quantization_config"), ("llm_config", "quantization_config")),
)
# Files of their own, which AutoGPTQ and AutoAWQ used to have for them.
_APART = ("quantize_config.json", "quant_config.json")
# NVIDIA Model Optimizer's, which its older exports have alone.
_MODELOPT = "hf_quant_config.json"

# How many modules of a kind there are, as configurations call it.
_COUNT = re.compile(r"(layers?|blocks?|experts?|depth)$", re.IGNORECASE)
_ANYHOW = 512  # so many are built whatever the files hold: it takes a second
_NAMED = 3  # so many tensors are named, and the others counted
# Parts that some checkpoints bring and that a class may leave out: heads that predict further
# tokens, heads of the training before, and what reads pictures or sounds.
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

    Those that Model Optimizer writes into a file of their own are read from there.

    Raises:
        UserError: They are in a file of another kind, where most readers would not see them.
    """
    found = quantisation(read_settings(folder))
    if found is None and (folder / _MODELOPT).exists():
        return _of_modelopt(folder / _MODELOPT)
    apart = next((name for name in _APART if (folder / name).exists()), None)
    if found is None and apart:
        raise UserError(
            f"{folder / apart} says that the weights are quantised, and config.json does not: put "
            "its settings into config.json as quantization_config, with their quant_method, or "
            "move the file away if the weights are plain."
        )
    return found


def _of_modelopt(file: Path) -> Mapping[str, Any]:
    """The settings in Model Optimizer's own file, as config.json would have them."""
    found = read_json(file)
    inner = found.get("quantization") if isinstance(found, dict) else None
    if not isinstance(inner, dict):
        raise UserError(
            f"{file} has no settings under 'quantization', which say how the weights are "
            "quantised: get it again, or move it away if the weights are plain."
        )
    return {"quant_method": "modelopt", **inner}


def refuse_counts(name: str, settings: Mapping[str, Any], tensors: Iterable[str]) -> None:
    """Raise `UserError` if config.json says of more layers or experts than the files can hold.

    A module tree takes memory and time with their number, so this comes before it is built.

    Args:
        name: What the user called the model.
        settings: Its config.json.
        tensors: The names of the tensors in its files.
    """
    most = max(_ANYHOW, sum(1 for _ in tensors))
    for key, count in _counts(settings):
        if count > most:
            raise UserError(
                f"The config.json of {name} says {key} = {count:.6g}, and its files hold no more "
                f"than {most:,} tensors: one of them is damaged or of another model."
            )


def refuse_unfit(name: str, model: PreTrainedModel, tensors: Mapping[str, Tensor]) -> None:
    """Raise `UserError` unless a checkpoint's tensors are the model's, no more and no less.

    What transformers itself leaves out or computes is no fault, nor are tied weights. Parts that
    the class does not have, such as a pooler, are said.

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
    """Raise `UserError` if a checkpoint and the model differ in this way; say what is left out.

    Args:
        name: What the user called the model.
        model: The model.
        missing: The parameters that the files lack.
        left_over: The tensors that the model has no place for.
        mismatched: By parameter, its shape in the files and in the model.
        stored: The names of all tensors in the files, to find a prefix that they share.
    """
    missing, left_over = sorted(missing), sorted(left_over)
    parts = {key: part for key in left_over if (part := _part_of(model, key))}
    left_over = [key for key in left_over if key not in parts]
    kind = type(model).__name__
    said = []
    if missing:
        said.append(f"its files lack {len(missing):,} weights of {kind} ({_name_some(missing)})")
    if left_over:
        said.append(
            f"its files hold {len(left_over):,} tensors that {kind} has no place for "
            f"({_name_some(left_over)})"
        )
    if mismatched:
        first = min(mismatched)
        there, wanted = mismatched[first]
        said.append(
            f"its files hold {len(mismatched):,} weights in other shapes than config.json says "
            f"({printable(first)} is {list(there)}, where {list(wanted)} belongs)"
        )
    if said:
        raise UserError(
            f"The model {name} could not be loaded: {'; '.join(said)}. "
            f"{_mend(model, missing, left_over, stored)}"
        )
    for part in sorted(set(parts.values())):
        count = sum(found == part for found in parts.values())
        note(f"{name}: {part} ({count:,} tensors) is left out, for {kind} has no such part.")


def refuse_not_finite(name: str, tensors: Iterable[tuple[str, Tensor]], mend: str) -> None:
    """Raise `UserError` if a weight is infinite or not a number.

    Args:
        name: What the user called the model.
        tensors: Weights by name; those of other types than floating ones are passed over.
        mend: What to do about it.
    """
    for key, tensor in tensors:
        if tensor.dtype not in PLAIN.values() or tensor.is_meta:
            continue
        # One pass, and no copy: the sum is not finite if one of its terms is not.
        if not torch.isfinite(tensor.sum()) and not torch.isfinite(tensor).all():
            raise UserError(
                f"{name} gives {key} weights that are not finite numbers "
                f"({str(tensor.dtype).removeprefix('torch.')}): {mend}."
            )


def _counts(settings: Mapping[str, Any], place: str = "") -> Iterator[tuple[str, int | float]]:
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _counts(value, f"{place}{key}.")
        elif _COUNT.search(key) and isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{place}{printable(key, 60)}", value


def _refuse_codes(name: str, model: PreTrainedModel, tensors: Mapping[str, Tensor]) -> None:
    """Integers where numbers belong are the codes of quantised weights."""
    odd = [key for key, tensor in tensors.items() if tensor.dtype not in PLAIN.values()]
    if not odd:
        return
    wanted = model.state_dict()
    for key, (target, _) in Conversions(model).place(odd).items():
        if target in wanted and wanted[target].is_floating_point():
            stored = str(tensors[key].dtype).removeprefix("torch.")
            raise UserError(
                f"The model {name} could not be loaded: its files hold {printable(key)} as "
                f"{stored}, which are codes of quantised weights, and config.json says nothing of "
                "how they were quantised: put the settings there as quantization_config, or take "
                "the model from which it was made."
            )


def _is_old(key: str, tensor: Tensor) -> bool:
    """Whether a tensor is a buffer that earlier versions stored."""
    return bool(_BUFFERS.search(key)) and (
        tensor.numel() == 1 or tensor.shape[:2] == (1, 1) or not tensor.dim() > 1
    )


def _part_of(model: nn.Module, key: str) -> str:
    """The part that a tensor belongs to, if the model lacks it as a whole and may; "" otherwise."""
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
            f"The names in its files begin with '{printable(prefix, 60)}', as a wrapper leaves "
            "them: take it off, or save the model inside the wrapper with save_pretrained."
        )
    if any("lora_" in key for key in left_over):
        return "They are of an adapter: merge it (PEFT's merge_and_unload) and save the model."
    layers = _layers_said(model)
    held = [int(found[1]) for key in left_over if (found := re.search(r"\.(\d+)\.", f".{key}"))]
    if held and max(held) >= layers > 0:
        return (
            f"config.json says {layers} layers, and the files hold layers up to number "
            f"{max(held)}, counted from 0: one of them is of another model."
        )
    if any(key.endswith(("_scale", "qweight", "scales", "qzeros", "absmax")) for key in left_over):
        return (
            "The weights are quantised, and config.json says nothing of how: put the settings "
            "there as quantization_config, or take the model from which it was made."
        )
    return "Get its files again, or the config.json that belongs to them."


def _prefix(missing: list[str], stored: Iterable[str]) -> str:
    """What stands in front of a missing weight's name in the files."""
    names = list(stored)
    for key in missing[:_NAMED]:
        for name in names:
            if name.endswith(f".{key}"):
                return name.removesuffix(key)
    return ""


def _layers_said(model: PreTrainedModel) -> int:
    count = getattr(model.config.get_text_config(decoder=True), "num_hidden_layers", 0)
    return count if isinstance(count, int) else 0


def _name_some(names: list[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(map(printable, names[:_NAMED])) + (f" and {more:,} more" if more > 0 else "")
