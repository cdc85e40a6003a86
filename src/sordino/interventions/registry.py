"""The rules by name. A rule is one short pure function in a file of this folder."""

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Concatenate, Literal, ParamSpec

import numpy as np
from numpy.typing import NDArray

from sordino.errors import UserError
from sordino.expertise.artefact import Expertise
from sordino.interventions.dampening import Affine, Dampening
from sordino.models.sites import ATTENTION

Factors = Mapping[str, NDArray[np.floating[Any]]]
P = ParamSpec("P")

_RULES: dict[str, Callable[..., Dampening]] = {}
_NEEDS: dict[str, str] = {}
_DIALS: dict[str, str] = {}
_IN_ATTENTION: set[str] = set()


def intervention(
    needs: Literal["", "strata", "moments", "attribution"] = "",
    dial: str = "",
    *,
    in_attention: bool = False,
) -> Callable[
    [Callable[Concatenate[Expertise, P], Factors | Affine]],
    Callable[Concatenate[Expertise, P], Dampening],
]:
    """Register a rule, a function of expertise (and settings).

    It gives factors by site path, or an `Affine` with shifts beside them. The rule's name is the
    function's; what is registered, and takes its place, gives them as a `Dampening` that records
    where they came from.

    Args:
        needs: What the expertise must hold beside the AUROC.
        dial: The setting that says how much the rule changes; "" where that is the strength.
        in_attention: Whether the rule is meant for attention's linear layers, too.
    """

    def register(
        rule: Callable[Concatenate[Expertise, P], Factors | Affine],
    ) -> Callable[Concatenate[Expertise, P], Dampening]:
        name = rule.__name__
        if name in _RULES:
            raise ValueError(f"two interventions are called {name}")

        def dampening(expertise: Expertise, /, *args: P.args, **kwargs: P.kwargs) -> Dampening:
            bound = inspect.signature(rule).bind(expertise, *args, **kwargs)
            bound.apply_defaults()
            settings = dict(list(bound.arguments.items())[1:])
            given = rule(expertise, *args, **kwargs)
            factors, shifts = given if isinstance(given, Affine) else (given, {})
            about = dict(expertise.metadata)
            return Dampening(_float32(factors), name, 1.0, settings, about, _float32(shifts))

        dampening.__name__ = dampening.__qualname__ = name
        dampening.__doc__ = rule.__doc__
        dampening.__wrapped__ = rule  # type: ignore[attr-defined]
        _RULES[name] = dampening
        _NEEDS[name] = needs
        _DIALS[name] = dial
        if in_attention:
            _IN_ATTENTION.add(name)
        return dampening

    return register


def _float32(by_site: Factors) -> dict[str, NDArray[np.float32]]:
    return {site: np.asarray(values, dtype=np.float32) for site, values in by_site.items()}


def names() -> list[str]:
    """The names of all rules."""
    return sorted(_RULES)


def needs_of(name: str) -> str:
    """What a rule needs of the expertise beside the AUROC; "" if nothing."""
    _rule(name)
    return _NEEDS[name]


def is_for_attention(name: str) -> bool:
    """Whether a rule is meant for attention's linear layers, too."""
    _rule(name)
    return name in _IN_ATTENTION


def sites_for(rules: Iterable[str], given: str | None) -> str | None:
    """The pattern of the sites that these rules are meant for, all together.

    Args:
        rules: Their names.
        given: A pattern that someone asked for, which goes before what the rules are meant for.
    """
    return ATTENTION if given is None and any(map(is_for_attention, rules)) else given


@dataclass(frozen=True)
class Family:
    """The dampenings that a rule gives for an expertise: a function of its dial.

    Args:
        make: The dampening at a dial, from none at 0 upwards.
        foretells: Whether the dial is itself a divergence, by the rule's own reckoning.
    """

    make: Callable[[float], Dampening]
    foretells: bool = False

    def __call__(self, dial: float) -> Dampening:
        """The dampening at this dial."""
        return self.make(dial)

    def first(self, divergence: float) -> float:
        """The dial at which to look first for this divergence, nats a token."""
        # What is measured is mostly more than what a second order foretells, up to twice as much.
        return divergence / 2 if self.foretells else 1.0


