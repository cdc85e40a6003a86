"""Models read layer by layer from their files, against the same models in memory."""

import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as tf
from safetensors.torch import load_file, save_file
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from families import FAMILIES, LAYERS, SUPPORTED, everyday, tiny_folder, tiny_tokenizer
from quantised_folders import fp8, quantised_folder_of
from sordino.errors import UserError
from sordino.expertise import attribution, find, passes
from sordino.expertise.attribution import AttributionSettings
from sordino.expertise.find import find_experts, plan_find
from sordino.expertise.states import InFiles, InMemory
from sordino.expertise.sweep import SweepSettings
from sordino.files import sha256_of
from sordino.models import generation, memory, streaming
from sordino.models.generation import Sampling, encode_prompts, generate, plan
from sordino.models.open import fits, open_model
from sordino.models.streaming import INPUT, OUTPUT
from tiny_gguf import tiny_gguf

# Longer than the tiny models' sliding windows, and few lengths.
OPTIONS = {
    "settings": SweepSettings(max_tokens=18, batch_tokens=200),
    "attribution": AttributionSettings(20),
}


def found(folder, concept, target, **options) -> bytes:
    find_experts(folder, concept, output=target, **(OPTIONS | options))
    return target.read_bytes()


# MiniMax keeps constants in its files.
@pytest.mark.parametrize("family", [*FAMILIES, "minimax"])
def test_every_family_gives_the_same_bytes_streamed(family, tmp_path, concept):
    folder = tiny_folder(family, tmp_path, shard="20KB")
    assert len(list(folder.glob("*.safetensors"))) > 4
    ordinary = found(folder, concept, tmp_path / "ordinary.safetensors", stream=False)
    assert found(folder, concept, tmp_path / "streamed.safetensors", stream=True) == ordinary
    assert {path.name for path in tmp_path.iterdir()} == {
        family,
        "ordinary.safetensors",
        "streamed.safetensors",
    }


def written(opened, **changes) -> list[tuple[object, ...]]:
    """Three continuations of each of three prompts of different lengths."""
    texts = ["Keep calm and carry on.", "Now", "What do you think of it"]
    prompts = encode_prompts(opened, texts, max_tokens=20, new_tokens=8)
    batches = plan(opened, prompts, continuations=3, new_tokens=8, batch_tokens=8192)
    found = generate(opened, batches, Sampling(8), seed=1, **changes)
    return [(one.prompt, one.number, one.ids, one.end) for batch in found for one in batch]


# Idefics 3 moves its input to where its pictures' weights are, which are not there.
SPEECHLESS = {"idefics3", "granite_docling"}
# In memory, transformers 5.23 sets Youtu's embedding of the padding token to 0.
OTHERWISE = {"youtu"}
STREAMED = everyday(sorted(SUPPORTED.keys() - SPEECHLESS - OTHERWISE), {*FAMILIES, "minimax"})


@pytest.mark.parametrize("family", STREAMED)
def test_every_family_writes_the_same_texts_streamed(family, tmp_path):
    folder = tiny_folder(family, tmp_path, shard="20KB")
    whole = written(open_model(folder))
    assert len(whole) == 9
    opened = open_model(folder, stream=True)
    modules = [*opened.model.modules()]
    hooks = [len(module._forward_pre_hooks) for module in modules]
    assert written(opened) == whole
    assert [len(module._forward_pre_hooks) for module in modules] == hooks


def test_a_model_that_asks_for_weights_that_are_not_there_is_told_so(tmp_path):
    opened = open_model(tiny_folder("idefics3", tmp_path), stream=True)
    with pytest.raises(UserError, match="cannot write while its weights are read"):
        written(opened)


def test_the_token_that_ends_a_text_is_the_same_streamed(tmp_path):
    """It stands in a file of its own, which `from_pretrained` reads with the weights."""
    folder = tiny_folder("llama", tmp_path)
    end = written(open_model(folder))[0][2][2]
    settings = folder / "generation_config.json"
    about = json.loads(settings.read_text()) if settings.exists() else {}
    settings.write_text(json.dumps(about | {"eos_token_id": [end]}))
    whole = written(open_model(folder))
    assert (whole[0][3], len(whole[0][2])) == (end, 2)
    assert written(open_model(folder, stream=True)) == whole


