"""Shifts: the moments, the two rules that use them, and a model in memory."""

import json

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import save_file

from families import FAMILIES, assert_hooks_equal_baked
from sordino.errors import UserError
from sordino.expertise.artefact import Expertise
from sordino.expertise.moments import moments
from sordino.interventions import Dampening
from sordino.interventions.rules.linear_transport import linear_transport
from sordino.interventions.rules.mean_shift import mean_shift

VALUES = st.floats(-100, 100, width=32)


@st.composite
def samples(draw, smallest=1):
    """Responses of both classes, [sentences, neurons], and the labels."""
    neurons = draw(st.integers(1, 4))
    sizes = draw(st.tuples(st.integers(smallest, 9), st.integers(smallest, 9)))
    responses = draw(hnp.arrays(np.float32, (sum(sizes), neurons), elements=VALUES))
    labels = np.array(draw(st.permutations([True] * sizes[0] + [False] * sizes[1])))
    return responses, labels


def expertise_of(responses, labels):
    found = moments(responses, labels)
    auroc = np.full(responses.shape[1], 0.5, np.float32)
    return Expertise({"site": {"auroc": auroc, **found}}, {"concept": "calm"})


def mapped(dampening, responses):
    # In float64: a factor may be near the largest float32.
    return responses.astype(np.float64) * dampening.factors["site"] + dampening.shifts["site"]


def scale_by_repetition(p, q):
    """The oracle: repeat both samples to one size, sort, and fit a line as numpy does."""
    p, q = np.sort(np.repeat(p, q.size)), np.sort(np.repeat(q, p.size))
    return np.polyfit(p.astype(np.float64), q.astype(np.float64), 1)[0]


@given(samples(smallest=2))
def test_the_scale_is_the_regression_of_quantiles(sample):
    responses, labels = sample
    found = moments(responses, labels)
    for neuron, column in enumerate(responses.T):
        p, q = column[labels], column[~labels]
        np.testing.assert_allclose(found["mean_positive"][neuron], p.mean(), rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(found["mean_negative"][neuron], q.mean(), rtol=1e-4, atol=1e-4)
        scale = found["transport_scale"][neuron]
        if np.ptp(p) == 0:
            assert scale == 1
        elif np.ptp(p) > 1e-2:
            np.testing.assert_allclose(scale, scale_by_repetition(p, q), rtol=1e-3, atol=1e-4)
        assert scale >= 0


def test_neurons_of_several_blocks_are_as_alone():
    generator = np.random.default_rng(0)
    responses = generator.normal(size=(21, 300)).astype(np.float32)
    labels = np.arange(21) % 3 == 0
    whole = moments(responses, labels)
    for neuron in (0, 127, 128, 299):
        alone = moments(responses[:, neuron : neuron + 1], labels)
        assert all(alone[name][0] == values[neuron] for name, values in whole.items())


def test_one_class_alone_has_no_moments():
    with pytest.raises(ValueError, match="both classes"):
        moments(np.zeros((3, 2), np.float32), np.ones(3, bool))


@pytest.mark.parametrize("rule", [mean_shift, linear_transport])
@given(sample=samples())
def test_the_positive_mean_becomes_the_negative_one(rule, sample):
    responses, labels = sample
    p, q = responses[labels].astype(float), responses[~labels].astype(float)
    assume(all(spread == 0 or spread > 1e-2 for spread in np.ptp(p, axis=0)))
    after = mapped(rule(expertise_of(responses, labels)), p)
    tolerance = 1e-3 * (1 + np.abs(after).max() + np.abs(q).max())
    np.testing.assert_allclose(after.mean(axis=0), q.mean(axis=0), atol=tolerance)


@given(hnp.arrays(np.float32, (7, 3), elements=VALUES), st.permutations(range(7)))
def test_equal_distributions_stay_as_they_are(responses, order):
    both = np.concatenate([responses, responses[list(order)]])
    expertise = expertise_of(both, np.arange(14) < 7)
    for rule in (mean_shift, linear_transport):
        dampening = rule(expertise)
        np.testing.assert_allclose(mapped(dampening, both), both, rtol=1e-4, atol=1e-4)


@given(st.floats(0.25, 4), st.floats(-5, 5), st.integers(2, 40))
def test_an_affine_difference_is_found_exactly(scale, shift, count):
    generator = np.random.default_rng(count)
    positive = generator.normal(size=(count, 2)).astype(np.float32)
    negative = (scale * positive + shift).astype(np.float32)
    expertise = expertise_of(np.concatenate([positive, negative]), np.arange(2 * count) < count)
    after = mapped(linear_transport(expertise), positive)
    np.testing.assert_allclose(after, negative, rtol=1e-3, atol=1e-3)
    np.testing.assert_array_equal(mean_shift(expertise).factors["site"], [1, 1])


@given(samples(), st.floats(0, 1))
def test_strength_lies_on_the_line_to_the_map(sample, strength):
    responses, labels = sample
    full = linear_transport(expertise_of(responses, labels))
    part = mapped(full.scaled(strength), responses)
    expected = (1 - strength) * responses + strength * mapped(full, responses)
    np.testing.assert_allclose(part, expected, rtol=1e-3, atol=1e-3 * (1 + np.abs(expected).max()))
    none = full.scaled(0)
    assert none.changed == 0
    assert none.shifted == ()


def test_neurons_without_numbers_stay_as_they_are():
    responses = np.array([[np.nan, np.inf, 1], [2, 3, 4], [5, 6, 7], [8, 9, 12]], np.float32)
    expertise = expertise_of(responses, np.array([True, True, False, False]))
    for rule in (mean_shift, linear_transport):
        dampening = rule(expertise)
        np.testing.assert_array_equal(dampening.factors["site"][:2], [1, 1])
        np.testing.assert_array_equal(dampening.shifts["site"][:2], [0, 0])
        assert dampening.shifts["site"][2] != 0
        assert dampening.changed == 1


def test_an_expertise_without_moments_is_refused():
    old = Expertise({"site": {"auroc": np.array([0.7], np.float32)}}, {})
    for rule in (mean_shift, linear_transport):
        with pytest.raises(UserError, match=r"no 'mean_positive'.*find it again"):
            rule(old)


def shifting(opened, seed=0):
    """Random factors for all sites, and shifts for half of the neurons of all but the last one."""
    generator = np.random.default_rng(seed)
    factors = {s.path: generator.uniform(0.5, 1.5, s.neurons) for s in opened.sites}
    shifts = {
        s.path: generator.normal(0, 0.3, s.neurons) * generator.integers(0, 2, s.neurons)
        for s in opened.sites[:-1]
    }
    as32 = [{site: v.astype(np.float32) for site, v in by.items()} for by in (factors, shifts)]
    return Dampening(as32[0], "hand", settings={"k": 3}, expertise={"b": "1"}, shifts=as32[1])


@pytest.mark.parametrize("family", FAMILIES)
def test_hooks_equal_baked_biases(family, open_tiny):
    opened = open_tiny(family)
    assert_hooks_equal_baked(opened, shifting(opened), atol=1e-4)


def test_only_shifted_sites_get_a_bias(open_tiny):
    opened = open_tiny("qwen2")
    dampening = shifting(opened)
    dampening.bake_into(opened.model)
    for site in opened.sites:
        module = opened.model.get_submodule(site.path)
        if site.path in dampening.shifts:
            bias = module.bias.detach().numpy()
            np.testing.assert_array_equal(bias, dampening.shifts[site.path])
        else:
            assert module.bias is None


def test_bfloat16_models_stay_bfloat16(open_tiny):
    opened = open_tiny("llama", dtype=torch.bfloat16)
    dampening = shifting(opened)
    ids = torch.tensor([[5, 6, 7]])
    with torch.inference_mode():
        with dampening.applied(opened.model):
            assert opened.model(ids).logits.dtype == torch.bfloat16
        dampening.bake_into(opened.model)
        assert opened.model(ids).logits.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("shifts", "message"),
    [
        ({"site": np.array([np.inf, 0], np.float32)}, "shifts of site are not all finite"),
        ({"site": np.zeros(3, np.float32)}, "as many factors"),
        ({"other": np.zeros(2, np.float32)}, "as many factors"),
    ],
)
def test_shifts_that_do_not_fit_are_refused(shifts, message):
    with pytest.raises(UserError, match=message):
        Dampening({"site": np.ones(2, np.float32)}, "hand", shifts=shifts)


