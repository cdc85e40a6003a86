"""Selective AurA: only neurons whose AUROC is above chance beyond sampling error."""

import numpy as np
from numpy.typing import NDArray

from sordino.errors import UserError
from sordino.expertise.artefact import Expertise
from sordino.expertise.statistic import REACHED, Statistic
from sordino.interventions.registry import Factors, intervention
from sordino.interventions.rules.aura import aura_factor


@intervention()
def selective(expertise: Expertise, rate: float = 0.05) -> Factors:
    """AurA for neurons significantly above chance, by a false discovery rate (0.05 if not set).

    By chance alone, the AUROC of p positive and n negative sentences has mean ½ and variance
    (p + n + 1) / (12·p·n) (Mann and Whitney, 1947; ties make it smaller, so that this errs on the
    side of leaving neurons alone). One-sided p-values over all neurons, Benjamini and Hochberg
    (1995). Of an MoE expert's neuron, the sentences are those that reached the expert.
    """
    from scipy.stats import false_discovery_control, norm  # late: it is slow to import

    if not 0 < rate < 1:
        raise UserError(f"selective takes a rate between 0 and 1, not {rate:g}.")
    sites = expertise[Statistic.AUROC]
    error = np.concatenate([_sampling_error(expertise, site) for site in sites])
    auroc = np.nan_to_num(np.concatenate(list(sites.values())), nan=0.5)
    known = false_discovery_control(norm.sf((auroc - 0.5) / error)) <= rate
    ends = np.cumsum([values.size for values in sites.values()])[:-1]
    return {
        site: np.where(keep, aura_factor(values), 1)
        for (site, values), keep in zip(sites.items(), np.split(known, ends), strict=True)
    }


def _sampling_error(expertise: Expertise, site: str) -> NDArray[np.float64]:
    """The standard error of each neuron's AUROC by chance alone, float64 [neurons].

    Older files do not say how many sentences reached an expert, so there it is by all of them.
    """
    of = expertise.statistics[site]
    positive, negative = (
        of.get(name, np.full(of[Statistic.AUROC].size, int(expertise.metadata[key]))).astype(float)
        for name, key in zip(REACHED, ("n_positive", "n_negative"), strict=True)
    )
    with np.errstate(divide="ignore"):  # nothing is known of an expert that nothing reached
        return np.asarray(np.sqrt((positive + negative + 1) / (12 * positive * negative)))
