"""Mean shift: the difference of the classes' means, added."""

import numpy as np

from sordino.expertise.artefact import Expertise
from sordino.expertise.statistic import Statistic
from sordino.interventions.dampening import Affine
from sordino.interventions.registry import intervention


@intervention([Statistic.MEAN_POSITIVE, Statistic.MEAN_NEGATIVE], shifts=True)
def mean_shift(expertise: Expertise) -> Affine:
    """Shift every neuron by its mean in the negative class less that in the positive class.

    z → z + mean_negative − mean_positive, for all neurons whatever their AUROC; none where a
    response was no finite number. It is the transport map between distributions that differ in
    their means alone (the mean transport of Rodriguez et al., 2024, arXiv:2410.23054, table 1; as a
    vector, the difference-of-means steering of Rimsky et al., 2023, arXiv:2312.06681).
    """
    positive, negative = expertise[Statistic.MEAN_POSITIVE], expertise[Statistic.MEAN_NEGATIVE]
    factors, shifts = {}, {}
    for site, mean in positive.items():
        with np.errstate(invalid="ignore"):
            shift = negative[site] - mean
        factors[site] = np.ones_like(shift)
        shifts[site] = np.where(np.isfinite(shift), shift, 0)
    return Affine(factors, shifts)
