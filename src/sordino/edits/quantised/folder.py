"""The quantised layers of a model's folder, and the changes that dampening makes to them."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from transformers import Conv1D, PreTrainedModel

from sordino.edits.fp4 import Rounding
from sordino.edits.quantised.awq import Awq
from sordino.edits.quantised.bitsandbytes import bitsandbytes
from sordino.edits.quantised.compressed_tensors import CompressedTensors
from sordino.edits.quantised.fp4 import fp4_rounding
from sordino.edits.quantised.fp8 import Fp8
from sordino.edits.quantised.gptq import Gptq
from sordino.edits.quantised.layer import Changes, Layer, Scheme
from sordino.edits.quantised.losses import losses
from sordino.edits.quantised.modelopt import ModelOpt
from sordino.edits.quantised.mxfp4 import Mxfp4
from sordino.edits.record import Quantisation
from sordino.edits.shard import Change
from sordino.errors import UserError
from sordino.files import counted
from sordino.models.checkpoint import quantisation, quantisation_of, refuse_plain, refuse_unfit
from sordino.models.dtypes import torch_dtype
from sordino.models.safetensors_header import Stored, read_header
from sordino.progress import note


@dataclass(frozen=True)
class QuantisedFolder:
    """The quantised layers of a model's folder.

    Args:
        scheme: How they are stored.
        layers: By the names that their weights would have.
        stored: All tensors of the folder by name.
    """

    scheme: Scheme
    layers: Mapping[str, Layer]
    stored: Mapping[str, Stored]

    @property
    def names(self) -> frozenset[str]:
        """The names of all tensors, and those that the weights would have."""
        return frozenset(self.stored.keys() | self.layers.keys())

    @property
    def is_fp4(self) -> bool:
        """Whether a layer is of 4-bit floats."""
        return any(self.scheme.fp4(layer) for layer in self.layers.values())

    def with_weights(
        self, shards: Mapping[PurePosixPath, Mapping[str, Stored]], dtype: str
    ) -> dict[PurePosixPath, dict[str, Stored]]:
        """The headers of the shards as if each quantised layer had a weight, of this type.

        Raises:
            UserError: A layer's tensors do not fit together.
        """
        found = {
            file: {name: stored for name, stored in tensors.items() if name not in self.layers}
            for file, tensors in shards.items()
        }
        for weight, layer in self.layers.items():
            file = PurePosixPath(next(iter(layer.files.values())).name)
            found[file][weight] = Stored(dtype, self.scheme.shape(layer), 0, 0)
        return found


def refuse_unfit_layers(name: str, model: PreTrainedModel, folder: QuantisedFolder) -> None:
    """Raise `UserError` unless the files hold the model's weights, quantised ones among them.

    Args:
        name: What the user called the model.
        model: Its module tree on the "meta" device; its parameters are replaced.
        folder: Its quantised layers.
    """
    parts = {
        layer.tensor(suffix)
        for layer in folder.layers.values()
        for suffix in layer.tensors
        if suffix != "bias"
    }
    tensors = {
        key: torch.empty(stored.shape, dtype=torch_dtype(stored.dtype, key), device="meta")
        for key, stored in folder.stored.items()
        # Servers' scales of the cache stand beside the layers.
        if key not in parts and not key.endswith(("_scale", "_zero_point"))
    }
    # A quantised layer does not know that a Conv1D has the inputs first.
    turned = any(isinstance(module, Conv1D) for module in model.modules())
    for weight, layer in folder.layers.items():
        shape = folder.scheme.weight_shape(layer, transposed=turned)
        tensors[weight] = torch.empty(shape, device="meta")
    refuse_unfit(name, model, tensors)


@dataclass(frozen=True)
class QuantisedEdit:
    """The changes of a folder's quantised layers, checked.

    Args:
        changes: By the tensor's name; None leaves it out.
        settings: The checkpoint's quantisation settings, if they change.
        record: The entry in the provenance.
    """

    changes: Changes
    settings: Mapping[str, Any] | None
    record: Quantisation


def edit_quantised(folder: QuantisedFolder, changes: Mapping[str, Change]) -> QuantisedEdit:
    """Work out the changes of a folder's quantised layers.

    Args:
        folder: The layers.
        changes: The changes that their weights would have, by name; other names are ignored.

    Raises:
        UserError: A layer is damaged or of another size, or its format cannot hold the product.
    """
    factors = {}
    for weight, change in changes.items():
        if weight in folder.layers and not change.is_none:
            layer, values = folder.layers[weight], change.scale.reshape(-1)
            neurons, _ = folder.scheme.shape(layer)
            if len(values) != neurons:
                raise layer.unfit(f"it has {neurons} neurons, and there are {len(values)} factors")
            factors[weight] = values
    four_bits = {
        weight: fp4_rounding(folder.layers[weight], places, values)
        for weight, values in factors.items()
        if (places := folder.scheme.fp4(folder.layers[weight]))
    }
    edit = folder.scheme.edit(folder.layers, factors)
    scaled = (folder.layers[weight] for weight in factors if weight not in four_bits)
    lost = losses(scaled, edit)
    rounded = set(edit.rounded) - four_bits.keys()
    if rounded:
        note(
            f"{counted(len(rounded), 'layer has', 'layers have')} neurons that share scales: codes "
            "are rounded to the nearest FP8 again (docs/quantised.md)."
        )
    whole = sum(four_bits.values(), Rounding())
    if four_bits:
        note(
            f"{counted(len(four_bits), 'layer is', 'layers are')} 4-bit floats, whose scales and "
            f"codes are rounded again: dampened weights are off by {whole.relative:.1%} of the "
            f"exact product (root mean square), at most by {whole.largest:.1%} of the largest of "
            "their block (docs/quantised.md)."
        )
    if lost.vanished or lost.coarse:
        note(
            f"warning: times their factors, {counted(lost.vanished, 'scale')} became 0, too small "
            f"for their type, and {lost.coarse:,} lost digits."
        )
    errors = {"error": whole.relative, "largest_error": whole.largest} if four_bits else {}
    record = Quantisation(
        scheme=folder.scheme.label,
        layers=len(factors),
        rounded=len(rounded) + len(four_bits),
        scales_vanished=lost.vanished + whole.zeroed,
        scales_coarse=lost.coarse,
        **errors,
    )
    return QuantisedEdit(edit.changes, edit.settings, record)


def quantised_folder(
    folder: Path,
    settings: Mapping[str, Any] | None,
    shards: Mapping[PurePosixPath, Mapping[str, Stored]],
) -> QuantisedFolder | None:
    """A folder's quantised layers; None if its weights are plain.

    Raises:
        UserError: It is quantised in a way that is not supported.
    """
    if settings is None:
        return None
    scheme = _scheme(folder, settings)
    stored = {name: found for tensors in shards.values() for name, found in tensors.items()}
    layers = _layers(folder, shards, scheme)
    if not layers:
        dtypes = (torch_dtype(found.dtype, name) for name, found in stored.items())
        refuse_plain(str(folder), settings, dtypes)
        raise UserError(
            f"{folder} is quantised by its settings ({settings.get('quant_method')}), but its "
            "safetensors hold no quantised layer: get it again."
        )
    return QuantisedFolder(scheme, layers, stored)


def read_quantised(folder: Path) -> QuantisedFolder | None:
    """The quantised layers of a model's folder, from its files; None if its weights are plain.

    Raises:
        UserError: It is quantised in a way that is not supported, or damaged.
    """
    settings = quantisation_of(folder)
    if settings is None:
        return None
    files = sorted(folder.glob("*.safetensors"))
    return quantised_folder(
        folder, settings, {PurePosixPath(f.name): read_header(f) for f in files}
    )


def with_quantisation(config: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """A config.json with other quantisation settings where it has some."""
    changed: dict[str, Any] = copy.deepcopy(dict(config))
    old = quantisation(changed)
    assert isinstance(old, dict)
    old.clear()
    old.update(settings)
    return changed


def _scheme(folder: Path, settings: Mapping[str, Any]) -> Scheme:
    makers: dict[str, Callable[[Mapping[str, Any]], Scheme]] = {
        "gptq": Gptq,
        "awq": Awq,
        "auto-round": _auto_round,
        "compressed-tensors": CompressedTensors,
        "fp8": Fp8,
        "fbgemm_fp8": Fp8,
        "bitsandbytes": bitsandbytes,
        "mxfp4": Mxfp4,
        "modelopt": ModelOpt,
    }
    method = settings.get("quant_method")
    if method is None and {"load_in_8bit", "load_in_4bit"} & settings.keys():
        method = "bitsandbytes"  # as its first versions wrote it
    if method not in makers:
        raise UserError(
            f"{folder} is quantised by '{method}', which cannot be baked: use the model from which "
            f"it was quantised, or one quantised by {', '.join(makers)}."
        )
    return makers[method](settings)


def _auto_round(settings: Mapping[str, Any]) -> Scheme:
    """AutoRound writes the layouts of GPTQ and AWQ."""
    packing = str(settings.get("packing_format", "")).removeprefix("auto_round:")
    if packing == "auto_gptq":
        return Gptq({**settings, "checkpoint_format": "gptq"})
    if packing == "auto_awq":
        return Awq({**settings, "version": "gemm"})
    raise UserError(
        f"AutoRound's packing '{packing}' cannot be baked: export the model in its format "
        "auto_round:auto_gptq or auto_round:auto_awq."
    )


def _layers(
    folder: Path, shards: Mapping[PurePosixPath, Mapping[str, Stored]], scheme: Scheme
) -> dict[str, Layer]:
    everything = [(name, file) for file, tensors in shards.items() for name in tensors]
    joint = scheme.joint
    ends = tuple(f"{joint}{mark}" for mark in scheme.marks)
    found: dict[str, tuple[dict[str, Stored], dict[str, Path]]] = {
        name.removesuffix(end): ({}, {})
        for name, _ in everything
        for end in ends
        if name.endswith(end)
    }
    for name, file in everything:
        at = name.find(joint)
        while at >= 0:
            if name[:at] in found:
                tensors, files = found[name[:at]]
                tensors[name[at + 1 :]] = shards[file][name]
                files[name[at + 1 :]] = folder / file
            at = name.find(joint, at + 1)
    layers = (Layer(name, *parts, joint) for name, parts in found.items())
    return {layer.weight: layer for layer in layers}
