"""Foreign words in a card stay words, whatever they are."""

import re
from functools import partial

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from sordino.edits.ia3 import card as adapter_card
from sordino.edits.provenance import plain_card
from sordino.edits.record import Provenance
from sordino.files import printable
from sordino.markdown import body, front_matter, line, with_front
from sordino.report.card import model_card

HOSTILE = (
    "[x](javascript:alert(1))",
    "<script>alert(1)</script>",
    "![](https://tracker.example/x.png)",
    "a\n---\nlicense: mit\n---\n# Big",
    "`rm -rf ~`",
    "| a | b |",
    "__b__ *i* ~~s~~ _i_",
    "# head",
    "1. one",
    "- x",
    "&lt;b&gt; $x$",
    "<http://a.example> www.b.example me@c.example",
    "\x1b[31m\u202e",
    "\\[x\\](y)",
)
WORDS = st.one_of(
    st.sampled_from(HOSTILE),
    st.text(st.sampled_from("ab1 \n\t[]()<>*_`~#-+=.|\\$&!:/@\"'{}^é中"), max_size=30),
    st.text(max_size=20),
)
PARSER = MarkdownIt("commonmark").enable(["table", "strikethrough"])


def structure(text: str) -> list[str]:
    """What a renderer makes of Markdown, without the words."""
    return [
        child.type
        for token in PARSER.parse(text)
        for child in (token, *(token.children or ()))
        if child.type not in ("text", "text_special")
    ]


@given(WORDS)
@example("__b__")
@example("1) x")
@example("1.")
@example("> x")
@example("---")
@example("a &amp")
def test_words_have_no_structure_and_show_as_they_are(words):
    shown = line(words)
    for before, after in (("- ", ""), ("# ", ""), ("**", "**"), ("x ", " y")):
        plain = structure(f"{before}word{after}")
        if shown.strip():
            assert structure(f"{before}{shown}{after}") == plain, shown
    tokens = PARSER.parse(f"x {shown} y")
    assert "".join(child.content for child in tokens[1].children) == (
        f"x {printable(words, 2000)} y"
    )
    assert not re.search(r"(?<!\\)(?:<|\[|:(?=//))", shown)


@pytest.mark.parametrize(
    "words",
    ["0.1.0", "2.5 % of 3", "-5 points", "+1", "R&D", "a > b", "sordino_version", "me@", ":/"],
)
def test_words_that_are_no_markup_stay_as_they_are_in_the_text_too(words):
    assert line(words) == words


def record(words: str, form: str = "weights", revision: str = "") -> Provenance:
    origin = {
        "intervention": {"name": words or "aura", "strength": 1.0, "settings": {words: words}},
        "expertise": {"concept": words, "n_positive": words, "pooling": "max"},
    }
    found = {
        "format": "sordino-provenance-1",
        "sordino_version": words,
        "created": "2026-01-01",
        "model": {
            "name": words,
            "kind": "folder",
            "revision": revision,
            "weights_fingerprint": "ab",
        },
        **origin,
        "written_as": form,
        "neurons": 10,
        "changed": 3,
        "sites": {"a": {"neurons": 10, "changed": 3, "min": 0.0, "mean": 0.5}},
        "left_out": [],
    }
    return Provenance.model_validate(found)


@settings(max_examples=40)
@given(WORDS, st.sampled_from(["", "abc"]))
@example("/ ", "")
def test_cards_have_the_structure_of_a_plain_one(words, revision):
    unmeasured = partial(model_card, evaluation=None)
    for make, form in ((unmeasured, "weights"), (plain_card, "hooks"), (adapter_card, "ia3")):
        card, plain = (make(record(w, form, revision)) for w in (words or "word", "word"))
        assert front_matter(card).keys() == front_matter(plain).keys()
        ours = structure(body(card))
        if printable(words).strip():
            assert [kind for kind in ours if kind != "softbreak"] == [
                kind for kind in structure(body(plain)) if kind != "softbreak"
            ]


@given(st.dictionaries(st.sampled_from(["license", "tags", "base_model"]), WORDS), WORDS)
def test_front_matter_reads_back(front, words):
    card = with_front({key: printable(value) for key, value in front.items()}, f"# {line(words)}\n")
    assert front_matter(card) == {key: printable(value) for key, value in front.items()}
    assert yaml.safe_load(card.split("---\n")[1] or "{}") is not None


def test_front_matter_of_others_is_read_or_passed_over():
    for card in (
        None,
        "",
        "no front",
        "---\n[a\n---\n",
        "---\n- a\n---\n",
        "---\nd: 2026-99-99\n---\n",
        "---\n" + "[" * 5000 + "\n---\n",
    ):
        assert front_matter(card) == {}
    base = "---\ntags:\nself: 1\n1: x\nlicense: [1, {a: b}]\nlanguage: [en, 3]\n---\n# Base\n"
    about = front_matter(model_card(record("word"), None, base))
    assert about["language"] == ["en"]
    assert "license" not in about
