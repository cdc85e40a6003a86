"""A concept without labelled sentences: the model writes them, and a judge labels them."""

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sordino.concepts.concept import FEWEST_PER_CLASS, Concept
from sordino.concepts.load import JUDGE, load_concept
from sordino.errors import UserError
from sordino.evaluation.evaluator import Prepared
from sordino.evaluation.opening import AUTO
from sordino.evaluation.own_samples import CONCEPT, OwnPlan
from sordino.evaluation.scorer import TOXIC_SCORE
from sordino.expertise.own import OwnSamples, OwnSettings, sample
from sordino.expertise.sweep import BATCH_TOKENS
from sordino.files import (
    drop_link,
    fingerprint,
    name_part,
    printable,
    staging_path,
    to_json,
    write_text,
)
from sordino.models.chat import Chat, template_fingerprint
from sordino.models.open import OpenModel
from sordino.models.ranks import Ranks
from sordino.progress import note
from sordino.version import __version__
from sordino.work import WorkFolder

_STEP = "judge"


@dataclass(frozen=True)
class JudgedSamples:
    """The sentences that a judge labelled.

    Args:
        concept: The concept that they make.
        own: The same samples as evidence of their own, which are not written again.
        file: The JSON Lines file that holds them, also a concept by itself.
    """

    concept: Concept
    own: OwnSettings
    file: Path

    def drop(self) -> None:
        """Remove the hidden folder, when the file has been copied and nothing else needs it."""
        shutil.rmtree(self.file.parent)


@dataclass(frozen=True)
class Judged:
    """A concept that needs no labels: the model's own samples are the sentences, a judge labels.

    A sample is positive if its score is above 0.5, and negative otherwise.

    Args:
        plan: How the samples are taken, and the scorer that judges them.
        max_per_class: The most sentences per class; see `sordino.load_concept`.
        balance: Reduce the larger class to the size of the smaller one.

    Raises:
        UserError: The plan has no scorer as its judge.

    Example:
        >>> plan = sordino.OwnPlan("prompts.txt", judge="wordlist", max_prompts=20)
        >>> sordino.Judged(plan).name
        'wordlist'
    """

    plan: OwnPlan
    max_per_class: int | None = None
    balance: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.plan, OwnPlan):
            raise UserError(
                "A judge needs a plan of what it judges: give "
                f"Judged(OwnPlan(judge={self.plan!r}))."
            )
        if self.plan.judge in ("", AUTO, CONCEPT):
            raise UserError(
                f"`concept={JUDGE}{self.plan.judge}` names no scorer: give one, such as "
                f"{JUDGE}yes-no:MODEL."
            )

    @property
    def name(self) -> str:
        """The concept's name: the scorer's, as a part of file names."""
        return name_part(re.sub(r"[^A-Za-z0-9._]+", "-", self.plan.judge))

    def samples(
        self,
        opened: OpenModel,
        output: Path,
        *,
        seed: int = 0,
        device: str = "auto",
        chat: Chat,
        measured: Prepared | None = None,
    ) -> JudgedSamples:
        """Let the model write, and the judge label what it wrote; done once for an output.

        With several processes (`sordino.models.ranks`) each returns the same sentences.

        Args:
            opened: The model.
            output: What the sentences are for; they wait in a hidden folder beside it, in which an
                interrupted call continues, until the caller has copied them and drops it.
            seed: Of the prompts, of the sampling, and of the sample of sentences.
            device: Where a text classifier runs.
            chat: See `OwnPlan.settings`; replies become conversations with the prompts before them.
            measured: The measures that will judge the edit.

        Raises:
            UserError: The plan cannot be carried out, or the judge does not find 20 sentences of
                each class.
        """
        ranks = Ranks()
        asked = self.plan.settings(None, seed=seed, device=device, chat=chat, measured=measured)
        folder = _folder(output)
        asked = replace(asked, journal=folder / f"{ranks.name}.jsonl")
        work = _begin(folder, opened, asked) if ranks.first else None
        file = folder / f"{self.name}.judged.jsonl"
        if not ranks.from_first(work is not None and work.holds(_STEP, file)):
            samples = sample(
                opened, asked, batch_tokens=BATCH_TOKENS, journal=asked.journal, ranks=ranks
            )
            lines = list(_rows(samples, asked, self.plan.judge))
            if work is not None:
                write_text(file, "".join(map(_to_line, lines)))
                work.done(_STEP, file)
        concept = ranks.from_first(self._read(file, opened, asked, seed) if ranks.first else None)
        assert concept is not None  # the first rank has read it
        return JudgedSamples(concept, asked, file)

    def _read(self, file: Path, opened: OpenModel, asked: OwnSettings, seed: int) -> Concept:
        found = load_concept(
            file, max_per_class=self.max_per_class, balance=self.balance, seed=seed
        )
        source = (
            f"what {printable(opened.ref.name)} itself wrote after {asked.source}: "
            f"positive where the score of {printable(self.plan.judge)} is above "
            f"{TOXIC_SCORE}"
        )
        return replace(found, name=self.name, source=source)


def _folder(output: Path) -> Path:
    """The hidden folder beside an output in which its sentences wait."""
    return drop_link(staging_path(output).with_suffix(".judged"))


def _begin(folder: Path, opened: OpenModel, asked: OwnSettings) -> WorkFolder:
    key = fingerprint(
        opened.ref.weights_fingerprint(),
        opened.dtype_name,
        str(opened.device),
        to_json(asked.metadata),
        template_fingerprint(opened) if asked.chat.settled(opened, otherwise=True) else "",
        __version__,
    )
    if work := WorkFolder.open(folder, key):
        return work
    shutil.rmtree(folder, ignore_errors=True)  # of other samples
    folder.mkdir(parents=True)
    work = WorkFolder(folder, key)
    work.write()
    return work


def _rows(samples: OwnSamples, asked: OwnSettings, judge: str) -> Iterator[dict[str, Any]]:
    """The rows of the file: one for each sample that is not empty."""
    scores = samples.scores.ravel()
    if scores.min() == scores.max():
        raise UserError(
            f"The judge {printable(judge)} gave all {scores.size:,} own samples the same score "
            f"({scores[0]:.3g}), so it tells none of them apart: give another judge or other "
            "`own_prompts`."
        )
    said = [(score, text) for score, text in zip(scores, samples.said, strict=True) if text.strip()]
    positives = sum(score > TOXIC_SCORE for score, _ in said)
    for found, side in ((positives, "above"), (len(said) - positives, "not above")):
        if found < FEWEST_PER_CLASS:
            raise UserError(
                f"The judge {printable(judge)} gave only {found:,} of {len(said):,} own samples a "
                f"score {side} {TOXIC_SCORE}, and {FEWEST_PER_CLASS} are needed: give more "
                "`own_prompts` or `own_continuations`, prompts that provoke it more often, or "
                "another judge."
            )
    if len(said) < scores.size:
        note(f"empty own samples left out: {scores.size - len(said):,} of {scores.size:,}")
    for row, (score, text) in enumerate(zip(scores, samples.said, strict=True)):
        if not text.strip():
            continue
        prompt = asked.prompts[samples.prompts[row // asked.continuations]]
        about = {"judged_by": judge, "label": int(score > TOXIC_SCORE), "score": round(score, 6)}
        if samples.template:
            turns = [("user", prompt), ("assistant", text)]
            said_so = {"messages": [{"role": who, "content": what} for who, what in turns]}
            yield about | said_so
        else:
            yield about | {"prompt": prompt, "text": text}


def _to_line(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"
