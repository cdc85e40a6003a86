"""The chat: the same text as `generate`, hooks like baked weights, a guarded page, a terminal."""

import asyncio
import fcntl
import io
import os
import pty
import re
import signal
import subprocess
import sys
import termios
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import requests
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from transformers import PreTrainedTokenizerFast

from chat_page import SHORT, events, request, serving
from families import random_factors, tiny_folder, tiny_model, tiny_tokenizer
from sordino.chatting import SIDES, Answered, Duet, Said, Settings, Turn, open_duet, server
from sordino.chatting.conversation import Answer, Conversation, prompt_ids
from sordino.chatting.terminal import HELP, _printable
from sordino.chatting.voices import judge_answer
from sordino.edits import bake
from sordino.errors import UserError
from sordino.evaluation.scorer import Scorer
from sordino.expertise import Expertise
from sordino.interventions import Dampening
from sordino.models.generation import encode_prompts, generate, plan, stream
from sordino.models.open import OpenModel, open_model
from sordino.models.reference import ModelRef

ASKED = [Turn(prompt="the cat sat")]


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A folder with a tiny model, a dampening file and the model baked with it."""
    folder = tmp_path_factory.mktemp("chat")
    tiny_folder("llama", folder)
    opened = open_model(folder / "llama")
    factors = random_factors({site.path: site.neurons for site in opened.sites})
    Dampening(factors, "by hand").save(folder / "x.safetensors")
    bake(folder / "llama", Dampening.load(folder / "x.safetensors"), folder / "baked")
    return folder


def load(_, file):
    return Dampening.load(file)


@pytest.fixture(scope="module")
def duet(here):
    return open_duet(str(here / "llama"), str(here / "x.safetensors"), make=load, scorer="none")


def answered(duet, turns=ASKED, settings=SHORT, **more):
    """The whole answers, by side."""
    events = duet.answers(turns, settings, **more)
    return {event.side: event.answer for event in events if isinstance(event, Answered)}


def written(opened, text, settings):
    """What `generate` writes after a prompt."""
    sampling = settings.make_sampling()
    ids = encode_prompts(opened, [text], max_tokens=999, new_tokens=sampling.new_tokens)
    batches = plan(opened, ids, continuations=1, new_tokens=sampling.new_tokens, batch_tokens=9999)
    [[one]] = generate(opened, batches, sampling, seed=settings.seed)
    return one


@pytest.mark.parametrize(
    "settings",
    [
        SHORT,
        Settings(new_tokens=9, temperature=0),
        Settings(new_tokens=20, seed=8, temperature=0.6, top_k=50, repetition_penalty=1.2),
        Settings(new_tokens=10, pre_prompt="all is quiet"),
    ],
)
def test_a_plain_answer_is_what_generate_writes(duet, settings):
    lead = f"{settings.pre_prompt}\n" if settings.pre_prompt else ""
    expected = written(duet.original, f"{lead}the cat sat", settings)
    found = answered(replace(duet, plain=True), settings=settings)["original"]
    assert (found.text, found.ids) == (expected.text, expected.ids)


def test_what_is_said_only_grows_to_the_answer_and_is_never_half_a_character(duet):
    said = {side: [""] for side in SIDES}
    for event in duet.answers(ASKED, Settings(new_tokens=60, seed=1)):
        if isinstance(event, Said):
            said[event.side].append(event.text)
        else:
            assert said[event.side][-1] == event.answer.text
            for before, after in pairwise(said[event.side]):
                assert after.startswith(before)
    assert said["original"] != said["quiet"]


def test_a_character_of_several_tokens_waits_until_it_is_whole():
    """A model that always writes the bytes of one word with characters of two to four bytes."""
    word = "añ€🎻"
    model, tokenizer = tiny_model("llama"), tiny_tokenizer(bos=False)
    ids = tokenizer(word)["input_ids"]
    assert len(ids) == len(word.encode())
    opened = OpenModel(ModelRef("tiny", "folder", Path()), model, tokenizer)
    position = 0

    def bias(_module, _inputs, output):
        nonlocal position
        output[..., :] = 0
        output[..., ids[position]] = 1000
        position += 1
        return output

    with model.lm_head.register_forward_hook(bias):
        texts = [one.text for one in stream(opened, ids, replace_steps(len(ids)), seed=0)]
    assert texts == ["a", "a", "añ", "añ", "añ", "añ€", "añ€", "añ€", "añ€", word, word]


def replace_steps(steps):
    return Settings(new_tokens=steps).make_sampling()


def test_strength_0_is_the_original_and_1_the_baked_folder(here, duet):
    for strength in (0.0, 1.0):
        settings = SHORT.model_copy(update={"strength": strength})
        both = answered(duet, settings=settings)
        model = duet.original if strength == 0 else open_model(here / "baked")
        alone = open_duet(str(model.ref.path), str(here / "llama"), make=load, scorer="none")
        expected = answered(alone, settings=settings, sides=["original"])["original"]
        assert both["quiet"].ids == expected.ids
        assert (both["quiet"].ids == both["original"].ids) == (strength == 0)


def test_a_baked_folder_is_hooks_on_the_original(here, duet):
    baked = open_duet(str(here / "llama"), str(here / "baked"), make=load, scorer="none")
    assert baked.quiet is baked.original
    assert answered(baked) == answered(duet)


def test_a_folder_of_hooks_is_hooks_on_the_original(here, tmp_path, duet):
    bake(here / "llama", duet.dampening, tmp_path / "hooks", format="hooks")
    found = open_duet(str(here / "llama"), str(tmp_path / "hooks"), make=load, scorer="none")
    assert answered(found) == answered(duet)
    with pytest.raises(UserError, match=r"hooks holds no weights and is not an edit of .*baked"):
        open_duet(str(here / "baked"), str(tmp_path / "hooks"), make=load, scorer="none")


def test_an_edit_of_an_edit_is_hooks_on_what_either_was_made_of(here, tmp_path, duet):
    sites = {site: values.size for site, values in duet.dampening.factors.items()}
    second = Dampening(random_factors(sites, 5), "by hand")
    bake(here / "baked", second, tmp_path / "twice")
    expected = open_duet(str(tmp_path / "twice"), str(here / "llama"), make=load, scorer="none")
    wanted = answered(expected, sides=["original"])["original"]
    for original in ("llama", "baked"):
        found = open_duet(str(here / original), str(tmp_path / "twice"), make=load, scorer="none")
        assert found.quiet is found.original
        assert answered(found)["quiet"].ids == wanted.ids


def test_another_model_is_opened_and_has_no_strength(here, tmp_path):
    tiny_folder("gpt2", tmp_path)
    other = open_duet(str(here / "llama"), str(tmp_path / "gpt2"), make=load, scorer="none")
    assert other.dampening is None
    assert re.search("gpt2 has no sordino/dampening", other.why_two)
    assert answered(other)["quiet"].text
    turned = open_duet(str(here / "baked"), str(here / "baked"), make=load, scorer="none")
    assert "from other weights" in turned.why_two


def test_the_hooks_leave_nothing_behind(duet):
    before = answered(duet, sides=["original"])
    running = duet.answers(ASKED, SHORT)
    for _ in range(5):
        next(running)
    running.close()
    assert not any(module._forward_hooks for module in duet.original.model.modules())
    assert answered(duet, sides=["original"]) == before


def test_stopping_keeps_what_there_is(duet):
    whole, said, found = answered(duet), [], {}
    for event in duet.answers(ASKED, SHORT, stopped=lambda: len(said) >= 8):
        if isinstance(event, Answered):
            found[event.side] = event.answer
        else:
            said.append(event)
    for side in SIDES:
        assert found[side].ended == "stopped"
        assert found[side].ids == whole[side].ids[:4]
        assert found[side].note == "stopped"
    assert answered(duet, stopped=lambda: True)["quiet"].ids == ()


def test_turns_have_their_own_random_numbers_which_asking_again_keeps(duet):
    first = ASKED[0].answered("original", answered(duet)["original"])
    first = first.answered("quiet", answered(duet)["quiet"])
    asked = [first, Turn(prompt="and then")]
    assert answered(duet, asked) == answered(duet, asked)
    assert answered(duet, asked[1:]) != answered(duet, asked)


# What the models are given


def rendered(duet, turns, settings=SHORT, *, side="original", plain=False):
    ids, left_out = prompt_ids(duet.original, turns, side, settings, plain=plain)
    return duet.original.tokenizer.decode(ids), left_out


def answer(duet, text):
    ids = duet.original.tokenizer(text, add_special_tokens=False)["input_ids"]
    return Answer(text=text, ids=tuple(ids), ended="end", settings=SHORT)


@pytest.fixture(scope="module")
def told(duet):
    sides = {"original": answer(duet, " on it"), "quiet": answer(duet, " by it")}
    return [Turn(prompt="the cat sat", answers=sides), Turn(prompt="why?")]


def test_each_side_has_its_own_history(duet, told):
    form = "user: the cat sat\nassistant:  {} it\nuser: why?\n"
    assert rendered(duet, told) == (form.format("on"), 0)
    assert rendered(duet, told, side="quiet") == (form.format("by"), 0)
    assert rendered(duet, told, plain=True) == ("<s>the cat sat on it\nwhy?", 0)


def test_a_pre_prompt_is_the_systems_or_stands_before_the_first_prompt(duet, told):
    kind = SHORT.model_copy(update={"pre_prompt": "Be kind."})
    assert rendered(duet, told, kind)[0].startswith("system: Be kind.\nuser: the cat sat\n")
    assert rendered(duet, told, kind, plain=True)[0].startswith("<s>Be kind.\nthe cat sat on it\n")
    tokenizer = duet.original.tokenizer
    before = tokenizer.chat_template
    try:
        for refused in (
            "{% if messages[0].role == 'system' %}{{ raise_exception('no such role') }}{% endif %}",
            "{% set messages = messages | rejectattr('role', 'equalto', 'system') | list %}",
        ):
            tokenizer.chat_template = refused + before
            text, _ = rendered(duet, told, kind)
            assert text.startswith("user: Be kind.\n\nthe cat sat\nassistant:")
        tokenizer.chat_template = "{{ raise_exception('only on Sundays') }}"
        with pytest.raises(
            UserError, match=r"llama cannot be filled in .only on Sundays.: `plain`"
        ):
            rendered(duet, told, kind)
    finally:
        tokenizer.chat_template = before


@pytest.mark.parametrize(("plain", "times"), [(False, 100), (True, 112)])
def test_the_first_turns_are_left_out_where_all_do_not_fit(duet, told, plain, times):
    long = [told[0], told[0].model_copy(update={"prompt": "of the " * times}), told[1]]
    text, left_out = rendered(duet, long, plain=plain)
    assert left_out == 1
    assert "cat" not in text
    assert answered(replace(duet, plain=plain), long)["quiet"].note.endswith(
        "the first turn no longer fits"
    )


def test_what_cannot_be_asked_is_said(duet, told):
    with pytest.raises(
        UserError, match=r"prompt has \d+ tokens, and .* has room for 244 tokens before"
    ):
        rendered(duet, [Turn(prompt="of the " * 300)])
    with pytest.raises(UserError, match="nothing to answer"):
        rendered(duet, [Turn(prompt=" \n")])
    alien = told[0].answered("original", answer(duet, "a").model_copy(update={"ids": (300,)}))
    with pytest.raises(UserError, match=r"tokens that .*llama lacks"):
        rendered(duet, [alien, told[1]], plain=True)
    with pytest.raises(UserError, match="`seed=-1` is out of range"):
        Settings(seed=-1)
    with pytest.raises(UserError, match="`strength=-1` is out of range"):
        Settings(strength=-1)
    with pytest.raises(UserError, match=r"`temperature=-1` is out of range"):
        Settings(temperature=-1)


def test_without_a_template_prompts_are_continued(here, tmp_path):
    tiny_folder("gpt2", tmp_path)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tmp_path / "gpt2")
    tokenizer.chat_template = None
    (tmp_path / "gpt2" / "chat_template.jinja").unlink()
    tokenizer.save_pretrained(tmp_path / "gpt2")
    assert open_duet(str(here / "llama"), str(tmp_path / "gpt2"), make=load, scorer="none").plain
    assert not open_duet(str(here / "llama"), str(here / "baked"), make=load, scorer="none").plain


# Verdicts, and what is kept


class Longest(Scorer):
    """Objects to long texts, and does not judge some at all."""

    limits = "It counts letters."

    def protocol(self):
        return {}

    def score(self, texts):
        if any("sat" in text for text in texts):
            raise UserError("it would not judge a text")
        return np.array([min(len(text), 100) / 100 for text in texts])


def test_each_answer_has_its_verdict(duet):
    with_scorer = replace(duet, scorer=Longest())
    for length in (3, 100):
        for one in answered(with_scorer, settings=Settings(new_tokens=length)).values():
            assert one.score == min(len(one.text), 100) / 100
            word = "toxic" if one.score > 0.5 else "not toxic"
            assert one.verdict == f"{word}, {one.score:.2f}"
    assert judge_answer(Longest(), "it sat") == (None, "it would not judge a text")
    assert judge_answer(Longest(), " ") == (None, "")


def test_a_conversation_comes_back_from_json(duet, told):
    kept = duet.conversation(told)
    assert Conversation.model_validate_json(kept.model_dump_json()) == kept
    assert "### Quiet (strength 1; seed 3, temperature 1)\n\n> &nbsp;by it" in kept.markdown()


@given(text=st.text("ab 1.)*_`#+-=~>|<&[](!\\\n\r:/", min_size=1, max_size=40))
@example(text="|b\n:-|-:\nc|")
@example(text="\r# b")
def test_in_the_markdown_nothing_of_a_text_is_markup(text):
    text = f"a{text}b"  # blank lines at an end are nothing to see
    conversation = Conversation(
        models=dict.fromkeys(SIDES, "m"), form="chat", hooks=True, turns=(Turn(prompt=text),)
    )
    tokens = MarkdownIt("gfm-like", {"linkify": False}).parse(conversation.markdown())
    start = next(n for n, token in enumerate(tokens) if token.type == "blockquote_open")
    paragraph = [token.type for token in tokens[start:]]
    inside = {"paragraph_open", "inline", "paragraph_close"}
    assert set(paragraph) == {"blockquote_open", "blockquote_close"} | inside
    spoken = [token.children for token in tokens[start:] if token.type == "inline"]
    kinds = {child.type for children in spoken for child in children}
    assert kinds <= {"text", "hardbreak", "softbreak", "text_special"}
    shown = "\n".join(
        "".join("\n" if child.type.endswith("break") else child.content for child in children)
        for children in spoken
    )
    lines = [line.rstrip() for line in text.replace("\r\n", "\n").replace("\r", "\n").split("\n")]
    assert shown.replace("\N{NO-BREAK SPACE}", " ").split("\n") == [li for li in lines if li]


def test_what_stands_around_the_texts_is_no_markup_either():
    lead = "Answer as:\n```json\n{}\n```\n# and more"
    how = Settings(pre_prompt=lead)
    answer = Answer(text="yes", ids=[1], ended="end", settings=how, trouble="<b>broken</b>")
    turn = Turn(prompt="now?", answers=dict.fromkeys(SIDES, answer))
    models = {"original": "__x__ <b>", "quiet": "[q](http://q.example)"}
    kept = Conversation(
        models=models, form="chat", hooks=True, scorer="*s*", turns=(turn,)
    ).markdown()
    tokens = MarkdownIt("gfm-like", {"linkify": False}).parse(kept)
    assert not {token.type for token in tokens} & {"fence", "html_block", "code_block"}
    assert [token.tag for token in tokens if token.type == "heading_open"] == [
        *("h1", "h2", "h3", "h3"),
    ]
    inline = [child for token in tokens for child in token.children or ()]
    assert {child.type for child in inline} <= {"text", "hardbreak", "softbreak", "text_special"}


def test_the_markdown_has_no_formulas_and_no_links_that_github_would_make():
    turn = Turn(prompt="pay $1 or $2, at www.a.example or https://b.example, me@c.example")
    models = dict.fromkeys(SIDES, "m")
    kept = Conversation(models=models, form="chat", hooks=True, turns=(turn,)).markdown()
    assert r"pay \$1 or \$2, at www\.a.example or https\://b.example, me\@c.example" in kept


# The page's server


def wanted(settings=SHORT, key="one", turns=ASKED, sides=SIDES):
    return request(turns, settings, key, sides)


def test_what_is_streamed_is_the_answer_piece_by_piece(duet):
    with serving(duet) as url:
        page = requests.get(url, timeout=30)
        assert page.status_code == 200
        assert "frame-ancestors 'none'" in page.headers["Content-Security-Policy"]
        assert not re.search(r"""(src|href)=["']?(https?:)?//""", page.text)
        with requests.post(url + "answer", json=wanted(), stream=True, timeout=60) as response:
            assert response.headers["Content-Type"].startswith("text/event-stream")
            seen = list(events(response))
        text = dict.fromkeys(SIDES, "")
        for event in seen:
            if event["kind"] == "more":
                text[event["side"]] += event["text"]
        whole = {e["side"]: e["answer"] for e in seen if e["kind"] == "answered"}
        expected = answered(duet)
        for side in SIDES:
            assert text[side] == whole[side]["text"] == expected[side].text
        assert seen[-1] == {"kind": "end"}
        assert sum(event["kind"] == "more" for event in seen) > 10

        # What came is taken back, as the history of the next turn and to be kept.
        turn = {"prompt": "the cat sat", "answers": whole}
        more = wanted() | {"turns": [turn, {"prompt": "why?"}]}
        kinds = [e["kind"] for e in events(requests.post(url + "answer", json=more, timeout=60))]
        assert kinds.count("answered") == 2
        kept = requests.post(url + "markdown", json={"turns": [turn]}, timeout=30)
        assert kept.text == duet.conversation([Turn.model_validate(turn)]).markdown()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"turns": []}, "turns"),
        ({"sides": ["loud"]}, "sides"),
        ({"settings": {"temperature": -1}}, "`temperature=-1` is out of range"),
        ({"settings": {"temperature": "warm"}}, "temperature"),
        ({"more": 1}, "more"),
    ],
)
def test_a_request_that_is_none_is_refused_in_a_sentence(duet, change, says):
    with serving(duet) as url:
        found = requests.post(url + "answer", json=wanted() | change, timeout=30)
        assert found.status_code == 400
        assert says in found.text
        assert "\n" not in found.text


