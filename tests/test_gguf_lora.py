"""LoRA adapters of GGUF files, in the file and in a real llama-server.

Those with a server run where xllamacpp is installed, here or under the interpreter that the
variable SORDINO_LLAMA_PYTHON names; see `test_gguf_llama`.
"""

import json
from urllib.request import Request, urlopen

import gguf
import numpy as np
import pytest
import torch

from families import random_factors
from llama_server import serving
from sordino import kit
from sordino.edits import bake, read_provenance
from sordino.errors import UserError
from sordino.interventions import Dampening
from sordino.models.open import empty_model, open_model
from sordino.models.reference import resolve
from sordino.models.sites import find_sites
from tiny_gguf import tiny_of

TEXTS = ([0, 5, 9, 40, 77, 12, 200, 31], [0, 100, 44, 3, 8, 250])
MIXTURES = ("qwen2moe", "qwen3moe")


def tensors_of(path):
    reader = gguf.GGUFReader(path)
    return {t.name: gguf.dequantize(t.data, t.tensor_type) for t in reader.tensors}


def dampening_of(source, seed=0, rows=9, sites=None):
    found = {s.path: s.neurons for s in find_sites(empty_model(resolve(source)), sites)}
    return Dampening(random_factors(found, seed), "aura").limited(rows)


@pytest.mark.parametrize("kind", ["F32", "Q8_0", "Q4_0"])
@pytest.mark.parametrize("architecture", ["llama", "gemma3", "phi3", "qwen3moe"])
def test_the_products_are_what_the_rows_of_a_baked_file_change_by(architecture, kind, tmp_path):
    """Attention's rows, which converters permute, gate and up in one tensor, and experts."""
    source = tiny_of(architecture, tmp_path / "model.gguf", kind=kind)
    dampening = dampening_of(source, sites="all")
    bake(source, dampening, tmp_path / "quiet.gguf")
    record = bake(source, dampening, tmp_path / "adapter", format="lora")
    assert read_provenance(tmp_path / "adapter") == record
    before, after = tensors_of(source), tensors_of(tmp_path / "quiet.gguf")
    pairs = tensors_of(tmp_path / "adapter/adapter.gguf")
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert {name.rpartition(".lora_")[0] for name in pairs} == changed
    for name in changed:
        a, b = pairs[f"{name}.lora_a"], pairs[f"{name}.lora_b"]
        size = np.abs(before[name]).max()
        np.testing.assert_allclose(before[name] + b @ a, after[name], atol=2e-3 * size)
        assert (b != 0).sum(axis=-2).max() <= 1  # one number a column


def test_gains_of_norms_have_no_adapter(tmp_path):
    source = tiny_of("gemma3", tmp_path / "model.gguf")
    dampening = dampening_of(source, sites="norms")
    with pytest.raises(UserError, match=r"changes norms of .* LoRA adapters have none: bake it to"):
        bake(source, dampening, tmp_path / "adapter", format="lora")


def test_the_header_is_what_llama_cpp_looks_for(tmp_path):
    source = tiny_of("llama", tmp_path / "model.gguf")
    bake(source, dampening_of(source), tmp_path / "adapter", format="lora")
    fields = gguf.GGUFReader(tmp_path / "adapter/adapter.gguf").fields
    found = {key: field.contents() for key, field in fields.items() if key[:5] != "GGUF."}
    assert found == {
        "general.architecture": "llama",
        "general.type": "adapter",
        "adapter.type": "lora",
        "adapter.lora.alpha": 0.0,
    }
    card = (tmp_path / "adapter/README.md").read_text()
    assert "--lora adapter.gguf" in card


def test_biases_cannot_change(tmp_path):
    source = tiny_of("starcoder2", tmp_path / "model.gguf")
    with pytest.raises(UserError, match=r"changes biases .*\.bias.*bake it to a file"):
        bake(source, dampening_of(source), tmp_path / "adapter", format="lora")
    assert not (tmp_path / "adapter").exists()


def asked(address, body):
    with urlopen(Request(f"{address}/completion", json.dumps(body).encode())) as answer:
        return json.load(answer)


def scales(*values):
    return [{"id": number, "scale": scale} for number, scale in enumerate(values)]


