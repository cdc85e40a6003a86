"""Turn a table's columns into the two classes of a concept."""

import itertools
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from sordino.concepts.concept import Context
from sordino.concepts.table import LABEL_COLUMNS, TEXT_COLUMNS, Table
from sordino.concepts.text_files import whole_text
from sordino.errors import UserError
from sordino.files import counted, list_some, printable
from sordino.progress import note
from sordino.records import fault

JIGSAW = ("toxic", "severe_toxic", "obscene", "threat", "insult", "identity_hate")
_NONE_OF_SIX = (False,) * len(JIGSAW)

# Prompts and passages are not labelled sentences.
_SENTENCE_COLUMNS = tuple(name for name in TEXT_COLUMNS if name not in ("prompt", "passage"))
_YES, _NO = {"true", "yes"}, {"false", "no"}
_NO_LABEL = {
    *("", "-", "--", "na", "n/a", "#n/a", "#na", "<na>", "n.a.", "nan", "-nan"),
    *("null", "<null>", "\\n", "nil", "nat"),
}
"""What programs write for a missing label, in lower case.

"none" is not among them, because it can name a class, such as that of harmless comments; only
"None" as Python writes it counts."""
_FEW = 5
_FEW_COLUMNS = 20
MESSAGES = "messages"
"""The column of conversations."""


class _Said(BaseModel):
    role: str = Field(min_length=1)
    content: str


_CONVERSATION = TypeAdapter(Annotated[list[_Said], Field(min_length=1)])


@dataclass(frozen=True)
class Classes:
    """The two classes of a table.

    Args:
        name: The concept's name, or "" if the table does not give one.
        positive: The sentences with the concept.
        negative: The sentences without.
        rule: How they were separated, in words.
        account: The number of rows by label and class, in one line.
        strata: Each sentence's value in the strata column, the positive ones' first; () without
            such a column.
        contexts: The conversation that each sentence is the last turn of, in the same order; ()
            without conversations.
    """

    name: str
    positive: tuple[str, ...]
    negative: tuple[str, ...]
    rule: str
    account: str
    strata: tuple[str, ...] = ()
    contexts: tuple[Context, ...] = ()


def classes_of(
    table: Table,
    *,
    label: str | None = None,
    text_column: str | None = None,
    label_column: str | None = None,
    positive: str | None = None,
    strata_column: str | None = None,
) -> Classes:
    """Separate a table's positive and negative sentences.

    With Jigsaw's six columns (and no label column given) the positive rows are those whose `label`
    is 1 and the negative rows those whose six flags are all 0; other rows are left out. Otherwise
    one label column decides. A column "messages" has conversations, whose last turns are the
    sentences. Rows without a label, or without a value in the strata column, are left out.

    Args:
        table: The table.
        label: The one of Jigsaw's six flags that is the concept; "toxic" by default.
        text_column: The column with the sentences; recognised by its name if not given.
        label_column: The column with the labels; recognised by its name if not given.
        positive: The label of the sentences that have the concept.
        strata_column: A column whose values divide the sentences into strata; see
            `sordino.expertise.strata`.

    Raises:
        UserError: A column is unknown or ambiguous, a label is not clear, a text is empty.
    """
    talks = text_column is None and MESSAGES in table.names
    text_column = MESSAGES if talks else _choose(table, text_column, _SENTENCE_COLUMNS, "text")
    if label_column is None and positive is None and set(JIGSAW) <= set(table.names):
        label = label or JIGSAW[0]
        if label not in JIGSAW:
            raise UserError(
                f"{table.source} has no label '{label}': `label` is one of {', '.join(JIGSAW)}."
            )
        flags = {name: _jigsaw_flags(table, name) for name in JIGSAW}
        rows = zip(*flags.values(), strict=True)
        harmless = [six == _NONE_OF_SIX for six in rows]
        truths: list[bool | None] = [
            has or (False if none else None)
            for has, none in zip(flags[label], harmless, strict=True)
        ]
        shown = ["unlabelled" if has is None else f"{label} {has:d}" for has in flags[label]]
        rule = f"positive where {label} is 1, negative where all six of Jigsaw's flags are 0"
        name = "toxicity" if label == "toxic" else label
    else:
        if label is not None:
            raise UserError(
                f"`label` chooses among Jigsaw's six columns, which {table.source} does not "
                f"have: use `label_column` with one of {_names(table)}."
            )
        label_column = _choose(table, label_column, LABEL_COLUMNS, "label")
        truths, rule = _truths(table, label_column, positive)
        values = table.column(label_column)
        words = {value: _show(value) or "empty" for value in dict.fromkeys(values)}
        shown = [words[value] for value in values]
        name = ""
    texts = table.column(text_column)
    turns = last_turns(table, texts) if talks else []
    if talks:
        texts = [turn and turn[0] for turn in turns]
    strata = _strata(table, strata_column)
    if strata:
        truths = [
            truth if stratum is not None else None
            for truth, stratum in zip(truths, strata, strict=True)
        ]
    blank = [i for i, truth in enumerate(truths) if truth is not None and _is_blank(texts[i])]
    if table.editable and blank:
        raise UserError(
            f"{table.where(blank[0])}: the text (column '{text_column}') is empty: write it or "
            "remove the row."
        )
    for i in blank:
        truths[i] = None
    if blank:
        note(f"{table.source}: {counted(len(blank), 'row')} with an empty text left out")
    positives, negatives = (
        [i for i, truth in enumerate(truths) if truth is wanted] for wanted in (True, False)
    )
    return Classes(
        name,
        _sentences(table, text_column, texts, positives),
        _sentences(table, text_column, texts, negatives),
        rule,
        _account(table, truths, shown),
        tuple(strata[i] or "" for i in positives + negatives) if strata else (),
        tuple(turn[1] for i in positives + negatives if (turn := turns[i])) if talks else (),
    )


