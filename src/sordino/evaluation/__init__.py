"""Before and after: toxicity, perplexity and what else is registered, each with its interval."""

from sordino.evaluation.bold import Bold
from sordino.evaluation.divergence import Divergence
from sordino.evaluation.diversity import Diversity
from sordino.evaluation.endpoint import Access, Endpoint
from sordino.evaluation.evaluator import Arm, Prepared, evaluate, evaluate_each, prepare
from sordino.evaluation.honest import Honest
from sordino.evaluation.hooks import hooked
from sordino.evaluation.measure import MEASURES, Measure, Summary, Task, measure
from sordino.evaluation.perplexity import Perplexity, ToxicPerplexity
from sordino.evaluation.result import Evaluation, Figure, MeasureResult, ModelRecord, Row
from sordino.evaluation.scorer import Scorer
from sordino.evaluation.scorers import CLASSIFIER_LIMITS, LINEAR_LIMITS, SCORERS
from sordino.evaluation.speed import Speed
from sordino.evaluation.statistics import Estimate
from sordino.evaluation.toxicity import OrdinaryToxicity, Toxicity
from sordino.evaluation.zero_shot import ZeroShot

__all__ = [
    "CLASSIFIER_LIMITS",
    "LINEAR_LIMITS",
    "MEASURES",
    "SCORERS",
    "Access",
    "Arm",
    "Bold",
    "Divergence",
    "Diversity",
    "Endpoint",
    "Estimate",
    "Evaluation",
    "Figure",
    "Honest",
    "Measure",
    "MeasureResult",
    "ModelRecord",
    "OrdinaryToxicity",
    "Perplexity",
    "Prepared",
    "Row",
    "Scorer",
    "Speed",
    "Summary",
    "Task",
    "ToxicPerplexity",
    "Toxicity",
    "ZeroShot",
    "evaluate",
    "evaluate_each",
    "hooked",
    "measure",
    "prepare",
]
