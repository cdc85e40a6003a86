"""Sample continuations in batches, with random numbers that do not depend on the batches.

Every (prompt, continuation, step) owns one uniform number, and the token is the one at which the
cumulative distribution, in the order of the vocabulary, passes it. Two models that are asked for
the same prompts with the same seed therefore use the same random numbers, which pairs their
continuations and narrows the interval of the difference between them.
"""

import inspect
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import (
    DynamicCache,
    EncoderDecoderCache,
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from sordino.errors import UserError
from sordino.models.cache import kept_of_a_token, make_room
from sordino.models.memory import for_device
from sordino.models.open import OpenModel
from sordino.models.precision import double, has_float64
from sordino.models.tokenise import encode, encode_noted, positions, refuse_unknown
from sordino.models.transformers_internals import CACHE, counts_anew

# Logits of one step, rows × vocabulary: at most 256 MiB in float32.
MAX_LOGITS = 2**26
# Logits from which tokens are chosen at once: 8 MiB in float32, so that intermediate results stay
# in the processor's cache and their memory is reused.
_PIECE = 2**21
# With fewer rows than this, a step takes only as long as reading the weights.
_FEW = 128
# Keys and values of a batch if every step reads the weights from their files, on a GPU more: then
# batches are as large as this allows.
_STREAMED_CACHE = 2 << 30
# Finished rows are dropped once they are this share of a batch: dropping copies the cache.
_DROP_SHARE = 0.25
# The cumulative distribution is summed in blocks of this many tokens; see `inverse_cdf`.
_BLOCK = 256
# The largest share of a sum that is below the sum itself, even after rounding.
_BELOW_ONE = 1 - 1e-15


# Logits that are divided or multiplied by numbers within these, twice, remain finite in float32.
_SMALLEST, _LARGEST = 1e-10, 1e10
_RANGE = f"from {_SMALLEST:g} to {_LARGEST:g}"


def _divides(number: float) -> bool:
    return _SMALLEST <= number <= _LARGEST


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen; by default, sampled from the model's own distribution.

    The model's own generation settings are not used, so that all models are treated alike.

    Args:
        new_tokens: The most tokens of a continuation.
        temperature: Divides the logits; 0 takes the likeliest token.
        top_k: Sample among this many likeliest tokens; 0 for all.
        top_p: Sample among the likeliest tokens that together have this probability.
        repetition_penalty: Divides positive logits of tokens seen already and multiplies negative
            ones (Keskar et al. 2019, arXiv 1909.05858); 1 for none.

    Raises:
        UserError: A setting is outside its range.
    """

    new_tokens: int = 20
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        checks = [
            ("new_tokens", self.new_tokens >= 1, "at least 1"),
            ("temperature", self.temperature == 0 or _divides(self.temperature), f"0, or {_RANGE}"),
            ("top_k", self.top_k >= 0, "0 or more"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("repetition_penalty", _divides(self.repetition_penalty), _RANGE),
        ]
        for name, good, wanted in checks:
            if not good:
                value = f"{getattr(self, name):g}"
                raise UserError(f"`{name}={value}` is out of range: it must be {wanted}.")

    def processors(self) -> LogitsProcessorList:
        """Transformers' own processors for these settings, in its own order."""
        chosen = LogitsProcessorList()
        if self.repetition_penalty != 1:
            chosen.append(RepetitionPenaltyLogitsProcessor(float(self.repetition_penalty)))
        if self.temperature not in (0, 1):
            chosen.append(TemperatureLogitsWarper(float(self.temperature)))
        if self.top_k:
            chosen.append(TopKLogitsWarper(self.top_k))
        if self.top_p < 1:
            chosen.append(TopPLogitsWarper(float(self.top_p)))
        return chosen


@dataclass(frozen=True)
class Continuation:
    """What a model wrote after a prompt.

    Args:
        prompt: Which of the prompts.
        number: Which of the prompt's continuations.
        ids: The tokens, without the one that ended it; None where only the text is known.
        text: These tokens as text.
        missing: Why there is no text, which is not the same as an empty text; "" if there is.
        end: The token that ended it; None where it is as long as was asked, or is not known.
    """

    prompt: int
    number: int
    ids: tuple[int, ...] | None
    text: str
    missing: str = ""
    end: int | None = None

    @property
    def chosen(self) -> tuple[int, ...]:
        """All tokens that the model chose, with the one that ended it."""
        ids = self.ids or ()
        return ids if self.end is None else (*ids, self.end)


@dataclass(frozen=True)
class GenerationBatch:
    """Prompts of about the same length, each continued the same number of times.

    Args:
        prompts: The prompts' indices.
        numbers: The numbers of each prompt's continuations.
        ids: The token ids of each prompt.
    """

    prompts: tuple[int, ...]
    numbers: range
    ids: tuple[tuple[int, ...], ...]


def encode_prompts(
    opened: OpenModel,
    texts: Sequence[str],
    *,
    max_tokens: int,
    new_tokens: int,
    nouns: str = "prompts",
) -> list[list[int]]:
    """Token ids of prompts, cut so that the continuation still fits the model.

    The tokenizer's own special tokens are kept, except an end-of-sequence token at the end, after
    which a model would begin a new text. A note says how many are cut.

    Args:
        opened: The model.
        texts: The prompts.
        max_tokens: The most tokens of a prompt.
        new_tokens: The most tokens of a continuation.
        nouns: What the note calls the prompts, in the plural.

    Raises:
        UserError: A prompt has no tokens, or the model has no room for the continuation.
    """
    room = prompt_room(opened, new_tokens)
    most = max_tokens if room is None else min(max_tokens, room)
    return _without_end(opened, encode_noted(opened, texts, most, nouns))


def encode_open(opened: OpenModel, texts: Sequence[str], max_tokens: int) -> list[list[int]]:
    """Token ids of texts to be continued, without an end-of-sequence token at the end.

    Raises:
        UserError: A text has no tokens.
    """
    return _without_end(opened, encode(opened.tokenizer, texts, max_tokens))


def _without_end(opened: OpenModel, encoded: list[list[int]]) -> list[list[int]]:
    refuse_unknown(opened, encoded)
    ends = _end_ids(opened)
    return [ids[:-1] if len(ids) > 1 and ids[-1] in ends else ids for ids in encoded]


def prompt_room(opened: OpenModel, new_tokens: int) -> int | None:
    """The most tokens that a prompt may have before a continuation; None where there is no limit.

    Raises:
        UserError: The model has no room for the continuation.
    """
    room = positions(opened.model)
    if room is None:
        return None
    if room <= new_tokens:
        raise UserError(
            f"`new_tokens={new_tokens}` leaves no room for a prompt: {opened.ref.name} has "
            f"{room} positions."
        )
    return room - new_tokens


def plan(
    opened: OpenModel,
    prompts: Sequence[Sequence[int]],
    *,
    continuations: int,
    new_tokens: int,
    batch_tokens: int,
) -> list[GenerationBatch]:
    """Group prompts into batches that fit in memory, longest first.

    A batch's rows are its prompts times `continuations`; rows × (longest prompt + new tokens) is at
    most `batch_tokens`, and rows × vocabulary at most `MAX_LOGITS`, on a GPU more. Prompts of one
    length are together; if they are few rows, the next shorter prompts join them, up to
    `new_tokens` shorter. Batches of the same lengths are as even as possible. A prompt whose
    continuations do not fit into one batch gets several. Where weights are streamed, a step takes
    as long as reading them: batches are as large as keys and values may be.
    """
    few = _FEW
    if opened.streamed is not None:
        room = int(streamed_cache(opened) / kept_of_a_token(opened))
        batch_tokens = few = max(batch_tokens, room)
    batches = []
    for together in _of_like_length(prompts, continuations, new_tokens, few):
        longest = len(prompts[together[0]])
        rows = max(1, min(batch_tokens // (longest + new_tokens), opened.positions(MAX_LOGITS)))
        for indices in _cut_evenly(together, max(1, rows // continuations)):
            ids = tuple(tuple(prompts[index]) for index in indices)
            batches += [
                GenerationBatch(tuple(indices), numbers, ids)
                for numbers in _cut_evenly(range(continuations), rows)
            ]
    return batches


def streamed_cache(opened: OpenModel) -> int:
    """The bytes that a batch's keys and values may take if the weights are streamed."""
    return for_device(_STREAMED_CACHE, opened.device)


def _of_like_length(
    prompts: Sequence[Sequence[int]], continuations: int, span: int, few: int
) -> list[list[int]]:
    """The indices of the prompts, longest first, in groups that are no `few` rows."""
    by_length: dict[int, list[int]] = {}
    for index, prompt in enumerate(prompts):
        by_length.setdefault(len(prompt), []).append(index)
    groups: list[list[int]] = []
    for length in sorted(by_length, reverse=True):
        last = groups[-1] if groups else []
        joins = last and len(last) * continuations < few
        if joins and len(prompts[last[0]]) - length <= span:
            last += by_length[length]
        else:
            groups.append(list(by_length[length]))
    return groups


def _cut_evenly(items: Any, largest: int) -> list[Any]:
    """Cut a sequence into the fewest pieces of at most `largest`, as even as possible."""
    pieces = -(-len(items) // largest)
    bounds = [piece * len(items) // pieces for piece in range(pieces + 1)]
    return [items[low:high] for low, high in pairwise(bounds)]


def generate(
    opened: OpenModel,
    batches: Sequence[GenerationBatch],
    sampling: Sampling,
    *,
    seed: int,
    ends: Collection[int] = (),
    advance: Callable[[float], None] = lambda _: None,
) -> Iterator[list[Continuation]]:
    """Sample the continuations of each batch, and yield them batch by batch.

    Within a batch they come in the order of its prompts and, within a prompt, of its numbers.

    Args:
        opened: The model.
        batches: The prompts, see `plan`.
        sampling: How tokens are chosen.
        seed: Of the sampling.
        ends: Tokens that end a continuation, beside those that end the model's texts.
        advance: Is told, step by step, how many continuations' worth of work was done.

    Raises:
        UserError: The model's logits are not finite.
    """
    for batch in batches:
        owners = [(prompt, number) for prompt in batch.prompts for number in batch.numbers]
        lengths = [len(ids) for ids in batch.ids]
        a_step = len(owners) / (sampling.new_tokens + max(lengths) - min(lengths))
        left = float(len(owners))
        for tokens in _steps(opened, batch, owners, sampling, seed, ends):
            written = tokens  # the same tensor every time
            left -= a_step
            advance(a_step)
        advance(left)  # all may have ended early
        rows = written.tolist()
        yield [_continuation(opened, owner, row) for owner, row in zip(owners, rows, strict=True)]


def stream(
    opened: OpenModel,
    ids: Sequence[int],
    sampling: Sampling,
    *,
    seed: int,
    prompt: int = 0,
    ends: Collection[int] = (),
) -> Generator[Continuation]:
    """Sample one continuation, and yield it after each token.

    The last one is the first of what `generate` gives for the same prompt and token ids. Those
    before it have no character whose bytes are not complete.

    Args:
        opened: The model.
        ids: The token ids of the prompt.
        sampling: How tokens are chosen.
        seed: Of the sampling.
        prompt: The prompt's index, for its random numbers.
        ends: As for `generate`.

    Raises:
        UserError: The model's logits are not finite.
    """
    batch = GenerationBatch((prompt,), range(1), (tuple(ids),))
    owner = (prompt, 0)
    for written in _steps(opened, batch, [owner], sampling, seed, ends):
        so_far = _continuation(opened, owner, written[0].tolist())
        yield replace(so_far, text=so_far.text.rstrip("\N{REPLACEMENT CHARACTER}"))
    yield so_far


def uniforms(seed: int, prompt: int, number: int, steps: int) -> NDArray[np.float64]:
    """The random numbers of one continuation, one per step, float64 [steps] in [0, 1).

    They come from a counter-based generator (Philox) whose key is the seed and whose counter
    starts at (prompt, number), so they depend on nothing else, and fewer steps give the first of
    the same numbers.
    """
    # The lowest two of the counter's four words count the steps.
    counter = np.array([0, 0, number, prompt], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=seed, counter=counter)).random(steps)


def inverse_cdf(logits: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """The tokens at which the cumulative softmax, in vocabulary order, passes the draws.

    Sums go in two levels: weights in float32 are added up in blocks of 256 tokens, the blocks are
    accumulated in float64, and only the block that the draw falls into is accumulated token by
    token (float64 as well). That is several times faster than accumulating a whole vocabulary, and
    moves no boundary by more than float32's own rounding of the probabilities.

    Args:
        logits: float32 [rows, vocabulary]; minus infinity forbids a token.
        draws: float64 [rows] in [0, 1), on any device.

    Returns:
        int64 [rows]; never a token of probability 0.
    """
    rows, vocabulary = logits.shape
    blocks = -(-vocabulary // _BLOCK)
    weights = logits.new_empty(rows, blocks * _BLOCK)
    weights[:, vocabulary:] = 0
    inside = weights[:, :vocabulary]
    torch.sub(logits, logits.amax(dim=-1, keepdim=True), out=inside)
    inside.exp_()
    weights = weights.view(rows, blocks, _BLOCK)
    sums = double(weights.sum(dim=-1))
    ends = sums.cumsum(dim=-1)
    target = draws.to(ends.device).clamp(max=_BELOW_ONE).unsqueeze(-1) * ends[:, -1:]
    block = torch.searchsorted(ends, target, right=True)
    total = sums.gather(1, block)
    # The block's float32 sum and the float64 sum of its tokens differ by rounding. So the place in
    # the block is taken as a share, which never runs past the block's last token.
    share = ((target - ends.gather(1, block) + total) / total).clamp(0, _BELOW_ONE)
    chosen = block.to(weights.device).unsqueeze(-1).expand(-1, 1, _BLOCK)
    within = double(weights.gather(1, chosen).squeeze(1)).cumsum(dim=-1)
    token = torch.searchsorted(within, share * within[:, -1:], right=True)
    return (block * _BLOCK + token).squeeze(-1).to(logits.device)


@torch.inference_mode()
def _steps(
    opened: OpenModel,
    batch: GenerationBatch,
    owners: Sequence[tuple[int, int]],
    sampling: Sampling,
    seed: int,
    more_ends: Collection[int],
) -> Iterator[torch.Tensor]:
    """Sample a batch, and yield the tokens so far after each step.

    Yields:
        int64 [owners, new tokens], -1 where there is none (yet), and -2 less the token that ended
        a continuation in its place: the same tensor every time.
    """
    device, steps = opened.device, sampling.new_tokens
    draws = torch.from_numpy(np.stack([uniforms(seed, *owner, steps) for owner in owners]))
    draws = draws.to(device) if has_float64(device) else draws
    ends = torch.tensor(sorted(_end_ids(opened).union(more_ends)), dtype=torch.int64, device=device)
    processors = sampling.processors()

    # One forward over as many tokens as all prompts have; its last logits and its cache serve all
    # their continuations. The rest of longer prompts is fed token by token while shorter ones are
    # being continued already, so that all rows are at the same position.
    lengths = torch.tensor([len(ids) for ids in batch.ids], device=device)
    shortest, longest = int(lengths.min()), int(lengths.max())
    prompts = torch.full((len(batch.ids), longest), -1, dtype=torch.int64)
    for row, prompt in enumerate(batch.ids):
        prompts[row, : len(prompt)] = torch.tensor(prompt)
    prompts = prompts.to(device)
    logits, cache = _forward(opened, prompts[:, :shortest], None)
    copies = torch.arange(len(batch.prompts), device=device).repeat_interleave(len(batch.numbers))
    logits, prompts, lengths = logits[copies], prompts[copies], lengths[copies]
    ids = prompts[:, :shortest]
    if cache is not None:
        cache.reorder_cache(copies)
        make_room(cache, steps + longest - shortest)

    written = torch.full((len(owners), steps), -1, dtype=torch.int64, device=device)
    alive = torch.arange(len(owners), device=device)
    finished = torch.zeros(len(owners), dtype=torch.bool, device=device)
    rows = max(1, _PIECE // logits.shape[-1])
    for position in range(shortest, longest + steps):
        step = position - lengths[alive]  # below 0 inside the prompt
        writing = ((step >= 0) & ~finished).nonzero().squeeze(-1)
        # A finished row can be given any token.
        chosen = prompts[alive, min(position, longest - 1)].clamp(min=0)
        for piece in writing.split(rows):
            draw = draws[alive[piece].to(draws.device), step[piece].to(draws.device)]
            new = _choose(opened, sampling, processors, ids[piece], logits[piece], draw)
            ended = torch.isin(new, ends)
            written[alive[piece], step[piece]] = torch.where(ended, -2 - new, new)
            chosen[piece] = new
            finished[piece] = ended | (step[piece] + 1 == steps)
        yield written
        if bool(finished.all()):
            return
        ids = torch.cat([ids, chosen.unsqueeze(-1)], dim=-1)
        if float(finished.float().mean()) >= _DROP_SHARE:
            kept = (~finished).nonzero().squeeze(-1)
            alive, ids, finished = alive[kept], ids[kept], finished[kept]
            if cache is not None:
                cache.reorder_cache(kept)
        logits, cache = _forward(opened, ids, cache)


def _choose(
    opened: OpenModel,
    sampling: Sampling,
    processors: LogitsProcessorList,
    ids: torch.Tensor,
    logits: torch.Tensor,
    draws: torch.Tensor,
) -> torch.Tensor:
    """The next token of each row, int64 [rows]."""
    scores = processors(ids, logits.float())
    if not bool(scores.amax(dim=-1).isfinite().all()):
        raise UserError(
            f"{opened.ref.name} gives logits that are not finite numbers in {opened.dtype_name}: "
            "try `dtype=float32`, and check that its weights are finite."
        )
    return scores.argmax(dim=-1) if sampling.temperature == 0 else inverse_cdf(scores, draws)


def _forward(opened: OpenModel, ids: torch.Tensor, cache: Any) -> tuple[torch.Tensor, Any]:
    """The logits [rows, vocabulary] after the last token, and the cache with all tokens in it.

    A model reads all of `ids` each time if its cache cannot be reordered, or is of a class of its
    own: MiniMax's, for one, leaves a part behind when it is reordered.
    """
    model: Any = opened.model
    options: dict[str, Any] = {"logits_to_keep": 1} if keeps_last_logits(model) else {}
    fresh = ids if cache is None else ids[:, -1:]
    if counts_anew(model):
        places = torch.arange(ids.shape[1], device=ids.device)[-fresh.shape[1] :]
        options["position_ids"] = places.unsqueeze(0)
    try:
        with opened.whole_forwards():
            output = model(input_ids=fresh, use_cache=True, **{CACHE: cache}, **options)
    except RuntimeError as error:
        if opened.streamed is None or "meta" not in str(error):
            raise
        raise UserError(
            f"{opened.ref.name} cannot write while its weights are read layer by layer, because "
            "its code uses some that are not there then: use a machine whose memory holds it, "
            "with `stream=False`."
        ) from error
    kept = getattr(output, CACHE, None)
    return output.logits[:, -1], kept if type(kept) in (DynamicCache, EncoderDecoderCache) else None


def keeps_last_logits(model: Any) -> bool:
    """Whether a model computes, if asked, the logits of the last tokens alone."""
    return "logits_to_keep" in inspect.signature(model.forward).parameters


def _end_ids(opened: OpenModel) -> set[int]:
    """The tokens that end a text, by the model's generation settings, else by its tokenizer."""
    ends = opened.model.generation_config.eos_token_id
    if ends is None:
        ends = opened.tokenizer.eos_token_id
    return set() if ends is None else {ends} if isinstance(ends, int) else set(ends)


def _continuation(opened: OpenModel, owner: tuple[int, int], row: list[int]) -> Continuation:
    length = next((n for n, token in enumerate(row) if token < 0), len(row))
    ids, after = row[:length], row[length : length + 1]
    text = opened.tokenizer.decode(
        ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    end = -2 - after[0] if after and after[0] < -1 else None
    return Continuation(*owner, tuple(ids), text, end=end)