@pytest.mark.parametrize("family", ["gpt2", "cohere", "llama"])
def test_a_streamed_model_that_writes_holds_one_part_and_reads_each_once(
    family, tmp_path, monkeypatch
):
    folder = tiny_folder(family, tmp_path)
    opened = open_model(folder, stream=True)
    read, most, load = [], [0], streaming.load_tensors
    parts = (INPUT, OUTPUT, *range(opened.streamed.layers))
    once = {part: opened.streamed.stored(part) for part in parts}

    def loading(vessel, tensors, *rest):
        here = sum(p.nbytes for p in opened.model.parameters() if not p.is_meta)
        most[0] = max(most[0], here)
        read.append(sum(tensor.form.nbytes for tensor in tensors.values()))
        return load(vessel, tensors, *rest)

    monkeypatch.setattr(streaming, "load_tensors", loading)
    steps = []
    written(opened, advance=steps.append)
    assert sum(steps) == pytest.approx(9)
    assert most[0] <= max(map(opened.streamed.resident, parts))
    # One forward more for a prompt's first tokens, and one for each token by which it is longer.
    forwards = len(steps) - 1
    assert forwards >= 8
    layers = sum(once[part] for part in range(opened.streamed.layers))
    outside = 2 * once[INPUT] + once[OUTPUT]
    assert forwards * layers <= sum(read) <= (forwards + 1) * (layers + outside)


def test_batches_of_a_streamed_model_are_as_large_as_memory_allows(tmp_path, monkeypatch):
    opened = open_model(tiny_folder("llama", tmp_path), stream=True)
    whole = open_model(tiny_folder("llama", tmp_path))
    options = {"continuations": 100, "new_tokens": 8, "batch_tokens": 2000}
    prompts = [[5] * length for length in (3, 4, 5, 6, 7)]
    assert len(plan(whole, prompts, **options)) > 1
    [batch] = plan(opened, prompts, **options)
    assert len(batch.prompts) * len(batch.numbers) == 500
    monkeypatch.setattr(generation, "_STREAMED_CACHE", 0)
    assert plan(opened, prompts, **options) != [batch]


@pytest.mark.parametrize(
    ("family", "saved", "dtype"),
    [("llama", torch.float32, "bfloat16"), ("gemma3", torch.bfloat16, "float32")],
)
def test_another_dtype_than_the_files(family, saved, dtype, tmp_path, concept):
    folder = tiny_folder(family, tmp_path, dtype=saved)
    options = {"dtype": dtype, "attribution": None}
    ordinary = found(folder, concept, tmp_path / "a.safetensors", stream=False, **options)
    assert found(folder, concept, tmp_path / "b.safetensors", stream=True, **options) == ordinary


def test_moe_experts_that_are_merged_while_loading(tmp_path, concept):
    folder = tiny_folder("mixtral", tmp_path, shard="20KB")
    options = {"sites": "self_attn"}
    ordinary = found(folder, concept, tmp_path / "a.safetensors", stream=False, **options)
    assert found(folder, concept, tmp_path / "b.safetensors", stream=True, **options) == ordinary


@pytest.mark.parametrize("family", ["gpt2", "cohere", "mixtral", "opt", "gptj"])
def test_parts_are_the_model_and_nothing_stays(family, tmp_path):
    folder = tiny_folder(family, tmp_path, shard="20KB")
    whole = open_model(folder, device="cpu").model
    opened = open_model(folder, device="cpu", stream=True)
    weights = opened.streamed
    assert opened.device == torch.device("cpu")
    assert opened.dtype_name == "float32"
    expected = dict(whole.named_parameters(remove_duplicate=False))
    there, parts = set(), (INPUT, *range(LAYERS), OUTPUT)
    for part in parts:
        weights.hold(part)
        held = {n: p for n, p in named(opened.model) if not p.is_meta}
        for name, parameter in held.items():
            assert torch.equal(parameter, expected[name]), name
        assert sum({id(p): p.nbytes for p in held.values()}.values()) == weights.resident(part)
        there |= held.keys()
    assert there == expected.keys()
    weights.release()
    assert all(p.is_meta for _, p in named(opened.model))
    for name, buffer in whole.named_buffers():
        assert torch.equal(opened.model.get_buffer(name), buffer), name
    assert weights.resident(*parts) == sum(p.nbytes for p in whole.parameters())


def named(model):
    return model.named_parameters(remove_duplicate=False)


