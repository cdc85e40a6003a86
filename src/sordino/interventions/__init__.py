"""Rules that turn expertise into dampening factors, each one short pure function."""

from sordino.interventions.aura import aura
from sordino.interventions.contrast import contrast
from sordino.interventions.dampening import Affine, Dampening, compose
from sordino.interventions.linear_transport import linear_transport
from sordino.interventions.mean_shift import mean_shift
from sordino.interventions.registry import (
    dampen,
    dampening_from,
    family,
    intervention,
    is_for_attention,
    names,
    needs_of,
    read_settings,
    sites_for,
)
from sordino.interventions.selective import selective
from sordino.interventions.shuffled import shuffled
from sordino.interventions.stratified import stratified
from sordino.interventions.top_k import damp, det_zero

__all__ = [
    "Affine",
    "Dampening",
    "aura",
    "compose",
    "contrast",
    "damp",
    "dampen",
    "dampening_from",
    "det_zero",
    "family",
    "intervention",
    "is_for_attention",
    "linear_transport",
    "mean_shift",
    "names",
    "needs_of",
    "read_settings",
    "selective",
    "shuffled",
    "sites_for",
    "stratified",
]
