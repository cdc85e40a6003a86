import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import roc_auc_score

from sordino.expertise import auroc as kernels
from sordino.expertise import on_device
from sordino.expertise.auroc import auroc, strongest
from sordino.expertise.moments import moments
from sordino.expertise.strata import stratified_auroc

# Few values, so that ties are common; infinities and both zeros among them.
VALUES = st.sampled_from([-np.inf, -1.5, -0.0, 0.0, 1e-30, 1.0, 2.5, np.inf])


@st.composite
def cases(draw, elements=VALUES):
    shape = draw(hnp.array_shapes(min_dims=2, max_dims=2, min_side=2, max_side=40))
    responses = draw(hnp.arrays(np.float32, shape, elements=elements))
    labels = draw(hnp.arrays(np.bool_, shape[0]).filter(lambda y: y.any() and not y.all()))
    return responses, labels


def oracle(responses, labels):
    # scikit-learn refuses infinities; ranks keep the order and the ties.
    ranks = [np.unique(column, return_inverse=True)[1] for column in responses.T]
    return np.array([roc_auc_score(labels, rank) for rank in ranks])


@given(cases())
def test_equals_scikit_learn_with_ties_and_infinities(case):
    responses, labels = case
    np.testing.assert_allclose(auroc(responses, labels), oracle(responses, labels), atol=1e-12)


@given(cases(st.floats(-1e3, 1e3, width=32)))
def test_symmetries(case):
    responses, labels = case
    value = auroc(responses, labels)
    np.testing.assert_allclose(auroc(-responses, labels), 1 - value, atol=1e-12)
    np.testing.assert_allclose(auroc(responses, ~labels), 1 - value, atol=1e-12)
    order = np.random.default_rng(0).permutation(len(labels))
    np.testing.assert_array_equal(auroc(responses[order], labels[order]), value)


def test_many_neurons_of_uneven_classes():
    generator = np.random.default_rng(0)
    responses = np.round(generator.standard_normal((501, 300)), 1).astype(np.float32)
    labels = generator.random(501) < 0.1
    np.testing.assert_allclose(auroc(responses, labels), oracle(responses, labels), atol=1e-12)


def test_not_a_number_spoils_its_neuron_only():
    responses = np.arange(12, dtype=np.float32).reshape(4, 3)
    responses[1, 2] = np.nan
    value = auroc(responses, np.array([False, False, True, True]))
    np.testing.assert_array_equal(value, [1, 1, np.nan])


def test_one_class_is_refused():
    with pytest.raises(ValueError, match="both classes"):
        auroc(np.zeros((3, 2), np.float32), np.ones(3, bool))


@given(
    hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=20), elements=VALUES)
)
def test_strongest_is_a_stable_sort(responses):
    order = np.argsort(-responses, axis=0, kind="stable")[:3]
    expected = np.full((3, responses.shape[1]), -1)
    expected[: len(order)] = order
    np.testing.assert_array_equal(strongest(responses), expected)


DTYPES = st.sampled_from([torch.float32, torch.float16, torch.bfloat16])
# What 16 bits cannot tell apart, and what lies far apart.
NEAR = st.sampled_from([np.nan, -np.inf, -3e38, -1.0, -0.0, 0.0, 1.0, 1.0005, 1.005, 6e4, np.inf])


@given(cases(VALUES | st.floats(-6e4, 6e4, width=16)), DTYPES)
def test_sixteen_bits_are_exact(case, dtype):
    responses, labels = case
    coarse = torch.from_numpy(responses).to(dtype)
    expected = oracle(coarse.float().numpy(), labels)
    np.testing.assert_allclose(auroc(coarse, labels), expected, atol=1e-12)
    if dtype == torch.float16:
        np.testing.assert_array_equal(auroc(coarse.numpy(), labels), auroc(coarse, labels))


@given(cases(NEAR), DTYPES, st.sampled_from([1, 10**9]))
def test_an_accelerator_finds_the_same(case, dtype, block):
    """Its code runs anywhere; here on the processor, in one block or one neuron at a time."""
    responses, labels = case
    values = torch.from_numpy(responses).to(dtype)
    positive, negative = (torch.from_numpy(np.flatnonzero(y)) for y in (labels, ~labels))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(on_device, "BLOCK_BYTES", block)
        twice_u = on_device.twice_u(values, positive, negative)
        best = on_device.strongest(values)
    pairs = len(positive) * len(negative)
    found = np.where(twice_u < 0, np.nan, twice_u / (2.0 * pairs))
    np.testing.assert_array_equal(found, auroc(values, labels))
    np.testing.assert_array_equal(best, strongest(values))


@given(cases(st.integers(-800, 800).map(lambda eighths: eighths / 8)), DTYPES)
def test_an_accelerator_finds_the_same_moments(case, dtype):
    responses, labels = case
    values = torch.from_numpy(responses).to(dtype)
    positive, negative = (torch.from_numpy(np.flatnonzero(y)) for y in (labels, ~labels))
    found = on_device.moments(values, positive, negative)
    for ours, theirs in zip(found, moments(values, labels).values(), strict=True):
        np.testing.assert_allclose(ours.astype(np.float32), theirs, rtol=1e-4, atol=1e-6)


def test_what_is_on_an_accelerator_is_worked_on_there(monkeypatch):
    """Asked for by the tensor's device: "meta" has values nowhere, so only the choice is seen."""
    away = torch.empty(5, 3, device="meta")
    labels = np.array([True, False, True, False, True])
    monkeypatch.setattr(on_device, "twice_u", lambda r, p, n: np.full(r.shape[1], len(p) * len(n)))
    monkeypatch.setattr(on_device, "strongest", lambda r: np.ones((3, r.shape[1]), np.int32))
    monkeypatch.setattr(on_device, "moments", lambda r, p, n: (np.ones(r.shape[1]),) * 3)
    np.testing.assert_array_equal(auroc(away, labels), [0.5] * 3)
    np.testing.assert_array_equal(stratified_auroc(away, labels, np.zeros(5, np.int64)), [0.5] * 3)
    assert strongest(away).shape == (3, 3)
    assert moments(away, labels)["mean_positive"].tolist() == [1, 1, 1]


@pytest.mark.parametrize("sentences", [7, 300])
def test_blocks_do_not_show(monkeypatch, sentences):
    generator = np.random.default_rng(0)
    responses = np.round(generator.standard_normal((sentences, 70)), 1).astype(np.float32)
    labels = np.arange(sentences) % 3 == 0
    whole, best = auroc(responses, labels), strongest(responses)
    monkeypatch.setattr(kernels, "BLOCK", 1)
    monkeypatch.setattr(kernels, "STRONGEST_NEURONS", 9)
    np.testing.assert_array_equal(auroc(responses, labels), whole)
    np.testing.assert_array_equal(strongest(responses), best)


def test_other_types_are_refused():
    with pytest.raises(ValueError, match=r"not torch\.float64"):
        auroc(np.zeros((3, 2)), np.array([True, False, True]))
