"""Questions about a model, each answered by a command: arms, figures with intervals, a page."""

from sordino.studies.carry_out import carry_out
from sordino.studies.methods import methods
from sordino.studies.record import GroupRecord, Removal, StudyRecord, TrialRecord
from sordino.studies.study import STUDIES, Group, Plan, Study, study_named

__all__ = [
    "STUDIES",
    "Group",
    "GroupRecord",
    "Plan",
    "Removal",
    "Study",
    "StudyRecord",
    "TrialRecord",
    "carry_out",
    "methods",
    "study_named",
]
