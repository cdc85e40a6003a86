"""A cache of keys and values with room for the tokens to come.

Transformers' own cache grows by concatenation, so every step copies all that it holds: for a small
model and many continuations that is a large part of a step. Where the number of steps is known,
memory for them is allocated once and each step writes into it.
"""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import pad
from transformers import Cache

from sordino.models.open import OpenModel
from sordino.models.transformers_internals import (
    CACHE,
    DynamicLayer,
    DynamicSlidingWindowLayer,
)


def make_room(cache: Any, steps: int) -> None:
    """Give the layers of a cache room for `steps` more tokens.

    Layers of other kinds stay as they are, and so does a sliding window that would have to slide.
    """
    if not isinstance(cache, Cache):
        return
    for index, layer in enumerate(cache.layers):
        if layer.is_initialized and type(layer) in _ROOMY and _fits(layer, steps):
            cache.layers[index] = _ROOMY[type(layer)](layer, steps)


def _fits(layer: Any, steps: int) -> bool:
    window = getattr(layer, "sliding_window", None)
    return window is None or layer.get_seq_length() + steps < window


@dataclass(frozen=True)
class Prefix:
    """What a model keeps of tokens that many texts begin with.

    Args:
        cache: Of one row.
    """

    cache: Cache

    def for_rows(self, rows: int) -> dict[str, Any]:
        """The arguments with which a model continues from it, in `rows` rows."""
        cache = deepcopy(self.cache)
        cache.reorder_cache(torch.zeros(rows, dtype=torch.int64))
        return {CACHE: cache, "use_cache": True}


@torch.inference_mode()
def read_once(opened: OpenModel, ids: Sequence[int]) -> Prefix | None:
    """Read the tokens that many texts begin with.

    Returns:
        None where there are none, or where the model keeps something else of them than keys and
        values that just grow.
    """
    if not ids:
        return None
    start = torch.tensor([list(ids)], device=opened.device)
    cache = getattr(opened.model(input_ids=start, use_cache=True), CACHE, None)
    if not isinstance(cache, Cache) or any(type(layer) not in _ROOMY for layer in cache.layers):
        return None
    return Prefix(cache)


class _Room:
    """Keys and values as the first part of larger tensors [rows, heads, tokens, dimensions]."""

    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self, layer: Any, steps: int) -> None:
        self.__dict__.update(layer.__dict__)
        self._all = [pad(states, (0, 0, 0, steps)) for states in (layer.keys, layer.values)]
        self._show(layer.keys.shape[-2])

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append keys and values, and return all of them."""
        start = self.keys.shape[-2]
        end = start + key_states.shape[-2]
        for states, new in zip(self._all, (key_states, value_states), strict=True):
            states[..., start:end, :] = new
        self._show(end)
        if hasattr(self, "cumulative_length"):
            self.cumulative_length = end
        return self.keys, self.values

    def reorder_cache(self, rows: torch.Tensor) -> None:
        """Keep these rows, in this order."""
        self._all = [states.index_select(0, rows.to(states.device)) for states in self._all]
        self._show(self.keys.shape[-2])

    def _show(self, tokens: int) -> None:
        self.keys, self.values = (states[..., :tokens, :] for states in self._all)


class _RoomyLayer(_Room, DynamicLayer):
    pass


class _RoomySlidingWindowLayer(_Room, DynamicSlidingWindowLayer):
    pass


_ROOMY: dict[type, Any] = {
    DynamicLayer: _RoomyLayer,
    DynamicSlidingWindowLayer: _RoomySlidingWindowLayer,
}
