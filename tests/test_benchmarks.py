"""The benchmarks run, and the page says what they recorded."""

import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as tf
from scipy.stats import rankdata

from benchmarks import costs, enough, parts, tables
from benchmarks.__main__ import ALL
from benchmarks.growth import exponent
from benchmarks.measure import Figure, Options, in_turns, table
from benchmarks.scorers import agreement
from sordino.evaluation import Toxicity
from sordino.models.sites import find_sites
from sordino.pipeline import RECOMMENDED_DIVERGENCE
from sordino.progress import hushed

ROOT = Path(__file__).parents[1]
MACHINE = {"processor": "p", "cores": 2, "amx": False, "gpu": None, "threads": 2}
MACHINE |= {"load_before": 0.1, "torch": "2", "date": "2026-01-01"}
SLOW = {*ALL} - {"rounding", "auroc"}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in ALL],
)
def test_a_benchmark_runs(name, tmp_path):
    options = Options(quick=True, repeats=None, work=tmp_path, output=tmp_path)
    with hushed():
        result = import_module(f"benchmarks.{name}").run(options)
    assert result.name == name
    assert result.seconds or result.figures
    assert all(times and min(times) > 0 for times in result.seconds.values())
    assert all(figure.value == figure.value for figure in result.figures)
    assert not [path for path in tmp_path.iterdir() if any(path.iterdir())]


