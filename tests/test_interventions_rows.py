"""Rules that change at most so many neurons of each site."""

from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sordino.errors import UserError
from sordino.expertise.artefact import Expertise
from sordino.interventions import RULES, Dampening, aura, dampen, family
from sordino.interventions.rows import AtMost
from sordino.interventions.rules.contrast import amounts


def everything(seed, sizes=(5, 9, 3)):
    """An expertise that every rule can be used on."""
    random, found = np.random.default_rng(seed), {}
    for number, size in enumerate(sizes):
        auroc = random.uniform(0, 1, size).astype(np.float32)
        found[f"layers.{number}.mlp"] = {
            "auroc": auroc,
            "stratified_auroc": auroc[::-1].copy(),
            **{
                name: random.normal(size=size).astype(np.float32)
                for name in ("mean_positive", "mean_negative", "attribution_positive")
            },
            "attribution_negative": np.zeros(size, np.float32),
            "attribution_variance": np.zeros(size, np.float32),
            "transport_scale": random.uniform(0.5, 1.5, size).astype(np.float32),
            "cost": random.uniform(0.1, 2, size).astype(np.float32),
        }
    return Expertise(found, {"n_positive": "30", "n_negative": "40"})


def changed(dampening, site):
    return (dampening.factors[site] != 1) | (dampening.shifts.get(site, 0) != 0)


@pytest.mark.parametrize("rule", list(RULES))
@pytest.mark.parametrize("rows", [1, 3, 100])
def test_every_rule_changes_at_most_so_many_of_each_site(rule, rows):
    expertise, own = everything(1), {"k": 12} if rule in ("damp", "det_zero") else {}
    whole = dampen(expertise, rule, **own)
    limited = dampen(expertise, rule, rows=rows, **own)
    assert limited.settings["rows"] == rows
    assert "rows" not in whole.settings
    for site in whole.factors:
        assert changed(limited, site).sum() <= rows
        if rows == 100:
            np.testing.assert_allclose(limited.factors[site], whole.factors[site], atol=1e-6)
        elif not RULES[rule].limits:  # what is left is as it was
            kept = changed(limited, site)
            np.testing.assert_array_equal(limited.factors[site][kept], whole.factors[site][kept])
            assert changed(whole, site).sum() <= rows or kept.sum() == rows


@given(st.integers(0, 2**31), st.integers(1, 6))
def test_what_is_kept_changes_most(seed, rows):
    expertise = everything(seed)
    whole, limited = aura(expertise), dampen(expertise, "aura", rows=rows)
    for site, factors in whole.factors.items():
        kept = changed(limited, site)
        left = changed(whole, site) & ~kept
        if left.any():
            assert np.abs(1 - factors[left]).max() <= np.abs(1 - factors[kept]).min()


def test_where_factors_are_equal_the_largest_shifts_are_kept():
    shifts = np.array([0.5, -3, 1, 2], np.float32)
    moved = Dampening({"a": np.ones(4, np.float32)}, "x", shifts={"a": shifts}).limited(2)
    np.testing.assert_array_equal(moved.shifts["a"], [0, -3, 0, 2])


def objective(found, benefit):
    return float((found * benefit).sum())


@settings(max_examples=30)
@given(st.integers(0, 2**31), st.floats(1e-4, 1), st.integers(1, 3))
def test_contrast_takes_the_rows_that_gain_most_under_the_budget(seed, budget, rows):
    """The oracle tries every choice of rows; Lagrange's may miss the best where λ's jumps."""
    random, sizes = np.random.default_rng(seed), (4, 5)
    benefit = random.normal(size=9)
    cost = random.uniform(0.05, 2, 9)
    found = amounts(benefit, cost, budget, at_most=AtMost(rows, sizes))
    assert all(np.count_nonzero(part) <= rows for part in np.split(found, [4]))
    assert 0.5 * (found**2 * cost).sum() <= budget * (1 + 1e-9)
    best = 0.0
    for first, second in product(combinations(range(4), rows), combinations(range(4, 9), rows)):
        allowed = np.zeros(9)
        allowed[[*first, *second]] = benefit[[*first, *second]]
        best = max(best, objective(amounts(allowed, cost, budget), benefit))
    assert objective(found, benefit) >= 0.9 * best
    unlimited = amounts(benefit, cost, budget)
    assert objective(found, benefit) <= objective(unlimited, benefit) * (1 + 1e-9)


def test_contrast_uses_the_whole_budget_on_fewer_rows():
    random = np.random.default_rng(3)
    benefit, cost = random.normal(size=400), random.uniform(0.5, 2, 400)
    for rows in (5, 20, 100):
        found = amounts(benefit, cost, 0.3, at_most=AtMost(rows, (200, 200)))
        assert 0.5 * (found**2 * cost).sum() == pytest.approx(0.3, rel=1e-6)
    np.testing.assert_array_equal(
        amounts(benefit, cost, 0.3, at_most=AtMost(200, (200, 200))), amounts(benefit, cost, 0.3)
    )


def test_sizes_are_turned_under_the_limit():
    expertise = everything(5)
    for rule in ("aura", "contrast", "damp"):
        sizes = family(expertise, rule, rows=2)
        for dial in (0.02, 1, 3):
            assert all(changed(sizes(dial), site).sum() <= 2 for site in expertise.sites)


def test_a_wrong_limit_is_refused():
    for rule, own in [("aura", {}), ("contrast", {})]:
        with pytest.raises(UserError, match="rows is 0: it must be 1 or more"):
            dampen(everything(1), rule, rows=0, **own)
    with pytest.raises(UserError, match="takes a whole number or none for rows, not 'few'"):
        dampen(everything(1), "aura", rows="few")
    assert "rows" not in dampen(everything(1), "contrast", rows="none").settings
