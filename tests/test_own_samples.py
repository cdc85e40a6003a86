"""Own samples: the policy gradient against an enumeration, resuming, judge and figures apart."""

import json
from dataclasses import replace
from itertools import takewhile
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import interrupted, sentences
from families import FAMILIES, SUPPORTED, everyday, tiny_folder
from sordino.concepts import load_concept
from sordino.errors import UserError
from sordino.evaluation import OrdinaryToxicity, Perplexity, Speed, Toxicity, prepare
from sordino.evaluation.measures.toxicity import KIT_PROMPTS
from sordino.evaluation.opening import AUTO, open_scorer
from sordino.evaluation.own_samples import OwnPlan
from sordino.evaluation.texts import read_texts
from sordino.expertise import (
    AttributionSettings,
    Expertise,
    OwnSettings,
    attribution,
    find,
    own,
    written,
)
from sordino.expertise.find import find_experts, plan_find
from sordino.expertise.own import ConceptJudge
from sordino.expertise.statistic import Statistic
from sordino.files import counted
from sordino.interventions import Dampening, contrast, dampen
from sordino.interventions.rules.contrast import Benefit, amounts, together
from sordino.models import generation
from sordino.models.chat import Chat
from sordino.models.generation import encode_prompts, keeps_last_logits
from sordino.models.probe import Probe
from sordino.models.ranks import Ranks
from sordino.pipeline import RunSettings, decide_own, run
from sordino.studies.variants import along_the_way, both_benefits, with_own

PROMPTS = tuple(f"{number} the river under an old bridge" for number in range(20))
OF_MANY_LENGTHS = tuple(" ".join([line] * times) for times in (1, 2, 4, 8) for line in PROMPTS[:6])
"""Prompts so different that each length is continued in a batch of its own."""
ATTRIBUTION = AttributionSettings(20)


class Vowels:
    """A judge that needs nothing: the share of vowels."""

    name = "vowels"

    def record(self):
        return {"scorer": self.name}

    def score(self, texts):
        return np.array([sum(c in "aeiou" for c in t) / len(t) for t in texts])


def own_of(continuations=4, new_tokens=6, **changes):
    settings = {"judge": Vowels(), "continuations": continuations, "new_tokens": new_tokens}
    return OwnSettings(PROMPTS, **(settings | changes))


