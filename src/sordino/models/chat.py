"""Texts in a model's chat template: the tokens of a message, prompts, and the end of a reply.

The sweep, attribution, measures and the chat page all use this module. To find what the template
writes around a message, the conversation is written once more with a mark in the message's place:
what is before and behind the mark is the template's.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from sordino.errors import UserError
from sordino.files import counted, printable
from sordino.models.chat_template import (
    Message,
    TemplateFailure,
    fingerprint_of,
    has_template,
    render,
    template_text,
    text_ids,
    texts_ids,
)
from sordino.models.generation import Continuation, prompt_room
from sordino.models.open import OpenModel
from sordino.models.tokenise import Placed, note_cut, positions, refuse_unknown
from sordino.progress import note

Use = Literal["auto", "on", "off"]
Role = Literal["assistant", "user"]

ASKED = "Write a short text."
"""What the user says before a sentence that is the assistant's turn."""

_MARK = "Sordino0marks0this0place"
_NEXT = "Sordino1marks1the1next"
# The headers of gpt-oss's channels, and the tags of all others' thoughts.
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+).*?<\|message\|>", re.DOTALL)
_CHANNEL_END = re.compile(r"<\|(?:end|return|call|start)\|>.*", re.DOTALL)
_FINAL = "final"
_THINK, _THOUGHT = "<think>", "</think>"
# What the template writes between turns counts as a heading if it is at least this long.
_SHORTEST_HEADING = 4


@dataclass(frozen=True)
class Chat:
    """Whether and how a model's chat template is used.

    Args:
        use: "on", "off", or "auto", which the command that uses it decides.
        role: Whose turn a sentence is, "assistant" or "user".
        system: The system message; "" for none.
        thinking: Whether a model's thoughts before its reply are part of it; if not, the template
            is asked for no thoughts, and any that come are cut off.

    Raises:
        UserError: One of them is unknown.

    Example:
        >>> settings = sordino.SweepSettings(chat=sordino.Chat("on", system="Be brief."))
        >>> settings.chat.role
        'assistant'
    """

    use: Use = "auto"
    role: Role = "assistant"
    system: str = ""
    thinking: bool = False

    def __post_init__(self) -> None:
        for name, value, known in (
            ("chat", self.use, get_args(Use)),
            ("role", self.role, get_args(Role)),
        ):
            if value not in known:
                raise UserError(
                    f"`{name}={printable(value)}` is unknown: choose {', '.join(known)}."
                )

    @property
    def given(self) -> tuple[str, ...]:
        """The names of what is not as by default, beside `use`."""
        usual = Chat(self.use)
        names = ("role", "system", "thinking")
        return tuple(name for name in names if getattr(self, name) != getattr(usual, name))

    def settled(self, opened: OpenModel, *, otherwise: bool) -> "Chat | None":
        """The same with "auto" decided, or None where the template is not used.

        Args:
            opened: The model.
            otherwise: What "auto" means, for a model that has a template.

        Raises:
            UserError: `use` is "on", and there is no template.
        """
        if self.use == "on" and not has_template(opened):
            raise UserError(f"{opened.ref.name} has no chat template: leave out `chat=on`.")
        wanted = self.use == "on" or (self.use == "auto" and otherwise and has_template(opened))
        return replace(self, use="on") if wanted else None

    def variables(self) -> dict[str, bool]:
        """The template's variables beside the conversation."""
        return {"enable_thinking": self.thinking}

    def record(self, opened: OpenModel) -> dict[str, str]:
        """What decides about results, to be kept beside them."""
        return {
            "chat_role": self.role,
            "chat_system": self.system,
            "chat_thinking": "kept" if self.thinking else "skipped",
            "chat_template": template_fingerprint(opened),
        }


RAW = Chat("off")
"""Texts as they are."""

AS_SEES_FIT = Chat()
"""A chat template if the caller's default is one, without a system message."""


