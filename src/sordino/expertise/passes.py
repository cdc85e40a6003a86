"""Two ways to run a decoder over all batches: layer after layer, or the whole forward.

Both are a number of *stages*, each of which shows every batch to some of the sites. Layer after
layer, a stage is one layer, and the hidden states of all batches wait between stages; so one
layer's weights stay in the caches (or alone in memory) while all sentences pass. The whole forward
is for models whose layers share state and cannot be run by themselves; a stage is then as many
layers as the responses have room for.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

import torch
from torch import nn

from sordino.models.open import OpenModel
from sordino.models.sites import Site, decoder_layers
from sordino.models.tokenise import Batch

# How many bytes of responses the whole forward may hold before it is run again for other layers.
_RESPONSE_BYTES = 2 << 30


class Pass(Protocol):
    """A way to bring every batch before every site."""

    stages: list[tuple[Site, ...]]
    hidden: list[torch.Tensor]

    def run(self, stage: int, batch: int) -> None:
        """Run one batch through a stage; hooks on the stage's sites see its outputs."""
        ...


class LayerByLayer:
    """All batches through one layer before the next.

    Args:
        opened: The model.
        batches: The batches.

    Attributes:
        stages: The sites of each layer.
        hidden: Each batch's hidden state before the layer that it has not passed yet.
    """

    def __init__(self, opened: OpenModel, batches: Sequence[Batch]) -> None:
        self.stages = sites_by_layer(opened)
        _, self._layers = decoder_layers(opened.model)
        self._calls: list[list[tuple[tuple[Any, ...], dict[str, Any]]]] = []
        self.hidden = []
        tuples = _returns_tuple(opened, self._layers, batches[-1])
        for batch in batches:
            hidden, calls = _dry_run(opened, self._layers, batch, tuples)
            self.hidden.append(hidden)
            self._calls.append(calls)

    def run(self, stage: int, batch: int) -> None:
        """Run one batch through one layer."""
        args, kwargs = self._calls[batch][stage]
        output = self._layers[stage](self.hidden[batch], *args, **kwargs)
        self.hidden[batch] = output[0] if isinstance(output, tuple) else output


class WholeForward:
    """The ordinary forward, as often as the responses of all layers need room."""

    def __init__(self, opened: OpenModel, batches: Sequence[Batch], sentences: int) -> None:
        self._decoder = opened.model.get_decoder()
        self._inputs = [batch.input_ids.to(opened.device) for batch in batches]
        self.hidden: list[torch.Tensor] = []
        self.stages: list[tuple[Site, ...]] = []
        room = 0
        for sites in sites_by_layer(opened):
            size = 4 * sentences * sum(site.neurons for site in sites)
            if not self.stages or size > room:
                self.stages.append(())
                room = _RESPONSE_BYTES
            self.stages[-1] += sites
            room -= size

    def run(self, stage: int, batch: int) -> None:
        """Run one batch through the decoder; the stage says only which sites are watched."""
        del stage
        self._decoder(input_ids=self._inputs[batch], use_cache=False)


def sites_by_layer(opened: OpenModel) -> list[tuple[Site, ...]]:
    """The sites of each decoder layer, in order, empty where a layer has none."""
    _, layers = decoder_layers(opened.model)
    return [tuple(s for s in opened.sites if s.layer == index) for index in range(len(layers))]


def layers_run_alone(opened: OpenModel, batches: Sequence[Batch]) -> bool:
    """Whether running layer by layer gives the ordinary forward's hidden states, bit for bit.

    Tried on two small batches, so that a layer which leaves something behind for a later one is
    found out: layer by layer, it would be another batch's.
    """
    probes = [Batch((0, 1), batches[0].input_ids[:2]), Batch((0,), batches[-1].input_ids[-1:])]
    expected = [_hidden_states(opened, probe) for probe in probes]
    try:
        alone = LayerByLayer(opened, probes)
        for stage in range(len(alone.stages)):
            for index in range(len(probes)):
                alone.run(stage, index)
            for index, states in enumerate(expected):
                # A hidden state that is not a number passes here: it is reported elsewhere.
                if not torch.equal(alone.hidden[index].nan_to_num(), states[stage].nan_to_num()):
                    return False
    except (TypeError, ValueError, AttributeError, IndexError, KeyError, RuntimeError):
        return False  # a layer that needs what only the whole forward gives it
    return True


def _hidden_states(opened: OpenModel, batch: Batch) -> list[torch.Tensor]:
    """Each layer's output in the ordinary forward."""
    _, layers = decoder_layers(opened.model)
    states: list[torch.Tensor] = []
    with ExitStack() as stack:
        for layer in layers:
            handle = layer.register_forward_hook(
                lambda _m, _i, output: states.append(_first(output).clone())
            )
            stack.callback(handle.remove)
        opened.model.get_decoder()(input_ids=batch.input_ids.to(opened.device), use_cache=False)
    return states


def _first(output: Any) -> torch.Tensor:
    return output[0] if isinstance(output, tuple) else output


def _returns_tuple(opened: OpenModel, layers: nn.ModuleList, batch: Batch) -> list[tuple[Any, ...]]:
    """What each layer returns after its hidden state: `()` for a bare tensor, else the rest.

    A stand-in for a layer has to return the same form as the layer.
    """
    forms: list[tuple[Any, ...]] = []
    with ExitStack() as stack:
        for layer in layers:
            handle = layer.register_forward_hook(
                lambda _m, _i, output: forms.append(
                    (True, *output[1:]) if isinstance(output, tuple) else ()
                )
            )
            stack.callback(handle.remove)
        ids = batch.input_ids[:1, :2].to(opened.device)
        opened.model.get_decoder()(input_ids=ids, use_cache=False)
    return forms


def _dry_run(
    opened: OpenModel, layers: nn.ModuleList, batch: Batch, forms: list[tuple[Any, ...]]
) -> tuple[torch.Tensor, list[tuple[tuple[Any, ...], dict[str, Any]]]]:
    """The first layer's input, and what each layer is called with beside the hidden state."""
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    inputs: list[torch.Tensor] = []

    def stand_in(index: int) -> Any:
        def forward(*args: Any, **kwargs: Any) -> Any:
            if args:
                hidden, args = args[0], args[1:]
            else:
                hidden = kwargs.pop("hidden_states")
            inputs.append(hidden)
            calls.append((args, kwargs))
            return (hidden, *forms[index][1:]) if forms[index] else hidden

        return forward

    with _replaced_forwards(layers, stand_in):
        opened.model.get_decoder()(input_ids=batch.input_ids.to(opened.device), use_cache=False)
    return inputs[0], calls


@contextmanager
def _replaced_forwards(layers: nn.ModuleList, stand_in: Any) -> Iterator[None]:
    try:
        for index, layer in enumerate(layers):
            layer.forward = stand_in(index)
        yield
    finally:
        for layer in layers:
            layer.__dict__.pop("forward", None)
