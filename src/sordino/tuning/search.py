"""Search for the rule, the sites and the strength that remove most of a concept within a budget.

The choice is made on one half of the prompts and clean texts and reported on the other, because the
least of many noisy figures is biased.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sordino import progress as show
from sordino.errors import UserError, require_at_least
from sordino.evaluation import (
    Divergence,
    Estimate,
    Evaluation,
    Measure,
    Prepared,
    Toxicity,
    prepare,
)
from sordino.evaluation.measures.toxicity import prompts_of
from sordino.evaluation.texts import Text, read_texts
from sordino.expertise.artefact import Expertise
from sordino.expertise.attribution import AttributionSettings
from sordino.expertise.statistic import Asked
from sordino.expertise.sweep import SweepSettings
from sordino.extras import require
from sordino.files import counted, new_file, printable
from sordino.interventions import RULES, Dampening, aura, family, sites_for
from sordino.records import Record
from sordino.tuning.budget import Budget
from sordino.tuning.calibration import clean_texts
from sordino.tuning.lab import Lab, Trial

TRIED = ("aura", "selective", "stratified", "damp", "det_zero", "contrast")
"""The default rules; rules with shifts are left out, because they need their own sweep."""

_WIDEST = 0.5
"""The largest divergence that is tried if the budget limits another figure, in nats per token."""
_AIM = 0.9
"""The largest divergence that is tried, as a share of the budget if that limits the divergence.

Over 100 texts its standard error is some 4 % for AurA on SmolLM2 and 6 % for contrast; that of the
difference between two such sets is 6 % and 9 %. An intervention calibrated to the budget itself
would exceed it on half of all other texts.
"""
_SHARE = 0.1
"""The smallest divergence that is tried, as a share of the largest."""
_FRONT = 5
_FEWEST = 40
_SEEDS = 2**32
"""So many seeds are there for the sampler."""


@dataclass(frozen=True)
class TuneSettings:
    """What a search tries and how it measures.

    Args:
        budget: The limit on the intervention's cost.
        rules: The rules to try.
        trials: How many interventions to measure.
        toxicity: How toxicity is measured; its prompts are split in half.
        reported: Further measures of the interventions that are reported.
        per_class: Sentences of each class for attribution.
    """

    budget: Budget
    rules: Sequence[str] = TRIED
    trials: int = 24
    toxicity: Toxicity = field(default_factory=lambda: Toxicity(continuations=2))
    reported: Sequence[Measure] = ()
    per_class: int = 1000

    def __post_init__(self) -> None:
        require_at_least(1, trials=self.trials)
        if not self.rules:
            raise UserError("There is no rule to try: give at least one of `rules`.")
        for rule in self.rules:
            RULES.named(rule)


class Tried(Record):
    """An intervention, measured on the first half of the prompts.

    Args:
        rule: The rule's name.
        sites: The kind of site that it changes, or "all" for every site of the rule.
        dial: Its strength or setting; see `sordino.interventions.family`.
        changed: How many neurons it changes.
        prompts: How many prompts it was measured on.
        toxicity: The share of toxic continuations.
        cost: The figure that the budget limits.
        divergence: From the original, in nats per token.
        kept: Whether it keeps the budget.
    """

    rule: str
    sites: str
    dial: float
    changed: int
    prompts: int
    toxicity: Estimate
    cost: Estimate
    divergence: Estimate
    kept: bool


class Reported(Record):
    """An intervention, measured on the other half of the prompts.

    Args:
        name: Its name.
        tried: Its result on the first half; None if it was not chosen there.
        evaluation: All figures against the original.
        kept: Whether it keeps the budget here.
    """

    name: str
    tried: Tried | None
    evaluation: Evaluation
    kept: bool


class Tuned(Record):
    """The result of a search.

    Args:
        model: The model's name.
        concept: The concept's name.
        budget: The budget as text.
        seed: Of everything that is random.
        search_prompts: How many prompts the choice was made on.
        report_prompts: How many other prompts it is reported on.
        tried: Every trial, in order.
        reported: The best first, then the others of the Pareto front, and AurA as in the paper.
    """

    model: str
    concept: str
    budget: str
    seed: int
    search_prompts: int
    report_prompts: int
    tried: tuple[Tried, ...]
    reported: tuple[Reported, ...]

    @property
    def best(self) -> Reported | None:
        """The chosen one; None if none is within the budget."""
        return next((one for one in self.reported if one.tried and one.tried.kept), None)


def prepare_search(settings: TuneSettings, texts: str, *, device: str, seed: int) -> Prepared:
    """Open what a search will need, before a model is downloaded and anything long begins.

    Keep the result until the search ends, so that its scorers are opened once.

    Args:
        settings: What is tried and measured.
        texts: The clean texts.
        device: Where text classifiers run.
        seed: Of everything that is random.

    Raises:
        UserError: Something that it needs is not available.
    """
    require("tune", "A search")
    wanted = {
        one.key: one
        for one in (
            settings.toxicity,
            Divergence(texts),
            settings.budget.make_measure(texts),
            *settings.reported,
        )
    }
    return prepare(list(wanted.values()), compared=True, device=device, seed=seed)


def search(lab: Lab, folder: Path, settings: TuneSettings) -> tuple[Tuned, Dampening | None]:
    """Search, and report the choice on held-out prompts.

    Args:
        lab: The model and the folder of its work.
        folder: Where the halves of the prompts and texts are stored.
        settings: What is tried and measured.

    Returns:
        The result, and the chosen intervention; None if none is within the budget.

    Raises:
        UserError: There are too few prompts or clean texts, or optuna is not installed.
    """
    require("tune", "A search")
    import optuna

    choosing, reporting = _halves(lab, folder, settings)
    bench = _Bench(lab, settings, choosing.measures)
    # In memory: the lab stores all measurements, so a search that was killed repeats its trials
    # without measuring.
    with _quiet_optuna():
        study = optuna.create_study()
    for rule in settings.rules:  # each rule is tried once with all sites, at full strength
        study.enqueue_trial({"rule": rule, "sites": "all", "share": 1.0})
    with _quiet_optuna(), show.track("tune", settings.trials, "trials") as advance:
        for number in range(settings.trials):
            # A sampler for each trial, so that its draw depends on the earlier trials alone.
            study.sampler = optuna.samplers.TPESampler(
                seed=(lab.seed + number) % _SEEDS,
                n_startup_trials=2 * len(settings.rules),
                constraints_func=lambda trial: trial.user_attrs["excess"],
            )
            study.optimize(bench.objective, n_trials=1)
            advance(1)
    tried = [
        Tried.model_validate_json(t.user_attrs["tried"])
        for t in study.trials
        if t.state == optuna.trial.TrialState.COMPLETE
    ]
    return bench.report(tried, reporting)


@contextmanager
def _quiet_optuna() -> Iterator[None]:
    """Keep optuna's line for every trial out of the output."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


