"""A conversation with two sides, as values, as a model's prompt and as Markdown."""

import re
from bisect import bisect_left
from collections.abc import Callable, Sequence
from functools import cache
from typing import Literal, Self

from pydantic import ConfigDict, Field, computed_field, model_validator

from sordino.errors import UserError
from sordino.evaluation.scorer import TOXIC_SCORE
from sordino.files import printable
from sordino.interventions.dampening import check_strength
from sordino.markdown import line, literal
from sordino.models.chat import Chat
from sordino.models.chat_template import (
    Message,
    Stopped,
    TemplateFailure,
    render,
    text_ids,
    texts_ids,
)
from sordino.models.generation import Sampling, encode_open, prompt_room
from sordino.models.open import OpenModel
from sordino.records import Record

Side = Literal["original", "quiet"]
SIDES: tuple[Side, Side] = ("original", "quiet")
Ended = Literal["end", "length", "stopped", "filtered"]

MOST_TURNS = 10_000
_MOST_NEW_TOKENS = 2**20
_NO_LIMIT = 10**9  # tokens; too long prompts are refused, not cut
# Four is usual, in some languages one or two.
_CHARACTERS_A_TOKEN = 16
# Tokenising this much text takes a second or two and cannot be interrupted.
MOST_CHARACTERS = 2**20


class Settings(Record):
    """The settings of an answer.

    Args:
        strength: The edit's strength, if hooks apply it; 1 is the edit as it was made.
        pre_prompt: Text before the conversation; "" for none.
        thinking: Whether a model may think first, with its thoughts as part of its answer; passed
            to its template.
        seed: Seed of the random numbers, which both sides share.
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
    thinking: bool = True
    seed: int = 0
    new_tokens: int = 128
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0

    @model_validator(mode="after")
    def _in_range(self) -> Self:
        # JavaScript's integers are exact up to here.
        if not 0 <= self.seed < 2**53:
            raise UserError(f"`seed={self.seed}` is out of range: it must be from 0 to 2^53 − 1.")
        check_strength(self.strength)
        if self.new_tokens > _MOST_NEW_TOKENS:
            raise UserError(
                f"`new_tokens={printable(str(self.new_tokens), 20)}` is out of range: it must be "
                f"at most {_MOST_NEW_TOKENS:,}."
            )
        self.make_sampling()  # which checks the other settings
        return self

    def make_sampling(self) -> Sampling:
        """How tokens are chosen; a `UserError` where a setting is out of range."""
        return Sampling(
            self.new_tokens, self.temperature, self.top_k, self.top_p, self.repetition_penalty
        )


class Answer(Record):
    """One side's answer.

    Args:
        text: The answer.
        ids: Its tokens, without the one that ended it.
        ended: "end" by the model itself, "length" at the largest number of tokens, "stopped" by
            the user, "filtered" by a server.
        left_out: How many of the first turns no longer fit into the model's context.
        score: Its score, from 0 to 1; None without a scorer, or if there is nothing to score.
        trouble: Why the scorer failed; "" if it did not.
        settings: The settings with which it was generated.
    """

    # The page sends computed fields back.
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
        """A remark on the answer: why it ended, and which turns no longer fit; "" for none."""
        said = {
            "end": "" if self.text.strip() else "the answer is empty",
            "length": f"cut at {self.settings.new_tokens} tokens",
            "stopped": "stopped",
            "filtered": "withheld by the server's content filter",
        }[self.ended]
        forgotten = {0: "", 1: "the first turn no longer fits"}.get(
            self.left_out, f"the first {self.left_out} turns no longer fit"
        )
        return "; ".join(filter(None, (said, forgotten)))


class Turn(Record):
    """A prompt, and the answers to it so far, by side."""

    prompt: str
    answers: dict[Side, Answer] = Field(default_factory=dict)

    def answered(self, side: Side, answer: Answer) -> "Turn":
        """The turn with that side's answer, which replaces an earlier one."""
        return self.model_copy(update={"answers": {**self.answers, side: answer}})


