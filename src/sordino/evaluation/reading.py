"""Texts that models read, for the measures that look at how well or how differently they do."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Self

import torch

from sordino.errors import UserError
from sordino.evaluation.measure import ALL, Measure
from sordino.evaluation.texts import KIT_PROSE, Text, choose, read_texts, texts_fingerprint
from sordino.models.generation import MAX_LOGITS
from sordino.models.memory import for_device
from sordino.models.open import OpenModel
from sordino.models.precision import double
from sordino.models.tokenise import encode_for, equal_length_batches

# Logits that are looked at together: 8 MiB in float32, so that what is made of them stays in the
# processor's cache, and in memory that is used again and not asked of the system anew.
_PIECE = 2**21


@dataclass(frozen=True)
class Reading(Measure):
    """The settings of a measure of what a model makes of texts, each from its second token on.

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
        if self.max_texts is not None and self.max_texts < 1:
            raise UserError(f"--max-texts {self.max_texts} is out of range: it must be at least 1.")
        if self.max_tokens < 2:
            raise UserError(
                f"--max-tokens {self.max_tokens} is out of range: a text needs 2 tokens, for the "
                "first is not scored."
            )


@dataclass(frozen=True)
class Reader:
    """Texts, and what models make of them.

    Args:
        settings: Which texts, and how long.
        texts: The texts that were chosen.
        seed: Of the intervals.
    """

    settings: Reading
    texts: list[Text]
    seed: int

    @classmethod
    def of(cls, settings: Reading, seed: int) -> Self:
        """A reader of the settings' texts, chosen by seed.

        Raises:
            UserError: The texts cannot be read.
        """
        texts = choose(read_texts(settings.texts), settings.max_texts, seed)
        return cls(settings, texts, seed)

    def protocol(self) -> dict[str, Any]:
        """All that decides what is read, as JSON values."""
        return {
            **asdict(self.settings),
            "n_texts": len(self.texts),
            "texts_fingerprint": texts_fingerprint(self.texts),
        }

    def read(
        self, opened: OpenModel, *, batch_tokens: int, which: slice
    ) -> Iterator[list[tuple[int, torch.Tensor, torch.Tensor]]]:
        """What the model makes of the texts, batch by batch; see `text_logits`."""
        return text_logits(
            opened,
            [text.text for text in self.texts],
            self.settings.max_tokens,
            batch_tokens=batch_tokens,
            which=which,
        )

    def nothing(self) -> UserError:
        """What is said where no text has a token that is scored."""
        return UserError(f"No text of {self.settings.texts} has two tokens or more.")


def text_logits(
    opened: OpenModel,
    texts: Sequence[str],
    max_tokens: int,
    *,
    batch_tokens: int,
    which: slice = ALL,
) -> Iterator[list[tuple[int, torch.Tensor, torch.Tensor]]]:
    """Run a model over texts, in batches of equal length, longest first.

    Args:
        opened: The model.
        texts: The texts.
        max_tokens: They are cut at this many tokens, and at the model's positions.
        batch_tokens: About how many tokens are in memory at once.
        which: Which of the batches.

    Yields:
        Of each batch's texts the index, the tokens int64 [length] and the logits [length,
        vocabulary].
    """
    config = opened.model.config.get_text_config(decoder=True)
    encoded = encode_for(opened, texts, max_tokens)
    # The logits, tokens × vocabulary, are what takes the memory.
    most_logits = for_device(MAX_LOGITS, opened.device)
    fitting = max(1, min(batch_tokens, most_logits // config.vocab_size))
    for batch in equal_length_batches(encoded, fitting)[which]:
        ids = batch.input_ids.to(opened.device)
        logits = opened.model(input_ids=ids, use_cache=False).logits
        yield list(zip(batch.indices, ids, logits, strict=True))


def next_log_p(logits: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
    """Log-probabilities of each token after the first, a few places at a time.

    Args:
        logits: A text's, [length, vocabulary].

    Yields:
        Which of the length − 1 places, and float32 [those places, vocabulary].
    """
    places, rows = len(logits) - 1, max(1, _PIECE // logits.shape[-1])
    for start in range(0, places, rows):
        piece = slice(start, min(start + rows, places))
        yield piece, logits[piece].float().log_softmax(dim=-1)


def nll(logits: torch.Tensor, ids: torch.Tensor) -> float:
    """The summed negative log-likelihood of a text's tokens after the first, in nats.

    Args:
        logits: The text's, [length, vocabulary].
        ids: Its tokens, int64 [length].
    """
    losses = double(logits.new_zeros(len(ids) - 1))
    for piece, log_p in next_log_p(logits):
        losses[piece] = -double(log_p.gather(-1, ids[1:][piece].unsqueeze(-1)).squeeze(-1))
    return float(losses.sum())
