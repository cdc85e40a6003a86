import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sordino.concepts.concept import Concept
from sordino.errors import UserError
from sordino.expertise.artefact import Expertise
from sordino.expertise.auroc import auroc
from sordino.expertise.find import find_experts
from sordino.expertise.strata import length_classes, stratified_auroc
from sordino.expertise.sweep import SweepSettings
from sordino.interventions import aura, selective, stratified


def by_hand(responses, labels, strata):
    """Pairs within strata counted one by one, with van Elteren's weights."""
    won = total = 0.0
    for stratum in set(strata):
        here = strata == stratum
        weight = 1 / (here.sum() + 1)
        p, q = responses[here & labels], responses[here & ~labels]
        won += weight * ((p[:, None] > q).sum() + 0.5 * (p[:, None] == q).sum())
        total += weight * p.size * q.size
    return won / total


@given(st.integers(0, 2**31), st.integers(1, 6))
def test_equals_counting_pairs(seed, count):
    generator = np.random.default_rng(seed)
    responses = np.round(generator.standard_normal((60, 3)), 1).astype(np.float32)
    labels = generator.random(60) < 0.4
    strata = generator.integers(0, count, 60)
    labels[:2], strata[:2] = (True, False), 0
    expected = [by_hand(column, labels, strata) for column in responses.T]
    np.testing.assert_allclose(stratified_auroc(responses, labels, strata), expected, atol=1e-12)


def test_one_stratum_is_the_plain_auroc():
    generator = np.random.default_rng(0)
    responses = generator.standard_normal((50, 4)).astype(np.float32)
    labels = generator.random(50) < 0.5
    one = stratified_auroc(responses, labels, np.zeros(50, np.int64))
    np.testing.assert_allclose(one, auroc(responses, labels), atol=1e-12)


def test_a_neuron_that_knows_only_the_length_knows_nothing_within_it():
    generator = np.random.default_rng(0)
    lengths = np.r_[generator.integers(5, 30, 500), generator.integers(15, 60, 500)]
    labels = np.arange(1000) < 500
    responses = np.sqrt(lengths)[:, None].astype(np.float32)
    assert auroc(responses, labels)[0] < 0.2
    within = stratified_auroc(responses, labels, length_classes(lengths))
    assert 0.3 < within[0] < 0.6


@given(st.lists(st.integers(1, 128), min_size=1, max_size=300))
def test_length_classes_keep_the_order_and_one_length_together(lengths):
    classes = length_classes(lengths)
    assert len(set(classes)) <= 10
    order = np.argsort(lengths, kind="stable")
    assert (np.diff(classes[order]) >= 0).all()
    assert len(set(zip(lengths, classes, strict=True))) == len(set(lengths))


def test_strata_without_both_classes_are_an_error():
    with pytest.raises(UserError, match="stratify"):
        stratified_auroc(np.zeros((4, 1), np.float32), np.array([1, 1, 0, 0], bool), np.arange(4))


def test_find_takes_length_or_the_concept_s_own_strata(open_tiny, concept):
    opened = open_tiny("llama")
    by_length = find_experts(opened, concept, settings=SweepSettings(stratify="length"))
    assert by_length.metadata["stratify"] == "length"
    with pytest.raises(UserError, match="has no strata"):
        find_experts(opened, concept, settings=SweepSettings(stratify="column"))
    parted = Concept(
        concept.name, concept.positive, concept.negative, strata=("a", "b") * 27 + ("a",)
    )
    assert parted.fingerprint != concept.fingerprint
    by_column = find_experts(opened, parted, settings=SweepSettings(stratify="column"))
    for site in by_length.sites:
        assert (by_length["auroc"][site] == by_column["auroc"][site]).all()
        assert (by_length["stratified_auroc"][site] != by_column["stratified_auroc"][site]).any()
    factors = stratified(by_length).factors
    assert any((factors[s] != f).any() for s, f in aura(by_length).factors.items())


def test_strata_follow_their_sentences_when_a_sample_is_drawn():
    texts = [f"sentence {i}" for i in range(80)]
    concept = Concept("x", tuple(texts[:50]), tuple(texts[50:]), strata=tuple(t[9:] for t in texts))
    drawn = concept.sampled(max_per_class=20, seed=3)
    assert [f"sentence {s}" for s in drawn.strata] == list(drawn.sentences)


def test_selective_spares_what_chance_explains():
    generator = np.random.default_rng(0)
    responses = generator.standard_normal((400, 3000)).astype(np.float32)
    labels = np.arange(400) < 200
    responses[:200, :30] += 1.0  # thirty neurons that know
    values = auroc(responses, labels).astype(np.float32)
    metadata = {"n_positive": "200", "n_negative": "200"}
    expertise = Expertise({"site": {"auroc": values}}, metadata)
    chosen = selective(expertise).factors["site"] != 1
    assert chosen[:30].all()
    assert chosen[30:].sum() <= 6  # five in a hundred of what is chosen, give or take
    kept = aura(expertise).factors["site"][chosen]
    np.testing.assert_array_equal(selective(expertise).factors["site"][chosen], kept)
    with pytest.raises(UserError, match="rate between"):
        selective(expertise, rate=1.5)


@given(st.integers(0, 2**31), st.integers(30, 400), st.integers(30, 400))
def test_an_expert_s_sampling_error_is_by_the_sentences_that_reached_it(seed, positive, negative):
    values = np.random.default_rng(seed).normal(0.5, 0.05, 50).clip(0, 1).astype(np.float32)
    reached = {"reached_positive": positive, "reached_negative": negative}
    counts = {name: np.full(50, count, np.int32) for name, count in reached.items()}
    few = Expertise(
        {"site": {"auroc": values}}, {"n_positive": str(positive), "n_negative": str(negative)}
    )
    expertise = Expertise(
        {"site": {"auroc": values} | counts}, {"n_positive": "9000", "n_negative": "9000"}
    )
    factors = selective(expertise).factors["site"]
    np.testing.assert_array_equal(factors, selective(few).factors["site"])
    # An expert that nothing reached has no AUROC, and stays as it is.
    nothing = {"auroc": np.full(50, np.nan, np.float32)}
    nothing |= {name: np.zeros(50, np.int32) for name in reached}
    beside = Expertise({**expertise.statistics, "other": nothing}, expertise.metadata)
    assert (selective(beside).factors["other"] == 1).all()
