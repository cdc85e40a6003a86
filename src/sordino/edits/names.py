"""Where a model's parameters lie in a checkpoint, by transformers' own conversion tables.

The names in a checkpoint are not always those of the module tree: GPT-2's lack a prefix, others
were renamed since, and some tensors are fused or split while they are loaded.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sordino.errors import UserError
from sordino.interventions import Dampening
from sordino.interventions.dampening import by_bias, by_neuron
from sordino.models.experts import ExpertMatrix
from sordino.models.norms import NormGain
from sordino.models.transformers_internals import Conversions

# Conversions that only move whole rows and matrices, so that a scale with one value per neuron (and
# size 1 in the other dimensions) can be sent through them in place of the weight.
_ROW_MOVES = {
    *("Chunk", "Concatenate", "Interleave", "MergeModulelist", "SplitModulelist", "Transpose")
}


def parameter_scales(model: PreTrainedModel, dampening: Dampening) -> dict[str, Tensor]:
    """The scales of the parameters that are dampened: the weight and the bias of every site.

    Returns:
        By parameter name, a float32 tensor that broadcasts to the parameter's shape.

    Raises:
        UserError: The dampening does not fit the model, or a site shares its weight.
    """
    scales: dict[str, Tensor] = {}
    for site, module in dampening.modules(model).items():
        factors = torch.from_numpy(dampening.factors[site])
        weight, bias = parameters_of(site, module)
        scales[weight] = by_neuron(module, factors)
        if module.bias is not None:
            scales[bias] = by_bias(module, factors)
    _refuse_shared(model, scales)
    return scales


def parameter_shifts(
    model: PreTrainedModel, dampening: Dampening, *, gains: bool = True
) -> dict[str, Tensor]:
    """What to add to the biases of shifted sites, where they have one, and to norms' weights.

    Args:
        model: The module tree.
        dampening: Factors and shifts for its sites.
        gains: Whether to include norms' weights: where a gain is a weight plus 1, scaling it is not
            scaling the weight; see `NormGain.scaled_by`.

    Raises:
        UserError: The dampening does not fit the model.
    """
    modules = dampening.modules(model)
    of_biases = {
        parameters_of(site, modules[site])[1]: by_bias(
            modules[site], torch.from_numpy(dampening.shifts[site])
        )
        for site in dampening.shifted
        if modules[site].bias is not None
    }
    of_weights = {
        parameters_of(site, module)[0]: shift
        for site, module in modules.items()
        if gains
        and isinstance(module, NormGain)
        and (shift := module.scaled_by(torch.from_numpy(dampening.factors[site]))) is not None
    }
    return of_biases | of_weights


def parameters_of(site: str, module: Any) -> tuple[str, str]:
    """The names of a site's weight and of its bias, whether it has one or not."""
    if isinstance(module, ExpertMatrix):
        return site, f"{site}_bias"
    return f"{site}.weight", f"{site}.bias"


def on_disk(
    model: PreTrainedModel,
    values: Mapping[str, Tensor],
    names: Iterable[str],
    rest: float = 1.0,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
) -> dict[str, Tensor]:
    """Carry scales or shifts from a model's parameters to the tensors of its checkpoint.

    Args:
        model: The module tree.
        values: By parameter name, a tensor of the parameter's dimensions that broadcasts to it.
        names: The names of all tensors in the checkpoint.
        rest: The value of the parameters that are not named, where a tensor on disk holds several.
        shapes: The shapes of the checkpoint's tensors, as far as they are known: loading transposes
            some of them or not, depending on their shape.

    Returns:
        By the name on disk, a tensor that broadcasts to the tensor on disk.

    Raises:
        UserError: A parameter's tensor is not in the checkpoint, or cannot be traced to it.
    """
    names, conversions = set(names), Conversions(model)
    sources = _sources(conversions, names)
    found = {name: value for target, value in values.items() for name in sources[target]}
    converted = {name: value for name, value in values.items() if not sources[name]}
    if converted:
        through = _through_converters(model, conversions, converted, names, rest)
        found |= _turn_back(model, conversions, converted, through, shapes or {})
    return found


def not_loaded(model: PreTrainedModel, names: Iterable[str]) -> list[str]:
    """The tensors of a checkpoint that the model does not load."""
    parameters = model.state_dict().keys()
    places = Conversions(model).place(names)
    return [name for name, placement in places.items() if placement.parameter not in parameters]


