"""Baking whole models: what changes, what stays, and what is refused."""

import errno
import json
import os
import resource
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as tf
from safetensors.torch import load_file, save_file

from conftest import forked
from families import random_factors, tiny_folder, tiny_tokenizer
from sordino.edits import bake, read_provenance, shard, verify
from sordino.errors import UserError
from sordino.interventions import Dampening
from sordino.models.open import open_model
from sordino.models.reference import resolve
from tiny_gguf import tiny_gguf


@pytest.fixture(autouse=True)
def _one_day(monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")


def dampening_of(folder: Path, seed: int = 0, **metadata: str) -> Dampening:
    sites = open_model(folder, device="cpu").sites
    factors = random_factors({site.path: site.neurons for site in sites}, seed)
    return Dampening(factors, "aura", expertise={"concept": "rudeness", **metadata})


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def header_of(path: Path) -> bytes:
    data = path.read_bytes()
    return data[: 8 + int.from_bytes(data[:8], "little")]


DAMPENING = "sordino/dampening.safetensors"
ADDED = {"sordino.json", "README.md", DAMPENING}


def test_what_is_no_site_stays_as_it_is(tmp_path, capsys):
    folder = tiny_folder("llama_biased", tmp_path, shard="20KB")
    first = sorted(folder.glob("model-*.safetensors"))[0]
    tensors = load_file(first) | {"mtp.head.weight": torch.randn(3, 5)}
    save_file(tensors, first, metadata={"format": "pt", "origin": "elsewhere"})
    save_file({"vision.weight": torch.randn(2, 2)}, folder / "vision.safetensors")
    (folder / "README.md").write_text("# The base\n")
    (folder / "templates").mkdir()
    (folder / "templates/tool.jinja").write_text("{{ tools }}")
    (folder / ".git").mkdir()
    (folder / ".git/config").write_text("[core]")
    (folder / "pytorch_model.bin").write_bytes(b"weights")
    (folder / "consolidated.safetensors").write_bytes(b"weights")
    shutil.copytree(folder, folder / "checkpoint-5", ignore=lambda *_: ["checkpoint-5", ".git"])
    dampening = dampening_of(folder)
    record = bake(folder, dampening, tmp_path / "out")

    before, after = files_of(folder), files_of(tmp_path / "out")
    copies = {
        str(path.relative_to(folder))
        for path in folder.glob("checkpoint-5/model-*.safetensors")
        if any(".mlp." in name for name in load_file(path))
    }
    others = {name for name in before if name.endswith(("pytorch_model.bin", "dated.safetensors"))}
    assert set(record.left_out) == copies | others
    assert "not dampened): checkpoint-5/" in capsys.readouterr().err
    assert set(after) - set(before) == {"sordino.json", "README.base.md", DAMPENING}
    assert set(before) - set(after) == {".git/config", *copies, *others}
    assert after.pop("README.base.md") == b"# The base\n"
    assert b"rudeness" in after.pop("README.md")
    shards = {name for name in after if name.startswith("model-") and name.endswith("safetensors")}
    for name in set(after) - shards - {"sordino.json", DAMPENING}:
        assert after[name] == before[name], name
    for name in shards:
        assert header_of(folder / name) == header_of(tmp_path / "out" / name)
        old, new = load_file(folder / name), load_file(tmp_path / "out" / name)
        for tensor in old:
            site = tensor.rpartition(".")[0]
            factors = torch.from_numpy(dampening.factors.get(site, np.ones(1, np.float32)))
            expected = old[tensor] * (factors[:, None] if old[tensor].dim() > 1 else factors)
            assert torch.equal(new[tensor], expected), tensor


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_equals_baking_in_memory(tmp_path, dtype):
    folder = tiny_folder("qwen2", tmp_path, dtype=dtype)
    dampening = dampening_of(folder)
    bake(folder, dampening, tmp_path / "out")
    model = open_model(folder, device="cpu").model
    dampening.bake_into(model)
    written = tf.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert written.dtype == dtype
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, written.state_dict()[name]), name
    found = verify(folder, dampening, tmp_path / "out", device="cpu", dtype="float32")
    assert found.largest_difference < 0.02 * found.largest_logit


def test_gpt2_without_the_prefix(tmp_path):
    folder = tiny_folder("gpt2", tmp_path)
    tensors = load_file(folder / "model.safetensors")
    bare = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    save_file(bare, folder / "model.safetensors", metadata={"format": "pt"})
    dampening = dampening_of(folder)
    bake(folder, dampening, tmp_path / "out")
    assert set(load_file(tmp_path / "out/model.safetensors")) == set(bare)
    found = verify(folder, dampening, tmp_path / "out", device="cpu")
    assert found.largest_difference < 1e-5
    assert found.largest_logit > 1


