"""Answers of servers, read without trusting any of it: choices, lists of models, words."""

import json
from contextlib import suppress
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sordino.evaluation.answers import (
    Choice,
    MalformedError,
    read_choices,
    read_models,
    repair_text,
    without_key,
    words_of,
)
from sordino.evaluation.transport import LONGEST_PAUSE_S, Reply

ANY_TEXT = st.text(st.characters(exclude_categories=())) | st.text(
    st.sampled_from("a\ud83d\ude00\udc00\ud800\x00\ufffd😀"), max_size=6
)
NAMES = st.sampled_from(
    ("choices", "message", "content", "text", "index", "finish_reason", "type", "value", "error")
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | ANY_TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=15,
)
CHOICE = st.fixed_dictionaries(
    {},
    optional={
        "index": JSON,
        "text": JSON,
        "message": st.none() | st.dictionaries(NAMES, JSON, max_size=3),
        "finish_reason": JSON,
    },
)


def encoded(value):
    return json.dumps(value).encode()


def read_one(value, **more):
    (choice,) = read_choices(encoded({"choices": [{"message": {"content": value}, **more}]}))
    return choice


@given(JSON | st.fixed_dictionaries({"choices": st.lists(CHOICE | JSON, max_size=4)}))
def test_any_json_is_read_or_malformed(value):
    try:
        choices = read_choices(encoded(value))
    except MalformedError as error:
        error.words.encode("utf-8", "surrogatepass")
    else:
        assert choices
        for choice in choices:
            for text in (choice.content or "", choice.ended, choice.refusal):
                text.encode()


@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
def test_any_bytes_are_read_or_malformed(data):
    for read in (read_choices, read_models):
        with suppress(MalformedError):
            read(data)
    assert isinstance(words_of(data), str)


@given(ANY_TEXT)
def test_any_text_can_be_encoded_afterwards(text):
    whole = repair_text(text)
    whole.encode()
    # What Python makes of the same UTF-16 is the oracle for whole pairs.
    if not any(0xD800 <= ord(letter) < 0xE000 for letter in text):
        assert whole == text
    choice = read_one(text)
    assert choice.content == repair_text(json.loads(json.dumps(text)))
    assert choice.repaired == (choice.content != json.loads(json.dumps(text)))


@pytest.mark.parametrize(
    ("content", "read", "mended"),
    [
        ("plain", "plain", False),
        ("", "", False),
        (None, None, False),
        ("cut \ud83d", "cut �", True),
        ("a\ud800b\x00c", "a�b\x00c", True),
        ([{"type": "text", "text": "one "}, {"type": "text", "text": "two"}], "one two", False),
        ([{"type": "output_text", "text": {"value": "deep"}}], "deep", False),
        ([{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "so"}], "so", False),
        (["one", "two"], "onetwo", False),
        # A pair that was divided between two parts meets again.
        ([{"text": "a\ud83d"}, {"text": "\ude00"}], "a😀", True),
        ([], None, False),
        ([{"type": "image_url", "image_url": {}}], None, False),
    ],
)
def test_texts_in_every_shape(content, read, mended):
    if mended and read == "a😀":
        assert read_one(content).content == read
        return
    assert read_one(content) == Choice(read, repaired=mended)


def test_utf8_that_is_cut_becomes_a_whole_text():
    data = b'{"choices": [{"text": "so \xf0\x9f\x98", "finish_reason": "length"}]}'
    assert read_choices(data) == [Choice("so �", ended="length", repaired=True)]


@pytest.mark.parametrize(
    ("indexes", "order"),
    [
        ([2, 0, 1], "bca"),
        ([None, 0, 1], "abc"),
        ([1, 1, 0], "abc"),
        (["1", "0", "2"], "abc"),
        ([True, False, 2], "abc"),
        ([10**400, 0, -1], "cba"),
    ],
)
def test_choices_come_by_their_numbers_where_each_has_one(indexes, order):
    rows = [{"index": i, "text": text} for i, text in zip(indexes, "abc", strict=True)]
    assert "".join(one.content for one in read_choices(encoded({"choices": rows}))) == order


