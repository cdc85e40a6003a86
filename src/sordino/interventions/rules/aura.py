"""AurA: dampen in proportion to expertise."""

import numpy as np
from numpy.typing import NDArray

from sordino.expertise.artefact import Expertise
from sordino.expertise.statistic import Statistic
from sordino.interventions.registry import Factors, intervention


def aura_factor(auroc: NDArray[np.float32]) -> NDArray[np.float32]:
    """1 − Gini = 1 − 2·(AUROC − ½) above ½, else 1 (and 1 where there is no AUROC).

    Source: Suau et al., 2024, arXiv:2407.12824.
    """
    with np.errstate(invalid="ignore"):
        return np.where(auroc > 0.5, 2 * (1 - auroc), np.float32(1)).astype(np.float32)


@intervention()
def aura(expertise: Expertise) -> Factors:
    """The paper's rule: multiply each neuron above chance by 1 − Gini. It has no settings."""
    return {site: aura_factor(auroc) for site, auroc in expertise[Statistic.AUROC].items()}
