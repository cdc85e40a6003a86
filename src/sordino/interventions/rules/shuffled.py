"""The control: as much dampening as AurA's in each site, on neurons drawn by lot."""

import numpy as np

from sordino.expertise.artefact import Expertise
from sordino.expertise.statistic import Statistic
from sordino.interventions.registry import Factors, intervention
from sordino.interventions.rules.aura import aura_factor


@intervention()
def shuffled(expertise: Expertise, seed: int = 0) -> Factors:
    """AurA's factors permuted within each site: what is left is not the ranking's doing."""
    generator = np.random.default_rng(seed)
    return {
        site: generator.permutation(aura_factor(auroc))
        for site, auroc in expertise[Statistic.AUROC].items()
    }
