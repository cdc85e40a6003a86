"""The paper's baselines: one factor for the k neurons of highest AUROC in the whole model."""

import numpy as np

from sordino.errors import UserError
from sordino.expertise.artefact import Expertise
from sordino.expertise.statistic import Statistic
from sordino.interventions.registry import Factors, intervention


@intervention(dial="k")
def damp(expertise: Expertise, k: int, factor: float = 0.5) -> Factors:
    """One factor (0.5 if not set) for the k neurons of highest AUROC."""
    if not 0 <= factor <= 1:
        raise UserError(f"damp takes a factor from 0 to 1, not {factor}.")
    return _top(expertise, k, factor)


@intervention(dial="k")
def det_zero(expertise: Expertise, k: int) -> Factors:
    """Silence the k neurons of highest AUROC."""
    return _top(expertise, k, 0.0)


def _top(expertise: Expertise, k: int, factor: float) -> Factors:
    if not 0 <= k <= expertise.neurons:
        raise UserError(f"k={k} is not between 0 and the {expertise.neurons} neurons there are.")
    factors = {site: np.ones_like(auroc) for site, auroc in expertise[Statistic.AUROC].items()}
    for site, index, _ in expertise.top(k):
        factors[site][index] = factor
    return factors
