"""Our rule and every rival at its best, on the same prompts, numbers, scorers and texts."""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from sordino.edits.biases import can_shift
from sordino.evaluation import Evaluation, Measure
from sordino.expertise.moments import LINEAR_TRANSPORT, MEAN_SHIFT
from sordino.expertise.sweep import SweepSettings
from sordino.interventions import Dampening, aura, family
from sordino.interventions.steering import Steering
from sordino.models.norms import norms_after_blocks
from sordino.models.open import OpenModel
from sordino.models.sites import NORMS, decoder_layers
from sordino.studies.findings import differences, estimate, scorers_of, toxic
from sordino.studies.record import Finding, GroupRecord, StudyRecord
from sordino.studies.removal import toxic_shares
from sordino.studies.steered import Looks, Writers, look, mean_difference, probed_heads, projected
from sordino.studies.study import Group, Plan, Sizes, study
from sordino.studies.words import by_points, falls, model_name, rises, share
from sordino.tuning.lab import Lab, Trial

_OURS, _CORPUS = "own samples and corpus", "contrast, corpus alone"
_RIVAL_TO = (_OURS, _CORPUS)
_HOOKS = " (hooks)"
_BENIGN = "benign"
# What rivals leave to be chosen, and is chosen on other prompts than those of the figures. Depths
# are shares of the decoder's layers.
_DEPTHS = (0.25, 0.4, 0.55, 0.7)
_HEADS = (0.05, 0.2)
_SUBSPACES = (2, 10)
_ABOVE = 0.5
"""Subspaces are taken out of the layers above this depth, as by ProFS."""
_ALPHA = 15.0
"""ITI's published strength."""
_APART = 0.25
"""AurA's divergence is a second one where it is apart from the first by more than this share."""


def _answer(record: StudyRecord) -> Iterator[str]:
    name = model_name(record.model)
    for group in record.groups:
        if group.name.startswith("at-"):
            yield from _first(name, group)
        elif group.name == "pre-prompt":
            for finding in group.findings:
                yield f"{name}: {finding.label}: {by_points(finding.estimate)}."


def _first(name: str, group: GroupRecord) -> Iterator[str]:
    """Who leaves least, and whether ours leaves less than the best rival, by scorer."""
    ours = group.trial(_OURS)
    if ours is None:
        yield f"{name}: {_OURS} could not be made so large ({group.title})."
        return
    for number, (scorer, _) in enumerate(toxic(ours.evaluation)):
        left = {
            trial.name: [*toxic(trial.evaluation)][number][1].after.value or 0.0
            for trial in group.trials
        }
        rivals = {rule: of for rule, of in left.items() if rule not in _RIVAL_TO}
        best = min(rivals, key=rivals.__getitem__)
        found = group.finding(f"{_OURS} − {best}, {scorer}")
        verdict = (
            "settled: ours leaves less"
            if falls(found)
            else "settled: the rival leaves less"
            if rises(found)
            else "not settled"
        )
        figure = [*toxic(ours.evaluation)][number][1]
        yield (
            f"{name}, {group.title}, {scorer}: of {share(figure.before)} in the original "
            f"{_OURS} leaves {share(figure.after)}. Of the rivals {best} leaves least, "
            f"{100 * rivals[best]:.1f} %; the difference is {by_points(found)}: {verdict}. "
            f"First of all is {min(left, key=left.__getitem__)}."
        )


def _measures(plan: Plan) -> tuple[Measure, ...]:
    chosen_on = replace(plan.toxicity(), prompts=plan.other_prompts, max_prompts=plan.most_other)
    return plan.toxicity(), plan.toxicity(pre_prompt=_BENIGN), chosen_on


