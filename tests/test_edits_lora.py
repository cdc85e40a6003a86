"""LoRA adapters, with PEFT itself as the oracle."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as tf
from peft import AutoPeftModelForCausalLM, PeftModel
from peft.helpers import rescale_adapter_scale
from safetensors.torch import load_file

import peft_adapters
import quantised_folders as q
from families import FAMILIES, MIXTURES, everyday, tiny_folder, tiny_model, tiny_tokenizer
from peft_adapters import logits
from sordino.edits import bake, read_provenance, verification, verify
from sordino.errors import UserError
from sordino.interventions import Dampening
from sordino.models.open import empty_model, open_model
from sordino.models.reference import resolve

CLOSE = {"rtol": 1e-4, "atol": 1e-5}
RANK = 7


def dampening_of(model, seed=0, rows=RANK, pattern=None):
    return peft_adapters.dampening_of(model, seed, rows, pattern)


def loaded(model, folder):
    return PeftModel.from_pretrained(model, folder)


def adapted_as_hooked(family, tmp_path):
    """A family's model in peft, shown to compute at scale 1 and ½ what hooks do.

    Gives the dampening, the logits of the model without it, and the model in peft. The baked model
    is in `tmp_path`, too.
    """
    folder, model = tiny_folder(family, tmp_path), tiny_model(family)
    dampening = dampening_of(model)
    bake(folder, dampening, tmp_path / "adapter", format="lora")
    bake(folder, dampening, tmp_path / "baked")
    plain, hooked = logits(model), logits(model, dampening)
    half = logits(model, dampening.scaled(0.5))
    adapted = loaded(model, tmp_path / "adapter")
    torch.testing.assert_close(logits(adapted), hooked, **CLOSE)
    assert (hooked - plain).abs().max() > 0.01
    with rescale_adapter_scale(adapted, 0.5):
        torch.testing.assert_close(logits(adapted), half, **CLOSE)
    return dampening, plain, adapted


@pytest.mark.parametrize("family", FAMILIES)
def test_peft_computes_what_hooks_and_weights_do(family, tmp_path):
    dampening, plain, adapted = adapted_as_hooked(family, tmp_path)
    places = {n.rpartition(".lora_A")[0] for n, _ in adapted.named_parameters() if "lora_A" in n}
    assert places == {f"base_model.model.{site}" for site in dampening.factors}
    with rescale_adapter_scale(adapted, 0.0):
        assert torch.equal(logits(adapted), plain)
    merged = adapted.merge_and_unload().state_dict()
    baked = tf.AutoModelForCausalLM.from_pretrained(tmp_path / "baked").state_dict()
    assert merged.keys() == baked.keys()
    for name, tensor in baked.items():
        torch.testing.assert_close(merged[name], tensor, rtol=1e-6, atol=1e-7)


REFUSED = {"gpt_oss", "laguna"}  # tests/test_experts.py


@pytest.mark.parametrize("family", everyday([name for name in MIXTURES if name not in REFUSED]))
def test_peft_holds_experts_too(family, tmp_path):
    _, plain, adapted = adapted_as_hooked(family, tmp_path)
    with adapted.disable_adapter():
        torch.testing.assert_close(logits(adapted), plain, **CLOSE)
    merged = adapted.merge_and_unload().state_dict()
    baked = open_model(tmp_path / "baked", device="cpu").model.state_dict()
    assert merged.keys() == baked.keys()
    for name, tensor in baked.items():
        torch.testing.assert_close(merged[name], tensor, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("family", ["qwen2_moe", "deepseek_v3"])
def test_peft_does_not_take_shared_experts_for_routed_ones(family, tmp_path):
    folder, model = tiny_folder(family, tmp_path), tiny_model(family)
    dampening = dampening_of(model, pattern=r"shared_expert|layers\.0\.mlp\.\w+$")
    bake(folder, dampening, tmp_path / "adapter", format="lora")
    hooked = logits(model, dampening)
    torch.testing.assert_close(logits(loaded(model, tmp_path / "adapter")), hooked, **CLOSE)


@pytest.mark.parametrize("family", ["gpt2", "qwen2"])
def test_in_half_precision_it_is_as_exact_as_the_type(family, tmp_path):
    folder = tiny_folder(family, tmp_path, dtype=torch.bfloat16)
    model = tf.AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    dampening = dampening_of(model)
    bake(folder, dampening, tmp_path / "adapter", format="lora")
    bake(folder, dampening, tmp_path / "baked")
    found = verify(folder, dampening, tmp_path / "adapter", device="cpu")
    assert found.within_rounding
    merged = loaded(model, tmp_path / "adapter").merge_and_unload().state_dict()
    baked = tf.AutoModelForCausalLM.from_pretrained(tmp_path / "baked", dtype="auto")
    for name, tensor in baked.state_dict().items():
        torch.testing.assert_close(merged[name], tensor, rtol=2**-7, atol=2**-9)


def test_a_silenced_neuron_is_silent_to_the_bit_once_merged(tmp_path):
    folder, model = tiny_folder("llama", tmp_path), tiny_model("llama")
    factors = np.ones(48, np.float32)
    factors[[3, 40]] = 0
    site = "model.layers.1.mlp.up_proj"
    bake(folder, Dampening({site: factors}, "x"), tmp_path / "adapter", format="lora")
    merged = loaded(model, tmp_path / "adapter").merge_and_unload().get_submodule(site).weight
    assert (merged.abs().amax(1) == 0).nonzero().flatten().tolist() == [3, 40]


def test_a_matrix_takes_only_the_rank_that_it_needs(tmp_path, capsys):
    folder, model = tiny_folder("llama", tmp_path), tiny_model("llama")
    whole = dampening_of(model, rows=9)
    few, still = "model.layers.0.mlp.up_proj", "model.layers.2.mlp.down_proj"
    factors = {**whole.factors, **Dampening({few: whole.factors[few]}, "x").limited(2).factors}
    factors[still] = np.ones_like(factors[still])
    dampening = Dampening(factors, "x")
    bake(folder, dampening, tmp_path / "adapter", format="lora")
    assert "ranks from 2 to 9" in capsys.readouterr().err
    tensors = load_file(tmp_path / "adapter/adapter_model.safetensors")
    config = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] == 9
    assert config["rank_pattern"] == config["alpha_pattern"] == {re.escape(few): 2}
    assert config["target_modules"] == [s for s in factors if s != still]
    for site in factors:
        name = f"base_model.model.{site}.lora_A.weight"
        assert (name in tensors) == (site != still)
        if site == few:
            assert tensors[name].shape == (2, 32)
    hooked = logits(model, dampening)
    torch.testing.assert_close(logits(loaded(model, tmp_path / "adapter")), hooked, **CLOSE)


def test_several_concepts_at_once(tmp_path):
    """Adapters add up, where dampenings are multiplied: the difference is where both change."""
    folder, model = tiny_folder("llama", tmp_path), tiny_model("llama")
    first = dampening_of(model, 1)
    second = dampening_of(model, 2, pattern=r"(up|o)_proj")
    for name, dampening in {"a": first, "b": second}.items():
        bake(folder, dampening, tmp_path / name, format="lora")

    def added(s, t):
        return Dampening(
            {
                site: 1
                + np.float32(s) * (first.factors.get(site, np.float32(1)) - 1)
                + np.float32(t) * (second.factors.get(site, np.float32(1)) - 1)
                for site in {**first.factors, **second.factors}
            },
            "x",
        )

    expected = {pair: logits(model, added(*pair)) for pair in [(1, 0), (0, 1), (1, 1), (0.5, 0.8)]}
    plain = logits(model)
    adapted = PeftModel.from_pretrained(model, tmp_path / "a", adapter_name="a")
    adapted.load_adapter(tmp_path / "b", adapter_name="b")
    for chosen, pair in [("a", (1, 0)), ("b", (0, 1)), (["a", "b"], (1, 1))]:
        adapted.base_model.set_adapter(chosen)
        torch.testing.assert_close(logits(adapted), expected[pair], **CLOSE)
    adapted.add_weighted_adapter(["a", "b"], [0.5, 0.8], "mixed", combination_type="cat")
    adapted.set_adapter("mixed")
    torch.testing.assert_close(logits(adapted), expected[0.5, 0.8], **CLOSE)
    with adapted.disable_adapter():
        assert torch.equal(logits(adapted), plain)


def test_biases_and_shifts_are_held_by_peft(tmp_path, capsys):
    folder, model = tiny_folder("opt", tmp_path), tiny_model("opt")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(generator=torch.Generator().manual_seed(1))
    model.save_pretrained(folder)
    plain = dampening_of(model)
    shifts = {
        site: np.linspace(-1, 1, f.size, dtype=np.float32) for site, f in plain.factors.items()
    }
    dampening = Dampening(plain.factors, "x", shifts=shifts)
    bake(folder, dampening, tmp_path / "adapter", format="lora")
    assert "lora_bias" in capsys.readouterr().err
    bake(folder, dampening, tmp_path / "baked")
    hooked, half = logits(model, dampening), logits(model, dampening.scaled(0.5))
    adapted = loaded(model, tmp_path / "adapter")
    torch.testing.assert_close(logits(adapted), hooked, **CLOSE)
    with rescale_adapter_scale(adapted, 0.5):
        torch.testing.assert_close(logits(adapted), half, **CLOSE)
    adapted.merge_and_unload()
    baked = tf.AutoModelForCausalLM.from_pretrained(tmp_path / "baked")
    torch.testing.assert_close(logits(model), logits(baked), **CLOSE)


def test_without_biases_shifts_are_held_too_and_not_merged(tmp_path, capsys):
    folder, model = tiny_folder("qwen2", tmp_path), tiny_model("qwen2")
    site = "model.layers.1.mlp.up_proj"
    moved = Dampening(
        {site: np.ones(48, np.float32)}, "x", shifts={site: np.full(48, 0.3, np.float32)}
    )
    bake(folder, moved, tmp_path / "adapter", format="lora")
    assert "cannot merge it" in capsys.readouterr().err
    hooked = logits(model, moved)
    torch.testing.assert_close(logits(loaded(model, tmp_path / "adapter")), hooked, **CLOSE)


def test_the_layout_is_the_one_that_servers_read(tmp_path):
    """vLLM's, SGLang's and TGI's loaders as their sources have them; none of them was run."""
    folder, model = tiny_folder("llama", tmp_path), tiny_model("llama")
    record = bake(folder, dampening_of(model), tmp_path / "adapter", format="lora")
    assert record.written_as == "lora"
    assert read_provenance(tmp_path / "adapter") == record
    here = tmp_path / "adapter"
    assert [p.name for p in here.glob("*.safetensors")] == ["adapter_model.safetensors"]
    config = json.loads((here / "adapter_config.json").read_text())
    # vLLM's PEFTHelper: what it needs, and what it refuses
    assert config.keys() >= {"r", "lora_alpha", "target_modules"}
    assert not config["modules_to_save"]
    assert not config["use_dora"]
    assert config["bias"] == "none"
    # all three scale by one alpha over one rank
    assert config["lora_alpha"] / config["r"] == 1
    assert not config["rank_pattern"]
    assert not config["use_rslora"]
    # SGLang normalises the last names, and wants gate and up together
    assert config["target_modules"] == ["down_proj", "gate_proj", "up_proj"]
    for name, tensor in load_file(here / "adapter_model.safetensors").items():
        found = re.fullmatch(r"base_model\.model\.(model\..+)\.lora_(A|B)\.weight", name)
        neurons, inputs = model.get_submodule(found[1]).weight.shape
        # of one rank, as TGI stacks layers and SGLang fills its buffers
        assert tensor.shape == ((RANK, inputs) if found[2] == "A" else (neurons, RANK))
        assert tensor.dtype == torch.float32


