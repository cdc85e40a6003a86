"""Dampened GGUF files in a real llama.cpp, held against transformers on the same weights.

They run where xllamacpp or llama-cpp-python is installed, here or under the interpreter that the
variable SORDINO_LLAMA_PYTHON names: `python -m venv llama && llama/bin/pip install xllamacpp`, then
`SORDINO_LLAMA_PYTHON=llama/bin/python make test-slow`.
"""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from families import random_factors
from llama_server import llama_cpp
from sordino import kit
from sordino.edits import bake
from sordino.interventions import Dampening
from sordino.interventions.rules.aura import aura_factor
from sordino.models.open import empty_model, open_model
from sordino.models.reference import resolve
from sordino.models.sites import find_sites
from tiny_gguf import tiny_of

TEXTS = (
    "The train was late again, so we walked along the river until it grew dark and the lamps were "
    "lit one after the other on the far side of the water.",
    "To make bread, mix flour, water, salt and yeast, and wait longer than you want to before you "
    "put it into the oven, which has to be very hot.",
    "The parliament met for the first time in the spring of that year, in a hall that had been "
    "built for exhibitions and was much too large for it.",
    "def mean(values):\n    total = 0.0\n    for value in values:\n        total += value\n    "
    "return total / len(values)",
)
NEW = 24
MIXTURES = ("qwen2moe", "qwen3moe", "minimax-m2")


@pytest.fixture(scope="session")
def llama_python() -> str:
    found = llama_cpp()
    if found is None:
        pytest.skip("there is no llama.cpp here, nor does SORDINO_LLAMA_PYTHON name one")
    return found[0]


def by_llama(python: str, model: Path, texts: list[list[int]], new: int = NEW) -> list[dict]:
    script = Path(__file__).with_name("llama_script.py")
    task = json.dumps({"model": str(model), "texts": texts, "new": new})
    done = subprocess.run([python, script], input=task, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@torch.no_grad()
def by_transformers(model, texts: list[list[int]], new: int = NEW) -> list[dict]:
    found = []
    for ids in texts:
        out = model(torch.tensor([ids]), use_cache=True)
        logits, written = out.logits[0].double(), []
        own = logits.log_softmax(-1)[torch.arange(len(ids) - 1), torch.tensor(ids[1:])]
        for _ in range(new):
            written.append(int(out.logits[0, -1].argmax()))
            past = out.past_key_values
            out = model(torch.tensor([written[-1:]]), past_key_values=past, use_cache=True)
        top = logits.argmax(-1).tolist()
        found.append({"top": top, "own": own.tolist(), "written": written})
    return found


def agreement(ours: list[dict], theirs: list[dict]) -> dict[str, float]:
    """How often the likeliest token is the same, how far log-probabilities are apart, and how many
    of the greedy continuations' tokens come before the first that differs."""
    pairs = list(zip(ours, theirs, strict=True))
    tops = [np.equal(x["top"], y["top"]) for x, y in pairs]
    own = [np.subtract(x["own"], y["own"]) for x, y in pairs]
    same = [np.cumprod(np.equal(x["written"], y["written"])).sum() for x, y in pairs]
    return {
        "top": float(np.mean(np.concatenate(tops))),
        "distance": float(np.mean(np.abs(np.concatenate(own)))),
        "greedy": float(np.mean(same)),
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", ["smollm2", "gemma3"])
def test_a_dampened_kit_model_runs_in_llama_cpp(name, llama_python, tmp_path):
    """It agrees with transformers on the de-quantised edited weights as well as the original does.

    They differ by what llama.cpp rounds: it quantises activations to 8 bits in every product.
    """
    source = kit.model_file(name)
    sites = {site.path: site.neurons for site in find_sites(empty_model(resolve(source)))}
    random = np.random.default_rng(0)
    auroc = {site: random.normal(0.5, 0.06, size).clip(0, 1) for site, size in sites.items()}
    factors = {site: aura_factor(values.astype(np.float32)) for site, values in auroc.items()}
    quiet = tmp_path / "quiet.gguf"
    bake(source, Dampening(factors, "aura"), quiet)
    results = {}
    for label, path in {"before": source, "after": quiet}.items():
        opened = open_model(path, device="cpu")
        texts = [opened.tokenizer(text)["input_ids"] for text in TEXTS]
        ours = by_transformers(opened.model, texts)
        del opened
        results[label] = ours, by_llama(llama_python, path, texts)
    figures = {label: agreement(*both) for label, both in results.items()}
    print(name, json.dumps(figures))
    for found in figures.values():
        assert found["top"] > 0.9
        assert found["distance"] < 0.1
        assert found["greedy"] >= NEW / 4
    # The edit itself is much larger than that, and in the same direction in both.
    before, after = results["before"], results["after"]
    assert agreement(before[0], after[0])["distance"] > 3 * figures["after"]["distance"]
    moved = [
        np.concatenate([np.subtract(y["own"], x["own"]) for x, y in zip(*pair, strict=True)])
        for pair in zip(before, after, strict=True)
    ]
    assert np.corrcoef(*moved)[0, 1] > 0.95


@pytest.mark.parametrize(
    "architecture", ["llama", "qwen2", "phi3", "starcoder2", "lfm2", *MIXTURES]
)
def test_what_llama_cpp_runs_is_the_model_dampened_in_memory(architecture, llama_python, tmp_path):
    """In float32, where llama.cpp rounds little; the Llama's with shifts."""
    source = tiny_of(architecture, tmp_path / "model.gguf")
    opened = open_model(source, device="cpu", sites="mlp|feed_forward")
    sites = {site.path: site.neurons for site in opened.sites}
    factors = random_factors(sites)
    shifts = {}
    if architecture == "llama":
        shifts = {
            site: np.linspace(-0.3, 0.5, size, dtype=np.float32) for site, size in sites.items()
        }
    dampening = Dampening(factors, "aura", shifts=shifts)
    bake(source, dampening, tmp_path / "quiet.gguf")
    texts = [[0, 5, 9, 40, 77, 12, 200, 31], [0, 100, 44, 3, 8, 250]]
    before = by_transformers(opened.model, texts)
    dampening.bake_into(opened.model)
    ours = by_transformers(opened.model, texts)
    theirs = by_llama(llama_python, tmp_path / "quiet.gguf", texts)
    # With experts, what rounds otherwise can be routed otherwise.
    assert agreement(ours, theirs)["distance"] < (0.05 if architecture in MIXTURES else 0.005)
    assert agreement(before, theirs)["distance"] > 0.05
