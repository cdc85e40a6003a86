"""Texts in chat templates: their own tokens, and where a reply ends."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chat_templates import FAMILIES
from families import tiny_model
from sordino.errors import UserError
from sordino.models import chat as chat_turns
from sordino.models.chat import ASKED, Chat, Spoken, opening_ids, place, replies
from sordino.models.generation import Continuation
from sordino.models.open import OpenModel
from sordino.models.reference import ModelRef

MODEL = tiny_model("llama")
MODEL.resize_token_embeddings(MODEL.config.vocab_size + 16)
OPENED = {
    name: OpenModel(ModelRef(name, "folder", Path()), MODEL, family.tokenizer())
    for name, family in FAMILIES.items()
}
EDGES = st.sampled_from(["the", "cat", "naïve", "🙂", "日本"])
MIDDLES = st.sampled_from(["sat", "[INST", "<", "user:", "a\nb", "0", "</s", "{{ 1 }}", "🙂"])
WORDS = st.tuples(EDGES, st.lists(MIDDLES, max_size=6), EDGES).map(
    lambda parts: " ".join([parts[0], *parts[1], parts[2]])
)
WITHOUT_A_SYSTEM = ("llama-2", "mistral", "mistral-nemo", "gemma", "users alone")
BOTH = [(name, role) for name, family in FAMILIES.items() for role in family.roles]


def said_to(name, messages, **more):
    """What transformers itself makes of a conversation."""
    return OPENED[name].tokenizer.apply_chat_template(messages, tokenize=False, **more)


def conversation(text, role, before=()):
    start = list(before) or ([("user", ASKED)] if role == "assistant" else [])
    return [{"role": who, "content": said} for who, said in [*start, (role, text)]]


def test_there_are_as_many_templates_as_were_promised():
    assert len(FAMILIES) >= 20
    page = Path(__file__).parents[1] / "docs" / "chat-templates.md"
    assert f"templates of {len(FAMILIES)} families" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize(("name", "role"), BOTH)
@settings(max_examples=15)
@given(text=WORDS, system=st.sampled_from(["", "Be brief."]))
def test_a_turns_own_tokens_are_those_that_have_its_characters(name, role, text, system):
    if name == "the last turn only":
        system = ""  # it writes none
    opened = OPENED[name]
    [placed] = place(opened, [Spoken(text)], Chat("on", role, system), 1000)
    messages = conversation(text, role)
    if system and name in WITHOUT_A_SYSTEM:
        messages[0]["content"] = f"{system}\n\n{messages[0]['content']}"
    elif system:
        messages.insert(0, {"role": "system", "content": system})
    whole = said_to(name, messages)
    start = whole.rindex(text)
    found = opened.tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True)
    own = [
        place
        for place, (low, high) in enumerate(found["offset_mapping"])
        if low < start + len(text) and high > start
    ]
    assert own == list(range(placed.start, len(placed.ids)))
    assert list(placed.ids) == found["input_ids"][: own[-1] + 1]
    assert text in opened.tokenizer.decode(placed.ids[placed.start :])


@pytest.mark.parametrize(("name", "role"), BOTH)
def test_what_was_said_before_is_in_the_conversation(name, role):
    before = (("user", "Hello"), ("assistant", "Good day"), ("user", "Well?"))
    before = before if role == "assistant" else before[:2]
    [placed] = place(OPENED[name], [Spoken("It rains", before, role)], Chat("on"), 1000)
    ids = OPENED[name].tokenizer(
        said_to(name, conversation("It rains", role, before)), add_special_tokens=False
    )["input_ids"]
    assert list(placed.ids) == ids[: len(placed.ids)]
    shown = OPENED[name].tokenizer.decode(placed.ids[placed.start :]).strip()
    assert shown == "It rains"


def test_texts_are_cut_at_their_own_tokens():
    [whole] = place(OPENED["chatml"], [Spoken("the cat sat on it")], Chat("on"), 1000)
    [cut] = place(OPENED["chatml"], [Spoken("the cat sat on it")], Chat("on"), 3)
    assert (cut.start, len(cut.ids)) == (whole.start, whole.start + 3)
    assert cut.ids == whole.ids[: len(cut.ids)]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_reply_ends_where_the_template_ends_it(name):
    family, opened = FAMILIES[name], OPENED[name]
    if "assistant" not in family.roles or name == "the last turn only":
        return
    found = replies(opened, Chat("on"))
    wanted = {opened.tokenizer.convert_tokens_to_ids(family.end)} if family.end else set()
    assert found.ends == wanted
    assert found.heading == family.heading
    # What the model writes up to the next turn, cut as `generate` and `cut` do together.
    prompt = conversation(ASKED, "user")
    ahead = said_to(name, prompt, add_generation_prompt=True)
    whole = said_to(name, [*prompt, *conversation("the cat", "assistant")[1:], *prompt])
    ids = opened.tokenizer(whole[whole.index("the cat") :], add_special_tokens=False)["input_ids"]
    ends = [n for n, one in enumerate(ids) if one in found.ends]
    kept = ids[: ends[0]] if ends else ids
    if name == "gpt-oss":
        return  # its history ends otherwise than its replies; see below
    text = opened.tokenizer.decode(kept, skip_special_tokens=True)
    if ahead.rstrip().endswith("<think>"):
        text_ids = opened.tokenizer("so\n</think>\n\n", add_special_tokens=False)["input_ids"]
        kept = [*text_ids, *kept]
    reply = found.cut(opened, Continuation(0, 0, tuple(kept), text))
    assert reply.text.strip() == "the cat"


def written(name, text):
    ids = OPENED[name].tokenizer(text, add_special_tokens=False)["input_ids"]
    plain = OPENED[name].tokenizer.decode(ids, skip_special_tokens=True)
    return Continuation(0, 0, tuple(ids), plain)


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.heading])
def test_a_reply_depends_on_its_tokens_up_to_the_heading_that_ends_it(name):
    opened, heading = OPENED[name], FAMILIES[name].heading
    form = replies(opened, Chat("on"))
    kept = form.deciding(opened, written(name, f"the cat\n{heading} and the dog sat"))
    assert heading in opened.tokenizer.decode(kept)
    assert heading not in opened.tokenizer.decode(kept[:-1])
    whole = replace(written(name, "the cat sat"), end=5)
    assert form.deciding(opened, whole) == (*whole.ids, 5)


THOUGHTS = [
    ("qwen3", "<think>\nhm\n</think>\n\nWell.", "hm\n\nWell.", "Well."),
    ("deepseek-r1", "hm, so\n</think>\n\nWell.", "hm, so\n\nWell.", "Well."),
    (
        "gpt-oss",
        "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>Well.",
        "hm\n\nWell.",
        "Well.",
    ),
    ("gpt-oss", "<|channel|>final<|message|>Well.", "Well.", "Well."),
    ("chatml", "Well.", "Well.", "Well."),
]


@pytest.mark.parametrize(("name", "text", "kept", "skipped"), THOUGHTS)
def test_thoughts_are_skipped_or_kept(name, text, kept, skipped):
    opened = OPENED[name]
    assert replies(opened, Chat("on", thinking=True)).cut(opened, written(name, text)).text == kept
    assert replies(opened, Chat("on")).cut(opened, written(name, text)).text == skipped


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("qwen3", "<think>\nhm"),
        ("deepseek-r1", "hm"),
        ("gpt-oss", "<|channel|>analysis<|message|>hm"),
    ],
)
def test_a_thought_without_a_reply_is_missing_and_no_empty_reply(name, text):
    opened = OPENED[name]
    reply = replies(opened, Chat("on")).cut(opened, written(name, text))
    assert "still thinking" in reply.missing
    assert replies(opened, Chat("on", thinking=True)).cut(opened, written(name, text)).text == "hm"


def test_the_template_is_told_whether_to_think():
    for thinking in (False, True):
        [ids] = opening_ids(
            OPENED["qwen3"],
            [Spoken("Hello")],
            Chat("on", thinking=thinking),
            max_tokens=9,
            new_tokens=1,
        )
        assert ("</think>" in OPENED["qwen3"].tokenizer.decode(ids)) is not thinking


@pytest.mark.parametrize("name", FAMILIES)
def test_prompts_are_users_turns_and_a_reply_is_begun(name):
    [ids] = opening_ids(
        OPENED[name], [Spoken("the cat sat")], Chat("on"), max_tokens=99, new_tokens=9
    )
    expected = OPENED[name].tokenizer.apply_chat_template(
        conversation("the cat sat", "user"),
        add_generation_prompt=True,
        enable_thinking=False,
        return_dict=False,
    )
    assert ids == expected


def test_long_prompts_are_cut_inside_the_template(capsys):
    opened = OPENED["chatml"]
    [short] = opening_ids(opened, [Spoken("a b c d")], Chat("on"), max_tokens=2, new_tokens=9)
    assert "user\na b<|im_end|>" in opened.tokenizer.decode(short)
    assert "reads only 2 tokens of long prompts: 1 of 1 cut" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"Prompt 1 of 1 has .* tokens in the chat template"):
        opening_ids(opened, [Spoken("x" * 300)], Chat("on"), max_tokens=999, new_tokens=9)


def test_what_a_template_cannot_do_is_one_sentence():
    with pytest.raises(
        UserError, match=r"a message of the role assistant nowhere: .*`role`.*`chat=off`"
    ):
        place(OPENED["users alone"], [Spoken("Hello")], Chat("on"), 9)
    twice = OpenModel(ModelRef("m", "folder", Path()), MODEL, FAMILIES["chatml"].tokenizer())
    twice.tokenizer.chat_template = "{{ messages[-1].content * 2 }}"
    with pytest.raises(UserError, match="2 times"):
        place(twice, [Spoken("Hello")], Chat("on"), 9)
    twice.tokenizer.chat_template = "> {{ messages[-1].content.replace('Hello', '') }}"
    with pytest.raises(UserError, match="leaves out text 2 of 2"):
        place(twice, [Spoken("Good day"), Spoken("Hello")], Chat("on"), 9)
    twice.tokenizer.chat_template = "{{ messages[-1].content }}{{ messages[-1].content | length }}"
    with pytest.raises(UserError, match="text 1 of 1"):
        place(twice, [Spoken("Hello")], Chat("on"), 9)
    twice.tokenizer.chat_template = None
    with pytest.raises(UserError, match="m has no chat template: leave out `chat=on`"):
        Chat("on").settled(twice, otherwise=False)
    assert Chat().settled(twice, otherwise=True) is None
    own = Spoken("Hello", (("system", "Be kind."), ("user", "Hi")), "assistant")
    with pytest.raises(UserError, match="a system message of its own: leave out `system`"):
        place(OPENED["chatml"], [own], Chat("on", system="Be brief."), 9)


@pytest.mark.parametrize("role", ["narrator", ""])
def test_unknown_roles_are_refused(role):
    with pytest.raises(UserError, match=r"`role=.*` is unknown: choose assistant, user"):
        Chat("on", role)
    with pytest.raises(UserError, match="`chat=maybe` is unknown"):
        Chat("maybe")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["smollm2", "qwen2.5-coder-0.5b", "qwen2.5-coder-1.5b"])
def test_the_kits_own_templates(name):
    from transformers import AutoTokenizer

    from sordino import kit
    from sordino.models.calls import quiet_transformers

    file = kit.model_file(name)
    with quiet_transformers():
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    opened = OpenModel(ModelRef(name, "gguf", file), MODEL, tokenizer)
    text = "It rains in the north."
    for role in ("assistant", "user"):
        whole = tokenizer.apply_chat_template(conversation(text, role), tokenize=False)
        start = whole.rindex(text)
        found = tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True)
        own = [
            n
            for n, (low, high) in enumerate(found["offset_mapping"])
            if low < start + len(text) and high > start
        ]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(chat_turns, "refuse_unknown", lambda *_: None)
            patch.setattr(chat_turns, "positions", lambda _: None)
            [placed] = place(opened, [Spoken(text)], Chat("on", role), 1000)
        assert own == list(range(placed.start, len(placed.ids)))
    assert replies(opened, Chat("on")).ends == {tokenizer.convert_tokens_to_ids("<|im_end|>")}