def mean_score(opened):
    """The judge's exact mean score of one token after each prompt, over the whole vocabulary."""
    texts = [
        opened.tokenizer.decode(
            [token], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        for token in range(opened.model.config.vocab_size)
    ]
    judged = np.array([Vowels().score([text])[0] if text.strip() else 0.0 for text in texts])
    total = 0.0
    with torch.no_grad():
        for ids in encode_prompts(opened, PROMPTS, max_tokens=128, new_tokens=1):
            p = opened.model(torch.tensor([ids])).logits[0, -1].softmax(-1)
            total += float(p.double() @ torch.from_numpy(judged))
    return total / len(PROMPTS)


def test_own_attribution_is_the_fall_of_the_mean_score(open_tiny, concept):
    """Within its own sampling error, which is as large as it says."""
    opened = open_tiny("llama", dtype=torch.float64)
    settings = own_of(continuations=200, new_tokens=1)
    expertise = find_experts(opened, concept, attribution=ATTRIBUTION, own=settings)
    amount, scores = 1e-3, []
    for site in expertise.sites[:3]:
        found, variance = (
            expertise[name][site] for name in (Statistic.OWN, Statistic.OWN_VARIANCE)
        )
        for neuron in range(0, found.size, 6):
            ends = []
            for change in (amount, -amount):
                factors = np.ones(found.size, np.float32)
                factors[neuron] -= change
                with Dampening({site: factors}, "one").applied(opened.model):
                    ends.append(mean_score(opened))
            exact = (ends[1] - ends[0]) / (2 * amount)
            if variance[neuron] > 0:
                scores.append((found[neuron] - exact) / np.sqrt(variance[neuron]))
    assert len(scores) > 12
    assert 0.3 < np.mean(np.square(scores)) < 3


def test_a_continuation_alone_counts_and_not_its_prompt(open_tiny, concept):
    opened = open_tiny("llama")
    encoded = [[5, 6, 7, 8, 9]]
    [passage] = attribution.in_batches(opened, Statistic.OWN, encoded, [3], [0.5], 64)
    assert passage.counted == 2
    logits = opened.model(passage.batch.input_ids).logits
    found = attribution._likelihoods(logits, passage, 0)[attribution.OBSERVED]
    log_p = logits[0, :-1].log_softmax(-1)
    torch.testing.assert_close(found, log_p[2, 8] + log_p[3, 9])


@pytest.mark.parametrize("family", everyday(SUPPORTED, {*FAMILIES, "ctrl", "lfm2"}))
def test_leaving_out_the_logits_of_prompts_changes_nothing_else(family, open_tiny, monkeypatch):
    opened = open_tiny(family)
    encoded = [[5, 6, 7, 8, 9, 10, 11], [9, 8, 7, 6, 5, 10, 11]]
    [passage] = attribution.in_batches(opened, Statistic.OWN, encoded, [5, 4], [0.5, -1.0], 64)

    def sums():
        with attribution.Whole.gradients(opened):
            return dict(attribution.Whole(opened, [passage], [0], Path()).run(0, 0))

    found, asked = sums(), attribution._needed(opened, passage)
    assert asked == ({"logits_to_keep": 4} if keeps_last_logits(opened.model) else {})
    monkeypatch.setattr(attribution, "_needed", lambda *_: {})
    for name, expected in sums().items():
        torch.testing.assert_close(found[name], expected, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("family", ["gemma2", "mixtral"])
def test_an_interrupted_call_goes_on_to_the_same_bytes(
    family, open_tiny, concept, tmp_path, monkeypatch
):
    opened = open_tiny(family)
    options = {"attribution": ATTRIBUTION, "own": replace(own_of(), prompts=OF_MANY_LENGTHS)}
    find_experts(opened, concept, output=tmp_path / "whole.safetensors", **options)
    monkeypatch.setattr("sordino.expertise.snapshot.EVERY_S", 0.0)
    monkeypatch.setattr("sordino.expertise.snapshot.SHARE", 0)
    target = tmp_path / "cut.safetensors"
    taken = []
    for owner, name, calls in (
        (written, "generate", 1),
        (written, "generate", 2),
        (attribution.Whole, "run", 3),
    ):
        with interrupted(monkeypatch, owner, name, calls) as made:
            find_experts(opened, concept, output=target, **options)
        taken += made
    journal = next(tmp_path.rglob("own.jsonl"))
    lines = journal.read_text().splitlines()
    journal.write_text("\n".join([*lines[:-1], lines[-1][:-9]]) + "\n")  # as a kill leaves it
    find_experts(opened, concept, output=target, **options)
    assert target.read_bytes() == (tmp_path / "whole.safetensors").read_bytes()


def test_what_was_sampled_is_not_sampled_again(open_tiny, concept, tmp_path, monkeypatch):
    """Even where no snapshot was due during the sweep."""
    opened = open_tiny("llama")
    own_samples = replace(own_of(), prompts=OF_MANY_LENGTHS)
    options = {
        "attribution": ATTRIBUTION,
        "own": own_samples,
        "output": tmp_path / "x.safetensors",
    }
    run, batches = written.generate, []

    def failing(opened, now, *args, **kwargs):
        batches.extend(now)
        if len(batches) == 3:
            raise KeyboardInterrupt
        return run(opened, now, *args, **kwargs)

    monkeypatch.setattr(written, "generate", failing)
    with pytest.raises(KeyboardInterrupt):
        find_experts(opened, concept, **options)
    monkeypatch.setattr(find, "Sweep", None)
    find_experts(opened, concept, **options)
    rows = [(p, n) for batch in batches for p in batch.prompts for n in batch.numbers]
    again = len(batches[2].prompts) * len(batches[2].numbers)
    assert len(rows) == len(OF_MANY_LENGTHS) * own_samples.continuations + again


def test_a_permuted_judge_keeps_each_prompts_scores_and_loses_what_they_are_of(
    open_tiny, tmp_path, monkeypatch
):
    opened = open_tiny("llama")
    options = {"batch_tokens": 512, "journal": tmp_path / "own.jsonl", "ranks": Ranks()}
    real = own.sample(opened, own_of(continuations=8), **options)
    monkeypatch.setattr(written, "generate", None)  # they are the same samples
    control = own.sample(opened, own_of(continuations=8, permuted=5), **options)
    assert control.said == real.said
    np.testing.assert_array_equal(np.sort(real.scores), np.sort(control.scores))
    assert (real.scores != control.scores).any(axis=1).mean() > 0.8
    assert real.digest != control.digest
    assert own_of().metadata == own_of(permuted=None).metadata
    assert own_of(permuted=5).metadata["own_permuted"] == "5"


def test_reversed_own_samples_make_what_was_gained_lost(open_tiny, concept):
    expertise = find_experts(open_tiny("llama"), concept, attribution=ATTRIBUTION, own=own_of())
    turned = with_own(expertise, expertise, sign=-1)
    one, other = (dampen(of, "contrast", evidence="own") for of in (expertise, turned))
    for site, gain in expertise[Statistic.OWN].items():
        assert ((one.factors[site] == 1) | (gain > 0)).all()
        assert ((other.factors[site] == 1) | (gain < 0)).all()
    assert one.changed
    assert other.changed


def test_attribution_along_the_way_is_the_slope_there(open_tiny, concept):
    """By differences of the likelihood of the sentences under the edit."""
    opened = open_tiny("llama", dtype=torch.float64)
    start = find_experts(opened, concept, attribution=ATTRIBUTION, own=own_of())
    draw = np.random.default_rng(0)
    factors = {s.path: draw.uniform(0.5, 1, s.neurons).astype(np.float32) for s in opened.sites}
    half = Dampening(factors, "half")
    with half.applied(opened.model):
        found = find_experts(opened, concept, attribution=ATTRIBUTION, own=own_of())
    there = along_the_way(start, found, half)
    work = attribution.passages(opened, concept, ATTRIBUTION, 128, 2048)
    positive = [one for one in work if one.of is Statistic.POSITIVE]

    def likelihood(site, neuron, change):
        changed = {**factors, site: factors[site].copy()}
        changed[site][neuron] -= change
        with torch.no_grad(), Dampening(changed, "moved").applied(opened.model):
            nats = sum(
                float(
                    attribution._likelihoods(opened.model(one.batch.input_ids).logits, one, 0)[
                        attribution.OBSERVED
                    ]
                )
                for one in positive
            )
        return nats / sum(one.counted for one in positive)

    amount, slopes = 1 / 64, []
    for site in there.sites[1:7:2]:
        for neuron in (0, 9):
            low, high = (likelihood(site, neuron, by) for by in (amount, -amount))
            slopes.append((there[Statistic.POSITIVE][site][neuron], (high - low) / (2 * amount)))
    measured, expected = np.array(slopes).T
    np.testing.assert_allclose(measured, expected, rtol=0.02, atol=2e-4 * np.abs(expected).max())
    for name, same in ((Statistic.COST, True), (Statistic.OWN, False)):
        site = there.sites[0]
        assert (there[name][site] == start[name][site]).all() == same
    both = both_benefits(start, there)
    site = there.sites[2]
    np.testing.assert_allclose(
        both[Statistic.OWN][site], (start[Statistic.OWN][site] + there[Statistic.OWN][site]) / 2
    )


def test_the_record_says_what_was_sampled_and_who_judged(open_tiny, concept):
    about = find_experts(
        open_tiny("llama"), concept, attribution=ATTRIBUTION, own=own_of(seed=3)
    ).metadata
    assert about["own_judge"] == "vowels"
    assert json.loads(about["own_judge_record"]) == {"scorer": "vowels"}
    assert (about["own_n_prompts"], about["own_continuations"]) == ("20", "4")
    assert about["own_seed"] == "3"
    assert 0 < float(about["own_mean_score"]) < 1


def test_the_concepts_judge_is_a_probe_of_the_unedited_model(open_tiny, concept):
    """Also while hooks edit the model, of experts as well; and its record says what it is."""
    for family in ("llama", "mixtral"):
        opened = open_tiny(family)
        draw = np.random.default_rng(0)
        factors = {s.path: draw.uniform(0, 1, s.neurons).astype(np.float32) for s in opened.sites}
        plain = ConceptJudge(concept).trained(opened)
        texts = [*PROMPTS, "the cat sat"]
        ids = torch.tensor([opened.tokenizer(texts[0])["input_ids"]])
        before = opened.model(input_ids=ids).logits
        with Dampening(factors, "edit").applied(opened.model):
            edited = opened.model(input_ids=ids).logits
            assert not torch.equal(edited, before)
            meanwhile = ConceptJudge(concept).trained(opened)
            np.testing.assert_allclose(meanwhile.score(texts), plain.score(texts), atol=1e-4)
            assert torch.equal(opened.model(input_ids=ids).logits, edited)
        assert torch.equal(opened.model(input_ids=ids).logits, before)
    record = plain.record()
    assert record["layer"] == opened.model.config.num_hidden_layers // 2
    assert record["sentences_per_class"] == len(concept.negative)
    assert record["cross_validated_auroc"] == pytest.approx(plain.probe.auroc, abs=1e-6)
    assert record["concept_fingerprint"] == concept.fingerprint


def test_the_judges_auroc_is_of_sentences_that_it_was_not_trained_on(open_tiny):
    """Of two classes that nothing tells apart it is near a half, and it is 1 of plain ones."""
    opened = open_tiny("llama")
    draw = np.random.default_rng(0)
    words = ["cat", "bridge", "river", "old", "north", "sang", "dog", "sat"]
    lines = [" ".join(draw.choice(words, 8)) for _ in range(120)]
    chance = Probe(opened, lines[:60], lines[60:])
    assert 0.3 < chance.auroc < 0.7
    plain = Probe(opened, lines[:60], [f"well then {line}" for line in lines[60:]])
    assert plain.auroc > 0.95
    assert plain.score(lines[:20]).min() > plain.score(["well then the cat sat"]).max()


@pytest.mark.parametrize("family", ["llama", "mixtral"])
@pytest.mark.parametrize("itself", [False, True], ids=["a judge", "the model judges"])
def test_a_streamed_model_gives_the_same_bytes(family, itself, concept, tmp_path, monkeypatch):
    """Also after a kill, while it writes and while gradients are computed."""
    folder = tiny_folder(family, tmp_path)
    own = own_of(judge=ConceptJudge(concept)) if itself else own_of()
    options = {"attribution": ATTRIBUTION, "own": own}
    find_experts(folder, concept, output=tmp_path / "whole.safetensors", **options, stream=False)
    target = tmp_path / "streamed.safetensors"
    monkeypatch.setattr("sordino.expertise.snapshot.EVERY_S", 0.0)
    monkeypatch.setattr("sordino.expertise.snapshot.SHARE", 0)
    for owner, name, calls in ((generation, "_forward", 3), (attribution.ThereAndBack, "run", 2)):
        with interrupted(monkeypatch, owner, name, calls):
            find_experts(folder, concept, output=target, **options, stream=True)
    assert not target.exists()
    find_experts(folder, concept, output=target, **options, stream=True)
    assert target.read_bytes() == (tmp_path / "whole.safetensors").read_bytes()


def test_memory_that_becomes_free_meanwhile_loses_no_own_sample(concept, tmp_path, monkeypatch):
    """Streamed, other prompts are continued together, so the journal of one is not the other's."""
    folder, target = tiny_folder("llama", tmp_path), tmp_path / "cut.safetensors"
    options = {"attribution": ATTRIBUTION, "own": replace(own_of(), prompts=OF_MANY_LENGTHS)}
    with interrupted(monkeypatch, written, "generate", 1):
        find_experts(folder, concept, output=target, **options, stream=False)
    find_experts(folder, concept, output=target, **options, stream=True)
    found = Expertise.load(target).metadata
    assert found["own_n_prompts"] == str(len(OF_MANY_LENGTHS))
    plain = find_experts(folder, concept, **options, stream=False)
    assert found["own_samples"] == plain.metadata["own_samples"]


def test_own_samples_are_judged_by_the_model_itself(open_tiny, concept, tmp_path):
    """The same bytes after another start, with the trained judge in the record."""
    opened = open_tiny("llama")
    options = {"attribution": ATTRIBUTION, "own": own_of(judge=ConceptJudge(concept))}
    for name in ("one", "other"):
        find_experts(opened, concept, output=tmp_path / f"{name}.safetensors", **options)
    assert (tmp_path / "one.safetensors").read_bytes() == (
        tmp_path / "other.safetensors"
    ).read_bytes()
    about = Expertise.load(tmp_path / "one.safetensors").metadata
    assert about["own_judge"] == "concept"
    record = json.loads(about["own_judge_record"])
    assert record == ConceptJudge(concept).trained(opened).record()


def test_what_cannot_be_is_refused(open_tiny, concept, tmp_path):
    opened = open_tiny("llama")
    with pytest.raises(UserError, match="`attribution`"):
        find_experts(opened, concept, own=own_of())
    with pytest.raises(UserError, match="at least 2"):
        own_of(continuations=1)
    with pytest.raises(UserError, match="at least 20"):
        OwnSettings(PROMPTS[:3], Vowels())

    class Mute(Vowels):
        def score(self, texts):
            return np.full(len(texts), np.nan)

    with pytest.raises(UserError, match="gave no score"):
        find_experts(opened, concept, attribution=ATTRIBUTION, own=own_of(judge=Mute()))


def test_prompts_and_judge_are_none_that_measure(concept, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(f"prompt {number}" for number in range(50)) + "\n")
    toxicity = Toxicity(str(prompts), max_prompts=20, scorer=("tfidf-insults",))
    measured = prepare([toxicity, Speed()], compared=True)
    used = {text.text for text in measured.tasks["toxicity"].writer.prompts}
    found = OwnPlan(str(prompts)).settings(concept, measured=measured)
    assert len(found.prompts) == 30
    assert not used & set(found.prompts)
    kept_apart = "(20 more are kept apart for measuring)"
    assert found.source == f"30 prompts of {prompts} {kept_apart}"
    with pytest.raises(UserError, match="tfidf-insults"):
        OwnPlan(str(prompts), judge="tfidf-insults").settings(concept, measured=measured)
    read = prepare([Perplexity(str(prompts), max_texts=10)], compared=True)
    assert len(OwnPlan(str(prompts)).settings(concept, measured=read).prompts) == 40
    all_of_them = prepare([Toxicity(str(prompts), scorer=("wordlist",))], compared=True)
    with pytest.raises(UserError, match="`own_prompts`"):
        OwnPlan(str(prompts)).settings(concept, measured=all_of_them)


def words_of(text):
    return "".join(c if c.isalnum() else " " for c in text.casefold()).split()


def are_alike(one, other):
    """Slowly, word by word: the same text, or more than half of the longer one in common."""
    one, other = words_of(one), words_of(other)
    common = len([*takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))])
    return one == other or common > max(len(one), len(other)) / 2


