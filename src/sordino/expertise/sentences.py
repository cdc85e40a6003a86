"""A concept's sentences as a model's input: plain, or in its chat template."""

from collections.abc import Mapping, Sequence

from sordino.concepts.concept import Concept
from sordino.errors import UserError
from sordino.models.chat import Chat, Spoken, place, template_fingerprint
from sordino.models.chat_template import has_template
from sordino.models.open import OpenModel
from sordino.models.tokenise import Placed, encode_for
from sordino.progress import note


def chat_for(opened: OpenModel, concept: Concept, chat: Chat) -> Chat | None:
    """How the model's chat template is applied to a concept's sentences; None if it is not.

    Raises:
        UserError: They are conversations, and the template is missing or switched off.
    """
    talks = bool(concept.contexts)
    if talks and (chat.use == "off" or not has_template(opened)):
        why = "`chat=off`" if chat.use == "off" else f"{opened.ref.name} has no chat template"
        raise UserError(
            f"The concept '{concept.name}' consists of conversations, which need a chat template: "
            f"{why}."
        )
    return chat.settled(opened, otherwise=talks)


def encode_sentences(
    opened: OpenModel,
    concept: Concept,
    max_tokens: int,
    chat: Chat | None,
    which: Sequence[int] | None = None,
) -> list[Placed]:
    """The tokens of a concept's sentences.

    Args:
        opened: The model.
        concept: The sentences.
        max_tokens: A sentence is cut at this many tokens.
        chat: How the chat template is applied; None for plain sentences.
        which: Which of the sentences; None for all.

    Raises:
        UserError: The tokenizer or the template cannot represent a sentence.
    """
    chosen = range(len(concept.sentences)) if which is None else which
    if chat is None or not concept.contexts:
        return encode_texts(opened, [concept.sentences[n] for n in chosen], max_tokens, chat)
    turns = [Spoken(concept.sentences[n], *concept.contexts[n]) for n in chosen]
    return place(opened, turns, chat, max_tokens)


def encode_texts(
    opened: OpenModel, texts: Sequence[str], max_tokens: int, chat: Chat | None
) -> list[Placed]:
    """The tokens of texts that are not part of a conversation; see `encode_sentences`."""
    if chat is None:
        return [Placed(tuple(ids)) for ids in encode_for(opened, texts, max_tokens)]
    return place(opened, [Spoken(text) for text in texts], chat, max_tokens)


def chat_of(opened: OpenModel, metadata: Mapping[str, str]) -> Chat | None:
    """How the chat template was applied when an expertise was found, from its metadata.

    Raises:
        UserError: The model has another chat template now.
    """
    if "chat_template" not in metadata:
        return None
    chat = Chat(
        "on",
        "user" if metadata.get("chat_role") == "user" else "assistant",
        metadata.get("chat_system", ""),
        metadata.get("chat_thinking") == "kept",
    )
    chat.settled(opened, otherwise=True)
    if template_fingerprint(opened) != metadata["chat_template"]:
        raise UserError(
            f"{opened.ref.name} has another chat template than when the expertise was found: find "
            "it again."
        )
    return chat


def say_how_read(opened: OpenModel, chat: Chat | None, asked: Chat) -> None:
    """Note whether sentences are read in the chat template, if the model has one.

    Args:
        opened: The model.
        chat: How the template is applied; None for plain sentences.
        asked: How it was asked to be.
    """
    if chat is not None:
        note(f"sentences are read as the {chat.role}'s turn in the chat template")
    elif has_template(opened):
        note("sentences are read without the model's chat template (chat on would apply it)")
    for name in asked.given if chat is None else ():
        note(f"warning: `{name}` decides nothing about sentences outside a chat template.")
