"""The figures of all neurons for the page's script, as typed arrays in base64."""

from base64 import b64encode
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sordino.expertise.artefact import Expertise
from sordino.interventions.dampening import Dampening
from sordino.report.summary import kinds, locate

_CODES = 32767


def exact(values: NDArray[np.floating[Any]]) -> str:
    """float32, little-endian, as base64."""
    return b64encode(values.astype("<f4").tobytes()).decode()


def coarse(values: NDArray[np.floating[Any]], rest: float) -> dict[str, Any] | None:
    """Values in two bytes each: value = rest + step · code, within half a step.

    Only a value that equals `rest` has the code 0, so that the page counts exactly what changed.

    Args:
        values: Finite numbers.
        rest: The value that means "unchanged".

    Returns:
        `codes` (int16 in base64), `step` and `rest`; None if all values equal `rest`.
    """
    apart = values.astype(np.float64) - rest
    widest = float(np.abs(apart).max(initial=0.0))
    if widest == 0:
        return None
    step = widest / _CODES
    codes = np.rint(apart / step)
    codes = np.where((codes == 0) & (apart != 0), np.sign(apart), codes)
    packed = b64encode(codes.astype("<i2").tobytes()).decode()
    return {"codes": packed, "step": step, "rest": rest}


def pack_neurons(
    expertise: Expertise, dampening: Dampening, second: Expertise | None = None
) -> dict[str, Any]:
    """All neurons in the order of the sites, for the page's script.

    Args:
        expertise: The AUROCs.
        dampening: The factors and shifts; a site that it does not name has factors of 1.
        second: Another expertise of the same sites, or None.

    Returns:
        `sites` as [path, layer, index of its kind, neurons]; `kinds`; `auroc` and `second`
        (float32; NaN where there is none) and `factors` and `shifts` (see `coarse`).
    """
    by_site, every = expertise["auroc"], kinds(expertise)
    sites = [
        [site, locate(site)[0], every.index(locate(site)[1]), int(values.size)]
        for site, values in by_site.items()
    ]
    return {
        "sites": sites,
        "kinds": every,
        "auroc": exact(np.concatenate(list(by_site.values()))),
        "second": None if second is None else exact(_in_order(second["auroc"], by_site, 0.0)),
        "factors": coarse(_in_order(dampening.factors, by_site, 1.0), 1.0),
        "shifts": coarse(_in_order(dampening.shifts, by_site, 0.0), 0.0),
    }


def _in_order(
    values: Mapping[str, NDArray[Any]], sites: Mapping[str, NDArray[Any]], rest: float
) -> NDArray[np.float32]:
    found = [values.get(site, np.full(of.size, rest, np.float32)) for site, of in sites.items()]
    return np.concatenate(found).astype(np.float32)