_SHORT = st.lists(st.sampled_from(["stay", "here", "Ärger", "no", "don't"]), min_size=1, max_size=7)
_WRITTEN = (str.upper, str.title, lambda t: t.replace(" ", "  ") + " …", lambda t: f"“{t}”!")


@settings(max_examples=25)
@given(
    st.lists(_SHORT.map(" ".join), min_size=8, max_size=30, unique=True),
    st.integers(1, 30),
    st.integers(0, 2**32 - 1),
    st.sampled_from(_WRITTEN),
)
def test_no_prompt_of_own_samples_is_measured(concept, shared, most, seed, write):
    """Whatever else the files have in common, and however it is written there."""
    other = [f"{number} {text}" for number, text in enumerate(shared * 3)]
    with TemporaryDirectory() as folder:
        toxic, ordinary, prose = (Path(folder) / name for name in ("toxic", "ordinary", "prose"))
        toxic.write_text("\n".join([*other, *map(write, shared)]))
        ordinary.write_text("\n".join([*shared, *map(write, other[:5])]))
        prose.write_text("\n".join(map(write, other[-5:])))
        measures = [
            Toxicity(str(toxic), max_prompts=most, scorer="wordlist"),
            OrdinaryToxicity(prompts=str(ordinary), scorer="wordlist", max_prompts=most),
            Perplexity(str(prose)),
        ]
        measured = prepare(measures, compared=True, seed=seed)
        for plan in (OwnPlan(str(toxic), "concept"), OwnPlan(judge="concept", max_prompts=60)):
            try:
                found = plan.settings(concept, seed=seed, measured=measured)
            except UserError as error:
                assert "`own_prompts`" in str(error)  # noqa: PT017 - both are right
                assert plan.prompts != AUTO
                continue
            assert not [(p, t) for p in found.prompts for t in measured.texts if are_alike(p, t)]
            if plan.prompts == AUTO:
                assert len(found.prompts) == 60
                left = [
                    text.text
                    for text in read_texts(str(toxic))
                    if not any(are_alike(text.text, used) for used in measured.texts)
                ]
                taken = set(found.prompts) & set(left)
                assert len(taken) == min(60, len(left))
                some = f"{len(taken)} of {len(left)} prompts"
                said = some if len(left) > 60 else counted(len(left), "prompt")
                assert found.source.startswith(f"{said} of {toxic}") or not left
                assert (KIT_PROMPTS in found.source) == (len(left) < 60)


