"""The divergence that one rule needs to remove as much of a concept as another."""

from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from sordino.evaluation import Estimate, Evaluation
from sordino.evaluation.statistics import Floats, bootstrap, estimate
from sordino.studies.findings import scorers_of
from sordino.studies.record import Finding
from sordino.studies.removal import complete, toxic_shares
from sordino.tuning.lab import Trial


def cost_against(
    evaluations: Mapping[str, Evaluation],
    goal: str,
    rule: str,
    trials: Iterable[Trial],
    seed: int,
    *,
    twice: bool = False,
) -> Iterator[Finding]:
    """The divergence at which a rule removes as much as a trial, relative to the trial's.

    Args:
        evaluations: By the trials' names.
        goal: The name of that trial; if there is no such trial, nothing is found.
        rule: The rule that was tried at several divergences.
        trials: All trials, the rule's among them.
        seed: Of the resampling.
        twice: Whether the rule should remove twice as much.
    """
    its = [trial.name for trial in trials if trial.rule == rule]
    if goal not in evaluations or not its:
        return
    much = "twice as much" if twice else "as much"
    for scorer, key in scorers_of(evaluations[goal]):
        yield Finding(
            name=f"{rule}, {much}, {scorer}",
            label=(
                f"divergence of {rule} where it removes {much} as {goal}, "
                f"relative to the divergence of {goal} ({scorer})"
            ),
            unit="number",
            estimate=_cost_ratio(evaluations, goal, its, key, seed, 2 if twice else 1),
        )


def _cost_ratio(
    evaluations: Mapping[str, Evaluation],
    goal: str,
    its: list[str],
    key: str | None,
    seed: int,
    times: int,
) -> Estimate:
    """The divergence at which a rule's toxicity crosses the goal's, by the goal's divergence.

    Between the sizes that were measured, and from the original (no divergence) on, toxicity is
    taken as linear in the divergence; prompts are resampled for all arms together. Where the
    goal's toxicity is never reached there is no bound; where the goal removes nothing, nothing has
    to be spent.
    """
    spent = {name: _divergence(evaluations[name]) for name in its}
    its = sorted(its, key=spent.__getitem__)
    before, after, *by_size = complete(
        toxic_shares(evaluations[goal], "before", key),
        *(toxic_shares(evaluations[name], "after", key) for name in (goal, *its)),
    )
    columns = np.stack([before - times * (before - after), before, *by_size], axis=1)
    places = np.array([0.0, *(spent[name] for name in its)]) / _divergence(evaluations[goal])

    def statistic(means: Floats) -> Floats:
        flat = means.reshape(-1, means.shape[-1])
        found = np.array([crossing(places, row[1:], row[0]) for row in flat])
        return found.reshape(*means.shape[:-1], 1)

    value, replicates = bootstrap(columns, statistic, seed)
    return estimate(value[0], replicates[:, 0])


def crossing(places: Floats, levels: Floats, goal: float) -> float:
    """The first place at which a curve through these levels comes down to a goal.

    Args:
        places: Rising, float64 [points].
        levels: There, float64 [points].
        goal: The level that is looked for.

    Returns:
        Infinity if the curve never does; the first place if it begins there.
    """
    if levels[0] <= goal:
        return float(places[0])
    for number in range(1, len(places)):
        above, below = levels[number - 1], levels[number]
        if below <= goal:
            share = (above - goal) / (above - below)
            return float(places[number - 1] + share * (places[number] - places[number - 1]))
    return float("inf")


def _divergence(evaluation: Evaluation) -> float:
    value = evaluation.figure("divergence", "divergence").after.value
    assert value is not None  # there are texts
    return value