def test_transformers_and_peft_find_it_by_the_folder_alone(tmp_path):
    folder, model = tiny_folder("llama", tmp_path), tiny_model("llama")
    dampening = dampening_of(model)
    bake(folder, dampening, tmp_path / "adapter", format="lora")
    card = (tmp_path / "adapter/README.md").read_text()
    assert "library_name: peft" in card
    assert "number 0" in card
    hooked = logits(model, dampening)
    auto = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")
    torch.testing.assert_close(logits(auto), hooked, **CLOSE)
    model.load_adapter(str(tmp_path / "adapter"))
    torch.testing.assert_close(logits(model), hooked, **CLOSE)


QUANTISED = {
    "gptq": q.gptq(4, 32),
    "awq": q.awq(),
    "fp8": q.fp8(),
    "compressed": q.compressed_tensors(strategy="channel"),
    "nf4": q.four_bit(),
}


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("name", QUANTISED)
def test_rows_of_quantised_models_are_de_quantised(name, family, tmp_path):
    made = QUANTISED[name]
    folder = q.quantised_folder_of(made, tmp_path, family=family, shards=2)
    dampening = dampening_of(empty_model(resolve(folder)))
    bake(folder, dampening, tmp_path / "adapter", format="lora")
    written, stored = (
        load_file(tmp_path / "adapter/adapter_model.safetensors"),
        q.tensors_of(folder),
    )
    for site, factors in dampening.factors.items():
        on_disk = site if family == "llama" else site.removeprefix("transformer.")
        layer = q.layer_of(stored, on_disk) or q.layer_of(stored, site)
        rows = made.reference(layer)
        a, b = (written[f"base_model.model.{site}.lora_{m}.weight"].numpy() for m in "AB")
        expected = (factors[:, None] - 1) * rows
        np.testing.assert_allclose(b @ a, expected, rtol=1e-3, atol=1e-3 * np.abs(rows).max())
        assert len(a) == RANK