def test_one_layer_is_in_memory_and_the_next_is_read(tmp_path, concept, monkeypatch):
    folder = tiny_folder("llama", tmp_path)
    opened = open_model(folder, stream=True)
    most = {"model": 0, "read": 0}
    load = streaming.load_tensors

    def loading(vessel, *arguments):
        found = load(vessel, *arguments)
        here = sum(p.nbytes for p in vessel.parameters() if not p.is_meta)
        most["read"] = max(most["read"], here)
        return found

    monkeypatch.setattr(streaming, "load_tensors", loading)
    apply = passes.LayerByLayer.layer

    def running(self, *args, **kwargs):
        output = apply(self, *args, **kwargs)
        if not opened.streamed._pretending:
            here = sum(p.nbytes for p in opened.model.parameters() if not p.is_meta)
            most["model"] = max(most["model"], here)
        return output

    monkeypatch.setattr(passes.LayerByLayer, "layer", running)
    find_experts(opened, concept, **OPTIONS)
    layer = opened.streamed.resident(0)
    assert most["model"] == layer
    assert most["read"] == max(layer, opened.streamed.resident(OUTPUT))


def always_save(monkeypatch):
    monkeypatch.setattr("sordino.expertise.snapshot.EVERY_S", 0.0)
    monkeypatch.setattr("sordino.expertise.snapshot.SHARE", 0)


def test_killed_anywhere_a_streamed_sweep_goes_on_to_the_same_bytes(tmp_path, concept, monkeypatch):
    folder = tiny_folder("gemma2", tmp_path)
    options = {"stream": True, "settings": SweepSettings(max_tokens=5, batch_tokens=50)}
    whole = found(folder, concept, tmp_path / "whole.safetensors", **options)
    target = tmp_path / "cut.safetensors"
    write, left, kills = InFiles.write, [0], 0

    def torn(self, name, batch, state):
        write(self, name, batch, state)
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt

    monkeypatch.setattr(InFiles, "write", torn)
    for often in (True, False):
        if often:
            always_save(monkeypatch)
        else:  # at the end of a layer only
            monkeypatch.setattr("sordino.expertise.snapshot.EVERY_S", 1000.0)
        for _ in range(100):
            left[0] = 25
            try:
                found(folder, concept, target, **options)
            except KeyboardInterrupt:
                kills += 1
                assert not target.exists()
            else:
                break
        assert target.read_bytes() == whole
        target.unlink()
    assert kills > 6


def test_streamed_or_not_an_interrupted_sweep_goes_on(tmp_path, concept, monkeypatch):
    """Memory can have become free, or scarce, between the two."""
    folder, few = tiny_folder("llama", tmp_path), SweepSettings(max_tokens=5, batch_tokens=50)
    whole = found(folder, concept, tmp_path / "whole.safetensors", stream=False, settings=few)
    always_save(monkeypatch)
    attributing = {True: (attribution.ThereAndBack, 30), False: (attribution.Whole, 3)}
    for first in (True, False):
        for owner, calls in ((passes.LayerByLayer, 15), attributing[first]):
            run, left = owner.run, calls

            def failing(self, stage, batch, run=run):
                nonlocal left
                left -= 1
                if left < 0:
                    raise KeyboardInterrupt
                return run(self, stage, batch)

            target = tmp_path / "cut.safetensors"
            with monkeypatch.context() as patch:
                patch.setattr(owner, "run", failing)
                with pytest.raises(KeyboardInterrupt):
                    found(folder, concept, target, stream=first, settings=few)
            assert found(folder, concept, target, stream=not first, settings=few) == whole
            target.unlink()


def test_layers_that_share_state_are_not_streamed(tmp_path, concept, monkeypatch):
    folder = tiny_folder("llama", tmp_path)
    forward = LlamaDecoderLayer.forward
    left_behind = {}

    def sharing(self, hidden_states, *args, **kwargs):
        output = forward(self, hidden_states, *args, **kwargs)
        if self.self_attn.layer_idx == 0:
            left_behind[0] = output
        return output + left_behind[0] if self.self_attn.layer_idx == 2 else output

    monkeypatch.setattr(LlamaDecoderLayer, "forward", sharing)
    with pytest.raises(UserError, match=r"share state .*layer 2.*stream=False"):
        find_experts(folder, concept, stream=True)


