"""Undoing an edit: what comes back, what cannot, and what is said about it."""

import re
import shutil

import numpy as np
import pytest
import torch
import transformers as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from families import FAMILIES, tiny_folder
from sordino.edits import bake, read_provenance, undo
from sordino.edits.shard import Change
from sordino.edits.undoing import restore_
from sordino.errors import UserError
from sordino.interventions import Dampening
from sordino.models.open import open_model
from test_edits_bake import dampening_of, files_of
from test_edits_shifts import shifting
from tiny_gguf import tiny_gguf

FACTORS = st.floats(-2, 2, width=32).filter(lambda factor: abs(factor) > 1e-6)
SHIFTS = st.none() | st.floats(-3, 3, width=32).map(lambda shift: shift + 0.0)  # no −0


def changed(values, factor, shift):
    """What an edit makes of weights, written out in plain float32."""
    wide = values.to(torch.float32) * torch.tensor(factor, dtype=torch.float32)
    return (wide if shift is None else wide + torch.tensor(shift)).to(values.dtype)


def every_number(dtype):
    numbers = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    return numbers[~numbers.isnan()]


@settings(max_examples=40)
@given(st.sampled_from([torch.float16, torch.bfloat16]), FACTORS, SHIFTS)
def test_among_all_numbers_of_16_bits_it_knows_which_come_back(dtype, factor, shift):
    numbers = every_number(dtype)
    edited = changed(numbers, factor, shift)
    defined = ~edited.isnan()
    numbers, edited = numbers[defined], edited[defined]
    results = edited.view(torch.int16).int() + 2**15
    of_zero = torch.bincount(results[numbers == 0], minlength=2**16)  # 0 and −0 are one number
    certain = (torch.bincount(results, minlength=2**16) - (of_zero > 1).int() == 1)[results]
    back = edited.clone()
    change = Change(torch.tensor([factor]), None if shift is None else torch.tensor([shift]))
    uncertain = restore_(back, change)
    assert torch.equal(back[certain], numbers[certain])
    assert uncertain == (~certain).sum()


@given(st.integers(0, 2**31), FACTORS, SHIFTS, st.sampled_from([torch.float32, torch.float64]))
def test_of_wider_numbers_no_more_differ_than_it_says(seed, factor, shift, dtype):
    numbers = torch.randn(500, generator=torch.Generator().manual_seed(seed)).to(dtype)
    change = Change(torch.tensor([factor]), None if shift is None else torch.tensor([shift]))
    wide = numbers * torch.tensor(factor, dtype=torch.float32).to(dtype)
    edited = wide if shift is None else wide + torch.tensor(shift).to(dtype)
    back = edited.clone()
    uncertain = restore_(back, change)
    assert (back != numbers).sum() <= uncertain
    size = (numbers.abs() + (abs(shift) if shift else 0) / abs(factor)).clamp(min=1e-30)
    assert ((back - numbers).abs() / size).max() < 1e-6


def test_rows_with_the_factors_0_and_1_stay_as_they_are():
    values = torch.tensor([[0.0, 3.0], [0.3, 0.6], [0.7, 5e-39]])
    expected = values.clone()
    expected[1] *= 2
    assert restore_(values, Change(torch.tensor([[0.0], [0.5], [1.0]]))) == 0
    assert torch.equal(values, expected)


def halving(folder, seed=0):
    """Factors that lose nothing: 1, a half and a quarter."""
    generator = np.random.default_rng(seed)
    sites = open_model(folder, device="cpu").sites
    factors = {s.path: generator.choice([1, 0.5, 0.25], s.neurons) for s in sites}
    return Dampening({site: values.astype(np.float32) for site, values in factors.items()}, "aura")


@pytest.mark.parametrize("family", FAMILIES)
def test_what_rounding_did_not_touch_comes_back_to_the_byte(family, tmp_path):
    folder = tiny_folder(family, tmp_path, dtype=torch.bfloat16, shard="20KB")
    (folder / "README.md").write_text("# The base\n")
    bake(folder, halving(folder), tmp_path / "baked")
    undone = undo(tmp_path / "baked", tmp_path / "back")
    assert files_of(tmp_path / "back") == files_of(folder)
    assert undone.same is True
    assert undone.uncertain == 0
    assert undone.weights > 1000
    assert undone.lost == {}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["gpt2", "phi3"])
