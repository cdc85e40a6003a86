"""Norms after blocks as sites: their gains are scaled wherever the model lies."""

import pytest
import torch
from safetensors.torch import load_file

from families import class_of, random_factors, tiny_folder, tiny_model, tiny_tokenizer
from sordino.cli.app import main
from sordino.edits import bake, diff, undo
from sordino.errors import UserError
from sordino.interventions import Dampening
from sordino.models.norms import NormGain
from sordino.models.open import open_model
from sordino.models.sites import find_sites
from test_find import assert_matches_plain
from tiny_gguf import tiny_of

SLOW = pytest.mark.slow
BOTH = {"post_attention_layernorm", "post_feedforward_layernorm"}
KINDS = {
    "gemma2": BOTH,
    "gemma3": BOTH,
    "gemma4_text": BOTH,
    "olmo2": BOTH,
    "olmo3": BOTH,
    "exaone4": BOTH,
    "glm4": {"post_self_attn_layernorm", "post_mlp_layernorm"},
}
PLUS_ONE = {"gemma2", "gemma3"}


def some(names):
    few = ("gemma3", "olmo2", "glm4")
    return [name if name in few else pytest.param(name, marks=SLOW) for name in names]


def dampening_of(sites) -> Dampening:
    factors = random_factors({site.path: site.neurons for site in sites})
    return Dampening({path: values + 0.1 for path, values in factors.items()}, "aura")


def ids():
    return torch.tensor([tiny_tokenizer()("the otter in the sea")["input_ids"]])


@pytest.mark.parametrize("name", KINDS)
def test_the_norms_after_blocks_are_found_and_no_others(name):
    model = tiny_model(name)
    sites = find_sites(model, "norms")
    assert {site.kind for site in sites} == KINDS[name]
    assert len(sites) == 2 * len({site.layer for site in sites}) == 2 * 4
    # What a norm puts out is added to the stream: without it, the layer gives its input back.
    layer = model.model.layers[0]
    silent = Dampening({s.path: torch.zeros(s.neurons).numpy() for s in sites}, "none")
    seen = {}

    def before(_layer, args, kwargs):
        seen["a"] = args[0] if args else kwargs["hidden_states"]

    def after(_layer, _args, output):
        seen["b"] = output[0] if isinstance(output, tuple) else output

    hooks = [
        layer.register_forward_pre_hook(before, with_kwargs=True),
        layer.register_forward_hook(after),
    ]
    with torch.no_grad(), silent.applied(model):
        model(ids(), use_cache=False)
    for hook in hooks:
        hook.remove()
    if name != "gemma4_text":  # where a third part of the layer adds to the stream
        torch.testing.assert_close(seen["a"], seen["b"], rtol=0, atol=0)


@pytest.mark.parametrize("name", KINDS)
def test_the_offset_of_a_gain_is_found_with_and_without_weights(name):
    for model in (tiny_model(name), tiny_model(name).to("meta")):
        for site in find_sites(model, "norms"):
            offset = NormGain(model.get_submodule(site.path)).offset
            assert offset == (1 if name in PLUS_ONE else 0)


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral"])
def test_a_norm_before_a_block_is_none(name):
    with pytest.raises(UserError, match="no norms between its blocks and the residual stream"):
        find_sites(tiny_model(name), "norms")


@pytest.mark.parametrize("name", some(KINDS))
def test_hooks_memory_and_folder_agree_and_the_folder_goes_back(name, tmp_path):
    folder = tiny_folder(name, tmp_path)
    model = class_of(name).from_pretrained(folder)
    dampening = dampening_of(find_sites(model, "norms"))
    bake(folder, dampening, tmp_path / "baked")
    with torch.no_grad():
        plain = model(ids()).logits
        with dampening.applied(model):
            hooked = model(ids()).logits
        dampening.bake_into(model)
        in_memory = model(ids()).logits
        written = class_of(name).from_pretrained(tmp_path / "baked")(ids()).logits
    torch.testing.assert_close(in_memory, hooked, rtol=1e-4, atol=1e-4)
    assert torch.equal(written, in_memory)
    assert (hooked - plain).abs().max() > 0.05
    undo(tmp_path / "baked", tmp_path / "undone")
    before, after = (
        load_file(path / "model.safetensors") for path in (folder, tmp_path / "undone")
    )
    for tensor, values in before.items():
        torch.testing.assert_close(after[tensor], values, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", some(KINDS))
def test_responses_are_the_norms_outputs(name, open_tiny, concept, monkeypatch):
    opened = open_tiny(name)
    assert_matches_plain(
        monkeypatch,
        type(opened)(opened.ref, opened.model, opened.tokenizer, "norms"),
        concept,
        batch_tokens=64,
    )


@pytest.mark.parametrize("architecture", ["gemma3", pytest.param("gemma2", marks=SLOW)])
def test_a_gguf_file_s_gains_are_scaled_whole(architecture, tmp_path):
    source = tiny_of(architecture, tmp_path / "model.gguf")
    opened = open_model(source, sites="norms")
    dampening = dampening_of(opened.sites)
    bake(source, dampening, tmp_path / "quiet.gguf")
    with torch.no_grad():
        plain = opened.model(ids()).logits
        with dampening.applied(opened.model):
            hooked = opened.model(ids()).logits
        baked = open_model(tmp_path / "quiet.gguf").model(ids()).logits
    torch.testing.assert_close(baked, hooked, rtol=1e-4, atol=1e-4)
    assert (hooked - plain).abs().max() > 0.05


def test_adapters_of_norms_are_refused(tmp_path):
    folder = tiny_folder("olmo2", tmp_path)
    dampening = dampening_of(open_model(folder, sites="norms").sites)
    for format in ("ia3", "lora"):
        with pytest.raises(UserError, match="are norms"):
            bake(folder, dampening, tmp_path / format, format=format)


@pytest.mark.parametrize("name", ["olmo2", "gemma3"])
def test_diff_names_the_gains_and_how_far_they_moved(name, tmp_path, capsys, monkeypatch):
    folder = tiny_folder(name, tmp_path)
    dampening = dampening_of(open_model(folder, sites="norms").sites)
    for factors in dampening.factors.values():
        factors[::3] = 1
    bake(folder, dampening, tmp_path / "baked")
    changed = {change.name: change for change in diff(folder, tmp_path / "baked").changed}
    assert changed.keys() == {f"{site}.weight" for site in dampening.factors}
    weights = load_file(folder / "model.safetensors")
    for site, factors in dampening.factors.items():
        gains = weights[f"{site}.weight"] + (1 if name in PLUS_ONE else 0)
        change = changed[f"{site}.weight"]
        assert (change.rows, change.factors) == ((factors != 1).sum(), None)
        moved = (gains * torch.from_numpy(factors - 1)).norm().item()
        assert change.norm_of_change == pytest.approx(moved, rel=1e-4)
    capsys.readouterr()
    monkeypatch.setenv("COLUMNS", "120")
    with pytest.raises(SystemExit) as ended:
        main(["diff", str(folder), str(tmp_path / "baked")])
    assert ended.value.code == 1
    said = capsys.readouterr().out
    assert f"{len(changed)} changed" in said
    assert all(f".{kind}" in said for kind in KINDS[name])
