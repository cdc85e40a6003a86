"""Texts that models read, for the measures of how well, or how differently, they predict them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import takewhile
from typing import Any, ClassVar, Self

import torch

from sordino.errors import UserError, require_at_least
from sordino.evaluation.measure import ALL, Measure, R
from sordino.evaluation.texts import (
    KIT_PROSE,
    Text,
    choose,
    is_built_in,
    read_texts,
    texts_fingerprint,
)
from sordino.files import fingerprint
from sordino.models.generation import MAX_LOGITS
from sordino.models.open import OpenModel
from sordino.models.precision import double
from sordino.models.tokenise import encode_for, equal_length_batches

# Logits that are processed together: 8 MiB in float32, so that intermediate results stay in the
# processor's cache and their memory is reused.
_PIECE = 2**21


@dataclass(frozen=True)
class Reading(Measure):
    """The settings of a measure of how a model predicts texts, each from its second token on.

    Args:
        texts: Where the texts come from; see `sordino.evaluation.texts.read_texts`.
        max_texts: How many texts at most, chosen by seed; None for all.
        max_tokens: Texts are cut at this many tokens.

    Raises:
        UserError: A setting is outside its range.
    """

    options: ClassVar[Mapping[str, str]] = {"texts": "texts", "max_texts": "max_texts"}

    texts: str = KIT_PROSE
    max_texts: int | None = 400
    max_tokens: int = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(1, max_texts=self.max_texts)
        require_at_least(2, max_tokens=self.max_tokens)  # a text's first token is not scored


@dataclass(frozen=True)
class Reader:
    """Texts, and how models predict them.

    Args:
        settings: Which texts, and how long.
        texts: The chosen texts.
        seed: Of the intervals.
        given: What is read before each text, without a prediction that counts; () for nothing.
    """

    settings: Reading
    texts: list[Text]
    seed: int
    given: tuple[str, ...] = ()

    @classmethod
    def of(cls, settings: Reading, seed: int) -> Self:
        """A reader of the settings' texts, chosen by seed.

        Raises:
            UserError: The texts cannot be read.
        """
        texts = choose(read_texts(settings.texts), settings.max_texts, seed)
        return cls(settings, texts, seed)

    def protocol(self) -> dict[str, Any]:
        """Everything that decides what is read, as JSON values."""
        return {
            **asdict(self.settings),
            "n_texts": len(self.texts),
            "texts_fingerprint": texts_fingerprint(self.texts),
            **({"given_fingerprint": fingerprint(*self.given)} if self.given else {}),
        }

    def read(
        self, opened: OpenModel, *, batch_tokens: int, which: slice
    ) -> Iterator[list[tuple[int, torch.Tensor, torch.Tensor]]]:
        """The model's logits for the texts, batch by batch; see `text_logits`.

        Where something is given before a text, its last token is the first one.
        """
        texts, most = [text.text for text in self.texts], self.settings.max_tokens
        if not self.given:
            # The documentation says how long the built-in texts are.
            nouns = "" if is_built_in(self.settings.texts) else f"texts of {self.settings.key}"
            yield from text_logits(
                opened, texts, most, batch_tokens=batch_tokens, which=which, nouns=nouns
            )
            return
        whole = [given + text for given, text in zip(self.given, texts, strict=True)]
        begin = _ends_of_given(opened, self.given, whole, most)
        for batch in text_logits(opened, whole, most, batch_tokens=batch_tokens, which=which):
            yield [(i, ids[begin[i] :], logits[begin[i] :]) for i, ids, logits in batch]

    @torch.inference_mode()
    def collect(
        self,
        opened: OpenModel,
        note: Callable[[int, torch.Tensor, torch.Tensor], R],
        *,
        batch_tokens: int,
        which: slice,
    ) -> Iterator[list[R]]:
        """Run the model over the texts and note something about each.

        Args:
            opened: The model.
            note: Gives the record for a text's index, its tokens int64 [length], and the model's
                logits [length, vocabulary].
            batch_tokens: About how many tokens are in memory at once.
            which: Which of the batches.
        """
        for batch in self.read(opened, batch_tokens=batch_tokens, which=which):
            yield [note(index, ids, logits) for index, ids, logits in batch]

    def no_scored_token(self) -> UserError:
        """The error for texts none of which has a token that is scored."""
        return UserError(f"No text of {self.settings.texts} has two tokens or more.")


def _ends_of_given(
    opened: OpenModel, given: Sequence[str], whole: Sequence[str], max_tokens: int
) -> list[int]:
    """The place of the last token that each text shares with what is given before it."""
    pairs = zip(*(encode_for(opened, texts, max_tokens) for texts in (given, whole)), strict=True)
    shared = (
        sum(1 for _ in takewhile(lambda two: two[0] == two[1], zip(*pair, strict=False)))
        for pair in pairs
    )
    return [max(0, count - 1) for count in shared]


def text_logits(
    opened: OpenModel,
    texts: Sequence[str],
    max_tokens: int,
    *,
    batch_tokens: int,
    which: slice = ALL,
    nouns: str = "",
) -> Iterator[list[tuple[int, torch.Tensor, torch.Tensor]]]:
    """Run a model over texts, in batches of equal length, longest first.

    Args:
        opened: The model.
        texts: The texts.
        max_tokens: They are cut at this many tokens, and at the model's positions.
        batch_tokens: About how many tokens are in memory at once.
        which: Which of the batches.
        nouns: What the note about cut texts calls them; see `encode_for`.

    Yields:
        For each text of a batch its index, its tokens int64 [length] and the logits [length,
        vocabulary].
    """
    encoded = encode_for(opened, texts, max_tokens, nouns)
    # The logits, tokens × vocabulary, take most of the memory.
    fitting = min(batch_tokens, opened.positions(MAX_LOGITS))
    for batch in equal_length_batches(encoded, fitting)[which]:
        ids = batch.input_ids.to(opened.device)
        with opened.whole_forwards():
            logits = opened.model(input_ids=ids, use_cache=False).logits
        yield list(zip(batch.indices, ids, logits, strict=True))


def next_log_p(logits: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
    """Log-probabilities of each token after the first, a few positions at a time.

    Args:
        logits: A text's, [length, vocabulary].

    Yields:
        Which of the length − 1 positions, and float32 [those positions, vocabulary].
    """
    places, rows = len(logits) - 1, max(1, _PIECE // logits.shape[-1])
    for start in range(0, places, rows):
        piece = slice(start, min(start + rows, places))
        yield piece, logits[piece].float().log_softmax(dim=-1)


def nll(logits: torch.Tensor, ids: torch.Tensor, start: int = 1) -> float:
    """The summed negative log-likelihood of a text's tokens, in nats.

    Args:
        logits: The text's, [length, vocabulary].
        ids: Its tokens, int64 [length].
        start: The first token that counts; the very first token never does.
    """
    losses = double(logits.new_zeros(len(ids) - 1))
    for piece, log_p in next_log_p(logits):
        losses[piece] = -double(log_p.gather(-1, ids[1:][piece].unsqueeze(-1)).squeeze(-1))
    return float(losses[max(0, start - 1) :].sum())
