"""Which rule removes most of a concept, at the same divergence from the original."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from sordino.concepts.concept import Concept
from sordino.evaluation import (
    Divergence,
    Diversity,
    Measure,
    OrdinaryToxicity,
    Perplexity,
    Toxicity,
    ToxicPerplexity,
    ZeroShot,
)
from sordino.expertise.attribution import AttributionSettings
from sordino.expertise.find import SweepSettings
from sordino.interventions import (
    Dampening,
    aura,
    contrast,
    damp,
    det_zero,
    linear_transport,
    mean_shift,
    selective,
    shuffled,
    stratified,
)
from sordino.studies.variants import (
    contrast_of,
    only_known,
    permuted,
    reversed_sign,
    shuffled_within_sites,
    times_gini,
)
from sordino.tuning.calibration import clean_texts
from sordino.tuning.lab import Lab, Trial

Family = Callable[[float], Dampening]


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Args:
        prompts: Toxic prompts for the rules and the curves.
        asked_prompts: Toxic prompts for the questions.
        continuations: Of each toxic prompt.
        ordinary: Ordinary prompts, each of which is continued twice.
        questions: Of each zero-shot task.
        texts: For each perplexity.
        per_class: Sentences of each class for attribution.
        budgets: Divergences, nats a token, for the curves.
        asked: The divergence at which the questions about contrast are asked.
    """

    prompts: int = 400
    asked_prompts: int = 250
    continuations: int = 4
    ordinary: int = 500
    questions: int = 100
    texts: int = 200
    per_class: int = 256
    budgets: tuple[float, ...] = (0.01, 0.02, 0.05, 0.1)
    asked: float = 0.05


@dataclass(frozen=True)
class Group:
    """Trials that are read together, and what is measured of them.

    Args:
        name: A short word for them.
        title: What they are.
        trials: The trials.
        measures: What is measured of each.
        missing: Rules that could not be made as large as was asked.
    """

    name: str
    title: str
    trials: tuple[Trial, ...]
    measures: tuple[Measure, ...]
    missing: tuple[str, ...] = ()


