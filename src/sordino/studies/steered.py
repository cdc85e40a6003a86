"""Rivals that steer: directions and subspaces from hidden states of sentences."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sordino import progress as show
from sordino.concepts.concept import Concept
from sordino.errors import UserError
from sordino.expertise.pooling import POOLINGS, Pooling, pool
from sordino.expertise.sentences import chat_for, encode_sentences
from sordino.interventions.steering import Steering
from sordino.models.chat import Chat
from sordino.models.norms import norms_after_blocks
from sordino.models.open import OpenModel
from sordino.models.sites import ATTENTION, decoder_layers, decoder_of, find_sites
from sordino.models.tokenise import Placed, equal_length_batches

Rows = NDArray[np.float32]
_MAX_TOKENS, _BATCH_TOKENS = 128, 2048
_HELD_OUT = 5
"""One of this many sentences is held out: it judges a probe and does not train it."""


@dataclass(frozen=True)
class Writers:
    """The linear layers whose outputs join the residual stream, by decoder layer.

    Args:
        layers: The decoder layers' paths.
        attention: The last linear layer of each one's attention.
        feed_forward: The last of its feed-forward part.
        added: What puts out what the feed-forward part adds to the stream: that linear layer, or
            the norm behind it.
    """

    layers: tuple[str, ...]
    attention: tuple[str, ...]
    feed_forward: tuple[str, ...]
    added: tuple[str, ...]

    @classmethod
    def of(cls, opened: OpenModel) -> "Writers":
        """The linear layers of a model, found by their names and sizes.

        Raises:
            UserError: A layer has none, such as one with MoE experts.
        """
        stack, layers = decoder_layers(opened.model)
        own = {site.path for site in find_sites(opened.model)}
        everywhere = find_sites(opened.model, ATTENTION)
        width = opened.width
        found: dict[bool, list[str]] = {True: [], False: []}
        for index in range(len(layers)):
            for of_own, paths in found.items():
                last = [
                    site.path
                    for site in everywhere
                    if site.layer == index
                    and site.neurons == width
                    and not site.experts
                    and (site.path in own) == of_own
                ]
                if not last:
                    part = "feed-forward part" if of_own else "attention"
                    raise UserError(
                        f"Layer {index} of {opened.ref.name} has no linear layer at the end of its "
                        f"{part}, which some of the rivals change: rivals cannot be studied on it."
                    )
                paths.append(last[-1])
        behind = tuple(f"{stack}.{index}" for index in range(len(layers)))
        norms = [[name for name, _ in norms_after_blocks(layer)] for layer in layers]
        added = (
            f"{path}.{names[-1]}" if names else linear
            for path, names, linear in zip(behind, norms, found[True], strict=True)
        )
        return cls(behind, tuple(found[False]), tuple(found[True]), tuple(added))

    @property
    def have_norms(self) -> bool:
        """Whether there are norms between the blocks and the residual stream."""
        return self.added != self.feed_forward


def refuse_experts(opened: OpenModel, what: str) -> None:
    """Raise `UserError` if a model has matrices of MoE experts among its sites.

    Args:
        opened: The model.
        what: The method that cannot change them, as the subject of a sentence.
    """
    if experts := [site.path for site in opened.sites if site.experts]:
        raise UserError(
            f"{what} would leave {experts[0]} as it is, a matrix of MoE experts of "
            f"{opened.ref.name}: study other rivals on it."
        )


@dataclass(frozen=True)
class Looks:
    """Hidden states of texts in a model.

    Args:
        writers: The model's.
        labels: bool [texts].
        stream: The residual stream behind each decoder layer, the mean over a text's own tokens,
            float32 [texts, width] each.
        heads: What the last linear layer of each attention is given, at the last token, float32
            [texts, heads, width of a head] each.
        weights: The weights of these linear layers, float32 [width, all heads' width] each.
    """

    writers: Writers
    labels: NDArray[np.bool_]
    stream: tuple[Rows, ...]
    heads: tuple[Rows, ...]
    weights: tuple[Rows, ...]


def look(opened: OpenModel, concept: Concept, chat: Chat) -> Looks:
    """Run a concept's sentences through a model, and keep the hidden states that rivals need.

    Args:
        opened: The model, in memory.
        concept: The labelled sentences.
        chat: How they stand in the model's chat template.
    """
    encoded = encode_sentences(opened, concept, _MAX_TOKENS, chat_for(opened, concept, chat))
    return look_at(opened, encoded, concept.labels)


def look_at(opened: OpenModel, encoded: Sequence[Placed], labels: NDArray[np.bool_]) -> Looks:
    """Run texts through a model, and keep the hidden states that rivals need.

    Args:
        opened: The model, in memory.
        encoded: The texts; what precedes a text of its own is read, and its states are not kept.
        labels: bool [texts], whether they have the concept.
    """
    writers = Writers.of(opened)
    model = opened.model
    batches = equal_length_batches(encoded, _BATCH_TOKENS)
    kept: dict[str, list[Rows]] = {path: [] for path in (*writers.layers, *writers.attention)}
    starts: Sequence[int] = ()

    def keep(path: str, pooling: Pooling, values: torch.Tensor) -> None:
        # Some layers flatten sentences and tokens.
        shaped = values.reshape(*ids.shape, values.shape[-1]).float()
        kept[path].append(pool(shaped, starts, pooling).cpu().numpy())

    def output_of(path: str) -> Callable[..., None]:
        return lambda _m, _i, out: keep(
            path, POOLINGS["mean"], out[0] if isinstance(out, tuple) else out
        )

    def input_of(path: str) -> Callable[..., None]:
        return lambda _m, given: keep(path, POOLINGS["last"], given[0])

    with ExitStack() as stack, torch.inference_mode():
        for path in writers.layers:
            handle = model.get_submodule(path).register_forward_hook(output_of(path))
            stack.callback(handle.remove)
        for path in writers.attention:
            early = model.get_submodule(path).register_forward_pre_hook(input_of(path))
            stack.callback(early.remove)
        advance = stack.enter_context(
            show.track("looking", sum(batch.tokens for batch in batches), "tokens")
        )
        for batch in batches:
            ids, starts = batch.input_ids.to(opened.device), batch.starts
            decoder_of(model)(input_ids=ids, use_cache=False)
            advance(batch.tokens)
    order = np.argsort([index for batch in batches for index in batch.indices])
    count = model.config.get_text_config(decoder=True).num_attention_heads

    def rows(path: str) -> Rows:
        return np.concatenate(kept[path])[order]

    return Looks(
        writers,
        labels,
        tuple(rows(path) for path in writers.layers),
        tuple(_in_heads(rows(path), count) for path in writers.attention),
        tuple(_weight(model.get_submodule(path)) for path in writers.attention),
    )


def mean_difference(looks: Looks, layer: int) -> Steering:
    """Contrastive activation addition: the classes' difference of means, added to the stream.

    z → z + mean_negative − mean_positive behind one decoder layer, not brought to any length.
    Source: Rimsky et al., 2023, arXiv:2312.06681. Two things differ. Its pairs are two answers to
    a question, and the difference is taken at the token of the answer's letter: labelled sentences
    have no such token, so it is taken between the means over sentences and their tokens. And it
    adds the vector only behind the prompt, where a bias, which is what weights can hold, is added
    at every token. Turner et al., 2023, arXiv:2308.10248 (ActAdd), take the difference of a single
    pair of prompts, and add it at the first tokens.

    Args:
        looks: The sentences' hidden states.
        layer: Behind which decoder layer.
    """
    rows = looks.stream[layer]
    shift = rows[~looks.labels].mean(axis=0) - rows[looks.labels].mean(axis=0)
    return Steering("caa", shifts={looks.writers.layers[layer]: shift})


def probed_heads(looks: Looks, count: int) -> Steering:
    """Inference-time intervention: the heads that separate the classes best, moved by a probe.

    A logistic regression for each attention head separates the classes by what the head gives to
    the linear layer behind it, at a sentence's last token. The `count` heads whose probes are right
    most often on held-out sentences (a fifth) are moved against the probe's direction θ (of length
    1), by the standard deviation σ of their outputs along it over all sentences: x → x − σ·θ, times
    the strength α. Source: Li et al., 2023, arXiv:2306.03341, with the direction of the classifier
    ("ITI-c" in Rodriguez et al., 2024, arXiv:2410.23054; the other direction of Li et al. is the
    difference of the classes' means). A shift of heads is one of the linear layer behind them,
    W·(−σ·θ), and so a bias, at every token as there.

    What a probe is given is divided by one number for each head, the standard deviation of all of
    it, so that the probe's penalty means the same for heads with large and with small outputs.

    Args:
        looks: The sentences' hidden states.
        count: How many heads.
    """
    probes = [
        (_probe(heads[:, head], looks.labels), layer, head)
        for layer, heads in enumerate(looks.heads)
        for head in range(heads.shape[1])
    ]
    best = sorted(probes, key=lambda found: -found[0].right)[:count]
    moved: dict[int, Rows] = {}
    for probe, layer, head in best:
        shift = moved.setdefault(layer, np.zeros(looks.heads[layer].shape[1:], np.float32))
        shift[head] = -probe.step
    return Steering(
        "iti",
        shifts={
            looks.writers.attention[layer]: looks.weights[layer] @ shift.ravel()
            for layer, shift in sorted(moved.items())
        },
    )


def projected(looks: Looks, rank: int, places: Mapping[int, str]) -> Steering:
    """The subspace in which the classes differ, removed from the outputs of some modules.

    The differences between positive and negative texts' mean hidden states, in pairs, less their
    part along the first right singular vector of the negative ones, which is what all text has in
    common; the first right singular vectors of these rows span the subspace of a layer. Source:
    ProFS, Uppaal et al., 2024, arXiv:2405.13967, where the pairs are replies to one prompt and the
    subspace is taken out of the feed-forward part's last matrix, W ← (I − P)·W, in layers from the
    tenth of 24 or the fifteenth of 32 upwards, at ranks of 2 and 10. Where a norm comes after that
    matrix, which none of its models has, the subspace is not where the matrix writes: it is taken
    out behind the norm, with forward hooks.

    Args:
        looks: The texts' hidden states; the n-th positive is paired with the n-th negative one.
        rank: Of the subspace, in each layer.
        places: The modules, by the decoder layer behind which the subspace is found.
    """
    return Steering(
        f"projection of rank {rank}",
        subspaces={
            path: _subspace(looks.stream[layer], looks.labels, rank)
            for layer, path in places.items()
        },
    )


def projected_alike(looks: Looks, rank: int, places: Sequence[str]) -> Steering:
    """One subspace for all layers, removed from the outputs of some modules.

    Each layer's subspace (see `projected`) gives `rank` directions of length 1; the first right
    singular vectors of all of them together, what most layers share, span the one subspace that is
    taken out everywhere. After GLOSS, Duan et al., 2025, arXiv:2505.17078, which also chooses among
    the layers' directions before it joins them: here all of them are taken.

    Args:
        looks: As for `projected`.
        rank: Of the subspace.
        places: The modules.
    """
    directions = [_subspace(rows, looks.labels, rank) for rows in looks.stream]
    shared = _right_singular(np.concatenate(directions), rank)
    return Steering(f"global projection of rank {rank}", subspaces=dict.fromkeys(places, shared))


def _subspace(rows: Rows, labels: NDArray[np.bool_], rank: int) -> Rows:
    positive, negative = rows[labels], rows[~labels]
    pairs = min(len(positive), len(negative))
    common = _right_singular(negative, 1)[0]
    differences = positive[:pairs] - negative[:pairs]
    return _right_singular(differences - np.outer(differences @ common, common), rank)


def _right_singular(rows: Rows, count: int) -> Rows:
    """The first right singular vectors, float32 [count, width]."""
    return np.linalg.svd(rows, full_matrices=False)[2][:count]


@dataclass(frozen=True)
class _Probe:
    right: float
    step: Rows


def _probe(rows: Rows, labels: NDArray[np.bool_]) -> _Probe:
    from sklearn.linear_model import LogisticRegression

    held_out = np.arange(len(labels)) % _HELD_OUT == 0
    scale = rows.std() or np.float32(1)
    probe = LogisticRegression(max_iter=1000).fit(rows[~held_out] / scale, labels[~held_out])
    right = probe.score(rows[held_out] / scale, labels[held_out])
    direction = probe.coef_[0] / np.linalg.norm(probe.coef_[0])
    step = (rows @ direction).std() * direction
    return _Probe(float(right), step.astype(np.float32))


def _in_heads(rows: Rows, heads: int) -> Rows:
    return rows.reshape(len(rows), heads, -1)


def _weight(module: Any) -> Rows:
    """A linear layer's weight, float32 [outputs, inputs]."""
    weight: torch.Tensor = module.weight.detach().float().cpu()
    return (weight.T if hasattr(module, "nf") else weight).numpy()
