"""Studies: questions about a model, each answered by trials with figures and a page."""

from sordino.studies.carry_out import carry_out
from sordino.studies.record import Finding, GroupRecord, Removal, StudyRecord, TrialRecord
from sordino.studies.study import STUDIES, Group, Plan, Study, prepare_study

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
    "carry_out",
    "prepare_study",
]
