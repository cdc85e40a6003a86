"""Which rule removes most of a concept, at the same divergence from the original."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from sordino.concepts.concept import Concept
from sordino.evaluation import Divergence, Diversity, OrdinaryToxicity, ToxicPerplexity, ZeroShot
from sordino.expertise.attribution import AttributionSettings
from sordino.expertise.find import SweepSettings
from sordino.interventions import Dampening, aura, family
from sordino.interventions.contrast import measured_benefit
from sordino.models.sites import ATTENTION
from sordino.studies.findings import toxic
from sordino.studies.record import StudyRecord
from sordino.studies.study import Group, Plan, study
from sordino.studies.variants import (
    contrast_of,
    only_known,
    permuted,
    reversed_sign,
)
from sordino.studies.words import by_points, model_name, plain, ratio, rises, share
from sordino.tuning.calibration import clean_texts
from sordino.tuning.lab import Lab, Trial

Sizes = Callable[[float], Dampening]


def _answer(record: StudyRecord) -> Iterator[str]:
    """What the comparison with the paper's rule shows, by scorer, and no more than that.

    It is of the rule that is recommended, and not of the one that happens to come out best.
    """
    for group in record.groups:
        best, paper = group.trial("contrast"), group.trial("aura")
        if best is None or paper is None:
            continue
        spent = paper.evaluation.figure("divergence", "divergence").after
        said = []
        for removal in best.removals:
            verdict = (
                "significantly more than twice as much"
                if rises(removal.beyond_twice)
                else "which is not significantly more than twice as much"
            )
            said.append(f"{ratio(removal.ratio)} by {removal.scorer}, {verdict}")
        n = next(figure.n for _, figure in toxic(best.evaluation))
        name = model_name(record.model)
        yield (
            f"{name}: at the divergence of AurA as the paper has it "
            f"({plain(spent, 4)} nats a token), contrast removes of the toxic continuations "
            f"({n['continuations']:,} of {n['prompts']} prompts) this many times what AurA "
            f"removes: {'; '.join(said)}."
        )
        for (scorer, by_paper), (_, by_best) in zip(
            toxic(paper.evaluation), toxic(best.evaluation), strict=True
        ):
            if by_paper.before is None or by_paper.difference is None:
                continue
            level, change = by_paper.before.value or 0.0, by_paper.difference.value or 0.0
            yield (
                f"{name}, {scorer}: the original's {share(by_paper.before)} become "
                f"{share(by_paper.after)} with AurA ({by_points(by_paper.difference)}) and "
                f"{share(by_best.after)} with contrast; twice what AurA removes would leave "
                f"{max(0.0, 100 * (level + 2 * change)):.1f} %."
            )
        return


@study("Which rule removes most of the concept at the same divergence from the original?", _answer)
def methods(lab: Lab, plan: Plan) -> Iterator[Group]:
    """All rules and their controls at AurA's divergence, curves, and what contrast depends on."""
    expertise = lab.find("max", sweep=SweepSettings(stratify="length"))
    everywhere = plan.everywhere(lab)
    means = lab.find("mean", sweep=SweepSettings(pooling="mean", moments=True))
    seed = lab.seed
    paper = Trial("aura", aura(expertise))
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
    toxicity, reading = plan.toxicity(), plan.reading(lab)
    ordinary = plan.ordinary_prompts
    rules = [lab.sized(name, rule, paid, start=start) for name, (rule, start) in families.items()]
    by_name = {trial.name: trial for trial in _found(rules)}
    yield Group(
        "head-to-head",
        "AurA and contrast at the divergence of AurA, on as many continuations as it takes",
        (paper, *([by_name["contrast"]] if "contrast" in by_name else [])),
        (replace(toxicity, max_prompts=plan.most_many, continuations=plan.many), *reading),
        () if "contrast" in by_name else ("contrast",),
        against="aura",
    )
    yield Group(
        "rules",
        "All rules at the divergence of AurA as the paper has it",
        (paper, *_found(rules)),
        (
            toxicity,
            OrdinaryToxicity(
                ordinary, scorer=plan.scorers, max_prompts=plan.ordinary, continuations=2
            ),
            Diversity(ordinary, max_prompts=max(1, plan.texts // 2), continuations=2),
            *reading,
            ToxicPerplexity(plan.toxic_texts, max_texts=plan.texts),
            *([ZeroShot(plan.tasks, plan.questions)] if plan.tasks else []),
        ),
        _absent(families, rules),
        against="aura",
    )

    curves = [
        lab.sized(f"{name} at {budget:g}", rule, budget, start=start * budget)
        for budget in plan.budgets
        for name, rule, start in (
            ("aura", family(expertise, "aura"), 15.0),
            ("contrast", families["contrast"][0], 0.5),
        )
    ]
    yield Group(
        "budgets",
        "AurA and contrast at smaller and larger divergences",
        _found(curves),
        (toxicity, *reading),
        curve=True,
    )

    questions: dict[str, Sizes] = {
        "contrast": families["contrast"][0],
        "feed-forward sites only": family(everywhere.at(expertise.sites), "contrast"),
        "sign reversed": lambda b: contrast_of(everywhere, b, benefit=reversed_sign),
        "sampling error and all": lambda b: contrast_of(
            everywhere, b, benefit=lambda _: measured_benefit(everywhere)
        ),
        "amplifying too": family(everywhere, "contrast", amplify=1.0),
        "a λ for each site": lambda b: contrast_of(everywhere, b, each_site=True),
        "neurons of known AUROC only": lambda b: contrast_of(
            everywhere, b, benefit=only_known(everywhere)
        ),
        **_other_data(lab, plan),
    }
    asked = [
        lab.sized(name, rule, plan.asked, start=plan.asked / 2) for name, rule in questions.items()
    ]
    yield Group(
        "questions",
        f"What contrast depends on, at a divergence of {plan.asked:g}",
        _found(asked),
        (
            replace(toxicity, prompts=plan.other_prompts, max_prompts=plan.most_other),
            Divergence(lab.texts),
        ),
        _absent(questions, asked),
    )


def _other_data(lab: Lab, plan: Plan) -> dict[str, Sizes]:
    """Contrast on fewer sentences, and against other clean text."""
    found = {}
    most = len(lab.concept.positive)
    for count in plan.fewer:
        if count < min(plan.per_class, most):
            found[f"{count} sentences a class"] = lab.find(
                f"{count}-sentences",
                concept=lab.concept.sampled(max_per_class=count, seed=lab.seed),
                sites=ATTENTION,
                attribution=AttributionSettings(count, lab.seed),
            )
    count = min(max(plan.fewer), most)
    found[f"{count} sentences a class, prose as clean text"] = lab.find(
        "prose",
        concept=_against_prose(lab, count),
        sites=ATTENTION,
        attribution=AttributionSettings(count, lab.seed),
    )
    return {name: family(expertise, "contrast") for name, expertise in found.items()}


def _found(trials: Sequence[Trial | None]) -> tuple[Trial, ...]:
    return tuple(trial for trial in trials if trial is not None)


def _absent(names: Iterable[str], trials: Sequence[Trial | None]) -> tuple[str, ...]:
    return tuple(name for name, trial in zip(names, trials, strict=True) if trial is None)


def _against_prose(lab: Lab, per_class: int) -> Concept:
    """The concept with prose in the place of the sentences that do not have it."""
    positive = lab.concept.sampled(max_per_class=per_class, seed=lab.seed).positive
    prose = clean_texts(lab.texts, most=len(positive), seed=lab.seed)
    return Concept(lab.concept.name, positive, tuple(prose), f"{lab.concept.source}, and prose")
