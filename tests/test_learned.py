"""Learned factors: their slopes against attribution, the importance weights, what is reached."""

import numpy as np
import pytest
import torch

from sordino.errors import UserError
from sordino.expertise import AttributionSettings
from sordino.expertise.find import find_experts
from sordino.expertise.own import sample
from sordino.expertise.sentences import encode_sentences
from sordino.expertise.statistic import Statistic
from sordino.interventions import contrast
from sordino.models.ranks import Ranks
from sordino.studies import learned
from sordino.studies.learned import Goals, Texts, learn
from sordino.studies.variants import by_changes
from sordino.tuning.calibration import Yardstick, calibrate
from test_own_samples import own_of

BUDGET = 0.01


@pytest.fixture(scope="module")
def goals(open_tiny, concept):
    """A tiny model's goals, its own samples being long enough to be told apart."""
    opened = open_tiny("llama")
    own = own_of(continuations=6, new_tokens=10)
    expertise = find_experts(opened, concept, attribution=AttributionSettings(30), own=own)
    samples = sample(opened, own, batch_tokens=2048, journal=None, ranks=Ranks())
    drawn = concept.sampled(max_per_class=30, seed=0)
    placed = encode_sentences(opened, drawn, 128, None)
    count = len(drawn.positive)
    texts = {
        Statistic.POSITIVE: Texts.of_sentences(placed[:count]),
        Statistic.NEGATIVE: Texts.of_sentences(placed[count:]),
        Statistic.OWN: Texts.of_samples(samples),
    }
    made = Goals(opened, texts, expertise, BUDGET)
    return made.after(learned._before(made))


def everything(goals):
    return {kind: np.arange(len(of.placed)) for kind, of in goals.texts.items()}


def start_of(goals):
    factors = contrast(goals.expertise, BUDGET).factors.values()
    return 1 - np.concatenate([*factors]).astype(np.float64)


def edit(goals, changes):
    return by_changes(goals.expertise, changes, "learned", budget=BUDGET)


def test_at_no_change_slopes_are_contrasts_benefits(goals):
    zeros = np.zeros(goals.flat(Statistic.COST).size)
    values, falls = goals.measure(zeros, everything(goals), slopes=True)
    benefit = goals.flat(Statistic.POSITIVE) - goals.flat(Statistic.NEGATIVE)
    for found, expected in ((falls["corpus"], benefit), (falls["own"], goals.flat(Statistic.OWN))):
        np.testing.assert_allclose(found, expected, rtol=1e-2, atol=1e-4 * np.abs(expected).max())
    assert values["own"] == pytest.approx(0, abs=1e-6)  # weights of a prompt add up to 0


def test_slopes_elsewhere_are_those_of_the_values(goals):
    draw = np.random.default_rng(0)
    here = draw.uniform(0, 0.4, goals.flat(Statistic.COST).size)
    way = draw.normal(size=here.size) * 1e-3
    chosen = everything(goals)
    _, falls = goals.measure(here, chosen, slopes=True)
    ends = [goals.measure(here + sign * way, chosen, slopes=False)[0] for sign in (-1, 1)]
    for goal, fall in falls.items():
        assert fall @ way == pytest.approx((ends[0][goal] - ends[1][goal]) / 2, rel=0.05)


def test_own_is_the_weighted_mean_of_bounded_ratios(goals):
    changes = np.full(goals.flat(Statistic.COST).size, 0.5)
    values, _ = goals.measure(changes, everything(goals), slopes=False)
    texts = goals.texts[Statistic.OWN]
    made = edit(goals, changes)
    ratios = []
    for text in texts.placed:
        found = []
        for there in (made, made.scaled(0)):
            with torch.no_grad(), there.applied(goals.opened.model):
                log_p = goals.opened.model(torch.tensor([text.ids])).logits[0].log_softmax(-1)
            places = range(text.start, len(text.ids))
            found.append(sum(float(log_p[at - 1, text.ids[at]]) for at in places))
        ratios.append(np.exp(found[0] - found[1]))
    assert max(ratios) > 2 > min(ratios)
    expected = np.mean(texts.weights * np.minimum(ratios, 2))
    assert values["own"] == pytest.approx(expected, rel=1e-3)


def reached(goals, changes, chosen):
    values, _ = goals.measure(changes, chosen, slopes=False)
    gains = goals.gains()
    return sum(value / gains[goal] for goal, value in values.items())


def test_more_is_reached_than_by_contrast_at_the_same_divergence(goals, concept, tmp_path):
    """On what was learned from; on held-out texts never less, since the best there counts."""
    yardstick, asked = Yardstick(goals.opened, concept.negative), 0.02

    def scale(changes):
        return calibrate(yardstick, edit(goals, changes).scaled, asked).dial

    start = start_of(goals)
    start = np.minimum(start * scale(start), 1)
    cost = goals.flat(Statistic.COST)
    sized = Goals(goals.opened, goals.texts, goals.expertise, float(0.5 * start**2 @ cost))
    found = learn(sized, start, scale, 0, tmp_path / "state")
    assert ((found >= 0) & (found <= 1)).all()
    assert yardstick.divergence(edit(goals, found)) <= asked * 1.001
    learned_from, held_out = learned._split(goals, 0)
    assert reached(sized, found, held_out) <= reached(sized, start, held_out)
    kept = torch.load(tmp_path / "state", weights_only=True)
    last = kept["changes"].numpy()
    assert reached(sized, last, learned_from) < reached(sized, start, learned_from)
    # Done once more, and from where a kill left it, it is the same.
    state = tmp_path / "again"
    save, calls = torch.save, []

    def failing(*args):
        calls.append(args)
        if len(calls) == 4:
            raise KeyboardInterrupt
        save(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "save", failing)
        with pytest.raises(KeyboardInterrupt):
            learn(sized, start, scale, 0, state)
    np.testing.assert_array_equal(learn(sized, start, scale, 0, state), found)


def test_no_prompt_is_learned_from_and_held_out(goals):
    learned_from, held_out = learned._split(goals, 0)
    groups = goals.texts[Statistic.OWN].groups
    apart, others = (set(groups[of[Statistic.OWN]]) for of in (held_out, learned_from))
    assert not apart & others
    assert len(apart) == 4  # of 20 prompts
    parts = learned._parts(learned_from, 0, 1)
    for kind, chosen in learned_from.items():
        np.testing.assert_array_equal(
            np.sort(np.concatenate([part[kind] for part in parts])), chosen
        )


def test_models_of_experts_are_refused(open_tiny, tmp_path):
    goals = Goals(open_tiny("mixtral"), {}, None, BUDGET)
    with pytest.raises(UserError, match="Learned factors would leave"):
        learn(goals, np.zeros(1), lambda _: 1.0, 0, tmp_path / "state")