class _Bench:
    """Measures one intervention after the other."""

    def __init__(self, lab: Lab, settings: TuneSettings, measures: Sequence[Measure]) -> None:
        self._lab, self._settings, self._measures = lab, settings, measures
        self._kinds = sorted({site.kind for site in lab.finder.sites})

    def objective(self, trial: Any) -> float:
        """The toxicity under an optuna trial's intervention."""
        settings = self._settings
        rule = trial.suggest_categorical("rule", list(settings.rules))
        sites = trial.suggest_categorical("sites", ["all", *self._kinds])
        share = trial.suggest_float("share", _SHARE, 1.0, log=True)
        limited = settings.budget.measure == "divergence"
        widest = _AIM * settings.budget.limit if limited else _WIDEST
        found = self._lab.largest(f"{rule} on {sites}", self._family(rule, sites), share * widest)
        [evaluation] = self._lab.compare([found], self._measures)
        excess = settings.budget.excess(evaluation)
        toxicity = evaluation.measures[settings.toxicity.key].figures[0]
        tried = Tried(
            rule=rule,
            sites=sites,
            dial=found.dial or 0.0,
            changed=found.dampening.changed,
            prompts=toxicity.n["prompts"],
            toxicity=toxicity.after,
            cost=settings.budget.figure(evaluation).after,
            divergence=evaluation.figure("divergence", "divergence").after,
            kept=excess <= 0,
        )
        trial.set_user_attr("excess", [excess])
        trial.set_user_attr("tried", tried.model_dump_json())
        return float(toxicity.after.value or 0.0)

    def report(self, tried: Sequence[Tried], held_out: "_Half") -> tuple[Tuned, Dampening | None]:
        """The best, the Pareto front and the paper's rule on the held-out half."""
        chosen = _front(tried)
        made = [self._family(one.rule, one.sites)(one.dial) for one in chosen]
        trials = [
            Trial(f"{one.rule} on {one.sites}", dampening)
            for one, dampening in zip(chosen, made, strict=True)
        ]
        paper = Trial("aura, as the paper has it", aura(self._expertise))
        halves = {
            self._settings.toxicity.prompts: held_out.prompts,
            self._lab.texts: held_out.texts,
        }
        known = {one.key for one in held_out.measures}
        more = [_held_out(one, halves) for one in self._settings.reported if one.key not in known]
        evaluations = self._lab.compare([*trials, paper], [*held_out.measures, *more])
        budget = self._settings.budget
        reported = tuple(
            Reported(name=trial.name, tried=one, evaluation=of, kept=budget.excess(of) <= 0)
            for trial, one, of in zip([*trials, paper], [*chosen, None], evaluations, strict=True)
        )
        toxicity = evaluations[0].measures[self._settings.toxicity.key].figures[0]
        tuned = Tuned(
            model=self._lab.ref.name,
            concept=self._lab.concept.name,
            budget=str(budget),
            seed=self._lab.seed,
            search_prompts=tried[0].prompts,
            report_prompts=toxicity.n["prompts"],
            tried=tuple(tried),
            reported=reported,
        )
        return tuned, made[0] if chosen and chosen[0].kept else None

    def _family(self, rule: str, sites: str) -> Any:
        known = RULES.named(rule)
        own = self._own if known.in_attention else self._expertise
        found = family(self._means if Asked.MOMENTS in known.asks else own, rule)
        return found if sites == "all" else lambda dial: _only(found(dial), sites)

    @cached_property
    def _own(self) -> Expertise:
        """The expertise of every site that any of the rules is for."""
        asked = {one for rule in self._settings.rules for one in RULES.named(rule).asks}
        seed, per_class = self._lab.seed, self._settings.per_class
        return self._lab.find(
            "expertise",
            sites=sites_for(self._settings.rules, self._lab.sites),
            sweep=SweepSettings(stratify="length" if Asked.STRATA in asked else ""),
            attribution=AttributionSettings(per_class, seed)
            if Asked.ATTRIBUTION in asked
            else None,
        )

    @cached_property
    def _expertise(self) -> Expertise:
        """The same without attention, for the rules that leave it out."""
        return self._own.at({site.path for site in self._lab.opened.sites})

    @cached_property
    def _means(self) -> Expertise:
        return self._lab.find("means", sweep=SweepSettings(pooling="mean", moments=True))


