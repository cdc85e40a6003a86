"""A chat model's own refusals are protected: their replies' tokens, and nothing else."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from conftest import interrupted, sentences
from sordino.cli.app import main
from sordino.concepts.concept import Concept
from sordino.errors import UserError
from sordino.evaluation.protection import own_refusals, protect, unsafe_requests
from sordino.evaluation.scorers.refusal import RefusalScorer, refuses
from sordino.expertise import AttributionSettings, Expertise, attribution, written
from sordino.expertise.find import find_experts
from sordino.expertise.refusals import RefusalSettings, find_refusals
from sordino.expertise.statistic import Statistic
from sordino.expertise.sweep import SweepSettings
from sordino.interventions import Dampening, dampen
from sordino.interventions.rules.contrast import amounts, sparing
from sordino.models.chat import Chat
from sordino.models.open import open_model
from sordino.models.ranks import Ranks
from sordino.tuning.calibration import sized
from taught import HELP, REFUSAL, requests, taught

REFUSED, ANSWERED = requests(30), requests(10, 1)
# What refusals say is the concept itself, so that dampening it takes them along.
CONCEPT = Concept(
    "refusing",
    tuple(f"{REFUSAL} {line}" for line in sentences(24, 1)),
    tuple(sentences(24, 2)),
)
TEXTS = tuple(sentences(20, 6))


@pytest.fixture(scope="module")
def speaks(tmp_path_factory):
    return taught(tmp_path_factory.mktemp("speaks"), REFUSED, ANSWERED)


@pytest.fixture
def opened(speaks):
    return open_model(speaks, dtype="float32")


def settings_of(*asked):
    return RefusalSettings(tuple(asked or REFUSED), RefusalScorer())


def attributing(texts=(), refusals=None):
    return AttributionSettings(20, 0, tuple(texts), refusals)


def found_by(opened, settings=None):
    asked = settings or settings_of()
    return find_refusals(opened, asked, Chat(), journal=None, ranks=Ranks())


def likelihood(model, texts):
    """Nats of the replies' tokens, by plain forward passes."""
    total = 0.0
    with torch.no_grad():
        for text in texts:
            log_p = model(torch.tensor([text.ids])).logits[0].double().log_softmax(-1)
            for place in range(text.start, len(text.ids)):
                total += float(log_p[place - 1, text.ids[place]])
    return total


def test_the_protected_tokens_are_the_likeliest_reply_and_no_others(opened):
    found = found_by(opened, settings_of(*REFUSED, *ANSWERED))
    assert (found.asked, len(found.texts)) == (40, 30)
    assert set(found.said) == {REFUSAL}
    tokenizer = opened.tokenizer
    for asked, text in zip(REFUSED, found.texts, strict=True):
        begun = tokenizer.apply_chat_template(
            [{"role": "user", "content": asked}], tokenize=False, add_generation_prompt=True
        )
        assert list(text.ids[: text.start]) == tokenizer(begun, add_special_tokens=False).input_ids
        assert tokenizer.decode(text.ids[text.start :]) == f"{REFUSAL}<|im_end|>"
        with torch.no_grad():
            likeliest = opened.model(torch.tensor([text.ids])).logits[0].argmax(-1).tolist()
        assert list(text.ids[text.start :]) == likeliest[text.start - 1 : -1]
    passages = attribution.in_batches(
        opened,
        Statistic.REFUSALS,
        [text.ids for text in found.texts],
        [text.start for text in found.texts],
        [1] * 30,
        512,
    )
    assert sum(one.counted for one in passages) == sum(
        len(text.ids) - text.start for text in found.texts
    )
    with torch.no_grad():
        nats = sum(
            float(
                attribution._likelihoods(opened.model(one.batch.input_ids).logits, one, 0)[
                    attribution.OBSERVED
                ]
            )
            for one in passages
        )
    assert nats == pytest.approx(likelihood(opened.model, found.texts), rel=1e-4)


def test_attribution_to_refusals_is_the_slope_of_the_replies_likelihood(opened):
    texts = found_by(opened).texts
    tokens = sum(len(text.ids) - text.start for text in texts)
    found = find_experts(opened, CONCEPT, attribution=attributing(refusals=settings_of()))
    measured, expected, amount = [], [], 1 / 64
    for site in found.sites[::2]:
        values = found[Statistic.REFUSALS][site]
        neuron = int(np.abs(values).argmax())
        ends = []
        for change in (amount, -amount):
            factors = np.ones(values.size, np.float32)
            factors[neuron] -= change
            with Dampening({site: factors}, "one").applied(opened.model):
                ends.append(likelihood(opened.model, texts) / tokens)
        measured.append(values[neuron])
        expected.append((ends[1] - ends[0]) / (2 * amount))
    assert len(measured) > 3
    np.testing.assert_allclose(measured, expected, rtol=0.02)


