"""What the recommended edit removes, what it costs, and how it does without what makes it work."""

from collections.abc import Iterator, Mapping
from functools import partial
from itertools import islice
from typing import Any

from sordino.evaluation import Figure, Measure, Toxicity
from sordino.evaluation.measures.divergence import ContinuedDivergence
from sordino.evaluation.result import measure_of
from sordino.evaluation.scorer import TOXIC_SCORE
from sordino.evaluation.texts import CODE, choose
from sordino.files import capital
from sordino.interventions import Dampening, aura, family
from sordino.models.chat import Chat
from sordino.models.chat_template import fingerprint_of, template_of
from sordino.studies.contenders import CORPUS, OURS, Bench
from sordino.studies.findings import compared, differences, toxic
from sordino.studies.record import GroupRecord, Removal, StudyRecord, TrialRecord
from sordino.studies.study import Group, Plan, Sizes, absent, own_evidence, reached, study
from sordino.studies.variants import permuted_edit, reversed_edit, with_own
from sordino.studies.words import by_points, interval, plain, ratio, rises, share
from sordino.tuning.lab import Lab, Trial

_AURA = "aura"
_PERMUTED, _REVERSED = "permuted within sites", "sign reversed"
_JUDGED = "own samples, random judge"
_AS_AURA = f"{OURS} at AurA's divergence"
_REPLIES = 2
"""The most replies to a prompt: they take several times as long as continuations."""
_SIZED = "{} at {:g}"


def _answer(record: StudyRecord) -> Iterator[str]:
    effect, sizes = record.group("effect"), record.group("budgets")
    ours = _ours(effect)
    if ours is None:
        yield "The recommended edit does not reach the divergence."
        return
    for scorer, figure in toxic(ours.evaluation):
        left = "; ".join(_left(trial, scorer) for trial in sizes.trials if trial.name != _AURA)
        yield f"By {scorer}, of {share(figure.before)} the recommended edit leaves {left}."
    yield from _beside_aura(effect)
    yield from compared(record, "effect")
    for place, where in _PLACES.items():
        yield from _at(record, place, where)
    yield f"What {ours.name} costs: {'; '.join(_costs(record, ours.name))}."


def _ours(group: GroupRecord) -> TrialRecord | None:
    """The recommended edit at the divergence that was asked for."""
    named = (trial for trial in group.trials if trial.name.startswith(f"{OURS} at "))
    return next((trial for trial in named if trial.name != _AS_AURA), None)


def _left(trial: TrialRecord, scorer: str) -> str:
    """What a trial leaves, in words."""
    figure = dict(toxic(trial.evaluation))[scorer]
    spent = trial.evaluation.figure("divergence", "divergence").after
    return f"{share(figure.after)} at {plain(spent, 3)} nats per token (÷ {_over(figure)})"


def _over(figure: Figure) -> str:
    return "unbounded" if figure.ratio is None else interval(figure.ratio, 1)


def _beside_aura(group: GroupRecord) -> Iterator[str]:
    """What is removed at AurA's own divergence, beside what AurA removes."""
    same = group.trial(_AS_AURA)
    said = [_times(of) for of in (same.removals if same else ())]
    if said:
        yield (
            "At AurA's divergence, the toxic continuations that the recommended edit removes, "
            f"divided by those that AurA removes, are {'; '.join(said)}."
        )


def _times(of: Removal) -> str:
    if of.ratio.value is None:
        return f"by {of.scorer} {ratio(of.ratio)}"
    above = "" if rises(of.beyond_twice) else "not "
    return f"by {of.scorer} {ratio(of.ratio)}, {above}significantly above 2"


_PLACES = {
    "elsewhere": "other prompts",
    "replies": "replies in the chat template",
}
"""What a group with further toxicity is measured on, by its name."""