def test_an_adapter_of_a_model_that_cannot_be_opened_is_not_compared(tmp_path, monkeypatch):
    folder = q.quantised_folder_of(q.gptq(4, 32), tmp_path, family="llama")
    dampening = dampening_of(empty_model(resolve(folder)))
    bake(folder, dampening, tmp_path / "adapter", format="lora")
    monkeypatch.setattr(verification, "open_model", refuse)
    with pytest.raises(UserError, match="a package is missing"):
        verify(folder, dampening, tmp_path / "adapter", device="cpu")


def refuse(*_, **__):
    raise UserError("a package is missing")


def test_what_it_cannot_be_is_refused(tmp_path):
    folder, model = tiny_folder("llama", tmp_path), tiny_model("llama")
    dampening = dampening_of(model, rows=10)
    message = r"10 rows of .*a rank of 9 .*setting `rows=9`.*`rank=10`"
    with pytest.raises(UserError, match=message):
        bake(folder, dampening, tmp_path / "adapter", format="lora", rank=9)
    bake(folder, dampening, tmp_path / "adapter", format="lora", rank=10)
    with pytest.raises(UserError, match="All factors are 1"):
        bake(folder, dampening.scaled(0), tmp_path / "x", format="lora")
    with pytest.raises(UserError, match="`rank=8` is for `format=lora`: `format=ia3` has no rank"):
        bake(folder, dampening, tmp_path / "x", format="ia3", rank=8)
    with pytest.raises(UserError, match="`format=lora` writes no weights"):
        bake(folder, dampening, tmp_path / "x", format="lora", dtype="float16")
    assert not (tmp_path / "x").exists()
    opened = open_model(folder, device="cpu")
    assert verify(opened, dampening_of(model, 2), tmp_path / "adapter").largest_difference > 0.01