@pytest.mark.parametrize("family", FAMILIES)
def test_made_up_weights_keep_numbers_alive(family, tmp_path):
    """The check for shared state sees differences only where there are numbers."""
    opened = open_model(tiny_folder(family, tmp_path), device="cpu", stream=True)
    ids = torch.tensor([tiny_tokenizer()("the otter in the sea")["input_ids"]])
    with passes.layers_that_run(opened), torch.inference_mode():
        output = opened.model.get_decoder()(input_ids=ids, use_cache=False)[0]
    assert output.isfinite().all()
    assert output.std() > 1e-3
    assert all(p.is_meta for n, p in named(opened.model) if ".layers." in n or ".h." in n)


def test_what_cannot_be_streamed(tmp_path, monkeypatch):
    gguf = tiny_gguf(tmp_path / "x.gguf")
    with pytest.raises(UserError, match="is a GGUF file, which cannot be read layer by layer"):
        open_model(gguf, stream=True)
    folder = quantised_folder_of(fp8(), tmp_path)
    with pytest.raises(UserError, match="is quantised"):
        open_model(folder, stream=True)
    monkeypatch.setattr("sordino.models.open.fits", lambda *_: False)
    assert open_model(folder, stream=None).streamed is None  # as a whole


def test_damaged_files_give_one_sentence(tmp_path):
    folder = tiny_folder("llama", tmp_path)
    weights = folder / "model.safetensors"
    tensors = load_file(weights)
    name = "model.layers.1.mlp.up_proj.weight"
    save_file({n: t for n, t in tensors.items() if n != name}, weights, {"format": "pt"})
    with pytest.raises(UserError, match=f"lack 1 weight of LlamaForCausalLM .{name}"):
        open_model(folder, stream=True)
    save_file(tensors | {name: tensors[name][:-1].clone()}, weights, {"format": "pt"})
    with pytest.raises(UserError, match="could not be loaded"):
        open_model(folder, stream=True)
    save_file(tensors, weights, {"format": "pt"})
    opened = open_model(folder, stream=True)
    last = max(range(LAYERS), key=lambda layer: tensors_end(weights, f"layers.{layer}."))
    os.truncate(weights, weights.stat().st_size - 1000)
    with pytest.raises(UserError, match="could not be read"):
        opened.streamed.hold(last)
    with pytest.raises(UserError, match="damaged"):
        open_model(folder, stream=True)


def tensors_end(file: Path, part: str) -> int:
    """Where in a safetensors file the last tensor of a part ends."""
    data = file.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return max(value["data_offsets"][1] for name, value in header.items() if part in name)


def test_a_model_streams_by_itself_where_it_does_not_fit(tmp_path, monkeypatch, capsys):
    folder = tiny_folder("llama", tmp_path)
    assert open_model(folder, stream=None).streamed is None
    monkeypatch.setattr("sordino.models.open.available", lambda _: (1 << 30) + 100_000)
    assert not fits(open_model(folder).ref, [torch.device("cpu")])
    assert open_model(folder, stream=None).streamed
    assert "does not fit into memory" in capsys.readouterr().err
    assert open_model(folder).streamed is None
    # Half of the bytes fit.
    assert not fits(open_model(folder).ref, [torch.device("cpu")], "float32")
    monkeypatch.setattr("sordino.models.open.available", lambda _: (1 << 30) + 150_000)
    assert fits(open_model(folder).ref, [torch.device("cpu")], "bfloat16")
    gguf = tiny_gguf(tmp_path / "x.gguf")
    assert open_model(gguf, stream=None).streamed is None


def test_free_memory_heeds_limits(tmp_path, monkeypatch):
    machine = memory.available(torch.device("cpu"))
    assert machine > 0
    taken = memory.psutil.Process().memory_info().vms
    with monkeypatch.context() as patch:
        limits = {resource.RLIMIT_AS: (taken + 1000, -1), resource.RLIMIT_DATA: (-1, -1)}
        patch.setattr(resource, "getrlimit", limits.get)
        assert memory.available(torch.device("cpu")) < 100_000_000
    # Version 2: a limit above the own group, and files that can go.
    own = tmp_path / "cgroup"
    own.write_text("0::/a/b\n")
    inner = tmp_path / "v2" / "a" / "b"
    inner.mkdir(parents=True)
    for folder, most, used in ((inner, "max", 5), (inner.parent, "1000", 700)):
        (folder / "memory.max").write_text(most)
        (folder / "memory.current").write_text(str(used))
        (folder / "memory.stat").write_text("anon 1\ninactive_file 200\n")
    assert list(memory._read_groups(tmp_path / "v2", own)) == [500]
    # Version 1, of whose path only the root is to be seen.
    own.write_text("4:cpu:/x\n3:memory:/docker/abc\n")
    root = tmp_path / "v1" / "memory"
    root.mkdir(parents=True)
    (root / "memory.limit_in_bytes").write_text("900")
    (root / "memory.usage_in_bytes").write_text("1000")
    (root / "memory.stat").write_text("cache 1\ntotal_inactive_file 300\n")
    assert list(memory._read_groups(tmp_path / "v1", own)) == [200]


