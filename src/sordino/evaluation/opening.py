"""Opening scorers by their specs."""

from collections.abc import Sequence

import torch

from sordino import hub
from sordino.errors import UserError
from sordino.evaluation.endpoint import DEFAULT_ACCESS, Access
from sordino.evaluation.scorer import JUDGES, LINEAR, SCORERS, Scorer
from sordino.evaluation.scorers.classifier import NoSuchLabelError, TextClassifier
from sordino.evaluation.scorers.judge import Judge
from sordino.files import printable, user_path
from sordino.hub_table import AUTO_SCORERS
from sordino.progress import note

AUTO = "auto"
_FOR = {
    "toxic_label": "a text classifier (hf:org/name, a folder, auto)",
    "judge_refusal": "a model on a server (http://…)",
    "judge_dtype": "a language model that judges in this process (yes-no:MODEL, …)",
}
"""Settings of scorers, each with the scorers that have it."""


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
            inferred, or it lacks a setting that is given.
    """
    refuse_idle(
        (spec,), toxic_label=toxic_label, judge_refusal=judge_refusal, judge_dtype=judge_dtype
    )

    def open_one(name: str) -> Scorer:
        if is_address(name):
            return Judge(name, refusal_score=judge_refusal, access=access)
        way, _, model = name.partition(":")
        if model and way in JUDGES:
            return JUDGES[way](model, device, judge_dtype)
        if _is_classifier(name):
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


def settings_of(spec: str) -> set[str]:
    """The names of the settings that the scorer of this spec has, of `open_scorer`."""
    if is_address(spec):
        return {"judge_refusal"}
    way, _, model = spec.partition(":")
    if model and way in JUDGES:
        return {"judge_dtype"}
    return {"toxic_label"} if spec == AUTO or _is_classifier(spec) else set()


def refuse_idle(specs: Sequence[str], **given: str | float | None) -> None:
    """Refuse a setting that is given and that none of these scorers has.

    Args:
        specs: As for `open_scorer`.
        given: Settings of `open_scorer` by name; None or "auto" for none.
    """
    had = {name for spec in specs for name in settings_of(spec)}
    for name, value in given.items():
        if value not in (None, AUTO) and name not in had:
            scorers = " and ".join(map(printable, specs))
            raise UserError(
                f"`{name}={value}` is for {_FOR[name]}, and decides nothing for {scorers}: leave "
                "it out."
            )


def is_address(spec: str) -> bool:
    """Whether a scorer is a model on a server."""
    return spec.startswith(("http://", "https://"))


def _is_classifier(spec: str) -> bool:
    return spec not in SCORERS and (hub.is_shared(spec) or user_path(spec).is_dir())
