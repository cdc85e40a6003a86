"""Whether the effect depends on the numbers' format."""

from collections.abc import Iterator

from sordino.interventions import aura
from sordino.studies.findings import changes
from sordino.studies.record import StudyRecord
from sordino.studies.study import Group, Plan, study
from sordino.tuning.lab import Lab, Trial

_DTYPES = ("float32", "bfloat16")


def _answer(record: StudyRecord) -> Iterator[str]:
    for group in record.groups:
        for trial in group.trials:
            found = changes(trial.evaluation)
            yield f"{group.title}, {trial.name}: {found}."


@study("Does the effect survive 16-bit arithmetic, and weights that stay quantised?", _answer)
def dtype(lab: Lab, plan: Plan) -> Iterator[Group]:
    """AurA with forward hooks in several dtypes, baked into a folder, and into a GGUF file."""
    paper = aura(lab.find("auroc"))
    trials = [Trial("forward hooks", paper), Trial("baked into a folder", paper, baked="folder")]
    if lab.ref.kind == "gguf":
        trials.append(Trial("baked into a GGUF file", paper, baked="gguf"))
    for name in _DTYPES:
        yield Group(
            name,
            name,
            tuple(trials),
            (plan.toxicity(), *plan.reading(lab.texts)),
            lab=lab.elsewhere(name, dtype=name),
        )
