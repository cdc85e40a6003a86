"""Real prompts sent to the original and the dampened server, and their answers over time."""

from sordino.replaying.outcome import Look, ReplayOutcome, outcome_of
from sordino.replaying.replay import ReplaySettings, about, ask_both
from sordino.replaying.store import Store

__all__ = [
    "Look",
    "ReplayOutcome",
    "ReplaySettings",
    "Store",
    "about",
    "ask_both",
    "outcome_of",
]
