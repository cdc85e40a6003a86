"""Mean shift: the difference of the classes' means, added."""

from sordino.expertise.artefact import Expertise
from sordino.expertise.moments import MEAN_SHIFT
from sordino.expertise.statistic import Statistic
from sordino.interventions.dampening import Affine
from sordino.interventions.registry import intervention
from sordino.interventions.transport import transport

_NEEDS = (Statistic.MEAN_POSITIVE, Statistic.MEAN_NEGATIVE)


@intervention(_NEEDS, shifts=True)
def mean_shift(expertise: Expertise) -> Affine:
    """Add to every neuron its mean in the negative class minus that in the positive class.

    z → z + mean_negative − mean_positive, for all neurons whatever their AUROC, except those with
    a response that is not finite. It is the transport map between distributions that differ in
    their means alone (the mean transport, Mean-AcT, of Rodriguez et al., 2024, arXiv:2410.23054,
    table 1; as a vector, the difference-of-means steering of Rimsky et al., 2023,
    arXiv:2312.06681). With an expertise that was measured with `causal="mean_shift"`, layers were
    measured one after the other, each on the model edited so far, as in the former paper.
    """
    return transport(expertise, MEAN_SHIFT, _NEEDS)