def test_verify_sees_a_wrong_bake(tmp_path):
    folder = tiny_folder("llama", tmp_path)
    bake(folder, dampening_of(folder, seed=1), tmp_path / "out")
    found = verify(folder, dampening_of(folder, seed=2), tmp_path / "out", device="cpu")
    assert found.largest_difference > 0.1
    assert found.tokens == 123


def test_verify_finds_what_bake_wrote_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = tiny_folder("llama", tmp_path)
    for format in ("weights", "lora"):
        dampening = dampening_of(folder).limited(9)
        bake(folder, dampening, f"~/{format}", format=format)
        assert verify(folder, dampening, f"~/{format}", device="cpu").within_rounding


def test_a_file_whose_name_is_not_utf_8_is_left_out_by_name(tmp_path):
    folder = tiny_folder("llama", tmp_path)
    try:
        (folder / os.fsdecode(b"caf\xe9.txt")).write_text("kept by its owner")
    except OSError:
        pytest.skip("this file system has no such names")
    record = bake(folder, dampening_of(folder), tmp_path / "out")
    assert record.not_copied == ("caf\ufffd.txt",)
    assert not [path for path in (tmp_path / "out").iterdir() if path.name.startswith("caf")]


def test_factors_of_one_change_no_weight(tmp_path):
    folder = tiny_folder("gemma2", tmp_path)
    ones = {site: np.ones_like(f) for site, f in dampening_of(folder).factors.items()}
    record = bake(folder, Dampening(ones, "aura", strength=0.0), tmp_path / "out")
    before, after = files_of(folder), files_of(tmp_path / "out")
    assert {name for name in after if after[name] != before.get(name)} == ADDED
    assert record.changed == 0


def test_a_snapshot_of_the_hub_s_cache_becomes_files(tmp_path):
    repository = tmp_path / "models--org--tiny"
    blobs, folder = repository / "blobs", repository / "snapshots/abc"
    shutil.copytree(tiny_folder("llama", tmp_path), blobs)
    (folder / "templates").mkdir(parents=True)
    for blob in blobs.iterdir():
        (folder / blob.name).symlink_to(Path("../../blobs") / blob.name)
    (folder / "templates/tool.jinja").symlink_to("../../../blobs/config.json")
    (folder / "loop").symlink_to(folder)
    record = bake(folder, dampening_of(blobs), tmp_path / "out")
    assert not any(path.is_symlink() for path in (tmp_path / "out").rglob("*"))
    names = set(files_of(blobs)) | ADDED | {"templates/tool.jinja"}
    assert set(files_of(tmp_path / "out")) == names
    assert record.not_copied == ("loop/",)
    assert not record.linked


def test_a_gguf_file_becomes_a_folder(tmp_path):
    source = tiny_gguf(tmp_path / "tiny.gguf")
    opened = open_model(source, device="cpu")
    before = {name: tensor.clone() for name, tensor in opened.model.state_dict().items()}
    dampening = dampening_of(source)
    bake(opened, dampening, tmp_path / "out")
    for name, tensor in opened.model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert "quantization_config" not in json.loads((tmp_path / "out/config.json").read_text())
    modes = {path.stat().st_mode for path in (tmp_path / "out").glob("*.*")}
    assert len(modes) == 1
    found = verify(opened, dampening, tmp_path / "out", device="cpu")
    assert found.largest_difference < 1e-5
    tokenizer = tf.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.chat_template == tiny_tokenizer().chat_template
    assert json.loads((tmp_path / "out/generation_config.json").read_text())["eos_token_id"] == 1
    bake(source, dampening, tmp_path / "half", dtype="bfloat16")
    assert {t.dtype for t in load_file(tmp_path / "half/model.safetensors").values()} == {
        torch.bfloat16
    }


def test_provenance_tells_the_whole_story(tmp_path):
    folder = tiny_folder("opt", tmp_path)
    fingerprint = resolve(folder).weights_fingerprint()
    dampening = dampening_of(folder, weights_fingerprint=fingerprint)
    seen = []
    record = bake(
        folder, dampening, tmp_path / "out", finish=lambda stage, r: seen.append((stage.name, r))
    )
    assert seen == [(".out.partial", record)]
    assert read_provenance(tmp_path / "out") == record
    assert record.model.as_json() == {
        "name": str(folder),
        "kind": "folder",
        "revision": "",
        "weights_fingerprint": fingerprint,
    }
    assert record.created == "2023-11-14"
    assert record.changed == dampening.changed
    site = record.sites["model.decoder.layers.0.fc1"]
    factors = dampening.factors["model.decoder.layers.0.fc1"]
    assert site.as_json() == {
        "neurons": 48,
        "changed": int((factors != 1).sum()),
        "min": pytest.approx(factors.min()),
        "mean": pytest.approx(factors.mean()),
    }
    again = bake(tmp_path / "out", dampening, tmp_path / "twice", allow_other_weights=True)
    assert again.earlier == record
    with pytest.raises(UserError, match=r"no record of an edit \(sordino\.json\)"):
        read_provenance(folder)


