"""Somebody's pushed run, repeated, and its figures beside theirs."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sordino import hub
from sordino.edits.provenance import FILE_NAME, GGUF, extras_of, read_provenance
from sordino.errors import UserError
from sordino.evaluation import Evaluation, Figure
from sordino.evaluation.statistics import Estimate
from sordino.files import printable, user_path
from sordino.records import Record

RECIPE, FIGURES = "sordino/recipe.toml", "sordino/evaluation.json"
"""The places of a pushed run's recipe and figures."""
_SAME = 1e-9  # relative: the same numbers, written and read


Verdict = Literal["same", "inside", "apart", "missing"]


class Repeated(Record):
    """A figure of theirs, and ours.

    Args:
        measure: The measure.
        figure: The figure's name inside it.
        label: Its name for people.
        theirs: Their figure after the change.
        ours: The figure found here; None if it was not measured.
        verdict: "same" to the last digits; "inside" each other's 95 % intervals; else "apart", or
            "missing".
    """

    measure: str
    figure: str
    label: str
    theirs: Estimate
    ours: Estimate | None
    verdict: Verdict


class Again(Record):
    """A repeated run.

    Args:
        format: Names this file format.
        source: Their run: "hf:org/name", or a folder.
        differences: How our run differed from theirs, in half sentences.
        figures: Theirs and ours.
    """

    format: Literal["sordino-reproduction-run-1"] = "sordino-reproduction-run-1"
    source: str
    differences: tuple[str, ...]
    figures: tuple[Repeated, ...]


@dataclass(frozen=True)
class PushedRun:
    """A run's output, from which it can be repeated.

    Args:
        name: "hf:org/name", or the folder.
        folder: Where its files are.
    """

    name: str
    folder: Path

    @property
    def recipe(self) -> Path:
        """The options of the run."""
        return self.folder / RECIPE

    @property
    def output(self) -> str:
        """The name of our output: a folder, or a GGUF file, which has no record of its own."""
        return "model" if (self.folder / FILE_NAME).is_file() else f"model{GGUF}"

    @property
    def evaluation(self) -> Evaluation:
        """Their figures."""
        return Evaluation.load(self.folder / FIGURES)


def is_run(name: str) -> bool:
    """Whether a name is that of somebody's run: on the hub, or in a folder that a run wrote."""
    return hub.is_shared(name) or user_path(name).is_dir()


def pushed_run(name: str) -> PushedRun:
    """A run's record, fetched first if it is on the hub; weights are not.

    Args:
        name: "hf:org/name" ("hf:org/name@revision" for another than main), or a folder.

    Raises:
        UserError: It is not a run, or has no recipe or no figures.
    """
    folder = user_path(name)
    if hub.is_shared(name):
        repository, _, revision = name.removeprefix("hf:").partition("@")
        folder = hub.fetch_files(
            hub.Wanted(repository, revision or None, name=name), (FILE_NAME, RECIPE, FIGURES)
        )
    for file in (RECIPE, FIGURES):
        if not (folder / file).is_file():
            raise UserError(
                f"{printable(name)} has no {file}, so it cannot be repeated: give the output of "
                "sordino run, or the repository to which sordino push pushed it."
            )
    return PushedRun(name, folder)


def figures_of(output: Path) -> Path:
    """The file of a run's figures, by its output: a folder, or a GGUF file."""
    return extras_of(output) / Path(FIGURES).name


def compare_runs(theirs: PushedRun, output: Path) -> Again:
    """Their run beside ours, figure by figure.

    Args:
        theirs: Theirs.
        output: The folder or the GGUF file that our run wrote.

    Raises:
        UserError: A record is damaged.
    """
    ours = Evaluation.load(figures_of(output))
    figures = [
        _repeat(name, figure, ours)
        for name, measured in theirs.evaluation.measures.items()
        for figure in measured.figures
    ]
    return Again(
        source=theirs.name,
        differences=tuple(_differences(theirs, output, ours)),
        figures=tuple(figures),
    )


def _repeat(measure: str, figure: Figure, ours: Evaluation) -> Repeated:
    measured = ours.measures.get(measure)
    found = {each.name: each for each in measured.figures} if measured else {}
    mine = found[figure.name].after if figure.name in found else None
    return Repeated(
        measure=measure,
        figure=figure.name,
        label=figure.label,
        theirs=figure.after,
        ours=mine,
        verdict=_verdict(figure.after, mine),
    )


def _verdict(theirs: Estimate, ours: Estimate | None) -> Verdict:
    if ours is None:
        return "missing"
    if theirs.value is None or ours.value is None:
        return "same" if theirs.value == ours.value else "apart"
    if math.isclose(theirs.value, ours.value, rel_tol=_SAME, abs_tol=_SAME):
        return "same"
    return "inside" if _within(theirs.value, ours) and _within(ours.value, theirs) else "apart"


def _within(value: float, of: Estimate) -> bool:
    return (of.low is None or of.low <= value) and (of.high is None or value <= of.high)


def _differences(theirs: PushedRun, output: Path, ours: Evaluation) -> list[str]:
    """Differences in versions, weights, sentences and factors."""
    evaluation = theirs.evaluation
    found = []
    if evaluation.sordino_version != ours.sordino_version:
        found.append(f"sordino {ours.sordino_version}, and not {evaluation.sordino_version}")
    one, other = evaluation.before or evaluation.after, ours.before or ours.after
    if one.fingerprint != other.fingerprint:
        found.append(f"other weights than those of {one.name}")
    for what, a, b in (("dtype", one.dtype, other.dtype), ("device", one.device, other.device)):
        if a != b:
            found.append(f"the {what} {b}, and not {a}")
    if output.is_dir():
        before, after = read_provenance(theirs.folder), read_provenance(output)
        key = "concept_fingerprint"
        if before.expertise.get(key) != after.expertise.get(key):
            found.append("other sentences")
        if before.intervention != after.intervention:
            found.append("another intervention, or the same at another size")
    return found