@dataclass(frozen=True)
class Spoken:
    """A turn of a conversation, and the messages before it.

    Args:
        text: The turn's text.
        before: The messages before it, as (role, text).
        role: Whose turn it is; "" for `Chat.role`. If that is the assistant, the user says `ASKED`
            before.
    """

    text: str
    before: tuple[tuple[str, str], ...] = ()
    role: str = ""

    def messages(self, chat: Chat) -> list[Message]:
        """The whole conversation."""
        role, before = self.role or chat.role, self.before
        if not self.role and role == "assistant":
            before = (("user", ASKED),)
        return [{"role": who, "content": said} for who, said in (*before, (role, self.text))]


def template_fingerprint(opened: OpenModel) -> str:
    """A fingerprint of a model's chat template, sixteen letters.

    Raises:
        UserError: There is none that could be filled in.
    """
    return fingerprint_of(template_text(opened))


def place(opened: OpenModel, turns: Sequence[Spoken], chat: Chat, max_tokens: int) -> list[Placed]:
    """The tokens of conversations up to the end of their last turns, and where these begin.

    The tokens of a turn are those that have a character of its text. The template may drop or add
    something (white space at the ends, a thought). What it writes behind the text is not among the
    tokens: it makes no difference to a causal model.

    Args:
        opened: The model.
        turns: The last turn of each conversation.
        chat: How the template is used.
        max_tokens: The most tokens of a turn itself.

    Raises:
        UserError: The template or the tokenizer does not allow it, or a conversation is too long
            for the model.
    """
    texts, spans, changed = [], [], 0
    frames: dict[tuple[object, ...], _Frame] = {}
    for number, turn in enumerate(turns, start=1):
        which = f"text {number} of {len(turns)}"
        key = (turn.before, turn.role)
        frame = frames.get(key) or frames.setdefault(key, _frame(opened, turn, chat, which))
        text = _fill(opened, turn.messages(chat), chat)
        start, end = frame.inside(opened, text, which)
        changed += text[start:end].strip() != turn.text.strip()
        texts.append(text)
        spans.append((start, end))
    if changed:
        note(f"the chat template of {opened.ref.name} changes {counted(changed, 'text')}")
    return _own_tokens(opened, texts, spans, max_tokens)


@dataclass(frozen=True)
class _Frame:
    """What a template writes around a message.

    Args:
        before: All text before it.
        behind: All text behind it.
    """

    before: str
    behind: str

    def inside(self, opened: OpenModel, text: str, which: str) -> tuple[int, int]:
        """The positions at which the message begins and ends in a text."""
        start, end = len(self.before), len(text) - len(self.behind)
        framed = text.startswith(self.before) and text.endswith(self.behind)
        if not framed or not text[start:end].strip():
            what = "leaves out" if framed else "treats unlike other texts"
            raise UserError(
                f"The chat template of {opened.ref.name} {what} {which}, so its tokens cannot be "
                "located: remove it from the data, or use `chat=off`."
            )
        return start, end


def _frame(opened: OpenModel, turn: Spoken, chat: Chat, which: str) -> _Frame:
    if chat.system and any(role == "system" for role, _ in turn.before):
        raise UserError(
            f"The conversation of {which} has a system message of its own: leave out `system`."
        )
    messages = replace(turn, text=_MARK).messages(chat)
    text = _fill(opened, messages, chat)
    if text.count(_MARK) != 1:
        role = printable(messages[-1]["role"])
        often = f"{text.count(_MARK)} times" if _MARK in text else "nowhere"
        raise UserError(
            f"The chat template of {opened.ref.name} puts a message of the role {role} {often}: it "
            "may know other roles; choose another `role`, or `chat=off`."
        )
    before, _, behind = text.partition(_MARK)
    return _Frame(before, behind)


def _fill(
    opened: OpenModel, messages: Sequence[Message], chat: Chat, *, ahead: bool = False
) -> str:
    try:
        return render(
            opened,
            messages,
            system=chat.system,
            add_generation_prompt=ahead,
            variables=chat.variables(),
        )
    except TemplateFailure as failure:
        raise UserError(f"{failure.sentence}: use `chat=off`, or another `role`.") from None


