"""What a study found: values that can be saved, and read by a page."""

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter

from sordino.errors import UserError
from sordino.evaluation import Estimate, Evaluation
from sordino.files import parse_json
from sordino.records import Count, Record, parse, read_bytes


class Finding(Record):
    """A figure that takes several trials together.

    Args:
        name: A short word for it.
        label: What it is, for people.
        unit: "share", "points" (a difference of shares), "number" or "p" (of a test).
        estimate: It, with its interval if it has one.
        about: What it is of, where it is one of several with the same answer.
        by: By which scorer, or under which condition.
    """

    name: str
    label: str
    unit: Literal["share", "points", "number", "p"]
    estimate: Estimate
    about: str = ""
    by: str = ""


class Removal(Record):
    """How much a trial removes compared with AurA as published.

    Args:
        scorer: By which scorer.
        ratio: The share of toxic continuations that it removes, divided by AurA's.
        beyond_twice: The share that it removes less twice the share that AurA removes.
    """

    scorer: str
    ratio: Estimate
    beyond_twice: Estimate


class TrialRecord(Record):
    """A trial and its figures.

    Args:
        name: A short word for it.
        dial: The value of the dial that gave its divergence; None if it was not calibrated.
        changed: How many neurons it changes.
        evaluation: All figures against the original.
        removals: What it removes compared with AurA, by scorer; empty if AurA is not measured.
        rule: The rule, if a group has several trials of one.
        concept: The dampened concept, if a group has several.
    """

    name: str
    dial: float | None
    changed: Count
    evaluation: Evaluation
    removals: tuple[Removal, ...] = ()
    rule: str = ""
    concept: str = ""


class GroupRecord(Record):
    """Trials that are read together.

    Args:
        name: A short word for them.
        title: What they are.
        trials: The trials.
        missing: The rules that cannot reach the divergence.
        findings: Figures that compare the trials.
        curve: Whether the trials are rules at several divergences, to be drawn as curves.
        crossed: Whether the findings are a table of what they are about by what they are by.
        made_from: What the trials were made from, in sentences; "" to say nothing.
        notes: Further sentences about them, without capital and full stop.
    """

    name: str
    title: str
    trials: tuple[TrialRecord, ...]
    missing: tuple[str, ...]
    findings: tuple[Finding, ...] = ()
    curve: bool = False
    crossed: bool = False
    made_from: str = ""
    notes: tuple[str, ...] = ()

    def trial(self, name: str) -> TrialRecord | None:
        """The trial of that name, if it is there."""
        return next((trial for trial in self.trials if trial.name == name), None)

    def finding(self, name: str) -> Estimate:
        """The finding of that name."""
        return next(finding.estimate for finding in self.findings if finding.name == name)


class StudyRecord(Record):
    """A study of one model.

    Args:
        study: The study's name.
        model: The model's name.
        concept: The concept's name and source.
        neurons: How many neurons the model's sites have.
        dtype: The dtype in which the arms were measured.
        seed: Of everything that is random.
        command: The command line, to repeat it.
        groups: What was found.
    """

    study: str
    model: str
    concept: str
    neurons: Count
    dtype: str
    seed: int
    command: str
    groups: tuple[GroupRecord, ...]

    @classmethod
    def load(cls, path: Path, study: str) -> "StudyRecord":
        """Read what a study found, as `carry_out` saved it.

        Args:
            path: The JSON file.
            study: Which study it should be of.

        Raises:
            UserError: It is missing, holds something else, or is of another study.
        """
        what = f"{path} (the MODEL/{study}.json of a study)"
        record = parse(_STUDY, _with_fields(read_bytes(path, "study"), what), what)
        if record.study != study:
            raise UserError(
                f"{path} is of the study {record.study}, not {study}: ask for that, or give "
                "another."
            )
        return record

    def group(self, name: str) -> GroupRecord:
        """The group of that name."""
        return next(group for group in self.groups if group.name == name)


def _with_fields(raw: bytes, what: str) -> bytes:
    """A record's bytes; one from before trials and findings had these fields is given them."""
    if b'"rule"' in raw:
        return raw
    value = parse_json(raw, what)
    groups = value.get("groups") if isinstance(value, dict) else None
    # What is not as it should be is left as it is: the types say what is wrong.
    for group in filter(_is_group, groups if isinstance(groups, list) else ()):
        for trial in group.get("trials", ()):
            trial |= _rule_of_before(value.get("study"), str(trial.get("name")))
        for finding in group.get("findings", ()):
            finding |= _about_of_before(value.get("study"), str(finding.get("label")))
    return json.dumps(value).encode()


def _is_group(group: Any) -> bool:
    rows = (
        [group.get(key, []) for key in ("trials", "findings")] if isinstance(group, dict) else [0]
    )
    return all(isinstance(of, list) and all(isinstance(x, dict) for x in of) for of in rows)


def _rule_of_before(study: Any, name: str) -> dict[str, str]:
    if study == "concepts":
        concept, _, rule = name.replace(" down by ", _BY).partition(_BY)
        return {"rule": rule, "concept": concept}
    return {"rule": name.partition(" at ")[0] if study in _OF_RULES else ""}


def _about_of_before(study: Any, label: str) -> dict[str, str]:
    if study == "data":
        about, _, by = label.rpartition(", ")
    else:
        about, _, by = label.removesuffix(")").rpartition(" (")
    return {"about": about, "by": by}


_BY = " dampened by "
_OF_RULES = ("methods", "soft-or-hard")
_STUDY = TypeAdapter(StudyRecord)
