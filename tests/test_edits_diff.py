"""What differs between two models: against plain arithmetic on whole tensors."""

import json
import tracemalloc
from dataclasses import asdict

import gguf
import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from families import FAMILIES, tiny_folder, tiny_model
from sordino.edits import bake, diff, difference
from sordino.errors import UserError
from sordino.interventions import compose
from sordino.models.open import open_model
from test_edits_bake import dampening_of
from test_edits_shifts import shifting
from tiny_gguf import tiny_gguf

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def compared(before, after, folder):
    """The changes of tensors, by name, of two files with these."""
    for name, tensors in (("a", before), ("b", after)):
        save_file(tensors, folder / f"{name}.safetensors")
    found = diff(folder / "a.safetensors", folder / "b.safetensors")
    assert found.unchanged + len(found.changed) == len(before.keys() & after.keys())
    return {change.name: change for change in found.changed}


@settings(max_examples=50)
@given(st.sampled_from(DTYPES), st.booleans(), st.integers(0, 2**31), st.sampled_from([64, 2**21]))
def test_rows_and_columns_that_were_multiplied_are_found(
    tmp_path_factory, dtype, turn, seed, chunk
):
    draw = torch.Generator().manual_seed(seed)
    rows, width = torch.randint(2, 40, (2,), generator=draw).tolist()
    before = torch.randn(rows, width, generator=draw).to(dtype)
    kept = torch.rand(rows, generator=draw) < 0.5
    factors = torch.where(kept, 1.0, 2 * torch.rand(rows, generator=draw))
    after = (before.double() * factors[:, None]).to(dtype)
    a, b = (before.T.contiguous(), after.T.contiguous()) if turn else (before, after)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(difference, "CHUNK", chunk)
        found = compared({"x": a}, {"x": b}, tmp_path_factory.mktemp("diff"))
    if torch.equal(before, after):
        assert found == {}
        return
    # A factor so near to 1 that rounding leaves most values as they were can be read either way.
    assume(bool((before != after).any(0).all()))
    change = found["x"]
    moved = (before != after).any(1)
    assert change.values == (before != after).sum()
    assert (change.rows, change.row_count) == (moved.sum(), rows)
    assert change.factors.lines == ("columns" if turn else "rows")
    assert change.factors.count == moved.sum()
    expected = factors[moved].double()
    rounding = max(2 * torch.finfo(dtype).eps, 1e-12)
    assert change.factors.smallest == pytest.approx(expected.min().item(), abs=rounding)
    assert change.factors.largest == pytest.approx(expected.max().item(), abs=rounding)
    assert change.factors.mean == pytest.approx(expected.mean().item(), abs=rounding)
    delta = after.double() - before.double()
    assert change.norm == pytest.approx(before.double().norm().item())
    assert change.norm_of_change == pytest.approx(delta.norm().item())
    assert change.largest == delta.abs().max()


@pytest.mark.parametrize("dtype", DTYPES)
def test_other_changes_have_no_factors(dtype, tmp_path):
    torch.manual_seed(0)
    before = torch.randn(30, 20).to(dtype)
    noise = (before + 0.05 * torch.randn(30, 20).to(dtype) * (torch.arange(30) < 7)[:, None]).to(
        dtype
    )
    mixed = noise.clone()
    mixed[20] = before[20] * 0.5
    found = compared({"x": before, "y": before.clone()}, {"x": noise, "y": mixed}, tmp_path)
    assert (found["x"].rows, found["x"].factors) == (7, None)
    assert (found["y"].rows, found["y"].factors.count) == (8, 1)
    assert found["y"].factors.smallest == pytest.approx(0.5)


