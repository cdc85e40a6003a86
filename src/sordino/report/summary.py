"""The numbers behind the page's charts and tables: all neurons in a few hundred rows."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sordino.expertise.artefact import Expertise
from sordino.expertise.statistic import Statistic
from sordino.interventions.dampening import Dampening

_BIN = 0.01


@dataclass(frozen=True)
class Group:
    """The figures of a group of neurons.

    Args:
        layer: Index of the decoder layer, or None if the group spans all layers.
        kind: The site's path inside its layer, such as "mlp.up_proj".
        neurons: How many neurons.
        above: The share with an AUROC above 0.5.
        p99: 99th percentile of the AUROC.
        largest: Largest AUROC.
        changed: The share with a factor other than 1 or a shift other than 0.
        mean_factor: Mean dampening factor.
        mean_shift: Mean absolute shift; 0 without shifts.
    """

    layer: int | None
    kind: str
    neurons: int
    above: float
    p99: float
    largest: float
    changed: float
    mean_factor: float
    mean_shift: float


@dataclass(frozen=True)
class Histogram:
    """Counts in bins of equal width, and the edges of the bins, one more than counts."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]

    @property
    def bins(self) -> list[tuple[float, float, int]]:
        """Each bin's two edges and its count."""
        return list(zip(self.edges, self.edges[1:], self.counts, strict=False))


def locate(site: str) -> tuple[int, str]:
    """A site's layer and its kind, from its module path.

    The first number in the path is the layer. Later ones, which number parallel parts of a layer,
    become "*".

    Example:
        >>> locate("model.layers.3.mlp.up_proj")
        (3, 'mlp.up_proj')
    """
    found = re.search(r"(?:^|\.)(\d+)\.(.+)$", site)
    if found is None:
        return 0, site
    return int(found[1]), re.sub(r"(?<=\.)\d+(?=\.)", "*", found[2])


def kinds(expertise: Expertise) -> list[str]:
    """The kinds of site, in the model's order."""
    return list(_sites_of(expertise))


def overall(expertise: Expertise, dampening: Dampening) -> Group:
    """All neurons as one group."""
    return _group(None, "all", expertise, dampening, expertise.sites)


def by_kind(expertise: Expertise, dampening: Dampening) -> list[Group]:
    """One group for each kind of site."""
    return [
        _group(None, kind, expertise, dampening, sites)
        for kind, sites in _sites_of(expertise).items()
    ]


def by_layer(expertise: Expertise, dampening: Dampening) -> list[Group]:
    """One group for each layer and kind of site, in the model's order."""
    parts: dict[tuple[int, str], list[str]] = {}
    for site in expertise.sites:
        parts.setdefault(locate(site), []).append(site)
    return [
        _group(layer, kind, expertise, dampening, sites) for (layer, kind), sites in parts.items()
    ]


def auroc_histograms(expertise: Expertise) -> dict[str, Histogram]:
    """The distribution of the AUROC by kind of site; 0.5 is an edge between two bins."""
    aurocs = {
        kind: _finite(
            np.concatenate([expertise.statistics[site][Statistic.AUROC] for site in sites])
        )
        for kind, sites in _sites_of(expertise).items()
    }
    values = np.concatenate([*aurocs.values(), np.array([0.5])])
    low, high = np.floor(values.min() / _BIN), min(np.floor(values.max() / _BIN) + 1, 1 / _BIN)
    edges = np.arange(low, high + 1) * _BIN
    return {kind: _histogram(values, edges) for kind, values in aurocs.items()}


def factor_histogram(dampening: Dampening) -> Histogram:
    """The distribution of the factors other than 1."""
    changed = changed_factors(dampening)
    low = min(0.0, float(changed.min(initial=0.0)))
    high = max(1.0, float(changed.max(initial=1.0)))
    return _histogram(changed, np.linspace(low, high, 51))


def changed_factors(dampening: Dampening) -> NDArray[np.float64]:
    """All factors other than 1, the smallest first."""
    factors = np.concatenate(list(dampening.factors.values()))
    return np.sort(factors[factors != 1]).astype(np.float64)


def factor_of(dampening: Dampening, site: str, index: int) -> float:
    """One neuron's factor; 1 where the dampening does not name its site."""
    factors = dampening.factors.get(site)
    return 1.0 if factors is None else float(factors[index])


def shift_of(dampening: Dampening, site: str, index: int) -> float:
    """One neuron's shift; 0 where the dampening does not name its site."""
    shifts = dampening.shifts.get(site)
    return 0.0 if shifts is None else float(shifts[index])


def shift_sizes(dampening: Dampening) -> NDArray[np.float64]:
    """The sizes of all shifts other than 0, the smallest first."""
    shifts = [values[values != 0] for values in dampening.shifts.values()]
    return np.sort(np.abs(np.concatenate([*shifts, np.zeros(0, np.float32)]))).astype(np.float64)


def _sites_of(expertise: Expertise) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for site in expertise.sites:
        found.setdefault(locate(site)[1], []).append(site)
    return found


def _group(
    layer: int | None,
    kind: str,
    expertise: Expertise,
    dampening: Dampening,
    sites: Sequence[str],
) -> Group:
    every = [expertise.statistics[site][Statistic.AUROC] for site in sites]
    auroc = _finite(np.concatenate(every))
    factors, shifts = (
        np.concatenate(
            [
                of.get(site, np.full(values.size, otherwise, np.float32))
                for site, values in zip(sites, every, strict=True)
            ]
        )
        for of, otherwise in ((dampening.factors, 1), (dampening.shifts, 0))
    )
    return Group(
        layer,
        kind,
        factors.size,
        float(np.mean(auroc > 0.5)),
        float(np.quantile(auroc, 0.99)),
        float(auroc.max()),
        float(np.mean((factors != 1) | (shifts != 0))),
        float(np.mean(factors, dtype=np.float64)),
        float(np.mean(np.abs(shifts), dtype=np.float64)),
    )


def _finite(auroc: NDArray[np.float32]) -> NDArray[np.float64]:
    """The AUROCs that are numbers; a site without any counts as one neuron at chance."""
    known = auroc[~np.isnan(auroc)].astype(np.float64)
    return known if known.size else np.array([0.5])


def _histogram(values: NDArray[np.float64], edges: NDArray[np.float64]) -> Histogram:
    counts, _ = np.histogram(values, edges)
    return Histogram(tuple(np.round(edges, 10).tolist()), tuple(counts.tolist()))
