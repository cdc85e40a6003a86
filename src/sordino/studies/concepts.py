"""Whether turning one concept down turns others down."""

from collections.abc import Iterator

from sordino.concepts import load_concept
from sordino.evaluation import Estimate, Perplexity, ToxicPerplexity
from sordino.expertise.attribution import AttributionSettings
from sordino.interventions import family
from sordino.models.sites import ATTENTION
from sordino.studies.data import halves
from sordino.studies.record import StudyRecord
from sordino.studies.study import Group, Plan, reached, study
from sordino.studies.words import interval, model_name
from sordino.tuning.lab import Lab


def _answer(record: StudyRecord) -> Iterator[str]:
    for group in record.groups:
        for trial in group.trials:
            ratios = [
                trial.evaluation.measures[name].figures[0].ratio
                for name in ("toxic-perplexity", "perplexity")
            ]
            with_it, without = (one or Estimate(None, None, None) for one in ratios)
            yield (
                f"{model_name(record.model)}, {trial.name}, on {group.name}: perplexity of text "
                f"with the concept × {interval(with_it, 3)}, of other text of the same source × "
                f"{interval(without, 3)}; {_verdict(with_it, without)}."
            )


def _verdict(with_it: Estimate, without: Estimate) -> str:
    """By intervals that have nothing in common, which asks for more than their difference does."""
    if with_it.low is not None and without.high is not None and with_it.low > without.high:
        return "the concept is turned down against the rest"
    if with_it.high is not None and without.low is not None and with_it.high < without.low:
        return "the concept is turned up against the rest"
    return "no difference between the two is settled"


@study("Does turning one concept down turn others down?", _answer)
def concepts(lab: Lab, plan: Plan) -> Iterator[Group]:
    """Each concept turned down by both rules, read on held-out text of each concept."""
    parts = {name: halves(load_concept(name, seed=lab.seed), lab.seed) for name in plan.concepts}
    own = {site.path for site in lab.opened.sites}
    trials = []
    for name, (found_on, _) in parts.items():
        expertise = lab.find(
            f"concept-{name}",
            concept=found_on,
            sites=ATTENTION,
            attribution=AttributionSettings(plan.per_class, lab.seed),
        )
        trials += [
            lab.sized(f"{name} down by {rule}", family(found, rule), plan.asked)
            for rule, found in (("aura", expertise.at(own)), ("contrast", expertise))
        ]
    for name, (_, held_out) in parts.items():
        positive = lab.keep(f"held-out-{name}-positive.txt", held_out.positive)
        negative = lab.keep(f"held-out-{name}-negative.txt", held_out.negative)
        yield Group(
            name,
            f"Read on {name}",
            reached(trials),
            (
                ToxicPerplexity(positive, max_texts=plan.texts),
                Perplexity(negative, max_texts=plan.texts),
                plan.reading(lab)[1],
            ),
        )
