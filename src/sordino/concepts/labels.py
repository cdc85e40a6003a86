"""From a table's columns to the two classes of a concept."""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sordino.concepts.table import Table
from sordino.errors import UserError
from sordino.progress import note

JIGSAW = ("toxic", "severe_toxic", "obscene", "threat", "insult", "identity_hate")
_NONE_OF_SIX = (False,) * len(JIGSAW)

_TEXT_COLUMNS = ("text", "comment_text", "comment", "sentence", "content", "tweet")
_LABEL_COLUMNS = ("label", "labels", "target", "class", "toxic", "toxicity", "is_toxic", "insult")
_YES, _NO = {"true", "yes"}, {"false", "no"}


@dataclass(frozen=True)
class Classes:
    """The two classes of a table.

    Args:
        name: The concept's name, or "" where the table does not tell one.
        positive: The sentences with the concept.
        negative: The sentences without.
        rule: How they were told apart, in words.
        strata: Each sentence's value in the strata column, the positive ones' first; () without
            such a column.
    """

    name: str
    positive: tuple[str, ...]
    negative: tuple[str, ...]
    rule: str
    strata: tuple[str, ...] = ()


def classes_of(
    table: Table,
    *,
    label: str | None = None,
    text_column: str | None = None,
    label_column: str | None = None,
    positive: str | None = None,
    strata_column: str | None = None,
) -> Classes:
    """Tell a table's positive and negative sentences apart.

    With Jigsaw's six columns (and no label column given) the positive rows are those whose `label`
    is 1 and the negative rows those whose six flags are all 0; rows that are neither are left out.
    Otherwise one label column decides, and rows without a label are left out.

    Args:
        table: The table.
        label: Which of Jigsaw's six flags is the concept; "toxic" by default.
        text_column: The column with the sentences; recognised by its name if not given.
        label_column: The column with the labels; recognised by its name if not given.
        positive: The label of the sentences that have the concept.
        strata_column: A column whose values part the sentences into strata; see
            `sordino.expertise.strata`.

    Raises:
        UserError: A column is unknown or not to be told, a label is not clear, a text is empty.
    """
    text_column = _choose(table, text_column, _TEXT_COLUMNS, "text")
    if label_column is None and positive is None and set(JIGSAW) <= set(table.names):
        label = label or JIGSAW[0]
        if label not in JIGSAW:
            raise UserError(
                f"{table.source} has no label '{label}': --label is one of {', '.join(JIGSAW)}."
            )
        flags = {name: _jigsaw_flags(table, name) for name in JIGSAW}
        truths: list[bool | None] = [
            True if has else False if six == _NONE_OF_SIX else None
            for has, six in zip(flags[label], zip(*flags.values(), strict=True), strict=True)
        ]
        rule = f"positive where {label} is 1, negative where all six of Jigsaw's flags are 0"
        name = "toxicity" if label == "toxic" else label
    else:
        if label is not None:
            raise UserError(
                f"--label chooses among Jigsaw's six columns, which {table.source} does not "
                f"have: use --label-column with one of {', '.join(table.names)}."
            )
        label_column = _choose(table, label_column, _LABEL_COLUMNS, "label")
        truths, rule = _truths(table, label_column, positive)
        name = ""
    rows = [[i for i, truth in enumerate(truths) if truth is wanted] for wanted in (True, False)]
    texts = table.column(text_column)
    if strata_column is not None and strata_column not in table.names:
        raise UserError(
            f"{table.source} has no column '{strata_column}': --stratify is length or one of "
            f"{', '.join(table.names)}."
        )
    values = table.column(strata_column) if strata_column is not None else None
    strata: list[str] = []
    blank = 0
    classes = []
    for chosen in rows:
        full = [i for i in chosen if not _is_blank(texts[i])]
        if table.editable and len(full) < len(chosen):
            first = next(i for i in chosen if _is_blank(texts[i]))
            raise UserError(
                f"{table.where(first)}: the text (column '{text_column}') is empty: write it or "
                "remove the row."
            )
        blank += len(chosen) - len(full)
        classes.append(_sentences(table, text_column, texts, full))
        if values is not None:
            strata += [_plain(values[i]) for i in full]
    if blank:
        note(f"{table.source}: {blank} rows with an empty text were left out")
    return Classes(name, classes[0], classes[1], rule, tuple(strata))


def _choose(table: Table, given: str | None, known: Iterable[str], role: str) -> str:
    """The column that the user named, or the only one whose name is known for the role."""
    there = ", ".join(table.names)
    if given is not None:
        if given not in table.names:
            raise UserError(
                f"{table.source} has no column '{given}': --{role}-column is one of {there}."
            )
        return given
    found = [name for name in table.names if name.lower() in known]
    if len(found) == 1:
        return found[0]
    if found:
        raise UserError(
            f"{table.source} has more than one {role} column ({', '.join(found)}): choose one with "
            f"--{role}-column."
        )
    raise UserError(
        f"{table.source} has no column that is known to hold the {role}: choose one of {there} "
        f"with --{role}-column."
    )