def family(expertise: Expertise, rule: str = "aura", **settings: Any) -> Family:
    """The dampenings that a rule gives for an expertise, by how much they change.

    Args:
        expertise: What was measured.
        rule: The rule's name; see `names`.
        settings: The rule's other settings; see `dampen`.

    Returns:
        A function of the rule's dial: the setting that it has for its size (contrast's budget, the
        number of neurons of damp and det_zero), else the strength.

    Raises:
        UserError: There is no such rule, or a setting is unknown, of the wrong kind or the dial.
    """
    values = read_settings(rule, settings, sized=True)
    dial = _DIALS[rule]
    if not dial:
        return Family(lambda turned: dampen(expertise, rule, strength=turned, **values))
    counts = _parameters(rule)[dial].annotation is int

    def turned(at: float) -> Dampening:
        # A dial that counts, counts neurons.
        value = min(round(at), expertise.neurons) if counts else at
        return dampen(expertise, rule, **values, **{dial: value})

    return Family(turned, foretells=dial == "budget")


def dampen(
    expertise: Expertise, rule: str = "aura", *, strength: float = 1.0, **settings: Any
) -> Dampening:
    """The dampening that a rule, by its name, gives for an expertise.

    Args:
        expertise: What was measured.
        rule: The rule's name; see `names`.
        strength: See `Dampening.scaled`.
        settings: The rule's own settings; text is read as the setting's type.

    Raises:
        UserError: There is no such rule, or a setting is missing, unknown or of the wrong kind.
    """
    values = read_settings(rule, settings, sized=False)
    return _rule(rule)(expertise, **values).scaled(strength)


def read_settings(rule: str, settings: Mapping[str, Any], *, sized: bool) -> dict[str, Any]:
    """A rule's settings as values of their types, before there is any expertise.

    Args:
        rule: The rule's name.
        settings: Values, or text.
        sized: Whether the rule's dial is set by something else.

    Raises:
        UserError: There is no such rule, or a setting is missing, unknown or of the wrong kind, or
            is the dial that something else sets.
    """
    parameters = _parameters(rule)
    known = ", ".join(parameters) or "none"
    for name in settings:
        if name not in parameters:
            raise UserError(f"The intervention {rule} has no setting '{name}' (it has: {known}).")
    dial = _DIALS[rule]
    if sized and dial in settings:
        raise UserError(f"--set {dial}={settings[dial]} and --divergence say two sizes: give one.")
    needed = [n for n, p in parameters.items() if p.default is p.empty and n not in settings]
    missing = [name for name in needed if not (sized and name == dial)]
    if missing:
        raise UserError(f"The intervention {rule} needs --set {missing[0]}=NUMBER.")
    return {name: _read(rule, name, value, parameters[name]) for name, value in settings.items()}


def _parameters(rule: str) -> dict[str, inspect.Parameter]:
    """A rule's settings."""
    function = _rule(rule).__wrapped__  # type: ignore[attr-defined]
    return dict(list(inspect.signature(function).parameters.items())[1:])


def dampening_from(
    path: str | Path, rule: str = "aura", *, strength: float = 1.0, **settings: Any
) -> Dampening:
    """The dampening that a file gives: the one saved in it, or a rule's for the expertise in it.

    Args:
        path: What `Dampening.save` or `Expertise.save` wrote.
        rule: The rule's name, for an expertise.
        strength: See `Dampening.scaled`; it holds for both.
        settings: The rule's own settings.

    Raises:
        UserError: The file is neither, or the rule cannot be used.
    """
    if Dampening.is_in(path):
        return Dampening.load(path).scaled(strength)
    return dampen(Expertise.load(path), rule, strength=strength, **settings)


def _rule(name: str) -> Callable[..., Dampening]:
    if name not in _RULES:
        close = difflib.get_close_matches(name, _RULES, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise UserError(f"There is no intervention '{name}': {hint}There are {', '.join(names())}.")
    return _RULES[name]


def _read(rule: str, name: str, value: Any, parameter: inspect.Parameter) -> Any:
    try:
        return parameter.annotation(value)
    except ValueError:
        kind = "a whole number" if parameter.annotation is int else "a number"
        raise UserError(
            f"The intervention {rule} takes {kind} for {name}, not '{value}'."
        ) from None
