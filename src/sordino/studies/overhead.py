"""What the edit costs when the model runs."""

from collections.abc import Iterator

from sordino.evaluation import Speed
from sordino.interventions import aura
from sordino.studies.record import StudyRecord
from sordino.studies.study import Group, Plan, study
from sordino.studies.words import interval
from sordino.tuning.lab import Lab, Trial


def _answer(record: StudyRecord) -> Iterator[str]:
    [trial] = record.group("speed").trials
    said = {}
    for name in ("edited", "hooks"):
        after = trial.evaluation.figure("speed", name).after
        inside = after.low is not None and after.high is not None and after.low <= 1 <= after.high
        verdict = "no significant difference" if inside else "a significant difference"
        said[name] = f"{interval(after, 3)} times the original's speed ({verdict})"
    yield (
        f"With baked weights the model generates at {said['edited']}. "
        f"With forward hooks on all linear layers it generates at {said['hooks']}."
    )


@study("What does the edit cost at run time, baked and with forward hooks?", _answer, lambda _: ())
def overhead(lab: Lab, plan: Plan) -> Iterator[Group]:
    """Tokens a second of the baked model, the original and the original with hooks, in turns."""
    del plan
    yield Group(
        "speed",
        "Generation speed, relative to the original",
        (Trial("aura", aura(lab.find("auroc")), baked="folder"),),
        (Speed(),),
    )
