"""Chat templates: transformers' own text, every mistake one sentence, none of them endless."""

import math
import threading
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from families import tiny_folder, tiny_model, tiny_tokenizer
from sordino.chatting import Settings, Turn, conversation, open_duet
from sordino.chatting.conversation import Answer, prompt_ids
from sordino.errors import UserError
from sordino.interventions import Dampening
from sordino.models import chat_template
from sordino.models.chat_template import Stopped, TemplateFailure, render, text_ids
from sordino.models.open import OpenModel
from sordino.models.reference import ModelRef

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] "
    "+ '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA_3 = """\
{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- endif %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\n\nToday: " + date_string + "\n\n" }}
{{- system_message + "<|eot_id|>" }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}
    {{- message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}
"""
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/...') }}{% endif %}"
    "{% if message['role'] == 'assistant' %}{% set role = 'model' %}"
    "{% else %}{% set role = message['role'] %}{% endif %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
MISTRAL = """\
{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- set ns = namespace(index=0) %}
{%- for message in loop_messages %}
    {%- if not (message.role == "tool" or message.tool_calls is defined) %}
        {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}
            {{- raise_exception("After the optional system message, roles must alternate") }}
        {%- endif %}
        {%- set ns.index = ns.index + 1 %}
    {%- endif %}
{%- endfor %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\n\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
        {%- continue %}
    {%- endif %}
    {%- generation %}
    {{- " " + message["content"] + eos_token }}
    {%- endgeneration %}
{%- endfor %}
"""
QWEN = """\
{%- if tools %}
    {{- '<|im_start|>system\n' }}
    {%- for tool in tools %}
        {{- "\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "<|im_end|>\n" }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}
{%- else %}
    {{- '<|im_start|>system\nYou are a model.<|im_end|>\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}
    {%- elif message.role == "assistant" %}
        {%- set content = message.content %}
        {%- if '</think>' in content %}
            {%- set content = content.split('</think>')[-1].lstrip('\n') %}
        {%- endif %}
        {{- '<|im_start|>' + message.role + '\n' + content }}
        {%- if message.tool_calls %}
            {{- message.tool_calls | tojson(indent=2) }}
        {%- endif %}
        {{- '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\n\n</think>\n\n' }}
    {%- endif %}
{%- endif %}
"""
TEMPLATES = {
    "chatml": CHATML,
    "llama_3": LLAMA_3,
    "gemma": GEMMA,
    "mistral": MISTRAL,
    "qwen": QWEN,
}
MODEL, TOKENIZER = tiny_model("llama"), tiny_tokenizer()
HELLO = [{"role": "user", "content": "Hello"}]
ENDLESS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"


def opened_with(template):
    """The tiny model with a chat template."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    return OpenModel(ModelRef("tiny", "folder", Path()), MODEL, tokenizer)


OPENED = {name: opened_with(template) for name, template in TEMPLATES.items()}
TEXTS = st.text(max_size=40) | st.sampled_from(["{{ 1/0 }}", "</think>\n so", "<|im_end|>", "\0"])


@pytest.mark.parametrize("name", TEMPLATES)
@settings(max_examples=25)
@given(texts=st.lists(TEXTS, min_size=1, max_size=7), ahead=st.booleans())
def test_the_text_and_the_tokens_are_those_of_transformers(name, texts, ahead):
    roles = ["user", "assistant"]
    messages = [{"role": roles[n % 2], "content": text} for n, text in enumerate(texts)]
    tokenizer = OPENED[name].tokenizer
    expected = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=ahead)
    if not expected:  # nothing was said, and nothing is begun
        return
    text = render(OPENED[name], messages, add_generation_prompt=ahead)
    assert text == expected
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=ahead, return_dict=False)
    assert text_ids(OPENED[name], text) == ids


@pytest.mark.parametrize("name", TEMPLATES)
def test_what_the_system_says_comes_first_whether_or_not_there_is_such_a_role(name):
    said = render(OPENED[name], HELLO, system="Be kind.")
    assert said.index("Be kind.") < said.index("Hello")
    assert ("Be kind.\n\nHello" in said) == (name in ("gemma", "mistral"))


def test_the_chat_tells_the_template_whether_the_model_may_think():
    turns, opened = [Turn(prompt="Hello")], OPENED["qwen"]

    def text(**settings):
        ids, _ = prompt_ids(
            opened, turns, "original", Settings(new_tokens=4, **settings), plain=False
        )
        return opened.tokenizer.decode(ids)

    assert text().endswith("assistant\n")
    assert text() == text(thinking=True)
    assert text(thinking=False).endswith("<think>\n\n</think>\n\n")


WRONG = {
    "{{ 1/0 }}": "ZeroDivisionError",
    "{{ messages + 1 }}": "TypeError",
    "{{ nothing.of.that }}": "UndefinedError",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}": "RecursionError",
    "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}": "RecursionError",
    "{% include 'x' %}": "TypeError",
    "{% for i in range(100001) %}{% endfor %}": "OverflowError",
    "{{ range(10**9) | list }}": "OverflowError",
    "{{ ().__class__.__bases__ }}": "SecurityError",
    "{{ messages.append(1) }}": "SecurityError",
    "{{ messages[5].content }}": "UndefinedError",
    "{{ 'a'.encode('b') }}": "LookupError",
    "{{ 'a' | nonesuch }}": "TemplateAssertionError",
    "{% if %}": "TemplateSyntaxError",
    "{{ raise_exception('on\x1b[2J Sundays') }}": "(on\N{REPLACEMENT CHARACTER}[2J Sundays)",
    "{{ raise_exception('') }}": "without words",
    "{{ 'a' * 10**10 }}": "too much memory",
    "{{ '{:>9999999999}'.format('x') }}": "too much memory",
    "{{ ('%' ~ 10**9 ~ 'd') % 1 }}": "too much memory",
    "{{ 'a' * 9 * 10**6 }}": "writes more than 8,388,608 characters",
    "{{ '\\ud800' }}": "surrogate",
    "{# nothing #}": "writes nothing",
}


@pytest.mark.parametrize("template", WRONG)
def test_a_template_that_is_wrong_is_said_in_a_sentence(template):
    with pytest.raises(TemplateFailure) as found:
        render(opened_with(template), HELLO)
    said = str(found.value)
    assert said.startswith("The chat template of tiny cannot be filled in (")
    assert WRONG[template] in said
    assert said.isprintable()
    assert len(said) < 300


@pytest.mark.parametrize("template", [{"tool_use": CHATML}, 5, ["x"]])
def test_templates_of_other_shapes_are_said_too(template):
    with pytest.raises(TemplateFailure):
        render(opened_with(template), HELLO)
    assert "Hello" in render(opened_with({"default": CHATML, "tool_use": "{{ 1/0 }}"}), HELLO)


@pytest.fixture
def hasty(monkeypatch):
    """A worker that has less time."""
    monkeypatch.setattr(chat_template, "MOST_SECONDS", 0.3)
    chat_template.end_worker()
    yield
    chat_template.end_worker()


def test_a_template_without_end_is_ended_and_the_next_is_filled_in(hasty):
    doubling = (
        "{% set ns = namespace(x='a' * 99) %}"
        "{% for i in range(99999) %}{% set ns.x = ns.x[::-1] ~ '' %}{% endfor %}" * 9
    )
    for template in (ENDLESS, doubling):
        # It is not tried a second time with the system's message elsewhere.
        with pytest.raises(TemplateFailure, match=r"more than 0\.3 seconds") as found:
            render(opened_with(template), HELLO, system="Be kind.")
        assert found.value.endless
    assert "Hello" in render(OPENED["chatml"], HELLO)


def test_what_is_not_wanted_any_more_is_stopped_at_once():
    render(OPENED["chatml"], HELLO)  # the worker is there
    enough = threading.Timer(0.3, lambda: stop.set())
    stop = threading.Event()
    enough.start()
    begun = time.monotonic()
    with pytest.raises(Stopped):
        render(opened_with(ENDLESS), HELLO, stopped=stop.is_set)
    assert time.monotonic() - begun < chat_template.MOST_SECONDS
    assert "Hello" in render(OPENED["chatml"], HELLO)
    with pytest.raises(Stopped):
        render(OPENED["chatml"], HELLO, stopped=lambda: True)


def test_a_worker_that_somebody_ends_is_said_and_started_again():
    render(OPENED["chatml"], HELLO)
    worker = chat_template._worker
    worker._process.kill()
    worker._process.wait()
    assert "Hello" in render(OPENED["chatml"], HELLO)
    assert chat_template._worker is not worker


# Long conversations

SHORT = Settings(new_tokens=12)
ROOM = 256 - 12


def answer(text):
    ids = tuple(text_ids(OPENED["chatml"], text))
    return Answer(text=text, ids=ids, ended="end", settings=SHORT)


def told(pairs):
    turns = [
        Turn(prompt=prompt or "?", answers={"original": answer(said)}) for prompt, said in pairs
    ]
    return [*turns, Turn(prompt="why?")]


def as_it_was_before(opened, turns, *, plain):
    """Every suffix is tried, from the longest."""
    for left_out in range(len(turns)):
        rest = turns[left_out:]
        if plain:
            ids = list(opened.tokenizer(rest[0].prompt)["input_ids"])
            for before, turn in pairwise(rest):
                more = opened.tokenizer(f"\n{turn.prompt}", add_special_tokens=False)
                ids += [*before.answers["original"].ids, *more["input_ids"]]
        else:
            messages = []
            for turn in rest:
                messages.append({"role": "user", "content": turn.prompt})
                if turn is not rest[-1]:
                    said = turn.answers["original"].text
                    messages.append({"role": "assistant", "content": said})
            ids = opened.tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, return_dict=False
            )
        if len(ids) <= ROOM:
            return ids, left_out
    raise AssertionError("none fits")


PAIRS = st.tuples(TEXTS, TEXTS | st.sampled_from(["of the " * 20, "x" * 300]))


@pytest.mark.parametrize("plain", [False, True])
@settings(max_examples=25)
@given(pairs=st.lists(PAIRS, max_size=25))
def test_as_many_last_turns_as_fit_are_given(plain, pairs):
    opened, turns = OPENED["chatml"], told(pairs)
    found = prompt_ids(opened, turns, "original", SHORT, plain=plain)
    assert found == as_it_was_before(opened, turns, plain=plain)


@pytest.fixture
def counted(monkeypatch):
    """What the template is asked for: how many messages each time."""
    asked = []

    def count(opened, messages, **more):
        asked.append(len(messages))
        return render(opened, messages, **more)

    monkeypatch.setattr(conversation, "render", count)
    return asked


@pytest.mark.parametrize("turns", [1, 10, 100, 1000, 10_000])
def test_the_template_is_filled_in_a_few_times_whatever_the_number_of_turns(counted, turns):
    one = Turn(prompt="the cat sat", answers={"original": answer("on it")})
    ids, left_out = prompt_ids(
        OPENED["chatml"],
        [one] * (turns - 1) + [Turn(prompt="why?")],
        "original",
        SHORT,
        plain=False,
    )
    assert len(ids) <= ROOM
    assert left_out == max(0, turns - 4)
    # What is certain not to fit is never put into the template.
    most = 1 + 2 * ROOM * conversation._CHARACTERS_A_TOKEN // len("the cat saton it")
    assert max(counted) <= most
    assert len(counted) <= 2 + math.log2(most)


def test_what_is_far_too_long_is_refused_without_being_looked_at(counted):
    opened = OPENED["chatml"]
    for plain in (False, True):
        with pytest.raises(UserError, match=r"4,000,000 characters, and tiny has room for 244"):
            prompt_ids(opened, [Turn(prompt="x" * 4_000_000)], "original", SHORT, plain=plain)
        with pytest.raises(UserError, match=r"10,001 turns"):
            prompt_ids(opened, told([("a", "b")] * 10_000), "original", SHORT, plain=plain)
    assert counted == []
    wordy = opened_with("{{ 'of the ' * 10**6 }}")
    with pytest.raises(UserError, match=r"tiny has room for 244"):
        prompt_ids(wordy, [Turn(prompt="why?")], "original", SHORT, plain=False)


def test_a_model_without_positions_has_an_end_too(monkeypatch):
    monkeypatch.setattr(conversation, "prompt_room", lambda *_: None)
    monkeypatch.setattr(conversation, "MOST_CHARACTERS", 1000)
    turns = told([("x" * 90, "y" * 9)] * 50)
    for plain in (False, True):
        _, left_out = prompt_ids(OPENED["chatml"], turns, "original", SHORT, plain=plain)
        assert 40 <= left_out < 50
        with pytest.raises(UserError, match="over 1,000 characters"):
            prompt_ids(OPENED["chatml"], [Turn(prompt="x" * 1001)], "original", SHORT, plain=plain)


def test_the_prompt_has_tokens_that_the_model_has():
    opened = opened_with("{{ messages[0].content }}")
    extra = [f"<alien {n}>" for n in range(MODEL.config.vocab_size)]
    opened.tokenizer.add_tokens(extra)
    with pytest.raises(UserError, match="tokens that tiny lacks"):
        prompt_ids(opened, [Turn(prompt=extra[-1])], "original", SHORT, plain=False)


# At the start


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny model and a dampening that does nothing."""
    place = tmp_path_factory.mktemp("template")
    return tiny_folder("llama", place)


def opened_duet(folder, template, **more):
    (folder / "chat_template.jinja").write_text(template)
    return open_duet(str(folder), str(folder), make=no_edit, scorer="none", **more)


def no_edit(_, file):
    return Dampening.load(file)


def test_a_wrong_template_is_said_when_the_chat_is_opened(folder, capsys):
    with pytest.raises(UserError, match=r"llama cannot be filled in \(.*\): `plain`"):
        opened_duet(folder, "{{ 1/0 }}")
    assert opened_duet(folder, "{{ 1/0 }}", plain=True).plain
    needs_a_system = (
        "{% if messages[0].role != 'system' %}{{ raise_exception('Where is the system?')}}"
    )
    opened_duet(folder, needs_a_system + "{% endif %}" + CHATML)
    assert "Where is the system?" in capsys.readouterr().err


def test_what_is_stopped_before_its_first_token_is_an_answer_without_text(folder):
    duet = opened_duet(folder, CHATML)
    endless = opened_with(ENDLESS)
    duet = replace(duet, original=endless, quiet=endless)
    calls = iter([False, False])
    events = list(duet.answers([Turn(prompt="a")], SHORT, stopped=lambda: next(calls, True)))
    assert [(event.answer.text, event.answer.ended) for event in events] == [("", "stopped")] * 2