def test_the_lines_in_the_docs_work(tmp_path, monkeypatch):
    folder, model = tiny_folder("qwen2", tmp_path), tiny_model("qwen2")
    first, second = dampening_of(model, 1), dampening_of(model, 2)
    bake(folder, first, tmp_path / "insults-lora", format="lora")
    bake(folder, second, tmp_path / "threats-lora", format="lora")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        tf.AutoModelForCausalLM, "from_pretrained", classmethod(lambda *_: tiny_model("qwen2"))
    )
    page = (Path(__file__).parent.parent / "docs/adapters.md").read_text()
    page = page.partition("## LoRA")[2].partition("## (IA)³")[0]
    load, dial, several = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    monkeypatch.setattr(
        tf.AutoTokenizer, "from_pretrained", classmethod(lambda *_: tiny_tokenizer())
    )
    exec(load, scope := {})
    torch.testing.assert_close(logits(scope["model"]), logits(model, first), **CLOSE)
    exec(dial, scope)
    assert scope["ids"].shape[1] > len(tiny_tokenizer()("The weather")["input_ids"])
    exec(several, scope)
    both = {s: f + second.factors[s] - 1 for s, f in first.factors.items()}
    torch.testing.assert_close(logits(scope["model"]), logits(model, Dampening(both, "x")), **CLOSE)