def test_what_rounding_touched_is_counted(family, dtype, tmp_path):
    folder = tiny_folder(family, tmp_path, dtype=dtype)
    bake(folder, dampening_of(folder), tmp_path / "baked")
    undone = undo(tmp_path / "baked", tmp_path / "back")
    before, baked, after = (
        load_file(path / "model.safetensors")
        for path in (folder, tmp_path / "baked", tmp_path / "back")
    )
    different = sum(int((after[name] != before[name]).sum()) for name in before)
    touched = sum(int((baked[name] != before[name]).sum()) for name in before)
    assert different <= undone.uncertain < undone.weights
    assert touched <= undone.weights
    assert undone.same is (different == 0)
    assert different > 0
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor)
    others = files_of(tmp_path / "back") | {"model.safetensors": b""}
    assert others == files_of(folder) | {"model.safetensors": b""}


@pytest.mark.parametrize("shard", [None, "20KB"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "granite"])
def test_biases_that_were_made_go_again(family, shard, tmp_path):
    folder = tiny_folder(family, tmp_path, shard=shard)
    halves = halving(folder)
    rounded = {site: np.full(f.shape, 0.5, np.float32) for site, f in halves.factors.items()}
    dampening = Dampening(halves.factors, "mean_shift", shifts=rounded)
    bake(folder, dampening, tmp_path / "baked")
    assert undo(tmp_path / "baked", tmp_path / "back").uncertain >= 0
    before, after = files_of(folder), files_of(tmp_path / "back")
    assert before.keys() == after.keys()
    same = {name for name in before if before[name] == after[name]}
    if family == "gpt2":  # its own biases were shifted, and rounded
        assert before.keys() - same <= {n for n in before if n.endswith(".safetensors")}
    else:
        assert same == before.keys()


def test_shifts_come_off_the_biases_that_were_there(tmp_path):
    folder = tiny_folder("opt", tmp_path)
    bake(folder, shifting(open_model(folder, device="cpu").sites), tmp_path / "baked")
    undone = undo(tmp_path / "baked", tmp_path / "back", partly=True)
    before, after = (load_file(p / "model.safetensors") for p in (folder, tmp_path / "back"))
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor, rtol=1e-5, atol=1e-5)
    assert undone.same is not None


def test_edited_twice_it_goes_back_step_by_step(tmp_path):
    folder = tiny_folder("llama", tmp_path)
    (folder / "README.md").write_text("# The base\n")
    (folder / "sordino").mkdir()
    (folder / "sordino/mine.txt").write_text("a file of the user's")
    steps = [folder]
    shift = {"model.layers.1.mlp.up_proj": np.full(48, 0.5, np.float32)}
    for number in range(3):
        first = Dampening(halving(folder, number).factors, "x", shifts=shift if number == 1 else {})
        steps.append(tmp_path / f"step-{number}")
        bake(steps[-2], first, steps[-1])
        (steps[-1] / "sordino/report.html").write_text(f"report {number}")
    assert (steps[-1] / "sordino/earlier/earlier/earlier/mine.txt").exists()
    for number in reversed(range(3)):
        undo(steps[number + 1], tmp_path / f"back-{number}")
        assert files_of(tmp_path / f"back-{number}") == files_of(steps[number])


def silencing(folder, shifted=False):
    factors = halving(folder).factors
    for values in factors.values():
        values[:3] = 0
    half = {site: np.full(values.shape, 0.5, np.float32) for site, values in factors.items()}
    return Dampening(factors, "x", shifts=half if shifted else {})


