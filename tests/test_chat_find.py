"""Neurons found in a chat template: only a sentence's own tokens count."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from chat_templates import FAMILIES
from families import tiny_model
from sordino.concepts import load_concept
from sordino.concepts.concept import Concept
from sordino.errors import UserError
from sordino.expertise.artefact import Expertise
from sordino.expertise.attribution import AttributionSettings
from sordino.expertise.find import SweepSettings, find_experts
from sordino.expertise.own import OwnSettings, sample, weights
from sordino.expertise.pooling import FEWEST_SENTENCES
from sordino.expertise.sentences import chat_of, encode_sentences
from sordino.models.chat import ASKED, Chat, template_fingerprint
from sordino.models.open import OpenModel
from sordino.models.ranks import Ranks
from sordino.models.reference import ModelRef
from sordino.report.exemplars import exemplars, outputs_at_tokens

POOLS = {"max": lambda z: z.amax(0), "mean": lambda z: z.mean(0), "last": lambda z: z[-1]}


def opened_with(family="chatml", model="llama", folder=None):
    weights = tiny_model(model)
    weights.resize_token_embeddings(weights.config.vocab_size + 16)
    weights.save_pretrained(folder)
    return OpenModel(
        ModelRef("tiny", "folder", Path(folder)), weights, FAMILIES[family].tokenizer()
    )


WORDS = ("the cat", "a river", "quiet", "over there", "it was", "nobody", "in the north", "sat")


def sentences(count):
    """Sentences of both classes, which nothing but their words tells apart."""
    generator = np.random.default_rng(0)

    def of(first):
        return tuple(
            f"{first} {' '.join(generator.choice(WORDS, 2 + n % 4))} {n}" for n in range(count)
        )

    return Concept("quiet", of("hush now"), of("well then"))


def conversations(count):
    """The same as answers to questions of different lengths."""
    concept = sentences(count)
    contexts = tuple(
        ((("user", "Well?" * (1 + number % 3)),), "assistant")
        for number in range(len(concept.sentences))
    )
    return Concept("talk", concept.positive, concept.negative, contexts=contexts)


def conversation_of(concept, number, chat):
    """The messages of a sentence's conversation, without the code under test."""
    if concept.contexts:
        before, role = concept.contexts[number]
    else:
        before, role = ((("user", ASKED),) if chat.role == "assistant" else ()), chat.role
    said = [*before, (role, concept.sentences[number])]
    if chat.system:
        said.insert(0, ("system", chat.system))
    return [{"role": who, "content": text} for who, text in said]


def own_outputs(opened, concept, chat):
    """By site, each sentence's outputs at its own tokens: one sentence at a time, by offsets."""
    found = {site.path: [] for site in opened.sites}
    for number, sentence in enumerate(concept.sentences):
        messages = conversation_of(concept, number, chat)
        text = opened.tokenizer.apply_chat_template(messages, tokenize=False)
        start = text.rindex(sentence)
        encoded = opened.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        own = [
            place
            for place, (low, high) in enumerate(encoded["offset_mapping"])
            if low < start + len(sentence) and high > start
        ]
        handles = [
            opened.model.get_submodule(path).register_forward_hook(
                lambda _m, _i, z, path=path, own=own: found[path].append(z[0, own].float())
            )
            for path in found
        ]
        with torch.inference_mode():
            opened.model(input_ids=torch.tensor([encoded["input_ids"]]))
        for handle in handles:
            handle.remove()
    return found


def agrees(auroc, responses, labels, rounding=1e-5):
    """Whether it is the AUROC of these responses, of which some tie but for rounding."""
    apart = responses[labels][:, None] - responses[~labels]
    low, high = (apart > rounding).mean(), (apart > -rounding).mean()
    return low - 1e-6 <= auroc <= high + 1e-6


