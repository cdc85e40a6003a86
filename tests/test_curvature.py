"""Costs of neurons together: the scores, the solver, and what it foretells."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize

from sordino.errors import UserError
from sordino.expertise import AttributionSettings, SweepSettings, attribution
from sordino.expertise.attribution import passages, scores_by_text
from sordino.expertise.find import find_experts
from sordino.expertise.statistic import Statistic
from sordino.interventions import Dampening
from sordino.interventions.curvature import Curvature, amounts_together
from sordino.interventions.rules.contrast import amounts
from sordino.models.chat import Chat
from sordino.tuning.calibration import Yardstick
from test_chat_find import opened_with, sentences

SETTINGS = AttributionSettings(25)


def looked_at(opened, concept):
    return scores_by_text(opened, passages(opened, concept, SETTINGS, 128, 2048), SETTINGS.seed)


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
def test_the_cost_is_the_mean_square_of_the_scores(family, open_tiny, concept):
    opened = open_tiny(family)
    scores, tokens = looked_at(opened, concept)
    cost = find_experts(opened, concept, attribution=SETTINGS)[Statistic.COST]
    expected = np.concatenate([cost[site.path] for site in opened.sites])
    found = Curvature(scores, tokens, 0.3).costs
    known = ~np.isnan(expected)  # few texts reached some experts
    np.testing.assert_allclose(found[known], expected[known], rtol=1e-4, atol=1e-12)
    assert scores.shape == (expected.size, 25)


def test_the_same_tokens_are_drawn_in_a_chat_template(tmp_path, monkeypatch):
    opened, concept, chat = opened_with(folder=tmp_path), sentences(20), Chat("on")
    draw, drawn = attribution._draw, []

    def note(*given):
        drawn.append(draw(*given))
        return drawn[-1]

    monkeypatch.setattr(attribution, "_draw", note)
    settings, sweep = AttributionSettings(20), SweepSettings(chat=chat, batch_tokens=400)
    cost = find_experts(opened, concept, settings=sweep, attribution=settings)[Statistic.COST]
    first = drawn.copy()
    drawn.clear()
    work = passages(opened, concept, settings, sweep.max_tokens, sweep.batch_tokens, chat)
    scores, tokens = scores_by_text(opened, work, settings.seed)
    assert all(map(torch.equal, first, drawn))
    assert len(first) == len(drawn) > 0
    expected = np.concatenate([cost[site.path] for site in opened.sites])
    found = Curvature(scores, tokens, 0.3).costs
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-12)


def test_changes_together_cost_what_is_foretold(open_tiny, concept):
    """Which neurons alone do not: all are turned down together by about as much."""
    opened = open_tiny("llama")
    draw = np.random.default_rng(0)
    # Many draws of tokens for each sentence: what is left is the estimate itself.
    work = passages(opened, concept, SETTINGS, 128, 2048)
    drawn = [scores_by_text(opened, work, seed) for seed in range(0, 20_000, 1000)]
    scores = np.concatenate([of for of, _ in drawn], axis=1)
    tokens = sum(count for _, count in drawn)
    changes = draw.uniform(0.02, 0.06, len(scores))
    ends = np.cumsum([site.neurons for site in opened.sites])[:-1]
    factors = {
        site.path: (1 - part).astype(np.float32)
        for site, part in zip(opened.sites, np.split(changes, ends), strict=True)
    }
    measured = Yardstick(opened, concept.negative).divergence(Dampening(factors, "hand"))
    together = Curvature(scores, tokens, 0.0).divergence(changes)
    alone = Curvature(scores, tokens, 1.0).divergence(changes)
    assert together == pytest.approx(measured, rel=0.35)
    assert abs(np.log(together / measured)) < abs(np.log(alone / measured))


@st.composite
def problems(draw):
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    neurons, texts = draw(st.integers(2, 12)), draw(st.integers(1, 8))
    scores = generator.normal(size=(neurons, texts)).astype(np.float32)
    scores *= generator.exponential(size=(neurons, 1)).astype(np.float32) + 0.1
    share = draw(st.sampled_from([0.1, 0.5, 1.0]))
    benefit = generator.normal(size=neurons)
    return benefit, Curvature(scores, texts * 3, share), draw(st.floats(0.01, 0.5))


@given(problems())
def test_no_other_changes_within_the_budget_gain_more(problem):
    benefit, curvature, budget = problem
    found = amounts_together(benefit, curvature, budget)
    assert (found >= 0).all()
    assert (found <= 1).all()
    assert curvature.divergence(found) <= budget * (1 + 1e-9)
    if not (benefit > 0).any():
        assert not found.any()
        return
    other = minimize(
        lambda d: -d @ benefit,
        np.full(benefit.size, 1e-3),
        method="SLSQP",
        bounds=[(0, 1)] * benefit.size,
        constraints={"type": "ineq", "fun": lambda d: budget - curvature.divergence(d)},
        options={"maxiter": 500},
    )
    within = curvature.divergence(np.clip(other.x, 0, 1)) <= budget * 1.001
    if within:
        assert found @ benefit >= np.clip(other.x, 0, 1) @ benefit * 0.995 - 1e-6


@given(problems())
def test_with_all_of_the_diagonal_it_is_contrast(problem):
    benefit, curvature, budget = problem
    alone = Curvature(curvature.scores, curvature.tokens, 1.0)
    found = amounts_together(benefit, alone, budget)
    expected = amounts(benefit, alone.costs, budget)
    np.testing.assert_allclose(found, expected, atol=5e-3)


def test_what_costs_nothing_is_free():
    scores = np.array([[0.0, 0.0], [1.0, 2.0]], np.float32)
    found = amounts_together(np.array([1.0, 1.0]), Curvature(scores, 4, 0.1), 0.01)
    assert found[0] == 1
    assert 0 < found[1] < 1


def test_streamed_models_are_refused(open_tiny, concept):
    from sordino.models.open import open_model

    opened = open_tiny("llama")
    work = passages(opened, concept, SETTINGS, 128, 2048)
    with pytest.raises(UserError, match="layer by layer"):
        scores_by_text(open_model(opened.ref.path, stream=True), work, 0)