def test_all_shapes_and_types(tmp_path):
    torch.manual_seed(0)
    before = {
        "vector": torch.randn(9),
        "number": torch.tensor(3.0),
        "thin": torch.randn(5, 1),
        "experts": torch.randn(3, 4, 6),
        "half": torch.randn(4, 4).half(),
        "empty": torch.empty(0, 4),
        "empty-too": torch.empty(4, 0),
        "packed": torch.randint(0, 99, (6, 5), dtype=torch.int32),
        "eighth": torch.randn(4, 8).to(torch.float8_e4m3fn),
        "grown": torch.randn(3, 3),
        "gone": torch.ones(2),
        "unclear": torch.tensor([[float("nan"), 1], [float("inf"), 2]]),
    }
    after = {name: tensor.clone() for name, tensor in before.items()} | {"new": torch.ones(1)}
    after["vector"][2:5] *= 2
    after["number"] += 1
    after["thin"][1] = 0
    after["experts"][1, 2] *= 0.25
    after["half"] = after["half"].float()
    after["empty"] = after["empty"].half()
    after["packed"][3:5, 1] += 1
    after["eighth"] = (after["eighth"].float() * torch.tensor([1, 0.5, 0.5, 0])[:, None]).to(
        torch.float8_e4m3fn
    )
    after["grown"] = torch.randn(4, 3)
    after["unclear"][1, 1] = 3
    del after["gone"]
    save_file(before, tmp_path / "a.safetensors")
    save_file(after, tmp_path / "b.safetensors")
    found = diff(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    assert (found.unchanged, found.added, found.removed) == (1, ("new",), ("gone",))
    of = {change.name: change for change in found.changed}
    assert of.keys() == before.keys() - {"gone", "empty-too"}
    counts = {name: (change.values, change.rows, change.row_count) for name, change in of.items()}
    assert counts == {
        "vector": (3, 3, 9),
        "number": (1, 1, 1),
        "thin": (1, 1, 5),
        "experts": (6, 1, 12),
        "half": (0, 0, 4),
        "empty": (None, None, None),
        "packed": (None, 2, 6),
        "eighth": (int((before["eighth"].float() != after["eighth"].float()).sum()), 3, 4),
        "grown": (None, None, None),
        "unclear": (1, 1, 2),
    }
    assert {name for name, change in of.items() if change.factors} == {"experts", "eighth"}
    assert of["experts"].factors.smallest == 0.25
    assert (of["eighth"].factors.smallest, of["eighth"].factors.largest) == (0, 0.5)
    assert of["half"].dtypes == ("F16", "F32")
    assert of["grown"].shapes == ((3, 3), (4, 3))
    assert of["unclear"].norm is None
    assert of["unclear"].largest is None or np.isfinite(of["unclear"].largest)
    json.dumps(asdict(found), allow_nan=False)


@pytest.mark.parametrize("family", FAMILIES)
def test_it_tells_what_baking_did(family, tmp_path):
    folder = tiny_folder(family, tmp_path)
    dampening = dampening_of(folder)
    record = bake(folder, dampening, tmp_path / "baked")
    found = diff(folder, tmp_path / "baked")
    assert (found.added, found.removed, found.settings, found.files_changed) == ((), (), (), ())
    assert found.files_added == ("README.md", "sordino.json", "sordino/dampening.safetensors")
    matrices = [change for change in found.changed if len(change.shapes[0]) > 1]
    assert sum(change.rows for change in matrices) == record.changed
    assert sum(change.factors.count for change in matrices) == record.changed
    lines = {change.factors.lines for change in matrices}
    assert lines == ({"columns"} if family == "gpt2" else {"rows"})
    factors = np.concatenate(list(dampening.factors.values()))
    factors = factors[factors != 1]
    assert min(c.factors.smallest for c in matrices) == pytest.approx(factors.min(), abs=0.01)
    assert max(c.factors.largest for c in matrices) == pytest.approx(factors.max(), abs=0.01)


def test_made_biases_and_their_setting_are_told(tmp_path):
    folder = tiny_folder("llama", tmp_path)
    bake(folder, shifting(open_model(folder, device="cpu").sites), tmp_path / "baked")
    found = diff(folder, tmp_path / "baked")
    assert len(found.added) == 12
    assert [asdict(setting) for setting in found.settings] == [
        {"file": "config.json", "key": "mlp_bias", "before": "false", "after": "true"}
    ]
    assert found.files_changed == ("config.json",)
    back = diff(tmp_path / "baked", folder)
    assert back.removed == found.added
    assert back.files_removed == found.files_added


def test_how_tensors_are_split_into_files_does_not_matter(tmp_path):
    whole = tiny_folder("llama", tmp_path / "a")
    split = tiny_folder("llama", tmp_path / "b", shard="20KB")
    found = diff(whole, split)
    assert (found.changed, found.added, found.removed, found.settings) == ((), (), (), ())
    assert found.files_added == ("model.safetensors.index.json",)
    assert diff(whole, whole).is_none


def test_adapters_dampenings_and_their_metadata(tmp_path):
    folder = tiny_folder("llama", tmp_path)
    one, other = dampening_of(folder, 1), dampening_of(folder, 2)
    bake(folder, one, tmp_path / "a", format="ia3")
    bake(folder, compose([one, other]), tmp_path / "b", format="ia3")
    found = diff(tmp_path / "a", tmp_path / "b")
    assert {change.name for change in found.changed} == {
        f"base_model.model.{site}.ia3_l" for site in one.factors
    }
    assert {"README.md", "sordino.json"} <= set(found.files_changed)
    saved = [tmp_path / name / "sordino/dampening.safetensors" for name in "ab"]
    found = diff(*saved)
    assert {change.name for change in found.changed} == {f"{site}.scale" for site in one.factors}
    places = {setting.key: setting for setting in found.settings}
    assert places.keys() == {"sordino.parts"}
    assert places["sordino.parts"].before is None


def scaled_gguf(source, target, factors):
    """A copy with the half-precision scales of some rows of a tensor of Q8_0 multiplied."""
    target.write_bytes(source.read_bytes())
    reader = gguf.GGUFReader(target, "r+")
    tensor = next(t for t in reader.tensors if t.name == "blk.1.ffn_up.weight")
    scales = tensor.data.reshape(96, 2, 34)[:, :, :2].copy().view(np.float16)[..., 0]
    scaled = (scales * factors[:, None]).astype(np.float16)
    tensor.data.reshape(96, 2, 34)[:, :, :2] = scaled[..., None].view(np.uint8)
    tensor.data.flush()


def test_gguf_files_are_compared_de_quantised(tmp_path):
    source = tiny_gguf(tmp_path / "a.gguf")
    factors = np.random.default_rng(0).choice([1, 0.9, 0.35, 0], 96).astype(np.float32)
    scaled_gguf(source, tmp_path / "b.gguf", factors)
    found = diff(source, tmp_path / "b.gguf")
    assert (found.added, found.removed, found.settings) == ((), (), ())
    (change,) = found.changed
    assert change.dtypes == ("Q8_0", "Q8_0")
    assert change.shapes == ((96, 64), (96, 64))
    assert change.rows == change.factors.count == (factors != 1).sum()
    assert (change.factors.smallest, change.factors.largest) == (0, pytest.approx(0.9, rel=1e-3))
    before, after = (
        gguf.dequantize(
            next(t for t in gguf.GGUFReader(f).tensors if t.name == change.name).data,
            gguf.GGMLQuantizationType.Q8_0,
        ).astype(float)
        for f in (source, tmp_path / "b.gguf")
    )
    assert change.norm == pytest.approx(np.linalg.norm(before))
    assert change.norm_of_change == pytest.approx(np.linalg.norm(after - before))
    assert diff(source, source).is_none
    other = diff(source, tiny_gguf(tmp_path / "c.gguf", seed=1))
    assert len(other.changed) == len(gguf.GGUFReader(source).tensors)
    assert not any(change.factors for change in other.changed)


def test_memory_does_not_grow_with_the_tensor(tmp_path, monkeypatch):
    monkeypatch.setattr(difference, "CHUNK", 2**16)
    tensor = torch.randn(1500, 1500)
    save_file({"x": tensor}, tmp_path / "a.safetensors")
    save_file({"x": tensor + 1}, tmp_path / "b.safetensors")
    del tensor
    tracemalloc.start()
    found = diff(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found.changed[0].rows == 1500
    assert most < 4e6  # one of the files has 9 MB


def test_what_cannot_be_compared_is_refused(tmp_path):
    folder = tiny_folder("llama", tmp_path)
    source = tiny_gguf(tmp_path / "tiny.gguf")
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.safetensors").write_bytes(b"\xff" * 50)
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + b"\xff" * 50)
    (tmp_path / "none.txt").write_text("none")
    twice = tmp_path / "twice"
    twice.mkdir()
    for name in "ab":
        save_file({"x": torch.ones(2)}, twice / f"{name}.safetensors")
    for pair, message in [
        ((folder, source), "different kinds"),
        ((source, folder), "different kinds"),
        ((folder, tmp_path / "empty"), "holds no safetensors"),
        ((folder, tmp_path / "bad.safetensors"), "damaged"),
        ((source, tmp_path / "bad.gguf"), "is of GGUF version"),
        ((folder, tmp_path / "none.txt"), r"none\.txt is not a model"),
        ((folder, tmp_path / "nowhere"), "does not exist"),
        ((twice, folder), r"x is in both .*a\.safetensors"),
    ]:
        with pytest.raises(UserError, match=message) as caught:
            diff(*pair)
        assert "\n" not in str(caught.value)


def test_weights_that_were_changed_by_hand_are_told(tmp_path):
    folder = tiny_folder("gpt2", tmp_path)
    other = tmp_path / "other"
    model = tiny_model("gpt2")
    model.config.n_layer = 3
    del model.transformer.h[3]
    model.save_pretrained(other)
    found = diff(folder, other)
    assert {name.split(".")[2] for name in found.removed} == {"3"}
    keys = {setting.key: (setting.before, setting.after) for setting in found.settings}
    assert keys["n_layer"] == ("4", "3")
    assert (
        load_file(other / "model.safetensors").keys()
        < load_file(folder / "model.safetensors").keys()
    )