def test_a_choice_that_cannot_be_read_leaves_the_others():
    rows = [None, {"text": 3}, {"message": "words"}, {"text": "good", "finish_reason": ["odd"]}]
    assert read_choices(encoded({"choices": rows})) == [Choice("good")]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({}, "no choices"),
        ({"choices": None}, "no choices"),
        ({"choices": {}}, "no choices"),
        ({"choices": []}, "empty"),
        ({"choices": [7]}, "not an object"),
        ({"choices": [{"message": []}]}, "not an object"),
        ({"choices": [{"text": 0.5}]}, "a float"),
        ({"choices": [{"text": [[[[["deep"]]]]]}]}, "too deep"),
        ([], "no choices"),
        ("words", "no choices"),
    ],
)
def test_what_is_malformed_says_how(value, reason):
    with pytest.raises(MalformedError, match=reason):
        read_choices(encoded(value))


@pytest.mark.parametrize("data", [b"", b"<html>", b"[" * 200_000, b'{"choices": [', b"9" * 5000])
def test_what_is_no_json_is_malformed(data):
    with pytest.raises(MalformedError):
        read_choices(data)


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ({"data": [{"id": "a"}, {"id": "b"}, {"id": "a"}]}, (["a", "b"], True)),
        ([{"id": "a"}], (["a"], True)),
        ({"data": [{"id": "openai/*"}]}, (["openai/*"], False)),
        ({"data": [{"id": "a"}, {"id": None}, 3]}, (["a"], False)),
        ({"data": [{"id": ""}]}, ([], False)),
        ({"data": []}, ([], False)),
        ({"data": None}, ([], False)),
    ],
)
def test_lists_of_models(value, found):
    assert read_models(encoded(value)) == found


@given(JSON)
def test_any_json_is_a_list_of_models_or_malformed(value):
    try:
        names, plain = read_models(encoded(value))
    except MalformedError:
        return
    assert all(names)
    assert names or not plain


KEY = "sk-Ab3/+7=="
ESCAPED = "".join(f"\\u{ord(letter):04x}" for letter in KEY)


@pytest.mark.parametrize(
    "form",
    [
        KEY,
        KEY.upper(),
        quote(KEY, safe=""),
        quote(quote(KEY, safe=""), safe=""),
        ESCAPED,
        KEY.replace("/", "\\/"),
        "\x00".join(KEY),
        "\u200b".join(KEY),
        "\x1b".join(KEY),
        KEY.replace("+", "&#43;").replace("=", "&#x3d;"),
    ],
)
@pytest.mark.parametrize("before", ["", "x" * 190, " " * 5000, "key: "])
def test_the_key_is_in_no_disguise_among_the_words(form, before):
    shown = without_key(f"{before}{form} was not accepted", KEY)
    plain = shown.replace("\ufffd", "").replace("\u200b", "").lower()
    assert KEY.lower() not in plain
    assert "ab3" not in plain
    assert len(shown) <= 200


@given(st.text(max_size=400), st.text(st.characters(min_codepoint=33, max_codepoint=126)))
def test_words_are_one_line_that_can_be_shown(words, key):
    shown = without_key(words, key)
    assert 0 < len(shown) <= 200
    assert "\n" not in shown
    assert "\x1b" not in shown
    shown.encode()


def test_long_words_take_no_long_time():
    assert len(without_key("a b\x07" * 2**22, "sk-1")) == 200


@pytest.mark.parametrize(
    ("asked", "least", "most"),
    [
        ("1", 1, 1),
        ("99999999", LONGEST_PAUSE_S, LONGEST_PAUSE_S),
        ("9" * 5000, LONGEST_PAUSE_S, LONGEST_PAUSE_S),
        ("Fri, 31 Dec 2199 23:59:59 GMT", LONGEST_PAUSE_S, LONGEST_PAUSE_S),
        ("Sat, 01 Jan 2000 00:00:00 GMT", 0, 0),
    ],
)
def test_the_pause_that_a_server_asks_for_is_bounded(asked, least, most):
    assert least <= Reply(429, headers={"Retry-After": asked}).pause_s <= most


@given(st.text(max_size=30) | st.sampled_from(["-5", "1e9", "soon", "Fri, 99 Foo 10000 0:0:0"]))
def test_any_other_pause_is_none_or_bounded(asked):
    pause = Reply(429, headers={"Retry-After": asked}).pause_s
    assert pause is None or 0 <= pause <= LONGEST_PAUSE_S
