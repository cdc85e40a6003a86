"""Forward hooks: for the length of a block, and one that every opened model has."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

ForwardHook = Callable[..., Any]
"""Gets a module, its inputs and its output; what it returns, unless None, replaces the output."""


@contextmanager
def forward_hooks(hooks: Iterable[tuple[nn.Module, ForwardHook]]) -> Iterator[None]:
    """Call hooks with modules' outputs, inside the block.

    Args:
        hooks: Each with its module.
    """
    with ExitStack() as stack:
        for module, hook in hooks:
            stack.callback(module.register_forward_hook(hook).remove)
        yield


def lay_out_before_logits(model: PreTrainedModel) -> None:
    """Let the head get hidden states without gaps in memory, for as long as the model lives.

    With `logits_to_keep`, a model passes a slice of its hidden states to the head, and the slice
    has gaps between texts. On a processor, PyTorch's `linear` multiplies such a slice text by text.
    In bfloat16 it also copies the head's weights for each text: 272 MB for Qwen2.5-Coder 0.5B.

    Args:
        model: Its head is found by `get_output_embeddings`; a model without one stays as it is.
    """
    head = model.get_output_embeddings()
    if isinstance(head, nn.Module):
        head.register_forward_pre_hook(_without_gaps)


def _without_gaps(_head: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    hidden: torch.Tensor = inputs[0]
    # `contiguous` would leave the strides of a single text as they are.
    return hidden.reshape(-1).view(hidden.shape), *inputs[1:]


def is_hooked(model: nn.Module) -> bool:
    """Whether a model has forward hooks that may change what it computes."""
    return any(
        hook is not _without_gaps
        for module in model.modules()
        for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    )
