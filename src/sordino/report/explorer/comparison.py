"""Two expertises of the same sites, neuron by neuron."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from sordino.errors import UserError
from sordino.expertise.artefact import Expertise
from sordino.report.summary import locate

TOP = 0.01
"""The share of neurons, by AUROC, that counts as high."""
_LISTED = 12


@dataclass(frozen=True)
class Shared:
    """One neuron in both expertises, with its AUROC in each."""

    site: str
    index: int
    first: float
    second: float


@dataclass(frozen=True)
class Comparison:
    """How far two expertises agree.

    Args:
        neurons: How many neurons have an AUROC in both.
        correlation: Spearman's rank correlation of the AUROCs; NaN if either is constant.
        by_kind: The same for each kind of site.
        high: How many neurons count as high in each.
        overlap: How many are high in both.
        both: Neurons that are high in both, ordered by the smaller of their two AUROCs.
        first: Neurons that are high in the first alone, ordered by the difference.
        second: Neurons that are high in the second alone, likewise.
    """

    neurons: int
    correlation: float
    by_kind: dict[str, float]
    high: int
    overlap: int
    both: tuple[Shared, ...]
    first: tuple[Shared, ...]
    second: tuple[Shared, ...]

    @property
    def expected(self) -> float:
        """The number of neurons that would be high in both by chance."""
        return self.high**2 / self.neurons


def compare(first: Expertise, second: Expertise) -> Comparison:
    """Compare two expertises neuron by neuron.

    Raises:
        UserError: They have different sites, or sites of different sizes.
    """
    one, other = first["auroc"], second["auroc"]
    sizes = [{site: values.size for site, values in of.items()} for of in (one, other)]
    if sizes[0] != sizes[1]:
        differing = next(
            site for site in (*sizes[0], *sizes[1]) if sizes[0].get(site) != sizes[1].get(site)
        )
        raise UserError(
            f"The two differ in their sites (such as {differing}), so their neurons do not "
            "correspond: compare two concepts in one model, or two models of one shape."
        )
    a, b = (np.concatenate([of[site] for site in one]).astype(np.float64) for of in (one, other))
    kinds = np.concatenate([np.full(n, locate(site)[1], object) for site, n in sizes[0].items()])
    known = np.flatnonzero(~np.isnan(a) & ~np.isnan(b))
    high = max(1, round(TOP * known.size))
    in_first, in_second = (_highest(of, known, high) for of in (a, b))

    def listed(among: NDArray[np.bool_], by: NDArray[np.float64]) -> tuple[Shared, ...]:
        places = np.flatnonzero(among)
        best = places[np.argsort(-by[places], kind="stable")[:_LISTED]]
        return tuple(_make_shared(first.sites, list(sizes[0].values()), int(i), a, b) for i in best)

    return Comparison(
        int(known.size),
        _correlation(a[known], b[known]),
        {
            kind: _correlation(a[of], b[of])
            for kind in dict.fromkeys(kinds)
            if (of := known[kinds[known] == kind]).size
        },
        high,
        int(np.count_nonzero(in_first & in_second)),
        listed(in_first & in_second, np.minimum(a, b)),
        listed(in_first & ~in_second, a - b),
        listed(in_second & ~in_first, b - a),
    )


def _highest(values: NDArray[np.float64], known: NDArray[np.intp], count: int) -> NDArray[np.bool_]:
    """Whether each neuron is one of the `count` highest; ties go to the earlier one."""
    found = np.zeros(values.size, bool)
    found[known[np.argsort(-values[known], kind="stable")[:count]]] = True
    return found


def _correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    if a.size < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    return float(spearmanr(a, b).statistic)


def _make_shared(
    sites: Sequence[str],
    sizes: Sequence[int],
    position: int,
    a: NDArray[np.float64],
    b: NDArray[np.float64],
) -> Shared:
    ends = np.cumsum(sizes)
    site = int(np.searchsorted(ends, position, side="right"))
    index = position - int(ends[site] - sizes[site])
    return Shared(sites[site], index, float(a[position]), float(b[position]))