def test_refusals_cost_as_much_as_the_negative_sentences(opened):
    """However few they are; and each protection less is there beside it, from the same sweep."""
    options = {
        "plain": attributing(),
        "texts": attributing(TEXTS),
        "refusals": attributing((), settings_of()),
        "both": attributing(TEXTS, settings_of()),
    }
    found = {name: find_experts(opened, CONCEPT, attribution=of) for name, of in options.items()}
    plain, both, alone = (found[name] for name in ("plain", "both", "refusals"))
    assert any((alone[Statistic.COST][s] != plain[Statistic.COST][s]).any() for s in alone.sites)
    work = attribution.passages(opened, CONCEPT, options["texts"], 128, 2048)
    negative, texts = (
        sum(one.counted for one in work if one.of is of)
        for of in (Statistic.NEGATIVE, Statistic.PROTECTED)
    )
    for site in both.sites:
        # They are no goal: what dampening gains is the same without them.
        for name in (Statistic.NEGATIVE, Statistic.VARIANCE):
            np.testing.assert_array_equal(alone[name][site], plain[name][site])
            np.testing.assert_array_equal(both[name][site], found["texts"][name][site])
    cost = {
        name: np.concatenate([*of[Statistic.COST].values()]).astype(np.float64)
        for name, of in found.items()
    }
    of_refusals = 2 * cost["refusals"] - cost["plain"]
    weighed = (2 * negative + texts) * cost["both"] - (negative + texts) * cost["texts"]
    assert min(of_refusals.min(), weighed.min()) > -1e-6
    # Each sweep draws tokens of its own.
    assert weighed.sum() / negative == pytest.approx(of_refusals.sum(), rel=0.35)
    for less, other in (
        (both.unprotected(), plain),
        (both.without_refusals(), found["texts"]),
        (alone.unprotected(), plain),
        (alone.without_refusals(), plain),
    ):
        assert less.metadata == other.metadata
        for site, of in other.statistics.items():
            assert less.statistics[site].keys() == of.keys()
            for name, values in of.items():
                np.testing.assert_array_equal(less.statistics[site][name], values)
    assert both.metadata["refusals_kept"] == both.metadata["refusals_n_prompts"] == "30"
    assert "patterns_sha256" in both.metadata["refusals_judge_record"]
    with pytest.raises(UserError, match="protected refusals"):
        found["texts"].without_refusals()


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), budget=st.sampled_from([0.001, 0.02, 0.3]))
def test_sparing_is_the_best_change_that_leaves_a_text_alone(seed, budget):
    """By a solver that knows nothing of multipliers."""
    rng = np.random.default_rng(seed)
    benefit, spared = rng.normal(size=(2, 6))
    cost = rng.lognormal(size=6)

    def best(of):
        return amounts(of, cost, budget)

    solved_for = []
    found = sparing(benefit, spared, lambda of: solved_for.append(of.tobytes()) or best(of))
    assert len(solved_for) == len({*solved_for}) <= 18  # nothing is solved twice
    assert found @ spared <= 1e-9
    assert sparing(benefit, spared, best, between=False) @ spared <= 1e-9
    if best(benefit) @ spared <= 0:
        np.testing.assert_array_equal(found, best(benefit))
    solved = minimize(
        lambda d: -d @ benefit,
        np.full(6, 1e-3),
        jac=lambda d: -benefit,
        bounds=[(0, 1)] * 6,
        constraints=[
            {"type": "ineq", "fun": lambda d: budget - 0.5 * (d**2 * cost).sum()},
            {"type": "ineq", "fun": lambda d: -(d @ spared)},
        ],
        method="SLSQP",
        options={"maxiter": 500, "ftol": 1e-12},
    )
    assert found @ benefit >= -solved.fun - 0.01 * (best(benefit) @ benefit)


def test_protected_refusals_fall_less_at_the_same_divergence(tmp_path):
    """Where they are not so sure that no small change could touch them."""
    opened = open_model(taught(tmp_path, REFUSED, ANSWERED, steps=30), dtype="float32")
    protecting = find_experts(opened, CONCEPT, attribution=attributing((), settings_of()))
    texts = found_by(opened).texts
    tokens = sum(len(text.ids) - text.start for text in texts)
    before, lost = likelihood(opened.model, texts), {}
    for name, of in (("plain", protecting.unprotected()), ("protected", protecting)):
        change = sized(
            opened, of, 0.05, intervention="contrast", texts=list(sentences(40, 9, 20)), seed=0
        ).dampening
        with change.applied(opened.model):
            lost[name] = (before - likelihood(opened.model, texts)) / tokens
    assert lost["plain"] > 0.02
    assert lost["protected"] < lost["plain"] * 0.75


def test_a_killed_call_goes_on_to_the_same_bytes(opened, tmp_path, monkeypatch):
    # Prompts of such different lengths are answered in batches of their own.
    longer = [" ".join([line] * times) for times in (4, 16) for line in REFUSED[:5]]
    options = {"attribution": attributing(TEXTS, settings_of(*REFUSED, *longer))}
    whole, target = tmp_path / "whole.safetensors", tmp_path / "cut.safetensors"
    find_experts(opened, CONCEPT, output=whole, **options)
    monkeypatch.setattr("sordino.expertise.snapshot.EVERY_S", 0.0)
    monkeypatch.setattr("sordino.expertise.snapshot.SHARE", 0)
    generate, batches = written.generate, []
    for owner, name, calls in (
        (written, "generate", 1),
        (written, "generate", 1),
        (attribution.Whole, "run", 3),
    ):
        with interrupted(monkeypatch, owner, name, calls):
            find_experts(opened, CONCEPT, output=target, **options)

    def counting(opened, now, *args, **kwargs):
        batches.extend(now)
        return generate(opened, now, *args, **kwargs)

    monkeypatch.setattr(written, "generate", counting)
    find_experts(opened, CONCEPT, output=target, **options)
    assert not batches  # all replies were there
    assert target.read_bytes() == whole.read_bytes()


