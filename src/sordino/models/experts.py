"""MoE experts whose weights are one tensor for all of them, as transformers holds them.

Such a module has no linear layers whose outputs a hook could see. Transformers computes it with any
function that is registered with its experts interface; the one here does what the module's own code
does, in the same order, and passes each expert's outputs to hooks. Experts that are not behind that
interface, such as Llama 4's, are computed again by a hook on the module.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional

from sordino.models.transformers_internals import apply_gate, experts_kind, register_experts

_IMPLEMENTATION = "sordino"
_NAMES = ("gate_up_proj", "gate_proj", "up_proj", "down_proj")


class Routed(NamedTuple):
    """The outputs of one MoE expert at one of its matrices.

    Args:
        expert: Its index.
        tokens: int64 [n], the indices of the tokens that were routed to it.
        outputs: [n, neurons of one expert], bias included, before any non-linearity.
        of: The number of all tokens.
    """

    expert: int
    tokens: Tensor
    outputs: Tensor
    of: int


Hook = Callable[[Routed], Tensor | None]
"""Gets an expert's outputs; what it returns, unless None, replaces them."""


class ExpertMatrix(NamedTuple):
    """One of the matrices of all experts of a layer.

    Args:
        weight: [experts, neurons, inputs]; [experts, inputs, neurons] where transposed.
        bias: [experts, neurons], or None.
        transposed: Whether neurons are the last dimension.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None
    transposed: bool

    @property
    def experts(self) -> int:
        """The number of experts."""
        return self.weight.shape[0]

    @property
    def neurons(self) -> int:
        """The number of neurons of all experts together, one expert's after the other's."""
        return self.experts * self.weight.shape[2 if self.transposed else 1]


def expert_matrices(module: nn.Module) -> dict[str, ExpertMatrix]:
    """The matrices of a module of fused experts by parameter name; empty for other modules."""
    kind = experts_kind(module)
    if kind in _AGAIN:
        transposed, biased = kind == "llama4", False
    elif kind == "interface":
        transposed, biased = bool(module.is_transposed), bool(module.has_bias)
    else:
        return {}
    return {
        name: ExpertMatrix(weight, getattr(module, f"{name}_bias") if biased else None, transposed)
        for name, weight in module.named_parameters(recurse=False)
        if name in _NAMES and weight.dim() == 3
    }


def expert_matrix(model: nn.Module, path: str) -> ExpertMatrix | None:
    """The matrix of a model's experts at this parameter path, or None."""
    owner, _, name = path.rpartition(".")
    try:
        return expert_matrices(model.get_submodule(owner)).get(name)
    except AttributeError:
        return None


@contextmanager
def experts_hooked(model: Any, hooks: Mapping[str, Hook]) -> Iterator[None]:
    """Call hooks with experts' outputs, inside the block.

    Args:
        model: The model.
        hooks: By the matrix's parameter path, such as "model.layers.0.mlp.experts.down_proj".
    """
    if not hooks:
        yield
        return
    by_module: dict[nn.Module, dict[str, Hook]] = {}
    for path, hook in hooks.items():
        owner, _, name = path.rpartition(".")
        by_module.setdefault(model.get_submodule(owner), {})[name] = hook
    before = model.get_experts_implementation()
    with ExitStack() as stack:
        for module, of_module in by_module.items():
            among = _hooks.setdefault(module, [])
            among.append(of_module)
            stack.callback(among.remove, of_module)
            again = _find_recomputer(module)
            if again and len(among) == 1:
                stack.callback(module.register_forward_hook(again, with_kwargs=True).remove)
        if not all(map(_find_recomputer, by_module)):
            stack.callback(model.set_experts_implementation, before)
            model.set_experts_implementation(_IMPLEMENTATION)
        yield


@contextmanager
def unhooked(model: nn.Module) -> Iterator[None]:
    """Inside the block no hook sees or changes outputs, of layers or of experts.

    Hooks that come before a module stay, since some libraries unpack weights in them.

    Args:
        model: The model, perhaps edited with hooks.
    """
    # Torch has no public way to take hooks out and put them back.
    hooked = [module for module in model.modules() if module._forward_hooks]
    taken = [module._forward_hooks.copy() for module in hooked]
    of_experts = {module: _hooks[module] for module in model.modules() if module in _hooks}
    try:
        for module in hooked:
            module._forward_hooks.clear()
        for module in of_experts:
            _hooks[module] = []
        yield
    finally:
        for module, hooks in zip(hooked, taken, strict=True):
            module._forward_hooks.update(hooks)
        _hooks.update(of_experts)


_hooks: WeakKeyDictionary[nn.Module, list[Mapping[str, Hook]]] = WeakKeyDictionary()


def _find_recomputer(module: nn.Module) -> Callable[..., Tensor] | None:
    """What computes experts again that are not behind the interface; None for others."""
    return _AGAIN.get(experts_kind(module))


def _show(
    module: nn.Module, name: str, expert: int, tokens: Tensor, outputs: Tensor, of: int
) -> Tensor:
    """An expert's outputs, as all hooks leave them."""
    for of_module in _hooks.get(module, []):
        if name in of_module:
            changed = of_module[name](Routed(expert, tokens, outputs, of))
            outputs = outputs if changed is None else changed
    return outputs


