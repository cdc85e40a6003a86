"""Opening scorers by their specs."""

import torch

from sordino import hub
from sordino.errors import UserError
from sordino.evaluation.endpoint import DEFAULT_ACCESS, Access
from sordino.evaluation.scorer import JUDGES, LINEAR, SCORERS, Scorer
from sordino.evaluation.scorers.classifier import NoSuchLabelError, TextClassifier
from sordino.evaluation.scorers.judge import Judge
from sordino.files import user_path
from sordino.hub_table import AUTO_SCORERS
from sordino.progress import note

AUTO = "auto"


def open_scorer(
    spec: str,
    *,
    toxic_label: str | None = None,
    judge_refusal: float | None = None,
    judge_dtype: str = "auto",
    device: torch.device,
    access: Access = DEFAULT_ACCESS,
) -> Scorer:
    """Open a scorer, or for "auto" the first available one, and name it.

    "auto" tries the classifiers of `sordino.hub_table.AUTO_SCORERS`, from the hub or its cache, and
    then the linear scorer. A note says why one was not available, and the record names it.

    Args:
        spec: "auto"; a name of the registry, "hf:org/name" for a text classifier of the hub, the
            folder of one, "yes-no:MODEL" for a language model that judges in this process
            (`sordino.evaluation.scorers.verdict`), "probe:MODEL" for a classifier of what one
            makes of a text (`sordino.evaluation.scorers.probe`), or the address of a server whose
            chat model judges (`sordino.evaluation.scorers.judge`).
        toxic_label: The label of a text classifier that means toxic, if it cannot be inferred.
        judge_refusal: The score of a text that a server's model refuses to judge.
        judge_dtype: The dtype of a language model that judges in this process.
        device: Where a text classifier runs.
        access: How a server that judges is accessed.

    Raises:
        UserError: There is no such scorer, it cannot be loaded, or its toxic label cannot be
            inferred.
    """

    def open_one(name: str) -> Scorer:
        if name.startswith(("http://", "https://")):
            return Judge(name, refusal_score=judge_refusal, access=access)
        way, _, model = name.partition(":")
        if model and way in JUDGES:
            return JUDGES[way](model, device, judge_dtype)
        if name not in SCORERS and (hub.is_shared(name) or user_path(name).is_dir()):
            return TextClassifier(name, toxic_label, device)
        return SCORERS.named(name)()

    candidates = (
        (*(repository.spec for repository in AUTO_SCORERS), LINEAR) if spec == AUTO else (spec,)
    )
    for number, name in enumerate(candidates):
        try:
            scorer = open_one(name)
        except NoSuchLabelError:
            raise
        except UserError as error:
            if name == candidates[-1]:
                raise
            if hub.reachable():
                note(f"{name} is not available: {error}")
        else:
            scorer.name, scorer.instead_of = name, candidates[:number]
            return scorer
    raise AssertionError("the last candidate either opens or raises")
