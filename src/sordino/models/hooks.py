"""Forward hooks for the length of a block."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

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
