import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import roc_auc_score

from sordino.expertise.auroc import auroc, strongest

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
