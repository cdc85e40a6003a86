import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.optimize import minimize

from families import FAMILIES, SUPPORTED, everyday
from sordino.errors import UserError
from sordino.expertise import attribution, find
from sordino.expertise.artefact import Expertise
from sordino.expertise.attribution import AttributionSettings
from sordino.expertise.find import find_experts
from sordino.expertise.sweep import SweepSettings
from sordino.interventions import Dampening, contrast
from sordino.models.tokenise import encode


def by_autograd(opened, texts):
    """The derivative of the texts' log-likelihood a token by every factor, in the plain way.

    MoE experts, which are no modules, have tests of their own.
    """
    sites = [site for site in opened.sites if not site.experts]
    factors = {site.path: torch.ones(site.neurons, requires_grad=True) for site in sites}
    handles = [
        opened.model.get_submodule(path).register_forward_hook(lambda _m, _i, z, f=f: z * f)
        for path, f in factors.items()
    ]
    total, tokens = 0.0, 0
    for ids in encode(opened.tokenizer, texts, 128):
        ids = torch.tensor([ids])
        log_p = opened.model(ids, use_cache=False).logits[0, :-1].log_softmax(-1)
        total = total + log_p.gather(-1, ids[0, 1:, None]).sum()
        tokens += ids.shape[1] - 1
    total.backward()
    for handle in handles:
        handle.remove()
    return {path: (f.grad / tokens).numpy() for path, f in factors.items()}


@pytest.mark.parametrize("family", everyday(SUPPORTED, {*FAMILIES, "ctrl", "lfm2"}))
def test_attribution_is_the_derivative_by_each_factor(family, open_tiny, concept):
    opened = open_tiny(family)
    expertise = find_experts(opened, concept, attribution=AttributionSettings(per_class=25))
    drawn = concept.sampled(max_per_class=25, seed=0)
    for name, texts in (("positive", drawn.positive), ("negative", drawn.negative)):
        for path, expected in by_autograd(opened, texts).items():
            found = expertise[f"attribution_{name}"][path]
            np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)


def test_the_variance_is_that_of_means_over_texts(open_tiny, concept):
    opened = open_tiny("llama")
    expertise = find_experts(opened, concept, attribution=AttributionSettings(per_class=25))
    drawn = concept.sampled(max_per_class=25, seed=0)
    expected = dict.fromkeys(expertise.sites, 0.0)
    for texts in (drawn.positive, drawn.negative):
        lengths = [len(ids) - 1 for ids in encode(opened.tokenizer, texts, 128)]
        alone = [by_autograd(opened, [text]) for text in texts]
        for path in expected:
            sums = [one[path] * n for one, n in zip(alone, lengths, strict=True)]
            expected[path] = expected[path] + np.square(sums).sum(axis=0) / sum(lengths) ** 2
    for path, variance in expertise["attribution_variance"].items():
        np.testing.assert_allclose(variance, expected[path], rtol=1e-3, atol=1e-12)


def test_cost_predicts_the_divergence(open_tiny, concept):
    """Averaged over many draws, ½·d²·F is the divergence that dampening by d causes."""
    opened = open_tiny("llama", dtype=torch.float64, num_hidden_layers=1)
    site, neuron, amount = "model.layers.0.mlp.up_proj", 5, 0.05
    drawn = concept.sampled(max_per_class=20, seed=0)
    factors = np.ones(48, np.float32)
    factors[neuron] -= amount
    dampening = Dampening({site: factors}, "one neuron")
    divergence, tokens = 0.0, 0
    with torch.no_grad():
        for ids in encode(opened.tokenizer, drawn.negative, 128):
            ids = torch.tensor([ids])
            p = opened.model(ids).logits[0, :-1].log_softmax(-1)
            with dampening.applied(opened.model):
                q = opened.model(ids).logits[0, :-1].log_softmax(-1)
            divergence += float((p.exp() * (p - q)).sum())
            tokens += len(p)
    costs = []
    for seed in range(0, 40_000, 1000):
        found = find_experts(opened, drawn, attribution=AttributionSettings(20, seed))
        costs.append(float(found.statistics[site]["cost"][neuron]))
    predicted = 0.5 * amount**2 * np.mean(costs)
    error = 0.5 * amount**2 * np.std(costs) / np.sqrt(len(costs))
    assert divergence / tokens == pytest.approx(predicted, abs=4 * error, rel=0.02)
    assert error < predicted / 5


def test_an_interrupted_attribution_goes_on_to_the_same_bytes(
    open_tiny, concept, tmp_path, monkeypatch
):
    opened = open_tiny("gemma2")
    options = {
        "settings": SweepSettings(batch_tokens=48, stratify="length", moments=True, pooling="mean"),
        "attribution": AttributionSettings(20),
    }
    find_experts(opened, concept, output=tmp_path / "whole.safetensors", **options)
    monkeypatch.setattr("sordino.expertise.snapshot.EVERY_S", 0.0)
    monkeypatch.setattr("sordino.expertise.snapshot.SHARE", 0)
    run = attribution.Whole.run
    target = tmp_path / "cut.safetensors"
    for calls in (1, 4, 9):
        left = calls

        def failing(*args):
            nonlocal left
            left -= 1
            if left < 0:
                raise KeyboardInterrupt
            return run(*args)

        monkeypatch.setattr(attribution.Whole, "run", failing)
        with pytest.raises(KeyboardInterrupt):
            find_experts(opened, concept, output=target, **options)
    monkeypatch.setattr(attribution.Whole, "run", run)
    monkeypatch.setattr(find, "Sweep", None)  # the sweep itself was over long ago
    find_experts(opened, concept, output=target, **options)
    assert target.read_bytes() == (tmp_path / "whole.safetensors").read_bytes()


