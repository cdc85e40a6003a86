"""Load a concept from a name, files, a data set of the hub or sentences."""

import os
from collections.abc import Mapping
from pathlib import Path

from sordino.concepts.built_in import BUILT_IN
from sordino.concepts.concept import Concept
from sordino.concepts.labels import classes_of, sentences_of, write_label
from sordino.concepts.readers import is_table, read_hub, read_sentences, read_table
from sordino.errors import UserError
from sordino.files import counted, printable, user_path
from sordino.progress import note
from sordino.registry import did_you_mean

JUDGE = "judge:"
"""What a concept's spec begins with that has no labels, but a judge of what the model writes."""


def load_concept(
    spec: str | Path | Concept,
    *,
    negatives: str | Path | None = None,
    label: str | None = None,
    text_column: str | None = None,
    label_column: str | None = None,
    positive: str | float | bool | None = None,
    strata_column: str | None = None,
    config: str | None = None,
    revision: str | None = None,
    split: str | None = None,
    max_per_class: int | None = None,
    balance: bool = True,
    seed: int = 0,
) -> Concept:
    """Load a concept and draw a sample of it.

    Args:
        spec: A built-in concept ("toxicity", "insults"); a CSV, TSV, JSON, JSON Lines or Parquet
            file; a data set of the hub ("hf:org/name"); or a text file with one positive sentence
            per line, together with `negatives`. A `Concept` is only sampled. If a table has a
            column "messages", it holds conversations, whose last turns are the sentences.
        negatives: The text file with one negative sentence per line. It and the positive one may
            also be tables, whose column of texts is read.
        label: The one of Jigsaw's six flags that is the concept, where the source has them
            ("toxic" by default); the negative sentences are then those with none of the six.
        text_column: The column with the sentences; recognised by its name if not given.
        label_column: The column with the labels; recognised by its name if not given.
        positive: The label of the sentences with the concept, if it cannot be inferred.
        strata_column: The column whose values divide the sentences into strata.
        config: The configuration of a hub data set that has several.
        revision: A branch, tag or commit of a hub data set.
        split: The split of a hub data set; "train" by default.
        max_per_class: The most sentences per class.
        balance: Reduce the larger class to the size of the smaller one.
        seed: Of the sample.

    Returns:
        The sampled concept, with at least 20 sentences per class.

    Raises:
        UserError: The source is missing, ambiguous or damaged, or an argument does not apply to it.

    Example:
        >>> concept = sordino.load_concept("calm.jsonl", max_per_class=20)
        >>> concept.name, len(concept.positive), len(concept.negative)
        ('calm', 20, 20)
    """
    if not isinstance(spec, str | os.PathLike | Concept):
        raise UserError(
            f"A concept is a name, a file or a `sordino.Concept`, and not a {type(spec).__name__}: "
            "save it as a file, or give its sentences to `sordino.Concept`."
        )
    name = str(spec)
    if name.startswith(JUDGE):
        raise UserError(
            f"The concept {printable(name)} needs the model, because the sentences are what it "
            "writes: only the commands find and run take it (`sordino.Judged` in Python); give the "
            "file of labelled sentences that they leave."
        )
    columns = {
        "label": label,
        "text_column": text_column,
        "label_column": label_column,
        "positive": positive,
        f"strata_column={strata_column}": strata_column,
    }
    on_hub = {"config": config, "load_concept.revision": revision, "split": split}
    if isinstance(spec, Concept):
        _refuse(f"The concept '{spec.name}'", {"negatives": negatives, **columns, **on_hub})
        concept = spec
    elif isinstance(spec, str) and spec in BUILT_IN:
        other = {key: value for key, value in columns.items() if key != "label"}
        _refuse(f"The built-in concept {name}", {"negatives": negatives, **other, **on_hub})
        concept = _built_in(name, label)
    elif negatives is not None:
        _refuse("Two text files", {**columns, **on_hub})
        concept = _from_text_files(user_path(name), user_path(negatives))
    else:
        if name.startswith("hf:"):
            data_set = name.removeprefix("hf:")
            table = read_hub(data_set, config=config, revision=revision, split=split or "train")
            called = data_set.rpartition("/")[2]
        else:
            _refuse(f"{name}, which is not on the hub,", on_hub)
            path = user_path(name)
            _refuse_unknown(spec, path)
            table = read_table(path)
            called = printable(path.stem)
        classes = classes_of(
            table,
            label=label,
            text_column=text_column,
            label_column=label_column,
            positive=None if positive is None else write_label(positive),
            strata_column=strata_column,
        )
        note(classes.account)
        concept = Concept(
            classes.name or called,
            classes.positive,
            classes.negative,
            f"{table.source}: {classes.rule}",
            classes.strata,
            contexts=classes.contexts,
        )
    _note_shared(concept)
    return concept.sampled(max_per_class=max_per_class, balance=balance, seed=seed)


def _note_shared(concept: Concept) -> None:
    """Note how many sentences are in both classes, where they tell nothing apart."""
    if concept.contexts:
        return
    if shared := len({*concept.positive} & {*concept.negative}):
        found = counted(shared, "sentence is", "different sentences are")
        note(f"{concept.source}: {found} in both classes")


def _from_text_files(positive: Path, negative: Path) -> Concept:
    source = f"{printable(str(positive))} (positive) and {printable(str(negative))} (negative)"
    return Concept(printable(positive.stem), _sentences(positive), _sentences(negative), source)


def _sentences(path: Path) -> tuple[str, ...]:
    return sentences_of(read_table(path)) if is_table(path) else tuple(read_sentences(path))


def _built_in(name: str, label: str | None) -> Concept:
    known = BUILT_IN[name]
    if label is None:
        return known.load()
    if known.labelled is None:
        raise UserError(
            f"The concept {name} has no label '{printable(label)}': leave `label` out, or use "
            "Jigsaw's train.csv as the concept."
        )
    return known.labelled(label)


def _refuse(what: str, options: Mapping[str, object]) -> None:
    """Raise `UserError` for an argument that would have no effect."""
    for argument, value in options.items():
        if value is not None:
            raise UserError(f"{what} cannot be combined with `{argument}`: leave it out.")


def _refuse_unknown(spec: str | Path, path: Path) -> None:
    """Raise `UserError` for a name that is neither a file nor a built-in concept."""
    if os.path.exists(path):  # noqa: PTH110 - unlike Path's, it raises nothing
        if path.suffix.lower() == ".txt":
            raise UserError(
                f"{printable(str(path))} holds the positive sentences: give the file with the "
                "negative ones as `negatives`."
            )
        return
    if isinstance(spec, str) and not path.suffix and len(path.parts) == 1:
        hint = did_you_mean(spec, BUILT_IN).rstrip() or f"there are {', '.join(BUILT_IN)}."
        raise UserError(f"There is no built-in concept and no file '{printable(spec)}': {hint}")
