"""Make an intervention as strong as a divergence budget allows, by measuring the divergence."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch

from sordino import progress as show
from sordino.errors import UserError, require_at_least
from sordino.evaluation.measures.divergence import estimate_divergence, keep
from sordino.evaluation.reading import text_logits
from sordino.evaluation.texts import KIT_PROSE, read_texts
from sordino.expertise.artefact import Expertise
from sordino.files import counted, printable, refuse_repeated
from sordino.interventions import Dampening, Edit, compose, dampen, dampening_from, family
from sordino.interventions.registry import RULES, Family
from sordino.models.open import OpenModel

TEXTS = 100
TOKENS = 128
SHORTFALL = 0.04
"""A calibrated divergence is below the budget by at most this share of it."""
_ROUNDS = 16
_SECANTS = 6
"""After this many points, the search bisects its bracket instead."""
# The search begins on every fifth text, until it is within this factor of the budget.
_ROUGH_STEP = 5
_ROUGH_FACTOR = 1.3
# If a larger dial raises the divergence by no more than this share, it is at its maximum.
_GROWTH = 1e-3
# Rounding makes the curve uneven, so only dials this many times as large are compared.
_FAR = 1.25
_BATCH_TOKENS = 8192
# An evaluation takes this many texts by default, and all of a source with fewer.
_REPORTED = 400

E = TypeVar("E", bound=Edit)

Source = Expertise | Dampening | str | Path
"""The source of a dampening: an expertise, a dampening, or the file of either."""


class Yardstick:
    """Measures the divergence of an open model from itself with an intervention.

    The original's predictions are kept as in `sordino.evaluation.measures.divergence`.

    Args:
        opened: The original.
        texts: Clean texts.
        seed: Of the estimate's draws.
    """

    def __init__(self, opened: OpenModel, texts: Sequence[str], seed: int = 0) -> None:
        self._opened, self._texts = opened, list(texts)
        with torch.inference_mode():
            everything = range(len(self._texts))
            self._kept = {
                index: keep(logits, seed, index) for index, logits in self._on(everything)
            }
        # In a text of one token there is nothing to predict.
        self._measured = [i for i, (tokens, _) in sorted(self._kept.items()) if len(tokens)]
        if not self._measured:
            raise UserError("No clean text has two tokens or more: give longer ones.")

    def divergence(self, dampening: Edit) -> float:
        """KL(original ‖ dampened) of the next token in nats per token, mean over all positions."""
        return self._mean(dampening, self._measured)

    def roughly(self, dampening: Edit) -> float:
        """The same over every fifth text."""
        return self._mean(dampening, self._measured[::_ROUGH_STEP])

    @torch.inference_mode()
    def _mean(self, dampening: Edit, chosen: Sequence[int]) -> float:
        nats, places = 0.0, 0
        with dampening.applied(self._opened.model):
            for index, logits in self._on(chosen):
                nats += estimate_divergence(*self._kept[index], logits)[0]
                places += len(logits) - 1
        return nats / places

    def _on(self, chosen: Sequence[int]) -> Iterator[tuple[int, torch.Tensor]]:
        """Indices and logits of the texts with these indices."""
        texts = [self._texts[index] for index in chosen]
        for batch in text_logits(self._opened, texts, TOKENS, batch_tokens=_BATCH_TOKENS):
            for place, _, logits in batch:
                yield chosen[place], logits


@dataclass(frozen=True)
class Calibrated(Generic[E]):
    """An intervention as strong as a divergence budget allows.

    Args:
        dampening: The intervention.
        dial: Its strength, or the value of the setting by which its rule is scaled.
        divergence: Its measured divergence, in nats per token.
        reached: Whether it fills the budget; if not, it is the strongest one possible.
    """

    dampening: E
    dial: float
    divergence: float
    reached: bool


def dampening_of(
    sources: Source | Sequence[Source],
    intervention: str = "aura",
    *,
    strength: float = 1.0,
    settings: Mapping[str, Any] | None = None,
) -> Dampening:
    """The dampening from expertise, dampenings or their files, applied one after the other.

    Args:
        sources: One or several; a dampening is used unchanged.
        intervention: The rule that is applied to each expertise.
        strength: Of each; see `Dampening.scaled`.
        settings: The rule's own settings.

    Raises:
        UserError: A file is neither, or the rule cannot be used.
    """
    given = settings or {}
    return compose([_one(one, intervention, strength, given) for one in _several(sources)])


def sized(
    opened: OpenModel,
    sources: Source | Sequence[Source],
    divergence: float,
    *,
    intervention: str = "aura",
    settings: Mapping[str, Any] | None = None,
    texts: str | Sequence[str] = KIT_PROSE,
    seed: int = 0,
) -> Calibrated[Dampening]:
    """The dampening of `dampening_of`, as strong as a divergence budget allows.

    A single expertise is scaled by its rule's own setting, if it has one (`Rule.dial`); anything
    else by the strength of all together.

    Args:
        opened: The original.
        sources: As for `dampening_of`.
        divergence: The budget, nats per token.
        intervention: The rule that is applied to each expertise.
        settings: The rule's own settings, without the one that scales it.
        texts: Where ordinary texts come from, or the result of `sizing_texts`. As long as there are
            enough texts, an evaluation with the same seed reports on others than those on which the
            divergence is measured.
        seed: Of the choice of texts, and of the estimate.

    Raises:
        UserError: The divergence is out of range, or an input cannot be used.
    """
    sizes = _sizes(_several(sources), intervention, settings or {})
    chosen = sizing_texts(texts, seed) if isinstance(texts, str) else texts
    found = calibrate(Yardstick(opened, chosen, seed), sizes, divergence)
    most = "" if found.reached else f", which is the most that {intervention} can reach"
    show.note(f"a divergence of {found.divergence:.4f} nats per token{most}")
    return found


def sizing_texts(spec: str, seed: int) -> list[str]:
    """The same as `clean_texts`, with a note if an evaluation may report on some of them."""
    chosen, everything = clean_texts(spec, seed=seed), len(read_texts(spec))
    if everything < len(chosen) + _REPORTED:
        show.note(
            f"{printable(spec)} holds {counted(everything, 'text')}: an evaluation of more than "
            f"{everything - len(chosen):,} of them reports on some that set the size"
        )
    return chosen


def _several(sources: Source | Sequence[Source]) -> list[Source]:
    if isinstance(sources, Expertise | Dampening | str | Path):
        return [sources]
    if not sources:
        raise UserError("There is nothing to dampen with: give an expertise or a dampening.")
    files = [source for source in sources if isinstance(source, str | Path)]
    refuse_repeated(files, "would apply its factors twice (`strength` makes them stronger)")
    return list(sources)


def _one(source: Source, rule: str, strength: float, settings: Mapping[str, Any]) -> Dampening:
    if isinstance(source, Dampening):
        return source.scaled(strength)
    RULES.named(rule).refuse_unknown(settings)
    if isinstance(source, Expertise):
        return dampen(source, rule, strength=strength, **settings)
    return dampening_from(source, rule, strength=strength, **settings)


def _sizes(
    sources: Sequence[Source], rule: str, settings: Mapping[str, Any]
) -> Callable[[float], Dampening]:
    if len(sources) == 1:
        [one] = sources
        if isinstance(one, str | Path) and not Dampening.is_in(one):
            one = Expertise.load(one)
        if isinstance(one, Expertise):
            RULES.named(rule).refuse_unknown(settings)
            return family(one, rule, **settings)
    return dampening_of(sources, rule, settings=settings).scaled


def calibrate(
    yardstick: Yardstick,
    family: Callable[[float], E],
    budget: float,
    *,
    start: float | None = None,
) -> Calibrated[E]:
    """The largest member of a family whose measured divergence stays within a budget.

    The divergence grows about as a power of the dial. So the secant method on the logarithms, kept
    inside the bracket, needs a handful of measurements; most of them are rough ones. Until two
    points tell the power, it is taken to be 1 for a rule whose dial is itself a divergence, and 2
    for others, since to first order the divergence is a quadratic form of the change.

    Args:
        yardstick: Measures the divergence.
        family: The interventions by their dial, from none at 0 upwards.
        budget: Nats per token.
        start: The first dial; None for the rule's own estimate, or else 1.

    Raises:
        UserError: The budget is not above 0, or any change exceeds it.
    """
    if not 0 < budget < math.inf:
        raise UserError(f"A divergence of {budget:g} is out of range: it must be above 0.")
    dial = start or (family.first(budget) if isinstance(family, Family) else 1.0)
    power = 1.0 if isinstance(family, Family) and family.foretells else 2.0
    dial = _near(yardstick, family, _Search(budget, dial, power))
    search = _Search(budget, dial, power)
    best: Calibrated[E] | None = None
    for _ in range(_ROUNDS):
        dampening = family(search.dial)
        found = yardstick.divergence(dampening)
        show.note(f"{dampening.intervention} at {search.dial:.4g}: a divergence of {found:.4f}")
        if found <= budget:
            reached = found >= budget * (1 - SHORTFALL)
            ended = best is not None and search.ends(found, best.divergence, best.dial)
            if best is None or found >= best.divergence:
                best = Calibrated(dampening, search.dial, found, reached)
            if reached or ended:
                return best
        if not search.step(found):
            break
    if best is None:
        raise UserError(
            f"Even the smallest change that was tried diverges by more than {budget:g} nats per "
            "token: raise the budget."
        )
    return best


def _near(yardstick: Yardstick, family: Callable[[float], Edit], search: "_Search") -> float:
    """A dial at which the divergence is about the budget, or the largest possible one."""
    budget = search.budget
    within: tuple[float, float] | None = None
    for _ in range(_ROUNDS):
        at = search.dial
        found = yardstick.roughly(family(at))
        if found <= budget:
            if within is not None and search.ends(found, *within):
                return at
            within = found, at
        room = search.step(found)
        if budget / _ROUGH_FACTOR < found < budget * _ROUGH_FACTOR:
            return search.guess()
        if not room:
            break
    return search.dial


@dataclass
class _Search:
    """A search for the dial that gives a divergence.

    Args:
        budget: The divergence, in nats per token.
        dial: The dial to measure next.
        power: That of the dial with which the divergence grows, until two points tell it.
    """

    budget: float
    dial: float
    power: float
    _low: float = 0.0  # the largest dial known to be within the budget
    _high: float = math.inf  # and one beyond it
    _points: list[tuple[float, float]] = field(default_factory=list)  # logarithms

    def ends(self, found: float, before: float, at: float) -> bool:
        """Whether the search can stop, because a larger dial gave no larger divergence.

        Rounding to 16 bits can make a larger change diverge slightly less than a smaller one. So
        the search stops only if the two dials are far enough apart. Once a dial has exceeded the
        budget, a larger divergence is possible, and the search stops only if both dials gave
        exactly the same.

        Args:
            found: The divergence at the present dial, within the budget.
            before: The divergence at an earlier dial.
            at: That earlier dial.
        """
        if self._high < math.inf:
            return found == before
        return found < before * (1 + _GROWTH) and self.dial >= at * _FAR

    def step(self, found: float) -> bool:
        """Record the divergence at the dial and choose the next; false if the bracket is empty."""
        if found <= self.budget:
            self._low = self.dial
        else:
            self._high = self.dial
        if found > 0:
            self._points.append((math.log(self.dial), math.log(found)))
        self.dial = self._next()
        return not (self._low and self._high / self._low < 1 + 1e-6)

    def guess(self) -> float:
        """The dial at which the power law through the last points meets the budget."""
        log_dial, log_found = self._points[-1]
        power = self.power
        if len(self._points) > 1 and self._points[-2][0] != log_dial:
            power = (log_found - self._points[-2][1]) / (log_dial - self._points[-2][0])
        power = float(np.clip(power, 0.3, 4))
        goal = math.log(self.budget) + math.log1p(-SHORTFALL / 2)
        return math.exp(log_dial + float(np.clip((goal - log_found) / power, -4, 4)))

    def _next(self) -> float:
        if not self._points:
            return self.dial * 8  # nothing changed yet
        guess = self.guess()
        if self._high == math.inf and self._is_flat():
            return self.dial * 2 * _FAR
        # Rounding makes the curve uneven, so two nearby points do not tell its slope.
        is_even = len(self._points) < _SECANTS or self._high == math.inf
        if self._low < guess < self._high and is_even:
            return guess
        return math.sqrt(self._low * self._high) if self._low else self._high / 4

    def _is_flat(self) -> bool:
        """Whether the last dial gave no more than the one before."""
        found = [log_found for _, log_found in self._points[-2:]]
        return len(found) > 1 and found[1] < found[0] + _GROWTH


def clean_texts(spec: str = KIT_PROSE, *, most: int = TEXTS, seed: int = 0) -> list[str]:
    """Texts to calibrate on: those that an evaluation with the same seed chooses last.

    `sordino.evaluation.texts.choose` takes the first ones of the same permutation, so with enough
    texts no strength is calibrated on those on which it is reported.
    """
    require_at_least(0, seed=seed)
    texts = read_texts(spec)
    order = np.random.default_rng(seed).permutation(len(texts))
    return [texts[i].text for i in sorted(order[-most:])]
