"""How many sentences are enough, and whether other sentences find the same neurons."""

from collections.abc import Iterator

import numpy as np
from scipy import stats

from sordino.concepts.concept import Concept
from sordino.evaluation import Estimate
from sordino.expertise.artefact import Expertise
from sordino.interventions import aura
from sordino.studies.record import Finding, StudyRecord
from sordino.studies.study import Group, Plan, study
from sordino.studies.words import interval
from sordino.tuning.lab import Lab, Trial

_COUNTS = (20, 50, 100, 250, 500)
_BEST = 0.01


def _answer(record: StudyRecord) -> Iterator[str]:
    by_count: dict[str, list[str]] = {}
    for one in record.group("counts").findings:
        value = f"{one.about[0].lower()}{one.about[1:]} {interval(one.estimate, 2)}"
        by_count.setdefault(one.by, []).append(value)
    for count, values in by_count.items():
        yield f"Two disjoint halves with {count}: {', '.join(values)}."


@study("How many sentences are enough, and do two halves of them find the same neurons?", _answer)
def data(lab: Lab, plan: Plan) -> Iterator[Group]:
    """AurA from fewer and more sentences, and the same neurons' AUROC from other sentences."""
    parts = halves(lab.concept, lab.seed)
    trials, findings = [], []
    for count in _COUNTS:
        if count > min(len(parts[0].positive), len(parts[0].negative)):
            break
        found = [
            lab.find(f"half-{number}-{count}", concept=_first(half, count))
            for number, half in enumerate(parts)
        ]
        trials.append(Trial(f"{count} sentences per class", aura(found[0])))
        for what, value in agreement(*found).items():
            findings.append(
                Finding(
                    name=f"{what}, {count}",
                    label=f"{what}, {count} sentences per class",
                    unit="number",
                    estimate=Estimate(value, None, None),
                    about=what,
                    by=f"{count} sentences per class",
                )
            )
    yield Group(
        "counts",
        "AurA from fewer and more sentences",
        tuple(trials),
        (plan.toxicity(), *plan.reading(lab.texts)),
        findings=lambda _: findings,
    )


def halves(concept: Concept, seed: int) -> tuple[Concept, Concept]:
    """Two halves of a concept, in the order of a draw, without a sentence in common."""
    generator = np.random.default_rng(seed)
    orders = [
        generator.permutation(len(of)).tolist() for of in (concept.positive, concept.negative)
    ]
    return (
        concept.at(*(order[: len(order) // 2] for order in orders)),
        concept.at(*(order[len(order) // 2 :] for order in orders)),
    )


def agreement(one: Expertise, other: Expertise) -> dict[str, float]:
    """Spearman's correlation of all neurons' AUROC, and the share of the best in common."""
    a, b = (np.concatenate([*of["auroc"].values()]) for of in (one, other))
    known = ~(np.isnan(a) | np.isnan(b))
    a, b = a[known], b[known]
    most = max(1, int(_BEST * a.size))
    best = [set(np.argsort(-of, kind="stable")[:most].tolist()) for of in (a, b)]
    return {
        "Rank correlation of the AUROC": float(stats.spearmanr(a, b).statistic),
        f"Share of the best {_BEST:.0%} of neurons in common": len(best[0] & best[1]) / most,
    }


def _first(concept: Concept, count: int) -> Concept:
    return concept.at(
        range(min(count, len(concept.positive))), range(min(count, len(concept.negative)))
    )
