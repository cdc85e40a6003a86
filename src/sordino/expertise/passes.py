"""Two ways to run a decoder over all batches: layer after layer, or the whole forward.

Both are a number of *stages*, each of which shows every batch to some of the sites. Layer after
layer, a stage is one layer, and the hidden states of all batches wait between stages; so one
layer's weights stay in the caches (or alone in memory, where the model is streamed from its files)
while all sentences pass. The whole forward
is for models whose layers share state and cannot be run by themselves; a stage is then as many
layers as the responses have room for.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

import torch
from torch import nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from sordino.expertise.states import InMemory, States
from sordino.files import printable
from sordino.models.open import OpenModel
from sordino.models.sites import Site, decoder_layers, decoder_of
from sordino.models.streaming import INPUT, OUTPUT
from sordino.models.tokenise import Batch

# How many bytes of responses the whole forward may hold before it is run again for other layers.
_RESPONSE_BYTES = 2 << 30

# What the code of a model, which is not ours, raises where a layer needs what only the whole
# forward gives it. Caught around the calls of that code alone.
_FOREIGN = (TypeError, ValueError, AttributeError, IndexError, KeyError, RuntimeError)


class NotAloneError(Exception):
    """A model's layers cannot be run one by one; the message says which and why."""


class Pass(Protocol):
    """A way to bring every batch before every site."""

    stages: list[tuple[Site, ...]]
    states: States

    def run(self, stage: int, batch: int) -> None:
        """Run one batch through a stage; hooks on the stage's sites see its outputs."""
        ...


class LayerByLayer:
    """All batches through one layer before the next.

    Args:
        opened: The model.
        batches: The batches.
        states: Where hidden states wait.

    Attributes:
        stages: The sites of each layer.
        states: Each batch's hidden state before layer i as "i".
    """

    def __init__(
        self, opened: OpenModel, batches: Sequence[Batch], states: States | None = None
    ) -> None:
        self.stages = sites_by_layer(opened)
        self.states = states or InMemory()
        self._model, self._streamed = opened.model, opened.streamed
        self._ids = [batch.input_ids.to(opened.device) for batch in batches]
        self._calls: list[list[tuple[tuple[Any, ...], dict[str, Any]]]] = []
        _, self._layers = decoder_layers(opened.model)
        if self._streamed:
            self._streamed.hold(INPUT)
        with layers_that_run(opened):
            self._forms = _returns_tuple(opened, self._layers, batches[-1])
        for index, batch in enumerate(batches):
            hidden, calls = _dry_run(opened, self._layers, batch, self._forms)
            self.states.write("0", index, hidden)
            self._calls.append(_shared(calls, self._calls[-1]) if self._calls else calls)

    def run(self, stage: int, batch: int) -> None:
        """Run one batch through one layer."""
        hidden = self.layer(stage, batch, self.states.read(str(stage), batch), then=stage + 1)
        self.states.write(str(stage + 1), batch, hidden)

    def layer(self, stage: int, batch: int, hidden: torch.Tensor, then: int) -> torch.Tensor:
        """A layer's output for this hidden state of a batch; `then` is the layer to run next."""
        if self._streamed:
            self._streamed.hold(stage, then if then in range(len(self.stages)) else None)
        args, kwargs = self._calls[batch][stage]
        return _first(self._layers[stage](hidden, *args, **kwargs))

    def tried(self, stage: int, batch: int, hidden: torch.Tensor, then: int) -> torch.Tensor:
        """The same, before it is known whether layers can be run like that.

        Raises:
            NotAloneError: This one cannot.
        """
        try:
            return self.layer(stage, batch, hidden, then)
        except _FOREIGN as error:
            raise NotAloneError(f"layer {stage}: {_of(error)}") from error

    def logits(self, batch: int, hidden: torch.Tensor) -> torch.Tensor:
        """The model's logits for this output of the last layer, [sentences, tokens, vocabulary]."""
        if self._streamed:
            self._streamed.hold(OUTPUT)

        def stand_in(index: int) -> Callable[..., Any]:
            return lambda *_, **__: _in_form(hidden, self._forms[index])

        def no_embeddings(ids: torch.Tensor) -> torch.Tensor:
            return hidden.new_zeros(*ids.shape, embeddings.weight.shape[-1])

        embeddings = self._model.get_input_embeddings()
        with (
            _replaced_forwards(self._layers, stand_in),
            _replaced_forwards([embeddings], lambda _: no_embeddings),
        ):
            return self._model(input_ids=self._ids[batch], use_cache=False).logits


class WholeForward:
    """The ordinary forward, as often as the responses of all layers need room."""

    def __init__(self, opened: OpenModel, batches: Sequence[Batch], sentences: int) -> None:
        self._decoder = decoder_of(opened.model)
        self._inputs = [batch.input_ids.to(opened.device) for batch in batches]
        self.states: States = InMemory()
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


@contextmanager
def layers_that_run(opened: OpenModel) -> Iterator[None]:
    """Inside the block the decoder can run: where layers are streamed, with made-up weights."""
    if opened.streamed is None:
        yield
        return
    opened.streamed.hold(INPUT)
    with opened.streamed.made_up():
        yield


