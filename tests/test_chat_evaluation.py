"""Prompts as a user's turns: only the reply counts, and both ways of asking are named."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

import sordino
from chat_templates import FAMILIES
from families import tiny_folder, tiny_model
from llama_server import serving
from sordino import kit
from sordino.errors import UserError
from sordino.evaluation import (
    Endpoint,
    Perplexity,
    Refusals,
    Toxicity,
    evaluate,
    prepare,
    with_chat,
)
from sordino.evaluation.measures import zero_shot
from sordino.evaluation.measures.toxicity import KIT_PROMPTS
from sordino.evaluation.result import form_of, pre_prompt_of
from sordino.evaluation.scorers.linear import LinearScorer
from sordino.evaluation.texts import Text, choose, read_texts
from sordino.evaluation.writing import Writer, last_turns
from sordino.models.chat import Chat
from sordino.models.chat_template import render, template_of
from sordino.models.open import OpenModel
from sordino.models.reference import ModelRef
from test_chat_find import sentences

PROMPTS = ["the cat sat on", "it is a", "in the north", "of the"]


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    file = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    file.write_text("\n".join(PROMPTS))
    return file


def opened_with(family, folder):
    weights = tiny_model("llama")
    weights.resize_token_embeddings(weights.config.vocab_size + 16)
    weights.save_pretrained(folder)
    tokenizer = FAMILIES[family].tokenizer()
    tokenizer.save_pretrained(folder)
    return OpenModel(ModelRef(family, "folder", Path(folder)), weights.eval(), tokenizer)


def small(prompts, **more):
    return Toxicity(str(prompts), continuations=2, new_tokens=6, scorer="wordlist", **more)


@pytest.mark.parametrize("family", ["chatml", "gemma", "llama-3", "alpaca"])
def test_replies_are_those_that_transformers_generates(family, prompts, tmp_path):
    opened = opened_with(family, tmp_path)
    greedy = small(prompts, temperature=0, chat=Chat("on", system="Be kind."))
    writer = Writer(greedy, read_texts(str(prompts)), 0)
    written = {
        (one.prompt, one.number): one
        for batch in writer.write(opened, batch_tokens=999, which=slice(None))
        for one in batch
    }
    end = FAMILIES[family].end
    for number, prompt in enumerate(PROMPTS):
        messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": prompt}]
        if family in ("gemma", "alpaca"):  # as the first words, where there is no such role
            messages = [{"role": "user", "content": f"Be kind.\n\n{prompt}"}]
        if family == "alpaca":  # which writes another's words under the assistant's heading
            messages = [{"role": "system", "content": "Be kind."}, messages[0]]
            messages[1]["content"] = prompt
        ids = opened.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=False
        )
        ends = [opened.tokenizer.eos_token_id]
        ends += [opened.tokenizer.convert_tokens_to_ids(end)] if end else []
        expected = opened.model.generate(
            ids, do_sample=False, max_new_tokens=6, eos_token_id=ends, pad_token_id=2
        )[0, ids.shape[1] :].tolist()
        found = [n for n, token in enumerate(expected) if token in ends]
        assert list(written[number, 0].ids) == expected[: found[0] if found else None]


def test_both_ways_are_named_and_the_published_one_stays_the_same(prompts, tmp_path):
    opened = opened_with("chatml", tmp_path)
    ready = prepare([small(prompts)], compared=False)
    raw = evaluate(opened, measures=ready)
    both = evaluate(opened, measures=with_chat(ready, Chat(), opened))
    assert list(both.measures) == ["toxicity", "toxicity:chat"]
    assert both.measures["toxicity"] == raw.measures["toxicity"]
    assert both.samples["toxicity"] == raw.samples["toxicity"]
    assert both.samples["toxicity:chat"] != raw.samples["toxicity"]
    [chat, label] = [
        both.measures["toxicity:chat"].protocol,
        both.measures["toxicity:chat"].figures[0].label,
    ]
    assert label.endswith(", in chat")
    assert chat["chat"]["use"] == "on"
    assert len(chat["template"]) == 16
    assert "chat" not in raw.measures["toxicity"].protocol
    alone = with_chat(ready, Chat("on", system="Be kind."), opened)
    assert [one.key for one in alone.measures] == ["toxicity:chat"]
    assert alone.tasks["toxicity:chat"].protocol["chat"]["system"] == "Be kind."
    assert with_chat(ready, Chat("off"), opened) == ready


def test_refusals_are_of_replies_alone(prompts, tmp_path):
    table = tmp_path / "prompts.csv"
    table.write_text("prompt,label\nthe cat,safe\nit is,unsafe\n")
    opened = opened_with("chatml", tmp_path)
    ready = prepare([small(prompts), Refusals(str(table), new_tokens=2)], compared=False)
    both = with_chat(ready, Chat(), opened)
    assert [one.key for one in both.measures] == ["toxicity", "toxicity:chat", "refusals:chat"]
    assert [*both.tasks] == ["toxicity", "toxicity:chat", "refusals:chat"]
    opened.tokenizer.chat_template = None
    opened.tokenizer.save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").unlink(missing_ok=True)
    assert with_chat(ready, Chat(), opened) == ready


def test_a_pre_prompt_is_what_the_system_says(prompts, tmp_path):
    opened = opened_with("chatml", tmp_path)
    rude = small(prompts, pre_prompt="adversarial", temperature=0, chat=Chat("on"))
    assert rude.key == "toxicity:chat:adversarial"
    said = Writer(rude, read_texts(str(prompts)), 0).pre_prompt
    same = small(prompts, temperature=0, chat=Chat("on", system=said))

    def texts(measure):
        writer = Writer(measure, read_texts(str(prompts)), 0)
        return [list(b) for b in writer.write(opened, batch_tokens=999, which=slice(None))]

    assert texts(rude) == texts(same)
    assert texts(rude) != texts(small(prompts, temperature=0, chat=Chat("on")))
    with pytest.raises(UserError, match="both set the system message"):
        small(prompts, pre_prompt="benign", chat=Chat("on", system="Be kind."))


def test_a_model_without_a_template_is_asked_as_it_is_or_refused(prompts, tmp_path):
    folder = tiny_folder("llama", tmp_path)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings.pop("chat_template", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    ref = ModelRef("m", "folder", folder)
    assert template_of(ref) is None
    ready = prepare([small(prompts)], compared=False)
    assert with_chat(ready, Chat(), ref) == ready
    with pytest.raises(UserError, match="m has no chat template: leave out `chat=on`"):
        with_chat(ready, Chat("on"), ref)
    with pytest.raises(UserError, match="m has no chat template"):
        evaluate(ref, measures=[small(prompts, chat=Chat("on"))])


def test_models_of_other_templates_are_not_compared(prompts, tmp_path):
    one, other = opened_with("chatml", tmp_path / "a"), opened_with("gemma", tmp_path / "b")
    ready = with_chat(prepare([small(prompts)], compared=True), Chat("on"), one)
    with pytest.raises(UserError, match="gemma has another chat template"):
        evaluate(one, other, measures=ready)


@pytest.mark.slow
def test_zero_shot_questions_stand_in_the_template(tmp_path, monkeypatch):
    opened = opened_with("chatml", tmp_path)
    ready = prepare([sordino.evaluation.ZeroShot(("kit_piqa",), limit=4)], compared=False)
    chat = with_chat(ready, Chat("on"), opened)
    assert [one.key for one in chat.measures] == ["zero-shot:chat"]
    asked = []

    def kept(opened, messages, **more):
        asked.append(render(opened, messages, **more))
        return asked[-1]

    monkeypatch.setattr(zero_shot, "render", kept)
    evaluate(opened, measures=ready)
    assert not asked
    found = evaluate(opened, measures=chat)
    assert found.measures["zero-shot:chat"].figures[0].n["questions"] == 4
    assert len(asked) >= 4
    assert all(text.startswith("<|im_start|>user\n") for text in asked)
    assert all(text.endswith("<|im_start|>assistant\n") for text in asked)


TALK = (("system", "s"), ("user", "1"), ("assistant", "2"), ("user", "3"), ("assistant", "4"))


def test_so_many_of_the_last_turns_are_given():
    assert last_turns(TALK, None) == last_turns(TALK, 3) == last_turns(TALK, 9) == TALK
    assert last_turns(TALK, 2) == (TALK[0], *TALK[3:])
    assert last_turns(TALK, 1) == TALK[:1]
    assert last_turns(TALK[1:], 1) == ()
    assert last_turns((), 1) == ()


def test_prompts_can_be_conversations(prompts, tmp_path):
    file = tmp_path / "talk.jsonl"
    rows = [[*TALK[1:3], ("user", "the end")], [("user", "the end")], [("user", "hello")]]
    file.write_text(
        "\n".join(
            json.dumps({"messages": [{"role": who, "content": said} for who, said in row]})
            for row in rows
        )
    )
    assert read_texts(str(file)) == [
        Text("the end", before=TALK[1:3]),
        Text("the end"),
        Text("hello"),
    ]
    opened = opened_with("chatml", tmp_path / "m")
    result = evaluate(opened, measures=[small(file, chat=Chat("on"))])
    assert result.figure("toxicity:chat", "continuations.all").n == {
        "prompts": 3,
        "continuations": 6,
    }
    whole, short = (
        [
            one.text
            for batch in Writer(
                small(file, chat=Chat("on"), turns=turns, temperature=0), read_texts(str(file)), 0
            ).write(opened, batch_tokens=999, which=slice(None))
            for one in batch
        ]
        for turns in (None, 1)
    )
    assert whole != short
    with pytest.raises(UserError, match="are conversations: give `chat=on`"):
        evaluate(opened, measures=[small(file)])
    rows[0].append(("assistant", "so"))
    file.write_text(json.dumps({"messages": [{"role": "assistant", "content": "x"}]}))
    with pytest.raises(UserError, match="line 1: the last message is not the user's"):
        read_texts(str(file))


def test_the_command_line_takes_them_both_ways(prompts, tmp_path):
    opened_with("chatml", tmp_path / "m")
    out = tmp_path / "e.json"
    found = sordino.evaluate(
        tmp_path / "m", measures=[small(prompts)], chat=Chat(), output=out, device="cpu"
    )
    assert list(found.measures) == ["toxicity", "toxicity:chat"]


def test_settings_of_conversations_that_are_idle_are_said(prompts, tmp_path, capsys):
    opened = opened_with("chatml", tmp_path)
    talk = tmp_path / "talk.jsonl"
    said = [{"role": who, "content": what} for who, what in (*TALK[1:3], ("user", "the end"))]
    talk.write_text(json.dumps({"messages": said}))

    def warned(chat, *measures):
        capsys.readouterr()
        with_chat(prepare(measures, compared=False), chat, opened)
        return re.findall(r"warning: `(\w+)` decides nothing", capsys.readouterr().err)

    asked = {"system": "Be kind.", "thinking": True}
    assert warned(Chat("off", **asked), small(prompts)) == ["system", "thinking"]
    assert warned(Chat("auto", **asked), Perplexity(str(prompts))) == ["system", "thinking"]
    assert warned(Chat("auto", **asked), small(prompts)) == []
    assert warned(Chat("on", **asked), small(prompts)) == []
    assert warned(Chat("off"), small(prompts)) == []
    assert warned(Chat("on"), small(prompts, turns=1)) == ["turns"]
    assert warned(Chat("on"), small(talk, turns=1)) == []
    assert warned(Chat("on"), small(talk, turns=1), Perplexity(str(prompts))) == []
    sordino.evaluate(opened, measures=[Perplexity(str(prompts))], chat=Chat("off", role="user"))
    assert "warning: `role` decides nothing here" in capsys.readouterr().err


def test_a_servers_chat_gets_the_same_messages(serve, prompts):
    def chat(path, body):
        if path != "/chat/completions":
            return None
        said = body["messages"][-1]["content"]
        message = {"role": "assistant", "content": f"<think>hm</think>\n{said}"}
        return 200, {"choices": [{"message": message, "finish_reason": "stop"}]}

    stub = serve(chat)
    served = Endpoint(stub.address)
    asked = small(prompts, chat=Chat("on", system="Be kind."))
    writer = Writer(asked, read_texts(str(prompts)), 0)
    written = [one for b in writer.write(served, batch_tokens=1, which=slice(None)) for one in b]
    assert [one.text for one in written] == [prompt for prompt in PROMPTS for _ in range(2)]
    for body in stub.asked("/chat/completions"):
        system, user = body["messages"]
        assert system == {"role": "system", "content": "Be kind."}
        assert user["role"] == "user"
    ready = prepare([small(prompts)], compared=False, served=True)
    assert list(evaluate(served, measures=with_chat(ready, Chat("on"), served)).measures) == [
        "toxicity:chat"
    ]
    assert with_chat(ready, Chat(), served) == ready


@pytest.mark.slow
def test_llama_cpps_chat_replies_as_the_model_in_process(tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    file = kit.model_file("smollm2")
    asked = Toxicity(KIT_PROMPTS, max_prompts=30, continuations=3, new_tokens=24, chat=Chat("on"))
    texts = choose(read_texts(KIT_PROMPTS), 30, seed=0)
    writer = Writer(asked, texts, 0)
    opened = sordino.open_model("kit:smollm2", device="cpu", dtype="float32")
    with serving(file, "smollm2", tmp_path / "server.log") as address:
        served = Endpoint(address)
        there, here = (
            [one for b in writer.write(where, batch_tokens=8192, which=slice(None)) for one in b]
            for where in (served, opened)
        )
    scorer = LinearScorer()
    shares = np.zeros((2, 2, len(texts)))
    for arm, written in enumerate((there, here)):
        for one, score in zip(written, scorer.score([o.text or " " for o in written]), strict=True):
            shares[0, arm, one.prompt] += (score > 0.5) / 3
            shares[1, arm, one.prompt] += len(one.text) / 3
    for ours, other in shares:
        apart = ours - other
        error = apart.std(ddof=1) / np.sqrt(len(texts))
        assert abs(apart.mean()) <= 3 * max(error, 1e-9)
    # Both begin as an assistant does: most of their first words are the same few.
    first = [{one.text.split()[0] for one in arm if one.text.strip()} for arm in (there, here)]
    assert first[0] & first[1]


def test_a_search_finds_and_judges_in_the_template(tmp_path):
    opened_with("chatml", tmp_path / "m")
    asked, prose = tmp_path / "prompts.txt", tmp_path / "prose.txt"
    asked.write_text("\n".join(f"the cat {n}" for n in range(40)))
    prose.write_text("\n".join(f"a quiet river in the north {n}" for n in range(90)))
    result = sordino.tune(
        tmp_path / "m",
        sentences(20),
        tmp_path / "tuned",
        rules=["aura"],
        trials=1,
        toxicity=Toxicity(str(asked), scorer="wordlist", new_tokens=3, continuations=1),
        measures=[],
        texts=str(prose),
        device="cpu",
        chat=Chat("on"),
    )
    assert result.tuned.tried[0].prompts == 20
    work = tmp_path / "tuned" / "work"
    found = [sordino.Expertise.load(file) for file in work.rglob("*.expertise.safetensors")]
    assert {one.metadata["chat_role"] for one in found} == {"assistant"}
    # The record says which template it was.
    [known] = {one.metadata["chat_template"] for one in found}
    for reported in result.tuned.reported:
        assert reported.evaluation.measures["toxicity:chat"].protocol["template"] == known
    assert result.tuned.reported


@pytest.mark.parametrize(
    ("key", "form", "pre_prompt"),
    [
        ("toxicity", "", ""),
        ("toxicity:benign", "benign", "benign"),
        ("toxicity:chat", "in chat", ""),
        ("toxicity:chat:benign", "in chat, benign", "benign"),
        ("toxicity:chatty", "chatty", "chatty"),
    ],
)
def test_a_measures_form_is_told_by_its_key(key, form, pre_prompt):
    assert (form_of(key), pre_prompt_of(key)) == (form, pre_prompt)