def test_states_in_files_are_those_that_were_written(tmp_path):
    tokens = [6, 4]
    written = [
        torch.randn(2, 3, 5).to(torch.bfloat16),
        torch.randn(4, 1, 5).to(torch.bfloat16),
    ]
    for states in (InMemory(), InFiles(tmp_path / "states", tokens, torch.device("cpu"))):
        for name in ("0", "1"):
            for batch in (1, 0):
                states.write(name, batch, written[batch] * (1 + int(name)))
        for batch in (0, 1):
            assert torch.equal(states.read("1", batch), written[batch] * 2)
        states.keep("1")
    assert [path.name for path in (tmp_path / "states").iterdir()] == ["1"]
    changed = states.read("1", 0)
    changed.zero_()
    assert torch.equal(states.read("1", 0), written[0] * 2)
    assert states.secure() == []
    # Another process goes on with them.
    later = InFiles(tmp_path / "states", tokens, torch.device("cpu"))
    later.write("0", 1, written[1])
    assert torch.equal(later.read("1", 1), written[1] * 2)


def test_hidden_states_go_to_files_where_they_are_many(tmp_path, concept, monkeypatch):
    opened = open_model(tiny_folder("llama", tmp_path))
    ordinary = find_experts(opened, concept)
    monkeypatch.setattr(find, "available", lambda _: 10_000)
    names = set()
    write = InFiles.write
    monkeypatch.setattr(
        InFiles, "write", lambda self, name, *args: (names.add(name), write(self, name, *args))
    )
    spilled = find_experts(opened, concept)
    assert names == {str(layer) for layer in range(LAYERS + 1)}
    for site in ordinary.sites:
        np.testing.assert_array_equal(spilled["auroc"][site], ordinary["auroc"][site])


def test_the_plan_says_what_will_be_read(tmp_path, concept, monkeypatch):
    folder = tiny_folder("gpt2", tmp_path, shard="20KB")
    planned = {
        (stream, with_attribution): plan_find(
            folder,
            concept,
            stream=stream,
            attribution=AttributionSettings(20) if with_attribution else None,
        )
        for stream in (True, False)
        for with_attribution in (True, False)
    }
    for (stream, with_attribution), made in planned.items():
        assert made.streamed == stream
        assert made.sentences == 55
        assert made.seconds > 0
        assert (made.attributed_tokens > 0) == with_attribution
        assert (made.on_disk > 0) == stream
        assert "time" in "\n".join(made.lines())
    read = 0
    reading = streaming.Unread.__getitem__

    def counting(self, index):
        nonlocal read
        read += self.form.nbytes
        return reading(self, index)

    monkeypatch.setattr(streaming.Unread, "__getitem__", counting)
    for with_attribution in (True, False):
        read = 0
        chosen = AttributionSettings(20) if with_attribution else None
        find_experts(folder, concept, stream=True, attribution=chosen)
        assert read == planned[True, with_attribution].to_read
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    assert planned[False, False].to_read == size


# Find and bake under a limit, and what that took.
LIMITED = """
import json, resource, sys
from pathlib import Path
import psutil
from conftest import sentences
from sordino.concepts.concept import Concept
from sordino.edits import bake
from sordino.expertise import find
from sordino.interventions import aura
folder, output, kind, limit, per_class = Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:]
limit = int(limit)
if kind == "data":
    limit += psutil.Process().memory_info().data
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
if kind == "address space":
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
plans, make = [], find.make_plan
find.make_plan = lambda *args, **options: plans.append(make(*args, **options)) or plans[-1]
texts = [sentences(int(per_class), seed) for seed in (1, 2)]
found = find.find_experts(
    folder,
    Concept("calm", *texts, "made for the tests"),
    settings=find.SweepSettings(max_tokens=8),
    output=output / "found.safetensors",
)
bake(folder, aura(found), output / "baked")
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(json.dumps({
    "streamed": plans[0].streamed,
    "planned": plans[0].peak,
    "resident": int(status["VmHWM"].split()[0]) * 1024,
    "address space": int(status["VmPeak"].split()[0]) * 1024,
}))
"""