@study(
    "Is there a better edit: every rival at its best, at the same divergence?",
    _answer,
    lambda plan: _measures(plan)[:2],
)
def rivals(lab: Lab, plan: Plan) -> Iterator[Group]:
    """Every rule as large as the same divergence allows, and as it was published.

    What a rival leaves open (the layer of an added direction, the number of heads, the rank of a
    subspace) is chosen on the prompts from which own samples come, and not on those of the figures.
    Rules that no weights of the model can hold are marked with "(hooks)".
    """
    rules = _rules(lab, plan)
    measure, led, chosen_on = _measures(plan)
    options = {
        f"{rule}, {setting}": one
        for rule, settings in rules.open.items()
        for setting, one in settings.items()
    }
    candidates = _sized(lab, options, plan.asked)
    judged = lab.compare(candidates, [chosen_on])
    yield Group(
        "settings",
        f"Settings of rivals, chosen on other prompts at a divergence of {plan.asked:g}",
        candidates,
        (chosen_on, plan.reading(lab)[1]),
    )
    best = _best(rules, candidates, judged)
    every = {**rules.closed, **{name: rules.open[name][setting] for name, setting in best.items()}}
    # The name says what was chosen.
    named = {f"{name}, {best[name]}" if name in best else name: of for name, of in every.items()}
    paper = Trial("aura", rules.aura)
    paid = lab.divergence(paper)
    spent = {"at-asked": (plan.asked, f"at a divergence of {plan.asked:g}")}
    if abs(paid / plan.asked - 1) > _APART:
        spent["at-aura"] = (paid, f"at AurA's own divergence, {paid:.3f}")
    measures = (measure, *plan.reading(lab))
    for name, (divergence, title) in spent.items():
        trials = _sized(lab, named, divergence)
        names = [trial.name for trial in trials]
        pairs = {
            f"{_OURS}, compared with {other}": (_OURS, other) for other in names if other != _OURS
        }
        yield Group(
            name,
            title,
            trials,
            measures,
            findings=partial(differences, pairs=pairs, seed=lab.seed),
        )
    yield Group(
        "published",
        "As they were published",
        (
            paper,
            *(Trial(name, of.sizes(of.published)) for name, of in named.items() if of.published),
        ),
        measures,
    )
    ours = _sized(lab, {_OURS: rules.closed[_OURS]}, plan.asked)
    yield Group(
        "pre-prompt",
        f"A benign pre-prompt, without an edit and with ours at a divergence of {plan.asked:g}",
        ours,
        (measure, led),
        findings=lambda evaluations: _after_pre_prompt(evaluations[_OURS], lab.seed),
    )


@dataclass(frozen=True)
class _Rule:
    """A rule to compare.

    Args:
        sizes: It by its dial.
        start: Where to look first for a size; None for the rule's own estimate.
        published: The dial at which it was published; 0 where there is no such.
    """

    sizes: Sizes
    start: float | None = None
    published: float = 0.0


@dataclass(frozen=True)
class _Rules:
    """All rules to compare.

    Args:
        aura: AurA as the paper has it.
        closed: Those that leave nothing open, by name.
        open: Those with a setting that is to be chosen, by name and setting.
    """

    aura: Dampening
    closed: Mapping[str, _Rule]
    open: Mapping[str, Mapping[str, _Rule]]


def _rules(lab: Lab, plan: Plan) -> _Rules:
    everywhere = plan.with_own(lab)
    papers = everywhere.at({site.path for site in lab.finder.sites})
    closed = {
        _OURS: _Rule(family(everywhere, "contrast")),
        _CORPUS: _Rule(family(everywhere, "contrast", evidence="corpus")),
        "aura": _Rule(family(papers, "aura")),
        "damp": _Rule(family(papers, "damp"), 500.0),
        "det_zero": _Rule(family(papers, "det_zero"), 200.0),
        **_transports(lab, plan),
    }
    concept = lab.concept.sampled(max_per_class=plan.per_class, balance=False, seed=lab.seed)
    steered = _steered(lab.finder, look(lab.finder, concept, lab.chat))
    return _Rules(aura(papers), closed, steered)


def _transports(lab: Lab, plan: Plan) -> dict[str, _Rule]:
    """Mean-AcT and Linear-AcT, causal, at the ends of both blocks and at the norms after them."""
    writers = Writers.of(lab.finder)
    places = {"MLP": _only(writers.feed_forward), "attention": _only(writers.attention)}
    if _norms(lab.finder):
        places["post-norm"] = NORMS
    concept = lab.concept.sampled(max_per_class=plan.per_class, balance=False, seed=lab.seed)
    found = {}
    for kind, name in ((MEAN_SHIFT, "Mean-AcT"), (LINEAR_TRANSPORT, "Linear-AcT")):
        for place, pattern in places.items():
            expertise = lab.find(
                f"causal-{kind}-{place}",
                concept=concept,
                sites=pattern,
                sweep=SweepSettings(pooling="mean", moments=True, causal=kind),
            )
            marked = f"{name}, causal, {place}{_mark(lab.finder, expertise.sites)}"
            found[marked] = _Rule(family(expertise, kind), published=1.0)
    return found


