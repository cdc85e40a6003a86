"""How far an edited model's next-token distributions are from the original's."""

import base64
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray

from sordino.errors import UserError
from sordino.evaluation.measure import Column, PairedTask, Summary, register
from sordino.evaluation.reading import Reader, Reading, next_log_p
from sordino.evaluation.result import Figure
from sordino.evaluation.statistics import compare, ratio_of_means
from sordino.evaluation.texts import Text
from sordino.models.generation import uniforms
from sordino.models.open import OpenModel
from sordino.models.precision import double

LIKELIEST = 256
"""How many of the original's likeliest tokens are kept at each position."""
DRAWS = 64
"""How many tokens are drawn among the others, whose part of the divergence their mean estimates."""


@register
@dataclass(frozen=True)
class Divergence(Reading):
    """Kullback-Leibler divergence KL(original ‖ edited) of the next token, on ordinary prose.

    Σ p·(log p − log q) over the vocabulary, in nats, at each position where perplexity scores a
    token; p is the original's distribution and q the edited model's. Beside it: the share of the
    positions at which both have the same likeliest token. The settings are those of `Reading`.
    """

    name: ClassVar[str] = "divergence"
    version: ClassVar[int] = 1
    title: ClassVar[str] = "Divergence"
    sentence: ClassVar[str] = (
        "How far the next token’s distribution is from the original’s, on ordinary prose."
    )
    budget: ClassVar[Literal["<=", ">=", ""]] = "<="
    columns: ClassVar[tuple[Column, ...]] = (
        Column("divergence, nats per token", "alone", "divergence", place=10),
        Column("same likeliest token", "share alone", "agreement", place=10),
    )

    max_texts: int | None = 100

    def prepare(self, seed: int, device: torch.device) -> "_DivergenceTask":  # noqa: ARG002
        """Read and choose the texts."""
        return _DivergenceTask(Reader.of(self, seed))


@dataclass(frozen=True)
class ContinuedDivergence(Divergence):
    """The same on continuations of prompts: what the prompts' tokens predict does not count.

    Args:
        pairs: Each prompt and its continuation; a continuation begins with its own white space.
    """

    pairs: tuple[tuple[str, str], ...] = ()

    def prepare(self, seed: int, device: torch.device) -> "_DivergenceTask":  # noqa: ARG002
        """Take the pairs in place of texts of a source."""
        prompts, continuations = zip(*self.pairs, strict=True)
        settings = replace(self, pairs=())  # its protocol has their fingerprints
        return _DivergenceTask(Reader(settings, [*map(Text, continuations)], seed, prompts))


class Predictions(NamedTuple):
    """What is kept of the original's predictions on a text; see `keep`.

    Args:
        text: Which of the texts.
        ids: Its tokens.
        tokens: The kept tokens, packed.
        log_p: Their log p, packed.
    """

    text: int
    ids: list[int]
    tokens: str
    log_p: str

    @classmethod
    def of(cls, text: int, ids: torch.Tensor, logits: torch.Tensor, seed: int) -> "Predictions":
        """The part of a text's tokens and logits that is kept."""
        return cls(text, ids.tolist(), *map(_pack, keep(logits, seed, text)))

    def estimate(
        self, ids: torch.Tensor, logits: torch.Tensor, opened: OpenModel
    ) -> tuple[float, int]:
        """The divergence of the edited model on this text; see `estimate_divergence`.

        Raises:
            UserError: The tokenizers differ.
        """
        places = len(ids) - 1
        if ids.tolist() != self.ids:
            raise _tokenizers_differ(opened)
        tokens = _unpack(self.tokens, np.int32, places)
        if tokens.max(initial=0) >= logits.shape[1]:
            raise _tokenizers_differ(opened)
        return estimate_divergence(tokens, _unpack(self.log_p, np.float32, places), logits)


class Diverged(NamedTuple):
    """The divergence on a text.

    Args:
        text: Which of the texts.
        nats: The sum over its positions.
        same: At how many positions the likeliest token is the same.
        positions: How many there are.
    """

    text: int
    nats: float
    same: int
    positions: int


class _DivergenceTask(PairedTask[Predictions, Diverged]):
    """Keeps some of the original's distributions, since only one model is in memory at a time.

    Whole distributions would be gigabytes. Kept at each position are the likeliest tokens and some
    drawn among the others by their probability, with log p of each. The sum over the likeliest is
    then exact, and that over the others is their probability times the mean of log p − log q over
    the draws: unbiased, with an error that the interval covers.
    """

    record, record_after = Predictions, Diverged
    unit = "texts"
    reusable = True

    def __init__(self, reader: Reader) -> None:
        self._reader, self.texts, self.records = reader, reader.texts, len(reader.texts)
        self.protocol = {
            **reader.protocol(),
            "direction": "KL(before ‖ after)",
            "likeliest": LIKELIEST,
            "draws": DRAWS,
        }

    def collect(
        self, opened: OpenModel, *, batch_tokens: int, which: slice
    ) -> Iterator[list[Predictions]]:
        """The part of the original's predictions that is kept."""

        def note(index: int, ids: torch.Tensor, logits: torch.Tensor) -> Predictions:
            return Predictions.of(index, ids, logits, self._reader.seed)

        return self._reader.collect(opened, note, batch_tokens=batch_tokens, which=which)

    def collect_after(
        self, opened: OpenModel, before: Sequence[Predictions], *, batch_tokens: int, which: slice
    ) -> Iterator[list[Diverged]]:
        """The divergence on each text."""
        by_text = {record.text: record for record in before}

        def note(index: int, ids: torch.Tensor, logits: torch.Tensor) -> Diverged:
            return Diverged(index, *by_text[index].estimate(ids, logits, opened), len(ids) - 1)

        return self._reader.collect(opened, note, batch_tokens=batch_tokens, which=which)

    def summarise(self, before: Sequence[Predictions], after: Sequence[Diverged]) -> Summary:  # noqa: ARG002
        """Means over all positions; texts are resampled."""
        scored = [one for one in sorted(after) if one.positions]
        if not scored:
            raise self._reader.no_scored_token()
        n = {"texts": len(scored), "tokens": sum(one.positions for one in scored)}
        nats, same = (
            compare(None, np.array(pairs, dtype=np.float64), ratio_of_means, self._reader.seed)
            for pairs in (
                [(one.nats, one.positions) for one in scored],
                [(one.same, one.positions) for one in scored],
            )
        )
        return Summary(
            (
                Figure.of(
                    nats,
                    name="divergence",
                    label="Divergence from the original",
                    unit="nats per token",
                    better="lower",
                    ratio_of="after/before",
                    n=n,
                ),
                Figure.of(
                    same,
                    name="agreement",
                    label="Same first choice as the original",
                    unit="share",
                    better="higher",
                    ratio_of="before/after",
                    n=n,
                ),
            )
        )