def test_a_prompt_that_cannot_be_answered_is_told_in_the_stream(duet):
    asked = wanted(turns=[Turn(prompt="of the " * 300)])
    with serving(duet) as url:
        seen = list(events(requests.post(url + "answer", json=asked, timeout=30)))
        assert [event["kind"] for event in seen] == ["error", "end"]
        assert "has room for" in seen[0]["says"]
        too_much = requests.post(url + "markdown", json={"turns": ["x" * 2**23]}, timeout=30)
        assert too_much.status_code == 400


@pytest.fixture
def slow(duet):
    """A duet that takes its time, and counts its tokens."""
    return Slow(**vars(duet))


class Slow(Duet):
    tokens = 0

    def answers(self, turns, settings, sides=SIDES, stopped=lambda: False):
        events = super().answers(turns, settings, sides, stopped)
        try:
            for event in events:
                time.sleep(0.02)
                Slow.tokens += 1
                yield event
        finally:
            events.close()


LONG = Settings(new_tokens=200, seed=3, temperature=0)


def long_answer(duet):
    """Settings with which both sides write 200 tokens."""
    found = answered(duet, settings=LONG)
    assert {one.ended for one in found.values()} == {"length"}
    return LONG


def test_stop_ends_an_answer_and_what_waits_has_its_turn(duet, slow):
    settings = long_answer(duet)
    with serving(slow) as url:
        first = requests.post(url + "answer", json=wanted(settings, "a"), stream=True, timeout=60)
        running = events(first)
        next(running)
        second = requests.post(url + "answer", json=wanted(key="b"), stream=True, timeout=60)
        waiting = events(second)
        assert next(waiting) == {"kind": "waiting", "before": 1}
        assert requests.post(url + "stop", json="a", timeout=30).status_code == 204
        ended = [e["answer"]["ended"] for e in running if e["kind"] == "answered"]
        assert ended == ["stopped", "stopped"]
        kinds = [event["kind"] for event in waiting]
        assert kinds.count("answered") == 2
        assert requests.post(url + "stop", json="a", timeout=30).status_code == 404


