"""Our figures beside theirs."""

from typing import Literal

from sordino.evaluation import Evaluation, Figure
from sordino.evaluation.statistics import Estimate
from sordino.records import Record
from sordino.reproduction.recipe import Published, Recipe


class Compared(Record):
    """A published figure and ours.

    Args:
        theirs: The published one.
        ours: The one measured here.
        change: What is compared: "ratio" (before divided by after) for a share if lower is better,
            else "difference" (after minus before).
        their_change: The published change.
        inside: Whether it lies in our 95 % interval; None if none is published for this model, or
            ours has no ends.
    """

    theirs: Published
    ours: Figure
    change: Literal["ratio", "difference"]
    their_change: float | None
    inside: bool | None


class Reproduction(Record):
    """A recipe and its result.

    Args:
        format: Names this file format.
        recipe: The recipe.
        model: The dampened model: the recipe's, or the copy that was given.
        concept: Where its sentences came from.
        dtype: In which it ran.
        device: On what kind of device.
        compared: Each published figure with ours.
    """

    format: Literal["sordino-reproduction-1"] = "sordino-reproduction-1"
    recipe: Recipe
    model: str
    concept: str
    dtype: str
    device: str
    compared: tuple[Compared, ...]


def compare_with(published: Published, evaluation: Evaluation) -> Compared:
    """One published figure beside ours."""
    ours = evaluation.figure(published.measure, published.figure)
    lower = ours.unit == "share" and ours.better == "lower"
    change: Literal["ratio", "difference"] = "ratio" if lower else "difference"
    theirs = _their_change(published, change)
    return Compared(
        theirs=published,
        ours=ours,
        change=change,
        their_change=theirs,
        inside=_inside(theirs, ours.ratio if lower else ours.difference),
    )


def _their_change(published: Published, change: str) -> float | None:
    if published.before is None or published.after is None:
        return None if published.whole_paper else published.difference
    if change == "difference":
        return published.after - published.before
    return published.before / published.after if published.after else None


def _inside(change: float | None, ours: Estimate | None) -> bool | None:
    if change is None or ours is None or ours.low is None:
        return None
    return ours.low <= change and (ours.high is None or change <= ours.high)