def test_other_weights_need_a_flag(tmp_path):
    folder = tiny_folder("llama", tmp_path)
    dampening = dampening_of(folder, weights_fingerprint="0" * 64, model="org/parent")
    with pytest.raises(UserError, match=r"org/parent.*allow_other_weights"):
        bake(folder, dampening, tmp_path / "out")
    bake(folder, dampening, tmp_path / "out", allow_other_weights=True)


def _drop_a_site(folder):
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.2.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _quantise(folder):
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.2.mlp.up_proj.weight"
    tensors[name] = tensors[name].to(torch.float8_e4m3fn)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _truncate(folder):
    with (folder / "model.safetensors").open("r+b") as file:
        file.truncate(5000)


def _mark_quantised(folder):
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_drop_a_site, r"lack 1 weight .*model\.layers\.2\.mlp\.up_proj\.weight"),
        (_quantise, r"hold model\.layers\.2\.mlp\.up_proj\.weight as float8_e4m3fn"),
        (_truncate, r"model\.safetensors is damaged"),
        (_mark_quantised, r"quantised .*\(gptq\)"),
    ],
)
def test_an_unusable_folder_is_refused_in_one_sentence(tmp_path, damage, message):
    folder = tiny_folder("llama", tmp_path)
    dampening = dampening_of(folder)
    damage(folder)
    with pytest.raises(UserError, match=message) as caught:
        bake(folder, dampening, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["llama"]


def test_an_output_in_the_way_is_refused(tmp_path):
    folder = tiny_folder("llama", tmp_path / "models")
    dampening = dampening_of(folder)
    for output in (folder, folder / "inside", tmp_path / "models"):
        with pytest.raises(UserError, match=r"overlap|input"):
            bake(folder, dampening, output, force=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/diary.txt").write_text("dear")
    with pytest.raises(UserError, match="mine"):
        bake(folder, dampening, tmp_path / "mine", force=True)
    with pytest.raises(UserError, match="`dtype="):
        bake(folder, dampening, tmp_path / "out", dtype="bfloat16")
    bake(folder, dampening, tmp_path / "out")
    with pytest.raises(UserError, match="force=True"):
        bake(folder, dampening, tmp_path / "out")
    bake(folder, dampening_of(folder, seed=5), tmp_path / "out", force=True)
    assert read_provenance(tmp_path / "out").changed == dampening_of(folder, seed=5).changed


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_failing_disk_leaves_nothing(tmp_path, monkeypatch, number):
    folder = tiny_folder("llama", tmp_path)
    dampening = dampening_of(folder)

    def fail(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(shard, "change_finite_", fail)
    expected = "no space is left" if number == errno.ENOSPC else "Input/output error"
    with pytest.raises(UserError, match=expected):
        bake(folder, dampening, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["llama"]


def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def change_and_die_at(call: int):
    """What changes a tensor, as `shard` does, and dies instead at that call."""
    change, calls = shard.change_finite_, []

    def counted(*arguments):
        calls.append(1)
        if len(calls) == call:
            die()
        return change(*arguments)

    return counted


@pytest.mark.parametrize("moment", [1, 9, "last"])
def test_killed_and_called_again_it_ends_in_the_same_bytes(tmp_path, undisturbed, moment):
    folder, dampening, expected = undisturbed
    output = tmp_path / "out"

    def bake_and_die():
        if moment == "last":
            bake(folder, dampening, output, finish=die)
        else:
            shard.change_finite_ = change_and_die_at(moment)
            bake(folder, dampening, output)

    child = forked(bake_and_die)
    child.join()
    assert child.exitcode == -signal.SIGKILL
    assert not output.exists()
    assert (tmp_path / ".out.partial").exists()
    bake(folder, dampening, output)
    assert files_of(output) == expected
    assert not list(tmp_path.glob(".out*"))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A tiny model in several shards, a dampening, and the files that baking gives."""
    folder = tiny_folder("llama", tmp_path_factory.mktemp("undisturbed"), shard="20KB")
    dampening = dampening_of(folder)
    baked = folder.parent / "baked"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOURCE_DATE_EPOCH", "1700000000")
        bake(folder, dampening, baked)
    return folder, dampening, files_of(baked)


def test_a_file_that_may_not_grow_leaves_nothing(tmp_path, tmp_path_factory):
    folder = tiny_folder("llama", tmp_path, shard="20KB")
    said = tmp_path_factory.mktemp("said") / "error.txt"
    dampening = dampening_of(folder)

    def bake_within_limits():
        resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, 12_000))
        try:
            bake(folder, dampening, tmp_path / "out")
        except UserError as error:
            said.write_text(str(error))

    child = forked(bake_within_limits)
    child.join()
    assert child.exitcode == 0
    assert "could not be written" in said.read_text()
    assert "File too large" in said.read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["llama"]
