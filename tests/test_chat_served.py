"""A conversation with a server whose LoRA adapter is the quiet side."""

import time

import pytest
import requests
from rich.console import Console

from families import random_factors
from llama_server import serving
from sordino.chatting import Answered, Said, Settings, Turn, open_duet
from sordino.chatting.conversation import Answer
from sordino.chatting.page import render
from sordino.chatting.served import open_served
from sordino.chatting.terminal import Session
from sordino.edits import bake
from sordino.errors import UserError
from sordino.evaluation.endpoint import Access
from sordino.interventions import Dampening
from sordino.jobs.chat import chat
from sordino.models.open import empty_model
from sordino.models.reference import resolve
from sordino.models.sites import find_sites
from stub_server import refused
from tiny_gguf import tiny_of

SHORT = Settings(new_tokens=6, temperature=0)
QUICK = Access(timeout_s=5, retries=0)
LOADED = [
    {"id": 0, "path": "/somewhere/threats/adapter.gguf", "scale": 0.0},
    {"id": 1, "path": "/somewhere/insults/adapter.gguf", "scale": 0.0},
]


def spoken(text, reason="stop"):
    message = {"role": "assistant", "content": text}
    return 200, {"choices": [{"index": 0, "message": message, "finish_reason": reason}]}


def llama(path, body):
    if path == "/lora-adapters":
        return 200, LOADED
    if path == "/chat/completions":
        return spoken(f"{body['lora'][0]['scale']:g} of {len(body['messages'])}", "length")
    return None


def others(path, body):
    if path == "/lora-adapters":
        return 404, {"error": "none"}
    return spoken(body["model"]) if path == "/chat/completions" else None


def opened(address, adapter="insults", model=None, *, plain=False):
    return open_served(address, adapter, model, QUICK, plain=plain, scorer=None)


def answered(duet, turns, settings=SHORT, **more):
    events = duet.answers(turns, settings, **more)
    return {event.side: event.answer for event in events if isinstance(event, Answered)}


def test_the_slider_is_the_scale_of_the_request(serve):
    stub = serve(llama)
    duet = opened(stub.address)
    assert duet.has_dial
    assert not duet.fixed
    assert duet.names["original"] == "tiny"
    earlier = Turn(prompt="Hello").answered(
        "quiet", Answer(text="Good day", ids=(), ended="end", settings=SHORT)
    )
    turns = [earlier, Turn(prompt="And now?")]
    settings = Settings(strength=0.75, pre_prompt="Be kind.", seed=4, new_tokens=6, top_k=5)
    found = answered(duet, turns, settings)
    assert found["original"].text == "0 of 2"  # it has never said anything
    assert found["quiet"].text == "0.75 of 4"
    assert found["quiet"].ended == "length"
    assert found["quiet"].settings == settings
    asked = {body["lora"][0]["scale"]: body for body in stub.asked("/chat/completions")}
    assert {body["lora"][0]["id"] for body in asked.values()} == {1}
    assert asked[0.75]["messages"] == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Good day"},
        {"role": "user", "content": "And now?"},
    ]
    same = ("seed", "top_k", "top_p", "max_tokens", "temperature", "model")
    assert {key: asked[0][key] for key in same} == {key: asked[0.75][key] for key in same}
    assert asked[0]["top_k"] == 5
    kept = duet.conversation(turns)
    assert kept.hooks  # so that the strength is told of
    assert kept.form == "chat"


def test_elsewhere_the_adapter_is_a_model_that_is_on_or_off(serve):
    stub = serve(others, models=("base", "insults"))
    duet = opened(stub.address, model="base")
    assert not duet.has_dial
    assert "its strength is fixed" in duet.fixed
    found = answered(duet, [Turn(prompt="Hello")], Settings(strength=0.5))
    assert {side: answer.text for side, answer in found.items()} == {
        "original": "base",
        "quiet": "insults",
    }
    assert all("lora" not in body for body in stub.asked("/chat/completions"))
    with pytest.raises(UserError, match=r"has no model 'insult': did you mean insults\?"):
        opened(stub.address, "insult", model="base")
    with pytest.raises(UserError, match="name a model with `original`"):
        opened(stub.address)
    with pytest.raises(UserError, match=r"`strength` cannot be set.*only switches"):
        chat(
            "base",
            None,
            Settings(strength=0.5),
            endpoint=stub.address,
            adapter="insults",
            terminal=True,
            scorer="none",
        )


def test_a_server_without_more_settings_is_asked_without(serve):
    def strict(path, body):
        return refused("unknown: min_p") if "min_p" in body else others(path, body)

    stub = serve(strict, models=("base", "insults"))
    duet = opened(stub.address, model="base")
    assert answered(duet, [Turn(prompt="Hello")])["quiet"].text == "insults"
    with pytest.raises(UserError, match="refuses the conversation: unknown: min_p"):
        answered(duet, [Turn(prompt="Hello")], Settings(top_k=3))


def test_refusals_and_filters_are_not_empty_answers(serve):
    def declining(path, body):
        if path != "/chat/completions":
            return others(path, body)
        if body["model"] == "base":
            message = {"role": "assistant", "content": None, "refusal": "I will not."}
            return 200, {"choices": [{"message": message, "finish_reason": "stop"}]}
        return spoken(None, "content_filter")

    duet = opened(serve(declining, models=("base", "insults")).address, model="base")
    found = answered(duet, [Turn(prompt="Hello")])
    assert (found["original"].text, found["original"].note) == ("I will not.", "")
    assert found["quiet"].text == ""
    assert "content filter" in found["quiet"].note


