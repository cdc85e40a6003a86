"""The rules by name. A rule is one short pure function in a file of this folder."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Concatenate, ParamSpec

import numpy as np
from numpy.typing import NDArray

from sordino.errors import UserError
from sordino.expertise.artefact import Expertise
from sordino.expertise.statistic import Asked, Statistic
from sordino.files import printable
from sordino.interventions.dampening import Affine, Dampening
from sordino.interventions.settings import Setting, settings_of
from sordino.models.sites import ATTENTION
from sordino.registry import Registry

Factors = Mapping[str, NDArray[np.floating[Any]]]
P = ParamSpec("P")


@dataclass(frozen=True)
class Rule:
    """A rule, and what it declares of itself.

    Args:
        name: Its name.
        sentence: What it does.
        make: Gives the dampening for an expertise and the rule's settings.
        settings: Its settings, by name.
        needs: What the expertise must hold beside the AUROC.
        uses: What the rule also takes where the expertise holds it.
        dial: The setting that says how much the rule changes; "" where that is the strength.
        in_attention: Whether it is meant for attention's linear layers, too.
        shifts: Whether it shifts outputs beside scaling them.
        foretells: Whether the dial is itself a divergence, by the rule's own estimate.
        limits: Whether the rule itself respects `rows`, the most neurons of each site that it may
            change; of the others, `Dampening.limited` keeps what changes most.
    """

    name: str
    sentence: str
    make: Callable[..., Dampening]
    settings: Mapping[str, Setting]
    needs: tuple[Statistic, ...] = ()
    uses: tuple[Statistic, ...] = ()
    dial: str = ""
    in_attention: bool = False
    shifts: bool = False
    foretells: bool = False
    limits: bool = False

    def __post_init__(self) -> None:
        if self.dial and getattr(self.settings.get(self.dial), "kind", None) not in (int, float):
            raise TypeError(f"the dial {self.dial} of {self.name} is no number among its settings")

    @property
    def asks(self) -> frozenset[Asked]:
        """The arguments of `find_experts` that measure what it needs."""
        return frozenset(statistic.asked for statistic in self.needs)

    def read(self, settings: Mapping[str, Any], *, sized: bool) -> dict[str, Any]:
        """The given settings as values of their types; this needs no expertise.

        Args:
            settings: Values, or text.
            sized: Whether the rule's dial is set by something else.

        Raises:
            UserError: A setting is missing, unknown or of the wrong kind, or is the dial that
                something else sets.
        """
        self.refuse_unknown(settings)
        dial = self.dial
        if sized and dial in settings:
            raise UserError(
                f"The setting `{dial}={settings[dial]}` and `divergence` say two sizes: give one."
            )
        for name, setting in self.settings.items():
            if setting.needed and name not in settings and not (sized and name == dial):
                raise UserError(f"The intervention {self.name} needs setting `{name}=NUMBER`.")
        return {name: self._value(name, given) for name, given in settings.items()}

    def defaults(self, *, sized: bool) -> dict[str, Any]:
        """What its settings are where nothing is given; those without a limit are not among them.

        Args:
            sized: Whether the rule's dial is set by something else.
        """
        return {
            name: setting.default
            for name, setting in self.settings.items()
            if setting.default is not None and not (sized and name == self.dial)
        }

    def refuse_unknown(self, settings: Iterable[str]) -> None:
        """Raise `UserError` for a name that is not one of its settings.

        This comes before settings become keyword arguments, where `strength` has another meaning.
        """
        known = ", ".join(self.settings)
        for name in settings:
            if name not in self.settings:
                raise UserError(
                    f"The intervention {self.name} has no setting '{name}' (it has: {known})."
                )

    def dampening(
        self, expertise: Expertise, *, rows: int | None = None, **settings: Any
    ) -> Dampening:
        """The rule's dampening for an expertise.

        Args:
            expertise: What was measured.
            rows: The most neurons of each site that may change; all where it is None.
            settings: The rule's own settings, as `read` gives them.
        """
        if rows is None:
            return self.make(expertise, **settings)
        if self.limits:
            return self.make(expertise, rows=rows, **settings)
        return self.make(expertise, **settings).limited(rows)

    def _value(self, name: str, given: Any) -> Any:
        setting = self.settings[name]
        try:
            return setting.read(given)
        except ValueError:
            raise UserError(
                f"The intervention {self.name} takes {setting.values} for {name}, not '{given}'."
            ) from None


ROWS = Setting("rows", int, optional=True)
"""A setting of every rule: the most neurons of each site that it may change."""

RULES: Registry[Rule] = Registry("intervention", "rules", "sordino.interventions.rules")
"""Rules by name."""


def intervention(
    needs: Iterable[Statistic] = (),
    dial: str = "",
    *,
    uses: Iterable[Statistic] = (),
    in_attention: bool = False,
    shifts: bool = False,
    foretells: bool = False,
) -> Callable[
    [Callable[Concatenate[Expertise, P], Factors | Affine]],
    Callable[Concatenate[Expertise, P], Dampening],
]:
    """Register a rule, a function of expertise (and settings).

    It gives factors by site path, or an `Affine` with shifts beside them. The rule's name is the
    function's; what is registered, and takes its place, gives them as a `Dampening` that records
    where they came from.

    Args:
        needs: See `Rule`, as for the rest.
        dial: The setting that says how much the rule changes.
        uses: What the rule also takes where the expertise holds it.
        in_attention: Whether it is meant for attention's linear layers, too.
        shifts: Whether it shifts outputs.
        foretells: Whether the dial is itself a divergence.

    Raises:
        TypeError: A setting has no type that a setting can have, or the dial is no setting.
        ValueError: It needs what no expertise holds.
    """

    def register(
        rule: Callable[Concatenate[Expertise, P], Factors | Affine],
    ) -> Callable[Concatenate[Expertise, P], Dampening]:
        name = rule.__name__

        def dampening(expertise: Expertise, /, *args: P.args, **kwargs: P.kwargs) -> Dampening:
            if isinstance(expertise, str | Path):
                raise UserError(
                    f"{printable(str(expertise))} names a file, and the expertise in it is needed: "
                    f"give sordino.Expertise.load({str(expertise)!r})."
                )
            _refuse_causal_of_another(expertise, name)
            bound = inspect.signature(rule).bind(expertise, *args, **kwargs)
            bound.apply_defaults()
            settings = dict(list(bound.arguments.items())[1:])
            if settings.get(ROWS.name, 0) is None:  # no limit is nothing to tell of
                del settings[ROWS.name]
            given = rule(expertise, *args, **kwargs)
            if isinstance(given, Affine) and not shifts:
                raise TypeError(f"{name} gives shifts: declare it with shifts=True")
            factors, moved = given if isinstance(given, Affine) else (given, {})
            about = dict(expertise.metadata)
            return Dampening(_float32(factors), name, 1.0, settings, about, _float32(moved))

        dampening.__name__ = dampening.__qualname__ = name
        dampening.__doc__ = rule.__doc__
        dampening.__wrapped__ = rule  # type: ignore[attr-defined]
        own = settings_of(rule)
        RULES[name] = Rule(
            name,
            (inspect.getdoc(rule) or "").partition("\n")[0],
            dampening,
            {**own, ROWS.name: ROWS},
            tuple(map(Statistic, needs)),
            tuple(map(Statistic, uses)),
            dial,
            in_attention,
            shifts,
            foretells,
            ROWS.name in own,
        )
        return dampening

    return register


def _refuse_causal_of_another(expertise: Expertise, rule: str) -> None:
    """Raise `UserError` where it was measured on a model that another rule had edited."""
    causal = expertise.metadata.get("causal", rule)
    if causal != rule:
        raise UserError(
            f"This expertise was measured with {printable(causal)} on the layers before each: it "
            f"is for that rule alone; for {rule}, find it again without `causal`."
        )


def _float32(by_site: Factors) -> dict[str, NDArray[np.float32]]:
    return {site: np.asarray(values, dtype=np.float32) for site, values in by_site.items()}


def sites_for(rules: Iterable[str], given: str | None) -> str | None:
    """The pattern of the sites that these rules are meant for, all together.

    Args:
        rules: Their names.
        given: A pattern that someone asked for, which goes before what the rules are meant for.
    """
    meant = any(RULES.named(name).in_attention for name in rules)
    return ATTENTION if given is None and meant else given


@dataclass(frozen=True)
class Family:
    """The dampenings that a rule gives for an expertise: a function of its dial.

    Args:
        make: The dampening at a dial, from none at 0 upwards.
        foretells: Whether the dial is itself a divergence, by the rule's own estimate.
    """

    make: Callable[[float], Dampening]
    foretells: bool = False

    def __call__(self, dial: float) -> Dampening:
        """The dampening at this dial."""
        return self.make(dial)

    def first(self, divergence: float) -> float:
        """The dial at which to look first for this divergence, nats per token."""
        # The measured divergence is mostly larger than the estimate, by a factor of up to two.
        return divergence / 2 if self.foretells else 1.0


def family(expertise: Expertise, rule: str = "aura", **settings: Any) -> Family:
    """The dampenings that a rule gives for an expertise, by how much they change.

    Args:
        expertise: What was measured.
        rule: The rule's name; see `RULES`.
        settings: The rule's other settings; see `dampen`.

    Returns:
        A function of the rule's dial: the setting that it has for its size (contrast's budget, the
        number of neurons of damp and det_zero), else the strength.

    Raises:
        UserError: There is no such rule, or a setting is unknown, of the wrong kind or the dial.
    """
    chosen = RULES.named(rule)
    values, dial = chosen.read(settings, sized=True), chosen.dial
    if not dial:
        return Family(lambda turned: dampen(expertise, rule, strength=turned, **values))
    counts = chosen.settings[dial].kind is int

    def turned(at: float) -> Dampening:
        # A dial that counts, counts neurons.
        value = min(round(at), expertise.neurons) if counts else at
        return dampen(expertise, rule, **values, **{dial: value})

    return Family(turned, chosen.foretells)


def dampen(
    expertise: Expertise, rule: str = "aura", *, strength: float = 1.0, **settings: Any
) -> Dampening:
    """The dampening that a rule, by its name, gives for an expertise.

    Args:
        expertise: What was measured.
        rule: The rule's name; see `RULES`.
        strength: See `Dampening.scaled`.
        settings: The rule's own settings, and `rows`, the most neurons of each site that may
            change; text is read as the setting's type.

    Raises:
        UserError: There is no such rule, or a setting is missing, unknown or of the wrong kind.
    """
    chosen = RULES.named(rule)
    return chosen.dampening(expertise, **chosen.read(settings, sized=False)).scaled(strength)


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
