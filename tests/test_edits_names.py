"""From parameters to the tensors of a checkpoint."""

import pytest
import torch
import transformers as tf
from safetensors.torch import load_file, save_file
from torch import nn

from families import tiny_folder, tiny_model
from sordino.edits import bake
from sordino.edits.names import on_disk, parameter_scales
from sordino.edits.shard import Change, change_
from sordino.errors import UserError
from sordino.interventions import Dampening
from sordino.models.open import empty_model, open_model
from sordino.models.reference import resolve


def test_a_missing_prefix_is_added():
    model = tiny_model("gpt2")
    scales = {"transformer.h.1.mlp.c_fc.weight": torch.ones(1, 128)}
    names = [name.removeprefix("transformer.") for name in model.state_dict()]
    assert list(on_disk(model, scales, names)) == ["h.1.mlp.c_fc.weight"]


def test_a_missing_tensor_is_named():
    model = tiny_model("llama")
    name = "model.layers.1.mlp.up_proj.weight"
    with pytest.raises(UserError, match=rf"no tensor {name}"):
        on_disk(model, {name: torch.ones(48, 1)}, set(model.state_dict()) - {name})


def _scaled_by_hand(model, scales):
    with torch.no_grad():
        for name, scale in scales.items():
            model.get_parameter(name).mul_(scale)
    return model.state_dict()


def _scaled_on_disk(folder, scales):
    """Scale the checkpoint's tensors and load it again."""
    tensors = load_file(folder / "model.safetensors")
    found = on_disk(empty_model(resolve(folder)), scales, tensors)
    for name, scale in found.items():
        change_(tensors[name], Change(scale))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return set(found), tf.AutoModelForCausalLM.from_pretrained(folder).state_dict()


def test_experts_that_are_fused_while_loading(tmp_path):
    folder = tiny_folder("mixtral", tmp_path)
    layer = "model.layers.2.mlp.experts"
    scales = {
        f"{layer}.gate_up_proj": torch.rand(4, 96, 1),
        f"{layer}.down_proj": torch.rand(4, 32, 1),
    }
    names, loaded = _scaled_on_disk(folder, scales)
    assert names == {
        f"model.layers.2.block_sparse_moe.experts.{expert}.{part}.weight"
        for expert in range(4)
        for part in ("w1", "w2", "w3")
    }
    for name, expected in _scaled_by_hand(tiny_model("mixtral"), scales).items():
        assert torch.equal(loaded[name], expected), name


def test_matrices_that_are_split_while_loading(tmp_path):
    config = tf.HrmTextConfig(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=48,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=8,
        num_layers_per_stack=2,
    )
    torch.manual_seed(0)
    model = tf.AutoModelForCausalLM.from_config(config)
    model.save_pretrained(tmp_path / "model")
    site = next(name for name in model.state_dict() if name.endswith("1.mlp.up_proj.weight"))
    scales = {site: torch.rand(48, 1)}
    names, loaded = _scaled_on_disk(tmp_path / "model", scales)
    assert names == {site.replace("up_proj", "gate_up_proj")}
    for name, expected in _scaled_by_hand(model, scales).items():
        assert torch.equal(loaded[name], expected), name


@pytest.mark.parametrize("turned", [False, True])
def test_experts_that_are_turned_while_loading_where_their_shape_says_so(turned, tmp_path):
    folder = tiny_folder("qwen3_vl_moe", tmp_path)
    path = folder / "model.safetensors"
    tensors = load_file(path)
    experts = [name for name in tensors if ".mlp.experts." in name]
    if turned:  # as the model's makers store them
        tensors |= {name: tensors[name].transpose(1, 2).contiguous() for name in experts}
        save_file(tensors, path, metadata={"format": "pt"})
    before = open_model(folder).model.state_dict()
    site = "model.language_model.layers.1.mlp.experts.gate_up_proj"
    factors = torch.rand(4, 48)
    bake(folder, Dampening({site: factors.flatten().numpy()}, "aura"), tmp_path / "baked")
    after = open_model(tmp_path / "baked").model.state_dict()
    for name, weight in before.items():
        expected = weight * factors[:, :, None] if name == site else weight
        assert torch.equal(after[name], expected), name
    [changed] = [n for n in experts if n.endswith("layers.1.mlp.experts.gate_up_proj")]
    assert load_file(tmp_path / "baked" / "model.safetensors")[changed].shape == (
        (4, 32, 48) if turned else (4, 48, 32)
    )


def test_a_turned_tensor_of_unknown_shape_is_refused():
    model = tiny_model("qwen3_vl_moe").to("meta")
    name = "model.language_model.layers.1.mlp.experts.down_proj"
    with pytest.raises(UserError, match="stored in another shape"):
        on_disk(model, {name: torch.ones(4, 32, 1)}, model.state_dict())


def test_a_shared_weight_is_refused():
    model = tiny_model("llama").to("meta")
    first, second = model.model.layers[0].mlp.up_proj, model.model.layers[1].mlp.up_proj
    second.weight = first.weight
    assert isinstance(first, nn.Linear)
    dampening = Dampening({"model.layers.1.mlp.up_proj": torch.full((48,), 0.5).numpy()}, "aura")
    with pytest.raises(UserError, match=r"layers\.0.*layers\.1.*the same weight.*`sites`"):
        parameter_scales(model, dampening)


def test_factors_of_another_size_are_refused():
    model = tiny_model("llama").to("meta")
    dampening = Dampening({"model.layers.1.mlp.up_proj": torch.ones(47).numpy()}, "aura")
    with pytest.raises(UserError, match="48 neurons"):
        parameter_scales(model, dampening)
