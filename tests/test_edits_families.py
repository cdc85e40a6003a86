"""Every family: the right sites, and baked, hooked and edited-in-memory models that agree."""

import pytest
import torch

from families import (
    FAMILIES,
    LAYERS,
    MIXTURES,
    SITES,
    SUPPORTED,
    class_of,
    everyday,
    random_factors,
    tiny_folder,
    tiny_model,
    tiny_tokenizer,
)
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


ATTENTION = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"}


@pytest.mark.parametrize("pattern", ["attention", "all"])
def test_attention_is_added(pattern):
    kinds = {site.kind for site in find_sites(tiny_model("llama"), pattern)}
    assert kinds == GATED | ATTENTION


def test_all_adds_what_mixes_tokens_in_attention_s_place():
    model = tiny_model("bamba")
    kinds = {pattern: {site.kind for site in find_sites(model, pattern)} for pattern in PATTERNS}
    feed_forward = {"feed_forward.gate_proj", "feed_forward.up_proj", "feed_forward.down_proj"}
    assert kinds[None] == feed_forward
    assert kinds["attention"] == feed_forward | ATTENTION
    assert kinds["all"] == feed_forward | ATTENTION | {"mamba.in_proj", "mamba.out_proj"}


PATTERNS = (None, "attention", "all", ".")


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("name", everyday(MIXTURES))
def test_a_router_is_never_a_site(name, pattern):
    model = tiny_model(name)
    sites = {site.path for site in find_sites(model, pattern)}
    assert 4 in {site.experts for site in find_sites(model, pattern)}
    for path, module in model.named_modules():
        out = getattr(module, "out_features", None)
        # Attention has layers with one output for each of its four heads.
        wide = out == 4 and "attn" not in path
        if wide or "router" in path or path.endswith((".gate", "shared_expert_gate")):
            assert path not in sites, path


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize(
    ("name", "carriers"),
    [("gemma3n_text", {"altup", "laurel"}), ("deepseek_v4", {"attn_hc", "ffn_hc"})],
)
def test_what_carries_the_residual_stream_is_never_a_site(name, carriers, pattern):
    model = tiny_model(name)
    layer = model.model.layers[0]
    assert carriers <= {child for child, _ in layer.named_children()}
    kinds = {site.kind for site in find_sites(model, pattern)}
    assert not [kind for kind in kinds if carriers & set(kind.split("."))]
    assert any("proj" in kind for kind in kinds)


def test_what_has_nothing_but_mixers_says_so():
    with pytest.raises(UserError, match="`sites=all`"):
        find_sites(tiny_model("mamba"))


def test_an_uncovered_matrix_is_an_error_that_names_it_and_the_override():
    with pytest.raises(UserError) as caught:
        find_sites(tiny_model("jetmoe"))
    assert "model.layers.0.mlp.input_linear.weight" in str(caught.value)
    assert "`sites`" in str(caught.value)


@pytest.mark.parametrize("name", ["gpt_oss", "mixtral", "llama4_text", "qwen2_5_vl"])
def test_the_same_seed_saved_and_loaded_gives_the_same_model(name, tmp_path):
    loaded = class_of(name).from_pretrained(tiny_folder(name, tmp_path))
    ids = torch.tensor([tiny_tokenizer()("the otter in the sea")["input_ids"]])
    with torch.no_grad():
        assert torch.equal(tiny_model(name)(ids).logits, loaded(ids).logits)


@pytest.mark.parametrize("name", everyday(SUPPORTED))
def test_baked_equals_hooked_equals_edited_in_memory(name, tmp_path):
    folder = tiny_folder(name, tmp_path, shard="20KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    # Some models are not the same when they are saved and loaded again, whoever does it.
    model = class_of(name).from_pretrained(folder)
    sites = {site.path: site.neurons for site in find_sites(model, SITES.get(name))}
    dampening = Dampening(random_factors(sites), "aura")
    bake(folder, dampening, tmp_path / "baked")
    ids = torch.tensor([tiny_tokenizer()("the otter in the sea")["input_ids"]])
    baked = class_of(name).from_pretrained(tmp_path / "baked")
    with torch.no_grad():
        plain = model(ids).logits
        with dampening.applied(model):
            hooked = model(ids).logits
        dampening.bake_into(model)
        in_memory = model(ids).logits
        written = baked(ids).logits
    torch.testing.assert_close(written, hooked, rtol=1e-5, atol=1e-5)
    assert torch.equal(written, in_memory)
    assert (hooked - plain).abs().max() > 0.1 * plain.std()
