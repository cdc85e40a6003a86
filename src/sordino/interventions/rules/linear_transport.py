"""Linear-AcT: the affine map from the positive class's responses to the negative's."""

from sordino.expertise.artefact import Expertise
from sordino.expertise.moments import LINEAR_TRANSPORT
from sordino.expertise.statistic import Statistic
from sordino.interventions.dampening import Affine
from sordino.interventions.registry import intervention
from sordino.interventions.transport import transport

_NEEDS = (Statistic.MEAN_POSITIVE, Statistic.MEAN_NEGATIVE, Statistic.TRANSPORT_SCALE)


@intervention(_NEEDS, shifts=True)
def linear_transport(expertise: Expertise) -> Affine:
    """Linear-AcT: the affine map of every neuron's positive responses onto its negative ones.

    z → ω·z + mean_negative − ω·mean_positive with ω the "transport_scale" of
    `sordino.expertise.moments`, for all neurons whatever their AUROC; a neuron with a response that
    is not finite stays as it is. Source: Rodriguez et al., 2024, arXiv:2410.23054.
    With an expertise that was measured with `causal="linear_transport"`, layers were measured one
    after the other, each on the model edited so far, as in the paper. One thing
    differs from the paper, because weights cannot hold it: the map applies to all outputs, and not
    only within the range of the positive responses (the paper's transport support).
    """
    return transport(expertise, LINEAR_TRANSPORT, _NEEDS)
