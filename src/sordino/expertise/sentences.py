"""A concept's sentences as a model reads them: as they are, or in its chat template."""

from collections.abc import Mapping, Sequence

from sordino.concepts.concept import Concept
from sordino.errors import UserError
from sordino.models.chat import Chat, Spoken, place, template_fingerprint
from sordino.models.chat_template import has_template
from sordino.models.open import OpenModel
from sordino.models.tokenise import Placed, encode_for
from sordino.progress import note


def chat_for(opened: OpenModel, concept: Concept, chat: Chat) -> Chat | None:
    """How a concept's sentences stand in the model's chat template; None where they do not.

    Raises:
        UserError: They are conversations, and the template is missing or not wanted.
    """
    talks = bool(concept.contexts)
    if talks and (chat.use == "off" or not has_template(opened)):
        why = "`chat=off`" if chat.use == "off" else f"{opened.ref.name} has no chat template"
        raise UserError(
            f"The concept '{concept.name}' is of conversations, which need a chat template: {why}."
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
        max_tokens: A sentence is cut at so many tokens.
        chat: How they stand in the chat template; None for as they are.
        which: Which of the sentences; None for all.

    Raises:
        UserError: A sentence cannot be written by the tokenizer or by the template.
    """
    chosen = range(len(concept.sentences)) if which is None else which
    if chat is None or not concept.contexts:
        return encode_texts(opened, [concept.sentences[n] for n in chosen], max_tokens, chat)
    turns = [Spoken(concept.sentences[n], *concept.contexts[n]) for n in chosen]
    return place(opened, turns, chat, max_tokens)


def encode_texts(
    opened: OpenModel, texts: Sequence[str], max_tokens: int, chat: Chat | None
) -> list[Placed]:
    """The tokens of texts that stand for themselves; the rest as for `encode_sentences`."""
    if chat is None:
        return [Placed(tuple(ids)) for ids in encode_for(opened, texts, max_tokens)]
    return place(opened, [Spoken(text) for text in texts], chat, max_tokens)


def chat_of(opened: OpenModel, metadata: Mapping[str, str]) -> Chat | None:
    """How the sentences stood with which an expertise was found, by its metadata.

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
            f"The chat template of {opened.ref.name} is not the one that the expertise was found "
            "with: find it again."
        )
    return chat


def say_how_read(opened: OpenModel, chat: Chat | None) -> None:
    """Say in one line how sentences are read by a model that could be given them otherwise."""
    if chat is not None:
        note(f"sentences stand as the {chat.role}'s turn in the chat template")
    elif has_template(opened):
        note("sentences are read as they are; with chat on, they stand in the chat template")
