"""Selective AurA: only neurons whose AUROC is above chance beyond sampling error."""

import numpy as np

from sordino.errors import UserError
from sordino.expertise.artefact import Expertise
from sordino.expertise.statistic import Statistic
from sordino.interventions.registry import Factors, intervention
from sordino.interventions.rules.aura import aura_factor


@intervention()
def selective(expertise: Expertise, rate: float = 0.05) -> Factors:
    """AurA for neurons significantly above chance, by a false discovery rate (0.05 if not set).

    By chance alone, the AUROC of p positive and n negative sentences has mean ½ and variance
    (p + n + 1) / (12·p·n) (Mann and Whitney, 1947; ties make it smaller, so that this errs on the
    side of leaving neurons alone). One-sided p-values over all neurons, Benjamini and Hochberg
    (1995).
    """
    from scipy.stats import false_discovery_control, norm  # late: it is slow to import

    if not 0 < rate < 1:
        raise UserError(f"selective takes a rate between 0 and 1, not {rate:g}.")
    positive, negative = (int(expertise.metadata[key]) for key in ("n_positive", "n_negative"))
    error = np.sqrt((positive + negative + 1) / (12 * positive * negative))
    sites = expertise[Statistic.AUROC]
    auroc = np.nan_to_num(np.concatenate(list(sites.values())), nan=0.5)
    known = false_discovery_control(norm.sf((auroc - 0.5) / error)) <= rate
    ends = np.cumsum([values.size for values in sites.values()])[:-1]
    return {
        site: np.where(keep, aura_factor(values), 1)
        for (site, values), keep in zip(sites.items(), np.split(known, ends), strict=True)
    }
