"""A chat model after an edit: its replies, its refusals, and text about groups of people.

The recommended rule is there without protection, with texts about groups that are protected in the
edit itself, and with the model's own refusals protected as well, so that what protection is worth
is read off the same prompts and texts.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import chain

import numpy as np
import torch

from sordino.concepts import load_concept
from sordino.concepts.text_files import one_line
from sordino.evaluation import Estimate, Evaluation, Figure, Measure, Piqa
from sordino.evaluation.groups import in_words
from sordino.evaluation.measures.bold import protected_texts
from sordino.evaluation.measures.coverage import FEWEST
from sordino.evaluation.measures.refusals import SAFE, UNSAFE
from sordino.evaluation.protection import own_refusals, unsafe_requests
from sordino.evaluation.scorer import TOXIC_SCORE
from sordino.evaluation.statistics import (
    Floats,
    compare,
    compare_gaps,
    compare_shares,
    ratio_of_means,
)
from sordino.expertise.attribution import AttributionSettings
from sordino.expertise.refusals import FEWEST_REFUSALS, RefusalSettings
from sordino.files import capital
from sordino.interventions import aura, family
from sordino.models.chat import Chat
from sordino.models.chat_template import fingerprint_of, template_of
from sordino.models.sites import ATTENTION
from sordino.studies.concepts import effect_on, reading_on
from sordino.studies.findings import differences, toxic, toxicities
from sordino.studies.record import Finding, GroupRecord, StudyRecord
from sordino.studies.study import Group, Plan, absent, reached, study
from sordino.studies.words import (
    by_points,
    interval,
    listed,
    share,
    written,
)
from sordino.tuning.lab import Lab, Trial

_ALONE, _GUARDED = "contrast", "contrast with protection"
_REFUSING = "contrast with refusals protected"
_COMPARED = {
    "protection": "with protection less without it",
    "protected refusals": "with refusals and groups protected less with groups alone",
}
_REFUSALS = "refusals:chat"
_ALONG = "along-"
_WORST = 10


def _answer(record: StudyRecord) -> Iterator[str]:
    trials = record.group("toxicity").trials
    first = trials[0].evaluation
    if len(toxicities(first)) == 1:
        yield "The model has no chat template: it is measured by continuations alone."
    for judge in (scorer for scorer, _ in toxic(first) if scorer.endswith(f":{record.model}")):
        yield (
            f"The scorer {judge} judges with the model itself as it was before the edit, "
            "and so is no independent judge of it: go by the other one."
        )
    along = [group for group in record.groups if group.name.startswith(_ALONG)]
    for trial in trials:
        for key in toxicities(trial.evaluation):
            changes = " and ".join(
                f"{share(figure.before)} to {share(figure.after)} by {scorer} "
                f"({by_points(figure.difference)})"
                for scorer, figure in toxic(trial.evaluation, key)
            )
            yield f"{trial.name}: toxic {written(key)} go from {changes}."
        beside = [said for group in record.groups for said in _beside(group, trial.name)]
        yield f"{trial.name}: {'; '.join(beside)}."
        effects = [effect_on(of, group.name) for group in along if (of := group.trial(trial.name))]
        taken = [effect.read_on.removeprefix(_ALONG) for effect in effects if effect.is_down]
        if effects:
            yield (
                f"{trial.name}: text with another concept becomes less likely, relative to "
                f"other text from the same source, in {len(taken)} of {len(effects)} cases "
                f"({listed(taken)})."
            )
    for group in record.groups:
        if group.name in _COMPARED and group.findings:
            said = "; ".join(map(_compared, group.findings))
            yield f"{capital(_COMPARED[group.name])}: {said}."
        yield from (f"{capital(note)}." for note in group.notes)


def _beside(group: GroupRecord, trial: str) -> Iterator[str]:
    """What a trial does beside toxicity, in parts of a sentence."""
    found = group.trial(trial)
    if found is None:
        return
    if group.name == "refusals":
        for kind in (SAFE, UNSAFE):
            refused = found.evaluation.find_figure(_REFUSALS, f"refused.{kind}")
            if refused is None:  # no prompt of that kind was drawn
                continue
            yield (
                f"{kind} prompts refused {share(refused.before)} to {share(refused.after)} "
                f"({by_points(refused.difference)})"
            )
    elif group.name == "groups":
        for figure in found.evaluation.measures["coverage"].figures:
            if figure.name in ("perplexity.worst", "perplexity.all"):
                yield f"{figure.label[0].lower()}{figure.label[1:]} {_times(figure)}"
    elif group.name == "cost":
        corpus = found.evaluation.figure("perplexity", "corpus")
        yield f"perplexity of ordinary text {_times(corpus)}"
        yield f"PIQA {by_points(found.evaluation.figure('piqa', 'accuracy').difference)}"


def _times(figure: Figure) -> str:
    return "undefined" if figure.ratio is None else f"× {interval(figure.ratio, 3)}"


def _compared(finding: Finding) -> str:
    by = f" by {finding.by}" if finding.by else ""
    points = finding.unit == "points"
    said = by_points(finding.estimate) if points else interval(finding.estimate, 4)
    clear = "" if finding.estimate.excludes_0 else ", not significant"
    return f"{finding.about}{by} {said}{clear}"


def _measures(plan: Plan) -> tuple[Measure, ...]:
    """The measures that read prompts or use scorers; replies have the same scorers."""
    return (
        plan.toxicity(),
        plan.refusing(),
        plan.about_groups(),
        Piqa(plan.questions),
    )


@study(
    "How do chat models speak after an edit, and what becomes of harmless text about groups of "
    "people?",
    _answer,
    _measures,
)
def chat(lab: Lab, plan: Plan) -> Iterator[Group]:
    """AurA, contrast, and contrast with protection: replies, refusals, groups and cost."""
    toxicity, refusals, coverage, piqa = _measures(plan)
    cost = (*plan.reading(lab.texts), piqa)
    along = {
        name: reading_on(lab, f"{_ALONG}{name}", load_concept(name, seed=lab.seed), plan)
        for name in plan.concepts
        if name != lab.concept.name
    }
    reading = (coverage, *cost, *chain.from_iterable(along.values()))
    template = template_of(lab.ref)
    measured = _texts_of(reading, lab.seed)
    own, why = None, ""
    if template is not None:
        own, why = _own_refusals(lab, plan, measured | _texts_of((refusals,), lab.seed))
    trials, missing = _trials(lab, plan, measured, own)
    replies: list[Measure] = []
    if template is not None:
        asked = plan.toxicity(new_tokens=plan.reply_tokens), refusals
        in_chat = (one.in_chat(Chat("on"), fingerprint_of(template)) for one in asked)
        replies = [one for one in in_chat if one is not None]
    yield Group(
        "toxicity",
        "Toxic continuations" + (" and replies" if replies else ""),
        trials,
        (toxicity, *replies[:1]),
        missing,
    )
    if replies:
        notes = (why,) if why else ()
        yield Group("refusals", "Refusals", trials, tuple(replies[1:]), notes=notes)
    yield Group(
        "groups",
        "Harmless text about groups of people",
        trials,
        (coverage,),
        findings=_by_group,
        crossed=True,
    )
    yield Group("cost", "What it costs elsewhere", trials, cost)
    for name, measures in along.items():
        yield Group(f"{_ALONG}{name}", f"Text with another concept: {name}", trials, measures)
    pair = tuple(trial for trial in trials if trial.name in (_ALONE, _GUARDED))
    if len(pair) == 2:
        yield Group(
            "protection",
            "Contrast with protection compared with contrast alone",
            pair,
            (toxicity, *replies[:1], coverage),
            findings=lambda evaluations: _with_protection(evaluations, lab.seed),
        )
    pair = tuple(trial for trial in trials if trial.name in (_GUARDED, _REFUSING))
    if len(pair) == 2:
        yield Group(
            "protected refusals",
            "Contrast with refusals protected as well, compared with protected groups alone",
            pair,
            (toxicity, *replies),
            findings=lambda evaluations: _with_refusals(evaluations, lab.seed),
        )


def _texts_of(measures: Iterable[Measure], seed: int) -> set[str]:
    """The texts that measures without scorers take, each in one line."""
    tasks = (one.prepare(seed, torch.device("cpu")) for one in measures)
    return {one_line(text.text) for task in tasks for text in task.texts}


def _own_refusals(
    lab: Lab, plan: Plan, measured: Collection[str]
) -> tuple[RefusalSettings | None, str]:
    """Which refusals are protected, or why none are.

    No request by which they are measured is among them.
    """
    left = unsafe_requests(plan.refusal_prompts, measured)
    if len(left) < FEWEST_REFUSALS:
        return None, (
            f"no trial protects refusals, since only {len(left):,} unsafe requests are not "
            f"measured, and at least {FEWEST_REFUSALS} are needed"
        )
    settings = own_refusals(plan.refusal_prompts, seed=lab.seed, measured=measured)
    lacking = lab.own_refusals(settings).lacking
    return (None, f"no trial protects refusals, since {lacking}") if lacking else (settings, "")


def _trials(
    lab: Lab, plan: Plan, measured: Collection[str], refusals: RefusalSettings | None
) -> tuple[tuple[Trial, ...], tuple[str, ...]]:
    """AurA as published, contrast at a divergence, and the rules that cannot reach it.

    No text by which they are measured is protected. All come from one expertise.
    """
    texts = protected_texts(plan.protect, plan.per_class, lab.seed, measured)
    settings = AttributionSettings(plan.per_class, lab.seed, tuple(texts), refusals)
    found = lab.find("protected", sites=ATTENTION, attribution=settings)
    own = found.at({site.path for site in lab.opened.sites})
    kinds = {_ALONE: found.unprotected(), _GUARDED: found}
    if refusals is not None:
        kinds |= {_GUARDED: found.without_refusals(), _REFUSING: found}
    sized = [
        lab.sized(name, family(expertise, "contrast"), plan.asked)
        for name, expertise in kinds.items()
    ]
    return (Trial("aura", aura(own)), *reached(sized)), absent(kinds, sized)


def _by_group(evaluations: Mapping[str, Evaluation]) -> Iterator[Finding]:
    """The gaps between groups, and the groups that lose most by contrast, by each trial."""
    figures = {
        trial: {figure.name: figure for figure in of.measures["coverage"].figures}
        for trial, of in evaluations.items()
    }
    first = figures.get(_ALONE) or next(iter(figures.values()))
    gaps = [name for name in first if name.startswith("gap.cost.")]
    # They come the worst first.
    groups = [
        name
        for name, figure in first.items()
        if figure.detail and name.startswith("perplexity.") and figure.n["texts"] >= FEWEST
    ]
    for name in (*gaps, "perplexity.all", *groups[:_WORST]):
        what = "nats per token" if name in gaps else "after ÷ before"
        for trial, of in figures.items():
            figure = of[name]
            value = figure.after if name in gaps else figure.ratio
            if value is not None:
                about = f"{figure.label}, {what}"
                yield Finding(
                    name=f"{name}, {trial}",
                    label=f"{about}, {trial}",
                    unit="number",
                    estimate=value,
                    about=about,
                    by=trial,
                )


def _with_protection(evaluations: Mapping[str, Evaluation], seed: int) -> Iterator[Finding]:
    """What protection changes, on the same prompts and texts."""
    for key in toxicities(evaluations[_GUARDED]):
        pairs = {f"toxic {written(key)}": (_GUARDED, _ALONE)}
        yield from differences(evaluations, pairs, seed, key)
    arms = [evaluations[name].samples["coverage"] for name in (_ALONE, _GUARDED)]
    scored = [number for number, row in enumerate(arms[0]) if row["tokens"] > 0]
    tokens = np.array([arms[0][number]["tokens"] for number in scored], dtype=np.float64)
    alone, guarded = (
        np.array([arm[n]["nll_after"] - arm[n]["nll_before"] for n in scored]) for arm in arms
    )
    lost = compare(
        np.stack([alone, tokens], axis=1),
        np.stack([guarded, tokens], axis=1),
        ratio_of_means,
        seed,
    )
    yield _nats("log-likelihood lost per token of text about groups", lost.difference)
    members: dict[str, dict[str, list[int]]] = {}
    for index, number in enumerate(scored):
        row = arms[0][number]
        members.setdefault(row["domain"], {}).setdefault(row["group"], []).append(index)
    for domain, groups in members.items():
        gap = compare_gaps(alone / tokens, guarded / tokens, list(groups.values()), seed)
        if gap is not None:
            yield _nats(f"gap between groups in that, {in_words(domain)}", gap.difference)


def _with_refusals(evaluations: Mapping[str, Evaluation], seed: int) -> Iterator[Finding]:
    """What protecting refusals as well changes, on the same prompts."""
    for kind in (UNSAFE, SAFE):
        arms = np.stack([_refused(evaluations[name], kind) for name in (_GUARDED, _REFUSING)])
        without, protected = arms[:, np.isfinite(arms).all(axis=0)]
        if len(without):
            difference = compare_shares(without, protected, seed).difference
            assert difference is not None  # there are both
            about = f"{kind} prompts refused"
            yield Finding(name=about, label=about, unit="points", estimate=difference, about=about)
    for key in toxicities(evaluations[_REFUSING]):
        pairs = {f"toxic {written(key)}": (_REFUSING, _GUARDED)}
        yield from differences(evaluations, pairs, seed, key)


def _refused(evaluation: Evaluation, kind: str) -> Floats:
    """Whether each prompt of a kind is refused after the edit, 1 or 0, float64 [prompts].

    It is not-a-number where there is no reply.
    """
    rows = (row for row in evaluation.samples[_REFUSALS] if row["group"] == kind)
    scores = np.array([row["after"][0]["score"] for row in rows], np.float64)
    return np.where(np.isnan(scores), np.nan, scores > TOXIC_SCORE)


def _nats(about: str, difference: Estimate | None) -> Finding:
    assert difference is not None  # there are both
    label = f"{about}, nats per token"
    return Finding(name=about, label=label, unit="number", estimate=difference, about=about)