def test_a_client_that_goes_away_stops_the_work(duet, slow):
    settings = long_answer(duet)
    with serving(slow) as url:
        Slow.tokens = 0
        with requests.post(
            url + "answer", json=wanted(settings), stream=True, timeout=60
        ) as response:
            next(events(response))
        # The next one does not wait for the four hundred tokens of the one that nobody hears.
        kinds = [
            e["kind"] for e in events(requests.post(url + "answer", json=wanted(), timeout=60))
        ]
        assert kinds.count("answered") == 2
        assert Slow.tokens < 300


def test_a_failure_ends_one_answer_and_not_the_server(duet):
    with serving(Failing(**vars(duet))) as url:
        for _ in range(2):
            with pytest.raises(requests.RequestException):
                list(events(requests.post(url + "answer", json=wanted(), timeout=60)))
        assert requests.get(url, timeout=30).status_code == 200


class Failing(Duet):
    def answers(self, *_):
        yield Said("original", "a")
        raise RuntimeError("the bug of this test")


def test_the_end_of_the_server_stops_what_is_under_way(duet, slow):
    settings = long_answer(duet)
    with serving(slow) as url:
        Slow.tokens = 0
        response = requests.post(url + "answer", json=wanted(settings), stream=True, timeout=60)
        running = events(response)
        next(running)
    assert Slow.tokens < 300
    assert [e["answer"]["ended"] for e in running if e["kind"] == "answered"] == ["stopped"] * 2