def served(address, ids, lora):
    """The log-probabilities of the tokens after each prefix, by token."""
    found = []
    for length in range(1, len(ids) + 1):
        wanted = {"prompt": ids[:length], "n_predict": 1, "n_probs": 10**6, "temperature": 0}
        # Probabilities are those before any sampling, and are not told of half a character.
        wanted |= {"logit_bias": [["a", 1000]]} | ({"lora": lora} if lora is not None else {})
        [after] = asked(address, wanted)["completion_probabilities"]
        found.append({one["id"]: one["logprob"] for one in after["top_logprobs"]})
    return found


@torch.no_grad()
def expected(model, ids, dampening):
    with dampening.applied(model):
        return model(torch.tensor([ids])).logits[0].double().log_softmax(-1).numpy()


def distance(theirs, ours):
    """The mean distance of log-probabilities over the hundred likeliest tokens."""
    found = []
    for after, row in zip(theirs, ours, strict=True):
        likeliest = np.argsort(-row)[:100]
        found += [abs(after[int(t)] - row[t]) for t in likeliest if int(t) in after]
    assert len(found) > 50 * len(ours)
    return float(np.mean(found))


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "phi3", "lfm2", *MIXTURES])
def test_a_server_runs_each_request_at_its_own_scale(architecture, tmp_path):
    """In float32, where llama.cpp rounds little; with attention's rows where they are permuted."""
    source = tiny_of(architecture, tmp_path / "model.gguf")
    sites = "all" if architecture in ("llama", "phi3") else "mlp|feed_forward"
    first, second = (dampening_of(source, seed, sites=sites) for seed in (0, 1))
    for name, dampening in [("first", first), ("second", second)]:
        bake(source, dampening, tmp_path / name, format="lora")
    model = open_model(source, device="cpu").model
    files = [tmp_path / name / "adapter.gguf" for name in ("first", "second")]
    bound = 0.05 if architecture in MIXTURES else 0.005
    with serving(source, "plain", tmp_path / "plain.log") as address:
        alone = [served(address, ids, None) for ids in TEXTS]
    with serving(source, "both", tmp_path / "log", adapters=files) as address:
        for ids, base in zip(TEXTS, alone, strict=True):
            still = expected(model, ids, first.scaled(0))
            for scale in (1, 0, 0.5):
                hooked = expected(model, ids, first.scaled(scale))
                found = served(address, ids, scales(scale, 0))
                assert distance(found, hooked) < bound
                if scale:
                    assert distance(found, still) > 4 * distance(found, hooked)
                else:
                    assert found == base  # to the bit
            both = Dampening(
                {s: f + second.factors[s] - 1 for s, f in first.factors.items()}, "both"
            )
            assert distance(served(address, ids, scales(1, 1)), expected(model, ids, both)) < bound
            # An adapter that a request does not name is off.
            alone_second = served(address, ids, [{"id": 1, "scale": 1}])
            assert distance(alone_second, expected(model, ids, second)) < bound
            assert served(address, ids, None) == base


@pytest.mark.slow
@pytest.mark.parametrize("name", ["smollm2", "gemma3"])
def test_a_kit_model_is_quiet_by_request(name, tmp_path):
    """As near to hooks as llama.cpp's own rounding of quantised models lets the original be."""
    source = kit.model_file(name)
    dampening = dampening_of(source, rows=64)
    bake(source, dampening, tmp_path / "adapter", format="lora")
    opened = open_model(source, device="cpu")
    text = "The train was late again, so we walked along the river until it grew dark."
    ids = opened.tokenizer(text)["input_ids"]
    files = [tmp_path / "adapter/adapter.gguf"]
    with serving(source, name, tmp_path / "plain.log") as address:
        alone = served(address, ids, None)
    figures = {}
    with serving(source, name, tmp_path / "log", adapters=files) as address:
        assert served(address, ids, scales(0)) == alone
        for scale in (0, 0.5, 1):
            found = served(address, ids, scales(scale))
            hooked = expected(opened.model, ids, dampening.scaled(scale))
            figures[scale] = distance(found, hooked)
    moved = distance(alone, expected(opened.model, ids, dampening))
    print(name, json.dumps(figures), moved)
    for scale in (0.5, 1):
        assert figures[scale] < 2 * figures[0]
    assert moved > 2 * figures[1]