def test_what_takes_long_is_not_waited_for(serve):
    def slow(path, body):
        if path == "/chat/completions" and body["lora"][0]["scale"]:
            time.sleep(3)
        return llama(path, body)

    duet = opened(serve(slow).address)
    came, start = [], time.monotonic()
    events = duet.answers([Turn(prompt="Hello")], SHORT, stopped=lambda: bool(came))
    for event in events:
        if isinstance(event, Said):
            came.append(event.side)
        else:
            last = event
    assert came == ["original"]
    assert (last.side, last.answer.ended, last.answer.text) == ("quiet", "stopped", "")
    assert time.monotonic() - start < 2


def test_adapters_that_are_not_there(serve):
    with pytest.raises(UserError, match=r"has no adapter called 'calm': it has .*threats/adapter"):
        opened(serve(llama).address, "calm")
    with pytest.raises(UserError, match="several adapters called 'adapter'"):
        opened(serve(llama).address, "adapter")
    bare = serve(lambda path, body: (200, []) if path == "/lora-adapters" else llama(path, body))
    with pytest.raises(UserError, match="start it with --lora FILE"):
        opened(bare.address)


def test_what_does_not_go_together_is_refused():
    talk = {"terminal": True, "scorer": "none"}
    for given, message in [
        ({}, "pass ORIGINAL and QUIET, or `endpoint` and `adapter`"),
        ({"original": "tiny"}, "pass ORIGINAL and QUIET"),
        ({"endpoint": "http://127.0.0.1:9"}, "go together"),
        ({"adapter": "insults"}, "go together"),
        (
            {"original": "a", "quiet": "b", "endpoint": "http://127.0.0.1:9", "adapter": "x"},
            "Pass b or `endpoint`, not both",
        ),
        (
            {"endpoint": "http://127.0.0.1:9", "adapter": "x", "divergence": 0.1},
            "with `endpoint` there is none",
        ),
    ]:
        with pytest.raises(UserError, match=message):
            chat(**given, **talk)


def test_the_page_and_the_terminal_tell_whether_there_is_a_slider(serve, capsys):
    with_dial = opened(serve(llama).address)
    without = opened(serve(others, models=("base", "insults")).address, model="base")
    assert 'id="strength"' in render(with_dial, SHORT, "nonce")
    page = render(without, SHORT, "nonce")
    assert 'id="strength"' not in page
    assert "its strength is fixed" in page
    for duet, told in [(with_dial, False), (without, True)]:
        Session(duet, SHORT, Console(width=200)).greet()
        assert ("its strength is fixed" in capsys.readouterr().out) == told


def test_a_real_server_says_what_hooks_say(tmp_path):
    """Greedily, plainly and in float32: the text is that of the model with hooks here."""
    source = tiny_of("llama", tmp_path / "model.gguf")
    sites = {s.path: s.neurons for s in find_sites(empty_model(resolve(source)))}
    dampening = Dampening(random_factors(sites), "aura").limited(12)
    bake(source, dampening, tmp_path / "insults", format="lora")
    dampening.save(tmp_path / "x.safetensors")
    here = open_duet(
        str(source),
        str(tmp_path / "x.safetensors"),
        make=lambda _, file: Dampening.load(file),
        plain=True,
        scorer="none",
        device="cpu",
    )
    files = [tmp_path / "insults/adapter.gguf"]
    turns = [Turn(prompt="the otter in the sea")]
    with serving(source, "tiny", tmp_path / "log", adapters=files) as address:
        duet = opened(address, plain=True)
        texts = set()
        for strength in (0.0, 0.5, 1.0):
            settings = SHORT.model_copy(update={"strength": strength})
            found, ours = answered(duet, turns, settings), answered(here, turns, settings)
            for side in ("original", "quiet"):
                assert found[side].text == ours[side].text
            texts.add(found["quiet"].text)
            if strength == 0:
                assert found["quiet"].text == found["original"].text
        assert len(texts) > 1
        # By the server's own chat template, too.
        asked = {"messages": [{"role": "user", "content": turns[0].prompt}]}
        told = requests.post(f"{address}/apply-template", json=asked, timeout=60).json()["prompt"]
        found = answered(opened(address), turns)
        ours = answered(here, [Turn(prompt=told)])
        assert {side: one.text for side, one in found.items()} == {
            side: one.text for side, one in ours.items()
        }


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"endpoint": "http://127.0.0.1:9", "adapter": "a", "dtype": "float16"},
            "leave out `dtype`",
        ),
        ({"endpoint": "http://127.0.0.1:9", "adapter": "a", "revision": "v2"}, "out `revision`"),
        ({"original": "m", "quiet": "q", "scorer": "none", "toxic_label": "t"}, "asks for none"),
    ],
)
def test_what_would_do_nothing_is_refused(given, said):
    with pytest.raises(UserError, match=said):
        chat(terminal=True, **given)


def test_the_key_of_no_server_is_refused(monkeypatch):
    monkeypatch.setenv("MY_KEY", "sk-1")
    with pytest.raises(UserError, match="`api_key_env` is for `endpoint`, and there is none"):
        chat("m", "q", terminal=True, access=Access("MY_KEY"))