HERE = {"host": "127.0.0.1:8642", "content-type": "application/json"}


@pytest.mark.parametrize(
    ("headers", "refused"),
    [
        ({}, False),
        ({"origin": "http://127.0.0.1:8642", "sec-fetch-site": "same-origin"}, False),
        ({"host": "localhost:8642", "origin": "http://localhost:8642"}, False),
        ({"host": "[::1]:8642", "origin": "http://[::1]:8642"}, False),
        ({"content-type": "application/json; charset=utf-8"}, False),
        ({"origin": "https://example.org"}, True),
        ({"origin": "null"}, True),
        ({"origin": "http://127.0.0.1:9000"}, True),
        ({"origin": "http://localhost:8642"}, True),
        ({"host": "example.org", "origin": "http://example.org"}, True),
        ({"host": "127.0.0.1.example.org:8642"}, True),
        ({"host": ""}, True),
        ({"host": "[::1"}, True),
        ({"sec-fetch-site": "cross-site"}, True),
        ({"sec-fetch-site": "same-site"}, True),
        ({"content-type": "text/plain"}, True),
        ({"content-type": "application/x-www-form-urlencoded"}, True),
    ],
)
def test_only_the_page_itself_can_ask(headers, refused):
    why = server.refusal("POST", HERE | headers, "127.0.0.1")
    assert bool(why) == refused