def opening_ids(
    opened: OpenModel,
    prompts: Sequence[Spoken],
    chat: Chat,
    *,
    max_tokens: int,
    new_tokens: int,
    nouns: str = "prompts",
) -> list[list[int]]:
    """The tokens after which a model replies to each prompt.

    A note says how many prompts are cut.

    Args:
        opened: The model.
        prompts: The user's last message in each conversation.
        chat: How the template is used.
        max_tokens: The most tokens of a prompt, which is cut there; what is before it not counted.
        new_tokens: The most tokens of a reply.
        nouns: What the note calls the prompts, in the plural.

    Raises:
        UserError: The template does not allow it, or a conversation is too long for the model.
    """
    room = prompt_room(opened, new_tokens)
    texts = [
        _fill(opened, replace(turn, text=text, role="user").messages(chat), chat, ahead=True)
        for turn, text in zip(prompts, _cut(opened, prompts, max_tokens, nouns), strict=True)
    ]
    encoded = texts_ids(opened, texts)
    for number, ids in enumerate(encoded, start=1):
        if room is not None and len(ids) > room:
            raise UserError(
                f"Prompt {number} of {len(prompts)} has {len(ids):,} tokens in the chat template "
                f"of {opened.ref.name}, which has room for {room:,} before a reply of "
                f"{new_tokens:,}: shorten it, or use fewer `turns` or `new_tokens`."
            )
    refuse_unknown(opened, encoded)
    return encoded


def _cut(opened: OpenModel, prompts: Sequence[Spoken], max_tokens: int, nouns: str) -> list[str]:
    """The prompts' texts, each cut at `max_tokens`."""
    texts = [turn.text for turn in prompts]
    long = [n for n, ids in enumerate(texts_ids(opened, texts)) if len(ids) > max_tokens]
    note_cut(opened, len(long), len(texts), nouns, max_tokens)
    if long:
        _, offsets = _with_offsets(opened, [texts[n] for n in long])
        for number, of_one in zip(long, offsets, strict=True):
            texts[number] = texts[number][: of_one[max_tokens - 1][1]]
    return texts


@dataclass(frozen=True)
class Replies:
    """How a model's replies are separated from what it writes around them.

    Args:
        ends: The tokens that end a turn, beside those that end a text.
        heading: What comes before the next turn; "" where a token marks the end.
        thinks: Whether the template begins a thought for the model.
        keeps: Whether thoughts are part of a reply.
    """

    ends: frozenset[int]
    heading: str
    thinks: bool
    keeps: bool

    def cut(self, opened: OpenModel, written: Continuation) -> Continuation:
        """The reply in what a model wrote: without the next turn, and without its thoughts.

        It is missing if the model was still thinking at the last token.
        """
        assert written.ids is not None
        whole = _decode(opened, written.ids)
        parts = _channels(whole) if _CHANNEL.search(whole) else self._split_thought(whole)
        if parts is None:
            return replace(written, text=self._before_heading(written.text))
        thought, reply = (_strip_specials(opened, part) for part in parts)
        kept = "\n\n".join(filter(None, (thought.strip(), reply))) if self.keeps else reply
        if not kept and not parts[1]:
            return replace(written, text="", missing="no reply: still thinking at the last token")
        return replace(written, text=self._before_heading(kept))

    def deciding(self, opened: OpenModel, written: Continuation) -> tuple[int, ...]:
        """The tokens on which a reply depends: all up to the one, or the heading, that ended it.

        Thoughts are among them, since the reply followed from them.
        """
        ids = written.chosen
        if not self.heading or self.heading not in _decode(opened, ids):
            return ids
        said = (n for n in range(1, len(ids)) if self.heading in _decode(opened, ids[:n]))
        return ids[: next(said, len(ids))]

    def _split_thought(self, whole: str) -> tuple[str, str] | None:
        """The thought and the reply; None where nothing was thought."""
        if _THOUGHT in whole:
            thought, _, reply = whole.rpartition(_THOUGHT)
        elif self.thinks or whole.lstrip().startswith(_THINK):
            thought, reply = whole, ""
        else:
            return None
        return thought.strip().removeprefix(_THINK), reply.lstrip()

    def _before_heading(self, text: str) -> str:
        if not self.heading or self.heading not in text:
            return text
        return text.partition(self.heading)[0].rstrip()


