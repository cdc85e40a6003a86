"""Our rule and every rival at its best, on the same prompts, numbers, scorers and texts."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial

import numpy as np

from sordino.errors import UserError
from sordino.evaluation import Estimate, Evaluation, Measure
from sordino.evaluation.statistics import compare_shares
from sordino.extras import require
from sordino.files import capital
from sordino.interventions import aura
from sordino.studies.contenders import (
    CORPUS,
    LEARNED,
    METHODS,
    OURS,
    Bench,
    Contender,
    Settings,
    contrast,
)
from sordino.studies.findings import differences, scorers_of, toxic
from sordino.studies.record import Finding, GroupRecord, StudyRecord
from sordino.studies.removal import complete, toxic_shares
from sordino.studies.study import Group, Plan, own_evidence, study
from sordino.studies.words import by_points, falls, percent, rises, share
from sordino.tuning.lab import Lab, Trial

_OWN = (OURS, CORPUS, LEARNED)
"""The methods that are ours and not rivals."""
_BENIGN = "benign"
_LED = "pre-prompt"
"""The name of the one method that is no edit."""
RIVALS = (*METHODS, _LED)
"""The names of the methods that can be asked for."""
# Sizes that are tried for a cost; a cost that is this share of what is allowed is near enough.
_TRIES, _AIM, _NEAR = 5, 0.99, 0.97
_CURVED = 3
"""The highest power of a size with which a cost is believed to grow."""
_APART = 0.25
"""AurA's divergence is a second one where it is apart from the first by more than this share."""


def _answer(record: StudyRecord) -> Iterator[str]:
    for group in record.groups:
        if group.name.startswith("at-"):
            yield from _first(group)
        elif group.name == "pre-prompt":
            for finding in group.findings:
                yield f"{finding.label}: {by_points(finding.estimate)}."


def _first(group: GroupRecord) -> Iterator[str]:
    """Which rule leaves least, and whether ours leave less than the best rival, by scorer."""
    figures = {trial.name: [*toxic(trial.evaluation)] for trial in group.trials}
    found = {finding.name: finding.estimate for finding in group.findings}
    for number, (scorer, ours) in enumerate(figures[OURS]):
        left = {rule: of[number][1].after.value or 0.0 for rule, of in figures.items()}
        said = [
            f"{capital(group.title)}, by {scorer}: of {share(ours.before)} in the original, "
            f"“{OURS}” (the default) leaves {share(ours.after)} and “{CORPUS}” "
            f"{percent(left[CORPUS])}."
        ]
        rivals = {rule: of for rule, of in left.items() if rule not in _OWN}
        if rivals:
            best = min(rivals, key=rivals.__getitem__)
            alike = sum(of == rivals[best] for of in rivals.values()) - 1
            others = f" ({alike} more leave as little)" if alike else ""
            said.append(f"Of the rivals, “{best}” leaves least, {percent(rivals[best])}{others}.")
            for rule in (OURS, CORPUS):
                difference = found.get(f"{rule} − {best}, {scorer}")
                if difference is not None:  # older records have only the first
                    how = f"{by_points(difference)}: {_verdict(difference)}"
                    said.append(f"“{rule}” differs from it by {how}.")
        if LEARNED in left:
            learned = group.finding(f"{OURS} − {LEARNED}, {scorer}")
            said.append(
                f"Factors that are learned leave {percent(left[LEARNED])}, from which ours "
                f"differs by {by_points(learned)}."
            )
        yield " ".join(said)


def _verdict(difference: Estimate) -> str:
    """Whether the difference between ours and a rival is settled, and for which."""
    if falls(difference):
        return "settled, ours leaves less"
    return "settled, the rival leaves less" if rises(difference) else "not settled"


def _measures(plan: Plan) -> tuple[Measure, ...]:
    return plan.toxicity(), plan.toxicity(pre_prompt=_BENIGN), plan.elsewhere()


def _needed(plan: Plan) -> tuple[Measure, ...]:
    _asked(plan)
    return _measures(plan)[:2]


def _asked(plan: Plan) -> tuple[str, ...]:
    """The methods that are asked for.

    Raises:
        UserError: There is no such method, or a package that one of them needs.
    """
    for name in plan.only:
        if name not in RIVALS:
            raise UserError(f"The study rivals has no method '{name}': it has {', '.join(RIVALS)}.")
    asked = plan.only or RIVALS
    if "dpo" in asked:
        require("peft", "The rival dpo, a LoRA that is trained,")
    return asked


