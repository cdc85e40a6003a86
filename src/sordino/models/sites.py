"""Find the sites (linear layers, MoE experts' matrices) of a model from its module tree."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn
from transformers import Conv1D, PreTrainedModel

from sordino.errors import UserError
from sordino.models.experts import ExpertMatrix, expert_matrices
from sordino.models.norms import NormGain, norms_after_blocks

# Names of a layer's submodules ("self_attn", "attention", "linear_attn", …) or of their classes;
# whatever is below such a module belongs to attention.
_ATTENTION = re.compile(
    r"(^|_)(attn|attention|crossattention)($|_)|Attention$|Attn$", re.IGNORECASE
)
# What mixes tokens in place of attention: state spaces, recurrences, short convolutions.
_MIXER = re.compile(
    r"^(mamba|temporal_block|mlstm_layer)$|Mixer$|MambaLayer$|Mamba$|RecurrentBlock$|DeltaNet$"
    r"|ShortConv(olution)?$"
)
# A router chooses MoE experts; scaling its outputs would re-route tokens, not dampen.
_ROUTER = re.compile(r"^(gate|router|shared_expert_gate)$|_router$|Router$|Gate$|Gating$")
# What carries the residual stream: it mixes several streams (AltUp, hyper-connections), chooses
# among earlier layers' (attention residuals), adds a learned part to it (LAuReL), or norms it.
_RESIDUAL = re.compile(r"AltUp$|HyperConnection$|Residual$|LaurelBlock$|layernorm$")
# Layers and experts that text without pictures does not pass through (Mllama's, Ernie's).
_ONLY_WITH_PICTURES = re.compile(r"CrossAttentionDecoderLayer$|^vision_moe$")
_NOT_FEED_FORWARD = (_ATTENTION, _MIXER, _ROUTER, _RESIDUAL, _ONLY_WITH_PICTURES)
# Layers that are never called, because their weights are used directly.
_NEVER_CALLED = re.compile(r"^dt_proj$")

ATTENTION, ALL = "attention", "all"
"""Patterns that add the linear layers of attention, or all others, to the feed-forward part's."""
NORMS = "norms"
"""The pattern for the gains of norms after blocks, instead of linear layers."""


@dataclass(frozen=True)
class Site:
    """One linear layer whose outputs are neurons, one matrix of MoE experts, or a norm's gain.

    Args:
        path: Module path in the model, such as "model.layers.3.mlp.up_proj"; for experts, whose
            matrix is a parameter and not a module, that parameter's path.
        layer: Index of the decoder layer that it is in.
        kind: Path inside its layer, such as "mlp.up_proj".
        neurons: Number of outputs; for experts, of all of them, one expert's after the other's.
        transposed: The weight is stored [inputs, neurons] (GPT-2's Conv1D, GPT-OSS's experts) and
            not [neurons, inputs] (Linear).
        bias: Whether it has a bias.
        experts: The number of MoE experts; 0 for a linear layer.

    Example:
        >>> sordino.open_model("tiny").sites[0].kind
        'mlp.gate_proj'
    """

    path: str
    layer: int
    kind: str
    neurons: int
    transposed: bool
    bias: bool
    experts: int = 0


def decoder_layers(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """The module path and the list of the decoder's layers.

    Raises:
        UserError: The model has no such list, or several.
    """
    config = model.config.get_text_config(decoder=True)
    # LongCat's layers hold two sub-layers each, and `num_hidden_layers` counts these.
    names = ("num_layers", "num_hidden_layers")
    expected = next((getattr(config, name) for name in names if hasattr(config, name)), 0)
    candidates = {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList)
        and len(module) == expected
        and not re.search(r"\.\d+\.", f".{path}.")  # lists inside a layer are not the stack
        and any(is_linear(inner) for inner in module.modules())
    }
    if len(candidates) > 1:
        inside = {id(module) for module in decoder_of(model).modules()}
        candidates = {path: found for path, found in candidates.items() if id(found) in inside}
    if len(candidates) != 1:
        found = ", ".join(candidates) or "none"
        raise UserError(
            f"The decoder's layers of {type(model).__name__} were not found: exactly one list of "
            f"{expected} modules is expected, and these fit: {found}."
        )
    return next(iter(candidates.items()))


def decoder_of(model: PreTrainedModel) -> nn.Module:
    """The part of the model that turns token ids into hidden states, without the LM head."""
    decoder: nn.Module = model.get_decoder()
    # ModernBERT calls its LM head the decoder.
    return model.base_model if is_linear(decoder) else decoder


def find_sites(model: PreTrainedModel, pattern: str | None = None) -> tuple[Site, ...]:
    """The model's sites in the order of their layers.

    Linear layers include the matrices of MoE experts. Routers, what carries the residual stream,
    and layers that text without pictures does not pass through are never sites.

    Args:
        model: The model, or its module tree.
        pattern: None for the linear layers of the feed-forward part, that is, neither of attention
            nor of what mixes tokens in its place (Mamba, say). "attention" adds those of attention,
            "all" all others. "norms" are the gains of the norms between a block and the residual
            stream, instead of linear layers. Any other pattern is a regular expression: it chooses
            the linear layers of the decoder whose module path it matches anywhere (`re.search`).

    Raises:
        UserError: The pattern is not a regular expression or matches nothing; or, without a regular
            expression, a matrix of the feed-forward part would not be covered by any site, or there
            is none.
    """
    stack, layers = decoder_layers(model)
    if pattern == NORMS:
        return _norm_sites(model, stack, layers)
    sites = [
        _site(f"{stack}.{index}.{kind}", index, kind, module)
        for index, layer in enumerate(layers)
        if not _ONLY_WITH_PICTURES.search(type(layer).__name__)
        for kind, module in _linears(layer)
        if _is_chosen(pattern, stack, index, layer, kind)
    ]
    if pattern in (None, ATTENTION, ALL):
        _refuse_uncovered(stack, layers, {site.path for site in sites})
    if not sites:
        raise _no_sites(model, stack, layers, pattern)
    return tuple(sites)


