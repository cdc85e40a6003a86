"""What all models of a study have in common, in small tables at the top of its page."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from sordino.files import capital
from sordino.report.article import Table
from sordino.studies import GroupRecord, StudyRecord
from sordino.studies.findings import toxic, toxicities
from sordino.studies.record import TrialRecord
from sordino.studies.words import model_name, plain, share, written

_BETWEEN = " · "
_NONE = "—"


def at_a_glance(records: Sequence[StudyRecord]) -> Iterator[Table]:
    """A table of what is left toxic for each group of trials that several records have.

    A column is a record, and a row is a trial that several have. A cell has a share for each scorer
    and, where it was measured, the perplexity's ratio after ÷ before.
    """
    if len(records) < 2:
        return
    names = _numbered([model_name(record.model) for record in records])
    found: dict[tuple[str, str], dict[str, GroupRecord]] = {}
    for name, record in zip(names, records, strict=True):
        for group in filter(lambda group: group.trials, record.groups):
            for key in toxicities(group.trials[0].evaluation):
                found.setdefault((group.name, key), {})[name] = group
    for (group_name, key), having in found.items():
        if trials := _shared(having.values()):
            yield _table(records[0].study, group_name, key, having, trials)


def _numbered(names: Sequence[str]) -> list[str]:
    """The names; one that was there already has a number."""
    seen: Counter[str] = Counter()
    numbered = []
    for name in names:
        seen[name] += 1
        numbered.append(f"{name} ({seen[name]})" if seen[name] > 1 else name)
    return numbered


def _shared(groups: Iterable[GroupRecord]) -> list[str]:
    """The trials that several of the groups have."""
    counts = Counter(trial.name for of in groups for trial in of.trials)
    return [name for name, count in counts.items() if count > 1]


def _table(
    study: str, group: str, key: str, found: Mapping[str, GroupRecord], trials: Sequence[str]
) -> Table:
    titles = [of.title for of in found.values()]
    alike = len(set(titles)) == 1
    rows = [] if alike else [["", *titles]]
    rows.append(["by", *(_scorers(of, key) for of in found.values())])
    rows.append(["original", *(_original(of, key) for of in found.values())])
    rows += [[name, *(_left(of.trial(name), key) for of in found.values())] for name in trials]
    headed = f"{capital(titles[0])}: toxic" if alike else "Toxic"
    read = any(
        "perplexity" in trial.evaluation.measures for of in found.values() for trial in of.trials
    )
    beside = ", and the perplexity after ÷ before (×)" if read else ""
    return Table(
        f"{study}-{group}-{key.replace(':', '-')}-at-a-glance",
        f"{headed} {written(key)} by each scorer in turn{beside}.",
        ["", *found],
        rows,
    )


def _scorers(group: GroupRecord, key: str) -> str:
    return _BETWEEN.join(scorer for scorer, _ in toxic(group.trials[0].evaluation, key))


def _original(group: GroupRecord, key: str) -> str:
    figures = (figure for _, figure in toxic(group.trials[0].evaluation, key))
    return _BETWEEN.join(share(figure.before) for figure in figures)


def _left(trial: TrialRecord | None, key: str) -> str:
    """What a trial leaves; a dash for one that this record lacks."""
    if trial is None:
        return _NONE
    left = _BETWEEN.join(share(figure.after) for _, figure in toxic(trial.evaluation, key))
    if "perplexity" not in trial.evaluation.measures:
        return left
    times = trial.evaluation.figure("perplexity", "corpus").ratio
    return left if times is None else f"{left}; × {plain(times, 3)}"
