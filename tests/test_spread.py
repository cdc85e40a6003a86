"""Models whose layers are on several devices, as transformers and accelerate spread them.

There is one processor here and no GPU. Two stand-ins say what can be said: layers that lie on the
disk until they are called (accelerate's hooks are on every module then, and results have to be
those of the plain model, bit by bit), and layers on torch's "meta" device, which computes shapes
alone but refuses whatever mixes it with another device.
"""

import pytest
import torch
from accelerate import dispatch_model
from transformers import AutoModelForCausalLM

from families import LAYERS, random_factors, tiny_folder
from sordino.errors import UserError
from sordino.expertise.attribution import AttributionSettings
from sordino.expertise.find import find_experts
from sordino.expertise.passes import LayerByLayer, WholeForward
from sordino.expertise.pooling import Capture
from sordino.expertise.sweep import SweepSettings, _buffers
from sordino.interventions import Dampening
from sordino.models.generation import Sampling, encode_prompts, generate, plan
from sordino.models.open import OpenModel, _refuse_offloaded, _spread, fits, open_model
from sordino.models.ranks import sharing
from sordino.models.reference import resolve
from sordino.models.tokenise import encode, equal_length_batches

FAMILIES = ["llama", "gemma2", "gpt2", "gptj"]
SETTINGS = SweepSettings(max_tokens=18, batch_tokens=200)


def blocks(model) -> list[str]:
    """The modules that a map of devices names: the layers, and what is beside them."""
    decoder = model.get_decoder()
    prefix = next(name for name, module in model.named_modules() if module is decoder)
    names = []
    for name, module in decoder.named_children():
        path = f"{prefix}.{name}"
        names += [f"{path}.{i}" for i in range(LAYERS)] if len(list(module.children())) else [path]
    return [*names, *(name for name, _ in model.named_children() if name != prefix)]


def spread(family, folder, elsewhere: str) -> tuple[OpenModel, OpenModel]:
    """A model as it is, and with some of its layers elsewhere.

    Those on the disk alternate with others; from "meta" there is no way back, so that all that
    follows is there, too.
    """
    plain = open_model(tiny_folder(family, folder), device="cpu")
    layers = range(1, LAYERS, 2) if elsewhere == "disk" else range(LAYERS // 2, LAYERS)
    moved = {*map(str, layers), *(() if elsewhere == "disk" else ("norm", "ln_f"))}
    places = {
        name: elsewhere if name.split(".")[-1] in moved else "cpu" for name in blocks(plain.model)
    }
    assert elsewhere in places.values()
    assert "cpu" in places.values()
    if elsewhere == "disk":
        model = AutoModelForCausalLM.from_pretrained(
            plain.ref.path, device_map=places, offload_folder=folder / "offloaded"
        )
    else:
        model = open_model(plain.ref, device="cpu").model
        dispatch_model(model, places, main_device="cpu", skip_keys="past_key_values")
    model.requires_grad_(False)  # what comes from the disk cannot be given its mark back
    return plain, OpenModel(plain.ref, model.eval(), plain.tokenizer)


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_that_come_and_go_are_found_as_if_they_stayed(family, tmp_path, concept):
    plain, hooked = spread(family, tmp_path, "disk")
    assert any(p.is_meta for p in hooked.model.parameters())
    assert hooked.devices == (torch.device("cpu"),)
    options = {"settings": SETTINGS, "attribution": AttributionSettings(20)}
    written = []
    for name, opened in (("plain", plain), ("hooked", hooked)):
        target = tmp_path / f"{name}.safetensors"
        find_experts(opened, concept, output=target, **options)
        written.append(target.read_bytes())
    assert written[0] == written[1]
    # It still answers afterwards: nothing of accelerate's was lost on the way.
    assert torch.equal(logits(plain), logits(hooked))


@torch.no_grad()
def logits(opened: OpenModel) -> torch.Tensor:
    ids = opened.tokenizer("the otter in the sea", return_tensors="pt").input_ids
    return opened.model(input_ids=ids).logits


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_layers_that_come_and_go_write_and_are_dampened_alike(family, tmp_path):
    plain, hooked = spread(family, tmp_path, "disk")
    factors = random_factors({site.path: site.neurons for site in plain.sites}, seed=3)
    dampening = Dampening(factors, "made")
    texts = ["the otter", "a quiet river turned", "nobody heard", "under an old bridge"]
    seen = []
    for opened in (plain, hooked):
        with dampening.applied(opened.model):
            prompts = encode_prompts(opened, texts, max_tokens=20, new_tokens=6)
            batches = plan(opened, prompts, continuations=3, new_tokens=6, batch_tokens=200)
            written = [
                one.ids for many in generate(opened, batches, Sampling(6), seed=5) for one in many
            ]
            seen.append((written, logits(opened)))
    assert seen[0][0] == seen[1][0]
    assert torch.equal(seen[0][1], seen[1][1])


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_mixes_devices(family, tmp_path, concept):
    """On the way there; values, and so all that follows, are not to be had on that device."""
    plain, split = spread(family, tmp_path, "meta")
    meta, processor = torch.device("meta"), torch.device("cpu")
    assert set(split.devices) == {processor, meta}
    encoded = encode(plain.tokenizer, concept.sentences, 18)
    batches = equal_length_batches(encoded, 200)
    capture, there = Capture("max"), set()
    with torch.inference_mode():
        for way in (LayerByLayer(split, batches), WholeForward(split, batches, len(encoded))):
            for stage, sites in enumerate(way.stages):
                buffers = _buffers(sites, len(encoded), split)
                there |= {buffer.device for buffer in buffers.values()}
                with capture.hooked(split.model, buffers):
                    for index, batch in enumerate(batches):
                        capture.rows(0, batch)
                        way.run(stage, index)
                        capture.check()
                for site in sites:
                    weight = split.model.get_submodule(site.path).weight
                    assert weight.device == buffers[site].device
    assert there == {processor, meta}


def test_what_all_gpus_cannot_do_is_said(tmp_path, monkeypatch):
    folder = tiny_folder("llama", tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="`device=all` needs GPUs"):
        open_model(folder, device="all")
    ref, gpus = resolve(folder), [torch.device("cuda", 0), torch.device("cuda", 1)]
    each = (1 << 30) + 150_000  # what is beside the weights, and half of a tiny model or so
    monkeypatch.setattr("sordino.models.open.available", lambda _: each)
    size = sum(file.stat().st_size for file in ref.weight_files)
    assert 150_000 < 1.05 * size < 300_000
    assert fits(ref, gpus)
    assert not fits(ref, gpus[:1])
    assert _spread(gpus) == {"device_map": "auto", "max_memory": {0: 150_000, 1: 150_000}}
    _, hooked = spread("llama", tmp_path / "spread", "disk")
    with pytest.raises(UserError, match="does not fit on the GPUs of this machine together"):
        _refuse_offloaded(ref, hooked.model)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="this run has 2 processes"), sharing("all"):
        pass
