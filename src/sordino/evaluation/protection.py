"""What an edit must leave: texts, and the model's own refusals of unsafe requests."""

from collections.abc import Collection, Sequence
from typing import NamedTuple

from sordino.concepts.text_files import one_line
from sordino.errors import UserError
from sordino.evaluation.measures.bold import protected_texts
from sordino.evaluation.measures.refusals import UNSAFE, read_refusals
from sordino.evaluation.scorers.refusal import RefusalScorer
from sordino.evaluation.texts import choose
from sordino.expertise.refusals import RefusalSettings
from sordino.files import counted, printable
from sordino.progress import note

REFUSALS = "refusals"
_KIT = "kit"


class Protected(NamedTuple):
    """What is protected, as `AttributionSettings` takes it.

    Args:
        texts: Texts whose likelihood must not fall.
        refusals: Which of the model's refusals must not, or None.
    """

    texts: tuple[str, ...]
    refusals: RefusalSettings | None


def protect(specs: Sequence[str], most: int, seed: int) -> Protected:
    """What these names and files protect.

    Args:
        specs: Each "refusals", "refusals:" and a source as for `read_refusals`, or as for
            `protected_texts`.
        most: How many texts at most of each, and how many requests.
        seed: Of the choice.

    Raises:
        UserError: One is not available, or is given twice.
    """
    texts: dict[str, None] = {}
    refusals = None
    for spec in dict.fromkeys(specs):
        name, _, source = spec.partition(":")
        if name == REFUSALS:
            if refusals is not None:
                raise UserError(
                    "`protect=refusals` is given with several sources: give one of them."
                )
            refusals = own_refusals(source or _KIT, most, seed)
            about = f"what the model refuses of {counted(len(refusals.prompts), 'unsafe request')}"
        else:
            found = protected_texts(spec, most, seed)
            texts |= dict.fromkeys(found)
            about = counted(len(found), "text")
        note(f"protected: {about} ({printable(spec)})")
    return Protected(tuple(texts), refusals)


def own_refusals(
    spec: str = _KIT, most: int | None = None, seed: int = 0, measured: Collection[str] = ()
) -> RefusalSettings:
    """The settings for protecting what the model refuses of unsafe requests.

    Args:
        spec: Where the requests come from, as for `unsafe_requests`.
        most: How many at most; None for all.
        seed: Of the choice.
        measured: As there.

    Raises:
        UserError: There is no such source, or too few of its requests are left.
    """
    chosen = choose(unsafe_requests(spec, measured), most, seed)
    return RefusalSettings(tuple(chosen), RefusalScorer(), spec)


def unsafe_requests(spec: str, measured: Collection[str] = ()) -> list[str]:
    """The unsafe requests of a source.

    Args:
        spec: As for `sordino.evaluation.measures.refusals.read_refusals`.
        measured: Texts by which the edit is measured, each in one line. They are left out, because
            a protected refusal cannot say what the edit does to others.

    Raises:
        UserError: There is no such source.
    """
    unsafe = (text.text for text in read_refusals(spec) if text.group == UNSAFE)
    return [text for text in unsafe if one_line(text) not in measured]
