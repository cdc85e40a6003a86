"""What a run's page is made from: plain values, nothing that needs a model."""

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
    """Everything that the page says of a run.

    Args:
        expertise: What was found; its metadata names the model and the concept.
        dampening: What was done.
        concept_source: Where the concept's sentences come from, in words.
        command: The command line that does it all again.
        evaluation: What changed, with the continuations as its samples, or None where nothing
            was measured.
        beside: The same measures of other rules, by the rule's name, for comparison.
        exemplars: The top neurons with the sentences that excite them.
        protocol: Further settings, by heading; the page adds those of the expertise, the
            intervention and the evaluation by itself.
        versions: Of the packages that did the work.
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