def test_a_run_on_a_users_prompts_takes_the_others_of_them_and_resumes(
    open_tiny, concept, tmp_path, monkeypatch
):
    """Interrupted while it writes and while it attributes, it ends in the same bytes."""
    prompts, prose = tmp_path / "prompts.txt", tmp_path / "prose.txt"
    prompts.write_text("\n".join(PROMPTS) + "\n" + "\n".join(map(str.upper, sentences(9, 5))))
    prose.write_text("\n".join(sentences(12, 6)))
    measure = Toxicity(str(prompts), max_prompts=4, continuations=1, scorer="wordlist")
    taken = RunSettings(
        "contrast",
        own=OwnPlan(max_prompts=24, continuations=2, new_tokens=4),
        attribution=AttributionSettings(20),
        measures=[measure],
        clean=str(prose),
    )
    model = open_tiny("llama").ref.path
    whole = run(model, concept, tmp_path / "whole", taken)
    target = tmp_path / "cut"
    for owner, name, calls in ((written, "generate", 0), (attribution.Whole, "run", 2)):
        with interrupted(monkeypatch, owner, name, calls):
            run(model, concept, target, taken)
    cut = run(model, concept, target, taken)
    assert cut.expertise.read_bytes() == whole.expertise.read_bytes()
    weights = "model.safetensors"
    assert (target / weights).read_bytes() == (tmp_path / "whole" / weights).read_bytes()
    about = Expertise.load(cut.expertise).metadata
    left = [text for text in read_texts(str(prompts)) if text not in measure.chosen(0)]
    assert len(left) == 25
    said = f"24 of 25 prompts of {prompts} (4 more are kept apart for measuring)"
    assert about["own_prompts"] == said