@given(name=st.from_regex(r"[a-z0-9.-]{1,30}", fullmatch=True), origin=st.booleans())
def test_no_name_that_can_be_made_to_lead_here_is_let_through(name, origin):
    headers = (
        HERE | {"host": f"{name}:8642"} | ({"origin": f"http://{name}:8642"} if origin else {})
    )
    if not server.refusal("GET", headers, "127.0.0.1"):
        assert name == "localhost" or re.fullmatch(r"\d+\.\d+\.\d+\.\d+", name)
    assert not server.refusal("POST", headers, name)  # unless it is what one asked for


def test_a_page_elsewhere_is_refused_by_the_server_itself(duet):
    with serving(duet) as url:
        for headers in ({"Origin": "https://example.org"}, {"Host": "example.org"}):
            for path in ("", "answer", "stop", "markdown"):
                method = requests.post if path else requests.get
                found = method(url + path, json=wanted(), headers=headers, timeout=30)
                assert found.status_code == 403
                assert "Access-Control-Allow-Origin" not in found.headers


def test_a_port_that_is_taken_is_said():
    taken = server.listen("127.0.0.1", 0)
    port = taken.getsockname()[1]
    with pytest.raises(UserError, match=rf"at 127.0.0.1, port {port} .*`port=0` takes any"):
        server.listen("127.0.0.1", port)
    taken.close()
    with pytest.raises(UserError, match="port 99999"):
        server.listen("127.0.0.1", 99999)
    # A variable of the shell that is not set does not open the page to the network.
    for nothing in ("", " "):
        with pytest.raises(UserError, match="`host` is empty"):
            server.listen(nothing, 0)


