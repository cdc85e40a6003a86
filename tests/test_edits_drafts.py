"""Draft heads: dampened with what they are copies of, and said otherwise."""

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from families import random_factors, tiny_folder
from sordino.edits import bake, read_provenance, undo
from sordino.interventions import Dampening
from sordino.jobs.inspect import inspect
from sordino.models.open import open_model


def with_head(tmp_path, family, head):
    """A folder with tensors in a draft head beside the model, by the part of the name after it."""
    folder = tiny_folder(family, tmp_path)
    path = folder / "model.safetensors"
    tensors = load_file(path)
    beside = {name: make(tensors) for name, make in head.items()}
    save_file({**tensors, **beside}, path, metadata={"format": "pt"})
    sites = {site.path: site.neurons for site in open_model(folder).sites}
    return folder, Dampening(random_factors(sites), "aura")


SITE = "model.layers.1.mlp.down_proj"


def own(_tensors):
    return torch.full((32, 48), 0.5)


def copied(tensors):
    return tensors[f"{SITE}.weight"].clone()


@pytest.mark.parametrize(
    ("family", "head"),
    [("olmo_hybrid", "mtp"), ("glm4_moe_lite", "model.layers.47")],
)
def test_a_head_with_neurons_of_its_own_stays_and_is_said(family, head, tmp_path, capsys):
    name = f"{head}.mlp.down_proj.weight"
    folder, dampening = with_head(tmp_path, family, {name: own})
    record = bake(folder, dampening, tmp_path / "baked")
    assert f"draft heads ({head}.*), which are copied unchanged" in capsys.readouterr().err
    assert record.draft_heads.as_json() == {"names": [head], "dampened": []}
    assert (load_file(tmp_path / "baked" / "model.safetensors")[name] == 0.5).all()
    assert f"draft heads: {head}, copied" in "\n".join(inspect(tmp_path / "baked").lines)


def test_what_has_the_same_neurons_is_dampened_alike(tmp_path, capsys):
    name = "mtp.layers.0.mlp.down_proj.weight"
    folder, dampening = with_head(tmp_path, "olmo_hybrid", {name: copied, "mtp.fc.weight": own})
    record = bake(folder, dampening, tmp_path / "baked")
    assert "1 of their tensors are copies" in capsys.readouterr().err
    assert record.draft_heads.as_json() == {"names": ["mtp"], "dampened": [name]}
    baked = load_file(tmp_path / "baked" / "model.safetensors")
    assert torch.equal(baked[name], baked[f"{SITE}.weight"])
    assert not torch.equal(baked[name], load_file(folder / "model.safetensors")[name])
    undo(tmp_path / "baked", tmp_path / "undone", partly=True)
    undone = load_file(tmp_path / "undone" / "model.safetensors")
    assert torch.equal(undone[name], undone[f"{SITE}.weight"])


def test_without_a_head_nothing_is_said(tmp_path, capsys):
    folder, dampening = with_head(tmp_path, "olmo_hybrid", {})
    assert "draft_heads" not in bake(folder, dampening, tmp_path / "baked")
    assert "draft head" not in capsys.readouterr().err


def gguf_with_heads(path, layers, heads):
    """A file of an architecture whose last layers are draft heads, as its converter writes it."""
    writer = gguf.GGUFWriter(path, "glm4moe")
    writer.add_block_count(layers)
    if heads is not None:
        writer.add_nextn_predict_layers(heads)
    draw = np.random.default_rng(0)
    for layer in range(layers):
        values = draw.standard_normal((32, 48)).astype(np.float32)
        writer.add_tensor(f"blk.{layer}.ffn_down.weight", values)
    for layer in range(layers - (heads or 0), layers):
        writer.add_tensor(f"blk.{layer}.nextn.eh_proj.weight", np.ones((32, 64), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(("heads", "named"), [(1, ["blk.3"]), (2, ["blk.2", "blk.3"])])
def test_heads_in_a_gguf_file_stay_and_are_said(heads, named, tmp_path, capsys):
    source = gguf_with_heads(tmp_path / "model.gguf", 4, heads)
    sites = {f"model.layers.{layer}.mlp.down_proj": 32 for layer in range(4 - heads)}
    baked = tmp_path / "quiet.gguf"
    bake(source, Dampening(random_factors(sites), "aura"), baked)
    said = ", ".join(f"{name}.*" for name in named)
    assert f"draft heads ({said}), which are copied unchanged" in capsys.readouterr().err
    assert read_provenance(baked).draft_heads.as_json() == {"names": named, "dampened": []}
    assert f"draft heads: {', '.join(named)}, copied" in "\n".join(inspect(baked).lines)
    before, after = (gguf.GGUFReader(path).tensors for path in (source, baked))
    same = {a.name: np.array_equal(a.data, b.data) for a, b in zip(before, after, strict=True)}
    kept = {name for name in same if name.startswith(tuple(f"{one}." for one in named))}
    assert {name for name in same if same[name]} == kept


@pytest.mark.parametrize("heads", [None, 0])
def test_a_gguf_file_without_heads_has_nothing_said(heads, tmp_path, capsys):
    source = gguf_with_heads(tmp_path / "model.gguf", 2, heads)
    factors = random_factors({"model.layers.1.mlp.down_proj": 32})
    record = bake(source, Dampening(factors, "aura"), tmp_path / "quiet.gguf")
    assert record.draft_heads is None
    assert "draft head" not in capsys.readouterr().err
