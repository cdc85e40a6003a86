"""The sentences that excite a neuron most, token by token."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from sordino.concepts.concept import Concept
from sordino.errors import UserError
from sordino.evaluation.opening import open_scorer
from sordino.evaluation.scorer import LINEAR, TOXIC_SCORE
from sordino.expertise.artefact import Expertise
from sordino.expertise.passes import LayerByLayer
from sordino.expertise.sentences import chat_of, encode_sentences
from sordino.expertise.statistic import STRONGEST
from sordino.models.experts import ExpertMatrix, Hook, Routed, expert_matrix, experts_hooked
from sordino.models.open import OpenModel
from sordino.models.sites import decoder_of
from sordino.models.tokenise import Batch, Placed, equal_length_batches
from sordino.progress import track

Place = tuple[str, int]
"""A module path and the index of one of its outputs or inputs."""

_BATCH_TOKENS = 2048
_INCOMPLETE = "�"  # the decoder's text for the first bytes of a longer character


@dataclass(frozen=True)
class Excerpt:
    """One sentence as one neuron responds to it.

    Args:
        sentence: Its index among the concept's sentences.
        positive: Whether the sentence has the concept.
        pieces: The sentence's tokens as text, in order. Tokens that are parts of one character
            form one piece.
        responses: The neuron's output at each piece, the largest if a piece is several tokens.
        peak: The index of the piece with the largest response.
        covered: Whether a page covers it: it has the concept, or the linear scorer calls it toxic.
            (Data sets mislabel, and mislabelled sentences excite these neurons.)
    """

    sentence: int
    positive: bool
    pieces: tuple[str, ...]
    responses: tuple[float, ...]
    peak: int
    covered: bool


@dataclass(frozen=True)
class Exemplar:
    """One neuron with the sentences that excite it most, the largest response first."""

    site: str
    index: int
    auroc: float
    excerpts: tuple[Excerpt, ...]


def exemplars(
    model: OpenModel,
    concept: Concept,
    expertise: Expertise,
    *,
    neurons: int = 12,
    sentences: int = 3,
    max_tokens: int = 128,
) -> list[Exemplar]:
    """The top neurons, each with the sentences that excite it most and its response at each token.

    The sweep recorded which sentences these are (`STRONGEST`). Only those are run again, through
    the decoder without the LM head.

    Args:
        model: The model that the expertise was found on.
        concept: The sentences that it was found with.
        expertise: The expertise.
        neurons: How many neurons, from the highest AUROC down.
        sentences: How many sentences for each neuron, at most as many as the sweep recorded.
        max_tokens: Where sentences are cut, as in the sweep.

    Raises:
        UserError: The concept is not the one of the expertise, or the expertise does not record
            which sentences excite its neurons.
    """
    refuse_other_sentences(concept, expertise)
    top = expertise.top(neurons)
    strongest = [expertise[name] for name in STRONGEST[:sentences]]
    wanted = [
        [int(by_site[site][index]) for by_site in strongest if by_site[site][index] >= 0]
        for site, index, _ in top
    ]
    needed = sorted({sentence for row in wanted for sentence in row})
    chat = chat_of(model, expertise.metadata)
    placed = encode_sentences(model, concept, max_tokens, chat, needed)
    encoded = dict(zip(needed, placed, strict=True))
    responses = outputs_at_tokens(model, encoded, [(site, index) for site, index, _ in top])
    found = excerpts(model, concept, encoded)
    return [
        Exemplar(
            site,
            index,
            auroc,
            tuple(found(sentence, responses[sentence][number]) for sentence in row),
        )
        for number, ((site, index, auroc), row) in enumerate(zip(top, wanted, strict=True))
    ]


def refuse_other_sentences(concept: Concept, expertise: Expertise) -> None:
    """Raise `UserError` if the expertise was not found with this concept's sentences."""
    if expertise.metadata.get("concept_fingerprint", concept.fingerprint) != concept.fingerprint:
        raise UserError(
            f"The expertise was found with other sentences than those of '{concept.name}' "
            f"({concept.source}): pass the sentences that it was found with."
        )


def excerpts(
    model: OpenModel, concept: Concept, encoded: Mapping[int, Placed]
) -> Callable[[int, torch.Tensor], Excerpt]:
    """A function that makes one neuron's excerpt of one of these sentences.

    Args:
        model: The model, for its tokenizer.
        concept: The sentences.
        encoded: The tokens of those that are shown, by index.

    Returns:
        The function. It takes a sentence's index and the neuron's outputs, [tokens], from
        `outputs_at_tokens`. For tokens that were not routed to the neuron's MoE expert it takes the
        smallest output for the sentence.
    """
    texts = [concept.sentences[sentence] for sentence in encoded]
    labels = concept.labels
    judge = open_scorer(LINEAR, device=torch.device("cpu"))
    scores = [float(score) for score in judge.score(texts)] if texts else []
    covered = {
        sentence: bool(labels[sentence] or score > TOXIC_SCORE)
        for sentence, score in zip(encoded, scores, strict=True)
    }
    spans = {
        sentence: _pieces(model.tokenizer, placed.ids[placed.start :])
        for sentence, placed in encoded.items()
    }

    def excerpt(sentence: int, outputs: torch.Tensor) -> Excerpt:
        reached = outputs[~outputs.isnan()]
        responses = outputs.nan_to_num(nan=float(reached.min()) if reached.numel() else 0.0)
        parts = responses.split([tokens for _, tokens in spans[sentence]])
        largest = tuple(float(part.max()) for part in parts)
        return Excerpt(
            sentence,
            bool(labels[sentence]),
            tuple(text for text, _ in spans[sentence]),
            largest,
            max(range(len(largest)), key=largest.__getitem__),
            covered[sentence],
        )

    return excerpt


