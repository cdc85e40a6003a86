"""Draft heads: dampened with what they are copies of, and said otherwise."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from families import random_factors, tiny_folder
from sordino.edits import bake, undo
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
    assert f"draft heads ({head}.*), which are copied as they are" in capsys.readouterr().err
    assert record["draft_heads"] == {"names": [head], "dampened": []}
    assert (load_file(tmp_path / "baked" / "model.safetensors")[name] == 0.5).all()
    assert f"draft heads: {head}, copied" in "\n".join(inspect(tmp_path / "baked").lines)


def test_what_has_the_same_neurons_is_dampened_alike(tmp_path, capsys):
    name = "mtp.layers.0.mlp.down_proj.weight"
    folder, dampening = with_head(tmp_path, "olmo_hybrid", {name: copied, "mtp.fc.weight": own})
    record = bake(folder, dampening, tmp_path / "baked")
    assert "1 of their tensors are copies" in capsys.readouterr().err
    assert record["draft_heads"] == {"names": ["mtp"], "dampened": [name]}
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
