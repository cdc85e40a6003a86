"""Whether a model still knows which of two solutions works: a quick check for damage."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import ClassVar, Literal, NamedTuple

import numpy as np
import torch

from sordino import kit
from sordino.errors import require_at_least
from sordino.evaluation.measure import Column, Measure, Summary, Task, register
from sordino.evaluation.reading import nll, text_logits
from sordino.evaluation.result import Figure
from sordino.evaluation.statistics import compare_shares
from sordino.evaluation.tasks.kit_data import FILES, piqa
from sordino.evaluation.texts import choose
from sordino.files import fingerprint
from sordino.models.open import OpenModel
from sordino.models.tokenise import encode_for

_MOST_TOKENS = 256


@register
@dataclass(frozen=True)
class Piqa(Measure):
    """Share of PIQA's questions whose right answer is the likelier one (Bisk et al. 2020).

    It needs no optional package, and one minute where `zero-shot` needs several. Questions, prompt
    and metric are those of its task kit_piqa (acc_norm: log-likelihood per character).

    Args:
        questions: How many questions at most, chosen by seed; None for all 1,500.

    Raises:
        UserError: A setting is outside its range.
    """

    name: ClassVar[str] = "piqa"
    version: ClassVar[int] = 1
    title: ClassVar[str] = "PIQA"
    sentence: ClassVar[str] = "How many everyday questions it answers correctly: a look for damage."
    options: ClassVar[Mapping[str, str]] = {"questions": "questions"}
    budget: ClassVar[Literal["<=", ">=", ""]] = ">="
    columns: ClassVar[tuple[Column, ...]] = (Column("PIQA", "share", place=41),)

    questions: int | None = 400

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(1, questions=self.questions)

    def prepare(self, seed: int, device: torch.device) -> "_PiqaTask":  # noqa: ARG002
        """Read and choose the questions."""
        lines = kit.data_file(FILES["kit_piqa"]).read_text(encoding="utf-8").splitlines()
        rows = choose([piqa(json.loads(line)) for line in lines], self.questions, seed)
        return _PiqaTask(self, rows, seed)


class Answer(NamedTuple):
    """An answer's log-likelihood, in nats; answers 2·i and 2·i + 1 are question i's."""

    number: int
    log_p: float


class _PiqaTask(Task[Answer]):
    record = Answer
    unit = "answers"

    def __init__(self, settings: Piqa, rows: Sequence[Mapping[str, str | int]], seed: int) -> None:
        self._seed = seed
        self._right = [int(row["label"]) for row in rows]
        self._asked = [f"Question: {row['goal']}\nAnswer:" for row in rows for _ in range(2)]
        self._answers = [f" {row[key]}" for row in rows for key in ("sol1", "sol2")]
        self.records = len(self._answers)
        self.protocol = {
            **asdict(settings),
            "n_questions": len(rows),
            "questions_fingerprint": fingerprint(*self._asked, *self._answers),
        }

    @torch.inference_mode()
    def collect(
        self, opened: OpenModel, *, batch_tokens: int, which: slice
    ) -> Iterator[list[Answer]]:
        """The log-likelihood of each answer.

        Question and answer are tokenised together; the answer's tokens are those after the first n,
        where the question alone has n, as in lm-evaluation-harness.
        """
        whole = [q + a for q, a in zip(self._asked, self._answers, strict=True)]
        starts = [len(ids) for ids in encode_for(opened, self._asked, _MOST_TOKENS)]
        for batch in text_logits(
            opened, whole, _MOST_TOKENS, batch_tokens=batch_tokens, which=which
        ):
            yield [Answer(index, -nll(logits, ids, starts[index])) for index, ids, logits in batch]

    def summarise(self, before: Sequence[Answer] | None, after: Sequence[Answer]) -> Summary:
        """The share of questions answered correctly."""
        arms = {"before": before, "after": after}
        right = {name: self._correct(arm) for name, arm in arms.items() if arm is not None}
        figure = Figure.of(
            compare_shares(right.get("before"), right["after"], self._seed),
            name="accuracy",
            label="PIQA, questions answered right",
            unit="share",
            better="higher",
            ratio_of="before/after",
            n={"questions": len(self._right)},
        )
        return Summary((figure,))

    def _correct(self, records: Sequence[Answer]) -> np.ndarray:
        """1 for each question answered correctly, float64 [questions]."""
        each = np.array([one.log_p for one in sorted(records)])
        characters = np.array([len(answer) - 1 for answer in self._answers])  # without the space
        choice = (each / characters).reshape(-1, 2).argmax(axis=1)
        return (choice == np.array(self._right)).astype(np.float64)