class Conversation(Record):
    """A conversation, as it is saved.

    Args:
        models: The name of each side's model.
        form: "chat" by the tokenizer's template, or "plain" continuation.
        hooks: Whether the quiet side is the original with hooks, or with a served adapter, at each
            answer's strength.
        scorer: The scorer's name; "" for none.
        turns: The turns.
    """

    models: dict[Side, str]
    form: Literal["chat", "plain"]
    hooks: bool
    scorer: str = ""
    turns: tuple[Turn, ...] = ()

    def markdown(self) -> str:
        """The conversation as Markdown."""
        lines = ["# A conversation, side by side", ""]
        lines += [f"- {side.capitalize()}: {line(self.models[side])}" for side in SIDES]
        lines += [f"- Judged by {line(self.scorer)}"] if self.scorer else []
        for number, turn in enumerate(self.turns, start=1):
            lines += ["", f"## {number}", "", _quote(turn.prompt)]
            for side in SIDES:
                if side in turn.answers:
                    lines += _quote_answer(side, turn.answers[side], self.hooks)
        return "\n".join(lines) + "\n"


def _quote_answer(side: Side, answer: Answer, hooks: bool) -> list[str]:
    how = answer.settings
    about = [
        *([f"strength {how.strength:g}"] if side == "quiet" and hooks else []),
        f"seed {how.seed}, temperature {how.temperature:g}",
        *([f"top-k {how.top_k}"] if how.top_k else []),
        *([f"top-p {how.top_p:g}"] if how.top_p < 1 else []),
        *([f"repetition penalty {how.repetition_penalty:g}"] * (how.repetition_penalty != 1)),
        *map(line, filter(None, (answer.verdict, answer.note))),
    ]
    before = ["After:", "", _quote(how.pre_prompt), ""] if how.pre_prompt else []
    heading = f"### {side.capitalize()} ({'; '.join(about)})"
    return ["", heading, "", *before, _quote(answer.text)]


def _quote(text: str) -> str:
    """Text as a Markdown quotation without markup of its own."""
    lines = re.split(r"\r\n?|\n", text)
    return "\n".join(f"> {_quote_line(one)}  ".rstrip(" ") + "  " for one in lines)


def _quote_line(text: str) -> str:
    words = text.strip()
    # Leading spaces would be dropped, or turn the line into code.
    return "&nbsp;" * (len(text) - len(text.lstrip())) + literal(words) if words else ""


def prompt_ids(
    opened: OpenModel,
    turns: Sequence[Turn],
    side: Side,
    settings: Settings,
    *,
    plain: bool,
    stopped: Callable[[], bool] = lambda: False,
) -> tuple[list[int], int]:
    """The tokens of the prompt for the last turn's answer.

    With a chat template, the pre-prompt is the system message, or precedes the first prompt if the
    template has no system message. Without one, the pre-prompt is a line before the first prompt,
    an answer continues where its prompt ends, and each further prompt is a new line.

    If a conversation is too long for the model, the prompt holds as many of its last turns as fit.
    Their number is found by bisection, since fewer turns have fewer tokens. Text with more than
    `_CHARACTERS_A_TOKEN` characters for each token of room, or more than `MOST_CHARACTERS`, is too
    long and is not tokenised.

    Args:
        opened: The model.
        turns: The conversation; answers in the last turn are ignored.
        side: Whose answers are the history.
        settings: The settings of the answer.
        plain: Whether to ignore the template.
        stopped: Called while the tokens are made.

    Returns:
        The tokens, and how many of the first turns were left out.

    Raises:
        UserError: The last prompt alone is too long or empty, or the template fails.
        Stopped: `stopped` returned True.
    """
    refuse_empty(turns)
    pre_prompt = settings.pre_prompt.strip()
    room = prompt_room(opened, settings.new_tokens)
    most = MOST_CHARACTERS if room is None else min(MOST_CHARACTERS, room * _CHARACTERS_A_TOKEN)
    told = _select_told(turns, side)

    @cache
    def tokens(left_out: int) -> list[int] | None:
        """The tokens of the remaining turns; None if their text is too long."""
        if plain:
            return _plainly(opened, told[left_out:], side, pre_prompt)
        messages = _messages(told[left_out:], side)
        try:
            form = Chat("on", thinking=settings.thinking)
            text = render(
                opened,
                messages,
                system=pre_prompt,
                variables=form.variables(),
                stopped=stopped,
            )
        except TemplateFailure as failure:
            raise advise(failure) from None
        return text_ids(opened, text) if len(text) <= most else None

    def fits(left_out: int) -> bool:
        if stopped():
            raise Stopped
        ids = tokens(left_out)
        return ids is not None and (room is None or len(ids) <= room)

    last, length = len(told) - 1, len(pre_prompt) + len(turns[-1].prompt)
    has = f"{length:,} characters"
    if length <= most:
        left_out = _hopeless(told, side, most, plain=plain)
        if not fits(left_out):
            left_out = bisect_left(range(len(told)), True, lo=left_out + 1, key=fits)
        ids = tokens(min(left_out, last))
        if ids is not None and left_out <= last:
            return _check_ids(opened, ids, "The prompt"), left_out
        has = has if ids is None else f"{len(ids):,} tokens"
    if room is None:
        raise UserError(f"The prompt has over {MOST_CHARACTERS:,} characters: shorten it.")
    raise UserError(
        f"The prompt has {has}, and {opened.ref.name} has room for {room:,} tokens before an "
        f"answer of {settings.new_tokens:,}: shorten it, or reduce `new_tokens`."
    )


