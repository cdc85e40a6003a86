"""Two ways to run a decoder over all batches: layer by layer, or the whole forward.

Both consist of *stages*, each of which runs every batch past some of the sites. Layer by layer, a
stage is one layer, and the hidden states of all batches wait between stages; so one layer's weights
stay in the caches (or alone in memory, if the model is streamed) while all sentences pass. The
whole forward is for models whose layers share state and cannot be run one by one; a stage is then
as many layers as fit the memory for responses.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

import torch
from torch import nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from sordino.expertise.states import InMemory, States
from sordino.files import printable
from sordino.models.hooks import forward_hooks
from sordino.models.open import OpenModel
from sordino.models.sites import Site, decoder_layers, decoder_of
from sordino.models.streaming import INPUT, OUTPUT
from sordino.models.tokenise import Batch

# How many bytes of responses the whole forward may hold in one stage.
RESPONSE_BYTES = 2 << 30

# Exceptions of a model's code, which is not ours, if a layer needs something that only the whole
# forward passes to it. Caught around calls of that code alone.
_FOREIGN = (TypeError, ValueError, AttributeError, IndexError, KeyError, RuntimeError)


T = TypeVar("T")


class NotAloneError(Exception):
    """A model's layers cannot be run one by one; the message says which and why."""


class Pass(Protocol):
    """A way to run every batch past every site."""

    stages: list[tuple[Site, ...]]
    states: States

    def run(self, stage: int, batch: int) -> None:
        """Run one batch through a stage, with hooks on the stage's sites."""
        ...


class LayerByLayer:
    """All batches through one layer before the next.

    Args:
        opened: The model.
        batches: The batches.
        states: Stores hidden states.

    Attributes:
        stages: The sites of each layer.
        states: Each batch's hidden state before layer i, under the name "i".
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
            self._calls.append(_share(calls, self._calls[-1]) if self._calls else calls)

    def run(self, stage: int, batch: int) -> None:
        """Run one batch through one layer."""
        hidden = self.layer(stage, batch, self.states.read(str(stage), batch), then=stage + 1)
        self.states.write(str(stage + 1), batch, hidden)

    def layer(self, stage: int, batch: int, hidden: torch.Tensor, then: int) -> torch.Tensor:
        """A layer's output for this hidden state of a batch; `then` is the layer to run next."""
        if self._streamed:
            self._streamed.hold(stage, then if then in range(len(self.stages)) else None)
        args, kwargs = self._calls[batch][stage]
        return _take_first(self._layers[stage](hidden, *args, **kwargs))

    def try_out(self, stage: int, batch: int, hidden: torch.Tensor, then: int) -> torch.Tensor:
        """The same for a model whose layers may not run one by one.

        Raises:
            NotAloneError: This one does not.
        """
        try:
            return self.layer(stage, batch, hidden, then)
        except _FOREIGN as error:
            raise NotAloneError(f"layer {stage}: {_of(error)}") from error

    def logits(self, batch: int, hidden: torch.Tensor, **options: Any) -> torch.Tensor:
        """The model's logits for this output of the last layer, [sentences, tokens, vocabulary].

        Args:
            batch: Which batch.
            hidden: The output.
            options: Of the model's forward.
        """
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
            return self._model(input_ids=self._ids[batch], use_cache=False, **options).logits


class WholeForward:
    """The ordinary forward, once for each stage."""

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
                room = RESPONSE_BYTES
            self.stages[-1] += sites
            room -= size

    def run(self, stage: int, batch: int) -> None:
        """Run one batch through the decoder; the stage decides only which sites have hooks."""
        del stage
        self._decoder(input_ids=self._inputs[batch], use_cache=False)


def sites_by_layer(opened: OpenModel) -> list[tuple[Site, ...]]:
    """The sites of each decoder layer, in order."""
    _, layers = decoder_layers(opened.model)
    return [tuple(s for s in opened.sites if s.layer == index) for index in range(len(layers))]


@contextmanager
def layers_that_run(opened: OpenModel) -> Iterator[None]:
    """Inside the block the decoder can run; a streamed one has made-up weights."""
    if opened.streamed is None:
        yield
        return
    opened.streamed.hold(INPUT)
    with opened.streamed.make_up():
        yield


