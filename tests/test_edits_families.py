"""Every family: the right sites, and baked, hooked and edited-in-memory models that agree."""

import pytest
import torch
import transformers as tf

from families import FAMILIES, LAYERS, random_factors, tiny_folder, tiny_model, tiny_tokenizer
from sordino.edits import bake
from sordino.errors import UserError
from sordino.interventions import Dampening
from sordino.models.sites import find_sites

GATED = {"mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"}
FOUR_H = {"mlp.dense_h_to_4h", "mlp.dense_4h_to_h"}
KINDS = {
    "gpt2": {"mlp.c_fc", "mlp.c_proj"},
    "gpt_neox": FOUR_H,
    "gptj": {"mlp.fc_in", "mlp.fc_out"},
    "opt": {"fc1", "fc2"},
    "bloom": FOUR_H,
    "falcon_new": FOUR_H,
    "falcon_parallel": FOUR_H,
    "falcon_sequential": FOUR_H,
    "mpt": {"ffn.up_proj", "ffn.down_proj"},
    "phi": {"mlp.fc1", "mlp.fc2"},
    "phi3": {"mlp.gate_up_proj", "mlp.down_proj"},
    "starcoder2": {"mlp.c_fc", "mlp.c_proj"},
}


@pytest.mark.parametrize("name", FAMILIES)
def test_the_sites_are_the_feed_forward_layers(name):
    sites = find_sites(tiny_model(name))
    kinds = KINDS.get(name, GATED)
    assert {(site.layer, site.kind) for site in sites} == {
        (layer, kind) for layer in range(LAYERS) for kind in kinds
    }
    assert {site.transposed for site in sites} == {name == "gpt2"}


def test_an_uncovered_matrix_is_an_error_that_names_it_and_the_override():
    with pytest.raises(UserError) as caught:
        find_sites(tiny_model("mixtral"))
    assert "model.layers.0.mlp.experts.gate_up_proj" in str(caught.value)
    assert "--sites" in str(caught.value)


@pytest.mark.parametrize("name", FAMILIES)
def test_baked_equals_hooked_equals_edited_in_memory(name, tmp_path):
    folder = tiny_folder(name, tmp_path, shard="20KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    model = tiny_model(name)
    sites = {site.path: site.neurons for site in find_sites(model)}
    dampening = Dampening(random_factors(sites), "aura")
    bake(folder, dampening, tmp_path / "baked")
    ids = torch.tensor([tiny_tokenizer()("the otter in the sea")["input_ids"]])
    baked = tf.AutoModelForCausalLM.from_pretrained(tmp_path / "baked")
    with torch.no_grad():
        plain = model(ids).logits
        with dampening.applied(model):
            hooked = model(ids).logits
        dampening.bake_into(model)
        in_memory = model(ids).logits
        written = baked(ids).logits
    torch.testing.assert_close(written, hooked, rtol=1e-5, atol=1e-5)
    assert torch.equal(written, in_memory)
    assert (hooked - plain).abs().max() > 0.1