@torch.inference_mode()
def outputs_at_tokens(
    model: OpenModel,
    encoded: Mapping[int, Placed],
    places: Sequence[Place],
    *,
    of: Literal["outputs", "inputs"] = "outputs",
    label: str = "",
) -> dict[int, torch.Tensor]:
    """The outputs of neurons at each token of some sentences; the LM head is not run.

    Args:
        model: The model.
        encoded: The sentences' tokens, by any key.
        places: The neurons, of one module or several.
        of: "inputs" for the linear layers' inputs instead of their outputs.
        label: The label of a progress bar; "" for none.

    Returns:
        By key, float32 [places, tokens of the sentence itself]; NaN at tokens that were not routed
        to the neuron's MoE expert.
    """
    batches = equal_length_batches(list(encoded.values()), _BATCH_TOKENS)
    run, stages = _decoder(model, batches), 1
    if model.streamed:
        layers = LayerByLayer(model, batches)
        run, stages = layers.run, len(layers.stages)
    outputs: list[dict[Place, torch.Tensor]] = [{} for _ in batches]
    total = stages * sum(batch.tokens for batch in batches)
    with track(label, total, "tokens") if label else nullcontext(lambda _: None) as advance:
        for stage in range(stages):
            for index, batch in enumerate(batches):
                with _record(model.model, batch, places, of) as recorded:
                    run(stage, index)
                outputs[index] |= recorded
                advance(batch.tokens)
    keys = list(encoded)
    found: dict[int, torch.Tensor] = {}
    for batch, by_place in zip(batches, outputs, strict=True):
        # An expert to which none of the batch's tokens were routed has no outputs.
        nothing = torch.full(batch.input_ids.shape, torch.nan)
        stacked = torch.stack([by_place.get(place, nothing) for place in places], dim=1)
        for i, rows in zip(batch.indices, stacked, strict=True):
            found[keys[i]] = rows[:, encoded[keys[i]].start :]
    return found


def _decoder(model: OpenModel, batches: Sequence[Batch]) -> Callable[[int, int], None]:
    """The whole decoder as a single stage."""
    decoder = decoder_of(model.model)

    def run(_stage: int, batch: int) -> None:
        decoder(input_ids=batches[batch].input_ids.to(model.device), use_cache=False)

    return run


@contextmanager
def _record(
    model: nn.Module,
    batch: Batch,
    places: Sequence[Place],
    of: Literal["outputs", "inputs"] = "outputs",
) -> Iterator[dict[Place, torch.Tensor]]:
    """Record these outputs (or inputs) inside the block, float32 [sentences, tokens] each.

    They are NaN at tokens that were not routed to the neuron's MoE expert.
    """
    outputs: dict[Place, torch.Tensor] = {}

    def keep(site: str, indices: list[int], values: torch.Tensor) -> None:
        for index in indices:
            # Some decoders (OPT) flatten sentences and tokens into one dimension.
            of_one = values[..., index].reshape(batch.input_ids.shape)
            outputs[site, index] = of_one.float().cpu()

    def watch(site: str, indices: list[int]) -> Any:
        module = model.get_submodule(site)
        if of == "inputs":
            return module.register_forward_pre_hook(
                lambda _module, inputs: keep(site, indices, inputs[0])
            )
        return module.register_forward_hook(
            lambda _module, _inputs, output: keep(site, indices, output)
        )

    def record_expert(site: str, matrix: ExpertMatrix, indices: list[int]) -> Hook:
        width = matrix.neurons // matrix.experts

        def hook(routed: Routed) -> None:
            for index in indices:
                if index // width == routed.expert:
                    values = outputs.setdefault(
                        (site, index), torch.full(batch.input_ids.shape, torch.nan)
                    )
                    put_out = routed.outputs[:, index % width].float().cpu()
                    values.view(-1)[routed.tokens.cpu()] = put_out

        return hook

    by_site: dict[str, list[int]] = {}
    for site, index in places:
        by_site.setdefault(site, []).append(index)
    matrices = {site: matrix for site in by_site if (matrix := expert_matrix(model, site))}
    of_experts = {s: record_expert(s, matrix, by_site[s]) for s, matrix in matrices.items()}
    handles = [watch(site, indices) for site, indices in by_site.items() if site not in matrices]
    try:
        with experts_hooked(model, of_experts):
            yield outputs
    finally:
        for handle in handles:
            handle.remove()


def _pieces(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[tuple[str, int]]:
    """The tokens as text, each piece with its number of tokens.

    A piece is what its tokens add to the decoded text. A token that completes no character waits
    for the next one. (The offsets of fast tokenizers leave out spaces, and slow ones have none.)
    """
    pieces: list[tuple[str, int]] = []
    shown, start = "", 0
    for end in range(1, len(ids) + 1):
        text = str(
            tokenizer.decode(
                ids[:end], skip_special_tokens=False, clean_up_tokenization_spaces=False
            )
        )
        grown = text.removeprefix(shown) if text.startswith(shown) else text
        last = end == len(ids)
        if last or (grown and not grown.endswith(_INCOMPLETE)):
            pieces.append((grown, end - start))
            shown, start = text, end
    return pieces
