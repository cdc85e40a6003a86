"""The permuted control: as much dampening in each site as AurA's, on random neurons."""

import numpy as np

from sordino.expertise.artefact import Expertise
from sordino.expertise.statistic import Statistic
from sordino.interventions.registry import Factors, intervention
from sordino.interventions.rules.aura import aura_factor


@intervention()
def shuffled(expertise: Expertise, seed: int = 0) -> Factors:
    """AurA's factors, randomly permuted within each site: the effect without the ranking."""
    generator = np.random.default_rng(seed)
    return {
        site: generator.permutation(aura_factor(auroc))
        for site, auroc in expertise[Statistic.AUROC].items()
    }