def limited(folder: Path, output: Path, kind: str, limit: int, per_class: int) -> dict[str, int]:
    """Find and bake in a process that may take so many bytes.

    Args:
        folder: The model.
        output: A folder for the results.
        kind: "data" (private and writable, beside what the libraries take), "address space" (all
            of it) or "none".
        limit: Bytes.
        per_class: Sentences of each class.
    """
    output.mkdir()
    here = Path(__file__).parent
    out = subprocess.run(
        [sys.executable, "-c", LIMITED, folder, output, kind, str(limit), str(per_class)],
        env=os.environ | {"PYTHONPATH": f"{here}:{here.parent / 'src'}", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert out.returncode == 0, out.stderr
    return json.loads(out.stdout)


def made(folder: Path, per_shard: int, **sizes: int) -> int:
    """A bfloat16 checkpoint of these sizes, some layers a shard; gives its bytes.

    It is never in memory as a whole. Values come from one small draw, each tensor's from another
    place in it.
    """
    config = tf.LlamaConfig(
        **sizes, bos_token_id=0, eos_token_id=1, pad_token_id=2, dtype="bfloat16"
    )
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    with torch.device("meta"):
        shapes = tf.LlamaForCausalLM(config).state_dict()
    values = 0.03 * torch.randn(65_521, generator=torch.Generator().manual_seed(0))
    shards: dict[str, dict[str, torch.Tensor]] = {}
    for name in shapes:
        layer = int(name.split(".")[2]) if ".layers." in name else -1
        shards.setdefault(f"model-{1 + layer // per_shard:03}.safetensors", {})[name] = shapes[name]
    for place, (file, tensors) in enumerate(shards.items()):
        for name, empty in tensors.items():
            drawn = values.roll(1009 * len(name) * (place + 1)) + (empty.dim() == 1)
            times = -(-empty.numel() // len(drawn))
            tiled = drawn.to(torch.bfloat16).repeat(times)[: empty.numel()]
            tensors[name] = tiled.clone().view(empty.shape)
        save_file(tensors, folder / file, {"format": "pt"})
        tensors.update(dict.fromkeys(tensors))
    index = {
        "metadata": {},
        "weight_map": {name: file for file, names in shards.items() for name in names},
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


@linux
@pytest.mark.slow  # what the libraries take besides differs from machine to machine
def test_a_model_larger_than_memory(tmp_path):
    size = made(
        tmp_path / "model",
        per_shard=6,
        vocab_size=300,
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=12,
        num_attention_heads=8,
    )
    assert size > 400_000_000
    low = limited(tmp_path / "model", tmp_path / "low", "data", 320_000_000, 20)
    assert low["streamed"]
    assert low["resident"] <= low["planned"]
    ordinary = limited(tmp_path / "model", tmp_path / "ordinary", "none", 0, 20)
    assert not ordinary["streamed"]
    assert low["resident"] + 200_000_000 < ordinary["resident"] <= ordinary["planned"]
    assert digests(tmp_path / "low") == digests(tmp_path / "ordinary")


@linux
@pytest.mark.slow
def test_eight_gigabytes_in_three_of_address_space(tmp_path):
    try:
        size = made(
            tmp_path / "model",
            per_shard=6,
            vocab_size=32_000,
            hidden_size=4096,
            intermediate_size=11_008,
            num_hidden_layers=20,
            num_attention_heads=32,
        )
        assert size > 8 << 30
        low = limited(tmp_path / "model", tmp_path / "low", "address space", 3_000_000_000, 20)
        assert low["streamed"]
        assert low["address space"] <= 3_000_000_000
        assert low["resident"] <= low["planned"] <= 3_000_000_000
        print(low)
        baked = digests(tmp_path / "low")
        shutil.rmtree(tmp_path / "low")
        ordinary = limited(tmp_path / "model", tmp_path / "ordinary", "none", 0, 20)
        # Whether or not: a machine with no more memory than the model streams it by itself.
        print(ordinary)
        assert digests(tmp_path / "ordinary") == baked
    finally:
        for folder in ("model", "low", "ordinary"):
            shutil.rmtree(tmp_path / folder, ignore_errors=True)


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): sha256_of(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