def test_the_model_is_as_it_was(open_tiny, concept):
    opened = open_tiny("llama")
    find_experts(opened, concept, attribution=AttributionSettings(20))
    assert all(parameter.requires_grad for parameter in opened.model.parameters())
    assert not any(module._forward_hooks for module in opened.model.modules())
    assert all(parameter.grad is None for parameter in opened.model.parameters())


POSITIVE = st.floats(1e-4, 1.0)


def expertise_of(benefit, cost):
    half = np.asarray(benefit, np.float32) / 2
    return Expertise(
        {
            "site": {
                "auroc": np.full(len(half), 0.5, np.float32),
                "attribution_positive": half,
                "attribution_negative": -half,
                "attribution_variance": np.zeros_like(half),
                "cost": np.asarray(cost, np.float32),
            }
        },
        {},
    )


@given(
    hnp.arrays(np.float64, 6, elements=st.integers(-20, 20).map(lambda n: n / 20)),
    hnp.arrays(np.float64, 6, elements=POSITIVE),
    st.floats(1e-4, 3),
)
def test_contrast_stays_in_budget_and_only_where_it_helps(benefit, cost, budget):
    amounts = 1 - contrast(expertise_of(benefit, cost), budget=budget).factors["site"]
    assert ((amounts >= 0) & (amounts <= 1)).all()
    assert (amounts[np.float32(benefit) <= 0] == 0).all()
    spent = 0.5 * (amounts.astype(np.float64) ** 2 * cost).sum()
    assert spent <= budget * (1 + 1e-4) + 1e-7
    useful = np.float32(benefit) > 0
    if useful.any() and not (amounts[useful] == 1).all():
        assert spent == pytest.approx(budget, rel=1e-3)


def test_contrast_is_the_best_there_is_within_the_budget():
    generator = np.random.default_rng(0)
    benefit, cost = generator.standard_normal(8), generator.uniform(0.05, 2, 8)
    for budget in (0.01, 0.2, 1.0):
        amounts = 1 - contrast(expertise_of(benefit, cost), budget=budget).factors["site"]
        best = minimize(
            lambda d: -(d @ benefit),
            np.full(8, 0.1),
            bounds=[(0, 1)] * 8,
            constraints={"type": "ineq", "fun": lambda d, b=budget: b - 0.5 * (d**2 * cost).sum()},
        )
        assert amounts @ benefit == pytest.approx(-best.fun, rel=1e-3)
        np.testing.assert_allclose(amounts, best.x, atol=0.02)


def test_what_costs_nothing_is_free():
    amounts = 1 - contrast(expertise_of([1, 1, -1], [0, 1, 0]), budget=0.01).factors["site"]
    assert amounts[0] == 1
    assert 0 < amounts[1] < 1
    assert amounts[2] == 0


SIX = hnp.arrays(np.float32, 6, elements=st.floats(-1, 1, width=32))


@settings(max_examples=20)
@given(
    hnp.arrays(np.float64, 6, elements=st.integers(-20, 20).map(lambda n: n / 20)),
    hnp.arrays(np.float64, 6, elements=POSITIVE),
    SIX,
    SIX,
    hnp.arrays(np.bool_, 6),
    st.sampled_from([0.0, 0.5]),
    st.sampled_from([None, 3]),
)
def test_what_costs_nobody_knows_how_much_stays(benefit, cost, own, spared, lacking, amplify, rows):
    """Also where own samples or refusals say something of it, as of experts that they reached."""
    of = expertise_of(benefit, cost).statistics["site"]
    unknown = np.where(lacking, np.float32(np.nan), np.float32(0))
    of = {name: values if name == "auroc" else values + unknown for name, values in of.items()}
    of |= {"attribution_own": own, "attribution_own_variance": np.zeros_like(own)}
    for statistics in (of, of | {"attribution_refusals": spared}):
        found = contrast(Expertise({"site": statistics}, {}), 0.1, amplify, rows).factors["site"]
        assert (found[lacking] == 1).all()
        # The others' costs alone fill the budget.
        spent = 0.5 * ((1 - found[~lacking].astype(np.float64)) ** 2 * cost[~lacking]).sum()
        assert spent <= 0.1 * (1 + 1e-4) + 1e-7


@pytest.mark.parametrize("rows", [None, 2])
def test_what_refusals_need_nobody_knows_how_much_of_stays(rows):
    of = expertise_of([1, 1, 1, 1], [1, 1, 1, 1]).statistics["site"]
    of |= {"attribution_refusals": np.array([np.nan, -1, 1, 1], np.float32)}
    amounts = 1 - contrast(Expertise({"site": of}, {}), 0.1, rows=rows).factors["site"]
    assert amounts[0] == 0
    assert amounts[1] > 0
    assert amounts[1:] @ of["attribution_refusals"][1:] < 1e-6


def test_mistakes(open_tiny, concept):
    with pytest.raises(UserError, match="budget above 0"):
        contrast(expertise_of([1], [1]), budget=0)
    with pytest.raises(UserError, match="is too few for attribution"):
        AttributionSettings(5)
    with pytest.raises(UserError, match="no 'attribution_positive'"):
        contrast(find_experts(open_tiny("llama"), concept))
