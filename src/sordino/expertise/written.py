"""What the model itself writes after prompts: kept in a journal, and scored by a judge."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sordino import progress as show
from sordino.files import fingerprint, size
from sordino.journal import Journal
from sordino.models.chat import Replies
from sordino.models.generation import Continuation, GenerationBatch, Sampling, generate, plan
from sordino.models.open import OpenModel
from sordino.models.ranks import Ranks

# About how many tokens are sampled at once.
_BATCH_TOKENS = 8192

Row = tuple[int, int, tuple[int, ...], str, str]
"""A prompt's number, a continuation's, the tokens that the model chose, the text and why there is
none."""


class Judge(Protocol):
    """Scores what the model wrote; a scorer of `sordino.evaluation` is one."""

    name: str

    def record(self) -> Mapping[str, Any]:
        """The identity of the judge and its version, as JSON values."""
        ...

    def score(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """How much of the concept each text has, float64 [texts] from 0 to 1."""
        ...


@dataclass(frozen=True)
class ToWrite:
    """What the model is to write.

    Args:
        prompts: The token ids after which it continues.
        sampling: How tokens are chosen.
        continuations: Of each prompt.
        seed: Of the sampling.
        form: How replies are separated from what is around them; None for continuations.
    """

    prompts: Sequence[Sequence[int]]
    sampling: Sampling
    continuations: int
    seed: int
    form: Replies | None


def write(
    opened: OpenModel, asked: ToWrite, step: str, journal: Path | None, key: str, ranks: Ranks
) -> list[Row]:
    """Let the model write; all ranks have the same rows, by prompt and continuation.

    Args:
        opened: The model.
        asked: What it writes.
        step: What that is called, in the journal and while it is written.
        journal: A file in which finished batches are kept, so that an interrupted call continues.
        key: A hash of everything that decides what is written.
        ranks: The processes that share the work.
    """
    batches = plan(
        opened,
        asked.prompts,
        continuations=asked.continuations,
        new_tokens=asked.sampling.new_tokens,
        batch_tokens=_BATCH_TOKENS,
    )[ranks.rank :: ranks.size]  # none, if there are fewer batches than ranks
    _say_what_is_read(opened, batches, asked)
    ends = asked.form.ends if asked.form else ()
    # Streamed, the batches are other ones.
    kept = Journal(journal, key if opened.streamed is None else fingerprint(key, "streamed"))
    total = sum(len(batch.prompts) * len(batch.numbers) for batch in batches)
    done = kept.batches(step)
    left = batches[len(done) :]
    tracking = show.track(step, total, "continuations", sum(map(len, done)))
    try:
        with tracking if left else nullcontext(lambda _: None) as advance:
            for batch in left:
                [written] = generate(
                    opened, [batch], asked.sampling, seed=asked.seed, ends=ends, advance=advance
                )
                kept.add(step, [_row(opened, one, asked.form) for one in written])
    finally:
        kept.close()
    rows = chain.from_iterable(kept.batches(step))
    mine = ((prompt, number, tuple(chosen), *said) for prompt, number, chosen, *said in rows)
    return sorted(ranks.in_turn(iter(mine)))


def _say_what_is_read(
    opened: OpenModel, batches: Sequence[GenerationBatch], asked: ToWrite
) -> None:
    """A note about how much of a streamed model's files is read, at most."""
    if opened.streamed is None or not batches:
        return
    lengths = [[len(ids) for ids in batch.ids] for batch in batches]
    steps = sum(max(each) - min(each) + asked.sampling.new_tokens for each in lengths)
    once = size(sum(map(opened.streamed.stored, range(opened.streamed.layers))))
    show.note(
        f"each of {steps:,} tokens is a forward pass for up to "
        f"{max(len(batch.prompts) * len(batch.numbers) for batch in batches):,} continuations "
        f"together, and reads the layers' {once} from their files"
    )


def score_spoken(
    score: Callable[[Sequence[str]], NDArray[np.float64]], texts: Sequence[str], *columns: int
) -> NDArray[np.float64]:
    """The scores of texts, float64 [texts, *columns]; a text without words has 0 and is not judged.

    Args:
        score: Gives the scores of one or more texts, float64 [texts, *columns].
        texts: The texts.
        columns: How many scores a text has, if that is an axis of its own.
    """
    found = np.zeros((len(texts), *columns))
    spoken = [number for number, text in enumerate(texts) if text.strip()]
    if spoken:
        found[spoken] = score([texts[number] for number in spoken])
    return found


def _row(opened: OpenModel, written: Continuation, form: Replies | None) -> Row:
    said = written if form is None else form.cut(opened, written)
    chosen = written.chosen if form is None else form.deciding(opened, written)
    return said.prompt, said.number, chosen, said.text, said.missing
