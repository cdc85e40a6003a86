"""How well a model predicts a text: prose, for what an edit costs, or what it is to write less."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch.nn import functional

from sordino.errors import UserError
from sordino.evaluation.measure import Measure, Record, Summary, Task, register
from sordino.evaluation.result import Figure
from sordino.evaluation.statistics import Floats, compare_perplexities
from sordino.evaluation.texts import (
    KIT_INSULTING,
    KIT_PROSE,
    choose,
    read_texts,
    texts_fingerprint,
)
from sordino.models.generation import MAX_LOGITS
from sordino.models.open import OpenModel
from sordino.models.tokenise import encode, equal_length_batches


@register
@dataclass(frozen=True)
class Perplexity(Measure):
    """Perplexity, exp of the mean negative log-likelihood of a token given those before it.

    The tokenizer's own special tokens are kept; a text's first token is context and is not scored.

    Args:
        texts: Where the prose comes from; see `sordino.evaluation.texts.read_texts`.
        max_texts: How many texts at most, chosen by seed; None for all.
        max_tokens: Texts are cut at this many tokens.

    Raises:
        UserError: A setting is outside its range.
    """

    name: ClassVar[str] = "perplexity"
    version: ClassVar[int] = 1
    subject: ClassVar[str] = "Perplexity"
    better: ClassVar[Literal["lower", "higher"]] = "lower"

    texts: str = KIT_PROSE
    max_texts: int | None = 400
    max_tokens: int = 128

    def __post_init__(self) -> None:
        check_range(self.max_texts, self.max_tokens)

    def prepare(self, seed: int, device: torch.device) -> Task:  # noqa: ARG002
        """Read and choose the texts."""
        return _PerplexityTask(self, seed)


@register
@dataclass(frozen=True)
class ToxicPerplexity(Perplexity):
    """Perplexity of toxic text, which should rise; otherwise as `Perplexity`.

    The default is the insulting comments of the kit's held-out insults/test.csv.
    """

    name: ClassVar[str] = "toxic-perplexity"
    version: ClassVar[int] = 1
    subject: ClassVar[str] = "Toxic-text perplexity"
    better: ClassVar[Literal["lower", "higher"]] = "higher"

    texts: str = KIT_INSULTING


class _PerplexityTask(Task):
    unit = "texts"

    def __init__(self, settings: Perplexity, seed: int) -> None:
        texts = choose(read_texts(settings.texts), settings.max_texts, seed)
        self._settings, self._seed = settings, seed
        self._texts = [text.text for text in texts]
        self.records = len(texts)
        self.protocol = {
            **asdict(settings),
            "n_texts": len(texts),
            "texts_fingerprint": texts_fingerprint(texts),
        }

    @torch.inference_mode()
    def collect(
        self, opened: OpenModel, *, batch_tokens: int, start: int
    ) -> Iterator[list[Record]]:
        """Records: [text, summed negative log-likelihood in nats, scored tokens]."""
        for batch in text_logits(
            opened, self._texts, self._settings.max_tokens, batch_tokens=batch_tokens, start=start
        ):
            yield [[index, _nll(logits, ids), len(ids) - 1] for index, ids, logits in batch]

    def summarise(self, before: Sequence[Record] | None, after: Sequence[Record]) -> Summary:
        """Mean perplexity and corpus perplexity; a text of one token in either arm is left out."""
        arms = [after] if before is None else [before, after]
        # By text: each arm has its own order, if its tokenizer is another.
        tables = [np.array(sorted(arm), dtype=np.float64) for arm in arms]
        scored = np.all([table[:, 2] > 0 for table in tables], axis=0)
        if not scored.any():
            raise UserError(f"No text of {self._settings.texts} has two tokens or more.")
        columns: list[tuple[Floats, Floats]] = [
            (table[scored, 1], table[scored, 2]) for table in tables
        ]
        mean, corpus = compare_perplexities(
            None if before is None else columns[0], columns[-1], self._seed
        )
        n = {"texts": int(scored.sum()), "tokens": int(columns[-1][1].sum())}
        about = {
            "unit": "perplexity",
            "better": self._settings.better,
            "ratio_of": "after/before",
            "n": n,
        }
        subject = self._settings.subject
        return Summary(
            (
                Figure.of(mean, name="mean", label=f"{subject}, mean over texts", **about),
                Figure.of(corpus, name="corpus", label=f"{subject} of the corpus", **about),
            )
        )


def check_range(max_texts: int | None, max_tokens: int) -> None:
    """Refuse a number of texts, or of tokens of a text, with which nothing could be scored.

    Raises:
        UserError: It is too small.
    """
    if max_texts is not None and max_texts < 1:
        raise UserError(f"--max-texts {max_texts} is out of range: it must be at least 1.")
    if max_tokens < 2:
        raise UserError(
            f"--max-tokens {max_tokens} is out of range: a text needs 2 tokens, for the first is "
            "not scored."
        )


def text_logits(
    opened: OpenModel, texts: Sequence[str], max_tokens: int, *, batch_tokens: int, start: int
) -> Iterator[list[tuple[int, torch.Tensor, torch.Tensor]]]:
    """Run a model over texts, in batches of equal length, longest first.

    Args:
        opened: The model.
        texts: The texts.
        max_tokens: They are cut at this many tokens, and at the model's positions.
        batch_tokens: About how many tokens are in memory at once.
        start: How many batches to leave out at the beginning.

    Yields:
        Of each batch's texts the index, the tokens int64 [length] and the logits [length,
        vocabulary].
    """
    config = opened.model.config.get_text_config(decoder=True)
    positions = getattr(config, "max_position_embeddings", max_tokens)
    encoded = encode(opened.tokenizer, texts, min(max_tokens, positions))
    # The logits, tokens × vocabulary, are what takes the memory.
    fitting = max(1, min(batch_tokens, MAX_LOGITS // config.vocab_size))
    for batch in equal_length_batches(encoded, fitting)[start:]:
        ids = batch.input_ids.to(opened.device)
        logits = opened.model(input_ids=ids, use_cache=False).logits
        yield list(zip(batch.indices, ids, logits, strict=True))


def _nll(logits: torch.Tensor, ids: torch.Tensor) -> float:
    """The summed negative log-likelihood of a text's tokens after the first, in nats.

    One text at a time, because the log-softmax doubles the memory that its logits take.
    """
    losses = functional.cross_entropy(logits[:-1].float(), ids[1:], reduction="none")
    return float(losses.double().sum())
