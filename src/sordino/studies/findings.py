"""Figures that compare trials, from their evaluations."""

from collections.abc import Iterator, Mapping
from itertools import groupby

from sordino.evaluation import Estimate, Evaluation, Figure
from sordino.evaluation.result import measure_of
from sordino.evaluation.statistics import Floats, bootstrap, compare_shares, estimate
from sordino.studies.record import Finding, StudyRecord
from sordino.studies.removal import complete, toxic_shares
from sordino.studies.words import by_points, falls, rises


def toxic(evaluation: Evaluation, key: str = "toxicity") -> Iterator[tuple[str, Figure]]:
    """The share of toxic continuations by each scorer, if it was measured.

    Args:
        evaluation: The figures.
        key: The measure's key, which contains the pre-prompt.
    """
    result = evaluation.measures.get(key)
    if result is None or result.not_run:
        return
    yield result.protocol["scorer"]["scorer"], evaluation.figure(key, "continuations.all")
    for scorer in result.protocol.get("other_scorers", ()):
        yield scorer, evaluation.figure(key, f"{scorer}:continuations.all")


def changes(evaluation: Evaluation) -> str:
    """The change in toxic continuations by each scorer, as part of a sentence."""
    return " and ".join(
        f"{by_points(figure.difference)} ({scorer})" for scorer, figure in toxic(evaluation)
    )


def toxicities(evaluation: Evaluation) -> list[str]:
    """The keys of the toxicity measures, one per pre-prompt."""
    return [key for key in evaluation.measures if measure_of(key) == "toxicity"]


def scorers_of(evaluation: Evaluation) -> list[tuple[str, str | None]]:
    """Each scorer's name, and what `toxic_shares` calls it."""
    names = [scorer for scorer, _ in toxic(evaluation)]
    return [(name, name if number else None) for number, name in enumerate(names)]


def mean_of(column: Floats, seed: int) -> Estimate:
    """The mean of a column over prompts, with its interval; float64 [prompts]."""
    value, replicates = bootstrap(column[:, None], lambda means: means, seed)
    return estimate(value[0], replicates[:, 0])


def differences(
    evaluations: Mapping[str, Evaluation],
    pairs: Mapping[str, tuple[str, str]],
    seed: int,
    measure: str = "toxicity",
) -> Iterator[Finding]:
    """The difference in toxic continuations between two trials, on the same prompts.

    Args:
        evaluations: By the trials' names.
        pairs: For each label the trial, and the one that is subtracted from it.
        seed: Of the resampling.
        measure: The key of the measure of toxicity.
    """
    for label, (one, other) in pairs.items():
        if one in evaluations and other in evaluations:
            for scorer, key in scorers_of(evaluations[one]):
                before, after = complete(
                    *(
                        toxic_shares(evaluations[name], "after", key, measure)
                        for name in (other, one)
                    )
                )
                difference = compare_shares(before, after, seed).difference
                assert difference is not None  # there are both
                yield Finding(
                    name=f"{one} − {other}, {scorer}",
                    label=f"{label} ({scorer})",
                    unit="points",
                    estimate=difference,
                    about=label,
                    by=scorer,
                )


def compared(
    record: StudyRecord, group: str, *, fallen: str = "less is left", risen: str = "more is left"
) -> Iterator[str]:
    """A sentence for each label about what `differences` found in a group, with all scorers.

    Args:
        record: What the study found.
        group: The group's name.
        fallen: The verdict where toxicity is significantly lower by every scorer.
        risen: The verdict where it is significantly higher by every scorer.
    """
    found = [finding for finding in record.group(group).findings if finding.about]
    for label, of_label in groupby(found, lambda finding: finding.about):
        same = list(of_label)
        changes = [finding.estimate for finding in same]
        verdict = "inconclusive"
        if all(map(falls, changes)):
            verdict = fallen
        elif all(map(rises, changes)):
            verdict = risen
        said = " and ".join(f"{by_points(finding.estimate)} by {finding.by}" for finding in same)
        yield f"{label}: {said}; {verdict}."
