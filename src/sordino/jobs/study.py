"""Carry out a study on models, and write its page."""

import shlex
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from sordino.concepts.concept import Concept, refuse_unloaded
from sordino.errors import UserError
from sordino.evaluation.texts import KIT_PROSE
from sordino.extras import require
from sordino.files import user_path
from sordino.models.reference import ModelRef, resolve
from sordino.outputs import MARKDOWN_PAGE, PAGE, STUDY, claim_output
from sordino.report.article import write_html, write_markdown
from sordino.report.studies import show_studies
from sordino.report.study import study_article
from sordino.studies import STUDIES, Plan, StudyRecord, carry_out, prepare_study
from sordino.studies.words import model_name
from sordino.tuning.lab import Lab


@dataclass(frozen=True)
class StudyResult:
    """The result of a study.

    Args:
        records: The measurements of each model, in the order of `models`.
        page: The page to open.
        answer: The answer in sentences.
    """

    records: tuple[StudyRecord, ...]
    page: Path
    answer: tuple[str, ...]


def study(
    name: str,
    models: str | Path | Sequence[str | Path],
    concept: Concept | Callable[[], Concept],
    output: str | Path,
    *,
    plan: Plan | None = None,
    texts: str | Path = KIT_PROSE,
    markdown: str | Path | None = None,
    device: str = "auto",
    dtype: str = "auto",
    find_dtype: str = "float32",
    seed: int = 0,
    inputs: Iterable[object] = (),
    command: Sequence[str] = (),
) -> StudyResult:
    """Answer a question about one model or several, with figures and a page.

    An interrupted study, or one with other sizes, continues where it stopped.

    Args:
        name: The study, such as "ranking"; see `sordino study --help`.
        models: What `sordino.open_model` takes, or the ".json" of a finished study, to show it on
            the same page.
        concept: The labelled sentences, or a function that loads them when they are needed.
        output: The folder for the figures, the page and the work.
        plan: How much is measured, and on what.
        texts: Ordinary texts for perplexities, sizes and divergences.
        markdown: Also write the page there, as Markdown.
        device: See `sordino.open_model`.
        dtype: The dtype in which the model is measured.
        find_dtype: The dtype in which its neurons are found.
        seed: Seed of all random choices.
        inputs: Files that the outputs must not replace.
        command: The command line that repeats it, for the record.

    Raises:
        UserError: There is no such study, or an input cannot be used.

    Example:
        >>> result = sordino.study("overhead", "tiny", concept, "studies")
        >>> result.page.name
        'overhead.html'
    """
    require("report", "The page of a study")
    refuse_unloaded(concept)
    texts = str(texts)
    STUDIES.named(name)
    given = [models] if isinstance(models, str | Path) else list(models)
    if not given:
        raise UserError("There is no model to study: pass one or more.")
    folder, read, measured = user_path(output), [*given, *inputs], plan or Plan()
    page = claim_output(folder / f"{name}.html", PAGE, force=True, inputs=read)
    if markdown is not None:
        markdown = claim_output(markdown, MARKDOWN_PAGE, force=True, inputs=read)
    labelled = cache(lambda: concept if isinstance(concept, Concept) else concept())
    if not all(map(_is_record, given)):
        # Kept until the end, so that its scorers are opened only once.
        ready = prepare_study(name, measured, texts, device=device, seed=seed)
        ready.note_shared_sentences(labelled().source)
    records = []
    for model in given:
        if _is_record(model):
            records.append(StudyRecord.load(user_path(model), name))
            continue
        ref = resolve(model)
        place = folder / f"{_slug(ref)}-{ref.weights_fingerprint()[:8]}"
        _refuse_older(place)
        found = claim_output(place / f"{name}.json", STUDY, force=True, inputs=read)
        # In a folder of its own, in which no study's record can replace a file of it.
        work = place / "work"
        lab = Lab(
            ref,
            labelled(),
            work,
            device=device,
            dtype=dtype,
            find_dtype=find_dtype,
            seed=seed,
            texts=texts,
        )
        records.append(carry_out(name, lab, measured, found, shlex.join(command)))
    article, asked = study_article(records), STUDIES.named(name)
    write_html(article, page)
    show_studies(folder.absolute().parent / "report.html", folder)
    if markdown is not None:
        write_markdown(article, Path(markdown))
    answer = tuple(f"{model_name(of.model)}: {line}" for of in records for line in asked.answer(of))
    return StudyResult(tuple(records), page, answer)


def _is_record(model: str | Path) -> bool:
    return str(model).endswith(".json")


def _refuse_older(place: Path) -> None:
    """Refuse the folder of a version that kept its work beside the studies' records."""
    mark = place / "lab.json"
    if mark.exists() and not STUDY.holds(mark):
        raise UserError(
            f"{place} holds the work of an earlier version: choose another `output`, or remove it."
        )


def _slug(ref: ModelRef) -> str:
    """A model's name as part of a folder's name."""
    return "".join(c if c.isalnum() else "-" for c in ref.name.rpartition(":")[2]).strip("-")