def test_a_streamed_model_s_refusals_are_the_same(speaks, tmp_path):
    options = {"attribution": attributing(TEXTS, settings_of())}
    for stream in (False, True):
        find_experts(
            speaks, CONCEPT, output=tmp_path / f"{stream}.safetensors", **options, stream=stream
        )
    streamed, whole = (tmp_path / f"{stream}.safetensors" for stream in (True, False))
    assert streamed.read_bytes() == whole.read_bytes()


def test_who_cannot_refuse_is_told_so(opened):
    few = settings_of(*REFUSED[:15], *ANSWERED)
    with pytest.raises(UserError, match=r"refuses 15 of 25 unsafe requests.*at least 20"):
        find_experts(opened, CONCEPT, attribution=attributing((), few))
    with pytest.raises(UserError, match="Only 3 unsafe requests"):
        settings_of(*REFUSED[:3])
    asked = attributing((), settings_of())
    with pytest.raises(UserError, match="leave out `chat=off`"):
        find_experts(opened, CONCEPT, settings=SweepSettings(chat=Chat("off")), attribution=asked)
    opened.tokenizer.chat_template = None
    with pytest.raises(UserError, match="has no chat template in which it could refuse"):
        find_experts(opened, CONCEPT, attribution=asked)


def table(place, refused=REFUSED, answered=ANSWERED):
    rows = [*((one, "unsafe") for one in refused), *((one, "safe") for one in answered)]
    place.write_text("prompt,label\n" + "".join(f"{one},{kind}\n" for one, kind in rows))
    return place


def test_what_is_measured_protects_nothing(tmp_path):
    file = table(tmp_path / "requests.csv")
    assert unsafe_requests(str(file)) == REFUSED
    assert unsafe_requests(str(file), set(REFUSED[:25])) == REFUSED[25:]
    assert own_refusals(str(file), 22).prompts != own_refusals(str(file), 22, 1).prompts
    settings = attributing((), own_refusals(str(file)))
    assert settings.apart_from(set(REFUSED[:10])).refusals.prompts == tuple(REFUSED[10:])
    assert settings.apart_from(()) == settings
    with pytest.raises(UserError, match="Only 15 unsafe requests"):
        settings.apart_from(set(REFUSED[:15]))


def test_several_sets_are_protected_together(tmp_path):
    file, texts = table(tmp_path / "requests.csv"), tmp_path / "texts.txt"
    texts.write_text("\n".join(TEXTS))
    found = protect([str(texts), f"refusals:{file}", str(texts)], 25, 0)
    assert found.texts == TEXTS
    assert len(found.refusals.prompts) == 25
    assert protect([], 25, 0) == ((), None)
    with pytest.raises(UserError, match="several sources"):
        protect(["refusals", f"refusals:{file}"], 25, 0)


def test_find_protects_refusals_by_name(speaks, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    table(tmp_path / "requests.csv")
    for name, lines in (("yes", CONCEPT.positive), ("no", CONCEPT.negative), ("texts", TEXTS)):
        (tmp_path / f"{name}.txt").write_text("\n".join(lines) + "\n")
    asked = [
        *("find", str(speaks), "--concept", "yes.txt", "--negatives", "no.txt", "--attribution"),
        *("--protect", "texts.txt", "--protect", "refusals:requests.csv", "--dtype", "float32"),
    ]
    main([*asked, "-o", "x.expertise.safetensors"])
    found = Expertise.load("x.expertise.safetensors")
    assert found.metadata["n_protected"] == "20"
    assert found.metadata["refusals_prompts"] == "requests.csv"
    assert found.metadata["refusals_kept"] == "30"
    spared, plain = (dampen(of, "contrast").factors for of in (found, found.unprotected()))
    assert any((spared[site] != plain[site]).any() for site in plain)
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main([*asked, "--chat", "off", "-o", "y.expertise.safetensors"])
    assert stopped.value.code == 2
    [said] = [line for line in capsys.readouterr().err.splitlines() if "leave out" in line]
    assert "--chat off" in said
    assert "--protect refusals" in said


def test_the_teacher_taught_what_the_patterns_know():
    assert refuses(REFUSAL)
    assert not refuses(HELP)


def test_settings_are_told_apart_by_what_decides():
    one = settings_of()
    assert replace(one, new_tokens=16).metadata != one.metadata
    assert replace(one, prompts=tuple(REFUSED[:25])).metadata != one.metadata
    assert "0x" not in repr(attributing((), one))  # a run's key is made of it