CASES = [
    ("max", Chat("on"), False),
    ("mean", Chat("on", "user"), False),
    ("last", Chat("on", system="Be brief."), False),
    ("max", Chat(), True),
    ("mean", Chat("on", system="Be brief."), True),
]


@pytest.mark.parametrize(("pooling", "chat", "talks"), CASES)
def test_neurons_are_judged_by_the_sentences_own_tokens(pooling, chat, talks, tmp_path):
    opened = opened_with(folder=tmp_path)
    concept = conversations(25) if talks else sentences(25)
    found = find_experts(
        opened, concept, settings=SweepSettings(pooling=pooling, chat=chat, batch_tokens=300)
    )
    for site, outputs in own_outputs(opened, concept, chat).items():
        responses = torch.stack([POOLS[pooling](z) for z in outputs]).numpy()
        for column, judged in zip(responses.T, found["auroc"][site], strict=True):
            assert agrees(judged, column, concept.labels)
    raw = find_experts(opened, sentences(25), settings=SweepSettings(pooling=pooling))
    assert any((raw["auroc"][site] != found["auroc"][site]).any() for site in raw.sites)
    assert "chat_template" not in raw.metadata


def test_the_artefact_says_how_it_was_found(tmp_path):
    opened = opened_with(folder=tmp_path / "m")
    chat = Chat("on", "user", "Be brief.")
    file = tmp_path / "x.expertise.safetensors"
    concept = sentences(25)
    found = find_experts(opened, concept, settings=SweepSettings(chat=chat), output=file)
    read = Expertise.load(file)
    assert read.metadata["chat_role"] == "user"
    assert read.metadata["chat_system"] == "Be brief."
    assert chat_of(opened, read.metadata) == chat
    # The page's sentences are the same tokens, and the neuron's response is that of the sweep.
    excerpt = exemplars(opened, concept, found, neurons=1)[0].excerpts[0]
    assert "".join(excerpt.pieces).strip() == concept.sentences[excerpt.sentence]
    site, index, _ = found.top(1)[0]
    outputs = own_outputs(opened, concept, chat)[site]
    assert list(excerpt.responses) == pytest.approx(
        outputs[excerpt.sentence][:, index].tolist(), abs=1e-5
    )
    assert max(excerpt.responses) == pytest.approx(max(float(z[:, index].max()) for z in outputs))
    opened.tokenizer.chat_template += " "
    with pytest.raises(UserError, match="another chat template than when the expertise was found"):
        chat_of(opened, read.metadata)


def slope_of(opened, site, neuron, texts, by):
    """How the weighted log-likelihood of the texts' own tokens changes with a neuron's factor."""

    def likelihood(factor):
        def turn_down(_module, _inputs, output):
            output = output.clone()
            output[..., neuron] *= factor
            return output

        handle = opened.model.get_submodule(site).register_forward_hook(turn_down)
        total = 0.0
        with torch.inference_mode():
            for weight, one in zip(by, texts, strict=True):
                log_p = opened.model(input_ids=torch.tensor([one.ids])).logits[0].double()
                log_p = log_p.log_softmax(-1)
                own = range(one.start, len(one.ids))
                total += weight * sum(float(log_p[n - 1, one.ids[n]]) for n in own)
        handle.remove()
        return total

    step = 1e-2
    return (likelihood(1 + step) - likelihood(1 - step)) / (2 * step)


@pytest.mark.parametrize("talks", [False, True])
def test_attribution_is_of_the_own_tokens_likelihood(talks, tmp_path):
    opened = opened_with(folder=tmp_path)
    chat = Chat("on")
    concept = conversations(20) if talks else sentences(20)
    found = find_experts(
        opened,
        concept,
        settings=SweepSettings(chat=chat, batch_tokens=400),
        attribution=AttributionSettings(per_class=20),
    )
    site, neuron = opened.sites[0].path, 3
    placed = encode_sentences(opened, concept, 128, chat)[: len(concept.positive)]

    tokens = sum(len(one.ids) - one.start for one in placed)
    slope = slope_of(opened, site, neuron, placed, np.ones(len(placed))) / tokens
    assert found["attribution_positive"][site][neuron] == pytest.approx(slope, rel=0.02, abs=1e-7)