@pytest.mark.parametrize("use", ["auto", "on", "off"])
def test_own_samples_are_continuations_unless_chat_is_on(concept, use):
    """Those that are a concept themselves are replies wherever there is a template."""
    plan, chat = OwnPlan("kit:ordinary", "wordlist", 20), Chat(use)
    assert plan.settings(concept, chat=chat).chat.use == {"auto": "off"}.get(use, use)
    assert plan.settings(None, chat=chat).chat == chat


def test_a_plan_counts_own_samples_as_long_as_they_can_become(open_tiny, concept):
    opened, taken = open_tiny("llama"), own_of()
    plan = plan_find(opened.ref, concept, attribution=ATTRIBUTION, own=taken)
    prompts = encode_prompts(opened, taken.prompts, max_tokens=128, new_tokens=taken.new_tokens)
    most = sum(len(prompt) + taken.new_tokens for prompt in prompts) * taken.continuations
    assert plan.written_tokens == most
    samples = own.sample(opened, taken, batch_tokens=64, journal=None, ranks=Ranks())
    assert sum(len(text.ids) for text in samples.texts) <= most
    without = plan_find(opened.ref, concept, attribution=ATTRIBUTION)
    assert without.written_tokens == 0
    assert without.attributed_tokens == plan.attributed_tokens
    with pytest.raises(UserError, match="need attribution"):
        plan_find(opened.ref, concept, own=taken)


