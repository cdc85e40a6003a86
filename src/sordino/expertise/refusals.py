"""The model's own refusals: what it replies to unsafe requests where it refuses them.

They are protected like texts (`sordino.expertise.attribution`), with one difference: only the
likelihood of the reply's tokens counts, given the request in the chat template.
"""

import json
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from pathlib import Path

from sordino import progress as show
from sordino.concepts.text_files import one_line
from sordino.errors import UserError
from sordino.expertise.artefact import REFUSALS
from sordino.expertise.written import Judge, ToWrite, score_spoken, write
from sordino.files import counted, fingerprint, to_json
from sordino.models.chat import Chat, Spoken, opening_ids, replies
from sordino.models.chat_template import has_template
from sordino.models.generation import Sampling
from sordino.models.open import OpenModel
from sordino.models.ranks import Ranks
from sordino.models.tokenise import Placed

FEWEST_REFUSALS = 20
"""With fewer, what a neuron does for refusals is not known well enough."""

_PROMPT_TOKENS = 128
_STEP = "own refusals"


@dataclass(frozen=True)
class RefusalSettings:
    """Which of the model's refusals are protected; see `sordino.evaluation.protection`.

    Args:
        prompts: Unsafe requests; none of them may be used for measuring.
        judge: Tells which replies refuse: those with a score above one half.
        source: Where the prompts come from, for the record.
        new_tokens: The most tokens of a reply. Refusals come at its beginning.
        journal: A file of this model's replies, which an earlier call with the same settings may
            have written; None for one that goes with the rest of the work.

    Raises:
        UserError: There are too few prompts.
    """

    prompts: tuple[str, ...]
    judge: Judge = field(repr=False)
    source: str = "given in Python"
    new_tokens: int = 32
    journal: Path | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if len(self.prompts) < FEWEST_REFUSALS:
            raise UserError(
                f"Only {counted(len(self.prompts), 'unsafe request')} of {self.source} can protect "
                f"the model's refusals, and at least {FEWEST_REFUSALS} are needed: measure fewer "
                "of them (`max_prompts`), or give others as `protect=refusals:FILE`."
            )
        Sampling(self.new_tokens)

    def apart_from(self, measured: Collection[str]) -> "RefusalSettings":
        """The settings without the requests that are measured.

        Args:
            measured: Texts, each in one line.

        Raises:
            UserError: Too few are left.
        """
        left = tuple(prompt for prompt in self.prompts if one_line(prompt) not in measured)
        if left != self.prompts:
            gone = len(self.prompts) - len(left)
            what = counted(gone, "unsafe request")
            show.note(f"protecting no refusal, because measured: {what}")
        return replace(self, prompts=left)

    @property
    def metadata(self) -> dict[str, str]:
        """Their entries in an artefact's metadata."""
        return {
            "refusals_prompts": self.source,
            "refusals_prompts_fingerprint": fingerprint(*self.prompts),
            "refusals_n_prompts": str(len(self.prompts)),
            "refusals_new_tokens": str(self.new_tokens),
            "refusals_judge_record": json.dumps(self.judge.record(), sort_keys=True),
        }


@dataclass(frozen=True)
class OwnRefusals:
    """The refusals among a model's replies.

    Args:
        texts: The requests in the template with the replies, whose tokens begin at `Placed.start`.
        said: The replies.
        asked: How many requests there were.
        name: The model's.
        metadata: Their entries in an artefact's metadata, beside those of `RefusalSettings`.
    """

    texts: list[Placed]
    said: list[str]
    asked: int
    name: str
    metadata: dict[str, str]

    @property
    def lacking(self) -> str:
        """Why they are too few to be protected, in the middle of a sentence; "" if they are not."""
        if len(self.texts) >= FEWEST_REFUSALS:
            return ""
        return (
            f"{self.name} refuses {len(self.texts):,} of {self.asked:,} unsafe requests, and its "
            f"refusals can be protected only if it refuses at least {FEWEST_REFUSALS}"
        )

    def refuse_few(self) -> None:
        """Raise `UserError` if they are too few to be protected."""
        if self.lacking:
            raise UserError(
                f"{self.lacking}: leave out `protect=refusals`, or give more requests as "
                "`protect=refusals:FILE`."
            )


def refuse_speechless(opened: OpenModel, chat: Chat) -> None:
    """Raise `UserError` if the model cannot be asked for replies."""
    if not has_template(opened):
        raise UserError(
            f"{opened.ref.name} has no chat template in which it could refuse a request: leave out "
            "`protect=refusals`."
        )
    if chat.use == "off":
        raise UserError(
            "The model refuses requests in its chat template: leave out `chat=off`, or "
            "`protect=refusals`."
        )


def find_refusals(
    opened: OpenModel,
    settings: RefusalSettings,
    chat: Chat,
    *,
    journal: Path | None,
    ranks: Ranks,
) -> OwnRefusals:
    """Let the model reply to unsafe requests by its likeliest tokens, and keep its refusals.

    Args:
        opened: The model.
        settings: Which requests, and what tells a refusal.
        chat: How the chat template is used.
        journal: A file in which finished batches are kept, so that an interrupted call continues.
        ranks: The processes that share the work.

    Raises:
        UserError: The model has no chat template, or has no room for the replies.
    """
    refuse_speechless(opened, chat)
    show.note(f"asking {opened.ref.name} {counted(len(settings.prompts), 'unsafe request')}")
    used = chat.settled(opened, otherwise=True)
    assert used is not None  # there is a template, and it is not switched off
    prompts = opening_ids(
        opened,
        [Spoken(prompt, role="user") for prompt in settings.prompts],
        used,
        max_tokens=_PROMPT_TOKENS,
        new_tokens=settings.new_tokens,
        nouns="unsafe requests",
    )
    sampling = Sampling(settings.new_tokens, temperature=0.0)
    asked = ToWrite(prompts, sampling, 1, 0, replies(opened, used))
    about = {f"{REFUSALS}_{name}": value for name, value in used.record(opened).items()}
    del about[f"{REFUSALS}_chat_role"]  # requests are the user's, whoever says the sentences
    key = fingerprint(to_json(settings.metadata | about))
    rows = write(opened, asked, _STEP, journal, key, ranks)
    refusing = score_spoken(settings.judge.score, [text for *_, text, _ in rows]) > 0.5
    kept = [row for row, refuses in zip(rows, refusing, strict=True) if refuses]
    about |= {
        f"{REFUSALS}_kept": str(len(kept)),
        f"{REFUSALS}_fingerprint": fingerprint(json.dumps([row[:3] for row in kept])),
    }
    show.note(f"it refuses {len(kept):,} of {len(rows):,} unsafe requests")
    return OwnRefusals(
        [Placed((*prompts[n], *chosen), len(prompts[n])) for n, _, chosen, *_ in kept],
        [text for *_, text, _ in kept],
        len(rows),
        opened.ref.name,
        about,
    )