def _is_blank(text: Any) -> bool:
    return text is None or (isinstance(text, str) and not text.strip())


def _sentences(
    table: Table, column: str, texts: Sequence[Any], rows: Sequence[int]
) -> tuple[str, ...]:
    """The texts of the rows, which must be valid text and not something else."""
    for row in rows:
        if not isinstance(texts[row], str):
            raise UserError(
                f"{table.where(row)}: the column '{column}' holds {_shown(texts[row])}, which is "
                "no text: choose another with --text-column."
            )
        try:
            texts[row].encode()
        except UnicodeEncodeError:
            # JSON can write half of a surrogate pair, which no tokeniser can read.
            raise UserError(
                f"{table.where(row)}: the text holds half of a surrogate pair, which is no valid "
                "Unicode: write the text again or remove the row."
            ) from None
    return tuple(texts[row] for row in rows)


def _jigsaw_flags(table: Table, column: str) -> list[bool | None]:
    """One of Jigsaw's flags; its -1 ("not scored") and an empty field are neither."""

    def flag(value: Any) -> bool | None:
        number = _number(value)
        if _is_null(value) or number == -1:
            return None
        if number is None or not 0 <= number <= 1:
            raise UserError(
                f"{table.source}: Jigsaw's column '{column}' holds {_shown(value)}, where 0 or 1 "
                "is expected: choose a column with --label-column."
            )
        return number >= 0.5

    values = table.column(column)
    meaning = {value: flag(value) for value in _distinct(table, column, values)}
    return [meaning[value] for value in values]


def _truths(table: Table, column: str, positive: str | None) -> tuple[list[bool | None], str]:
    """What a label column says of each row, and the rule in words."""
    values = table.column(column)
    distinct = _distinct(table, column, values)
    labels = [value for value in distinct if not _is_null(value)]
    if positive is not None:
        having = {value for value in labels if _plain(value) == positive}
        if not having:
            raise UserError(
                f"{table.source} has no row whose '{column}' is {positive}: --positive is one of "
                f"{_few(labels)}."
            )
        rule = f"positive where {column} is {positive}"
    else:
        having, rule = _recognised(table, column, labels)
    meaning = {value: None if _is_null(value) else value in having for value in distinct}
    return [meaning[value] for value in values], rule


def _recognised(table: Table, column: str, labels: list[Any]) -> tuple[set[Any], str]:
    """Which of a column's labels mean that the sentence has the concept, if that is plain."""
    numbers = {value: _number(value) for value in labels}
    if all(number is not None and 0 <= number <= 1 for number in numbers.values()):
        having = {value for value, number in numbers.items() if number and number >= 0.5}
        if set(numbers.values()) <= {0, 1}:
            return having, f"positive where {column} is 1"
        rule = f"positive where {column} is at least 0.5"
        note(f"{table.source}: a sentence is {rule}")
        return having, rule
    words = {value: value.strip().casefold() for value in labels if isinstance(value, str)}
    if len(words) == len(labels):
        if set(words.values()) <= _YES | _NO:
            having = {value for value, word in words.items() if word in _YES}
            return having, f"positive where {column} is true"
        # "toxic" against "non-toxic": of two labels that one negates, the other is the concept.
        shorter, *longer = sorted(set(words.values()), key=len)
        negated = re.compile(rf"(?:non|not|no)[\s_-]*{re.escape(shorter)}")
        if len(longer) == 1 and negated.fullmatch(longer[0]):
            having = {value for value, word in words.items() if word == shorter}
            return having, f"positive where {column} is {shorter}"
    raise UserError(
        f"{table.source}: the column '{column}' holds {_few(labels)}: say with --positive which of "
        "them marks the sentences that have the concept."
    )


def _distinct(table: Table, column: str, values: Sequence[Any]) -> list[Any]:
    try:
        return list(dict.fromkeys(values))
    except TypeError:
        raise UserError(
            f"{table.source}: the column '{column}' holds lists or objects, where one label a row "
            "is expected: choose another with --label-column."
        ) from None


def _is_null(value: Any) -> bool:
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, float) and math.isnan(value))


def _number(value: Any) -> float | None:
    """The number that a label is or spells, true and false being 1 and 0 where they are values."""
    if not isinstance(value, str | int | float):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _plain(value: Any) -> str:
    """A label as a user would type it: 1 for 1.0."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()


def _few(labels: list[Any]) -> str:
    shown = [_shown(label) for label in labels[:5]]
    return ", ".join(shown) + (f" and {len(labels) - 5} more" if len(labels) > 5 else "")


def _shown(value: Any) -> str:
    text = _plain(value)
    return text if len(text) <= 40 else text[:40] + "…"