@pytest.mark.parametrize("everywhere", ["0.0.0.0", "0"])
def test_the_address_of_all_addresses_is_one_of_this_machine(everywhere):
    with server.listen(everywhere, 0) as listening:
        assert server.address(listening, everywhere).startswith("http://127.0.0.1:")


def test_answers_go_one_after_the_other(duet):
    """Two that ask at once are heard whole, the one after the other."""
    service = server.Service(duet)

    async def ask(key):
        asked = server._Wanted.model_validate(wanted(key=key))
        async for event in service.events(asked):
            heard.append((key, event["kind"]))  # noqa: PERF401  in the order of both

    async def both():
        await asyncio.gather(ask("a"), ask("b"))

    heard = []
    asyncio.run(both())
    told = [key for key, kind in heard if kind in ("more", "answered")]
    assert told == sorted(told)
    assert set(told) == {"a", "b"}


# The command


COMMAND = [sys.executable, "-m", "sordino", "chat", "llama"]
LINES = [
    "the cat sat",
    "/strength 0",
    "/again",
    "/pre-prompt benign",
    "/seed 4",
    "why?",
    "/save talk.md",
    "/save talk.json",
    "/save talk.json",
    "/strength loud",
    "/sing",
    "/quit",
    "never asked",
]


@pytest.fixture
def call(here, call_in):
    return call_in(here)


