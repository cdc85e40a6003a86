"""Figures for the hub's lists of evaluation results: `.eval_results/*.yaml` in a repository.

The hub lists results by data set, so only figures on data sets of the hub can be listed. Each file
holds one measure, and each figure's notes hold its settings
(https://huggingface.co/docs/hub/eval-results).
"""

from collections.abc import Iterator, Mapping
from typing import Any

import yaml
from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

from sordino.edits.provenance import EXTRAS
from sordino.evaluation import Evaluation, Figure
from sordino.evaluation.result import MeasureResult

FOLDER = ".eval_results"
# The settings of a protocol that name the texts, and those that go into the notes.
_SOURCES = ("prompts", "texts")
_TOLD = (
    *("continuations", "new_tokens", "temperature", "top_p", "top_k", "max_tokens", "direction"),
    *("toxic_above", "n_texts", "draws"),
)


def eval_results(evaluation: Evaluation, repository: str) -> dict[str, bytes]:
    """The files that the hub reads, by their path in a repository.

    Args:
        evaluation: The figures, without folders of this machine.
        repository: The repository's name, "org/name".
    """
    found = {}
    for name, measured in evaluation.measures.items():
        if entries := list(_entries(evaluation, name, measured, repository)):
            text = yaml.safe_dump(
                eval_result_entries_to_yaml(entries), sort_keys=False, allow_unicode=True
            )
            found[f"{FOLDER}/{name}.yaml"] = text.encode()
    return found


def not_listed(evaluation: Evaluation) -> list[str]:
    """The measures whose figures the hub cannot list."""
    return [
        name
        for name, measured in evaluation.measures.items()
        if measured.figures and _dataset(measured.protocol) is None
    ]


def _entries(
    evaluation: Evaluation, name: str, measured: MeasureResult, repository: str
) -> Iterator[EvalResultEntry]:
    dataset = _dataset(measured.protocol)
    if dataset is None:
        return
    for figure in measured.figures:
        if figure.detail or figure.after.value is None:
            continue
        yield EvalResultEntry(
            dataset_id=dataset[0],
            task_id=f"{name}.{figure.name}",
            value=figure.after.value,
            date=evaluation.created,
            source_url=f"https://huggingface.co/{repository}/blob/main/{EXTRAS}/evaluation.json",
            source_name="Sordino",
            notes="; ".join(_notes(evaluation, measured, figure, dataset[1])),
        )


def _dataset(protocol: Mapping[str, Any]) -> tuple[str, str] | None:
    """The hub's data set on which a measure was taken, and its split; None if it was another's."""
    for key in _SOURCES:
        source = protocol.get(key)
        if isinstance(source, str) and source.startswith("hf:"):
            name, _, split = source.removeprefix("hf:").partition(":")
            return name, split
    return None


def _notes(
    evaluation: Evaluation, measured: MeasureResult, figure: Figure, split: str
) -> Iterator[str]:
    yield f"{figure.label} ({figure.unit}, {figure.better} is better)"
    after = figure.after
    if after.low is not None and after.high is not None:
        yield f"95 % interval {after.low:.6g} to {after.high:.6g}"
    if figure.before is not None and figure.before.value is not None:
        yield f"before the change {figure.before.value:.6g}"
    yield "n = " + ", ".join(f"{count:,} {kind}" for kind, count in figure.n.items())
    if split:
        yield f"split {split}"
    scorer = measured.protocol.get("scorer")
    if isinstance(scorer, Mapping) and "scorer" in scorer:
        yield f"scorer {scorer['scorer']}"
    told = {key: measured.protocol[key] for key in _TOLD if key in measured.protocol}
    yield from (f"{key} {value}" for key, value in told.items() if value is not None)
    yield f"seed {evaluation.seed}, sordino {evaluation.sordino_version}"
