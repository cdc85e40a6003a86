"""Shifts on disk: into the biases there are, into new ones, or out as hooks."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as tf
from safetensors.torch import load_file, save_file

from families import FAMILIES, tiny_folder, tiny_model, tiny_tokenizer
from sordino.edits import bake, read_provenance, verify
from sordino.edits.biases import can_shift
from sordino.edits.shard import Change, copy_changed
from sordino.errors import UserError
from sordino.interventions import Dampening
from sordino.models.open import open_model
from sordino.models.sites import find_sites
from tiny_gguf import tiny_gguf

HAVE_BIASES = {
    *("gpt2", "gpt_neox", "gptj", "opt", "bloom", "falcon_sequential", "llama_biased", "phi"),
    "starcoder2",
}
CAN_HAVE_BIASES = {"llama", "granite"}


def shifting(sites, seed=0, shifted=lambda path: True):
    """Random factors for all sites and shifts for those chosen, some neurons with neither."""
    generator = np.random.default_rng(seed)

    def some(values, otherwise):
        keep = generator.random(values.size) < 0.5
        return np.where(keep, otherwise, values).astype(np.float32)

    factors = {s.path: some(generator.uniform(0, 1.5, s.neurons), 1) for s in sites}
    shifts = {
        s.path: some(generator.normal(0, 0.3, s.neurons), 0) for s in sites if shifted(s.path)
    }
    return Dampening(factors, "linear_transport", expertise={"concept": "calm"}, shifts=shifts)


def only_up(path):
    return path.endswith("up_proj")


def logits(model, dampening=None):
    ids = torch.tensor([tiny_tokenizer()("the otter in the sea")["input_ids"]])
    with torch.no_grad():
        if dampening is None:
            return model(ids).logits
        with dampening.applied(model):
            return model(ids).logits


@pytest.mark.parametrize("shard", [None, "20KB"])
@pytest.mark.parametrize("family", sorted(HAVE_BIASES | CAN_HAVE_BIASES))
def test_baked_equals_hooked_equals_edited_in_memory(family, shard, tmp_path):
    folder = tiny_folder(family, tmp_path, shard=shard)
    model = tiny_model(family)
    dampening = shifting(find_sites(model))
    record = bake(folder, dampening, tmp_path / "baked")
    baked, loading = tf.AutoModelForCausalLM.from_pretrained(
        tmp_path / "baked", output_loading_info=True
    )
    assert not any(loading[kind] for kind in ("missing_keys", "unexpected_keys"))
    written, plain, hooked = logits(baked), logits(model), logits(model, dampening)
    dampening.bake_into(model)
    torch.testing.assert_close(written, hooked, rtol=1e-4, atol=1e-4)
    assert torch.equal(written, logits(model))
    assert (hooked - plain).abs().max() > 0.1
    assert record.changed == dampening.changed
    assert record == read_provenance(tmp_path / "baked")
    assert record.configuration == ({"mlp_bias": True} if family in CAN_HAVE_BIASES else None)
    for site, summary in record.sites.items():
        assert summary.shift.max == pytest.approx(dampening.shifts[site].max())


@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - HAVE_BIASES - CAN_HAVE_BIASES))
def test_where_no_bias_can_be_the_shifts_go_out_as_hooks(family, tmp_path):
    folder = tiny_folder(family, tmp_path)
    model = tiny_model(family)
    dampening = shifting(find_sites(model))
    with pytest.raises(UserError, match=r"no setting that gives a bias.*`format=hooks`") as caught:
        bake(folder, dampening, tmp_path / "out")
    assert type(model).__name__ in str(caught.value)
    assert not (tmp_path / "out").exists()
    # What needs no bias can be baked all the same.
    bake(folder, dampening.scaled(0), tmp_path / "scaled")

    bake(folder, dampening, tmp_path / "out", format="hooks")
    names = {p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*.*")}
    assert names == {"README.md", "sordino.json", "sordino/dampening.safetensors"}
    assert "no weights are here" in (tmp_path / "out/README.md").read_text()
    loaded = Dampening.load(tmp_path / "out/sordino/dampening.safetensors")
    assert torch.equal(logits(model, loaded), logits(model, dampening))
    bake(folder, dampening, tmp_path / "out", format="hooks", force=True)
    with pytest.raises(UserError, match="`format=hooks` writes no weights"):
        bake(folder, dampening, tmp_path / "other", format="hooks", dtype="bfloat16")


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_it_is_known_beforehand_whether_biases_can_hold_shifts(family):
    model = tiny_model(family)
    sites = [site.path for site in find_sites(model)]
    assert can_shift(model, sites) == (family in HAVE_BIASES | CAN_HAVE_BIASES)


@pytest.mark.parametrize("shard", [None, "20KB"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_new_biases_change_nothing_but_what_they_must(shard, dtype, tmp_path):
    folder = tiny_folder("llama", tmp_path, shard=shard, dtype=dtype)
    sites = open_model(folder, device="cpu").sites
    dampening = shifting(sites, shifted=only_up)
    bake(folder, dampening, tmp_path / "out")
    raw = json.loads((folder / "config.json").read_text())
    assert json.loads((tmp_path / "out/config.json").read_text()) == raw | {"mlp_bias": True}
    before, after = weights(folder), weights(tmp_path / "out")
    new = {f"{site.path}.bias" for site in sites}
    assert after.keys() - before.keys() == new
    for name in new:
        site = name.removesuffix(".bias")
        expected = dampening.shifts.get(site, np.zeros(len(after[name]), np.float32))
        assert torch.equal(after[name], torch.from_numpy(expected).to(dtype))
    for name in before.keys() - {f"{site.path}.weight" for site in sites}:
        assert torch.equal(before[name], after[name]), name
    for file in folder.glob("*.safetensors"):
        old, grown = header(file), header(tmp_path / "out" / file.name)
        assert list(grown.items())[: len(old)] == list(old.items())
        assert all(name in new for name in list(grown)[len(old) :])
    for file in folder.glob("*.index.json"):
        index = json.loads((tmp_path / "out" / file.name).read_text())
        old = json.loads(file.read_text())
        added = sum(after[name].nbytes for name in new)
        assert index["metadata"]["total_size"] == old["metadata"]["total_size"] + added
        assert index["weight_map"].keys() == after.keys()
        assert index["weight_map"].items() >= old["weight_map"].items()
        for name, shard_of in index["weight_map"].items():
            assert name in header(tmp_path / "out" / shard_of)


def weights(folder):
    return {k: v for file in folder.glob("*.safetensors") for k, v in load_file(file).items()}


def header(path):
    data = path.read_bytes()
    return json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])


def test_biases_that_are_there_already_are_not_made_twice(tmp_path):
    folder = tiny_folder("llama", tmp_path)
    dampening = shifting(open_model(folder, device="cpu").sites)
    bake(folder, dampening, tmp_path / "once")
    record = bake(tmp_path / "once", dampening, tmp_path / "twice")
    assert record.configuration is None
    assert record.earlier.configuration == {"mlp_bias": True}
    model = open_model(folder, device="cpu").model
    dampening.bake_into(model)
    dampening.bake_into(model)
    twice = tf.AutoModelForCausalLM.from_pretrained(tmp_path / "twice")
    assert torch.equal(logits(twice), logits(model))


def test_attention_gets_its_own_setting_where_it_is_shifted(tmp_path):
    folder = tiny_folder("llama", tmp_path)
    model = tiny_model("llama")
    sites = find_sites(model, r"o_proj|up_proj")
    record = bake(folder, shifting(sites), tmp_path / "out")
    assert record.configuration == {"attention_bias": True, "mlp_bias": True}
    found = verify(folder, shifting(sites), tmp_path / "out", device="cpu")
    assert found.largest_difference < 1e-4


def test_a_setting_that_would_touch_attention_too_is_none(tmp_path):
    folder = tiny_folder("starcoder2", tmp_path, use_bias=False)
    dampening = shifting(open_model(folder, device="cpu").sites)
    with pytest.raises(UserError, match=r"8 of the shifted sites \(such as .*\.0\.mlp\.c_fc\)"):
        bake(folder, dampening, tmp_path / "out")


def test_a_setting_that_the_configuration_refuses_is_passed_over(tmp_path):
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
    config = tf.InternLM3Config(**sizes, num_hidden_layers=2, vocab_size=300, head_dim=8)
    model = tf.AutoModelForCausalLM.from_config(config)
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(UserError, match="no setting that gives a bias"):
        bake(tmp_path / "model", shifting(find_sites(model)), tmp_path / "out")


def test_the_text_part_of_a_configuration_is_the_one_that_changes(tmp_path):
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
    config = tf.Gemma3Config(
        text_config={**sizes, "vocab_size": 300, "num_hidden_layers": 2, "head_dim": 8}
        | {"num_key_value_heads": 2},
        vision_config={**sizes, "num_hidden_layers": 1, "image_size": 16, "patch_size": 8},
        mm_tokens_per_image=4,
    )
    torch.manual_seed(0)
    model = tf.AutoModelForCausalLM.from_config(config).eval()
    model.save_pretrained(tmp_path / "gemma3")
    dampening = shifting(find_sites(model, "o_proj"))
    record = bake(tmp_path / "gemma3", dampening, tmp_path / "out")
    assert record.configuration == {"attention_bias": True}
    raw = json.loads((tmp_path / "gemma3/config.json").read_text())
    raw["text_config"]["attention_bias"] = True
    assert json.loads((tmp_path / "out/config.json").read_text()) == raw
    dampening.bake_into(model)
    baked = tf.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(logits(baked), logits(model))


def test_a_name_that_is_taken_is_not_written_twice(tmp_path):
    folder = tiny_folder("llama", tmp_path)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.bias"] = torch.ones(48)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    dampening = shifting(open_model(tiny_folder("llama", tmp_path / "whole"), device="cpu").sites)
    # A tensor that the model has no place for is refused before anything is written.
    with pytest.raises(UserError, match=r"model\.layers\.0\.mlp\.up_proj\.bias"):
        bake(folder, dampening, tmp_path / "out")


def test_matrices_that_are_split_while_loading_take_no_new_bias(tmp_path):
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
    path = next(n for n, m in model.named_modules() if n.endswith("1.mlp.up_proj"))
    ones = np.ones(48, np.float32)
    with pytest.raises(UserError, match="`format=hooks`"):
        bake(tmp_path / "model", Dampening({path: ones}, "x", shifts={path: ones}), tmp_path / "o")


def test_a_gguf_file_gets_biases(tmp_path):
    source = tiny_gguf(tmp_path / "tiny.gguf")
    dampening = shifting(open_model(source, device="cpu").sites, shifted=only_up)
    record = bake(source, dampening, tmp_path / "out")
    assert record.configuration == {"mlp_bias": True}
    assert json.loads((tmp_path / "out/config.json").read_text())["mlp_bias"] is True
    biases = {k: v for k, v in weights(tmp_path / "out").items() if k.endswith(".bias")}
    assert biases.keys() == {f"{site}.bias" for site in dampening.factors}
    assert {name for name, bias in biases.items() if bias.any()} == {
        f"{site}.bias" for site in dampening.shifts
    }
    found = verify(source, dampening, tmp_path / "out", device="cpu")
    assert found.largest_difference < 1e-4
    bake(source, dampening, tmp_path / "hooks", format="hooks")
    loaded = Dampening.load(tmp_path / "hooks/sordino/dampening.safetensors")
    assert loaded.changed == dampening.changed


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_added_tensors_come_last(dtype, tmp_path):
    tensors = {"weight": torch.randn(3, 5).to(dtype), "odd": torch.tensor([1, 2, 3]).to(torch.int8)}
    source, target = tmp_path / "in", tmp_path / "out"
    save_file(tensors, source, metadata={"format": "pt", "note": "ümläut"})
    added = {"ä.bias": torch.randn(3).to(dtype), "b.bias": torch.randn(5).to(dtype)}
    advanced = []
    change = Change(torch.full((3, 1), 2.0), torch.ones(3, 1))
    copy_changed(source, target, {"weight": change}, advanced.append, added)
    assert sum(advanced) == source.stat().st_size
    found = load_file(target)
    assert found.keys() == tensors.keys() | added.keys()
    assert torch.equal(found["weight"], (2 * tensors["weight"].double() + 1).to(dtype))
    assert torch.equal(found["odd"], tensors["odd"])
    assert all(torch.equal(found[name], tensor) for name, tensor in added.items())
    assert header(target)["__metadata__"] == {"format": "pt", "note": "ümläut"}


def test_the_loader_in_the_docs_works(tmp_path, monkeypatch):
    folder = tiny_folder("qwen2", tmp_path)
    dampening = shifting(open_model(folder, device="cpu").sites, shifted=only_up)
    bake(folder, dampening, tmp_path / "quiet", format="hooks")
    model = tf.AutoModelForCausalLM.from_pretrained(folder)
    expected = logits(model, dampening)
    page = (Path(__file__).parent.parent / "docs/shifts.md").read_text()
    with_sordino, alone = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        tf.AutoModelForCausalLM, "from_pretrained", classmethod(lambda *_: tiny_model("qwen2"))
    )
    exec(alone, scope := {})
    torch.testing.assert_close(logits(scope["model"]), expected, rtol=1e-5, atol=1e-5)
    ids = torch.tensor([tiny_tokenizer()("the otter in the sea")["input_ids"]])
    exec(with_sordino, scope := {"ids": ids})
    torch.testing.assert_close(scope["logits"], expected, rtol=1e-5, atol=1e-5)
