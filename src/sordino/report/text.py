"""An expertise and a dampening in figures and in lines to print."""

from typing import Any

import numpy as np

from sordino.edits.provenance import summary
from sordino.expertise.artefact import Expertise
from sordino.expertise.own import own_in_words
from sordino.files import counted
from sordino.interventions import Dampening

# AurA multiplies a neuron at 0.9 by 0.2.
_NEARLY_PERFECT = 0.9


def expertise_summary(expertise: Expertise) -> dict[str, Any]:
    """The main figures of an expertise, for JSON."""
    auroc = np.concatenate(list(expertise["auroc"].values()))
    known = auroc[~np.isnan(auroc)]
    return {
        **expertise.metadata,
        "sites": len(expertise.sites),
        "neurons": expertise.neurons,
        "share_above_half": float(np.mean(known > 0.5)) if known.size else None,
        "auroc_99th_percentile": float(np.quantile(known, 0.99)) if known.size else None,
        "auroc_largest": float(known.max()) if known.size else None,
        "top": [
            {"site": site, "neuron": index, "auroc": round(value, 6)}
            for site, index, value in expertise.top(10)
        ],
    }


def expertise_lines(expertise: Expertise) -> list[str]:
    """The main figures of an expertise, as lines to print."""
    figures = expertise_summary(expertise)
    lines = [
        f"{figures['concept']} in {figures['model']} ({figures['architecture']}): "
        f"{figures['n_positive']} positive and {figures['n_negative']} negative sentences",
        f"{figures['neurons']:,} neurons in {counted(figures['sites'], 'site')}",
    ]
    if figures["auroc_largest"] is not None:
        lines[-1] += (
            f"; {100 * figures['share_above_half']:.1f} % have an AUROC above 0.5, "
            f"99th percentile {figures['auroc_99th_percentile']:.3f}, "
            f"largest {figures['auroc_largest']:.3f}"
        )
        if figures["auroc_99th_percentile"] >= _NEARLY_PERFECT:
            lines.append(
                "many neurons separate the two classes of sentences almost perfectly, and AurA "
                "switches those off: to keep the model intact, limit the change, for example with "
                "--divergence 0.05"
            )
    if own := own_in_words(expertise.metadata):
        lines.append(f"own samples: {own}")
    lines += [f"  {t['auroc']:.3f}  {t['site']}[{t['neuron']}]" for t in figures["top"][:5]]
    return lines


def dampening_summary(dampening: Dampening) -> dict[str, Any]:
    """The main figures of a dampening, for JSON."""
    factors = np.concatenate(list(dampening.factors.values()))
    return {
        **dampening.record.as_json(),
        **summary(dampening).as_json(),
        "shifted": len(dampening.shifted),
        "smallest": float(factors.min()),
        "mean": float(factors.mean(dtype=np.float64)),
        "largest": float(factors.max()),
    }


def dampening_lines(dampening: Dampening) -> list[str]:
    """The main figures of a dampening, as lines to print."""
    figures = dampening_summary(dampening)
    shifted = f", and shifts at {counted(figures['shifted'], 'site')}" if figures["shifted"] else ""
    return [
        f"{dampening.record.in_words}: changes {figures['changed']:,} of {figures['neurons']:,} "
        f"neurons in {counted(len(figures['sites']), 'site')}; factors {figures['smallest']:.3f} "
        f"to {figures['largest']:.3f}, mean {figures['mean']:.3f}{shifted}"
    ]
