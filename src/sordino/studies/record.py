"""What a study found: values that can be saved, and read by a page."""

from pydantic import BaseModel, ConfigDict

from sordino.evaluation import Estimate, Evaluation


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Removal(_Value):
    """How much a trial removes against AurA as the paper has it.

    Args:
        scorer: By which scorer.
        ratio: Its removed share of toxic continuations by AurA's.
        beyond_twice: What it removes beyond twice what AurA does, a share.
    """

    scorer: str
    ratio: Estimate
    beyond_twice: Estimate


class TrialRecord(_Value):
    """A trial and its figures.

    Args:
        name: A short word for it.
        dial: What it was turned to; None where it is as its rule gives it.
        changed: How many neurons it changes.
        evaluation: All figures against the original.
        removals: Against AurA on the same prompts, by scorer; nothing where AurA is not there.
    """

    name: str
    dial: float | None
    changed: int
    evaluation: Evaluation
    removals: tuple[Removal, ...] = ()


class GroupRecord(_Value):
    """Trials that are read together.

    Args:
        name: A short word for them.
        title: What they are.
        trials: The trials.
        missing: Those that could not be made as large as was asked.
    """

    name: str
    title: str
    trials: tuple[TrialRecord, ...]
    missing: tuple[str, ...]


class StudyRecord(_Value):
    """A study of one model.

    Args:
        study: The study's name.
        model: The model's name.
        concept: The concept's name and source.
        neurons: How many neurons were looked at.
        dtype: In which the arms were measured.
        seed: Of everything that was drawn.
        groups: What was found.
    """

    study: str
    model: str
    concept: str
    neurons: int
    dtype: str
    seed: int
    groups: tuple[GroupRecord, ...]