def _norm_sites(model: PreTrainedModel, stack: str, layers: nn.ModuleList) -> tuple[Site, ...]:
    found = [
        _site(f"{stack}.{index}.{name}", index, name, norm)
        for index, layer in enumerate(layers)
        for name, norm in norms_after_blocks(layer)
    ]
    if not found:
        raise UserError(
            f"{type(model).__name__} has no norms between its blocks and the residual stream: "
            f"leave out `sites={NORMS}`."
        )
    return tuple(found)


def _is_chosen(pattern: str | None, stack: str, index: int, layer: nn.Module, kind: str) -> bool:
    """Whether the linear layer at `kind` in the decoder's layer is a site by this pattern."""
    if _is_within(layer, kind, _ROUTER, _RESIDUAL, _ONLY_WITH_PICTURES):
        return False
    mixes = _is_within(layer, kind, _MIXER)
    if mixes and _NEVER_CALLED.search(kind.rpartition(".")[-1]):
        return False
    if pattern is None:
        return not mixes and not _is_within(layer, kind, _ATTENTION)
    if pattern == ATTENTION:
        return not mixes or _is_within(layer, kind, _ATTENTION)
    return pattern == ALL or _matches(pattern, f"{stack}.{index}.{kind}")


def _no_sites(
    model: PreTrainedModel, stack: str, layers: nn.ModuleList, pattern: str | None
) -> UserError:
    kinds = sorted({kind for layer in layers for kind, _ in _linears(layer)})
    if pattern:
        return UserError(
            f"`sites='{pattern}'` matches no linear layer of {type(model).__name__}; "
            f"paths look like {stack}.0.X with X one of: {', '.join(kinds)}."
        )
    return UserError(
        f"{type(model).__name__} has no linear layers outside of what mixes tokens "
        f"({', '.join(kinds)}): use these with `sites={ALL}`."
    )


def _linears(layer: nn.Module) -> Iterator[tuple[str, nn.Module | ExpertMatrix]]:
    """The linear layers and matrices of experts in a decoder's layer, by their paths in it."""
    for path, module in layer.named_modules():
        if is_linear(module):
            yield path, module
        for name, matrix in expert_matrices(module).items():
            yield f"{path}.{name}", matrix


def _site(path: str, layer: int, kind: str, module: nn.Module | ExpertMatrix | NormGain) -> Site:
    if isinstance(module, NormGain):
        return Site(path, layer, kind, module.neurons, False, module.bias is not None)
    if isinstance(module, ExpertMatrix):
        biased = module.bias is not None
        return Site(path, layer, kind, module.neurons, module.transposed, biased, module.experts)
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


def is_feed_forward(layer: nn.Module, kind: str) -> bool:
    """Whether the module at this path in a decoder's layer is of the feed-forward part."""
    return not _is_within(layer, kind, *_NOT_FEED_FORWARD)


def neurons_of(module: nn.Module) -> int:
    """The number of outputs of a linear layer."""
    neurons = module.nf if isinstance(module, Conv1D) else module.out_features
    assert isinstance(neurons, int)  # a quantised weight's shape need not say it
    return neurons


def _matches(pattern: str, path: str) -> bool:
    try:
        return re.search(pattern, path) is not None
    except re.error as error:
        raise UserError(f"`sites='{pattern}'` is not a regular expression: {error}.") from None


def _lineage(layer: nn.Module, path: str) -> Iterator[tuple[str, nn.Module]]:
    """Each module with its name from the layer's child to `path`, which may be a parameter."""
    module = layer
    for name in path.split("."):
        module = getattr(module, name)
        yield name, module


def _is_within(layer: nn.Module, path: str, *patterns: re.Pattern[str]) -> bool:
    """Whether the name or class of the module at `path`, or of one around it, matches a pattern."""
    return any(
        pattern.search(name) or pattern.search(type(module).__name__)
        for name, module in _lineage(layer, path)
        for pattern in patterns
    )


def _refuse_uncovered(stack: str, layers: nn.ModuleList, covered: set[str]) -> None:
    for index, layer in enumerate(layers):
        if _ONLY_WITH_PICTURES.search(type(layer).__name__):
            continue
        for name, parameter in layer.named_parameters():
            owner, _, leaf = name.rpartition(".")
            path = f"{stack}.{index}.{owner}".rstrip(".")
            if (
                sum(size > 1 for size in parameter.shape) >= 2
                and not covered & {path, f"{path}.{leaf}", f"{path}.{leaf.removesuffix('_bias')}"}
                and not (owner and _is_within(layer, owner, *_NOT_FEED_FORWARD))
            ):
                raise UserError(
                    f"{stack}.{index}.{name} (shape {list(parameter.shape)}) is a matrix of the "
                    "feed-forward part that no site covers: this architecture is not supported as "
                    "a whole yet; choose linear layers without it by `sites`, a regular expression."
                )
