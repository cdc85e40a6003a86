"""Where a model's parameters lie in a GGUF file: which row of which tensor is which neuron.

Converters transpose, permute, split and stack weights, and transformers' loader undoes that. Here
the rows of a tensor are numbered, and the numbers are sent through that loader in place of the
weights: where a number arrives, that row belongs.
"""

import re
from collections.abc import Iterator, Mapping
from math import prod

import numpy as np
from gguf import (
    MODEL_ARCH_NAMES,
    MODEL_TENSOR,
    TENSOR_NAMES,
    TensorNameMap,
    get_tensor_name_map,
)
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from sordino.errors import UserError
from sordino.interventions import Dampening
from sordino.models.gguf_header import Header, Stored
from sordino.models.gguf_loading import holds_experts, table_of
from sordino.models.transformers_internals import GgufTable

# The feed-forward part's matrices, whose rows no converter reorders.
_PLAIN = {
    *(MODEL_TENSOR.FFN_GATE, MODEL_TENSOR.FFN_UP, MODEL_TENSOR.FFN_DOWN),
    *(MODEL_TENSOR.FFN_GATE_SHEXP, MODEL_TENSOR.FFN_UP_SHEXP, MODEL_TENSOR.FFN_DOWN_SHEXP),
}
# The gains of norms after blocks, which files hold whole.
_GAINS = {MODEL_TENSOR.ATTN_POST_NORM, MODEL_TENSOR.FFN_POST_NORM}
# By the name of the experts' matrix: the tensor that has it whole, or those that share it.
_EXPERTS = {
    "gate_up": (
        MODEL_TENSOR.FFN_GATE_UP_EXP,
        (MODEL_TENSOR.FFN_GATE_EXP, MODEL_TENSOR.FFN_UP_EXP),
    ),
    "up": (MODEL_TENSOR.FFN_UP_EXP, (MODEL_TENSOR.FFN_UP_EXP,)),
    "down": (MODEL_TENSOR.FFN_DOWN_EXP, (MODEL_TENSOR.FFN_DOWN_EXP,)),
}
# By matrix of Granite's `shared_mlp`: its tensors in files with MoE experts, and without.
_SHARED_MLP = {
    "input_linear": (
        (MODEL_TENSOR.FFN_GATE_SHEXP, MODEL_TENSOR.FFN_UP_SHEXP),
        (MODEL_TENSOR.FFN_GATE, MODEL_TENSOR.FFN_UP),
    ),
    "output_linear": ((MODEL_TENSOR.FFN_DOWN_SHEXP,), (MODEL_TENSOR.FFN_DOWN,)),
}
# Architectures whose transformers models interleave the neurons of gate and up.
_INTERLEAVED = ("gpt-oss",)
_WITH_EXPERTS = {True: " where it has MoE experts", False: ""}
Values = NDArray[np.float32]


def by_rows(
    header: Header, model: PreTrainedModel, values: Mapping[str, Tensor]
) -> dict[str, Values]:
    """Carry values with one number per neuron from parameters to the rows of tensors in the file.

    Args:
        header: The file's, inside `reading`.
        model: Its module tree.
        values: By parameter name, a tensor that broadcasts to the parameter: scales or shifts.

    Returns:
        By tensor name, float32 [rows]: [entries] for a bias.

    Raises:
        UserError: A parameter is in no tensor, or its neurons are not rows there.
    """
    table = table_of(header, model)
    names = table.parameters(header.tensors)
    found = {
        tensor: values[parameter].numpy()
        if _is_gain(header, tensor)  # whose order no converter changes
        else _carry(header, table, header.tensors[tensor], parameter, values[parameter])
        for tensor, parameter in names.items()
        if parameter in values
    }
    if lacking := values.keys() - set(names.values()):
        raise UserError(f"{header.path} has no tensor for {min(lacking)}: it cannot be dampened.")
    return found