@study(
    "Is there a better edit: every rival at its best, at the same divergence?",
    _answer,
    _needed,
)
def rivals(lab: Lab, plan: Plan) -> Iterator[Group]:
    """Every rule as large as the same divergence allows, and as it was published.

    Ours are also made as large as the perplexity of the rival that leaves least.

    What a rival leaves open (the layer of an added direction, the number of heads, the rank of a
    subspace) is chosen on other prompts than those of the figures and of own samples.
    Rules that no weights of the model can hold are marked with "(hooks)". Everything that is
    measured is kept, whichever methods are asked for: pieces that are done one by one are joined by
    the same command for all.
    """
    bench, asked = Bench(lab, plan), _asked(plan)
    paper = Trial("aura", aura(bench.papers))
    rules = contrast(bench)
    for method in METHODS:
        if method in asked:
            rules |= METHODS[method](bench)
    measure, led, chosen_on = _measures(plan)
    reading = plan.reading(lab.texts)
    options = {
        _named(name, setting): one
        for name, settings in rules.items()
        if len(settings) > 1
        for setting, one in settings.items()
    }
    candidates, short = _sized(lab, options, plan.asked)
    judged = lab.compare(candidates, [chosen_on]) if candidates else []
    if candidates:
        yield Group(
            "settings",
            f"Settings of rivals, chosen on other prompts at a divergence of {plan.asked:g}",
            candidates,
            (chosen_on, reading[1]),
            short,
        )
    chosen = _best(rules, candidates, judged)
    paid = lab.divergence(paper)
    spent = {"at-asked": (plan.asked, f"at a divergence of {plan.asked:g}")}
    if abs(paid / plan.asked - 1) > _APART:
        spent["at-aura"] = (paid, f"at AurA's own divergence, {paid:.3f}")
    measures = (measure, *reading)
    sized = {}
    for name, (divergence, title) in spent.items():
        sized[name], short = _sized(lab, chosen, divergence)
        yield _compared(bench, name, title, sized[name], measures, short)
    level = _at_the_best_rivals_perplexity(lab, chosen, sized["at-asked"], plan.asked, measures)
    if level:
        yield _compared(bench, "at-perplexity", *level, measures)
    yield Group(
        "published",
        "As they were published",
        (
            paper,
            *(Trial(name, of.sizes(of.published)) for name, of in chosen.items() if of.published),
        ),
        measures,
    )
    if _LED in asked:
        yield Group(
            "pre-prompt",
            f"A benign pre-prompt, without an edit and with ours at {plan.asked:g}",
            _sized(lab, {OURS: chosen[OURS]}, plan.asked)[0],
            (measure, led),
            findings=lambda evaluations: _after_pre_prompt(evaluations[OURS], lab.seed),
        )


def _compared(
    bench: Bench,
    name: str,
    title: str,
    trials: tuple[Trial, ...],
    measures: tuple[Measure, ...],
    short: tuple[str, ...] = (),
) -> Group:
    """A group in which both of ours are compared with every other rule."""
    pairs = {
        f"{ours}, compared with {trial.name}": (ours, trial.name)
        for ours, others in ((OURS, {OURS}), (CORPUS, {OURS, CORPUS}))
        for trial in trials
        if trial.name not in others
    }
    return Group(
        name,
        title,
        trials,
        measures,
        short,
        findings=partial(differences, pairs=pairs, seed=bench.lab.seed),
        made_from=own_evidence(bench.everywhere),
    )


def _at_the_best_rivals_perplexity(
    lab: Lab,
    rules: Mapping[str, Contender],
    trials: tuple[Trial, ...],
    divergence: float,
    measures: tuple[Measure, ...],
) -> tuple[str, tuple[Trial, ...]] | None:
    """A title, and ours as large as the perplexity of the rival that leaves least, with that rival.

    Args:
        lab: The model.
        rules: All rules by name.
        trials: All of them, at the same divergence.
        divergence: That divergence.
        measures: Those that were taken of them, with perplexity.

    Returns:
        None if there is no rival, or it costs no perplexity.
    """
    found = dict(zip([one.name for one in trials], lab.compare(trials, measures), strict=True))
    rivals = [one for one in trials if one.name not in _OWN]
    if not rivals:
        return None
    best = min(rivals, key=lambda one: _left(found[one.name]))
    allowed = _log_perplexity(found[best.name])
    if allowed <= 0 or any(_log_perplexity(found[ours]) <= 0 for ours in (OURS, CORPUS)):
        return None

    def at(ours: str, size: float) -> Trial:
        return lab.largest(ours, rules[ours].sizes, size, start=rules[ours].start)

    def cost(ours: str, size: float) -> float:
        [evaluation] = lab.compare([at(ours, size)], measures[1:])
        return _log_perplexity(evaluation)

    level = tuple(
        at(ours, match(partial(cost, ours), divergence, _log_perplexity(found[ours]), allowed))
        for ours in (OURS, CORPUS)
    )
    title = f"at the perplexity of {best.name}, × {np.exp(allowed):.3f}"
    return title, (*level, best)


