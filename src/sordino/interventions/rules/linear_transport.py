"""Linear-AcT: the affine map from the positive class's responses to the negative's."""

import numpy as np

from sordino.expertise.artefact import Expertise
from sordino.expertise.statistic import Statistic
from sordino.interventions.dampening import Affine
from sordino.interventions.registry import intervention

_NEEDS = (Statistic.MEAN_POSITIVE, Statistic.MEAN_NEGATIVE, Statistic.TRANSPORT_SCALE)


@intervention(_NEEDS, shifts=True)
def linear_transport(expertise: Expertise) -> Affine:
    """Linear-AcT: map every neuron's positive responses onto its negative ones, as a line can.

    z → ω·z + mean_negative − ω·mean_positive with ω the "transport_scale" of
    `sordino.expertise.moments`, for all neurons whatever their AUROC; a neuron with a response that
    was no finite number stays as it is. Source: Rodriguez et al., 2024, arXiv:2410.23054.
    Two things of the paper are not here, since weights cannot hold them: the map
    is used on all outputs and not only within the range that the positive responses had (the
    paper's transport support), and all layers are measured on the model as it is and not one after
    the other on the one edited so far (its causal estimation).
    """
    positive, negative = expertise[Statistic.MEAN_POSITIVE], expertise[Statistic.MEAN_NEGATIVE]
    factors, shifts = {}, {}
    for site, scale in expertise[Statistic.TRANSPORT_SCALE].items():
        with np.errstate(invalid="ignore"):
            shift = negative[site] - scale * positive[site]
        known = np.isfinite(scale) & np.isfinite(shift)
        factors[site] = np.where(known, scale, 1)
        shifts[site] = np.where(known, shift, 0)
    return Affine(factors, shifts)
