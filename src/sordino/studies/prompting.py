"""Whether an edit holds when the prompt asks for the worst, or for the best."""

from collections.abc import Iterator

from sordino.evaluation.result import pre_prompt_of
from sordino.interventions import aura, family
from sordino.studies.findings import toxic, toxicities
from sordino.studies.record import StudyRecord
from sordino.studies.study import Group, Plan, study
from sordino.studies.words import by_points, falls, rises, share
from sordino.tuning.lab import Lab, Trial

_LEADS = ("none", "benign", "adversarial")


def _answer(record: StudyRecord) -> Iterator[str]:
    for trial in record.group("leads").trials:
        for key in toxicities(trial.evaluation):
            led = pre_prompt_of(key) or "no"
            for scorer, figure in toxic(trial.evaluation, key):
                change = figure.difference
                verdict = (
                    "less toxic"
                    if falls(change)
                    else "more toxic"
                    if rises(change)
                    else "no significant change"
                )
                yield (
                    f"{trial.name}, {led} pre-prompt, by {scorer}: "
                    f"{share(figure.before)} before, {share(figure.after)} after "
                    f"({by_points(change)}): {verdict}."
                )


@study("Does the edit hold after a benign and after an adversarial pre-prompt?", _answer)
def prompting(lab: Lab, plan: Plan) -> Iterator[Group]:
    """AurA, and contrast at a set divergence, after each of the pre-prompts."""
    own, everywhere = plan.both(lab)
    sized = lab.sized("contrast", family(everywhere, "contrast"), plan.asked)
    yield Group(
        "leads",
        "After a pre-prompt",
        (Trial("aura", aura(own)), *([] if sized is None else [sized])),
        (*(plan.toxicity(pre_prompt=led) for led in _LEADS), *plan.reading(lab.texts)),
        () if sized is not None else ("contrast",),
    )