def match(cost: Callable[[float], float], size: float, paid: float, allowed: float) -> float:
    """The size whose cost comes nearest to what is allowed, and stays within it.

    Args:
        cost: The cost of a size, which grows with it about as a power of it.
        size: A size.
        paid: Its cost, above 0.
        allowed: The cost that is allowed, above 0.

    Example:
        >>> round(match(lambda size: 2 * size, 1.0, 2.0, 3.0), 4)
        1.485
    """
    costs, power = {size: paid}, 1.0
    for _ in range(_TRIES):
        if _NEAR * allowed <= paid <= allowed or paid <= 0:
            break
        before = size, paid
        size *= (_AIM * allowed / paid) ** (1 / power)
        paid = costs[size] = cost(size)
        if paid > 0:
            grown = np.log(paid / before[1]) / np.log(size / before[0])
            power = float(np.clip(grown, 1 / _CURVED, _CURVED))
    within = [one for one, of in costs.items() if of <= allowed]
    return max(within, key=costs.__getitem__, default=min(costs, key=costs.__getitem__))


def _log_perplexity(evaluation: Evaluation) -> float:
    """The logarithm of the ratio of perplexities, after ÷ before."""
    ratio = evaluation.figure("perplexity", "corpus").ratio
    assert ratio is not None  # there are two models
    assert ratio.value is not None
    return float(np.log(ratio.value))


def _left(evaluation: Evaluation) -> float:
    """The share of toxic continuations, on average over scorers."""
    shares = [toxic_shares(evaluation, "after", key) for _, key in scorers_of(evaluation)]
    return float(np.mean([column.mean() for column in map(complete, shares)]))


def _named(name: str, setting: str) -> str:
    """A rule's name, which says what was chosen where something was open."""
    return f"{name}, {setting}" if setting else name


def _sized(
    lab: Lab, rules: Mapping[str, Contender], divergence: float
) -> tuple[tuple[Trial, ...], tuple[str, ...]]:
    """Each rule at the divergence, or as strong as possible; and the names that cannot reach it."""
    trials, short = [], []
    for name, of in rules.items():
        trials.append(lab.largest(name, of.sizes, divergence, start=of.start))
        if lab.sized(name, of.sizes, divergence, start=of.start) is None:
            short.append(name)
    return tuple(trials), tuple(short)


def _best(
    rules: Mapping[str, Settings], candidates: Iterable[Trial], judged: Iterable[Evaluation]
) -> dict[str, Contender]:
    """Each rule with the setting that leaves least, on average over scorers, by its name."""
    left = {trial.name: _left(of) for trial, of in zip(candidates, judged, strict=True)}
    found = {}
    for name, settings in rules.items():
        named = {_named(name, setting): one for setting, one in settings.items()}
        best = min(named, key=lambda one: left.get(one, 0.0))
        found[best] = named[best]
    return found


def _after_pre_prompt(evaluation: Evaluation, seed: int) -> Iterator[Finding]:
    """The effect of a benign pre-prompt alone, and of our rule beside it."""
    led = f"toxicity:{_BENIGN}"
    original, ours = ("before", "toxicity"), ("after", "toxicity")
    prompted, both = ("before", led), ("after", led)
    pairs = {
        "the benign pre-prompt alone, compared with the original": (prompted, original),
        f"{OURS}, compared with the benign pre-prompt alone": (ours, prompted),
        f"both, compared with {OURS} alone": (both, ours),
    }
    for label, pair in pairs.items():
        for scorer, of in scorers_of(evaluation):
            one, other = complete(*(toxic_shares(evaluation, arm, of, key) for arm, key in pair))
            difference = compare_shares(other, one, seed).difference
            assert difference is not None  # there are both
            yield Finding(
                name=f"{label}, {scorer}",
                label=f"{label} ({scorer})",
                unit="points",
                estimate=difference,
                about=label,
                by=scorer,
            )
