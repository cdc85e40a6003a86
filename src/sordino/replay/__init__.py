"""Real prompts to the original and the dampened server, side by side, over time."""

from sordino.replay.outcome import Look, ReplayOutcome, leaves_out_0, outcome_of
from sordino.replay.replay import ReplaySettings, about, replay
from sordino.replay.sequential import confidence_sequence
from sordino.replay.store import Answer, Pairs, Store

__all__ = [
    "Answer",
    "Look",
    "Pairs",
    "ReplayOutcome",
    "ReplaySettings",
    "Store",
    "about",
    "confidence_sequence",
    "leaves_out_0",
    "outcome_of",
    "replay",
]
