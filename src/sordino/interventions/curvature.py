"""Changes within a divergence budget where neurons that act together cost together.

The divergence of changes d is ½·dᵀ·F·d with F the Fisher information. Its diagonal, which the rule
contrast takes, leaves out that neurons which do the same cost more together than each alone. With
the score a_t of each text t by each neuron, for tokens that the model itself drew, F is estimated
without bias by Σ_t a_t·a_tᵀ over the number of tokens: of a rank of the number of texts, far below
that of neurons. So only a share of it counts, beside its own diagonal:

    F ≈ (1 − κ)·AᵀA/T + κ·diag(AᵀA/T)

(shrinkage towards the diagonal: Ledoit and Wolf, 2004, doi:10.1016/S0047-259X(03)00096-4).
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from sordino.compiled import compiled

Floats = NDArray[np.float64]

_SWEEPS = 200
# Changes have come to rest where none moves by more than this share of the largest.
_STILL = 1e-4
_DOUBLINGS = 40
_HALVINGS = 12


@dataclass(frozen=True)
class Curvature:
    """What changes cost.

    Args:
        scores: float32 [neurons, texts], the score of each text by each neuron.
        tokens: How many tokens the texts have that count.
        diagonal: κ, from 0 to 1.
    """

    scores: NDArray[np.float32]
    tokens: int
    diagonal: float

    def divergence(self, changes: Floats) -> float:
        """½·dᵀ·F·d in nats per token, d being float64 [neurons]."""
        together = (changes.astype(np.float32) @ self.scores).astype(np.float64)
        alone = (changes**2) @ self.costs
        shared = float(together @ together) / self.tokens
        return 0.5 * ((1 - self.diagonal) * shared + self.diagonal * float(alone))

    @cached_property
    def costs(self) -> Floats:
        """The diagonal of F, float64 [neurons]."""
        return np.einsum("nt,nt->n", self.scores, self.scores, dtype=np.float64) / self.tokens


def amounts_together(benefit: Floats, curvature: Curvature, budget: float) -> Floats:
    """The changes in [0, 1] that gain most, Σ d·benefit, at a divergence of at most `budget`.

    For Lagrange's multiplier λ they maximise Σ d·b − dᵀ·F·d/(2λ), a concave function in a box:
    coordinate ascent, each coordinate to its own best at once, comes to the maximum (after at most
    200 rounds it is taken as it is, which the budget still holds for). λ is doubled
    from where hardly anything changes until the budget is full, and halved in between.

    Args:
        benefit: float64 [neurons].
        curvature: What changes cost.
        budget: Nats per token.

    Returns:
        float64 [neurons].
    """
    costs = curvature.costs
    useful = (benefit > 0) & (costs > 0)
    changes = np.zeros_like(benefit)
    free = (benefit > 0) & (costs == 0)
    if not useful.any():
        return free.astype(np.float64)
    gain = float((benefit[useful] ** 2 / costs[useful]).sum())
    low, multiplier = 0.0, float(np.sqrt(2 * budget / 100 / gain))

    def solved(at: float, start: Floats) -> Floats:
        found = start.copy()
        shared = (1 - curvature.diagonal) / curvature.tokens / at
        curved, alone = costs / at, curvature.diagonal * costs / at
        _ascend(benefit, curvature.scores, curved, alone, shared, found)
        return found

    for _ in range(_DOUBLINGS):
        found = solved(multiplier, changes)
        if curvature.divergence(found) > budget:
            break
        low, changes, multiplier = multiplier, found, 2 * multiplier
    else:
        return np.where(free, 1.0, changes)
    high = multiplier
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        found = solved(middle, changes)
        if curvature.divergence(found) > budget:
            high = middle
        else:
            low, changes = middle, found
    return np.where(free, 1.0, changes)


@compiled(nogil=True)
def _ascend(
    benefit: Floats,
    scores: NDArray[np.float32],
    curved: Floats,
    alone: Floats,
    shared: float,
    changes: Floats,
) -> None:
    """Coordinate ascent in place, until no change moves any more.

    The objective's curvature is `curved` along each coordinate: `alone` of it by the coordinate
    itself, the rest by what all change together, `shared` times the square of the texts' sums.
    """
    neurons, texts = scores.shape
    together = np.zeros(texts)
    for neuron in range(neurons):
        if changes[neuron] != 0:
            for text in range(texts):
                together[text] += changes[neuron] * scores[neuron, text]
    for _ in range(_SWEEPS):
        farthest = largest = 0.0
        for neuron in range(neurons):
            if curved[neuron] == 0:
                continue
            slope = 0.0
            for text in range(texts):
                slope += scores[neuron, text] * together[text]
            before = changes[neuron]
            rise = benefit[neuron] - shared * slope - alone[neuron] * before
            after = min(max(before + rise / curved[neuron], 0.0), 1.0)
            if after != before:
                changes[neuron] = after
                for text in range(texts):
                    together[text] += (after - before) * scores[neuron, text]
                farthest = max(farthest, abs(after - before))
            largest = max(largest, after)
        if farthest <= _STILL * largest:
            break
