"""Several dampenings one after the other."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from families import tiny_model, tiny_tokenizer
from sordino.errors import UserError
from sordino.expertise.artefact import Expertise
from sordino.interventions import Dampening, aura, compose, dampening_from
from sordino.models.sites import find_sites

NUMBERS = st.floats(-4, 4, width=32)


@st.composite
def dampenings(draw, sites=("a", "b", "c"), neurons=3):
    """Some of the sites, each with factors and, for some, shifts."""

    def values():
        return draw(hnp.arrays(np.float32, neurons, elements=NUMBERS))

    chosen = draw(st.lists(st.sampled_from(sites), min_size=1, unique=True))
    shifted = [site for site in chosen if draw(st.booleans())]
    rule = draw(st.sampled_from(["aura", "mean_shift"]))
    concept = {"concept": draw(st.sampled_from(["insults", "threats"])), "model": "org/name"}
    return Dampening(
        {site: values() for site in chosen},
        rule,
        draw(st.sampled_from([0.5, 1.0])),
        expertise=concept,
        shifts={site: values() for site in shifted},
    )


def outputs(dampening, site, z):
    """What becomes of an output, in float64."""
    scale = dampening.factors.get(site, np.ones(1, np.float32)).astype(np.float64)
    return z * scale + dampening.shifts.get(site, np.zeros(1, np.float32))


@given(st.lists(dampenings(), min_size=1, max_size=5), hnp.arrays(np.float64, 3, elements=NUMBERS))
def test_it_does_what_they_do_one_after_the_other(several, z):
    composed = compose(several)
    for site in {site for one in several for site in one.factors}:
        expected, size = z, np.abs(z).max()
        for one in several:
            expected = outputs(one, site, expected)
            size = 4 * size + 4
        tolerance = 1e-6 * size
        np.testing.assert_allclose(outputs(composed, site, z), expected, rtol=1e-6, atol=tolerance)
    assert composed.factors.keys() == {site for one in several for site in one.factors}
    assert composed.shifts.keys() == {site for one in several for site in one.shifts}


@given(dampenings(), dampenings())
def test_factors_are_multiplied_in_any_order(a, b):
    one, other = compose([a, b]), compose([b, a])
    for site, factors in one.factors.items():
        product = np.float32(1) * a.factors.get(site, np.ones(3, np.float32))
        product = product * b.factors.get(site, np.ones(3, np.float32))
        np.testing.assert_array_equal(factors, product)
        np.testing.assert_array_equal(factors, other.factors[site])


@given(dampenings(), dampenings(), dampenings())
def test_it_is_recorded_what_was_composed_and_survives_a_file(tmp_path_factory, a, b, c):
    both = compose([a, b])
    assert both.parts == (a.record, b.record)
    assert both.strength == 1
    nested = compose([both.scaled(0.5), c])
    assert nested.origins == [a.expertise, b.expertise, c.expertise]
    assert nested.record.parts[0].intervention.strength == 0.5
    assert nested.expertise["model"] == "org/name"
    assert set(nested.expertise["concept"].split("+")) == {
        one.expertise["concept"] for one in (a, b, c)
    }
    file = tmp_path_factory.mktemp("composed") / "x.safetensors"
    nested.save(file)
    assert Dampening.load(file).record == nested.record


def test_one_alone_stays_itself():
    only = Dampening({"a": np.ones(2, np.float32)}, "aura", 0.3)
    assert compose([only]) is only


def test_what_does_not_fit_is_refused():
    small, large = (Dampening({"a": np.full(n, 1e30, np.float32)}, "aura") for n in (2, 3))
    with pytest.raises(UserError, match=r"a has 2 factors .* 3 in another"):
        compose([small, large])
    with pytest.raises(UserError, match="not all finite"):
        compose([small, small])


@pytest.mark.parametrize("family", ["gpt2", "opt", "llama"])
def test_hooks_put_on_one_after_the_other_do_the_same(family):
    model = tiny_model(family)
    generator = np.random.default_rng(0)

    def random(kinds):
        sites = {s.path: s.neurons for s in find_sites(model) if kinds(s)}
        return Dampening(
            {path: generator.uniform(0, 1.2, n).astype(np.float32) for path, n in sites.items()},
            "aura",
            shifts={
                path: generator.normal(0, 0.2, n).astype(np.float32) for path, n in sites.items()
            },
        )

    first, second = random(lambda site: site.layer < 3), random(lambda site: site.layer > 0)
    ids = torch.tensor([tiny_tokenizer()("the otter in the sea")["input_ids"]])
    with torch.no_grad():
        with first.applied(model), second.applied(model):
            expected = model(ids).logits
        with compose([first, second]).applied(model):
            found = model(ids).logits
        with compose([second, first]).applied(model):
            swapped = model(ids).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert (swapped - expected).abs().max() > 0.01


def test_a_file_gives_what_is_saved_or_what_a_rule_makes_of_it(tmp_path):
    metadata = dict.fromkeys(
        ("architecture", "concept", "concept_fingerprint", "model", "weights_fingerprint"), "x"
    )
    metadata |= {"n_positive": "4", "n_negative": "4"}
    expertise = Expertise({"a": {"auroc": np.array([0.4, 0.7], np.float32)}}, metadata)
    expertise.save(tmp_path / "expertise")
    aura(expertise).save(tmp_path / "dampening")
    for name in ("expertise", "dampening"):
        found = dampening_from(tmp_path / name, strength=0.5)
        np.testing.assert_allclose(found.factors["a"], [1, 0.8], rtol=1e-6)
        assert found.strength == 0.5
    silenced = dampening_from(tmp_path / "expertise", "det_zero", k="1")
    np.testing.assert_array_equal(silenced.factors["a"], [1, 0])
    (tmp_path / "neither").write_bytes(b"neither")
    for name, message in {"neither": "not a safetensors file", "none": "not exist"}.items():
        with pytest.raises(UserError, match=message):
            dampening_from(tmp_path / name)


def test_only_dampenings_are_composed():
    statistics = {"auroc": np.full(3, 0.5, np.float32)}
    with pytest.raises(UserError, match="composed, and not a Expertise"):
        compose([Expertise({"a": statistics}, {})])
    with pytest.raises(UserError, match="no dampening to compose"):
        compose([])


def test_a_strength_is_a_number():
    with pytest.raises(UserError, match="`strength=much` is not a number"):
        Dampening({"a": np.ones(3, np.float32)}, "aura").scaled("much")
