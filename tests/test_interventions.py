import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from families import FAMILIES, assert_hooks_equal_baked
from sordino.errors import UserError
from sordino.expertise.artefact import Expertise
from sordino.interventions import RULES, Dampening, aura, damp, dampen, det_zero, shuffled
from sordino.interventions.registry import intervention
from sordino.report.explorer.exploring import explore
from sordino.tuning.calibration import dampening_of, sized

UNIT = st.floats(0, 1, width=32)
OR_NONE = st.one_of(UNIT, st.just(np.nan))


@st.composite
def expertises(draw, elements=UNIT):
    sizes = draw(st.lists(st.integers(1, 12), min_size=1, max_size=4))
    values = {
        f"layers.{i}.mlp": {"auroc": draw(hnp.arrays(np.float32, size, elements=elements))}
        for i, size in enumerate(sizes)
    }
    return Expertise(values, {"concept": "calm"})


def of(*auroc):
    return Expertise({"site": {"auroc": np.array(auroc, np.float32)}}, {})


def test_aura_at_the_paper_s_examples():
    factors = aura(of(0.3, 0.5, 0.6, 0.8, 1.0, np.nan)).factors["site"]
    np.testing.assert_allclose(factors, [1, 1, 0.8, 0.4, 0, 1], atol=1e-6)
    assert factors.dtype == np.float32


@given(expertises())
def test_aura_falls_with_expertise_and_stays_in_range(expertise):
    for site, factors in aura(expertise).factors.items():
        order = np.argsort(expertise["auroc"][site])
        assert (np.diff(factors[order]) <= 0).all()
        assert ((factors >= 0) & (factors <= 1)).all()


@given(expertises(), st.floats(0, 1))
def test_strength_interpolates(expertise, strength):
    full, part = aura(expertise), aura(expertise).scaled(strength)
    for site, factors in part.factors.items():
        np.testing.assert_allclose(factors, 1 - strength * (1 - full.factors[site]), atol=1e-6)
    assert aura(expertise).scaled(0).changed == 0


@given(
    hnp.arrays(np.float32, (2, 5), elements=st.floats(-(2.0**99), 2.0**99, width=32)),
)
def test_a_strength_of_1_changes_no_bit_and_one_of_0_leaves_nothing(values):
    full = Dampening({"site": values[0]}, "hand", 0.3, shifts={"site": values[1]})
    assert full.scaled(1).fingerprint == full.fingerprint
    assert full.scaled(1).strength == 0.3
    assert full.scaled(0).changed == 0


@given(expertises(), st.integers(0, 2**31), st.data())
def test_the_control_permutes_within_each_site(expertise, seed, data):
    control, plain = shuffled(expertise, seed=seed), aura(expertise)
    for site, factors in control.factors.items():
        np.testing.assert_array_equal(np.sort(factors), np.sort(plain.factors[site]))
    again = shuffled(expertise, seed=seed)
    assert all((again.factors[s] == f).all() for s, f in control.factors.items())


@given(expertises(OR_NONE), st.data())
def test_top_k_takes_the_k_highest_of_the_whole_model(expertise, data):
    """Of those that have an AUROC: another neuron is never dampened."""
    k = data.draw(st.integers(0, expertise.neurons))
    silenced = det_zero(expertise, k)
    auroc = np.concatenate(list(expertise["auroc"].values()))
    known = ~np.isnan(auroc)
    chosen = np.concatenate(list(silenced.factors.values())) == 0
    assert chosen.sum() == min(k, known.sum()) == silenced.changed == len(expertise.top(k))
    assert known[chosen].all()
    if 0 < k < known.sum():
        assert auroc[chosen].min() >= auroc[known & ~chosen].max()
    halved = damp(expertise, k)
    for site, factors in halved.factors.items():
        np.testing.assert_array_equal(factors, (1 + silenced.factors[site]) / 2)


