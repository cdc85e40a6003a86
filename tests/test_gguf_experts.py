"""MoE experts in GGUF files: `ffn_*_exps`, together or apart, and shared experts."""

import re

import gguf
import numpy as np
import pytest
import torch
from gguf import GGUFReader
from safetensors.torch import load_file

from conftest import sentences
from families import LAYERS, random_factors, tiny_folder
from sordino.concepts.concept import Concept
from sordino.edits import bake, verify_file
from sordino.edits.gguf_blocks import KINDS
from sordino.errors import UserError
from sordino.expertise.find import find_experts
from sordino.interventions import Dampening, dampen
from sordino.models.open import empty_model, open_model
from sordino.models.reference import resolve
from tiny_gguf import random_rows, tiny_of

LOADED = ("qwen2moe", "qwen3moe", "minimax-m2")
IDS = torch.randint(3, 290, (2, 20), generator=torch.Generator().manual_seed(0))


def dampening_of(path, sites=None) -> Dampening:
    found = open_model(path, device="cpu", sites=sites).sites
    return Dampening(random_factors({site.path: site.neurons for site in found}), "aura")


@pytest.mark.parametrize("kind", ["F32", "Q8_0"])
@pytest.mark.parametrize("architecture", LOADED)
def test_baked_equals_hooked_equals_edited_in_memory(architecture, kind, tmp_path):
    source = tiny_of(architecture, tmp_path / "model.gguf", kind, only="_exps")
    opened = open_model(source, device="cpu")
    dampening = dampening_of(source)
    assert {site.experts for site in opened.sites} >= {4}
    record = bake(source, dampening, tmp_path / "quiet.gguf")
    changed = {name.split(".")[2] for name in record.rounding}
    shared = {f"ffn_{part}_shexp" for part in ("gate", "up", "down")}
    assert changed == {"ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"} | (
        shared if architecture == "qwen2moe" else set()
    )
    found = open_model(tmp_path / "quiet.gguf", device="cpu").model
    with torch.no_grad():
        plain = opened.model(IDS).logits
        with dampening.applied(opened.model):
            hooked = opened.model(IDS).logits
        written = found(IDS).logits
    exactly = kind == "F32"  # the others round scales to half precision
    torch.testing.assert_close(written, hooked, rtol=0, atol=1e-5 if exactly else 5e-3)
    assert (hooked - plain).abs().max() > 0.1
    dampening.bake_into(opened.model)
    for name, tensor in opened.model.state_dict().items():
        after = found.state_dict()[name]
        assert torch.equal(tensor, after) if exactly else (tensor - after).abs().max() < 1e-3, name
    checked = verify_file(resolve(source), dampening, tmp_path / "quiet.gguf")
    assert checked.others_equal
    assert checked.largest_relative < (1e-7 if exactly else 0.02)


def test_found_on_the_file_and_baked_into_it(tmp_path):
    source = tiny_of("qwen3moe", tmp_path / "model.gguf", "Q8_0")
    concept = Concept("calm", sentences(35, 1), sentences(35, 2), "made for the tests")
    expertise = find_experts(source, concept, device="cpu")
    dampening = dampen(expertise, "aura")
    assert all(".experts." in site for site in dampening.factors)
    bake(source, dampening, tmp_path / "quiet.gguf")
    opened = open_model(source, device="cpu")
    found = open_model(tmp_path / "quiet.gguf", device="cpu").model
    with torch.no_grad(), dampening.applied(opened.model):
        torch.testing.assert_close(found(IDS).logits, opened.model(IDS).logits, rtol=0, atol=5e-3)


def test_experts_have_the_sizes_that_the_file_says(tmp_path):
    """Of which transformers takes its defaults."""
    source = tiny_of("qwen2moe", tmp_path / "model.gguf")
    config = empty_model(resolve(source)).config
    assert (config.moe_intermediate_size, config.shared_expert_intermediate_size) == (32, 64)


def _of_numbered(tensors, layer, gate, up, down):
    """Experts that a folder has one by one, stacked as llama.cpp's converter does."""

    def stacked(part):
        pattern = re.compile(rf".*\.{layer}\..*\bexperts\.(\d+)\.{part}\.weight")
        found = {int(m[1]): tensors[m[0]] for m in map(pattern.fullmatch, tensors) if m}
        return torch.stack([found[number] for number in sorted(found)]) if found else None

    parts = {"gate": stacked(gate), "up": stacked(up), "down": stacked(down)}
    return {f"ffn_{part}_exps.weight": tensor for part, tensor in parts.items()}


def _mixtral(tensors, layer):
    return _of_numbered(tensors, layer, "w1", "w3", "w2")


def _named(tensors, layer):
    return _of_numbered(tensors, layer, "gate_proj", "up_proj", "down_proj")