class Noting:
    """A judge that keeps what it read: the share of vowels."""

    name = "vowels"

    def __init__(self):
        self.read = []

    def record(self):
        return {"scorer": self.name}

    def score(self, texts):
        self.read += texts
        return np.array([sum(c in "aeiou" for c in text) / len(text) for text in texts])


QUESTIONS = tuple(f"What of {word} and {number}?" for number in range(3) for word in WORDS)[:20]


def replies_of(opened, judge, **changes):
    asked = {"continuations": 6, "new_tokens": 10, "chat": Chat("on")} | changes
    return OwnSettings(QUESTIONS, judge, **asked)


@pytest.mark.parametrize(
    ("family", "model", "system"),
    [("chatml", "llama", "Be brief."), ("gemma", "gemma2", ""), ("llama-2", "llama", "")],
)
def test_own_samples_are_replies_whose_tokens_alone_count(family, model, system, tmp_path):
    opened = opened_with(family, model, tmp_path)
    judge = Noting()
    settings = replies_of(opened, judge, chat=Chat("on", system=system))
    found = sample(opened, settings, batch_tokens=400, journal=None, ranks=Ranks())
    end = opened.tokenizer.convert_tokens_to_ids(FAMILIES[family].end)
    own = {}
    for number, placed in enumerate(found.texts):
        said = [{"role": "user", "content": QUESTIONS[number // 6]}]
        said = [{"role": "system", "content": system}, *said] if system else said
        text = opened.tokenizer.apply_chat_template(
            said, tokenize=False, add_generation_prompt=True
        )
        before = opened.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        assert before["offset_mapping"][-1][1] == len(text)  # the reply begins right behind it
        assert list(placed.ids[: placed.start]) == before["input_ids"]
        reply = list(placed.ids[placed.start :])
        ended = len(reply) < 10 or reply[-1] in (end, opened.tokenizer.eos_token_id)
        own[placed.ids] = opened.tokenizer.decode(reply, skip_special_tokens=True)
        assert (reply[-1] in (end, opened.tokenizer.eos_token_id)) == ended
    assert min(len(placed.ids) - placed.start for placed in found.texts) < 10  # some have ended
    assert judge.read == [text for text in own.values() if text.strip()]
    for passage in found.passages:
        for row, start in zip(passage.batch.input_ids.tolist(), passage.starts, strict=True):
            [placed] = {one for one in found.texts if list(one.ids) == row}
            assert start == placed.start
    assert found.metadata["own_chat"] == "on"


def test_attribution_to_replies_is_of_their_likelihood(tmp_path):
    opened = opened_with(folder=tmp_path)
    settings = replies_of(opened, Noting())
    found = find_experts(
        opened, sentences(20), attribution=AttributionSettings(per_class=20), own=settings
    )
    assert found.metadata["own_chat"] == "on"
    assert "chat_template" not in found.metadata  # sentences are read as they are
    samples = sample(opened, settings, batch_tokens=400, journal=None, ranks=Ranks())
    by = weights(samples.scores).ravel()
    site, neuron = opened.sites[0].path, 3

    slope = slope_of(opened, site, neuron, samples.texts, by) / len(by)
    assert found["attribution_own"][site][neuron] == pytest.approx(slope, rel=0.02, abs=1e-7)


def test_auto_takes_replies_of_a_model_with_a_template(tmp_path):
    opened = opened_with(folder=tmp_path)
    auto = sample(
        opened,
        replies_of(opened, Noting(), chat=Chat()),
        batch_tokens=400,
        journal=None,
        ranks=Ranks(),
    )
    assert auto.template == template_fingerprint(opened)
    opened.tokenizer.chat_template = None
    raw = sample(
        opened,
        replies_of(opened, Noting(), chat=Chat()),
        batch_tokens=400,
        journal=None,
        ranks=Ranks(),
    )
    assert not raw.template
    assert raw.texts[0].start < auto.texts[0].start


def test_thoughts_without_replies_are_no_own_samples(tmp_path):
    opened = opened_with("deepseek-r1", folder=tmp_path)
    settings = replies_of(opened, Noting(), new_tokens=4)
    with pytest.raises(UserError, match="still thinking"):
        sample(opened, settings, batch_tokens=400, journal=None, ranks=Ranks())


def test_conversations_come_from_json_lines(tmp_path):
    file = tmp_path / "talk.jsonl"
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"Question {number}?"},
                {"role": "assistant", "content": f"Answer {number}."},
            ],
            "label": number % 2,
        }
        for number in range(50)
    ]
    file.write_text("\n".join(map(json.dumps, rows)))
    concept = load_concept(file, max_per_class=20)
    assert len(concept.positive) == len(concept.contexts) / 2 == 20
    for sentence, (before, role) in zip(concept.sentences, concept.contexts, strict=True):
        assert role == "assistant"
        assert before == (("user", sentence.replace("Answer", "Question").replace(".", "?")),)
    plain = Concept("talk", concept.positive, concept.negative)
    assert plain.fingerprint != concept.fingerprint
    opened = opened_with(folder=tmp_path / "m")
    with pytest.raises(
        UserError, match="consists of conversations, which need a chat template: `chat"
    ):
        find_experts(opened, concept, settings=SweepSettings(chat=Chat("off")))
    opened.tokenizer.chat_template = None
    with pytest.raises(UserError, match="tiny has no chat template"):
        find_experts(opened, concept)


