"""Rules that turn expertise into dampening factors, each one short pure function."""

from sordino.interventions.dampening import Affine, Dampening, Edit, compose
from sordino.interventions.registry import (
    RULES,
    dampen,
    dampening_from,
    family,
    intervention,
    sites_for,
)
from sordino.interventions.rules.aura import aura
from sordino.interventions.rules.contrast import contrast
from sordino.interventions.rules.linear_transport import linear_transport
from sordino.interventions.rules.mean_shift import mean_shift
from sordino.interventions.rules.selective import selective
from sordino.interventions.rules.shuffled import shuffled
from sordino.interventions.rules.stratified import stratified
from sordino.interventions.rules.top_k import damp, det_zero

__all__ = [
    "RULES",
    "Affine",
    "Dampening",
    "Edit",
    "aura",
    "compose",
    "contrast",
    "damp",
    "dampen",
    "dampening_from",
    "det_zero",
    "family",
    "intervention",
    "linear_transport",
    "mean_shift",
    "selective",
    "shuffled",
    "sites_for",
    "stratified",
]