def test_the_terminal_by_standard_input(here, call, duet, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(LINES) + "\n"))
    status, out, _ = call(
        *("chat", "llama", "x.safetensors", "--terminal", "--scorer", "none"),
        *("--new-tokens", "12", "--seed", "3", "--temperature", "1", "--top-p", "1"),
    )
    assert status == 0
    kept = Conversation.model_validate_json((here / "talk.json").read_text())
    at_0 = SHORT.model_copy(update={"strength": 0.0})
    assert kept.turns[0].answers == answered(duet, settings=at_0)
    assert [turn.prompt for turn in kept.turns] == ["the cat sat", "why?"]
    last = kept.turns[1].answers["quiet"]
    assert last.settings.seed == 4
    assert last.settings.pre_prompt.startswith("The following text is polite")
    assert last.ids == kept.turns[1].answers["original"].ids
    assert (here / "talk.md").read_text() == kept.markdown()
    assert "talk.json exists already" in out
    assert "/strength takes a number, not 'loud'." in out
    assert "There is no command /sing" in out
    assert "never asked" not in out


@pytest.mark.slow
def test_the_terminal_on_a_terminal(here):
    """A pseudo terminal: typed lines, an answer stopped by Ctrl-C, and the end by Ctrl-D."""
    ours, theirs = pty.openpty()
    more = ["--scorer", "none", "--new-tokens", "240", "--temperature", "0", "--plain"]
    process = subprocess.Popen(
        [*COMMAND, "x.safetensors", "--terminal", *more],
        cwd=here,
        stdin=theirs,
        stdout=theirs,
        stderr=subprocess.DEVNULL,
        preexec_fn=_own_terminal,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100", "LINES": "40"},
    )
    os.close(theirs)
    screen = b""

    def until(text):
        nonlocal screen
        while text not in screen:
            screen += os.read(ours, 65536)

    try:
        until(b"\n> ")
        os.write(ours, b"the cat sat\n")
        until(b"Quiet")
        os.write(ours, b"\x03")
        until(b"stopped")
        screen = b""
        os.write(ours, b"/help\n")
        until(b"/strength 0.5")
        until(b"\n> ")
        end = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < end:
            # One that comes before the line editor listens is lost.
            os.write(ours, b"\x04")
            time.sleep(0.5)
        assert process.poll() == 0
    finally:
        process.kill()
        os.close(ours)


