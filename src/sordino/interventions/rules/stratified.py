"""AurA on the AUROC within strata (of length, unless the data have others)."""

from sordino.expertise.artefact import Expertise
from sordino.interventions.registry import Factors, intervention
from sordino.interventions.rules.aura import aura_factor


@intervention("strata")
def stratified(expertise: Expertise) -> Factors:
    """AurA's factors of the AUROC within strata, such as sentences of like length."""
    return {site: aura_factor(auroc) for site, auroc in expertise["stratified_auroc"].items()}