def names_beside(
    model: PreTrainedModel, biased: PreTrainedModel, biases: Iterable[str], names: Iterable[str]
) -> dict[str, str]:
    """The names of new biases in a checkpoint: those of their weights, but for the end.

    Args:
        model: The module tree to which the checkpoint belongs.
        biased: The same with the biases.
        biases: Their parameter names.
        names: The names of all tensors in the checkpoint.

    Returns:
        By the name on disk of each weight, that of its bias.

    Raises:
        UserError: No such name would be loaded into the bias.
    """
    names = set(names)
    sources = _sources(Conversions(model), names)
    beside = {
        bias: {name: f"{name.removesuffix('weight')}bias" for name in sources[_weight_of(bias)]}
        for bias in biases
    }
    new = [name for of_bias in beside.values() for name in of_bias.values()]
    loaded = _sources(Conversions(biased), new)
    taken = not names.isdisjoint(new)
    found: dict[str, str] = {}
    for bias, of_bias in beside.items():
        if not of_bias or loaded[bias] != list(of_bias.values()) or taken:
            raise UserError(
                f"{_weight_of(bias)} is converted when this checkpoint is loaded, so no bias can "
                "be stored beside it: write the shifts with `format=hooks`."
            )
        found |= of_bias
    return found


def _weight_of(bias: str) -> str:
    return f"{bias.removesuffix('bias')}weight"


def _sources(conversions: Conversions, names: Iterable[str]) -> defaultdict[str, list[str]]:
    """By parameter, the tensors that are loaded into it as they are (renamed at most)."""
    sources: defaultdict[str, list[str]] = defaultdict(list)
    for name, placement in conversions.place(names).items():
        if not placement.operations:
            sources[placement.parameter].append(name)
    return sources


def _through_converters(
    model: PreTrainedModel,
    conversions: Conversions,
    values: Mapping[str, Tensor],
    names: Collection[str],
    rest: float,
) -> dict[str, Tensor]:
    """Send values the way that `save_pretrained` sends weights, back to the tensors on disk."""
    # A tensor on disk can hold several parameters: those without a value take part all the same.
    together = conversions.companions(values)
    for name in values:
        _refuse_unmovable(name, together[name])
    parameters = model.state_dict()
    complete = {
        name: values[name] if name in values else torch.full(_one_a_row(parameters[name]), rest)
        for name in together
    }
    found = conversions.revert(complete)
    for name in found:
        if name not in names:
            raise _not_found(name, ", ".join(values))
    return found


def _turn_back(
    model: PreTrainedModel,
    conversions: Conversions,
    values: Mapping[str, Tensor],
    through: dict[str, Tensor],
    shapes: Mapping[str, tuple[int, ...]],
) -> dict[str, Tensor]:
    """What the converters gave, without the transpositions that this checkpoint does not need.

    Transformers transposes some tensors only where their shape differs from the parameter's. It
    cannot see that from values with one number per row, and always transposes those.
    """
    parameters = model.state_dict()
    for name, parameter in conversions.turned_by_shape(through).items():
        if name not in shapes:
            raise _in_another_shape(parameter, "Transpose")
        if tuple(shapes[name]) == tuple(parameters[parameter].shape):
            through[name] = values[parameter]
    return through


def _one_a_row(parameter: Tensor) -> tuple[int, ...]:
    return (*parameter.shape[:-1], 1) if parameter.dim() > 1 else tuple(parameter.shape)


def _refuse_unmovable(name: str, operations: tuple[str, ...]) -> None:
    if not operations:
        raise _not_found(name, name)
    for operation in operations:
        if operation not in _ROW_MOVES:
            raise _in_another_shape(name, operation)


def _in_another_shape(name: str, operation: str) -> UserError:
    return UserError(
        f"{name} is stored in another shape in this checkpoint ({operation} while loading), which "
        "cannot be baked: load the model, use Dampening.bake_into and save it."
    )


def _not_found(name: str, parameter: str) -> UserError:
    return UserError(
        f"The checkpoint has no tensor {name} for {parameter}: it is incomplete, quantised, or of "
        "an architecture that is not supported."
    )


def _refuse_shared(model: PreTrainedModel, scales: Mapping[str, Tensor]) -> None:
    """A weight in two places would be scaled in both."""
    places: defaultdict[int, list[str]] = defaultdict(list)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        places[id(parameter)].append(name)
    for shared in places.values():
        if len(shared) > 1 and any(name in scales for name in shared):
            raise UserError(
                f"{' and '.join(shared)} are the same weight, so one of them cannot be dampened "
                "alone: choose other `sites`."
            )
