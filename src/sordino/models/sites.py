"""Which linear layers of a model are sites, found from the module tree alone."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from sordino.errors import UserError

# Names as a layer's submodules bear them ("self_attn", "attention", "linear_attn", …) or as their
# classes do; whatever sits below such a module belongs to attention.
_ATTENTION = re.compile(
    r"(^|_)(attn|attention|crossattention)($|_)|Attention$|Attn$", re.IGNORECASE
)
# A router chooses MoE experts; turning one of its outputs down would re-route, not dampen.
_ROUTER = re.compile(r"^(gate|router|shared_expert_gate)$|Router$|Gate$")

EVERYWHERE = r"."
"""The pattern of all linear layers, attention's among them."""


@dataclass(frozen=True)
class Site:
    """One linear layer whose outputs are neurons.

    Args:
        path: Module path in the model, such as "model.layers.3.mlp.up_proj".
        layer: Index of the decoder layer that it is in.
        kind: Path inside its layer, such as "mlp.up_proj".
        neurons: Number of outputs.
        transposed: The weight is stored [inputs, neurons] (GPT-2's Conv1D) and not
            [neurons, inputs] (Linear).
        bias: Whether it has a bias.
    """

    path: str
    layer: int
    kind: str
    neurons: int
    transposed: bool
    bias: bool


def decoder_layers(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """The module path and the list of the decoder's layers.

    Raises:
        UserError: The model has no such list, or several that could be meant.
    """
    expected = model.config.get_text_config(decoder=True).num_hidden_layers
    candidates = {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList)
        and len(module) == expected
        and not re.search(r"\.\d+\.", f".{path}.")  # lists inside a layer are not the stack
        and any(is_linear(inner) for inner in module.modules())
    }
    if len(candidates) > 1:
        decoder = model.get_decoder()
        inside = {id(module) for module in decoder.modules()}
        candidates = {path: found for path, found in candidates.items() if id(found) in inside}
    if len(candidates) != 1:
        found = ", ".join(candidates) or "none"
        raise UserError(
            f"The decoder's layers of {type(model).__name__} were not found: one list of "
            f"{expected} modules was looked for, and these fit: {found}."
        )
    return next(iter(candidates.items()))


def find_sites(model: PreTrainedModel, pattern: str | None = None) -> tuple[Site, ...]:
    """The model's sites in the order of their layers.

    Without a pattern: every `Linear` and `Conv1D` in the decoder's layers that is neither inside
    attention nor a router. With one: every `Linear` and `Conv1D` in the decoder's layers whose
    module path it matches anywhere (`re.search`).

    Raises:
        UserError: The pattern is no regular expression or matches nothing; or, without a pattern,
            a matrix of the feed-forward part would not be covered by any site.
    """
    stack, layers = decoder_layers(model)
    sites: list[Site] = []
    for index, layer in enumerate(layers):
        for kind, module in layer.named_modules():
            if is_linear(module):
                path = f"{stack}.{index}.{kind}"
                if _matches(pattern, path) if pattern else not _is_exempt(layer, kind):
                    sites.append(_site(path, index, kind, module))
    if pattern and not sites:
        kinds = sorted(
            {kind for layer in layers for kind, m in layer.named_modules() if is_linear(m)}
        )
        raise UserError(
            f"--sites '{pattern}' matches no linear layer of {type(model).__name__}; "
            f"paths look like {stack}.0.X with X one of: {', '.join(kinds)}."
        )
    if not pattern:
        _refuse_uncovered(stack, layers, {site.path for site in sites})
    return tuple(sites)


def _site(path: str, layer: int, kind: str, module: nn.Module) -> Site:
    transposed = isinstance(module, Conv1D)
    bias = getattr(module, "bias", None) is not None
    return Site(path, layer, kind, neurons_of(module), transposed, bias)


def is_linear(module: nn.Module) -> bool:
    """Whether a module is a linear layer: `Linear`, `Conv1D`, or a quantised one.

    Quantised layers are made by other packages and mostly are `Linear`s; those that are not have
    its sizes, and codes for a weight.
    """
    if isinstance(module, nn.Linear | Conv1D):
        return True
    sizes = (getattr(module, name, None) for name in ("in_features", "out_features"))
    return all(isinstance(size, int) for size in sizes) and hasattr(module, "qweight")


def neurons_of(module: nn.Module) -> int:
    """The number of outputs of a linear layer."""
    neurons = module.nf if isinstance(module, Conv1D) else module.out_features
    assert isinstance(neurons, int)  # a quantised weight's shape need not say it
    return neurons


def _matches(pattern: str, path: str) -> bool:
    try:
        return re.search(pattern, path) is not None
    except re.error as error:
        raise UserError(f"--sites '{pattern}' is not a regular expression: {error}.") from None


def _lineage(layer: nn.Module, path: str) -> Iterator[tuple[str, nn.Module]]:
    """Each module from the layer's child down to `path`, with its own name."""
    module = layer
    for name in path.split("."):
        module = getattr(module, name)
        yield name, module


def _is_exempt(layer: nn.Module, path: str) -> bool:
    """Whether the module at `path` belongs to attention or is (part of) a router."""
    return any(
        pattern.search(name) or pattern.search(type(module).__name__)
        for name, module in _lineage(layer, path)
        for pattern in (_ATTENTION, _ROUTER)
    )


def _refuse_uncovered(stack: str, layers: nn.ModuleList, covered: set[str]) -> None:
    for index, layer in enumerate(layers):
        for name, parameter in layer.named_parameters():
            owner = name.rpartition(".")[0]
            path = f"{stack}.{index}.{owner}".rstrip(".")
            if (
                parameter.dim() >= 2
                and path not in covered
                and not (owner and _is_exempt(layer, owner))
            ):
                raise UserError(
                    f"{stack}.{index}.{name} (shape {list(parameter.shape)}) is a matrix of the "
                    "feed-forward part that no site covers: this architecture is not supported as "
                    "a whole yet; --sites REGEX chooses the linear layers to use without it."
                )