def why_not_alone(opened: OpenModel, batches: Sequence[Batch]) -> str:
    """Why running layer by layer would not give the ordinary forward's hidden states, bit for bit.

    Tried on two small batches, so that a layer which leaves something behind for a later one is
    found out: layer by layer, it would be another batch's. What layers are called with, and what
    they leave behind, does not depend on what they know, so that made-up weights will do.

    Returns:
        Which layer, and the reason; "" where it does give them.
    """
    with layers_that_run(opened):
        try:
            _compare_alone(opened, batches)
        except NotAloneError as error:
            return str(error)
    return ""


def _compare_alone(opened: OpenModel, batches: Sequence[Batch]) -> None:
    """Raise `NotAloneError` where a layer by itself does otherwise."""
    probes = [Batch((0, 1), batches[0].input_ids[:2]), Batch((0,), batches[-1].input_ids[-1:])]
    expected = [_hidden_states(opened, probe) for probe in probes]
    alone = LayerByLayer(opened, probes)
    for stage in range(len(alone.stages)):
        for index in range(len(probes)):
            hidden = alone.tried(stage, index, alone.states.read(str(stage), index), stage + 1)
            alone.states.write(str(stage + 1), index, hidden)
        for index, states in enumerate(expected):
            hidden = alone.states.read(str(stage + 1), index)
            if len(states) != len(alone.stages):
                raise NotAloneError(f"of {len(alone.stages)} layers {len(states)} were called")
            # A hidden state that is not a number passes here: it is reported elsewhere.
            if not torch.equal(hidden.nan_to_num(), states[stage].nan_to_num()):
                raise NotAloneError(f"layer {stage} gives something else by itself")


def _of(error: Exception) -> str:
    """An exception of foreign code, for a note."""
    return printable(f"{type(error).__name__}: {' '.join(str(error).split())}")


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
        decoder_of(opened.model)(input_ids=batch.input_ids.to(opened.device), use_cache=False)
    return states


def _first(output: Any) -> torch.Tensor:
    return output[0] if isinstance(output, tuple | list) else output


def _shared(new: Any, old: Any) -> Any:
    """New calls with the old ones' tensors where they are the same.

    Batches of one length mostly have the same masks and position embeddings, and all of them wait
    in memory.
    """
    fresh, form = tree_flatten(new)
    known, known_form = tree_flatten(old)
    if form != known_form:
        return new
    return tree_unflatten(
        [
            was if isinstance(now, torch.Tensor) and _same(now, was) else now
            for now, was in zip(fresh, known, strict=True)
        ],
        form,
    )


def _same(one: torch.Tensor, other: Any) -> bool:
    return (
        isinstance(other, torch.Tensor)
        and (one.shape, one.dtype, one.stride()) == (other.shape, other.dtype, other.stride())
        and torch.equal(one, other)
    )


def _in_form(hidden: torch.Tensor, form: tuple[Any, ...]) -> Any:
    """A hidden state as a layer returns it; see `_returns_tuple`."""
    return (hidden, *form[1:]) if form else hidden


def _returns_tuple(opened: OpenModel, layers: nn.ModuleList, batch: Batch) -> list[tuple[Any, ...]]:
    """What each layer returns after its hidden state: `()` for a bare tensor, else the rest.

    A stand-in for a layer has to return the same form as the layer.
    """
    forms: list[tuple[Any, ...]] = []
    with ExitStack() as stack:
        for layer in layers:
            handle = layer.register_forward_hook(
                lambda _m, _i, output: forms.append(
                    (True, *output[1:]) if isinstance(output, tuple | list) else ()
                )
            )
            stack.callback(handle.remove)
        ids = batch.input_ids[:1, :2].to(opened.device)
        decoder_of(opened.model)(input_ids=ids, use_cache=False)
    if len(forms) != len(layers):
        raise NotAloneError(f"of {len(layers)} layers {len(forms)} were called")
    return forms


def _dry_run(
    opened: OpenModel, layers: nn.ModuleList, batch: Batch, forms: list[tuple[Any, ...]]
) -> tuple[torch.Tensor, list[tuple[tuple[Any, ...], dict[str, Any]]]]:
    """The first layer's input, and what each layer is called with beside the hidden state."""
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    inputs: list[torch.Tensor] = []
    ids = batch.input_ids.to(opened.device)

    def stand_in(index: int) -> Any:
        def forward(*args: Any, **kwargs: Any) -> Any:
            if args:
                hidden, args = args[0], args[1:]
            elif "hidden_states" in kwargs:
                hidden = kwargs.pop("hidden_states")
            else:
                raise NotAloneError(f"layer {index} is not called with a hidden state")
            inputs.append(hidden)
            calls.append((args, kwargs))
            return _in_form(hidden, forms[index])

        return forward

    with _replaced_forwards(layers, stand_in):
        try:
            decoder_of(opened.model)(input_ids=ids, use_cache=False)
        except _FOREIGN as error:
            raise NotAloneError(f"the decoder without its layers: {_of(error)}") from error
    if len(calls) != len(layers):
        raise NotAloneError(f"of {len(layers)} layers {len(calls)} were called")
    return inputs[0], calls


@contextmanager
def _replaced_forwards(
    modules: Sequence[nn.Module] | nn.ModuleList, stand_in: Callable[[int], Callable[..., Any]]
) -> Iterator[None]:
    # Where a model is spread over devices, modules have forwards of their own already.
    before = [module.__dict__.get("forward") for module in modules]
    try:
        for index, module in enumerate(modules):
            module.forward = stand_in(index)
        yield
    finally:
        for module, forward in zip(modules, before, strict=True):
            del module.forward
            if forward is not None:
                module.forward = forward
