"""What was asked and answered on both sides, and how that reads to a model and to people."""

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal, Self

from jinja2 import TemplateError
from pydantic import BaseModel, ConfigDict, Field, computed_field, model_validator

from sordino.errors import UserError
from sordino.evaluation.judged import TOXIC_SCORE
from sordino.models.generation import Sampling, encode_open, prompt_room
from sordino.models.open import OpenModel

Side = Literal["original", "quiet"]
SIDES: tuple[Side, Side] = ("original", "quiet")
Ended = Literal["end", "length", "stopped"]

# No prompt has so many tokens: nothing is cut before it is known to be too long.
_ALL = 10**9


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Settings(_Value):
    """How an answer is asked for.

    Args:
        strength: Of the edit, where it is put on by hooks; 1 for the edit as it was made.
        pre_prompt: What stands before the conversation; "" for nothing.
        seed: Of the random numbers, which both sides share.
        new_tokens: See `sordino.models.generation.Sampling`, as for the rest.
        temperature: 0 takes the likeliest token.
        top_k: 0 for all tokens.
        top_p: 1 for all tokens.
        repetition_penalty: 1 for none.

    Raises:
        UserError: A setting is outside its range.
    """

    strength: float = 1.0
    pre_prompt: str = ""
    seed: int = 0
    new_tokens: int = 128
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0

    @model_validator(mode="after")
    def _in_range(self) -> Self:
        # The page's numbers are exact up to here.
        if not 0 <= self.seed < 2**53:
            raise UserError(f"--seed {self.seed} is out of range: it must be from 0 to 2^53.")
        if not 0 <= self.strength < float("inf"):
            raise UserError(f"--strength {self.strength:g} is out of range: it must be 0 or more.")
        _ = self.sampling  # checks the others
        return self

    @property
    def sampling(self) -> Sampling:
        """How tokens are chosen."""
        return Sampling(
            self.new_tokens, self.temperature, self.top_k, self.top_p, self.repetition_penalty
        )


class Answer(_Value):
    """What one side said.

    Args:
        text: The answer.
        ids: Its tokens, without the one that ended it.
        ended: "end" by the model itself, "length" at the most tokens, "stopped" by the user.
        left_out: How many of the conversation's first turns the model could not be given any more.
        score: The scorer's, from 0 to 1; None where there is no scorer or nothing to judge.
        trouble: Why the scorer gave none, if it failed.
        settings: How it was asked for.
    """

    # What is computed comes back with what was given out.
    model_config = ConfigDict(frozen=True, extra="ignore")

    text: str
    ids: tuple[int, ...]
    ended: Ended
    left_out: int = 0
    score: float | None = None
    trouble: str = ""
    settings: Settings

    @computed_field  # type: ignore[prop-decorator]
    @property
    def verdict(self) -> str:
        """The scorer's verdict in words; "" where there is none."""
        if self.trouble:
            return f"not judged: {self.trouble}"
        if self.score is None:
            return ""
        return f"{'toxic' if self.score > TOXIC_SCORE else 'not toxic'}, {self.score:.2f}"

    @computed_field  # type: ignore[prop-decorator]
    @property
    def note(self) -> str:
        """What is to be said about the answer beside its text; "" if nothing."""
        said = {
            "end": "" if self.text.strip() else "it said nothing and ended",
            "length": f"cut at {self.settings.new_tokens} tokens",
            "stopped": "stopped",
        }[self.ended]
        forgotten = {0: "", 1: "the first turn no longer fits"}.get(
            self.left_out, f"the first {self.left_out} turns no longer fit"
        )
        return "; ".join(filter(None, (said, forgotten)))


class Turn(_Value):
    """A prompt and the answers to it.

    Args:
        prompt: What the user wrote.
        answers: By side, as far as there are any.
    """

    prompt: str
    answers: dict[Side, Answer] = Field(default_factory=dict)

    def answered(self, side: Side, answer: Answer) -> "Turn":
        """The turn with that side's answer, in the place of an earlier one."""
        return self.model_copy(update={"answers": {**self.answers, side: answer}})


class Conversation(_Value):
    """A conversation, as it is saved.

    Args:
        models: What each side is, in words.
        form: "chat" by the tokenizer's template, or "plain" continuation.
        hooks: Whether the quiet side is hooks on the original, at each answer's strength.
        scorer: The scorer's name, "" for none.
        turns: The turns.
    """

    models: dict[Side, str]
    form: Literal["chat", "plain"]
    hooks: bool
    scorer: str = ""
    turns: tuple[Turn, ...] = ()

    def markdown(self) -> str:
        """The conversation to be read."""
        lines = ["# A conversation, side by side", ""]
        lines += [f"- {side.capitalize()}: {self.models[side]}" for side in SIDES]
        lines += [f"- Judged by {self.scorer}"] if self.scorer else []
        for number, turn in enumerate(self.turns, start=1):
            lines += ["", f"## {number}", "", _quoted(turn.prompt)]
            for side in SIDES:
                if side in turn.answers:
                    lines += _told(side, turn.answers[side], self.hooks)
        return "\n".join(lines) + "\n"