def last_turns(table: Table, values: Sequence[Any]) -> list[tuple[str, Context] | None]:
    """The last turn of each conversation, and its context; None where there is none.

    Args:
        table: Their table, for messages.
        values: For each row a list of {"role": …, "content": …}.

    Raises:
        UserError: A value is something else.
    """
    return [
        None if value is None else last_turn(value, table.where(row))
        for row, value in enumerate(values)
    ]


def last_turn(value: Any, where: str) -> tuple[str, Context]:
    """The last turn of a conversation, and its context.

    Args:
        value: A list of {"role": …, "content": …}.
        where: Its place, for messages.

    Raises:
        UserError: It is something else.
    """
    try:
        messages = _CONVERSATION.validate_python(value)
    except ValidationError as error:
        raise UserError(
            f"{where}: its {MESSAGES} {fault(error)}: write a list of "
            '{"role": "user", "content": "…"}.'
        ) from None
    said = tuple((message.role, message.content) for message in messages)
    for part in itertools.chain.from_iterable(said):
        whole_text(part, where)
    role, text = said[-1]
    return text, (said[:-1], role)


def sentences_of(table: Table) -> tuple[str, ...]:
    """All sentences of a table, whatever their labels.

    Raises:
        UserError: The column of texts is ambiguous, or a text is empty or not a string.
    """
    column = _choose(table, None, _SENTENCE_COLUMNS, "text")
    texts = table.column(column)
    for row, text in enumerate(texts):
        if _is_blank(text):
            raise UserError(f"{table.where(row)}: the text (column '{column}') is empty: write it.")
    return _sentences(table, column, texts, range(len(texts)))


def _account(table: Table, truths: Sequence[bool | None], shown: Sequence[str]) -> str:
    """How many rows of each label are positive, negative or left out."""
    parts = []
    for what, wanted in (("positive", True), ("negative", False), ("left out", None)):
        counts = Counter(
            label for label, truth in zip(shown, truths, strict=True) if truth is wanted
        )
        if counts or wanted is not None:
            labels = ", ".join(f"{label}: {n:,}" for label, n in counts.most_common(_FEW))
            more = f" and {counted(len(counts) - _FEW, 'more label')}" if len(counts) > _FEW else ""
            parts.append(f"{counts.total():,} {what}" + (f" ({labels}{more})" if labels else ""))
    return f"{table.source}, rows by label: {'; '.join(parts)}"


def _strata(table: Table, column: str | None) -> list[str | None]:
    """The stratum of each row, None where it has none; [] without such a column."""
    if column is None:
        return []
    if column not in table.names:
        raise UserError(
            f"{table.source} has no column '{printable(column)}': `strata_column` is one of "
            f"{_names(table)}."
        )
    values = table.column(column)
    strata = [
        None if is_missing(value) else whole_text(write_label(value), table.where(row))
        for row, value in enumerate(values)
    ]
    missing = strata.count(None)
    if missing:
        what = counted(missing, "row")
        note(f"{table.source}: {what} without a value in '{printable(column)}' left out")
    return strata


def _names(table: Table) -> str:
    return list_some(table.names, _FEW_COLUMNS)


def _choose(table: Table, given: str | None, known: Iterable[str], role: str) -> str:
    """The column that the user named, or the only one with a known name for the role."""
    there = _names(table)
    if given is not None:
        if given not in table.names:
            raise UserError(
                f"{table.source} has no column '{printable(given)}': `{role}_column` is one of "
                f"{there}."
            )
        return given
    found = [name for name in table.names if name.lower() in known]
    if len(found) == 1:
        return found[0]
    if found:
        raise UserError(
            f"{table.source} has more than one {role} column ({', '.join(found)}): choose one with "
            f"`{role}_column`."
        )
    raise UserError(
        f"{table.source} has no column with a known name for the {role}: choose one of {there} "
        f"with `{role}_column`."
    )