def _only(dampening: Dampening, kind: str) -> Dampening:
    """A dampening's part for one kind of site."""
    at = f".{kind}"
    return replace(
        dampening,
        factors={site: v for site, v in dampening.factors.items() if site.endswith(at)},
        shifts={site: v for site, v in dampening.shifts.items() if site.endswith(at)},
    )


def _front(tried: Sequence[Tried]) -> list[Tried]:
    """The best within the budget, then the Pareto front of toxicity and divergence."""
    kept = sorted((one for one in tried if one.kept), key=lambda one: one.toxicity.value or 0.0)
    best = kept[:1]
    ahead: list[Tried] = []
    least = np.inf
    for one in sorted(tried, key=lambda one: one.divergence.value or 0.0):
        if (one.toxicity.value or 0.0) < least:
            least = one.toxicity.value or 0.0
            ahead.append(one)
    # The end of the front with the largest divergences is nearest to the budget.
    return [*best, *[one for one in ahead if one not in best][-_FRONT:]]


class _Half(NamedTuple):
    """Half of the prompts and of the clean texts.

    Args:
        prompts: The file of prompts.
        texts: The file of texts.
        measures: The measures on them: toxicity, divergence and, if it is another, the budget's.
    """

    prompts: str
    texts: str
    measures: list[Measure]


def _halves(lab: Lab, folder: Path, settings: TuneSettings) -> list[_Half]:
    """The measures for the choice, and the same ones on held-out prompts and texts."""
    prompts = read_texts(prompts_of(settings.toxicity.prompts))
    sized_on = set(clean_texts(lab.texts, seed=lab.seed))
    texts = read_texts(lab.texts)
    others = [text for text in texts if text.text not in sized_on]
    enough = others
    if len(others) < _FEWEST:
        enough = texts
        show.note(
            f"{printable(lab.texts)} holds {counted(len(texts), 'text')}: interventions are sized "
            f"on texts by which they are chosen and reported as well (give "
            f"{len(sized_on) + _FEWEST:,} for separate ones)"
        )
    halves = []
    for toxic, clean in zip(
        _split_in_half(prompts, folder, "prompts", lab.seed),
        _split_in_half(enough, folder, "clean-texts", lab.seed),
        strict=True,
    ):
        divergence, limited = Divergence(clean), settings.budget.make_measure(clean)
        also = [] if limited.name == divergence.name else [limited]
        measures = [replace(settings.toxicity, prompts=toxic), divergence, *also]
        halves.append(_Half(toxic, clean, measures))
    return halves


def _held_out(measure: Measure, halves: Mapping[str, str]) -> Measure:
    """A measure on the held-out half of the source that it takes, if that was split.

    Args:
        measure: The measure.
        halves: The files of held-out prompts and texts, by the sources that were split.
    """
    for name in ("prompts", "texts"):
        if half := halves.get(getattr(measure, name, "")):
            return replace(measure, **{name: half})  # type: ignore[type-var]
    return measure


def _split_in_half(texts: Sequence[Text], folder: Path, name: str, seed: int) -> list[str]:
    """Two files with half of the texts each, drawn by seed."""
    if len(texts) < _FEWEST:
        noun = name.replace("-", " ").removesuffix("s")
        raise UserError(
            f"{counted(len(texts), noun)} cannot be split in half: give at least {_FEWEST}."
        )
    order = np.random.default_rng([seed, 1]).permutation(len(texts))
    files = [folder / f"{name}-{half}.jsonl" for half in ("search", "report")]
    for file, chosen in zip(files, np.array_split(order, 2), strict=True):
        with new_file(file, force=True) as stage:
            lines = [_line(texts[i]) for i in sorted(chosen)]
            stage.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return [str(file) for file in files]


def _line(text: Text) -> str:
    said: dict[str, Any] = {"text": text.text}
    if text.before:
        messages = [*text.before, ("user", text.text)]
        said = {"messages": [{"role": role, "content": content} for role, content in messages]}
    return json.dumps({**said, "toxicity": text.toxicity}, ensure_ascii=False)
