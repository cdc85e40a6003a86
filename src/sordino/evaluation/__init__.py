"""Before and after: toxicity, perplexity and what else is registered, each with its interval."""

from sordino.evaluation.evaluator import Arm, evaluate
from sordino.evaluation.measure import MEASURES, Measure, Summary, Task, measure
from sordino.evaluation.perplexity import Perplexity
from sordino.evaluation.result import Evaluation, Figure, MeasureResult, ModelRecord, Row
from sordino.evaluation.scorers import CLASSIFIER_LIMITS, LINEAR_LIMITS, SCORERS, Scorer
from sordino.evaluation.statistics import Estimate
from sordino.evaluation.toxicity import Toxicity

__all__ = [
    "CLASSIFIER_LIMITS",
    "LINEAR_LIMITS",
    "MEASURES",
    "SCORERS",
    "Arm",
    "Estimate",
    "Evaluation",
    "Figure",
    "Measure",
    "MeasureResult",
    "ModelRecord",
    "Perplexity",
    "Row",
    "Scorer",
    "Summary",
    "Task",
    "Toxicity",
    "evaluate",
    "measure",
]
