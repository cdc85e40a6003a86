"""Real prompts sent to the original and the dampened server, and their answers over time."""

from sordino.replaying.outcome import Look, ReplayOutcome, outcome_of
from sordino.replaying.replay import ReplaySettings, ask_both, describe_replay
from sordino.replaying.store import Store

__all__ = [
    "Look",
    "ReplayOutcome",
    "ReplaySettings",
    "Store",
    "ask_both",
    "describe_replay",
    "outcome_of",
]
