"""Control vectors for llama.cpp: in the file, by hooks on decoder layers, and in a real llama.cpp.

The last runs where the variable SORDINO_LLAMA_LIBRARIES names the folder of llama.cpp's libraries,
such as `bins/linux-x64` of the npm package `@node-llama-cpp/linux-x64`.
"""

import json
import os
import re
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from conftest import sentences
from families import LAYERS, tiny_folder, tiny_model
from sordino.edits import bake, read_provenance
from sordino.errors import UserError
from sordino.interventions import Dampening
from sordino.models.open import open_model
from sordino.models.sites import decoder_layers, find_sites
from tiny_gguf import ARCHITECTURES, tiny_of

IDS = [0, 5, 9, 40, 77, 12, 200, 31]
FILE = "control-vector.gguf"
LAST = r"\.[1-9]\d*\.mlp\.(down_proj|dense_4h_to_h|c_proj)$"
FAMILIES = {
    *("bloom", "falcon_new", "falcon_parallel", "falcon_sequential", "gpt2", "llama_biased"),
    *("llama", "mistral", "phi3", "qwen2", "qwen3", "stablelm", "starcoder2"),
}
# What llama.cpp reads beside what transformers does, or otherwise.
_HEADS = {"attention.head_count_kv": 4}
IN_LLAMA_CPP = {
    "bloom": {**_HEADS, "feed_forward_length": 256},
    "falcon": {"feed_forward_length": 256},
    "gpt2": {**_HEADS, "feed_forward_length": 256, "context_length": 1024},
    "nemotron": {"attention.layer_norm_epsilon": 1e-5, "rope.dimension_count": 8},
    "qwen3": {"attention.key_length": 128, "attention.value_length": 128},
    "stablelm": {"rope.dimension_count": 4},
    **{name: {} for name in ("llama", "phi3", "qwen2", "starcoder2")},
}


def shifting(model, pattern=LAST, seed=0, size=0.3):
    """Random shifts for the sites of a pattern, beside factors of 1."""
    random = np.random.default_rng(seed)
    sites = find_sites(model, pattern)
    shifts = {s.path: random.normal(0, size, s.neurons).astype(np.float32) for s in sites}
    ones = {site: np.ones_like(values) for site, values in shifts.items()}
    return Dampening(ones, "mean_shift", shifts=shifts)


def directions_of(folder):
    """What the file holds, by layer, read as llama.cpp's own programs read it."""
    tensors = gguf.GGUFReader(folder / FILE).tensors
    assert {tensor.tensor_type for tensor in tensors} == {gguf.GGMLQuantizationType.F32}
    return {int(tensor.name.removeprefix("direction.")): tensor.data for tensor in tensors}


def adding(values):
    def hook(module, inputs, output):
        if isinstance(output, tuple):
            return (output[0] + values, *output[1:])
        return output + values

    return hook


@torch.no_grad()
def logits(model, dampening=None, directions=None):
    """The logits, with hooks at the sites, or with directions added to what layers put out."""
    _, layers = decoder_layers(model)
    with ExitStack() as stack:
        if dampening is not None:
            stack.enter_context(dampening.applied(model))
        for layer, values in (directions or {}).items():
            handle = layers[layer].register_forward_hook(adding(torch.tensor(values)))
            stack.callback(handle.remove)
        return model(torch.tensor([IDS])).logits[0]


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_shifts_are_what_is_added_after_each_layer(family, tmp_path):
    model = tiny_model(family)
    dampening = shifting(model)
    record = bake(
        tiny_folder(family, tmp_path), dampening, tmp_path / "out", format="control-vector"
    )
    assert read_provenance(tmp_path / "out") == record
    found = directions_of(tmp_path / "out")
    assert list(found) == list(range(1, LAYERS))
    for strength in (0.5, 1):
        hooked = logits(model, dampening.scaled(strength))
        steered = logits(model, None, {i: strength * values for i, values in found.items()})
        torch.testing.assert_close(hooked, steered, rtol=1e-4, atol=1e-4)
        assert (hooked - logits(model)).abs().max() > 0.1


def test_the_header_is_what_others_write(tmp_path):
    bake(
        tiny_folder("mistral", tmp_path),
        shifting(tiny_model("mistral")),
        tmp_path / "out",
        format="control-vector",
    )
    fields = gguf.GGUFReader(tmp_path / "out" / FILE).fields
    found = {key: field.contents() for key, field in fields.items() if key[:5] != "GGUF."}
    assert found == {
        "general.architecture": "controlvector",
        "controlvector.model_hint": "llama",
        "controlvector.layer_count": LAYERS - 1,
    }
    assert f"--control-vector-scaled {FILE} 1" in (tmp_path / "out/README.md").read_text()


