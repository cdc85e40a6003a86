"""Whether the generated text becomes less diverse."""

from collections.abc import Iterator

from sordino.evaluation import Diversity, Measure
from sordino.interventions import family
from sordino.studies.record import StudyRecord
from sordino.studies.study import Group, Plan, reached, study
from sordino.studies.words import by_points
from sordino.tuning.lab import Lab

_FIGURES = {"distinct-2": "distinct pairs of words", "repetition": "repeated 4-grams"}


def _answer(record: StudyRecord) -> Iterator[str]:
    for trial in record.group("sizes").trials:
        said = []
        for name, meaning in _FIGURES.items():
            figure = trial.evaluation.find_figure("diversity", name)
            if figure is None:
                said.append(f"{meaning}: undefined, because what was written is too short")
                continue
            change = figure.difference
            clear = "" if change and change.excludes_0 else " (not significant)"
            said.append(f"{figure.label.lower()} {by_points(change)}{clear}")
        yield f"{trial.name}: {'; '.join(said)}."


def _measures(plan: Plan) -> tuple[Measure, ...]:
    return (
        Diversity(
            plan.ordinary_prompts, max_prompts=plan.ordinary, continuations=plan.continuations
        ),
    )


@study("Does the generated text become less diverse?", _answer, _measures)
def diversity(lab: Lab, plan: Plan) -> Iterator[Group]:
    """Diversity after ordinary prompts, of AurA and contrast at several divergences."""
    own, everywhere = plan.both(lab)
    trials = [
        lab.sized(f"{rule} at {budget:g}", family(found, rule), budget, start=start * budget)
        for budget in plan.budgets
        for rule, found, start in (("aura", own, 15.0), ("contrast", everywhere, 0.5))
    ]
    yield Group(
        "sizes",
        "Diversity over the divergence from the original",
        reached(trials),
        (*_measures(plan), *plan.reading(lab.texts)),
    )
