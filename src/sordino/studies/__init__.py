"""Questions about a model, each answered by a command: arms, figures with intervals, a page."""

from sordino.studies import (
    attention,
    concepts,
    data,
    diversity,
    dtype,
    ingredients,
    layers,
    methods,
    overhead,
    prompting,
    ranking,
    soft_or_hard,
    subset,
    transfer,
)
from sordino.studies.carry_out import carry_out
from sordino.studies.record import Finding, GroupRecord, Removal, StudyRecord, TrialRecord
from sordino.studies.study import STUDIES, Group, Plan, Study, prepare_study, study_named

__all__ = [
    "STUDIES",
    "Finding",
    "Group",
    "GroupRecord",
    "Plan",
    "Removal",
    "Study",
    "StudyRecord",
    "TrialRecord",
    "attention",
    "carry_out",
    "concepts",
    "data",
    "diversity",
    "dtype",
    "ingredients",
    "layers",
    "methods",
    "overhead",
    "prepare_study",
    "prompting",
    "ranking",
    "soft_or_hard",
    "study_named",
    "subset",
    "transfer",
]