def test_the_command_writes_a_record_and_a_table(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--quick", "--only", "rounding", "--work", tmp_path],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    record = json.loads((tmp_path / "results/rounding.json").read_text())
    assert record["quick"]
    assert record["machine"]["threads"] >= 1
    assert table(record) in done.stdout
    assert "the figures mean nothing" in done.stdout


def test_the_page_says_what_was_recorded():
    page = tables.PAGE.read_text(encoding="utf-8")
    assert tables.filled(page) == page, "run python -m benchmarks.tables"
    marked = [line.split()[2] for line in page.splitlines() if line.startswith("<!-- figures:")]
    assert sorted(marked) == sorted(ALL)


def test_records_fill_their_places_and_no_other(tmp_path):
    record = {
        "figures": [
            {"what": "a / b", "value": 25.04, "unit": "×", "at_least": 20, "at_most": None}
            | {"met": True},
            {"what": "b", "value": 2.5, "unit": "×", "at_least": None, "at_most": 2, "met": False},
        ],
        "seconds": {"a": [3.0, 1.0, 2.0]},
        "notes": ["A note."],
        "settings": {"sentences": "2,000"},
        "machine": MACHINE,
        "quick": False,
    }
    (tmp_path / "auroc.json").write_text(json.dumps(record))
    page = "# T\n<!-- figures: auroc -->\nold\n<!-- end of figures -->\nkept\n"
    page += "<!-- figures: bake -->\nold\n<!-- end of figures -->\n"
    new = tables.filled(page, tmp_path)
    assert "| a / b | 25 × | ≥ 20 ×, met |" in new
    assert "| b | 2.5 × | ≤ 2 ×, **missed** |" in new
    assert "| a | 2 s | 1 s | 3 s | 3 |" in new
    assert "A note." in new
    assert "\nkept\n" in new
    assert "old" not in new
    assert "Not measured yet: `python -m benchmarks.bake`" in new
    assert tables.filled(new, tmp_path) == new


def test_the_page_says_what_things_cost():
    page = costs.PAGE.read_text(encoding="utf-8")
    assert costs.filled(page) == page, "run python -m benchmarks.costs"
    assert costs.text() in page


def test_a_bar_that_one_run_reached_is_not_called_met():
    figure = {"what": "a / b", "value": 2.0, "unit": "×", "at_least": 1, "at_most": None}
    record = {
        "figures": [figure | {"met": True}],
        "notes": [],
        "settings": {},
        "machine": MACHINE,
        "quick": False,
    }
    once = table(record | {"seconds": {"a": [2.0], "b": [1.0]}})
    assert "| ≥ 1 ×, reached in one run |" in once
    assert "| a | 2 s |" in once
    some_once = table(record | {"seconds": {"a": [2.0], "b": [1.0, 1.0]}})
    assert "| ≥ 1 ×, reached in one run |" in some_once
    assert "| a | 2 s | – | – | 1 |" in some_once
    assert "| ≥ 1 ×, met |" in table(record | {"seconds": {"a": [2.0, 2.0], "b": [1.0, 1.0]}})
    untimed = record | {"seconds": {}}
    assert "| ≥ 1 ×, reached in one run |" in table(untimed | {"runs": 1})
    assert "| ≥ 1 ×, met |" in table(untimed | {"runs": 3})


@pytest.mark.parametrize("shape", costs.SHAPES)
def test_shapes_have_the_weights_of_the_models(shape):
    """As transformers builds them, without values."""
    common = {
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.width,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.key_heads,
        "head_dim": 128,
        "tie_word_embeddings": False,
    }
    if shape.experts:
        config = tf.Llama4TextConfig(
            **common,
            intermediate_size=shape.expert_inner,
            intermediate_size_mlp=shape.inner,
            num_local_experts=shape.experts,
            interleave_moe_layer_step=2,
        )
    else:
        config = tf.LlamaConfig(**common, intermediate_size=shape.inner)
    with torch.device("meta"):
        model = tf.AutoModelForCausalLM.from_config(config)
    # Norms and routers are left out on paper.
    assert shape.weights == pytest.approx(sum(p.numel() for p in model.parameters()), rel=1e-3)
    sites = find_sites(model)
    assert shape.neurons == sum(site.neurons for site in sites)
    by_layer = [sum(s.neurons for s in sites if s.layer == i) for i in range(shape.layers)]
    assert shape.widest == max(by_layer)


def test_more_gpus_are_never_slower():
    for shape in costs.SHAPES:
        for sentences in costs.SENTENCES:
            for parts_of in (costs.find_s, costs.attribution_s):
                times = [costs.longest(parts_of(shape, gpus, sentences)) for gpus in (8, 64)]
                assert times[1] <= times[0]
    dense = costs.SHAPES[0]
    parts = costs.find_s(dense, 1, 10_000)
    # By hand: two operations for each of 68.5 billion weights and 380,000 tokens.
    assert parts["compute"] == pytest.approx(1.1 * 2 * 68.5e9 * 380_000 / 494.5e12, rel=0.01)


def test_ways_take_turns():
    called = []
    ways = {name: lambda name=name: called.append(name) or name for name in "abc"}
    seconds, given = in_turns(ways, 2, between=lambda: called.append("-"))
    assert "".join(called) == "-c-a-b" + "-a-b-c" + "-b-c-a"
    assert given == {"a": "a", "b": "b", "c": "c"}
    assert [len(times) for times in seconds.values()] == [2, 2, 2]
    seconds, _ = in_turns(ways, 5, within_s=0)
    assert [len(times) for times in seconds.values()] == [1, 1, 1]


def test_exponents_of_power_laws():
    sizes = [10, 100, 1000]
    value, low, high = exponent(sizes, [[size**2 for size in sizes], [3 * s**2 for s in sizes]])
    assert value == pytest.approx(2)
    assert low == pytest.approx(2)
    assert high == pytest.approx(2)
    value, low, high = exponent(sizes, [sizes, [size**1.2 for size in sizes]])
    assert value == pytest.approx(1.1)
    # Student's interval of 1 and 1.2: one degree of freedom, 12.706 standard errors of 0.1.
    assert (low, high) == pytest.approx((1.1 - 1.2706, 1.1 + 1.2706), abs=1e-4)
    value, *ends = exponent(sizes, [sizes])
    assert value == pytest.approx(1)
    assert ends == [None, None]  # one round has no scatter


def test_what_more_sentences_give_is_foretold():
    """As others judge it, of neurons with a known truth that are measured with known noise."""
    generator = np.random.default_rng(0)
    neurons, spread = 10_000, 2e-3
    truth = generator.normal(0, spread, neurons) * (generator.random(neurons) < 0.2)
    cost = generator.uniform(0.5, 1.5, neurons)

    def ratios(error):
        """What twice the sentences give, as others judge it and as it is foretold."""
        variance = np.full(neurons, error**2)
        seen = truth + error * generator.standard_normal((4, neurons))
        found = [enough.Estimate(benefit, variance, cost) for benefit in seen]
        [judged] = enough.by_judges(found, 50)
        foretold, *_ = enough.by_variances(found, 50, 200)
        return judged.value, foretold.value

    judged, foretold = ratios(spread)
    assert judged > 1.2
    assert 0.9 * judged < foretold < judged  # it rather ends the growth too early
    assert ratios(spread / 100) == pytest.approx((1, 1), abs=1e-3)  # nothing is left to learn


def test_the_parts_are_those_of_the_demo():
    demo = (ROOT / "Makefile").read_text().split("\ndemo:")[1].split("\n\n")[0]
    assert f"--attribution-per-class {parts.PER_CLASS} " in demo
    assert f"--max-prompts {parts.PROMPTS} " in demo
    assert f"--divergence {RECOMMENDED_DIVERGENCE:g} " in demo
    assert demo.count("--beside ") + 2 == parts.ARMS  # with the original and the edited model
    assert (
        Toxicity.continuations,
        Toxicity.new_tokens,
    ) == (parts.CONTINUATIONS, parts.NEW_TOKENS)


def test_a_figure_shows_its_interval():
    figure = {"what": "exponent", "value": 1.0, "unit": "", "at_least": None, "at_most": None}
    record = {"figures": [figure | {"met": None, "low": 0.9, "high": 1.1}], "seconds": {}}
    record |= {"notes": [], "settings": {}, "quick": False, "machine": MACHINE}
    assert "| exponent | 1 (0.9 to 1.1) |  |" in table(record)


def test_bars():
    assert Figure("x", 2.0, at_least=2).met
    assert not Figure("x", 2.0, at_most=1.9).met
    assert Figure("x", 2.0).met is None


def test_agreement_with_people_is_spearmans_correlation():
    generator = np.random.default_rng(0)
    ratings = generator.integers(3, 16, 200) / 3  # ties, as means of three people have
    assert agreement(ratings**2, ratings) == pytest.approx((1, 1, 1))
    assert agreement(-ratings, ratings)[0] == pytest.approx(-1)
    noisy = ratings + generator.normal(0, 2, 200)
    ranks = [rankdata(of) for of in (noisy, ratings)]
    value, low, high = agreement(noisy, ratings)
    assert value == pytest.approx(np.corrcoef(ranks)[0, 1])
    assert low < value < high
    _, low, high = agreement(generator.random(200), ratings)
    assert low < 0 < high
    assert agreement(np.zeros(200), ratings) == (0, 0, 0)
