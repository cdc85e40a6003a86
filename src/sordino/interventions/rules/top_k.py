"""The paper's baselines: one factor for the k neurons of highest AUROC in the whole model."""

import numpy as np

from sordino.errors import UserError
from sordino.expertise.artefact import Expertise
from sordino.expertise.statistic import Statistic
from sordino.interventions.registry import Factors, intervention


@intervention(dial="k")
def damp(expertise: Expertise, k: int, factor: float = 0.5) -> Factors:
    """One factor (0.5 if not set) for the k neurons of highest AUROC, of those that have one."""
    if not 0 <= factor <= 1:
        raise UserError(f"damp takes a factor from 0 to 1, not {factor}.")
    return _top(expertise, k, factor)


@intervention(dial="k")
def det_zero(expertise: Expertise, k: int) -> Factors:
    """Silence the k neurons of highest AUROC, of those that have one."""
    return _top(expertise, k, 0.0)


def _top(expertise: Expertise, k: int, factor: float) -> Factors:
    if not 0 <= k <= expertise.neurons:
        raise UserError(f"k={k} is not between 0 and the {expertise.neurons} neurons there are.")
    factors = np.ones(expertise.neurons, np.float32)
    factors[expertise.best(k)] = factor
    sizes = [auroc.size for auroc in expertise[Statistic.AUROC].values()]
    return dict(zip(expertise.sites, np.split(factors, np.cumsum(sizes)[:-1]), strict=True))