def _steered(opened: OpenModel, looks: Looks) -> dict[str, dict[str, _Rule]]:
    """CAA, ITI and projections, each with the settings among which one is chosen."""
    writers = looks.writers
    count = len(writers.layers)
    # Behind a norm, what a layer adds to the stream is not what its last linear layer puts out.
    held = writers.layers if _norms(opened) else writers.feed_forward
    heads = sum(of.shape[1] for of in looks.heads)
    above = range(int(_ABOVE * count), count)
    places = {
        "feed-forward part": {layer: writers.feed_forward[layer] for layer in above},
        f"residual stream{_HOOKS}": {layer: writers.layers[layer] for layer in above},
    }
    layers = dict.fromkeys(min(int(depth * count), count - 1) for depth in _DEPTHS)
    return {
        f"CAA{_mark(opened, held)}": {
            f"behind layer {layer}": _Rule(mean_difference(looks, layer).scaled, published=1.0)
            for layer in layers
        },
        f"ITI-c{_mark(opened, writers.attention)}": {
            f"{most} heads": _Rule(probed_heads(looks, most).scaled, published=_ALPHA)
            for most in dict.fromkeys(max(1, round(part * heads)) for part in _HEADS)
        },
        "projection": {
            f"{place}, rank {rank}": _Rule(
                partial(_at_most_all, projected(looks, rank, paths)), 0.5, published=1.0
            )
            for place, paths in places.items()
            for rank in _SUBSPACES
        },
    }


def _at_most_all(steering: Steering, strength: float) -> Steering:
    """Of a subspace nothing is left at 1; beyond, it would be mirrored."""
    return steering.scaled(min(strength, 1.0))


def _mark(opened: OpenModel, paths: Collection[str]) -> str:
    """What marks a rule whose shifts no biases of the model can hold."""
    return "" if can_shift(opened.model, paths) else _HOOKS


def _norms(opened: OpenModel) -> bool:
    """Whether there are norms between the blocks and the residual stream."""
    _, layers = decoder_layers(opened.model)
    return any(True for layer in layers for _ in norms_after_blocks(layer))


def _only(paths: Iterable[str]) -> str:
    """The pattern of these sites alone."""
    return f"^(?:{'|'.join(map(re.escape, paths))})$"


def _sized(lab: Lab, rules: Mapping[str, _Rule], divergence: float) -> tuple[Trial, ...]:
    """Each as large as the divergence allows, or as it can be."""
    return tuple(
        lab.largest(name, of.sizes, divergence, start=of.start) for name, of in rules.items()
    )


def _best(
    rules: _Rules, candidates: Iterable[Trial], judged: Iterable[Evaluation]
) -> dict[str, str]:
    """The setting of each open rule that leaves least, on average over scorers."""
    left = {
        trial.name: np.mean([toxic_shares(of, "after", key) for _, key in scorers_of(of)])
        for trial, of in zip(candidates, judged, strict=True)
    }
    return {
        rule: min(settings, key=lambda setting, rule=rule: left[f"{rule}, {setting}"])  # type: ignore[misc]
        for rule, settings in rules.open.items()
    }


def _after_pre_prompt(evaluation: Evaluation, seed: int) -> Iterator[Finding]:
    """What a benign pre-prompt does alone, and what ours does beside it."""
    led = f"toxicity:{_BENIGN}"
    original, ours = ("before", "toxicity"), ("after", "toxicity")
    prompted, both = ("before", led), ("after", led)
    pairs = {
        "the benign pre-prompt alone, compared with the original": (prompted, original),
        f"{_OURS}, compared with the benign pre-prompt alone": (ours, prompted),
        f"both, compared with {_OURS} alone": (both, ours),
    }
    for label, pair in pairs.items():
        for scorer, of in scorers_of(evaluation):
            one, other = (toxic_shares(evaluation, arm, of, key) for arm, key in pair)
            yield Finding(
                name=f"{label}, {scorer}",
                label=f"{label} ({scorer})",
                unit="points",
                estimate=estimate(one - other, seed),
                about=label,
                by=scorer,
            )
