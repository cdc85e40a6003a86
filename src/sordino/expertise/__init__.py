"""What a model's neurons know of a concept: the sweep, the AUROC, the artefact."""

from sordino.expertise.artefact import Expertise
from sordino.expertise.attribution import AttributionSettings
from sordino.expertise.find import SweepSettings, find_experts, plan_find

__all__ = ["AttributionSettings", "Expertise", "SweepSettings", "find_experts", "plan_find"]
