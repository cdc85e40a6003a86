"""Whether dampening one concept dampens others."""

from collections.abc import Iterator
from dataclasses import dataclass

from sordino.concepts import load_concept
from sordino.concepts.concept import Concept
from sordino.evaluation import Estimate, Measure, Perplexity, ToxicPerplexity
from sordino.expertise.attribution import AttributionSettings
from sordino.interventions import family
from sordino.models.sites import ATTENTION
from sordino.studies.data import halves
from sordino.studies.record import StudyRecord, TrialRecord
from sordino.studies.study import Group, Plan, reached, study
from sordino.tuning.lab import Lab


@dataclass(frozen=True)
class Effect:
    """What dampening a concept with a rule does to text of one of the concepts.

    Args:
        concept: The dampened concept.
        rule: The rule.
        read_on: The concept whose text is scored.
        with_it: Perplexity of the text with that concept, after divided by before.
        without: The same for other text from the same source.
    """

    concept: str
    rule: str
    read_on: str
    with_it: Estimate
    without: Estimate

    @property
    def is_down(self) -> bool:
        """Whether the intervals are disjoint, which is stricter than a significant difference."""
        low, high = self.with_it.low, self.without.high
        return low is not None and high is not None and low > high


def _answer(record: StudyRecord) -> Iterator[str]:
    reads = [effect_on(trial, group.name) for group in record.groups for trial in group.trials]
    for rule in dict.fromkeys(read.rule for read in reads):
        by_rule = [read for read in reads if read.rule == rule]
        own = [read for read in by_rule if read.concept == read.read_on]
        others = [read for read in by_rule if read.concept != read.read_on]
        down, taken = ([read for read in of if read.is_down] for of in (own, others))
        which = "; ".join(f"{read.concept} dampened, text about {read.read_on}" for read in taken)
        yield (
            f"{rule}: held-out text with the dampened concept becomes less likely, "
            f"relative to other text from the same source, in {len(down)} of {len(own)} cases. "
            f"Text with another concept does so in {len(taken)} of {len(others)} "
            f"({which or 'none'})."
        )


def effect_on(trial: TrialRecord, read_on: str) -> Effect:
    """What a trial did to text of a concept, as the measures of `reading_on` found it."""
    with_it, without = (
        trial.evaluation.figure(name, "corpus").ratio or Estimate(None, None, None)
        for name in ("toxic-perplexity", "perplexity")
    )
    return Effect(trial.concept, trial.rule, read_on, with_it, without)


@study("Does dampening one concept dampen others?", _answer, lambda _: ())
def concepts(lab: Lab, plan: Plan) -> Iterator[Group]:
    """Each concept dampened by both rules, measured on held-out text of each concept."""
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
            lab.sized(
                f"{name} dampened by {rule}",
                family(found, rule),
                plan.asked,
                rule=rule,
                concept=name,
            )
            for rule, found in (("aura", expertise.at(own)), ("contrast", expertise))
        ]
    for name, (_, held_out) in parts.items():
        yield Group(
            name,
            f"Measured on {name}",
            reached(trials),
            (*reading_on(lab, f"held-out-{name}", held_out, plan), plan.reading(lab.texts)[1]),
        )


def reading_on(lab: Lab, name: str, concept: Concept, plan: Plan) -> tuple[Measure, ...]:
    """Perplexity of a concept's text and of other text from the same source.

    Args:
        lab: The lab whose folder keeps the texts.
        name: The beginning of their files' names.
        concept: The concept.
        plan: Says how many texts.
    """
    positive = lab.keep(f"{name}-positive.txt", concept.positive)
    negative = lab.keep(f"{name}-negative.txt", concept.negative)
    return (
        ToxicPerplexity(positive, max_texts=plan.texts),
        Perplexity(negative, max_texts=plan.texts),
    )