def _is_gain(header: Header, tensor: str) -> bool:
    """Whether a tensor is the gain of a norm."""
    return tensor.endswith(".weight") and len(header.tensors[tensor].shape) == 1


def by_tables(header: Header, dampening: Dampening) -> tuple[dict[str, Values], dict[str, Values]]:
    """The scales and shifts of tensors by the gguf package's tables of names alone.

    This is for architectures that transformers does not load from GGUF files, with factors that
    were found on the folder from which the file was converted.

    Args:
        header: The file's.
        dampening: Factors for the sites of that folder's model.

    Returns:
        By tensor name, float32 [rows].

    Raises:
        UserError: A site is neither a plain matrix of the feed-forward part nor one of MoE experts,
            or not of that size, or is shifted and has no bias.
    """
    architectures = {name: number for number, name in MODEL_ARCH_NAMES.items()}
    if header.architecture not in architectures:
        raise UserError(
            f"{header.path} is of the architecture {header.architecture}, which the installed gguf "
            "package does not know: update it."
        )
    layers = header.metadata.get(f"{header.architecture}.block_count", 0)
    assert isinstance(layers, int)
    table = get_tensor_name_map(architectures[header.architecture], layers)
    scales: dict[str, Values] = {}
    shifts: dict[str, Values] = {}
    for site, factors in dampening.factors.items():
        shift = dampening.shifts[site] if site in dampening.shifted else None
        places = (
            _of_experts(header, site, factors)
            or _of_shared_mlp(header, site, factors)
            or _find_plain(header, table, site, factors)
        )
        for name, neurons in places.items():
            scales[f"{name}.weight"] = factors[neurons]
            bias = f"{name}.bias"
            if bias in header.tensors:
                scales[bias] = factors[neurons]
            if shift is not None:
                if bias not in header.tensors:
                    raise UserError(
                        f"{site} has no bias in {header.path} to hold its shifts: use "
                        "`format=hooks`."
                    )
                shifts[bias] = shift[neurons]
    return scales, shifts


def _find_plain(
    header: Header, table: TensorNameMap, site: str, factors: Values
) -> dict[str, NDArray[np.int64]]:
    """The name of a plain matrix's tensor (without ".weight"), and all its neurons."""
    found = table.get_type_and_name(site)
    if found is None:  # of hybrids the tables know the names in checkpoints
        found = table.get_type_and_name(re.sub("^model", "backbone", site))
    kind, name = found or (None, "")
    stored = header.tensors.get(f"{name}.weight")
    dimensions = 2 if kind in _PLAIN else 1
    if kind not in _PLAIN | _GAINS or stored is None or len(stored.shape) != dimensions:
        raise UserError(
            f"{site} cannot be found in {header.path}: transformers does not load "
            f"{header.architecture} from GGUF files{_WITH_EXPERTS[holds_experts(header)]}, and "
            "without it only plain matrices of the feed-forward part and MoE experts' are known; "
            "choose other `sites` when you find the expertise."
        )
    _refuse_other_size(header, stored.name, stored.shape[0], site, factors)
    return {name: np.arange(factors.size)}


