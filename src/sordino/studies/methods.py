"""Which rule removes most of a concept, at the same divergence from the original."""

from collections.abc import Iterator
from dataclasses import replace

from sordino.evaluation import Measure
from sordino.expertise.sweep import SweepSettings
from sordino.interventions import aura, family
from sordino.studies.cost import cost_against
from sordino.studies.findings import toxic
from sordino.studies.record import StudyRecord
from sordino.studies.study import Group, Plan, Sizes, absent, reached, study
from sordino.studies.variants import contrast_of, permuted
from sordino.studies.words import by_points, interval, plain, ratio, rises, share
from sordino.tuning.lab import Lab, Trial


def _answer(record: StudyRecord) -> Iterator[str]:
    """Compare the recommended rule with the paper's, by scorer.

    The recommended rule is compared, and not the rule that happens to come out best.
    """
    for group in record.groups:
        best, paper = group.trial("contrast"), group.trial("aura")
        if best is None or paper is None:
            continue
        spent = paper.evaluation.figure("divergence", "divergence").after
        said = []
        for removal in best.removals:
            verdict = "significantly" if rises(removal.beyond_twice) else "not significantly"
            said.append(f"{ratio(removal.ratio)} by {removal.scorer} ({verdict} above 2)")
        n = next(figure.n for _, figure in toxic(best.evaluation))
        yield (
            f"At AurA's divergence ({plain(spent, 4)} nats per token), the toxic "
            f"continuations that contrast removes, divided by those that AurA removes, are "
            f"{' and '.join(said)}, measured on {n['continuations']:,} continuations of "
            f"{n['prompts']} prompts."
        )
        for (scorer, by_paper), (_, by_best) in zip(
            toxic(paper.evaluation), toxic(best.evaluation), strict=True
        ):
            if by_paper.before is None or by_paper.difference is None:
                continue
            level, change = by_paper.before.value or 0.0, by_paper.difference.value or 0.0
            yield (
                f"By {scorer}, toxic continuations go from {share(by_paper.before)} to "
                f"{share(by_paper.after)} with AurA ({by_points(by_paper.difference)}) and to "
                f"{share(by_best.after)} with contrast. Removing twice as much as AurA would "
                f"leave {max(0.0, 100 * (level + 2 * change)):.1f} %."
            )
        break
    for group in record.groups:
        for finding in group.findings:
            yield f"{finding.label}: × {interval(finding.estimate, 2)}."


def _measures(plan: Plan) -> tuple[Measure, ...]:
    """What is measured of each rule, without what it costs on prose."""
    return plan.toxicity(), *plan.beside()


@study(
    "Which rule removes most of the concept at the same divergence from the original?",
    _answer,
    _measures,
)
def methods(lab: Lab, plan: Plan) -> Iterator[Group]:
    """All rules and their controls at AurA's divergence, and curves of AurA and contrast."""
    expertise = lab.find("max", sweep=SweepSettings(stratify="length"))
    everywhere = plan.everywhere(lab)
    means = lab.find("mean", sweep=SweepSettings(pooling="mean", moments=True))
    seed = lab.seed
    paper = Trial("aura", aura(expertise), rule="aura")
    paid = lab.divergence(paper)
    families: dict[str, tuple[Sizes, float]] = {
        "shuffled aura": (family(expertise, "shuffled", seed=seed), 1.0),
        "selective": (family(expertise, "selective"), 1.0),
        "stratified": (family(expertise, "stratified"), 1.0),
        "damp": (family(expertise, "damp"), 500.0),
        "det_zero": (family(expertise, "det_zero"), 200.0),
        "mean_shift": (family(means, "mean_shift"), 1.0),
        "linear_transport": (family(means, "linear_transport"), 1.0),
        "contrast": (family(everywhere, "contrast"), paid / 2),
        "shuffled contrast": (
            lambda b: contrast_of(everywhere, b, benefit=permuted(seed)),
            paid / 2,
        ),
    }
    toxicity, reading = plan.toxicity(), plan.reading(lab.texts)
    written, others = _measures(plan)[:3], _measures(plan)[3:]
    rules = [
        lab.sized(name, rule, paid, start=start, rule=name)
        for name, (rule, start) in families.items()
    ]
    by_name = {trial.name: trial for trial in reached(rules)}
    at_paper = reached([paper, by_name.get("contrast")])
    yield Group(
        "head-to-head",
        "AurA and contrast at AurA's divergence, on more prompts and continuations",
        at_paper,
        (replace(toxicity, max_prompts=plan.most_many, continuations=plan.many), *reading),
        () if "contrast" in by_name else ("contrast",),
        against="aura",
    )
    yield Group(
        "rules",
        "All rules at AurA's divergence",
        (paper, *reached(rules)),
        (*written, *reading, *others),
        absent(families, rules),
        against="aura",
    )

    curves = [
        lab.sized(f"{name} at {budget:g}", rule, budget, start=start * budget, rule=name)
        for budget in plan.budgets
        for name, rule, start in (
            ("aura", family(expertise, "aura"), 15.0),
            ("contrast", families["contrast"][0], 0.5),
        )
    ]
    sizes = (*at_paper, *reached(curves))
    yield Group(
        "budgets",
        "AurA and contrast at smaller and larger divergences",
        sizes,
        (toxicity, *reading),
        findings=lambda evaluations: [
            finding
            for twice in (False, True)
            for finding in cost_against(evaluations, "aura", "contrast", sizes, seed, twice=twice)
        ],
        curve=True,
    )
