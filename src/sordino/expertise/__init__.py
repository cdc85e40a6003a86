"""How well a model's neurons recognise a concept: the sweep, the AUROC, the artefact."""

from sordino.expertise.artefact import Expertise
from sordino.expertise.attribution import AttributionSettings
from sordino.expertise.find import find_experts, plan_find
from sordino.expertise.own import OwnSettings
from sordino.expertise.sweep import SweepSettings

__all__ = [
    "AttributionSettings",
    "Expertise",
    "OwnSettings",
    "SweepSettings",
    "find_experts",
    "plan_find",
]