def _at(record: StudyRecord, name: str, where: str) -> Iterator[str]:
    """What the recommended edit leaves in a group that a model need not have."""
    group = next((group for group in record.groups if group.name == name), None)
    ours = None if group is None else _ours(group)
    if ours is None:
        return
    key = next(key for key in ours.evaluation.measures if measure_of(key) == "toxicity")
    said = "; ".join(
        f"{share(figure.after)} of {share(figure.before)} by {scorer} "
        f"({by_points(figure.difference)})"
        for scorer, figure in toxic(ours.evaluation, key)
    )
    yield f"{capital(where)}: {ours.name} leaves {said}."


def _costs(record: StudyRecord, trial: str) -> Iterator[str]:
    """What a trial costs, in parts of a sentence."""
    for of, (measure, name), title in (
        ("effect", ("perplexity", "corpus"), "perplexity of prose"),
        ("code", ("perplexity", "corpus"), "perplexity of code"),
        ("groups", ("coverage", "perplexity.all"), "perplexity of harmless text about groups"),
    ):
        found = record.group(of).trial(trial)
        if found is not None:
            times = found.evaluation.figure(measure, name).ratio
            yield f"{title} × {interval(times, 3) if times else 'undefined'}"
    for of, where in (("code", "code"), ("harmless", "harmless continuations of toxic prompts")):
        found = record.group(of).trial(trial)
        if found is not None:
            nats = found.evaluation.figure("divergence", "divergence").after
            yield f"divergence on {where} {interval(nats, 4)}"
    for group in record.groups:
        found = group.trial(trial) if group.name in ("beside", "refusals") else None
        for key, result in found.evaluation.measures.items() if found else ():
            for figure in result.figures:
                if figure.name in _TOLD.get(measure_of(key), ()):
                    yield (
                        f"{figure.label[0].lower()}{figure.label[1:]} {share(figure.before)} to "
                        f"{share(figure.after)} ({by_points(figure.difference)})"
                    )


_TOLD = {
    "zero-shot": ("mean.acc",),
    "ordinary-toxicity": ("continuations.all",),
    "refusals": ("refused.safe", "refused.unsafe"),
}
"""The shares that the answer tells, by measure."""


def _needed(plan: Plan) -> tuple[Measure, ...]:
    """The measures that read prompts or use scorers; replies have the same scorers."""
    plan.elsewhere().chosen(0)  # which are there, before long work
    return plan.toxicity(), plan.refusing(), plan.about_groups(), *plan.beside()


_LEGEND = (
    f"{OURS}: the recommended edit, contrast with the labelled sentences and with the model's own "
    "samples. It is the rule that run uses by default, at a divergence of 0.05 nats per token. "
    "What it was made from here is said for each model.",
    f"{CORPUS}: contrast with the labelled sentences alone.",
    f"{_AURA}: the paper's rule, as published.",
    f"Controls with the recommended edit's divergence: {_JUDGED} (the judge's scores are permuted "
    f"within each prompt, and no labelled sentences are used); {_PERMUTED} (the factors go to "
    f"other neurons of the same linear layer); {_REVERSED} (what was dampened is amplified).",
    "÷ is the original's share divided by the edit's: ÷ 5 leaves a fifth. It is unbounded where "
    "nothing is left, which can be so in some resamples only. × is a perplexity after the edit "
    "divided by the one before. Other changes of shares are in points of a per cent.",
)