def test_saved_and_loaded_it_is_the_same(open_tiny, tmp_path):
    dampening = shifting(open_tiny("llama")).scaled(0.5)
    for name in ("a", "b"):
        dampening.save(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    loaded = Dampening.load(tmp_path / "a")
    for values, again in ((dampening.factors, loaded.factors), (dampening.shifts, loaded.shifts)):
        assert list(values) == list(again)
        assert all((again[site] == v).all() for site, v in values.items())
    for name in ("intervention", "strength", "settings", "expertise"):
        assert getattr(loaded, name) == getattr(dampening, name)
    with pytest.raises(UserError, match="force=True"):
        dampening.save(tmp_path / "a")


def _file(path, about, dtype=np.float32):
    save_file({"s.scale": np.ones(2, dtype)}, path, metadata={"sordino": json.dumps(about)})


RULE = {"name": "aura", "strength": 1.0, "settings": {}}
GOOD = {
    "format": "sordino-dampening-1",
    "sites": ["s"],
    "intervention": RULE,
    "expertise": {},
}


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.mkdir(), "is not a file"),
        (lambda path: path.write_bytes(b"nothing"), "not a safetensors file"),
        (lambda path: save_file({"x": np.ones(1)}, path), "dampening format of this version"),
        (lambda path: _file(path, []), "dampening format of this version"),
        (lambda path: _file(path, GOOD | {"sites": ["s", "t"]}), "factors of t"),
        (lambda path: _file(path, GOOD | {"sites": ["s", "s"]}), "a site twice"),
        (lambda path: _file(path, GOOD | {"sites": []}), "sites"),
        (lambda path: _file(path, GOOD | {"sites": None}), "sites"),
        (lambda path: _file(path, GOOD | {"sites": ["t"]}), "s.scale"),
        (lambda path: _file(path, GOOD | {"intervention": "aura"}), "intervention"),
        (lambda path: _file(path, GOOD | {"intervention": RULE | {"strength": -1}}), "strength"),
        (lambda path: _file(path, GOOD | {"intervention": RULE | {"strength": "1"}}), "strength"),
        (lambda path: _file(path, GOOD | {"intervention": RULE | {"settings": [1]}}), "settings"),
        (
            lambda path: _file(path, GOOD | {"intervention": RULE | {"settings": {"rule": 1}}}),
            "settings.*rule",
        ),
        (lambda path: _file(path, GOOD | {"expertise": {"n_positive": 3}}), "n_positive"),
        (lambda path: _file(path, GOOD | {"parts": [{}]}), "parts.0"),
        (lambda path: _file(path, GOOD, np.float64), "dtype F64"),
    ],
)
def test_a_file_that_is_none_is_refused(tmp_path, write, message):
    write(tmp_path / "file")
    with pytest.raises(UserError, match=message):
        Dampening.load(tmp_path / "file")