def _granite(tensors, layer):
    moe = f"model.layers.{layer}.block_sparse_moe"
    gate, up = tensors[f"{moe}.input_linear.weight"].chunk(2, dim=1)
    down = tensors[f"{moe}.output_linear.weight"]
    found = {f"ffn_{n}_exps.weight": t for n, t in {"gate": gate, "up": up, "down": down}.items()}
    return found | _granite_shared(tensors, layer, "_shexp")


def _granite_shared(tensors, layer, kind):
    mlp = f"model.layers.{layer}.shared_mlp"
    if f"{mlp}.input_linear.weight" not in tensors:
        return {}
    gate, up = tensors[f"{mlp}.input_linear.weight"].chunk(2, dim=0)
    down = tensors[f"{mlp}.output_linear.weight"]
    return {f"ffn_{n}{kind}.weight": t for n, t in {"gate": gate, "up": up, "down": down}.items()}


def _granite_dense(tensors, layer):
    return _granite_shared(tensors, layer, "")


def _gpt_oss(tensors, layer):
    """Every second of the last dimension is gate's."""
    experts = f"model.layers.{layer}.mlp.experts"
    both, bias = tensors[f"{experts}.gate_up_proj"], tensors[f"{experts}.gate_up_proj_bias"]
    return {
        "ffn_gate_exps.weight": both[..., ::2].transpose(1, 2),
        "ffn_gate_exps.bias": bias[..., ::2],
        "ffn_up_exps.weight": both[..., 1::2].transpose(1, 2),
        "ffn_up_exps.bias": bias[..., 1::2],
        "ffn_down_exps.weight": tensors[f"{experts}.down_proj"].transpose(1, 2),
        "ffn_down_exps.bias": tensors[f"{experts}.down_proj_bias"],
    }


def _llama4(tensors, layer):
    experts = f"model.layers.{layer}.feed_forward.experts"
    if f"{experts}.down_proj" not in tensors:
        return {}
    gate, up = tensors[f"{experts}.gate_up_proj"].transpose(1, 2).chunk(2, dim=1)
    down = tensors[f"{experts}.down_proj"].transpose(1, 2)
    return {f"ffn_{n}_exps.weight": t for n, t in {"gate": gate, "up": up, "down": down}.items()}


CONVERTERS = {
    "mixtral": ("llama", _mixtral),
    "phimoe": ("phimoe", _mixtral),
    "olmoe": ("olmoe", _named),
    "deepseek_v2": ("deepseek2", _named),
    "nemotron_h": ("nemotron_h_moe", _named),
    "granitemoe": ("granitemoe", _granite),
    "granitemoeshared": ("granitemoe", _granite),
    "granitemoehybrid": ("granitehybrid", _granite),
    "granitemoehybrid_dense": ("granitehybrid", _granite_dense),
    "gpt_oss": ("gpt-oss", _gpt_oss),
    "llama4_text": ("llama4", _llama4),
}


def converted(folder, name, path, *, together=False):
    """A folder as a GGUF file: its experts as llama.cpp's converter stacks them, all else that the
    gguf package has a name for as it is."""
    architecture, of_layer = CONVERTERS[name]
    tensors = load_file(folder / "model.safetensors")
    number = {arch: key for key, arch in gguf.MODEL_ARCH_NAMES.items()}[architecture]
    table = gguf.get_tensor_name_map(number, LAYERS)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(LAYERS)
    writer.add_expert_count(4)
    known = {}
    for layer in range(LAYERS):
        experts = {
            key: value for key, value in of_layer(tensors, layer).items() if value is not None
        }
        if together and "ffn_gate_exps.weight" in experts:
            both = [experts.pop(f"ffn_{part}_exps.weight") for part in ("gate", "up")]
            experts["ffn_gate_up_exps.weight"] = torch.cat(both, dim=1)
        known |= {f"blk.{layer}.{key}": value for key, value in experts.items()}
        known[f"blk.{layer}.attn_norm.weight"] = torch.ones(4)
    for key, value in tensors.items():
        there = table.get_name(key, (".weight", ".bias"))
        ours = "experts." in key.replace("shared_experts.", "") or "shared_mlp." in key
        if there and not ours:
            known.setdefault(there, value)
    for key, value in known.items():
        writer.add_tensor(key, np.ascontiguousarray(value.numpy()))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(
    ("name", "together"), [*((name, False) for name in CONVERTERS), ("olmoe", True)]
)
def test_expertise_of_the_folder_in_the_file_made_of_it(name, together, tmp_path):
    """Where transformers does not load the file: baked and converted is converted and baked."""
    folder = tiny_folder(name, tmp_path)
    source = converted(folder, name, tmp_path / "model.gguf", together=together)
    dampening = dampening_of(folder)
    bake(source, dampening, tmp_path / "quiet.gguf")
    bake(folder, dampening, tmp_path / "quiet")
    converted(tmp_path / "quiet", name, tmp_path / "expected.gguf", together=together)
    found, expected = GGUFReader(tmp_path / "quiet.gguf"), GGUFReader(tmp_path / "expected.gguf")
    changed = set()
    for ours, theirs, old in zip(
        found.tensors, expected.tensors, GGUFReader(source).tensors, strict=True
    ):
        assert ours.name == theirs.name
        assert np.array_equal(ours.data, theirs.data), ours.name
        if not np.array_equal(ours.data, old.data):
            changed.add(".".join(ours.name.split(".")[2:]))
    dense = name == "granitemoehybrid_dense"
    assert ("ffn_down.weight" if dense else "ffn_down_exps.weight") in changed
    assert ("ffn_gate_up_exps.weight" in changed) == together
    assert ("ffn_up_exps.weight" in changed) == (not together and not dense)
    assert ("ffn_up_exps.bias" in changed) == (name == "gpt_oss")
    shared = name in (
        *("deepseek_v2", "nemotron_h", "llama4_text"),
        *("granitemoeshared", "granitemoehybrid"),
    )
    assert ("ffn_up_shexp.weight" in changed) == shared
    checked = verify_file(resolve(source), dampening, tmp_path / "quiet.gguf")
    assert checked.others_equal
    assert checked.largest_relative < 1e-7