def methods(
    lab: Lab, size: Size, *, prompts: str, search: str, scorers: tuple[str, ...]
) -> list[Group]:
    """The groups of trials of this study.

    Args:
        lab: The model and its folder.
        size: How much is measured.
        prompts: Toxic prompts for the rules and the curves.
        search: Other toxic prompts, for the questions, which choose nothing that is reported on
            the former.
        scorers: One or two.
    """
    expertise = lab.find(
        "max",
        sweep=SweepSettings(stratify="length"),
        attribution=AttributionSettings(size.per_class, lab.seed),
    )
    means = lab.find("mean", sweep=SweepSettings(pooling="mean", moments=True))
    clean = lab.find(
        "prose",
        concept=_against_prose(lab, size.per_class),
        attribution=AttributionSettings(size.per_class, lab.seed),
    )
    everywhere = lab.find(
        "everywhere",
        concept=lab.concept.sampled(max_per_class=size.per_class, seed=lab.seed),
        sites=r".",
        attribution=AttributionSettings(size.per_class, lab.seed),
    )
    counts = [n for n in (20, 50, 100) if n <= len(lab.concept.positive)]
    fewer = {
        n: lab.find(
            f"{n}-sentences",
            concept=lab.concept.sampled(max_per_class=n, seed=lab.seed),
            attribution=AttributionSettings(n, lab.seed),
        )
        for n in counts
    }
    seed = lab.seed
    paper = Trial("aura", aura(expertise))
    paid = lab.divergence(paper)
    families: dict[str, tuple[Family, float]] = {
        "shuffled aura": (lambda s: shuffled(expertise, seed).scaled(s), 1.0),
        "selective": (lambda s: selective(expertise).scaled(s), 1.0),
        "stratified": (lambda s: stratified(expertise).scaled(s), 1.0),
        "damp": (lambda k: damp(expertise, _count(k, expertise.neurons)), 500.0),
        "det_zero": (lambda k: det_zero(expertise, _count(k, expertise.neurons)), 200.0),
        "mean_shift": (lambda s: mean_shift(means).scaled(s), 1.0),
        "linear_transport": (lambda s: linear_transport(means).scaled(s), 1.0),
        "contrast": (lambda b: contrast(expertise, b), paid / 2),
        "shuffled contrast": (
            lambda b: contrast_of(expertise, b, benefit=permuted(seed)),
            paid / 2,
        ),
        "contrast, factors shuffled": (
            lambda b: shuffled_within_sites(contrast(expertise, b), seed),
            paid / 2,
        ),
    }
    rules = [
        lab.sized(name, family, paid, start=start) for name, (family, start) in families.items()
    ]
    curves = [
        lab.sized(f"{name} at {budget:g}", family, budget, start=start * budget)
        for budget in size.budgets
        for name, family, start in (
            ("aura", lambda s: aura(expertise).scaled(s), 15.0),
            ("contrast", families["contrast"][0], 0.5),
            ("shuffled contrast", families["shuffled contrast"][0], 0.5),
        )
    ]
    questions: dict[str, Family] = {
        "contrast": families["contrast"][0],
        "sign reversed": lambda b: contrast_of(expertise, b, benefit=reversed_sign),
        "amplifying too": lambda b: contrast_of(expertise, b, lowest=-1.0),
        "a λ for each site": lambda b: contrast_of(expertise, b, by_site=True),
        "neurons of known AUROC only": lambda b: contrast_of(
            expertise, b, benefit=only_known(expertise)
        ),
        "times Gini": lambda b: contrast_of(expertise, b, benefit=times_gini(expertise)),
        "attention's sites too": lambda b: contrast(everywhere, b),
        "prose as clean text": lambda b: contrast(clean, b),
        **{f"{n} sentences a class": partial(contrast, found) for n, found in fewer.items()},
    }
    asked = [
        lab.sized(name, family, size.asked, start=size.asked / 2)
        for name, family in questions.items()
    ]
    toxicity = Toxicity(
        prompts, scorer=scorers, max_prompts=size.prompts, continuations=size.continuations
    )
    reading = (Perplexity(max_texts=size.texts), Divergence())
    whole = (
        toxicity,
        OrdinaryToxicity(scorer=scorers, max_prompts=size.ordinary, continuations=2),
        Diversity(max_prompts=size.texts, continuations=2),
        *reading,
        ToxicPerplexity(max_texts=size.texts),
        ZeroShot(limit=size.questions),
    )
    return [
        Group(
            "rules",
            "All rules at the divergence of AurA as the paper has it",
            (paper, *_found(rules)),
            whole,
            _absent(families, rules),
        ),
        Group(
            "budgets",
            "Rules at smaller and larger divergences",
            _found(curves),
            (toxicity, *reading),
        ),
        Group(
            "questions",
            f"What contrast depends on, at a divergence of {size.asked:g}",
            _found(asked),
            (replace(toxicity, prompts=search, max_prompts=size.asked_prompts), *reading),
            _absent(questions, asked),
        ),
    ]


def _count(dial: float, neurons: int) -> int:
    return min(round(dial), neurons)


def _found(trials: Sequence[Trial | None]) -> tuple[Trial, ...]:
    return tuple(trial for trial in trials if trial is not None)


def _absent(names: Iterable[str], trials: Sequence[Trial | None]) -> tuple[str, ...]:
    return tuple(name for name, trial in zip(names, trials, strict=True) if trial is None)


def _against_prose(lab: Lab, per_class: int) -> Concept:
    """The concept with prose in the place of the sentences that do not have it."""
    positive = lab.concept.sampled(max_per_class=per_class, seed=lab.seed).positive
    prose = clean_texts(lab.texts, most=len(positive), seed=lab.seed)
    return Concept(lab.concept.name, positive, tuple(prose), f"{lab.concept.source}, and prose")