def without_thoughts(written: Continuation, chat: Chat) -> Continuation:
    """What a server wrote, which has its own template, without the thoughts in it."""
    if chat.thinking or written.missing or _THOUGHT not in written.text:
        return written
    return replace(written, text=written.text.rpartition(_THOUGHT)[2].lstrip())


def replies(opened: OpenModel, chat: Chat) -> Replies:
    """How replies are separated, found by trying the template.

    Raises:
        UserError: The template cannot be filled in.
    """
    prompt: list[Message] = [{"role": "user", "content": ASKED}]
    said: list[Message] = [*prompt, {"role": "assistant", "content": _MARK}]
    begun = _fill(opened, prompt, chat, ahead=True).rpartition(ASKED)[2]
    behind = _fill(opened, said, chat).rpartition(_MARK)[2]
    try:
        followed = _fill(opened, [*said, {"role": "user", "content": _NEXT}], chat)
    except UserError:  # a template of one turn
        followed = ""
    between = followed.partition(_MARK)[2].partition(_NEXT)[0]
    ends = _ending(opened, behind) | (_ending(opened, between) if not behind.strip() else set())
    heading = "" if ends or len(between.strip()) < _SHORTEST_HEADING else between.strip()
    thinks = begun.rfind(_THINK) > begun.rfind(_THOUGHT)
    return Replies(frozenset(ends), heading, thinks, chat.thinking)


def _ending(opened: OpenModel, behind: str) -> set[int]:
    """The token that ends a turn, from the text behind it; none if that is plain text."""
    ids = text_ids(opened, behind.strip())[:1]
    return set(ids) & {*opened.tokenizer.added_tokens_decoder, *opened.tokenizer.all_special_ids}


def _channels(whole: str) -> tuple[str, str]:
    """What gpt-oss writes in its other channels, and in the final one."""
    headers = list(_CHANNEL.finditer(whole))
    ends = [*(header.start() for header in headers[1:]), len(whole)]
    parts = [
        (header[1], _CHANNEL_END.sub("", whole[header.end() : end]))
        for header, end in zip(headers, ends, strict=True)
    ]
    thought = "\n\n".join(text for name, text in parts if name != _FINAL)
    return thought, "\n\n".join(text for name, text in parts if name == _FINAL)


def _decode(opened: OpenModel, ids: Sequence[int]) -> str:
    """The text of tokens, with the names of special ones."""
    return str(
        opened.tokenizer.decode(
            list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
    )


def _strip_specials(opened: OpenModel, text: str) -> str:
    """A text without the names of special tokens."""
    for token in opened.tokenizer.all_special_tokens:
        text = text.replace(token, "")
    return text


def _own_tokens(
    opened: OpenModel,
    texts: Sequence[str],
    spans: Sequence[tuple[int, int]],
    max_tokens: int,
) -> list[Placed]:
    room = positions(opened.model)
    placed, cut = [], 0
    for ids, offsets, span in zip(*_with_offsets(opened, texts), spans, strict=True):
        own = [n for n, (low, high) in enumerate(offsets) if low < span[1] and high > span[0]]
        first, end = own[0], own[-1] + 1
        if room is not None and first >= room:
            raise UserError(
                f"A conversation has {first:,} tokens before its last turn, and {opened.ref.name} "
                f"has {room:,} positions: shorten it."
            )
        most = min(end, first + max_tokens)
        if room is not None and most > room:
            most, cut = room, cut + 1
        placed.append(Placed(tuple(ids[:most]), first))
    if room is not None:
        note_cut(opened, cut, len(texts), "conversations", room)
    refuse_unknown(opened, [one.ids for one in placed])
    return placed


def _with_offsets(
    opened: OpenModel, texts: Sequence[str]
) -> tuple[list[list[int]], list[list[tuple[int, int]]]]:
    """The tokens of texts, and the first and last character of each."""
    if not getattr(opened.tokenizer, "is_fast", False):
        raise UserError(
            f"The tokenizer of {opened.ref.name} does not say which characters a token has: "
            "use its fast form (tokenizer.json), or `chat=off`."
        )
    found = opened.tokenizer(
        list(texts), add_special_tokens=False, return_offsets_mapping=True, verbose=False
    )
    return found["input_ids"], found["offset_mapping"]