def _told(side: Side, answer: Answer, hooks: bool) -> list[str]:
    how = answer.settings
    about = [
        *([f"strength {how.strength:g}"] if side == "quiet" and hooks else []),
        f"seed {how.seed}, temperature {how.temperature:g}",
        *([f"top-k {how.top_k}"] if how.top_k else []),
        *([f"top-p {how.top_p:g}"] if how.top_p < 1 else []),
        *([f"repetition penalty {how.repetition_penalty:g}"] * (how.repetition_penalty != 1)),
        *filter(None, (answer.verdict, answer.note)),
    ]
    before = [f"(after: {how.pre_prompt})", ""] if how.pre_prompt else []
    heading = f"### {side.capitalize()} ({'; '.join(about)})"
    return ["", heading, "", *before, _quoted(answer.text)]


def _quoted(text: str) -> str:
    """Text as a Markdown quotation, in which nothing is markup."""
    return "\n".join(f"> {_literal(line)}  ".rstrip(" ") + "  " for line in text.split("\n"))


def _literal(line: str) -> str:
    """A line of text as Markdown shows it."""
    inner = re.sub(r"[\\`*_\[\]<>&~]", r"\\\g<0>", line.strip())
    inner = re.sub(r"^([#+=-]|\d+(?=[.)]))", _escaped_start, inner)
    # What stands at the start would be dropped, or make the line one of code.
    return "&nbsp;" * (len(line) - len(line.lstrip())) + inner if inner else ""


def _escaped_start(found: re.Match[str]) -> str:
    return f"{found[0]}\\" if found[0].isdigit() else f"\\{found[0]}"


def has_template(opened: OpenModel) -> bool:
    """Whether the model's tokenizer says how a conversation is written."""
    return bool(opened.tokenizer.chat_template)


def prompt_ids(
    opened: OpenModel, turns: Sequence[Turn], side: Side, settings: Settings, *, plain: bool
) -> tuple[list[int], int]:
    """The tokens after which the last turn's answer stands.

    By the chat template, the pre-prompt is the system's message, or stands before the first prompt
    where the template has no such thing. Plainly, the pre-prompt is a line of its own before the
    first prompt, an answer goes on where its prompt ends, and each further prompt is a new line.

    Args:
        opened: The model.
        turns: The conversation; what the last turn has of answers does not matter.
        side: Whose answers are the history.
        settings: How the answer is asked for.
        plain: Whether the template is left aside.

    Returns:
        The tokens, and how many of the first turns had to be left out of them to fit.

    Raises:
        UserError: The last prompt alone is too long, says nothing, or the template fails.
    """
    if not turns or not turns[-1].prompt.strip():
        raise UserError("There is nothing to answer: write something.")
    room = prompt_room(opened, settings.new_tokens)
    # What has no answer of this side was never part of its conversation.
    told = [turn for turn in turns[:-1] if side in turn.answers] + [turns[-1]]
    form = _plainly if plain else _by_template
    for left_out in range(len(told)):
        ids = form(opened, told[left_out:], side, settings.pre_prompt.strip())
        if room is None or len(ids) <= room:
            return ids, left_out
    raise UserError(
        f"The prompt has {len(ids):,} tokens, and {opened.ref.name} has room for {room:,} before "
        f"an answer of {settings.new_tokens:,}: shorten it, or ask for fewer --new-tokens."
    )


def _plainly(opened: OpenModel, turns: Sequence[Turn], side: Side, pre_prompt: str) -> list[int]:
    lead = f"{pre_prompt}\n" if pre_prompt else ""
    [ids] = encode_open(opened, [lead + turns[0].prompt], _ALL)
    for before, turn in pairwise(turns):
        ids = [*ids, *_known(opened, before.answers[side].ids), *_as_is(opened, f"\n{turn.prompt}")]
    return ids


def _by_template(
    opened: OpenModel, turns: Sequence[Turn], side: Side, pre_prompt: str
) -> list[int]:
    said: list[dict[str, str]] = []
    for turn in turns[:-1]:
        said.append({"role": "user", "content": turn.prompt})
        said.append({"role": "assistant", "content": turn.answers[side].text})
    said.append({"role": "user", "content": turns[-1].prompt})
    return _as_is(opened, _rendered(opened, said, pre_prompt))


def _rendered(opened: OpenModel, messages: list[dict[str, str]], pre_prompt: str) -> str:
    if pre_prompt:
        system = {"role": "system", "content": pre_prompt}
        try:
            text = _fill_in(opened, [system, *messages])
        except TemplateError:  # such as of a template that refuses the role
            text = ""
        if pre_prompt in text:
            return text
        first = {"role": "user", "content": f"{pre_prompt}\n\n{messages[0]['content']}"}
        messages = [first, *messages[1:]]
    try:
        return _fill_in(opened, messages)
    except TemplateError as error:
        raise UserError(
            f"The chat template of {opened.ref.name} cannot be filled in ({error}): --plain leaves "
            "it aside."
        ) from None


def _fill_in(opened: OpenModel, messages: list[dict[str, str]]) -> str:
    text: Any = opened.tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True
    )
    return str(text)


def _as_is(opened: OpenModel, text: str) -> list[int]:
    """The tokens of a text to which the tokenizer adds nothing of its own."""
    return list(opened.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _known(opened: OpenModel, ids: Sequence[int]) -> Sequence[int]:
    """The tokens of an earlier answer, which come from outside and might be another model's."""
    size = opened.model.config.get_text_config(decoder=True).vocab_size
    if any(not 0 <= token < size for token in ids):
        raise UserError(f"An earlier answer has tokens that {opened.ref.name} lacks: clear first.")
    return ids