def test_what_evaluate_takes_by_default_is_left_to_it(concept):
    """Where nothing is measured yet."""
    for seed in (0, 1):
        usual = prepare([Toxicity(scorer="wordlist")], compared=True, seed=seed)
        found = OwnPlan(judge="concept").settings(concept, seed=seed)
        assert len(found.prompts) == 300
        assert not usual.texts & set(found.prompts)


def test_conversations_that_are_measured_are_no_prompts_of_own_samples(concept, tmp_path, capsys):
    turns = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Yes?"}]
    rows = [
        {"messages": [*turns, {"role": "user", "content": f"{n} is a number"}]} for n in range(9)
    ] + [{"messages": [{"role": "user", "content": f"{n} is said alone"}]} for n in range(30)]
    file = tmp_path / "conversations.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    measured = prepare([Toxicity(str(file), max_prompts=5, scorer="wordlist")], compared=True)
    found = OwnPlan(judge="concept", max_prompts=20).settings(concept, measured=measured)
    assert all("alone" in prompt for prompt in found.prompts)
    assert "9 conversations among the prompts" in capsys.readouterr().err
    with pytest.raises(UserError, match="conversations"):
        OwnPlan(str(file), "concept").settings(concept, measured=measured)


@pytest.mark.parametrize(
    ("known", "measures", "judge"),
    [
        ("", "wordlist", "concept"),
        ("wordlist", "wordlist", "concept"),
        ("wordlist", None, "wordlist"),
        ("no-such-scorer", None, "concept"),
    ],
)
@pytest.mark.parametrize("new_tokens", [20, 60])  # with 60, thirds are scored as well
def test_the_judge_is_the_scorer_that_is_known_unless_it_measures(
    concept, known, measures, judge, new_tokens, tmp_path, capsys
):
    (tmp_path / "prompts.txt").write_text("\n".join(f"prompt {n}" for n in range(50)) + "\n")
    (tmp_path / "measured.txt").write_text("other\n")
    measured = measures and prepare(
        [Toxicity(str(tmp_path / "measured.txt"), scorer=(measures,), new_tokens=new_tokens)],
        compared=True,
    )
    known_by = replace(concept, judge=known)
    plan = OwnPlan(str(tmp_path / "prompts.txt"))
    assert plan.settings(known_by, measured=measured).judge.name == judge
    assert ("probe of the model instead" in capsys.readouterr().err) == (
        bool(known) and judge == "concept"
    )


