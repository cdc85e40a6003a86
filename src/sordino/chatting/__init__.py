"""Two models that answer the same prompts with the same random numbers, side by side."""

from sordino.chatting.conversation import SIDES, Answer, Conversation, Settings, Side, Turn
from sordino.chatting.duet import Duet
from sordino.chatting.opening import open_duet
from sordino.chatting.voices import Answered, Said

__all__ = [
    "SIDES",
    "Answer",
    "Answered",
    "Conversation",
    "Duet",
    "Said",
    "Settings",
    "Side",
    "Turn",
    "open_duet",
]
