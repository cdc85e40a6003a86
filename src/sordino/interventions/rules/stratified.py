"""AurA on the AUROC within strata (of length, unless the data have others)."""

from sordino.expertise.artefact import Expertise
from sordino.expertise.statistic import Statistic
from sordino.interventions.registry import Factors, intervention
from sordino.interventions.rules.aura import aura_factor


@intervention([Statistic.STRATIFIED_AUROC])
def stratified(expertise: Expertise) -> Factors:
    """AurA with the AUROC within strata, such as sentences of similar length."""
    within = expertise[Statistic.STRATIFIED_AUROC]
    return {site: aura_factor(auroc) for site, auroc in within.items()}
