"""Real prompts sent to the original and the dampened server, and their answers over time."""

from sordino.replaying.outcome import Look, ReplayOutcome, leaves_out_0, outcome_of
from sordino.replaying.replay import ReplaySettings, about, ask_both
from sordino.replaying.sequential import confidence_sequence
from sordino.replaying.store import Answer, Pairs, Store

__all__ = [
    "Answer",
    "Look",
    "Pairs",
    "ReplayOutcome",
    "ReplaySettings",
    "Store",
    "about",
    "ask_both",
    "confidence_sequence",
    "leaves_out_0",
    "outcome_of",
]