@pytest.mark.parametrize(
    ("family", "pattern", "message"),
    [
        ("llama", r"down_proj", r"layer 0, .* no direction: .*`sites='(.*)'`, or"),
        ("llama", r"\.1\.mlp\.(up|down)_proj", r"1 site is shifted \(.*up_proj.*`sites='(.*)'`,"),
        ("llama", r"o_proj", r"4 sites are shifted \(.*o_proj\).*`sites='(.*)'`, or"),
        ("gemma2", r"down_proj", r"passes a norm \(post_attention_layernorm, .*`format=hooks`"),
        ("olmo2", r"down_proj", r"passes a norm \(.*post_feedforward_layernorm\).*`format=hooks`"),
        ("granite", r"down_proj", r"llama, .*not for Granite.*`format=hooks`"),
        ("qwen3_moe", r"down_proj", r"llama, .*not for Qwen3Moe.*`format=hooks`"),
    ],
)  # fmt: skip
def test_what_no_control_vector_can_hold_is_refused(family, pattern, message, tmp_path):
    folder, model = tiny_folder(family, tmp_path), tiny_model(family)
    with pytest.raises(UserError, match=message) as caught:
        bake(folder, shifting(model, pattern), tmp_path / "out", format="control-vector")
    assert not (tmp_path / "out").exists()
    # What the message says to do works.
    if mend := re.search(r"`sites='(.*?)'`", str(caught.value)):
        bake(folder, shifting(model, mend[1]), tmp_path / "out", format="control-vector")
    else:
        bake(folder, shifting(model, pattern), tmp_path / "out", format="hooks")


def test_factors_and_nothing_are_refused(tmp_path):
    folder, model = tiny_folder("llama", tmp_path), tiny_model("llama")
    dampening = shifting(model)
    with pytest.raises(UserError, match="would be empty"):
        bake(folder, dampening.scaled(0), tmp_path / "out", format="control-vector")
    site = next(iter(dampening.factors))
    dampening.factors[site][3] = 0.5
    with pytest.raises(UserError, match=rf"1 site has factors .*{re.escape(site)}.*mean_shift"):
        bake(folder, dampening, tmp_path / "out", format="control-vector")
    assert not (tmp_path / "out").exists()


def test_the_command_line_makes_one(call_in, tmp_path):
    folder = tiny_folder("llama", tmp_path)
    for name, texts in (("yes", sentences(20, 1)), ("no", sentences(20, 2))):
        (tmp_path / f"{name}.txt").write_text("\n".join(texts) + "\n")
    call = call_in(tmp_path)
    status, _, error = call(
        *("find", "llama", "--concept", "yes.txt", "--negatives", "no.txt", "-o", "e.safetensors"),
        *("--moments", "--pooling", "mean", "--sites", r"\.[1-9]\d*\.mlp\.down_proj$"),
    )
    assert status == 0, error
    making = ["bake", "llama", "e.safetensors", "--intervention", "mean_shift"]
    making += ["--format", "control-vector"]
    status, out, error = call(*making, "-o", "out")
    assert status == 0, error
    assert "written: out" in out
    dampening = Dampening.load(tmp_path / "out/sordino/dampening.safetensors")
    model = open_model(folder, device="cpu").model
    hooked, steered = logits(model, dampening), logits(model, None, directions_of(tmp_path / "out"))
    torch.testing.assert_close(hooked, steered, rtol=1e-4, atol=1e-4)
    assert (hooked - logits(model)).abs().max() > 1e-3
    status, _, error = call(*making, "-o", "other", "--verify")
    assert status == 2
    assert "--verify cannot run a control vector" in error


@pytest.mark.parametrize("architecture", sorted(IN_LLAMA_CPP))
def test_llama_cpp_computes_what_hooks_do(architecture, tmp_path, monkeypatch):
    """Its own loader reads the file, and its own graph adds the directions."""
    libraries = os.environ.get("SORDINO_LLAMA_LIBRARIES")
    if libraries is None:
        pytest.skip("SORDINO_LLAMA_LIBRARIES names no llama.cpp")
    sizes = ARCHITECTURES[architecture] | IN_LLAMA_CPP[architecture]
    monkeypatch.setitem(ARCHITECTURES, architecture, sizes)
    source = tiny_of(architecture, tmp_path / "model.gguf")
    model = open_model(source, device="cpu").model
    dampening = shifting(model)
    bake(source, dampening, tmp_path / "out", format="control-vector")
    scales = (0, 0.5, 1)
    runs = [None, *((str(tmp_path / "out" / FILE), scale) for scale in scales)]
    command = [sys.executable, str(Path(__file__).with_name("llama_control.py")), libraries]
    task = json.dumps({"model": str(source), "ids": IDS, "runs": runs})
    done = subprocess.run(command, input=task, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    plain, *steered = (torch.tensor(run).log_softmax(-1) for run in json.loads(done.stdout))
    assert torch.equal(plain, steered[0])
    still = logits(model).log_softmax(-1)
    for scale, theirs in zip(scales, steered, strict=True):
        ours = logits(model, dampening.scaled(scale)).log_softmax(-1)
        off, moved = (theirs - ours).abs().mean().item(), (ours - still).abs().mean().item()
        print(f"{architecture} at {scale}: off by {off:.2g}, the edit moves {moved:.2g}")
        assert off < 0.001
        assert moved > 20 * off or not scale