def _is_blank(text: Any) -> bool:
    return text is None or (isinstance(text, str) and not text.strip())


def _sentences(
    table: Table, column: str, texts: Sequence[Any], rows: Sequence[int]
) -> tuple[str, ...]:
    """The texts of the rows, which must be valid text."""
    for row in rows:
        if not isinstance(texts[row], str):
            raise UserError(
                f"{table.where(row)}: the column '{column}' holds {_show(texts[row])}, which is "
                "not text: choose another with `text_column`."
            )
        whole_text(texts[row], table.where(row))
    return tuple(texts[row] for row in rows)


def _jigsaw_flags(table: Table, column: str) -> list[bool | None]:
    """One of Jigsaw's flags; None for its -1 ("not scored") and for an empty field."""

    def flag(value: Any) -> bool | None:
        number = number_of(value)
        if is_missing(value) or number == -1:
            return None
        if number is None or not 0 <= number <= 1:
            raise UserError(
                f"{table.source}: Jigsaw's column '{column}' holds {_show(value)}, and 0 or 1 is "
                "expected: choose a column with `label_column`."
            )
        return number >= 0.5

    values = table.column(column)
    meaning = {value: flag(value) for value in _distinct(table, column, values)}
    return [meaning[value] for value in values]


def _truths(table: Table, column: str, positive: str | None) -> tuple[list[bool | None], str]:
    """The class of each row by a label column, and the rule in words."""
    values = table.column(column)
    distinct = _distinct(table, column, values)
    missing = {value for value in distinct if is_missing(value)}
    if positive is not None:
        # A label that the user names is not missing.
        missing -= {v for v in missing if isinstance(v, str) and v.strip() == positive != ""}
    labels = [value for value in distinct if value not in missing]
    if positive is not None:
        having = {value for value in labels if write_label(value) == positive}
        if not having:
            raise UserError(
                f"{table.source} has no row whose '{column}' is {positive}: `positive` is one of "
                f"{_list_few(labels)}."
            )
        rule = f"positive where {printable(column, 40)} is {printable(positive, 40)}"
    else:
        having, rule = _recognise(table, column, labels)
    if missing and not set(labels) - having:
        unlabelled = _list_few([value for value in distinct if value in missing])
        raise UserError(
            f"{table.source} has no negative sentence: {unlabelled} in the column "
            f"'{printable(column)}' means a missing label; if it is a class, rename it."
        )
    meaning = {value: None if value in missing else value in having for value in distinct}
    return [meaning[value] for value in values], rule


def _recognise(table: Table, column: str, labels: list[Any]) -> tuple[set[Any], str]:
    """The labels of a column that mean having the concept, if that is clear, and the rule."""
    numbers = {value: number_of(value) for value in labels}
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
        # "toxic" and "non-toxic": if one label negates the other, that one is the concept.
        shorter, *longer = sorted(set(words.values()), key=len)
        negated = re.compile(rf"(?:non|not|no)[\s_-]*{re.escape(shorter)}")
        if len(longer) == 1 and negated.fullmatch(longer[0]):
            having = {value for value, word in words.items() if word == shorter}
            return having, f"positive where {column} is {shorter}"
    raise UserError(
        f"{table.source}: the column '{column}' holds {_list_few(labels)}: choose with `positive` "
        "the one that marks the sentences with the concept."
    )


def _distinct(table: Table, column: str, values: Sequence[Any]) -> list[Any]:
    try:
        return list(dict.fromkeys(values))
    except TypeError:
        raise UserError(
            f"{table.source}: the column '{column}' holds lists or objects, and one label per row "
            "is expected: choose another with `label_column`."
        ) from None


def is_missing(value: Any) -> bool:
    """Whether a value is missing: None, or what programs write for it, such as NaN."""
    if isinstance(value, str):
        return value.strip() == "None" or value.strip().lower() in _NO_LABEL
    return value is None or (isinstance(value, float) and math.isnan(value))


def number_of(value: Any) -> float | None:
    """The finite number that a value is or spells, else None; true and false are 1 and 0."""
    if not isinstance(value, str | int | float):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def write_label(value: Any) -> str:
    """A label as a user would type it: 1 for 1.0."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()


def _list_few(labels: list[Any]) -> str:
    shown = [_show(label) or "an empty field" for label in labels[:_FEW]]
    return ", ".join(shown) + (f" and {len(labels) - _FEW} more" if len(labels) > _FEW else "")


def _show(value: Any) -> str:
    return printable(write_label(value), 41)