def refuse_empty(turns: Sequence[Turn]) -> None:
    """Raise `UserError` if the last prompt is empty or the conversation too long."""
    if not turns or not turns[-1].prompt.strip():
        raise UserError("There is nothing to answer: write something.")
    if len(turns) > MOST_TURNS:
        raise UserError(
            f"The conversation has {len(turns):,} turns, more than {MOST_TURNS:,}: save it, and "
            "clear it."
        )


def said_before(turns: Sequence[Turn], side: Side) -> list[Message]:
    """One side's conversation as chat messages, up to the last prompt."""
    return _messages(_select_told(turns, side), side)


def _select_told(turns: Sequence[Turn], side: Side) -> list[Turn]:
    """The turns that this side answered, and the last one."""
    return [turn for turn in turns[:-1] if side in turn.answers] + [turns[-1]]


def advise(failure: TemplateFailure) -> UserError:
    """The error for a template that cannot be rendered."""
    return UserError(f"{failure.sentence}: `plain` ignores it.")


def _hopeless(told: Sequence[Turn], side: Side, most: int, *, plain: bool) -> int:
    """How many of the first turns cannot fit, since the later ones are too long already."""
    size = 0
    for left_out in range(len(told) - 1, 0, -1):
        turn = told[left_out - 1]
        answer = turn.answers[side]
        size += len(turn.prompt)
        size += len(answer.ids) * _CHARACTERS_A_TOKEN if plain else len(answer.text)
        if size > most:
            return left_out
    return 0


def _plainly(opened: OpenModel, turns: Sequence[Turn], side: Side, pre_prompt: str) -> list[int]:
    lead = f"{pre_prompt}\n" if pre_prompt else ""
    [ids] = encode_open(opened, [lead + turns[0].prompt], _NO_LIMIT)
    prompts = texts_ids(opened, [f"\n{turn.prompt}" for turn in turns[1:]])
    for before, prompt in zip(turns, prompts, strict=False):
        ids += _check_ids(opened, before.answers[side].ids, "An earlier answer")
        ids += prompt
    return ids


def _messages(turns: Sequence[Turn], side: Side) -> list[Message]:
    said: list[Message] = []
    for turn in turns[:-1]:
        said.append({"role": "user", "content": turn.prompt})
        said.append({"role": "assistant", "content": turn.answers[side].text})
    return [*said, {"role": "user", "content": turns[-1].prompt}]


def _check_ids(opened: OpenModel, ids: Sequence[int], what: str) -> list[int]:
    """Tokens from outside, if the model has them all."""
    if any(not 0 <= token < opened.vocabulary for token in ids):
        raise UserError(f"{what} has tokens that {opened.ref.name} lacks: clear the conversation.")
    return list(ids)