@pytest.mark.parametrize("kind", KINDS)
def test_every_type_of_stacked_experts(kind, tmp_path):
    """By the gguf package's de-quantisation: every row is its neuron's factor times what it was."""
    experts, inner, hidden = 3, 24, 256
    shapes = {"gate": (inner, hidden), "up": (inner, hidden), "down": (hidden, 256)}
    number = gguf.GGMLQuantizationType[kind]
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    writer.add_block_count(1)
    writer.add_expert_count(experts)
    for seed, (part, (rows, columns)) in enumerate(shapes.items()):
        blocks = random_rows(kind, experts * rows, columns, seed)
        writer.add_tensor(
            f"blk.0.ffn_{part}_exps.weight", blocks.reshape(experts, rows, -1), raw_dtype=number
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    sites = {"gate_up_proj": experts * 2 * inner, "down_proj": experts * hidden}
    factors = random_factors({f"model.layers.0.mlp.experts.{k}": n for k, n in sites.items()})
    bake(tmp_path / "model.gguf", Dampening(factors, "aura"), tmp_path / "quiet.gguf")
    both, down = (values.reshape(experts, -1) for values in factors.values())
    wanted = {"gate": both[:, :inner], "up": both[:, inner:], "down": down}
    readers = [GGUFReader(tmp_path / name) for name in ("model.gguf", "quiet.gguf")]
    for old, new in zip(*(reader.tensors for reader in readers), strict=True):
        before, after = (gguf.dequantize(t.data, t.tensor_type).astype(float) for t in (old, new))
        part = old.name.split("_")[1]
        off = np.abs(after - wanted[part][..., None] * before)
        largest = np.abs(before).max(axis=-1, keepdims=True)
        allowed = {"F32": 1e-6, "BF16": 5e-3, "MXFP4": 0.26, "NVFP4": 0.13}.get(kind, 4e-3)
        assert (off <= allowed * largest + 6e-4 * (kind not in ("F32", "BF16"))).all()
        kept = np.broadcast_to(wanted[part][..., None] == 1, before.shape)
        assert np.array_equal(before[kept], after[kept])


def test_what_is_not_loaded_says_how_to_go_on(tmp_path):
    folder = tiny_folder("mixtral", tmp_path)
    source = converted(folder, "mixtral", tmp_path / "model.gguf")
    with pytest.raises(UserError, match=r"MoE experts.*llama.*`allow_other_weights=True`"):
        open_model(source)
    sites = dampening_of(folder).factors
    router = {"model.layers.0.mlp.gate": np.ones(4, np.float32)}
    with pytest.raises(UserError, match=r"mlp.gate cannot be found in .*where it has MoE experts"):
        bake(source, Dampening(router, "none"), tmp_path / "no.gguf")
    few = {site: values[8:] for site, values in sites.items()}
    with pytest.raises(UserError, match=r"gate_up_proj with 376 neurons"):
        bake(source, Dampening(few, "none"), tmp_path / "no.gguf")
    elsewhere = {"model.layers.7.mlp.experts.down_proj": np.ones(128, np.float32)}
    with pytest.raises(UserError, match=r"layers.7.mlp.experts.down_proj cannot be found"):
        bake(source, Dampening(elsewhere, "none"), tmp_path / "no.gguf")
