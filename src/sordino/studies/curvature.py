"""Whether a curvature that sees neurons act together makes contrast better."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial

import numpy as np

from sordino.evaluation import Estimate, Evaluation
from sordino.expertise.artefact import Expertise
from sordino.expertise.attribution import AttributionSettings, passages, scores_by_text
from sordino.expertise.sentences import chat_for
from sordino.expertise.statistic import Statistic
from sordino.expertise.sweep import BATCH_TOKENS, SweepSettings
from sordino.files import fingerprint
from sordino.interventions import Dampening, contrast, family
from sordino.interventions.curvature import Curvature, amounts_together
from sordino.interventions.rules.contrast import whole_benefit
from sordino.models.sites import ATTENTION
from sordino.studies.findings import compared, differences
from sordino.studies.own_samples import BOTH
from sordino.studies.record import Finding, StudyRecord
from sordino.studies.study import Group, Plan, Sizes, absent, own_evidence, reached, study
from sordino.studies.variants import by_changes
from sordino.studies.words import plain
from sordino.tuning.lab import Lab, Trial

_SHARES = (0.1, 0.5)
"""The shares of the curvature that are its diagonal."""


def _answer(record: StudyRecord) -> Iterator[str]:
    yield from compared(record, "curvature")
    for finding in record.group("curvature").findings:
        if finding.unit == "number":
            yield f"{finding.label}: {plain(finding.estimate, 3)}."


@study(
    "Does contrast remove more if costs are of neurons together, and not of each alone?",
    _answer,
    Plan.writing,
)
def curvature(lab: Lab, plan: Plan) -> Iterator[Group]:
    """Contrast by the Fisher information's diagonal, and by one of a higher rank.

    The latter's change is solved once, for a divergence by its own estimate, and then scaled to the
    divergence as it is measured.
    """
    expertise = plan.with_own(lab, plan.own(lab))
    diagonal = BOTH.format(plan.asked)
    whole = _solved(lab, plan, expertise)
    rules: dict[str, Sizes] = {diagonal: family(expertise, "contrast")}
    rules |= {name: made.scaled for name, made in whole.items()}
    trials = [lab.sized(name, rule, plan.asked) for name, rule in rules.items()]
    foretold = {diagonal: contrast(expertise, plan.asked), **whole}
    measured = {name: lab.divergence(Trial(name, made)) for name, made in foretold.items()}

    def findings(evaluations: Mapping[str, Evaluation]) -> Iterable[Finding]:
        pairs = {f"{name}, compared with {diagonal}": (name, diagonal) for name in whole}
        yield from differences(evaluations, pairs, lab.seed)
        for name, divergence in measured.items():
            yield Finding(
                name=f"measured, {name}",
                label=f"{name}: divergence where its own estimate is {plan.asked:g}",
                unit="number",
                estimate=Estimate(divergence, None, None),
            )

    yield Group(
        "curvature",
        f"Contrast at a divergence of {plan.asked:g}",
        reached(trials),
        (*plan.writing(), *plan.reading(lab.texts)),
        absent(rules, trials),
        findings,
        made_from=own_evidence(expertise),
    )


def _solved(lab: Lab, plan: Plan, expertise: Expertise) -> dict[str, Dampening]:
    """The changes within the divergence that is asked for, by estimates of neurons together."""
    # As in contrast, a neuron whose cost is unknown stays as it is.
    unknown = np.isnan(np.concatenate([*expertise[Statistic.COST].values()]))
    benefit = np.where(unknown, 0.0, whole_benefit(expertise, plan.asked))
    made_of = [expertise.metadata, fingerprint(benefit.tobytes()), plan.asked, plan.per_class]
    kept: list[tuple[np.ndarray, int]] = []

    def scores() -> tuple[np.ndarray, int]:
        if not kept:
            opened = replace(lab.finder, site_pattern=ATTENTION)
            settings = AttributionSettings(plan.per_class, lab.seed)
            chat = chat_for(opened, lab.concept, lab.chat)
            limits = SweepSettings().max_tokens, BATCH_TOKENS
            work = passages(opened, lab.concept, settings, *limits, chat)
            kept.append(scores_by_text(opened, work, lab.seed))
        return kept[0]

    def solve(share: float) -> Dampening:
        found = amounts_together(benefit, Curvature(*scores(), share), plan.asked)
        return by_changes(expertise, found, "contrast", budget=plan.asked, diagonal=share)

    return {
        f"together, {share:.0%} of the diagonal": lab.made(
            "together", [*made_of, share], partial(solve, share)
        )
        for share in _SHARES
    }
