"""Carry out a study on a model."""

from pathlib import Path

from sordino.evaluation import Evaluation
from sordino.files import only_one, write_json
from sordino.studies.findings import scorers_of
from sordino.studies.record import GroupRecord, Removal, StudyRecord, TrialRecord
from sordino.studies.removal import removed_against
from sordino.studies.study import STUDIES, Group, Plan
from sordino.tuning.lab import Lab


def carry_out(name: str, lab: Lab, plan: Plan, output: Path, command: str) -> StudyRecord:
    """Measure everything that a study asks for and save the result.

    The lab keeps finished trials, so an interrupted study, or one with other settings, continues
    from there.

    Args:
        name: The study's name.
        lab: The model and the folder of its work.
        plan: How much is measured, and on what.
        output: The JSON file to write; an earlier one is replaced.
        command: The command as typed, for the record.

    Raises:
        UserError: There is no such study, or something that it needs is missing.
    """
    asked = STUDIES.named(name)
    with only_one(output):
        # First, since the model for finding is released when the one for measuring is opened.
        groups = tuple(_measured(lab, group) for group in asked.groups(lab, plan))
        record = StudyRecord(
            study=name,
            model=lab.ref.name,
            concept=f"{lab.concept.name} ({lab.concept.source})",
            neurons=sum(site.neurons for site in lab.opened.sites),
            dtype=lab.opened.dtype_name,
            seed=lab.seed,
            command=command,
            groups=groups,
        )
        write_json(output, record.model_dump(mode="json"))
    return record


def _measured(lab: Lab, group: Group) -> GroupRecord:
    evaluations = (group.lab or lab).compare(group.trials, group.measures)
    by_name = {trial.name: of for trial, of in zip(group.trials, evaluations, strict=True)}
    paper = by_name.get(group.against)
    return GroupRecord(
        name=group.name,
        title=group.title,
        trials=tuple(
            TrialRecord(
                name=trial.name,
                dial=trial.dial,
                changed=trial.dampening.changed,
                rule=trial.rule,
                concept=trial.concept,
                evaluation=of,
                removals=(
                    ()
                    if paper is None or trial.name == group.against
                    else _removals(of, paper, lab.seed)
                ),
            )
            for trial, of in zip(group.trials, evaluations, strict=True)
        ),
        missing=group.missing,
        findings=tuple(group.findings(by_name)),
        curve=group.curve,
        crossed=group.crossed,
        made_from=group.made_from,
        notes=group.notes,
    )


def _removals(one: Evaluation, paper: Evaluation, seed: int) -> tuple[Removal, ...]:
    found = []
    for scorer, key in scorers_of(one):
        ratio, beyond = removed_against(one, paper, seed, key)
        found.append(Removal(scorer=scorer, ratio=ratio, beyond_twice=beyond))
    return tuple(found)
