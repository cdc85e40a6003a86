"""Rules that turn expertise into dampening factors, each one short pure function."""

from sordino.interventions.aura import aura
from sordino.interventions.dampening import Dampening
from sordino.interventions.registry import dampen, describe, intervention, names
from sordino.interventions.shuffled import shuffled
from sordino.interventions.top_k import damp, det_zero

__all__ = [
    "Dampening",
    "aura",
    "damp",
    "dampen",
    "describe",
    "det_zero",
    "intervention",
    "names",
    "shuffled",
]