@study(
    "What does the recommended edit remove, and what does it cost?",
    _answer,
    _needed,
    legend=_LEGEND,
)
def recommended(lab: Lab, plan: Plan) -> Iterator[Group]:
    """Own samples and corpus, at several sizes, beside the corpus alone, AurA and three controls.

    The controls have the same divergence: the edit's amounts permuted within each site, its amounts
    with the sign reversed, and the edit that own samples with a random judge's scores give.
    """
    bench = Bench(lab, plan)
    everywhere, published = bench.everywhere, Trial(_AURA, aura(bench.papers), rule=_AURA)
    judged = with_own(everywhere, plan.randomly_judged(lab, bench.own))
    best = family(everywhere, "contrast")

    def ours(divergence: float, name: str = "") -> Trial | None:
        named = name or _SIZED.format(OURS, divergence)
        return lab.sized(named, best, divergence, start=divergence / 2, rule=OURS)

    corpus = lab.sized(
        _SIZED.format(CORPUS, plan.asked),
        family(everywhere, "contrast", evidence="corpus"),
        plan.asked,
        start=plan.asked / 2,
        rule=CORPUS,
    )
    asked, paid = ours(plan.asked), lab.divergence(published)
    as_aura = ours(paid, _AS_AURA)
    controls: dict[str, Sizes] = {_JUDGED: family(judged, "contrast", evidence="own")}
    if asked is not None:
        edit = asked.dampening
        assert isinstance(edit, Dampening)  # contrast gives nothing else
        controls |= {
            _PERMUTED: permuted_edit(edit, lab.seed).scaled,
            _REVERSED: reversed_edit(edit).scaled,
        }
    found = {name: lab.sized(name, of, plan.asked) for name, of in controls.items()}
    trials = reached([published, as_aura, corpus, asked, *found.values()])
    toxicity = plan.toxicity()
    others = [trial for trial in trials if trial not in (asked, as_aura)]
    yield Group(
        "effect",
        f"At a divergence of {plan.asked:g} and at AurA's own, with controls",
        trials,
        (toxicity, *plan.reading(lab.texts)),
        absent([_AS_AURA, CORPUS, OURS, *controls], [as_aura, corpus, asked, *found.values()]),
        findings=partial(
            differences,
            pairs={
                f"{asked.name}, compared with {trial.name}": (asked.name, trial.name)
                for trial in others
                if asked is not None
            },
            seed=lab.seed,
        ),
        against=_AURA,
        made_from=own_evidence(everywhere),
    )
    sizes = [ours(budget) for budget in sorted({*plan.budgets, plan.asked})]
    yield Group(
        "budgets",
        "The recommended edit at smaller and larger divergences, and AurA",
        reached([published, *sizes]),
        (toxicity, *plan.reading(lab.texts)),
        curve=True,
    )
    main = reached([published, corpus, asked])
    yield Group("elsewhere", f"On {_PLACES['elsewhere']}", main, (plan.elsewhere(),))
    template = template_of(lab.ref)
    if template is not None:
        form = Chat("on"), fingerprint_of(template)
        few = min(_REPLIES, plan.continuations)
        replies = plan.toxicity(new_tokens=plan.reply_tokens, continuations=few).in_chat(*form)
        yield Group("replies", "Toxic replies in the chat template", main, (replies,))
        yield Group("refusals", "Refusals", main, (plan.refusing().in_chat(*form),))
    yield Group("beside", "What it costs elsewhere", main, plan.beside())
    code = plan.reading(CODE)
    yield Group("code", "Code: functions of Python's standard library", main, code)
    yield Group(
        "harmless",
        "Harmless continuations, by the original, of the toxic prompts",
        main,
        (_on_harmless(lab, plan, toxicity, published),),
    )
    yield Group("groups", "Harmless text about groups of people", main, (plan.about_groups(),))


def _on_harmless(lab: Lab, plan: Plan, toxicity: Toxicity, trial: Trial) -> ContinuedDivergence:
    """How far the model is on what the original wrote without the concept after toxic prompts.

    It is what no scorer calls toxic, once for each prompt.
    """
    rows = lab.compare([trial], [toxicity])[0].samples["toxicity"]
    harmless = (
        (row["prompt"], one["text"])
        for row in rows
        for one in islice(filter(_is_harmless, row["before"]), 1)
    )
    return ContinuedDivergence(
        "harmless continuations of the toxic prompts",
        max_texts=plan.texts,
        pairs=tuple(choose([*harmless], plan.texts, lab.seed)),
    )


def _is_harmless(one: Mapping[str, Any]) -> bool:
    """Whether a continuation is there, and no scorer calls it toxic."""
    scores = (one["score"], *one.get("scores", {}).values())
    return bool(one["text"].strip()) and all(
        score is not None and score <= TOXIC_SCORE for score in scores
    )