@pytest.mark.parametrize(
    ("known", "settings", "measured_by", "judge", "said"),
    [
        ("wordlist", RunSettings(), None, "wordlist", "the judge is wordlist"),
        ("", RunSettings(), None, None, "no scorer is known"),
        ("", RunSettings(own=True), None, "concept", "the judge is concept"),
        ("wordlist", RunSettings(), "wordlist", None, "that measures the edit"),
        ("no-such-scorer", RunSettings(), None, None, "no-such-scorer"),
        ("wordlist", RunSettings("aura"), None, None, ""),
        ("wordlist", RunSettings(own=False), None, None, ""),
        ("wordlist", RunSettings(settings={"evidence": "corpus"}), None, None, ""),
    ],
)
def test_a_run_takes_own_samples_where_a_judge_is_known_and_free(
    concept, known, settings, measured_by, judge, said, tmp_path, capsys
):
    """Otherwise, if they were not asked for, it says why it does without."""
    (tmp_path / "measured.txt").write_text("other\n")
    measured = measured_by and prepare(
        [Toxicity(str(tmp_path / "measured.txt"), scorer=(measured_by,))], compared=True
    )
    plan, own = decide_own(settings.decided(), replace(concept, judge=known), measured)
    assert (plan is None) == (own is None) == (judge is None)
    if own is not None:
        assert own.judge.name == judge
    err = capsys.readouterr().err
    assert said in err if said else not err


