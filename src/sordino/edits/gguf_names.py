"""Where a model's parameters lie in a GGUF file: which row of which tensor is which neuron.

Converters transpose, permute, split and stack weights, and transformers' loader undoes that. Here
the numbers of a tensor's rows are sent through that loader in place of its weights: where a number
comes out, the row goes in.
"""

from collections.abc import Iterator, Mapping
from math import prod

import numpy as np
import torch
from gguf import MODEL_ARCH_NAMES, MODEL_TENSOR, get_tensor_name_map
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel
from transformers.core_model_loading import Concatenate, WeightRenaming, rename_source_key
from transformers.integrations.gguf import get_gguf_conversion_mapping, is_gguf_arch_supported
from transformers.integrations.gguf.gguf_conversion_mapping import (
    PermuteInputFeatures,
    PermuteRows,
    Unsqueeze,
)

from sordino.errors import UserError
from sordino.interventions import Dampening
from sordino.models.gguf_header import Header, Stored
from sordino.models.gguf_loading import parameter_names, processor_of

# The feed-forward part's matrices, whose rows no converter reorders.
_PLAIN = {
    *(MODEL_TENSOR.FFN_GATE, MODEL_TENSOR.FFN_UP, MODEL_TENSOR.FFN_DOWN),
    *(MODEL_TENSOR.FFN_GATE_SHEXP, MODEL_TENSOR.FFN_UP_SHEXP, MODEL_TENSOR.FFN_DOWN_SHEXP),
}
Values = NDArray[np.float32]


def by_rows(
    header: Header, model: PreTrainedModel, values: Mapping[str, Tensor]
) -> dict[str, Values]:
    """Carry values with one number a neuron from parameters to the rows of tensors in the file.

    Args:
        header: The file's, inside `reading`.
        model: Its module tree.
        values: By parameter name, a tensor that broadcasts to the parameter: scales or shifts.

    Returns:
        By tensor name, float32 [rows]: [entries] for a bias.

    Raises:
        UserError: A parameter is in no tensor, or its neurons are not rows there.
    """
    names = parameter_names(header, model)
    found = {
        tensor: _carried(header, model, names, header.tensors[tensor], parameter, values[parameter])
        for tensor, parameter in names.items()
        if parameter in values
    }
    for parameter in values.keys() - set(names.values()):
        raise UserError(f"{header.path} has no tensor for {parameter}: it cannot be dampened.")
    return found


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
        UserError: A site is no plain matrix of the feed-forward part, or not of that size, or is
            shifted and has no bias.
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
    scales, shifts = {}, {}
    for site, factors in dampening.factors.items():
        kind, name = table.get_type_and_name(site) or (None, "")
        stored = header.tensors.get(f"{name}.weight")
        if kind not in _PLAIN or stored is None or len(stored.shape) != 2:
            raise UserError(
                f"{site} cannot be found in {header.path}: transformers does not load "
                f"{header.architecture} from GGUF files, and without it only plain matrices of the "
                "feed-forward part are known; leave it out with --sites when the expertise is "
                "found."
            )
        if stored.shape[0] != factors.size:
            raise UserError(
                f"{header.path} holds {stored.name} with {stored.shape[0]} rows, which does not "
                f"fit {site} with {factors.size} neurons: it belongs to another configuration."
            )
        scales[stored.name] = factors
        bias = f"{name}.bias"
        if bias in header.tensors:
            scales[bias] = factors
        if site in dampening.shifted:
            if bias not in header.tensors:
                raise UserError(
                    f"{site} has no bias in {header.path} to hold its shifts: export them as hooks "
                    "with --hooks."
                )
            shifts[bias] = dampening.shifts[site]
    return scales, shifts


def _carried(
    header: Header,
    model: PreTrainedModel,
    names: Mapping[str, str],
    stored: Stored,
    parameter: str,
    values: Tensor,
) -> Values:
    """A parameter's values by the rows of one of its tensors, float32 [rows]."""
    wanted = values.numpy()
    for landed in _landings(header, model, names, stored, parameter):
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
        f"{header.path} holds {parameter} as {stored.name}, whose rows are not its neurons, so "
        "that it cannot be dampened there: bake to a folder (-o without .gguf), or leave it out "
        "with --sites."
    )


def _landings(
    header: Header,
    model: PreTrainedModel,
    names: Mapping[str, str],
    stored: Stored,
    parameter: str,
) -> Iterator[NDArray[np.int64]]:
    """Where in a parameter the rows of a tensor, numbered from 1, come to lie.

    First each row is stood for by one weight, which is enough for most loaders; then, for those
    that fold rows, by as many as it has.
    """
    inside = stored.shape if len(stored.shape) == 1 else stored.shape[:-1]
    numbers = np.arange(1, 1 + prod(inside)).reshape(inside)
    if len(stored.shape) == 1:
        yield _landed(header, model, names, stored.name, parameter, numbers)
        return
    for width in (1, stored.shape[-1]):
        weights = np.broadcast_to(numbers[..., None], (*inside, width))
        try:
            yield _landed(header, model, names, stored.name, parameter, weights)
        except ValueError:
            continue  # one weight a row is too few for it


def _landed(
    header: Header,
    model: PreTrainedModel,
    names: Mapping[str, str],
    tensor: str,
    parameter: str,
    weights: NDArray[np.int64],
) -> NDArray[np.int64]:
    """What transformers' loader makes of a tensor with these weights."""
    if is_gguf_arch_supported(header.architecture):
        return _converted(header, model, tensor, torch.from_numpy(weights.copy())).numpy()
    loaded: dict[str, dict[str, Tensor]] = {"tensors": {}}
    short = {name.removesuffix(".weight"): target for name, target in names.items()}
    found = processor_of(header, model).process(
        weights=weights,
        name=tensor,
        tensor_key_mapping={**names, **short},
        parsed_parameters=loaded,
    )
    if found.name is None:  # it was put into a larger parameter
        return loaded["tensors"][parameter].numpy()
    return np.asarray(found.weights)


def _converted(header: Header, model: PreTrainedModel, tensor: str, weights: Tensor) -> Tensor:
    """The same for the architectures that have conversion tables."""
    conversions = get_gguf_conversion_mapping(header.architecture, model.config)
    renamings = [entry for entry in conversions if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in conversions if not isinstance(entry, WeightRenaming)]
    _, pattern = rename_source_key(tensor, renamings, converters)
    if pattern is None:
        return weights
    converter = next(entry for entry in converters if pattern in entry.source_patterns)
    sources, targets = converter.source_patterns, converter.target_patterns
    for operation in converter.operations:
        if isinstance(operation, PermuteInputFeatures):
            continue  # it reorders columns
        if not isinstance(operation, PermuteRows | Unsqueeze | Concatenate):
            raise ValueError(type(operation).__name__)
        given = {source: torch.zeros_like(weights) for source in sources} | {pattern: weights}
        [weights] = operation.convert(given, sources, targets).values()
        sources = [pattern := targets[0]]
    return weights
