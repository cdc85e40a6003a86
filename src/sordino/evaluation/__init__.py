"""Measures of a model before and after a change, each figure with its interval."""

from sordino.evaluation.endpoint import Access, Endpoint
from sordino.evaluation.evaluator import (
    Arm,
    Prepared,
    evaluate,
    evaluate_each,
    prepare,
    with_chat,
)
from sordino.evaluation.hooks import hooked
from sordino.evaluation.measure import MEASURES, Measure, Summary, Task, measure
from sordino.evaluation.measures.bold import Bold
from sordino.evaluation.measures.coverage import Coverage
from sordino.evaluation.measures.divergence import Divergence
from sordino.evaluation.measures.diversity import Diversity
from sordino.evaluation.measures.honest import Honest
from sordino.evaluation.measures.perplexity import Perplexity, ToxicPerplexity
from sordino.evaluation.measures.piqa import Piqa
from sordino.evaluation.measures.refusals import Refusals
from sordino.evaluation.measures.speed import Speed
from sordino.evaluation.measures.toxicity import OrdinaryToxicity, Toxicity
from sordino.evaluation.measures.zero_shot import ZeroShot
from sordino.evaluation.result import Evaluation, Figure, MeasureResult, ModelRecord, Row
from sordino.evaluation.scorer import SCORERS, Scorer
from sordino.evaluation.statistics import Estimate

__all__ = [
    "MEASURES",
    "SCORERS",
    "Access",
    "Arm",
    "Bold",
    "Coverage",
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
    "Piqa",
    "Prepared",
    "Refusals",
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
    "with_chat",
]
