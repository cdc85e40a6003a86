"""The plain values from which a run's page is made; no model is needed."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sordino.evaluation import Evaluation
from sordino.expertise.artefact import Expertise
from sordino.files import today
from sordino.interventions.dampening import Dampening
from sordino.report.exemplars import Exemplar


@dataclass(frozen=True)
class RunRecord:
    """Everything that a run's page shows.

    Args:
        expertise: The run's expertise, whose metadata name the model and the concept.
        dampening: What was baked.
        concept_source: Where the concept's sentences come from, in words.
        command: The command line that repeats the run.
        evaluation: The figures before and after, with the continuations as samples; None if
            nothing was measured.
        beside: The same measures of other rules, by the rule's name.
        exemplars: The top neurons with the sentences that excite them.
        protocol: Further settings by heading, beside those of the expertise, the intervention and
            the evaluation.
        versions: Versions of the packages that did the work.
        date: The day of the run.
    """

    expertise: Expertise
    dampening: Dampening
    concept_source: str
    command: str
    evaluation: Evaluation | None = None
    beside: Mapping[str, Evaluation] = field(default_factory=dict)
    exemplars: tuple[Exemplar, ...] = ()
    protocol: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    date: str = field(default_factory=today)