@pytest.mark.parametrize("name", ["insults", "toxicity"])
def test_what_a_built_in_concept_names_is_a_scorer(name):
    loaded = load_concept(name, max_per_class=20)
    assert open_scorer(loaded.judge, device=torch.device("cpu")).name == loaded.judge


def test_contrast_takes_own_samples_along(open_tiny, concept):
    expertise = find_experts(open_tiny("llama"), concept, attribution=ATTRIBUTION, own=own_of())
    by = {kind: dampen(expertise, "contrast", evidence=kind) for kind in ("all", "corpus", "own")}
    without = {
        site: {name: of for name, of in found.items() if "own" not in name}
        for site, found in expertise.statistics.items()
    }
    corpus_alone = contrast(type(expertise)(without, expertise.metadata))
    assert corpus_alone.fingerprint == by["corpus"].fingerprint
    assert any((by["all"].factors[s] != by["own"].factors[s]).any() for s in expertise.sites)
    with pytest.raises(UserError, match="attribution_own"):
        contrast(type(expertise)(without, expertise.metadata), evidence="own")


def test_together_is_best_for_the_shares_of_what_each_could_gain():
    draw = np.random.default_rng(0)
    cost = draw.uniform(0.1, 2, 40)
    one, other = draw.normal(size=(2, 40))
    budget = 0.5
    alone = [amounts(b, cost, budget) @ b for b in (one, other)]
    known, scaled, noisy = (Benefit(b, b * k) for b, k in ((one, 1), (other, 1), (other, 0)))
    larger = Benefit(1000 * other, 1000 * other)

    def shares(d):
        return d @ one / alone[0] + d @ other / alone[1]

    best = amounts(together([known, scaled], cost, budget), cost, budget)
    same = amounts(together([known, larger], cost, budget), cost, budget)
    np.testing.assert_allclose(best, same)  # whatever the units
    without = amounts(together([known, noisy], cost, budget), cost, budget)
    np.testing.assert_allclose(without, amounts(one, cost, budget))  # all noise
    for _ in range(200):
        d = np.clip(best + draw.normal(scale=0.2, size=40), 0, 1)
        d *= min(1, np.sqrt(budget / (0.5 * d**2 @ cost)))
        assert shares(d) <= shares(best) + 1e-9