@pytest.mark.parametrize(
    "messages", ["Hello", [], [{"role": "user"}], [{"role": "", "content": "x"}], {"role": "user"}]
)
def test_what_is_no_conversation_is_refused_by_its_line(messages, tmp_path):
    file = tmp_path / "talk.jsonl"
    file.write_text(json.dumps({"messages": messages, "label": 1}))
    with pytest.raises(UserError, match=r"talk\.jsonl, line 1: its messages "):
        load_concept(file)


@pytest.mark.parametrize("talks", [False, True])
def test_experts_are_judged_by_the_own_tokens_that_reached_them(talks, tmp_path):
    opened = opened_with(model="mixtral", folder=tmp_path)
    concept = conversations(60) if talks else sentences(60)
    found = find_experts(opened, concept, settings=SweepSettings(chat=Chat("on")))
    site = next(site for site in opened.sites if site.experts)
    placed = dict(enumerate(encode_sentences(opened, concept, 128, Chat("on"))))
    places = [(site.path, index) for index in range(0, site.neurons, 7)]
    rows = sorted(outputs_at_tokens(opened, placed, places).items())
    for number, (path, index) in enumerate(places):
        responses = np.array([float(np.nanmax([-np.inf, *of[number]])) for _, of in rows])
        reached = np.isfinite(responses)
        counts = [np.count_nonzero(concept.labels[reached] == label) for label in (True, False)]
        judged = found["auroc"][path][index]
        assert np.isnan(judged) == (min(counts) < FEWEST_SENTENCES)
        if not np.isnan(judged):
            assert agrees(judged, responses[reached], concept.labels[reached])


def test_settings_of_a_template_that_is_not_used_are_said(open_tiny, concept, capsys):
    chat = Chat("off", role="user", system="Be kind.")
    find_experts(open_tiny("llama"), concept, settings=SweepSettings(chat=chat))
    said = capsys.readouterr().err
    for name in ("role", "system"):
        assert f"warning: `{name}` decides nothing about sentences outside a chat template" in said
    find_experts(open_tiny("llama"), concept)
    assert "warning" not in capsys.readouterr().err