def test_rules_by_name():
    assert list(RULES) == [
        *("aura", "contrast", "damp", "det_zero", "linear_transport", "mean_shift"),
        *("selective", "shuffled", "stratified"),
    ]
    by_name = dampen(of(0.9, 0.1, 0.7), "damp", strength=0.5, k="2", factor="0.2")
    np.testing.assert_allclose(by_name.factors["site"], [0.6, 1, 0.6], atol=1e-6)
    assert by_name.intervention == "damp"
    assert by_name.settings == {"k": 2, "factor": 0.2}
    assert by_name.strength == 0.5


@pytest.mark.parametrize(
    ("rule", "settings", "message"),
    [
        ("arua", {}, "did you mean aura"),
        ("nothing_like_it", {}, "There are aura, contrast"),
        ("damp", {}, "needs setting `k="),
        ("damp", {"k": "many"}, "takes a whole number for k, not 'many'"),
        ("damp", {"k": 1, "factor": 3}, "from 0 to 1"),
        ("det_zero", {"k": 4}, "not between 0 and the 3 neurons"),
        ("aura", {"k": 4}, "no setting 'k'"),
        ("aura", {"strength": -0.5}, r"must be from 0 to 1e\+20"),
    ],
)
def test_mistakes_are_named(rule, settings, message):
    with pytest.raises(UserError, match=message):
        dampen(of(0.9, 0.1, 0.7), rule, **settings)


@pytest.mark.parametrize("name", ["strength", "rule", "expertise", "path"])
def test_a_setting_that_is_another_argument_s_name_is_a_mistake_as_well(name, tmp_path):
    expertise = of(0.9, 0.1, 0.7)
    for use in (
        lambda: dampening_of(expertise, settings={name: "2"}),
        lambda: dampening_of(tmp_path / "not-read.safetensors", settings={name: "2"}),
        lambda: sized(None, expertise, 0.1, settings={name: "2"}),
        lambda: explore(expertise, settings={name: "2"}, output=tmp_path / "x.html", top=0),
    ):
        with pytest.raises(UserError, match=f"aura has no setting '{name}'"):
            use()


def test_two_rules_of_one_name_collide():
    def aura(expertise):
        return {}

    with pytest.raises(ValueError, match="two interventions"):
        intervention()(aura)


def random_dampening(opened, seed=0):
    generator = np.random.default_rng(seed)
    return Dampening(
        {s.path: generator.random(s.neurons, np.float32) for s in opened.sites}, "random"
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_hooks_equal_baked_rows(family, open_tiny):
    opened = open_tiny(family)
    assert_hooks_equal_baked(opened, random_dampening(opened), atol=1e-5)


def test_bfloat16_models_stay_bfloat16(open_tiny):
    opened = open_tiny("llama", dtype=torch.bfloat16)
    with random_dampening(opened).applied(opened.model), torch.inference_mode():
        assert opened.model(torch.tensor([[5, 6, 7]])).logits.dtype == torch.bfloat16


def test_hooks_go_when_the_block_fails(open_tiny):
    opened = open_tiny("llama")
    with pytest.raises(RuntimeError), random_dampening(opened).applied(opened.model):
        raise RuntimeError
    assert not any(module._forward_hooks for module in opened.model.modules())


@pytest.mark.parametrize(
    ("factors", "message"),
    [
        ({"model.layers.9.mlp.up_proj": np.ones(48, np.float32)}, "has no module"),
        ({"model.layers.1.mlp.up_proj": np.ones(47, np.float32)}, "has 48 neurons"),
        ({"model.norm": np.ones(32, np.float32)}, "not a linear layer"),
    ],
)
def test_a_dampening_of_another_model_changes_nothing(factors, message, open_tiny):
    opened = open_tiny("llama")
    good = {"model.layers.0.mlp.up_proj": np.zeros(48, np.float32)}
    before = opened.model.model.layers[0].mlp.up_proj.weight.clone()
    with pytest.raises(UserError, match=message):
        Dampening(good | factors, "hand").bake_into(opened.model)
    assert torch.equal(opened.model.model.layers[0].mlp.up_proj.weight, before)


def test_factors_must_be_finite():
    with pytest.raises(UserError, match="not all finite"):
        Dampening({"site": np.array([np.nan], np.float32)}, "hand")