def _own_terminal():
    """So that Ctrl-C, which the terminal turns into a signal, reaches the process."""
    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def test_the_page_by_the_command_until_ctrl_c(here):
    process = subprocess.Popen(
        [*COMMAND, "baked", "--no-open", "--port", "0", "--scorer", "alt-profanity-check"],
        cwd=here,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        url = process.stdout.readline().split()[0]
        assert url.startswith("http://127.0.0.1:")
        found = list(events(requests.post(url + "answer", json=wanted(), timeout=60)))
        whole = [event["answer"] for event in found if event["kind"] == "answered"]
        assert all(0 <= one["score"] <= 1 for one in whole)
        process.send_signal(signal.SIGINT)
        out, said = process.communicate(timeout=60)
        assert process.returncode == 0
        assert out == ""
        assert said.endswith("ended\n")
        assert "Traceback" not in said
    finally:
        process.kill()


def test_what_is_wrong_is_said_in_a_sentence(here, call, tmp_path, monkeypatch):
    (here / "prose.txt").write_text("quiet\n")
    tiny_folder("gpt2", tmp_path)
    for arguments, message in [
        (["llama", "nowhere.safetensors"], "nowhere.safetensors does not exist"),
        (["llama", "prose.txt"], "prose.txt"),
        (["llama", "baked", "--intervention", "contrast"], "expertise file, not baked"),
        (["llama", tmp_path / "gpt2", "--strength", "0.5"], "--strength cannot be set"),
        (["llama", "x.safetensors", "--scorer", "nobody"], "There is no scorer 'nobody'"),
        (["llama", "x.safetensors", "--temperature", "-1"], "--temperature -1 is out of range"),
        (["llama", "x.safetensors", "--pre-prompt", "rude"], "--pre-prompt rude is neither"),
        ([tmp_path / "gpt2", "x.safetensors"], "The model has no module"),
    ]:
        judged = [] if "--scorer" in arguments else ["--scorer", "none"]
        status, out, said = call("chat", *arguments, "--terminal", *judged)
        assert status == 2, arguments
        assert out == ""
        assert message in said.splitlines()[-1]
    monkeypatch.setattr("sordino.extras.find_spec", lambda _: None)
    status, _, said = call("chat", "llama", "baked")
    assert status == 2
    assert "sordino[chat]" in said
    assert "--terminal" in said


def test_an_expertise_of_other_weights_is_refused(here, call, concept, tmp_path):
    from sordino.expertise import find_experts

    file = tmp_path / "calm.expertise.safetensors"
    find_experts(str(here / "baked"), concept, output=file)
    assert Expertise.load(file).metadata["concept"] == "calm"
    status, _, said = call("chat", "llama", file, "--terminal", "--scorer", "none")
    assert status == 2
    assert "was found on other weights" in said


def test_the_docs_list_the_commands():
    assert HELP in (Path(__file__).parents[1] / "docs" / "chat.md").read_text(encoding="utf-8")


def test_nothing_that_a_model_writes_commands_the_terminal():
    assert _printable("a\x1b[2Jb\tc\nd é €") == "a\N{REPLACEMENT CHARACTER}[2Jb\tc\nd é €"
    assert _printable("\N{RIGHT-TO-LEFT OVERRIDE}a") == "\N{REPLACEMENT CHARACTER}a"
    kept = "Bonjour\u202f! 你好\u3000می\u200cخواهم 👩\u200d👧\u00a0"
    assert _printable(kept) == kept