def _of_experts(header: Header, site: str, factors: Values) -> dict[str, NDArray[np.int64]]:
    """The names of the tensors of a matrix of MoE experts, and the neurons that each holds.

    Empty if it is not such a matrix, or the file has it under no known name. Where a site has the
    outputs of gate and up together, the file may have a tensor for each: an expert's gate comes
    before its up, or (GPT-OSS) the neurons of both alternate.
    """
    found = re.fullmatch(r"(?:\D*\.)?(\d+)\..*\bexperts\.(gate_up|up|down)_proj", site)
    if found is None:
        return {}
    layer, matrix = int(found[1]), found[2]

    def rows(kind: MODEL_TENSOR) -> tuple[str, tuple[int, ...]] | None:
        name = TENSOR_NAMES[kind].format(bid=layer)
        stored = header.tensors.get(f"{name}.weight")
        return None if stored is None or len(stored.shape) != 3 else (name, stored.shape[:2])

    together, apart = _EXPERTS[matrix]
    parts = [place for kind in apart if (place := rows(kind))]
    if whole := rows(together):
        parts = [whole]
        apart = (together,)
    if len(parts) != len(apart) or len({shape for _, shape in parts}) != 1:
        return {}
    (experts, width), count = parts[0][1], len(parts)
    _refuse_other_size(header, parts[0][0], experts * width * count, site, factors)
    numbers = np.arange(factors.size)
    if count == 1:
        return {parts[0][0]: numbers}
    if header.architecture in _INTERLEAVED:
        by_part = numbers.reshape(experts, width, count).transpose(2, 0, 1)
    else:
        by_part = numbers.reshape(experts, count, width).transpose(1, 0, 2)
    return {name: mine.ravel() for (name, _), mine in zip(parts, by_part, strict=True)}


def _of_shared_mlp(header: Header, site: str, factors: Values) -> dict[str, NDArray[np.int64]]:
    """The same for Granite's shared part, whose gate comes before its up."""
    found = re.fullmatch(r"(?:\D*\.)?(\d+)\.shared_mlp\.(input_linear|output_linear)", site)
    if found is None:
        return {}
    for kinds in _SHARED_MLP[found[2]]:
        names = [TENSOR_NAMES[kind].format(bid=int(found[1])) for kind in kinds]
        shapes = {
            stored.shape for name in names if (stored := header.tensors.get(f"{name}.weight"))
        }
        if len(shapes) == 1 and all(f"{name}.weight" in header.tensors for name in names):
            [(width, *_)] = shapes
            _refuse_other_size(header, names[0], width * len(names), site, factors)
            numbers = np.arange(factors.size).reshape(len(names), width)
            return dict(zip(names, numbers, strict=True))
    return {}


def _refuse_other_size(header: Header, name: str, rows: int, site: str, factors: Values) -> None:
    if rows != factors.size:
        raise UserError(
            f"{header.path} holds {name} with {rows} rows, which does not fit {site} with "
            f"{factors.size} neurons: the factors are of another model."
        )


def _carry(
    header: Header, table: GgufTable, stored: Stored, parameter: str, values: Tensor
) -> Values:
    """A parameter's values by the rows of one of its tensors, float32 [rows]."""
    wanted = values.numpy()
    for landed in _landings(table, stored):
        if wanted.ndim != landed.ndim or np.broadcast(wanted, landed).shape != landed.shape:
            continue
        rows = landed.ravel() - 1
        ours = rows >= 0  # the others are another tensor's, where several make up a parameter
        there = np.broadcast_to(wanted, landed.shape).ravel()[ours]
        carried = np.full(rows.max(initial=-1) + 1, np.nan, np.float32)
        carried[rows[ours]] = there
        if np.array_equal(carried[rows[ours]], there) and not np.isnan(carried).any():
            return carried
    raise UserError(
        f"{header.path} holds {parameter} as {stored.name}, whose rows are not its neurons, so it "
        "cannot be dampened there: bake to a folder (`output` without .gguf), or choose other "
        "`sites`."
    )


def _landings(table: GgufTable, stored: Stored) -> Iterator[NDArray[np.int64]]:
    """Where in a parameter the rows of a tensor arrive, numbered from 1.

    First each row is represented by one weight, which is enough for most loaders; then, for those
    that fold rows, by all its weights.
    """
    inside = stored.shape if len(stored.shape) == 1 else stored.shape[:-1]
    numbers = np.arange(1, 1 + prod(inside)).reshape(inside)
    if len(stored.shape) == 1:
        yield table.convert(stored.name, numbers)
        return
    for width in (1, stored.shape[-1]):
        weights = np.broadcast_to(numbers[..., None], (*inside, width))
        try:
            yield table.convert(stored.name, weights)
        except ValueError:
            continue  # one weight per row is not enough for it
