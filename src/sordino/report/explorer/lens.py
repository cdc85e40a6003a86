"""What a neuron's output direction promotes in the vocabulary: the logit lens.

A neuron acts on the model's output through the residual stream. A neuron of a feed-forward block's
last layer (the *writer*, such as `mlp.down_proj`) is one coordinate of that stream. A neuron of an
earlier layer feeds one input of the writer: it adds that input's column of the writer's weight to
the stream, times a number that depends on the sentence. The direction goes through the norm that
follows the writer, if there is one, then through the final norm and the LM head.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Conv1D

from sordino.expertise.passes import LayerByLayer
from sordino.models.dtypes import PLAIN
from sordino.models.experts import ExpertMatrix, expert_matrix
from sordino.models.hooks import forward_hooks
from sordino.models.open import OpenModel
from sordino.models.sites import (
    Site,
    decoder_layers,
    decoder_of,
    is_feed_forward,
    is_linear,
    neurons_of,
)
from sordino.models.tokenise import Batch, equal_length_batches
from sordino.models.transformers_internals import apply_gate, has_gate_step

_WORDS = 12


@dataclass(frozen=True)
class Direction:
    """Where a neuron's output enters the residual stream.

    Args:
        writer: The module path of the layer that writes into the stream; for MoE experts the
            parameter's.
        index: The coordinate of the stream that the neuron is, or the writer's input that it feeds.
        is_coordinate: Whether the neuron is an output of the writer itself.
        expert: Which MoE expert; None if the writer is an ordinary layer.
    """

    writer: str
    index: int
    is_coordinate: bool
    expert: int | None = None


@dataclass(frozen=True)
class Lens:
    """The effect of a direction on the logits.

    Args:
        promoted: Tokens as text with the change of their logit, the largest first. The mean change
            is subtracted, since adding one number to all logits changes nothing.
        suppressed: The same, the smallest first.
        is_coordinate: Whether the direction is one coordinate of the residual stream.
        writer: The layer whose column, or whose output, the direction is.
        column: The index of that column or coordinate.
        sign: 1 or −1: the sign with which the column enters the stream at the sentences' peaks.
        agreeing: At how many of those peaks it has this sign.
        peaks: How many peaks there are; 0 if the sign is not measured.
    """

    promoted: tuple[tuple[str, float], ...]
    suppressed: tuple[tuple[str, float], ...]
    is_coordinate: bool
    writer: str
    column: int
    sign: int
    agreeing: int
    peaks: int


def direction_of(opened: OpenModel, site: Site, index: int) -> Direction | None:
    """Where this neuron enters the residual stream, inferred from the layers' sizes.

    Returns:
        None if that is not one direction (in attention, or what mixes tokens), or not inferable.
    """
    stack, layers = decoder_layers(opened.model)
    path = f"{stack}.{site.layer}"
    if matrix := expert_matrix(opened.model, site.path):
        return _of_expert(opened.model, site.path, matrix, index)
    layer = layers[site.layer]
    if not is_feed_forward(layer, site.kind):
        return None
    width = opened.width
    writer = _writer(layer, site.kind, site.neurons, width)
    if writer is None:
        return None
    if writer == site.kind:
        return Direction(site.path, index, True)
    inputs = _inputs(layer.get_submodule(writer))
    # Two matrices in one (gate and up) lie one after the other.
    return Direction(f"{path}.{writer}", index % inputs, False)


def _writer(layer: nn.Module, kind: str, neurons: int, width: int) -> str | None:
    """The layer through which the outputs of `kind` reach the residual stream."""
    linear = {
        name: module
        for name, module in layer.named_modules()
        if is_linear(module) and is_feed_forward(layer, name)
    }
    owner = kind.rpartition(".")[0]
    block = {name: of for name, of in linear.items() if name.rpartition(".")[0] == owner}
    for among in (block, linear):  # some models have the two layers in separate modules
        into = [name for name, of in among.items() if neurons_of(of) == width]
        # A layer as wide as the stream on both sides is ambiguous, unless it is the only one.
        narrowed = [name for name in into if _inputs(among[name]) != width] or into
        if kind in narrowed and len(narrowed) == 1:
            return kind
        fed = [name for name in narrowed if neurons / _inputs(among[name]) in (1, 2)]
        if len(fed) == 1 and kind not in narrowed:
            return fed[0]
    return None


def _inputs(module: nn.Module) -> int:
    inputs = module.nx if isinstance(module, Conv1D) else module.in_features
    assert isinstance(inputs, int)
    return inputs


def _of_expert(model: nn.Module, path: str, matrix: ExpertMatrix, index: int) -> Direction | None:
    owner, _, name = path.rpartition(".")
    width = matrix.neurons // matrix.experts
    expert, place = divmod(index, width)
    writer = f"{owner}.down_proj"
    if name == "down_proj":
        return Direction(writer, place, True, expert)
    after = expert_matrix(model, writer)
    if after is None or expert >= after.experts:
        return None
    module = model.get_submodule(owner)
    if name in ("up_proj", "gate_proj"):
        return Direction(writer, place, False, expert)
    if not has_gate_step(module):
        return Direction(writer, place % (width // 2), False, expert)
    # Only the module's own code knows how gate and up are laid out.
    probe = torch.ones(2, width)
    probe[1, place] = 2
    one, other = apply_gate(module, probe)
    moved = (one != other).nonzero().flatten().tolist()
    return Direction(writer, moved[0], False, expert) if len(moved) == 1 else None


def vector(opened: OpenModel, direction: Direction) -> Tensor | None:
    """What one unit of the neuron adds to the writer's output: float32 [width of the stream].

    None if the writer's weights are quantised.
    """
    model: nn.Module = opened.model
    width = opened.width
    if direction.is_coordinate:
        return nn.functional.one_hot(torch.tensor(direction.index), width).float()
    if direction.expert is not None:
        matrix = expert_matrix(model, direction.writer)
        assert matrix is not None
        weight = matrix.weight[direction.expert]
        column = weight[direction.index] if matrix.transposed else weight[:, direction.index]
    else:
        module = model.get_submodule(direction.writer)
        whole = getattr(module, "weight", None)
        if not isinstance(whole, Tensor) or whole.dtype not in PLAIN.values():
            return None
        transposed = isinstance(module, Conv1D)
        column = whole[direction.index] if transposed else whole[:, direction.index]
    return column.detach().float().cpu()


@torch.inference_mode()
def logits_of(opened: OpenModel, directions: Sequence[tuple[int, str, Tensor]]) -> Tensor:
    """How directions change the logits, through the norms and the LM head: float32 [n, vocabulary].

    These are the logits of the direction less those of zero, which cancels the constants that norms
    and head add. A norm makes all directions equally long.

    Args:
        opened: The model.
        directions: The layer of each, the writer's path and the direction, float32 [width].
    """
    norms = {of: _norm_after(opened, *of) for of in {(one[0], one[1]) for one in directions}}
    written = [
        _through_norm(opened, layer, norms[layer, writer], direction)
        for layer, writer, direction in directions
    ]
    states = torch.stack([torch.zeros_like(written[0]), *written])[:, None]
    states = states.to(opened.device, opened.model.dtype)
    ids = torch.zeros(len(states), 1, dtype=torch.int64)
    if opened.streamed:
        batch = Batch(tuple(range(len(states))), ids)
        logits = LayerByLayer(opened, [batch]).logits(0, states)
    else:
        last = decoder_layers(opened.model)[1][-1]
        with forward_hooks([(last, _replace(states))]):
            logits = opened.model(input_ids=ids.to(opened.device), use_cache=False).logits
    found: Tensor = logits[:, 0].float().cpu()
    return found[1:] - found[:1]


def _replace(states: Tensor) -> Callable[..., Any]:
    def hook(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        if isinstance(output, tuple | list):
            return type(output)([states, *output[1:]])
        return states

    return hook


def _through_norm(
    opened: OpenModel, layer: int, norm: nn.Module | None, direction: Tensor
) -> Tensor:
    if norm is None:
        return direction
    if opened.streamed:
        opened.streamed.hold(layer)
    given = torch.stack([direction, torch.zeros_like(direction)])
    through = norm(given.to(opened.device, opened.model.dtype)).float().cpu()
    changed: Tensor = through[0] - through[1]
    return changed


def _norm_after(opened: OpenModel, layer: int, writer: str) -> nn.Module | None:
    """The norm between the writer and the residual stream, if there is one.

    It is found by running two tokens: it is the module that is called with the writer's output.
    """
    module = decoder_layers(opened.model)[1][layer]
    width = opened.width
    norms = [of for of in module.modules() if _is_norm(of, width)]
    given: list[Tensor] = []
    found: list[nn.Module] = []

    def follows(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if given and inputs and inputs[0].data_ptr() == given[-1].data_ptr():
            found.append(norm)

    if not norms or expert_matrix(opened.model, writer):
        return None
    batch = equal_length_batches([[0, 0]], 2)
    after = opened.model.get_submodule(writer), lambda _module, _inputs, out: given.append(out)
    with ExitStack() as stack:
        stack.enter_context(forward_hooks([after]))
        for norm in norms:
            stack.callback(norm.register_forward_pre_hook(follows).remove)
        if opened.streamed:
            layers = LayerByLayer(opened, batch)
            for stage in range(layer + 1):
                layers.run(stage, 0)
        else:
            ids = batch[0].input_ids.to(opened.device)
            decoder_of(opened.model)(input_ids=ids, use_cache=False)
    return found[0] if found else None


def _is_norm(module: nn.Module, width: int) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.shape == (width,)


def lens(
    opened: OpenModel, logits: Tensor, direction: Direction, signs: Sequence[int] = ()
) -> Lens:
    """The tokens that a direction promotes and suppresses most.

    Args:
        opened: The model, for its tokenizer.
        logits: The direction's row of `logits_of`, before any sign.
        direction: Where the neuron meets the residual stream.
        signs: The signs of the neuron's contribution at the peaks of some sentences.
    """
    sign = -1 if sum(signs) < 0 else 1
    known = min(len(opened.tokenizer), logits.numel())  # further rows are padding
    turned = sign * (logits[:known] - logits[:known].mean())
    ordered = turned.argsort(descending=True, stable=True)

    def words(ids: Tensor) -> tuple[tuple[str, float], ...]:
        return tuple((token_text(opened.tokenizer, int(i)), float(turned[i])) for i in ids)

    return Lens(
        promoted=words(ordered[:_WORDS]),
        suppressed=words(ordered.flip(0)[:_WORDS]),
        is_coordinate=direction.is_coordinate,
        writer=direction.writer,
        column=direction.index,
        sign=sign,
        agreeing=sum(one == sign for one in signs),
        peaks=len(signs),
    )


def token_text(tokenizer: Any, token: int) -> str:
    """A token as text, or as the vocabulary spells it if it is part of a character."""
    text = str(tokenizer.decode([token], clean_up_tokenization_spaces=False))
    return str(tokenizer.convert_ids_to_tokens(token)) if "�" in text or not text else text


def signs_at_peaks(
    outputs: Mapping[int, Tensor], inputs: Mapping[int, Tensor], sentences: Sequence[int]
) -> list[int]:
    """For each sentence, the sign of the writer's input at the token of the largest response.

    Args:
        outputs: The neuron's outputs by sentence, [tokens].
        inputs: The writer's input that it feeds by sentence, [tokens].
        sentences: The sentences.
    """
    peaks = [int(outputs[sentence].nan_to_num(nan=-torch.inf).argmax()) for sentence in sentences]
    at = [float(inputs[s][peak]) for s, peak in zip(sentences, peaks, strict=True)]
    return [-1 if value < 0 else 1 for value in at if value == value and value != 0]