@pytest.mark.parametrize("shifted", [False, True])
def test_silenced_rows_stay_and_are_told(shifted, tmp_path):
    folder = tiny_folder("llama", tmp_path, dtype=torch.bfloat16)
    dampening = silencing(folder, shifted)
    bake(folder, dampening, tmp_path / "baked")
    with pytest.raises(UserError, match=r"36 of the .*layers\.0\.mlp.* `partly=True`") as caught:
        undo(tmp_path / "baked", tmp_path / "back")
    assert str(folder) in str(caught.value)
    assert not (tmp_path / "back").exists()
    undone = undo(tmp_path / "baked", tmp_path / "back", partly=True)
    assert undone.lost == dict.fromkeys(dampening.factors, 3)
    assert undone.same is None
    before, after = (load_file(p / "model.safetensors") for p in (folder, tmp_path / "back"))
    for site in dampening.factors:
        assert not after[f"{site}.weight"][:3].any()
        assert torch.equal(after[f"{site}.weight"][3:], before[f"{site}.weight"][3:])
    record = read_provenance(tmp_path / "back")
    assert record.changed == 36
    assert record.undone == dampening.changed - 36
    assert (record.configuration is not None) is shifted
    assert bool(record.rewritten) is shifted
    assert {*record.files} == files_of(tmp_path / "back").keys()
    # What is left is an edit like any other: it equals the original under what is recorded.
    left = Dampening.load(tmp_path / "back/sordino/dampening.safetensors")
    bake(folder, left, tmp_path / "again")
    weights = (load_file(tmp_path / name / "model.safetensors") for name in ("back", "again"))
    one, other = weights
    assert one.keys() == other.keys()
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    tf.AutoModelForCausalLM.from_pretrained(tmp_path / "back")
    with pytest.raises(UserError, match=r"All 36 neurons .*\b0\b"):
        undo(tmp_path / "back", tmp_path / "further", partly=True)


def test_a_folder_from_a_gguf_file_goes_back_to_its_de_quantised_weights(tmp_path):
    source = tiny_gguf(tmp_path / "tiny.gguf")
    bake(source, halving(source), tmp_path / "baked")
    nothing = {site: np.ones_like(f) for site, f in halving(source).factors.items()}
    bake(source, Dampening(nothing, "x"), tmp_path / "plain")
    undone = undo(tmp_path / "baked", tmp_path / "back")
    assert undone.same is None
    name = "model.safetensors"
    assert (tmp_path / "back" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()


def test_what_cannot_be_undone_is_refused(tmp_path):
    folder = tiny_folder("llama", tmp_path)
    dampening = dampening_of(folder)
    for form in ("hooks", "ia3", "lora"):
        bake(folder, dampening.limited(64), tmp_path / form, format=form)
        with pytest.raises(UserError, match="holds no weights"):
            undo(tmp_path / form, tmp_path / "back")
    with pytest.raises(UserError, match=r"no record of an edit \(sordino\.json\)"):
        undo(folder, tmp_path / "back")
    file = folder / "config.json"
    for path in (file, tmp_path / "nowhere"):
        with pytest.raises(UserError, match=re.escape(str(path)) + " (has no record|does not)"):
            undo(path, tmp_path / "back")
    with pytest.raises(UserError, match="only folders"):
        undo(tiny_gguf(tmp_path / "tiny.gguf"), tmp_path / "back")
    baked = tmp_path / "baked"
    bake(folder, dampening, baked)
    with pytest.raises(UserError, match="baked"):
        undo(baked, baked, force=True)
    with pytest.raises(UserError, match="force=True"):
        undo(baked, folder)
    with pytest.raises(UserError, match="names a GGUF file"):
        undo(baked, tmp_path / "back.GGUF")
    assert not (tmp_path / "back.GGUF").exists()
    (baked / "sordino/dampening.safetensors").unlink()
    with pytest.raises(UserError, match=r"dampening\.safetensors does not exist"):
        undo(baked, tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_biases_that_were_moved_since_are_refused(tmp_path):
    folder = tiny_folder("llama", tmp_path)
    bake(folder, shifting(open_model(folder, device="cpu").sites), tmp_path / "baked")
    file = tmp_path / "baked/model.safetensors"
    save_file(load_file(file), file, metadata={"format": "pt"})  # sorts them anew
    with pytest.raises(UserError, match=r"model\.safetensors was rewritten .*\.bias"):
        undo(tmp_path / "baked", tmp_path / "back", partly=True)


def test_a_fine_tuned_copy_of_a_baked_model_can_be_undone(tmp_path):
    folder = tiny_folder("llama", tmp_path)
    bake(folder, halving(folder), tmp_path / "baked")
    shutil.copytree(tmp_path / "baked", tmp_path / "tuned")
    tuned = load_file(tmp_path / "tuned/model.safetensors")
    tuned["model.norm.weight"] += 1
    save_file(tuned, tmp_path / "tuned/model.safetensors", metadata={"format": "pt"})
    assert undo(tmp_path / "tuned", tmp_path / "back").same is False
    before, after = (load_file(p / "model.safetensors") for p in (folder, tmp_path / "back"))
    assert {n for n in before if not torch.equal(before[n], after[n])} == {"model.norm.weight"}
