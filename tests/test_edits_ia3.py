"""(IA)³ adapters, with PEFT itself as the oracle."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as tf
from peft import AutoPeftModelForCausalLM, PeftModel
from safetensors.torch import load_file

from families import FAMILIES, tiny_folder, tiny_model
from peft_adapters import dampening_of, logits
from sordino.edits import bake, read_provenance, verify
from sordino.errors import UserError
from sordino.interventions import Dampening, compose
from sordino.models.open import open_model
from tiny_gguf import tiny_gguf


@pytest.mark.parametrize("family", FAMILIES)
def test_peft_computes_what_hooks_and_weights_do(family, tmp_path, recwarn):
    folder, model = tiny_folder(family, tmp_path), tiny_model(family)
    dampening = dampening_of(model)
    bake(folder, dampening, tmp_path / "adapter", format="ia3")
    bake(folder, dampening, tmp_path / "baked")
    plain, hooked = logits(model), logits(model, dampening)
    adapted = PeftModel.from_pretrained(model, tmp_path / "adapter")
    wrapped = {
        n.removesuffix(".ia3_l.default") for n, _ in adapted.named_parameters() if "ia3" in n
    }
    assert wrapped == {f"base_model.model.{site}" for site in dampening.factors}
    torch.testing.assert_close(logits(adapted), hooked, rtol=1e-5, atol=1e-5)
    assert (hooked - plain).abs().max() > 0.1
    with adapted.disable_adapter():
        assert torch.equal(logits(adapted), plain)
    merged = adapted.merge_and_unload().state_dict()
    baked = tf.AutoModelForCausalLM.from_pretrained(tmp_path / "baked").state_dict()
    assert merged.keys() == baked.keys()
    for name, tensor in baked.items():
        assert torch.equal(merged[name], tensor), name
    assert not [str(w.message) for w in recwarn if "fan_in_fan_out" in str(w.message)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["gpt2", "qwen2"])
def test_merged_in_half_precision_it_is_the_baked_model_to_the_bit(family, dtype, tmp_path):
    folder = tiny_folder(family, tmp_path, dtype=dtype)
    model = tf.AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    dampening = dampening_of(model)
    bake(folder, dampening, tmp_path / "adapter", format="ia3")
    bake(folder, dampening, tmp_path / "baked")
    adapted = PeftModel.from_pretrained(model, tmp_path / "adapter")
    running, hooked = logits(adapted).float(), logits(adapted.merge_and_unload()).float()
    assert (running - hooked).abs().max() < 0.02 * hooked.abs().max()
    baked = tf.AutoModelForCausalLM.from_pretrained(tmp_path / "baked", dtype="auto")
    for name, tensor in baked.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name


def test_several_concepts_side_by_side(tmp_path):
    folder, model = tiny_folder("llama", tmp_path), tiny_model("llama")
    first, second = dampening_of(model, 1), dampening_of(model, 2, pattern=r"(up|o)_proj")
    for name, dampening in {"a": first, "b": second}.items():
        bake(folder, dampening, tmp_path / name, format="ia3")
    expected = {
        "a": logits(model, first),
        "b": logits(model, second),
        "both": logits(model, compose([first, second])),
        "none": logits(model),
    }
    adapted = PeftModel.from_pretrained(model, tmp_path / "a", adapter_name="a")
    adapted.load_adapter(tmp_path / "b", adapter_name="b")
    for name in ("a", "b", "a"):
        adapted.set_adapter(name)
        torch.testing.assert_close(logits(adapted), expected[name], rtol=1e-5, atol=1e-5)
    adapted.base_model.set_adapter(["a", "b"])
    torch.testing.assert_close(logits(adapted), expected["both"], rtol=1e-5, atol=1e-5)
    with adapted.disable_adapter():
        assert torch.equal(logits(adapted), expected["none"])
    merged = adapted.merge_and_unload()
    torch.testing.assert_close(logits(merged), expected["both"], rtol=1e-5, atol=1e-5)


def test_composed_it_is_one_adapter(tmp_path):
    folder, model = tiny_folder("gpt2", tmp_path), tiny_model("gpt2")
    both = compose([dampening_of(model, 1), dampening_of(model, 2).scaled(0.5)])
    record = bake(folder, both, tmp_path / "adapter", format="ia3")
    words = "number 1: aura, strength 1; then number 2: aura, strength 0.5"
    assert words in (tmp_path / "adapter/README.md").read_text()
    assert [part.expertise["concept"] for part in record.parts] == ["number 1", "number 2"]
    hooked = logits(model, both)
    adapted = PeftModel.from_pretrained(model, tmp_path / "adapter")
    torch.testing.assert_close(logits(adapted), hooked, rtol=1e-5, atol=1e-5)


def test_the_folder_holds_the_sites_that_change_and_tells_what_it_is(tmp_path):
    folder, model = tiny_folder("opt", tmp_path), tiny_model("opt")
    dampening = dampening_of(model)
    still = "model.decoder.layers.1.fc1"
    dampening.factors[still][:] = 1
    record = bake(folder, dampening, tmp_path / "adapter", format="ia3")
    files = {
        p.relative_to(tmp_path / "adapter").as_posix() for p in (tmp_path / "adapter").rglob("*.*")
    }
    assert files == {
        *("adapter_config.json", "adapter_model.safetensors", "README.md", "sordino.json"),
        "sordino/dampening.safetensors",
    }
    vectors = load_file(tmp_path / "adapter/adapter_model.safetensors")
    assert len(vectors) == len(dampening.factors) - 1
    for site, factors in dampening.factors.items():
        if site != still:
            vector = vectors[f"base_model.model.{site}.ia3_l"]
            assert torch.equal(vector, torch.from_numpy(factors)[:, None])
    config = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    matched = {n for n, _ in model.named_modules() if re.fullmatch(config["target_modules"], n)}
    assert matched == dampening.factors.keys() - {still}
    assert read_provenance(tmp_path / "adapter") == record
    assert record.written_as == "ia3"
    front = (tmp_path / "adapter/README.md").read_text().split("---")[1]
    assert "library_name" in front
    assert "base_model" not in front
    loaded = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")
    torch.testing.assert_close(logits(loaded), logits(model, dampening), rtol=1e-5, atol=1e-5)
    # transformers' own way of loading adapters
    model.load_adapter(str(tmp_path / "adapter"))
    assert torch.equal(logits(model), logits(loaded))


def test_a_gguf_model_takes_an_adapter(tmp_path):
    source = tiny_gguf(tmp_path / "tiny.gguf")
    model = open_model(source, device="cpu").model
    dampening = dampening_of(model)
    bake(source, dampening, tmp_path / "adapter", format="ia3")
    found = verify(source, dampening, tmp_path / "adapter", device="cpu")
    assert found.largest_difference < 1e-5
    assert found.largest_logit > 1


def test_verify_sees_a_wrong_adapter_and_leaves_the_model_as_it_was(tmp_path):
    folder, model = tiny_folder("llama", tmp_path), tiny_model("llama")
    bake(folder, dampening_of(model, 1), tmp_path / "adapter", format="ia3")
    opened = open_model(folder, device="cpu")
    before = logits(opened.model)
    found = verify(opened, dampening_of(model, 2), tmp_path / "adapter")
    assert found.largest_difference > 0.1
    assert torch.equal(logits(opened.model), before)
    assert not [name for name, _ in opened.model.named_parameters() if "ia3" in name]


def test_without_peft_verify_says_what_to_install(tmp_path, monkeypatch):
    folder, model = tiny_folder("llama", tmp_path), tiny_model("llama")
    dampening = dampening_of(model)
    bake(folder, dampening, tmp_path / "adapter", format="ia3")
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match=r'pip install "sordino\[peft\]"'):
        verify(folder, dampening, tmp_path / "adapter", device="cpu")


def test_what_an_adapter_cannot_be_is_refused(tmp_path):
    folder, model = tiny_folder("llama", tmp_path), tiny_model("llama")
    dampening = dampening_of(model)
    site = "model.layers.0.mlp.up_proj"
    shifted = Dampening(dampening.factors, "x", shifts={site: np.ones(48, np.float32)})
    foreign = Dampening({"model.layers.9.mlp.up_proj": np.zeros(48, np.float32)}, "x")
    for wrong, message in [
        (shifted, rf"1 site is shifted \(such as {site}\).*`format=hooks`"),
        (dampening.scaled(0), "All factors are 1"),
        (foreign, "no module"),
    ]:
        with pytest.raises(UserError, match=message):
            bake(folder, wrong, tmp_path / "adapter", format="ia3")
    with pytest.raises(UserError, match="`format=ia3` writes no weights"):
        bake(folder, dampening, tmp_path / "adapter", format="ia3", dtype="float16")
    assert [path.name for path in tmp_path.iterdir()] == ["llama"]


def test_the_lines_in_the_docs_work(tmp_path, monkeypatch):
    folder, model = tiny_folder("qwen2", tmp_path), tiny_model("qwen2")
    first, second = dampening_of(model, 1), dampening_of(model, 2)
    bake(folder, first, tmp_path / "insults", format="ia3")
    bake(folder, second, tmp_path / "threats", format="ia3")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        tf.AutoModelForCausalLM, "from_pretrained", classmethod(lambda *_: tiny_model("qwen2"))
    )
    page = (Path(__file__).parent.parent / "docs/adapters.md").read_text()
    page = page.partition("## (IA)³")[2]
    load, several, dial = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(load, scope := {})
    close = {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(logits(scope["model"]), logits(model, first), **close)
    exec(several, scope)
    both = logits(model, compose([first, second]))
    torch.testing.assert_close(logits(scope["model"]), both, **close)
    exec(load, scope)
    exec(dial, scope)
    torch.testing.assert_close(logits(scope["model"]), logits(model, first.scaled(0.5)), **close)
