"""Somebody's run, repeated, and its figures beside theirs."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sordino import hub
from sordino.edits.provenance import GGUF, GGUF_COPY, extras_of, read_provenance
from sordino.edits.record import Provenance, parse_provenance
from sordino.errors import UserError
from sordino.evaluation import Evaluation, Figure
from sordino.evaluation.statistics import Estimate
from sordino.files import (
    has_suffix,
    only_one,
    printable,
    read_json,
    refuse_missing,
    user_path,
    write_json,
)
from sordino.options.job import Job
from sordino.options.recipe import read
from sordino.outputs import RECORD, REPRODUCTION, claim_output
from sordino.progress import note
from sordino.records import Record, read_bytes
from sordino.reproduction.changes import Changes
from sordino.reproduction.recipe import recipes

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
class FinishedRun:
    """A run's output, from which it can be repeated.

    Args:
        name: "hf:org/name", the folder or the GGUF file.
        recipe: The file with its options.
        evaluation: Its figures.
        record: Its edit; None for a GGUF file on the hub that was pushed without a copy of it.
        is_file: Whether its model is a GGUF file.
    """

    name: str
    recipe: Path
    evaluation: Evaluation
    record: Provenance | None
    is_file: bool


def is_run(name: str) -> bool:
    """Whether a name is that of a run's output: on the hub, a folder, or a GGUF file.

    A recipe's name is the recipe's, also where a folder has it: that of its reproduction.
    """
    path = user_path(name)
    place = has_suffix(path, GGUF) or path.is_dir()
    return hub.is_shared(name) or (place and name not in recipes())


def finished_run(name: str) -> FinishedRun:
    """A run's record, fetched first if it is on the hub; weights are not.

    Args:
        name: "hf:org/name" ("hf:org/name@revision" for another than main), a folder, or a GGUF
            file.

    Raises:
        UserError: It is not a run, or has no recipe or no figures.
    """
    path = user_path(name)
    if hub.is_shared(name):
        repository, _, revision = name.removeprefix("hf:").partition("@")
        path = hub.fetch_files(
            hub.Wanted(repository, revision or None, name=name),
            (RECORD, GGUF_COPY, RECIPE, FIGURES),
        )
    is_file = has_suffix(path, GGUF)
    if is_file:
        refuse_missing(path, f"The run {printable(name)}")
    extras = extras_of(path)
    for file in (RECIPE, FIGURES):
        if not (extras / Path(file).name).is_file():
            raise UserError(
                f"{printable(name)} has no {file}, so it cannot be repeated: give the output of "
                "sordino run, or the repository to which sordino push pushed it."
            )
    record, copy = None, path / GGUF_COPY
    if is_file or (path / RECORD).is_file():
        record = read_provenance(path)
    elif copy.is_file():
        record = parse_provenance(read_bytes(copy, "provenance"), str(copy))
    return FinishedRun(
        name,
        extras / Path(RECIPE).name,
        Evaluation.load(extras / Path(FIGURES).name),
        record,
        is_file or not (path / RECORD).is_file(),
    )


def repeat(
    run: str,
    output: str | Path | None = None,
    changes: Changes | None = None,
    command: Sequence[str] = (),
) -> tuple[Again, Path]:
    """Repeat somebody's run, and compare their figures with ours.

    Files that their run read are looked for where it named them. An interrupted call continues; a
    finished run is only compared.

    Args:
        run: "hf:org/name", or a folder or a GGUF file that `sordino.run` wrote.
        output: The folder to make, in which our model is "model" or "model.gguf"; None for
            one of the run's name in the current folder.
        changes: Deviations from the run.
        command: The command line that repeats it, for the page of our run.

    Returns:
        The comparison, and the file with it.

    Raises:
        UserError: It cannot be repeated, or an input cannot be used.
    """
    theirs = finished_run(run)
    named = run.removeprefix("hf:").partition("@")[0].rstrip("/").rpartition("/")[2]
    place = user_path(output or f"{named.removesuffix(GGUF)}-again")
    target = place / f"model{GGUF if theirs.is_file else ''}"
    results = claim_output(place / "again.json", REPRODUCTION, force=True)
    recipe = (changes or Changes()).to(read(theirs.recipe))
    if "model" not in recipe:
        raise UserError(
            f'{theirs.recipe} names no model: write a line like model = "org/name" into it, or '
            "give `model`."
        )
    mark, asked = place / "asked.json", _deciding(recipe)
    with only_one(results):
        if mark.exists() and read_json(mark) != asked:
            raise UserError(
                f"{place} is of another run or other settings: choose another `output`."
            )
        if figures_of(target).is_file():
            note(f"{target} exists already: only comparing it.")
        else:
            job = Job.of_recipe(recipe)
            place.mkdir(parents=True, exist_ok=True)
            write_json(mark, asked)
            # Everything is measured here and now: that is what repeating is for.
            job.run(target, command=command, inputs=[theirs.recipe])
        found = compare_runs(theirs, target)
        write_json(results, found.model_dump(mode="json"))
    return found, results


def _deciding(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """What decides the figures: files by their names alone, for a pushed run lacks their folders.

    Args:
        recipe: The options of the run.
    """
    return {key: _without_folder(value) for key, value in recipe.items() if key != "device"}


def _without_folder(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_without_folder(one) for one in value]
    return value.rstrip("/").rpartition("/")[2] if isinstance(value, str) else value


def figures_of(output: Path) -> Path:
    """The file of a run's figures, by its output: a folder, or a GGUF file."""
    return extras_of(output) / Path(FIGURES).name


def compare_runs(theirs: FinishedRun, output: Path) -> Again:
    """Their run beside ours, figure by figure.

    Args:
        theirs: Theirs.
        output: The folder or the GGUF file that our run wrote.

    Raises:
        UserError: A record is damaged.
    """
    ours = Evaluation.load(figures_of(output))
    figures = [
        _compare(name, figure, ours)
        for name, measured in theirs.evaluation.measures.items()
        for figure in measured.figures
    ]
    return Again(
        source=theirs.name,
        differences=tuple(_differences(theirs, read_provenance(output), ours)),
        figures=tuple(figures),
    )


def _compare(measure: str, figure: Figure, ours: Evaluation) -> Repeated:
    found = ours.find_figure(measure, figure.name) if measure in ours.measures else None
    mine = None if found is None else found.after
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


def _differences(theirs: FinishedRun, record: Provenance, ours: Evaluation) -> Iterator[str]:
    """Differences in versions, weights, sentences and factors."""
    evaluation = theirs.evaluation
    if evaluation.sordino_version != ours.sordino_version:
        yield f"sordino {ours.sordino_version}, and not {evaluation.sordino_version}"
    one, other = evaluation.before or evaluation.after, ours.before or ours.after
    if one.fingerprint != other.fingerprint:
        yield f"other weights than those of {one.name}"
    for what, a, b in (("dtype", one.dtype, other.dtype), ("device", one.device, other.device)):
        if a != b:
            yield f"the {what} {b}, and not {a}"
    if theirs.record is None:
        yield (
            "perhaps other sentences or another intervention: their record is in the GGUF file, "
            "which was not fetched"
        )
        return
    key = "concept_fingerprint"
    if theirs.record.expertise.get(key) != record.expertise.get(key):
        yield "other sentences"
    if theirs.record.intervention != record.intervention:
        yield "another intervention, or the same at another size"
