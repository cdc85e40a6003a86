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


def open_chosen(
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
        spec: As for `open_scorer`, or "auto".
        toxic_label: See `open_scorer`.
        judge_refusal: See `open_scorer`.
        judge_dtype: See `open_scorer`.
        device: See `open_scorer`.
        access: See `open_scorer`.

    Raises:
        UserError: It is not available.
    """
    candidates = (
        (*(repository.spec for repository in AUTO_SCORERS), LINEAR) if spec == AUTO else (spec,)
    )
    for number, name in enumerate(candidates):
        try:
            scorer = open_scorer(
                name,
                toxic_label=toxic_label,
                judge_refusal=judge_refusal,
                judge_dtype=judge_dtype,
                device=device,
                access=access,
            )
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


def open_scorer(
    spec: str,
    *,
    toxic_label: str | None = None,
    judge_refusal: float | None = None,
    judge_dtype: str = "auto",
    device: torch.device,
    access: Access = DEFAULT_ACCESS,
) -> Scorer:
    """Open a scorer.

    Args:
        spec: A name of the registry, "hf:org/name" for a text classifier of the hub, the folder of
            one, "yes-no:MODEL" for a language model that judges in this process
            (`sordino.evaluation.scorers.verdict`), or the address of a server whose chat model
            judges (`sordino.evaluation.scorers.judge`).
        toxic_label: The label of a text classifier that means toxic, if it cannot be inferred.
        judge_refusal: The score of a text that a server's model refuses to judge.
        judge_dtype: The dtype of a language model that judges in this process.
        device: Where a text classifier runs.
        access: How a server that judges is accessed.

    Raises:
        UserError: There is no such scorer, it cannot be loaded, or its toxic label cannot be
            inferred.
    """
    if spec.startswith(("http://", "https://")):
        return Judge(spec, refusal_score=judge_refusal, access=access)
    way, _, model = spec.partition(":")
    if model and way in JUDGES:
        return JUDGES[way](model, device, judge_dtype)
    if spec not in SCORERS and (hub.is_shared(spec) or user_path(spec).is_dir()):
        return TextClassifier(spec, toxic_label, device)
    return SCORERS.named(spec)()