def _forward(
    self: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor
) -> Tensor:
    """What transformers' experts compute, expert by expert; `self` is the module."""
    inner = partial(apply_gate, self) if self.has_gate else self.act_fn
    last = self.post_expert_norm if self.has_post_expert_norm else _as_it_is
    return _route(self, hidden_states, top_k_index, top_k_weights, inner, last)


def _route(
    module: Any,
    states: Tensor,
    index: Tensor,
    weights: Tensor,
    inner: Callable[[Tensor], Tensor],
    last: Callable[[Tensor], Tensor],
) -> Tensor:
    """The weighted sum of the outputs of each token's experts, [tokens, size].

    Args:
        module: The experts.
        states: [tokens, size].
        index: int64 [tokens, chosen], the experts that a token is routed to.
        weights: [tokens, chosen].
        inner: The function between the two matrices.
        last: The function after the second.
    """
    first, second = expert_matrices(module).items()
    count = len(states)
    result = torch.zeros_like(states)
    for expert in index.unique().tolist():
        if not 0 <= expert < second[1].experts:
            continue  # no expert, or another machine's
        places, tokens = torch.where((index == expert).T)
        outputs = states[tokens]
        for (name, matrix), then in ((first, inner), (second, last)):
            outputs = _linear(outputs, matrix, expert)
            outputs = then(_show(module, name, expert, tokens, outputs, count))
        weighted = outputs * weights[tokens, places, None]
        result.index_add_(0, tokens, weighted.to(result.dtype))
    return result


def _as_it_is(outputs: Tensor) -> Tensor:
    return outputs


register_experts(_IMPLEMENTATION, _forward)


def _linear(inputs: Tensor, matrix: ExpertMatrix, expert: int) -> Tensor:
    weight = matrix.weight[expert]
    outputs = inputs @ weight if matrix.transposed else functional.linear(inputs, weight)
    return outputs if matrix.bias is None else outputs + matrix.bias[expert]


def _recompute_step(
    module: Any, inputs: tuple[Tensor, Tensor, Tensor], _kwargs: Any, _output: Tensor
) -> Tensor:
    """Compute Step 3.7's experts again."""
    return _route(module, *inputs, partial(apply_gate, module), _as_it_is)


def _recompute_longcat(
    module: Any, inputs: tuple[Tensor, Tensor, Tensor], _kwargs: Any, _output: Tensor
) -> Tensor:
    """Compute LongCat's experts again, the last of which return their inputs."""
    states, index, weights = inputs

    def gated(outputs: Tensor) -> Tensor:
        gate, up = outputs.chunk(2, dim=-1)
        return module.act_fn(gate) * up

    result = _route(module, states, index, weights, gated, _as_it_is)
    for expert in index.unique().tolist():
        if expert >= module.num_routed_experts:
            places, tokens = torch.where((index == expert).T)
            unchanged = states[tokens] * weights[tokens, places, None]
            result.index_add_(0, tokens, unchanged.to(result.dtype))
    return result


def _recompute_shared(
    module: Any, inputs: tuple[Tensor], kwargs: Mapping[str, Tensor], output: Tensor
) -> Tensor:
    """Compute Inkling's shared experts again, all of which get every token."""
    states = inputs[0].reshape(-1, inputs[0].shape[-1])
    gammas = kwargs["gammas"].reshape(-1, module.n_shared_experts)
    tokens = torch.arange(len(states), device=states.device)
    matrices = expert_matrices(module)

    def put_out(name: str, expert: int, of: Tensor) -> Tensor:
        outputs = _linear(of, matrices[name], expert)
        return _show(module, name, expert, tokens, outputs, len(states))

    total = torch.zeros_like(states, dtype=torch.float32)
    for expert in range(module.n_shared_experts):
        gate, up = (put_out(name, expert, states) for name in ("gate_proj", "up_proj"))
        inner = module.act_fn(gate) * up * gammas[:, expert, None]
        total += put_out("down_proj", expert, inner).float()
    return total.to(output.dtype).view(output.shape)


def _recompute_llama4(module: Any, inputs: tuple[Tensor], _kwargs: Any, _output: Tensor) -> Tensor:
    """Compute Llama 4's experts again, which get all tokens, each times its score.

    A token that was not routed to an expert has a score and outputs of 0 there.
    """
    states = inputs[0].view(module.num_experts, -1, module.hidden_size)
    routed = states.ne(0).any(dim=-1)

    def shown(name: str, outputs: Tensor) -> Tensor:
        for expert in range(len(outputs)):
            tokens = routed[expert].nonzero().flatten()
            if not len(tokens):
                continue
            put_out = outputs[expert, tokens]
            changed = _show(module, name, expert, tokens, put_out, states.shape[1])
            if changed is not put_out:
                outputs[expert, tokens] = changed
        return outputs

    gate, up = shown("gate_up_proj", torch.bmm(states, module.gate_up_proj)).chunk(2, dim=-1)
    outputs = shown("down_proj", torch.bmm(up * module.act_fn(gate), module.down_proj))
    return outputs.view(-1, module.hidden_size)


_AGAIN: dict[str | None, Callable[..., Tensor]] = {
    "llama4": _recompute_llama4,
    "longcat": _recompute_longcat,
    "step": _recompute_step,
    "inkling shared": _recompute_shared,
}