def why_not_alone(opened: OpenModel, batches: Sequence[Batch]) -> str:
    """Why running layer by layer would not give the ordinary forward's hidden states, bit for bit.

    Two small batches are tried, to detect a layer that leaves state for a later one: layer by
    layer, that would be another batch's state. The layers' arguments and the state they leave do
    not depend on the weights, so made-up weights suffice.

    Returns:
        The layer and the reason; "" if it does give them.
    """
    with layers_that_run(opened):
        try:
            _compare_alone(opened, batches)
        except NotAloneError as error:
            return str(error)
    return ""


def _compare_alone(opened: OpenModel, batches: Sequence[Batch]) -> None:
    """Raise `NotAloneError` if a layer's output differs when it runs alone."""
    probes = [Batch((0, 1), batches[0].input_ids[:2]), Batch((0,), batches[-1].input_ids[-1:])]
    expected = [_hidden_states(opened, probe) for probe in probes]
    alone = LayerByLayer(opened, probes)
    for stage in range(len(alone.stages)):
        for index in range(len(probes)):
            hidden = alone.try_out(stage, index, alone.states.read(str(stage), index), stage + 1)
            alone.states.write(str(stage + 1), index, hidden)
        for index, states in enumerate(expected):
            hidden = alone.states.read(str(stage + 1), index)
            if len(states) != len(alone.stages):
                raise NotAloneError(f"of {len(alone.stages)} layers {len(states)} were called")
            # Not-a-number is ignored here and reported elsewhere.
            if not torch.equal(hidden.nan_to_num(), states[stage].nan_to_num()):
                raise NotAloneError(f"layer {stage} has another output when it runs alone")


def _of(error: Exception) -> str:
    """An exception of foreign code, for a note."""
    return printable(f"{type(error).__name__}: {' '.join(str(error).split())}")


def _hidden_states(opened: OpenModel, batch: Batch) -> list[torch.Tensor]:
    """Each layer's output in the ordinary forward."""
    # Cloned at once, because a later layer may change it in place.
    return _each_output(opened, batch.input_ids, lambda output: _take_first(output).clone())


def _each_output(opened: OpenModel, ids: torch.Tensor, take: Callable[[Any], T]) -> list[T]:
    """What `take` makes of each layer's output in the ordinary forward."""
    _, layers = decoder_layers(opened.model)
    found: list[T] = []
    with forward_hooks((layer, lambda _m, _i, out: found.append(take(out))) for layer in layers):
        decoder_of(opened.model)(input_ids=ids.to(opened.device), use_cache=False)
    return found


def _take_first(output: Any) -> torch.Tensor:
    return output[0] if isinstance(output, tuple | list) else output


def _share(new: Any, old: Any) -> Any:
    """New calls with the old ones' tensors where they are equal, to save memory.

    Batches of one length mostly have the same masks and position embeddings.
    """
    fresh, form = tree_flatten(new)
    known, known_form = tree_flatten(old)
    if form != known_form:
        return new
    return tree_unflatten(
        [
            was if isinstance(now, torch.Tensor) and _is_same(now, was) else now
            for now, was in zip(fresh, known, strict=True)
        ],
        form,
    )


def _is_same(one: torch.Tensor, other: Any) -> bool:
    return (
        isinstance(other, torch.Tensor)
        and (one.shape, one.dtype, one.stride()) == (other.shape, other.dtype, other.stride())
        and torch.equal(one, other)
    )


def _in_form(hidden: torch.Tensor, form: tuple[Any, ...]) -> Any:
    """A hidden state as a layer returns it; see `_returns_tuple`."""
    return (hidden, *form[1:]) if form else hidden


def _returns_tuple(opened: OpenModel, layers: nn.ModuleList, batch: Batch) -> list[tuple[Any, ...]]:
    """The form of each layer's output, which a stand-in for it has to return.

    `()` for a bare tensor; for a tuple true and the elements after the hidden state.
    """
    forms = _each_output(
        opened,
        batch.input_ids[:1, :2],
        lambda output: (True, *output[1:]) if isinstance(output, tuple | list) else (),
    )
    if len(forms) != len(layers):
        raise NotAloneError(f"of {len(layers)} layers {len(forms)} were called")
    return forms


def _dry_run(
    opened: OpenModel, layers: nn.ModuleList, batch: Batch, forms: list[tuple[Any, ...]]
) -> tuple[torch.Tensor, list[tuple[tuple[Any, ...], dict[str, Any]]]]:
    """The first layer's input, and each layer's arguments besides the hidden state."""
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
    # If a model is spread over devices, its modules' forwards are replaced already.
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