def keep(
    logits: torch.Tensor, seed: int, text: int
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """The part of these distributions from which a divergence can be computed later.

    The draws are stratified: one in each of `DRAWS` equal parts of the others' probability, in the
    order of the vocabulary, where neighbours resemble each other. So they vary less than
    independent ones.

    Args:
        logits: A text's, [positions + 1, vocabulary].
        seed: Of the draws.
        text: Which text it is; each has its own draws.

    Returns:
        Tokens int32 and their log p float32, [positions, `LIKELIEST` + `DRAWS`], the likeliest
        first and in order; the whole vocabulary, without draws, if it is no larger than
        `LIKELIEST`.
    """
    places, vocabulary = len(logits) - 1, logits.shape[1]
    width = vocabulary if vocabulary <= LIKELIEST else LIKELIEST + DRAWS
    kept = np.empty((places, width), dtype=np.int32), np.empty((places, width), dtype=np.float32)
    jitter = torch.from_numpy(uniforms(seed, text, 0, places * DRAWS)).view(places, DRAWS)
    parts = torch.arange(DRAWS)
    for piece, log_p in next_log_p(logits):
        values, tokens = log_p.topk(min(LIKELIEST, vocabulary), dim=-1)
        if vocabulary > LIKELIEST:
            ends = double(log_p.exp().scatter(-1, tokens, 0)).cumsum(dim=-1)
            targets = ((parts + jitter[piece]) / DRAWS).to(ends.device) * ends[:, -1:]
            drawn = torch.searchsorted(ends, targets, right=True).clamp(max=vocabulary - 1)
            drawn = drawn.to(tokens.device)
            tokens = torch.cat([tokens, drawn], dim=-1)
            values = torch.cat([values, log_p.gather(-1, drawn)], dim=-1)
        for whole, part in zip(kept, (tokens, values), strict=True):
            whole[piece] = part.cpu().numpy()
    return kept


def estimate_divergence(
    tokens: NDArray[np.int32], log_p: NDArray[np.float32], logits: torch.Tensor
) -> tuple[float, int]:
    """The divergence on one text from what was kept of the original.

    Args:
        tokens: int32 [positions, kept]; see `keep`.
        log_p: float32 [positions, kept]; see `keep`.
        logits: The edited model's on the same text, [positions + 1, vocabulary].

    Returns:
        The sum over the positions of Σ p·(log p − log q), in nats, and at how many of them the
        likeliest token is the same.
    """
    ids = torch.from_numpy(tokens).long().to(logits.device)
    log_original = double(torch.from_numpy(log_p).to(logits.device))
    weights = log_original.exp()
    likeliest, drawn = weights[:, :LIKELIEST], weights[:, LIKELIEST:]
    if drawn.shape[1]:
        others = (1 - likeliest.sum(dim=-1, keepdim=True)).clamp(min=0)
        weights = torch.cat([likeliest, (others / DRAWS).expand_as(drawn)], dim=-1)
    edited, same = torch.empty_like(log_original), 0
    for piece, log_q in next_log_p(logits):
        edited[piece] = double(log_q.gather(-1, ids[piece]))
        # By value, because in half precision several tokens can be the likeliest.
        same += int((log_q.gather(-1, ids[piece, :1]).squeeze(-1) == log_q.amax(dim=-1)).sum())
    apart = log_original - edited
    # A token of probability 0 in the original adds nothing, whatever it is in the edited model.
    nats = torch.where((weights > 0) & (log_original > -torch.inf), weights * apart, 0).sum()
    return float(nats), same


def _tokenizers_differ(opened: OpenModel) -> UserError:
    return UserError(
        f"The divergence of {opened.ref.name} from the model that it is compared with is not "
        "defined, because their tokenizers differ: leave the measure divergence out."
    )


def _pack(array: NDArray[Any]) -> str:
    return base64.b64encode(array.tobytes()).decode()


def _unpack(text: str, dtype: DTypeLike, places: int) -> NDArray[Any]:
    flat = np.frombuffer(bytearray(base64.b64decode(text)), dtype=dtype)
    return flat.reshape(places, -1) if places else flat.reshape(0, 1)
