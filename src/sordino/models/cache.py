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
from transformers import DynamicCache

from sordino.models.open import OpenModel
from sordino.models.sites import decoder_of
from sordino.models.streaming import INPUT
from sordino.models.transformers_internals import (
    CACHE,
    DynamicLayer,
    DynamicSlidingWindowLayer,
)

_TRIED = 16  # tokens


def make_room(cache: Any, steps: int) -> None:
    """Give the layers of a cache room for `steps` more tokens.

    Layers of other kinds stay as they are, and so does a sliding window that would have to slide.
    """
    if type(cache) is not DynamicCache:
        return
    for index, layer in enumerate(cache.layers):
        if type(layer) in _ROOMY and layer.is_initialized and _fits(layer, steps):
            cache.layers[index] = _ROOMY[type(layer)](layer, steps)


def _fits(layer: Any, steps: int) -> bool:
    window = getattr(layer, "sliding_window", None)
    return window is None or layer.get_seq_length() + steps < window


@torch.inference_mode()
def kept_of_a_token(opened: OpenModel) -> float:
    """The bytes that a streamed model keeps of a token in all layers, at least 1.

    It is measured with made-up weights: no part is read. What a layer keeps of a whole text counts
    as if it were kept of each of `_TRIED` tokens.
    """
    assert opened.streamed is not None
    opened.streamed.hold(INPUT)
    ids = torch.zeros((1, _TRIED), dtype=torch.int64, device=opened.device)
    with opened.streamed.make_up():
        output = decoder_of(opened.model)(input_ids=ids, use_cache=True)
    return max(_bytes_in(getattr(output, CACHE, None)) / _TRIED, 1.0)


def _bytes_in(kept: Any) -> int:
    """The bytes of all tensors in a cache, of whatever kind."""
    if isinstance(kept, torch.Tensor):
        return kept.nbytes
    if isinstance(kept, dict):
        return sum(map(_bytes_in, kept.values()))
    if isinstance(kept, list | tuple):
        return sum(map(_bytes_in, kept))
    return _bytes_in(vars(kept)) if hasattr(kept, "__dict__") else 0


@dataclass(frozen=True)
class Prefix:
    """What a model keeps of tokens that many texts begin with.

    Args:
        cache: Of one row.
    """

    cache: DynamicCache

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
    cache: Any = getattr(opened.model(input_ids=start, use_cache=True), CACHE, None)
    if type(cache) is not DynamicCache or any(type(one) not in _ROOMY for one in cache.layers):
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
