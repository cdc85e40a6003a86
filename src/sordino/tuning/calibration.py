"""Make an intervention as large as a divergence from the original allows, by measuring it."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from sordino import progress as show
from sordino.errors import UserError
from sordino.evaluation.divergence import against, keep
from sordino.evaluation.reading import text_logits
from sordino.evaluation.texts import KIT_PROSE, read_texts
from sordino.interventions import Dampening
from sordino.interventions.registry import Family
from sordino.models.open import OpenModel

TEXTS = 100
TOKENS = 128
SHORTFALL = 0.04
"""A calibrated divergence is between this share below what was asked for, and that itself."""
_ROUNDS = 16
# A dial that was turned up and changed the divergence by no more than this share is at its end.
_GROWTH = 1e-3
_BATCH_TOKENS = 8192


class Yardstick:
    """Measures the divergence of an open model from itself with an intervention.

    What the original says of each place is kept as `sordino.evaluation.divergence` keeps it.

    Args:
        opened: The original.
        texts: Clean texts.
        seed: Of the estimate's draws.
    """

    def __init__(self, opened: OpenModel, texts: Sequence[str], seed: int = 0) -> None:
        self._opened, self._texts = opened, list(texts)
        with torch.inference_mode():
            self._kept = {index: keep(logits, seed, index) for index, logits in self._logits()}
        if not any(len(tokens) for tokens, _ in self._kept.values()):
            raise UserError(
                "No clean text has two tokens or more: the divergence needs longer ones."
            )

    @torch.inference_mode()
    def divergence(self, dampening: Dampening) -> float:
        """KL(original ‖ dampened) of the next token, nats a token, the mean over all places."""
        nats, places = 0.0, 0
        with dampening.applied(self._opened.model):
            for index, logits in self._logits():
                nats += against(*self._kept[index], logits)[0]
                places += len(logits) - 1
        return nats / places

    def _logits(self) -> Iterator[tuple[int, torch.Tensor]]:
        for batch in text_logits(self._opened, self._texts, TOKENS, batch_tokens=_BATCH_TOKENS):
            for index, _, logits in batch:
                yield index, logits


@dataclass(frozen=True)
class Calibrated:
    """An intervention of the size that a divergence allows.

    Args:
        dampening: The intervention.
        dial: What it was turned to: a strength, or the setting that a rule has for its size.
        divergence: What was measured at it, nats a token.
        reached: Whether it is as large as was asked for, and not the largest that there is.
    """

    dampening: Dampening
    dial: float
    divergence: float
    reached: bool


def calibrate(
    yardstick: Yardstick,
    family: Callable[[float], Dampening],
    budget: float,
    *,
    start: float | None = None,
) -> Calibrated:
    """The largest member of a family whose measured divergence stays within a budget.

    The divergence grows about as a power of the dial, so that a secant on the logarithms, kept
    inside the bracket, needs a handful of measurements.

    Args:
        yardstick: Measures.
        family: The interventions by their dial, from none at 0 upwards.
        budget: Nats a token.
        start: Where to look first; None: where the family of a rule says, else at 1.

    Raises:
        UserError: The budget is not above 0, or smaller than any change.
    """
    if not 0 < budget < math.inf:
        raise UserError(f"A divergence of {budget:g} is out of range: it must be above 0.")
    low, high = 0.0, math.inf  # dials known to be within the budget, and beyond it
    points: list[tuple[float, float]] = []  # logarithms of dial and divergence
    best: Calibrated | None = None
    dial = start or (family.first(budget) if isinstance(family, Family) else 1.0)
    goal = math.log(budget) + math.log1p(-SHORTFALL / 2)
    for _ in range(_ROUNDS):
        dampening = family(dial)
        found = yardstick.divergence(dampening)
        show.note(f"{dampening.intervention} at {dial:.4g}: a divergence of {found:.4f}")
        if found <= budget:
            low = dial
            reached = found >= budget * (1 - SHORTFALL)
            ended = best is not None and found < best.divergence * (1 + _GROWTH)
            best = Calibrated(dampening, dial, found, reached)
            if reached or ended:
                return best
        else:
            high = dial
        if found > 0:
            points.append((math.log(dial), math.log(found)))
        dial = _next(points, goal, low, high, dial)
        if low and high / low < 1 + 1e-6:
            break
    if best is None:
        raise UserError(
            f"Even the smallest change that was tried diverges by more than {budget:g} nats a "
            "token: allow more."
        )
    return best


def _next(
    points: Sequence[tuple[float, float]], goal: float, low: float, high: float, dial: float
) -> float:
    """The dial to try next: by the power law through the last points, inside the bracket."""
    if not points:
        return dial * 8  # nothing changed yet
    log_dial, log_found = points[-1]
    power = 2.0  # to first order the divergence is a quadratic form of the change
    if len(points) > 1 and points[-2][0] != log_dial:
        power = (log_found - points[-2][1]) / (log_dial - points[-2][0])
    power = float(np.clip(power, 0.3, 4))
    guess = math.exp(log_dial + float(np.clip((goal - log_found) / power, -4, 4)))
    if low < guess < high:
        return guess
    return math.sqrt(low * high) if low else high / 4


def clean_texts(spec: str = KIT_PROSE, *, most: int = TEXTS, seed: int = 0) -> list[str]:
    """Texts to calibrate on: those that an evaluation with the same seed chooses last.

    `sordino.evaluation.texts.choose` takes the first ones of the same permutation, so that a size
    is not set on the texts on which it is reported, as long as there are enough for both.
    """
    texts = read_texts(spec)
    order = np.random.default_rng(seed).permutation(len(texts))
    return [texts[i].text for i in sorted(order[-most:])]
