"""Quantised checkpoints dampened by their scales, against independent de-quantisation."""

import contextlib
import json
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import quantised_folders as q
from families import random_factors, tiny_folder
from sordino.edits import RowVerification, Verification, bake, undo, verification, verify
from sordino.edits.quantised import edit_quantised, quantised_folder
from sordino.edits.quantised.fp4 import MOST
from sordino.edits.quantised.fp8 import power_at_least
from sordino.edits.shard import Change, copy_rewritten
from sordino.errors import UserError
from sordino.expertise.find import find_experts
from sordino.interventions import Dampening, dampen
from sordino.models.open import empty_model, open_model
from sordino.models.reference import resolve
from sordino.models.safetensors_header import read_header
from sordino.models.sites import find_sites

# The largest relative error of one rounding, and the spacing below the smallest normal number.
ROUNDING = {
    torch.float32: (2.0**-24, 2.0**-149),
    torch.float16: (2.0**-11, 2.0**-25),
    torch.bfloat16: (2.0**-8, 2.0**-134),
}


def damped(made: q.Made, tensors: q.Tensors, factors: np.ndarray, folder: Path) -> tuple:
    """One layer's tensors after the edit, what the scheme read before, and the edit itself."""
    source, target = folder / "model.safetensors", folder / "out.safetensors"
    target.unlink(missing_ok=True)
    save_file({f"a.b.{name}": tensor for name, tensor in tensors.items()}, source)
    found = quantised_folder(
        folder, made.settings, {PurePosixPath(source.name): read_header(source)}
    )
    rows = found.scheme.rows(found.layers["a.b.weight"])
    change = Change(torch.from_numpy(factors)[:, None])
    edit = edit_quantised(found, {"a.b.weight": change})
    copy_rewritten(source, target, edit.changes, lambda _: None)
    after = {name.removeprefix("a.b."): tensor for name, tensor in load_file(target).items()}
    return after, rows.double().numpy(), edit


@st.composite
def cases(draw, made, down=8, across=32):
    """A way of quantising, a weight that it takes, and factors."""
    neurons = down * draw(st.integers(1, 3))
    inputs = across * draw(st.integers(1, 2))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    spread = draw(st.sampled_from([1e-3, 0.1, 30.0]))
    weight = torch.randn(neurons, inputs, generator=generator) * spread
    special = st.sampled_from([0.0, 1.0, 0.5, 1.75])
    factor = st.floats(0, 2, width=32) | special
    factors = draw(st.lists(factor, min_size=neurons, max_size=neurons))
    return draw(made), weight, np.array(factors, dtype=np.float32)


GPTQ = st.builds(
    q.gptq,
    st.sampled_from([2, 3, 4, 8]),
    st.sampled_from([8, 16, 32, -1]),
    act_order=st.booleans(),
    version=st.sampled_from([1, 2]),
    dtype=st.sampled_from([torch.float16, torch.bfloat16]),
)
AWQ = st.builds(q.awq, st.sampled_from(["gemm", "gemv"]), st.sampled_from([8, 16, 32]))
DTYPES = st.sampled_from([torch.float16, torch.bfloat16, torch.float32])
INT8 = st.builds(
    q.compressed_tensors, strategy=st.just("channel"), symmetric=st.booleans(), dtype=DTYPES
)
FP8_CHANNEL = st.builds(q.compressed_tensors, st.just("float"), st.just("channel"), dtype=DTYPES)
SINGLE = st.builds(q.compressed_tensors, st.sampled_from(["int", "float"]), st.just("tensor"))
PACKED = st.builds(
    q.compressed_tensors,
    st.just("int"),
    st.just("group"),
    st.integers(2, 8),
    st.sampled_from([8, 16, 32]),
    symmetric=st.booleans(),
    packed=st.just(True),
    dtype=DTYPES,
)
PACKED_CHANNEL = st.builds(
    q.compressed_tensors,
    bits=st.sampled_from([4, 8]),
    symmetric=st.booleans(),
    packed=st.just(True),
)
BITSANDBYTES = st.builds(q.int8) | st.builds(
    q.four_bit,
    st.sampled_from([8, 16, 32]),
    nested=st.booleans(),
    kind=st.sampled_from(["nf4", "fp4"]),
)
FBGEMM = st.just(q.fp8((1, 0)))


EXACT = {
    "gptq": cases(GPTQ, down=32),
    "awq": cases(AWQ),
    "int8": cases(INT8),
    "fp8": cases(FP8_CHANNEL | FBGEMM),
    "single": cases(SINGLE),
    "packed": cases(PACKED | PACKED_CHANNEL),
    "bitsandbytes": cases(BITSANDBYTES),
}


@pytest.mark.parametrize("family", EXACT)
@settings(max_examples=12)
@given(data=st.data())
def test_only_the_product_of_a_scale_is_rounded(tmp_path_factory, family, data):
    made, weight, factors = data.draw(EXACT[family])
    tensors = made.quantise(weight)
    before = made.reference(tensors)
    after, rows, edit = damped(made, tensors, factors, tmp_path_factory.getbasetemp())
    np.testing.assert_allclose(rows, before, rtol=2e-6, atol=1e-9 * np.abs(before).max())
    scale = next(
        tensors[n] for n in ("scales", "weight_scale", "SCB", "weight.absmax") if n in tensors
    )
    relative, spacing = ROUNDING.get(scale.dtype, ROUNDING[torch.float32])
    expected = factors[:, None].astype(np.float64) * before
    # Codes reach 511 less their zero points; bitsandbytes' own arithmetic is of float32.
    slack = 2 * spacing * 512 + 1e-7 * np.abs(before)
    assert np.all(np.abs(made.reference(after) - expected) <= relative * np.abs(expected) + slack)
    assert not edit.record.rounded
    kept = {n for n in tensors if "weight" in n and n in ("weight", "weight_packed")} | {"qweight"}
    for name in kept & tensors.keys():
        assert torch.equal(after[name].view(torch.uint8), tensors[name].view(torch.uint8))


BLOCKS = st.builds(
    q.fp8,
    st.sampled_from([(16, 32), (5, 7), None]),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float8_e8m0fnu]),
) | st.builds(q.compressed_tensors, st.just("float"), st.just("block"))


@settings(max_examples=40)
@given(cases(BLOCKS))
def test_blocks_are_rounded_to_the_nearest_and_undamped_rows_stay(tmp_path_factory, case):
    made, weight, factors = case
    tensors = made.quantise(weight)
    before = made.reference(tensors)
    after, rows, edit = damped(made, tensors, factors, tmp_path_factory.getbasetemp())
    np.testing.assert_allclose(rows, before, rtol=2e-6)
    found, expected = made.reference(after), factors[:, None].astype(np.float64) * before
    # The scale of each block's values; E4M3's spacing below its smallest normal number is 2^-9.
    steps = np.abs(before) / np.maximum(np.abs(tensors["weight"].double().numpy()), 1e-9)
    spacing = 2.0**-10 * steps.max() * max(1.0, 2 * factors.max())
    assert np.all(np.abs(found - expected) <= 2.0**-4 * np.abs(expected) + spacing)
    if factors.max() <= 1:
        np.testing.assert_array_equal(found[factors == 1], before[factors == 1])
    assert edit.record.rounded == int((factors != 1).any())
    assert not np.isnan(found).any()


FP4 = st.builds(q.fp4, st.sampled_from(["nvfp4", "mxfp4", "modelopt", "deepseek"]))


@settings(max_examples=40)
@given(cases(FP4, down=2))
def test_no_scale_with_any_codes_of_four_bits_comes_nearer(tmp_path_factory, case):
    """By trying every scale that there is, under each the nearest codes."""
    made, weight, factors = case
    tensors = made.quantise(weight)
    before = made.reference(tensors)
    exact = factors[:, None].astype(np.float64) * before
    size, steps = q.fp4_grid(tensors)
    blocks = exact.reshape(-1, 1, size, 1)
    best = np.full(len(blocks), np.inf)
    for step in steps:
        near = np.abs(blocks - step * np.array([*q.E2M1, *(-v for v in q.E2M1)])).min(axis=3)
        best = np.minimum(best, (near**2).sum(axis=(1, 2)))
    changed = factors != 1
    squares = (exact**2).reshape(-1, size).sum(axis=1)
    of_changed = np.repeat(changed, weight.shape[1] // size)
    cost = np.sqrt(best[of_changed].sum() / max(squares[of_changed].sum(), 1e-300))
    too_large = np.abs(exact).max() > steps.max() * q.E2M1[-1]
    if too_large or cost > MOST:
        with pytest.raises(UserError, match="too large" if too_large else "would be off by"):
            damped(made, tensors, factors, tmp_path_factory.getbasetemp())
        return
    after, rows, edit = damped(made, tensors, factors, tmp_path_factory.getbasetemp())
    np.testing.assert_allclose(rows, before, rtol=2e-6)
    found = made.reference(after)
    assert {n: (t.dtype, t.shape) for n, t in after.items()} == {
        n: (t.dtype, t.shape) for n, t in tensors.items()
    }
    errors = ((found - exact) ** 2).reshape(-1, size).sum(axis=1)
    assert np.all(errors <= best + 1e-9 * squares)
    np.testing.assert_array_equal(found[~changed], before[~changed])
    assert not found[factors == 0].any()
    if changed.any():
        assert edit.record.error == pytest.approx(cost, rel=1e-5, abs=1e-9)
        largest = np.abs(exact[changed]).reshape(-1, size).max(axis=1)
        off = np.abs((found - exact)[changed]).reshape(-1, size).max(axis=1)
        relative = off[largest > 0] / largest[largest > 0]
        assert edit.record.largest_error == pytest.approx(
            relative.max(initial=0), rel=1e-5, abs=1e-9
        )


@given(st.floats(2.0**-120, 2.0**120, width=32))
def test_powers_of_two(value):
    power = float(power_at_least(torch.tensor([value]))[0])
    assert value <= power < 2 * value
    assert np.log2(power) == int(np.log2(power))


FOLDERS = {
    "gptq": q.gptq(4, 32, act_order=True),
    "gptq of 3 bits": q.gptq(3, 32, version=2),
    "awq": q.awq("gemm", 32),
    "channels": q.compressed_tensors(),
    "single": q.compressed_tensors("float", "tensor"),
    "groups": q.compressed_tensors("int", "group", 4, 32, symmetric=False, packed=True),
    "fp8 blocks": q.fp8(),
    "fp8 rows": q.fp8((1, 0)),
    "int8": q.int8(),
    "nf4": q.four_bit(32),
    "nf4, nested": q.four_bit(32, nested=True),
    "nvfp4": q.fp4("nvfp4"),
    "mxfp4": q.fp4("mxfp4"),
    "modelopt": q.fp4("modelopt"),
}


def dampening_of(folder: Path, seed: int = 0) -> Dampening:
    sites = find_sites(empty_model(resolve(folder)))
    return Dampening(random_factors({s.path: s.neurons for s in sites}, seed), "aura")


@pytest.mark.parametrize("name", FOLDERS)
def test_a_whole_folder(tmp_path, name):
    made = FOLDERS[name]
    folder = q.quantised_folder_of(made, tmp_path, shards=3)
    dampening = dampening_of(folder)
    record = bake(folder, dampening, tmp_path / "out")
    before, after = q.tensors_of(folder), q.tensors_of(tmp_path / "out")
    sites = dampening.factors.keys()
    assert len(sites) == record.quantised.layers == 12
    for site, factors in dampening.factors.items():
        old, new = q.layer_of(before, site), q.layer_of(after, site)
        bias = (old.pop("bias").float() * torch.from_numpy(factors)).to(torch.bfloat16)
        assert torch.equal(new.pop("bias"), bias)
        expected = factors[:, None] * made.reference(old)
        bound = 2.0**-4 if record.quantised.rounded else 2.0**-8
        error = np.abs(made.reference(new) - expected)
        if record.quantised.error is not None:  # of 4-bit floats, against a row's largest
            bound, expected = 2.0**-2, np.abs(expected).max(axis=1, keepdims=True)
        assert np.all(error <= bound * np.abs(expected) + 1e-6), site
    for tensor in set(before) | set(after):
        if tensor.rsplit(".mlp.", 1)[0] == tensor and (
            name != "single" or not tensor.endswith("_scale")
        ):
            raw = [t[tensor].contiguous().reshape(-1).view(torch.uint8) for t in (before, after)]
            assert torch.equal(*raw), tensor
    index = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())
    for file in sorted((tmp_path / "out").glob("*.safetensors")):
        header = read_header(file)
        assert set(header) == {n for n, place in index["weight_map"].items() if place == file.name}
        for stored in header.values():
            size = stored.end - stored.start
            assert stored.start % (size // max(1, int(np.prod(stored.shape)))) == 0
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in after.values())
    config = json.loads((tmp_path / "out/config.json").read_text())["quantization_config"]
    if name == "single":
        assert config["config_groups"]["group_0"]["weights"].pop("strategy") == "channel"
        made.settings["config_groups"]["group_0"]["weights"].pop("strategy")
    assert config == made.settings
    # Edited once, it can be edited again.
    again = bake(tmp_path / "out", dampening, tmp_path / "again")
    assert again.earlier.quantised == record.quantised


@pytest.mark.parametrize("name", ["gptq", "single", "fp8 blocks", "nf4, nested"])
def test_factors_of_one_change_nothing(tmp_path, name):
    folder = q.quantised_folder_of(FOLDERS[name], tmp_path)
    ones = {site: np.ones_like(f) for site, f in dampening_of(folder).factors.items()}
    bake(folder, Dampening(ones, "aura"), tmp_path / "out")
    for file in folder.iterdir():
        assert (tmp_path / "out" / file.name).read_bytes() == file.read_bytes(), file.name


@pytest.mark.parametrize("name", ["int8", "nf4, nested", "gptq"])
def test_weights_that_were_stored_transposed(tmp_path, name):
    made = FOLDERS[name]
    folder = q.quantised_folder_of(made, tmp_path, family="gpt2")
    dampening = dampening_of(folder)
    bake(folder, dampening, tmp_path / "out")
    before, after = q.tensors_of(folder), q.tensors_of(tmp_path / "out")
    for site, factors in dampening.factors.items():
        expected = factors[:, None] * made.reference(q.layer_of(before, site))
        np.testing.assert_allclose(
            made.reference(q.layer_of(after, site)), expected, rtol=2.0**-10, atol=1e-6
        )


@pytest.mark.parametrize("name", ["gptq", "nf4, nested"])
def test_shifts_get_biases_beside_quantised_weights(tmp_path, name):
    folder = q.quantised_folder_of(FOLDERS[name], tmp_path, shards=2, family="llama")
    plain = dampening_of(folder)
    shifts = {site: np.full_like(f, 0.25) for site, f in plain.factors.items()}
    dampening = Dampening(plain.factors, "mean_shift", shifts=shifts)
    record = bake(folder, dampening, tmp_path / "out")
    assert record.configuration == {"mlp_bias": True}
    after = q.tensors_of(tmp_path / "out")
    for site in plain.factors:
        bias = after[f"{site}.bias"]
        assert bias.dtype == torch.bfloat16
        assert torch.equal(bias, torch.full_like(bias, 0.25))
    index = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(after)
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in after.values())


def test_scales_that_lose_digits_are_counted(tmp_path):
    folder = q.quantised_folder_of(q.gptq(4, 32), tmp_path)
    sites = dampening_of(folder).factors
    factors = {site: np.ones_like(f) for site, f in sites.items()}
    first = factors["model.layers.0.mlp.up_proj"]
    first[:2] = 1e-9, 3e-4
    record = bake(folder, Dampening(factors, "aura"), tmp_path / "out")
    assert record.quantised.scales_vanished == 2  # two groups
    assert record.quantised.scales_coarse == 2
    first[:] = 1e9
    with pytest.raises(UserError, match=r"layers\.0\.mlp\.up_proj .* too large for F16"):
        bake(folder, Dampening(factors, "aura"), tmp_path / "large")
    assert not (tmp_path / "large").exists()


LAYER = "model.layers.1.mlp.down_proj"


def _set(name, value):
    return lambda tensors, settings: tensors.__setitem__(f"{LAYER}.{name}", value)


def _drop(name):
    return lambda tensors, settings: tensors.pop(f"{LAYER}.{name}")


def _settings(**values):
    return lambda tensors, settings: settings.update(values)


def _group(**values):
    return lambda tensors, settings: settings["config_groups"]["group_0"].update(values)


def _nan(name):
    def spoil(tensors, settings):
        tensors[f"{LAYER}.{name}"].view(-1)[3] = float("nan")

    return spoil


def _state(**values):
    def spoil(tensors, settings):
        name = f"{LAYER}.weight.quant_state.bitsandbytes__nf4"
        state = json.loads(bytes(tensors[name].tolist())) | values
        text = json.dumps({key: v for key, v in state.items() if v is not None}).encode()
        tensors[name] = torch.tensor(list(text), dtype=torch.uint8)

    return spoil


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("gptq", _drop("scales"), "scales is missing"),
        ("gptq", _drop("qzeros"), "qzeros is missing"),
        ("gptq", _set("scales", torch.ones(4, 63).half()), r"\[4, 63\]|shape"),
        ("gptq", _set("scales", torch.ones(4, 0).half()), "shape"),
        ("gptq", _set("scales", torch.ones(4, 64, dtype=torch.int32)), "type I32"),
        ("gptq", _set("g_idx", torch.zeros(5, dtype=torch.int32)), "g_idx"),
        ("gptq", _nan("scales"), "not finite"),
        ("gptq", _settings(checkpoint_format="marlin"), "'marlin' cannot be baked"),
        ("gptq", _settings(quant_method="hqq"), "quantised by 'hqq'"),
        ("gptq", _settings(quant_method=None), "quantised by 'None'"),
        ("awq", _settings(version="gemv_fast"), "gemv_fast"),
        ("awq", _settings(group_size="many"), "group_size is 'many'"),
        ("awq", _settings(group_size=48), "groups of 48"),
        ("awq", _nan("scales"), "not finite"),
        ("channels", _set("weight", torch.zeros(64, 128, dtype=torch.int16)), "type I16"),
        ("channels", _set("weight_scale", torch.ones(3, 1)), r"\[3, 1\]"),
        ("channels", _set("weight_scale", torch.ones(0)), r"\[0\]"),
        ("channels", _nan("weight_scale"), "not finite"),
        ("channels", _settings(config_groups=[]), "no config_groups"),
        ("channels", _settings(format="marlin-24"), "marlin-24"),
        ("channels", _group(format="marlin-24"), "marlin-24"),
        ("nvfp4", _drop("weight_packed"), "weight is missing"),
        ("nvfp4", _set("weight_global_scale", torch.ones(2)), r"weight_global_scale .* \[2\]"),
        ("nvfp4", _set("weight_scale", torch.ones(64, 8)), "weight_scale is F32"),
        ("mxfp4", _set("weight_packed", torch.zeros(64, 9, dtype=torch.uint8)), r"\[64, 9\]"),
        (
            "mxfp4",
            _set("weight_scale", torch.full((64, 4), 255, dtype=torch.uint8)),
            "are not numbers",
        ),
        ("modelopt", _settings(quant_algo="FP8"), "FP8"),
        ("modelopt", _drop("weight"), "weight is missing"),
        ("groups", _set("weight_shape", torch.tensor([64, 9999])), "weight_shape says"),
        ("groups", _set("weight_packed", torch.zeros(64, 64, dtype=torch.uint8)), "shape|type"),
        ("fp8 blocks", _set("weight_scale_inv", torch.ones(9, 9)), r"\[9, 9\]"),
        ("fp8 blocks", _settings(weight_block_size=[0, 3]), "two sizes"),
        ("fp8 blocks", _set("weight", torch.zeros(64, 128).to(torch.float8_e5m2)), "E5M2"),
        ("fp8 blocks", _nan("weight_scale_inv"), "not finite"),
        ("int8", _set("SCB", torch.ones(63)), r"\[63\]"),
        ("int8", _nan("SCB"), "not finite"),
        ("int8", _settings(load_in_8bit=False), "neither"),
        ("nf4", _state(blocksize=96), r"shape|span"),
        ("nf4", _state(blocksize=0), "damaged"),
        ("nf4", _state(shape=[2**70, 2**70]), "codes are not"),
        ("nf4", _state(shape=None), "damaged"),
        ("nf4", _nan("weight.absmax"), "not finite"),
        ("nf4, nested", _state(nested_offset=1e999), "offset|damaged"),
        ("nf4, nested", _drop("weight.nested_quant_map"), "is missing"),
        ("nf4, nested", _state(nested_blocksize=3), "nested_absmax"),
    ],
)
def test_damage_is_one_sentence(tmp_path, name, damage, message):
    made = FOLDERS[name]
    folder = q.quantised_folder_of(made, tmp_path)
    dampening = dampening_of(folder)
    tensors = load_file(folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    damage(tensors, config["quantization_config"])
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=message) as caught:
        bake(folder, dampening, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("method", ["fp8", "gptq", "bitsandbytes", "mxfp4"])
def test_plain_weights_under_settings_of_quantised_ones_are_refused_everywhere(tmp_path, method):
    """And in the same words, for transformers reads them in one way here and in another there."""
    folder = tiny_folder("llama", tmp_path)
    dampening = dampening_of(folder)
    config = json.loads((folder / "config.json").read_text())
    settings_of = {"quant_method": method, "bits": 4, "group_size": 32, "load_in_4bit": True}
    config["quantization_config"] = settings_of
    (folder / "config.json").write_text(json.dumps(config))
    expected = rf"{folder} is quantised by its settings \({method}\), and its files hold plain"
    with pytest.raises(UserError, match=expected):
        open_model(folder, device="cpu")
    with pytest.raises(UserError, match=expected):
        bake(folder, dampening, tmp_path / "out")


def test_blocks_that_span_neurons_are_refused(tmp_path):
    folder = q.quantised_folder_of(q.four_bit(96), tmp_path)
    with pytest.raises(UserError, match="span neurons"):
        bake(folder, dampening_of(folder), tmp_path / "out")


@settings(max_examples=60)
@given(data=st.data())
def test_random_shapes_and_types_never_crash(tmp_path_factory, data):
    made = FOLDERS[data.draw(st.sampled_from(sorted(FOLDERS)))]
    tensors = made.quantise(torch.randn(32, 64))
    for name in data.draw(st.sets(st.sampled_from(sorted(tensors)), min_size=1)):
        shape = data.draw(st.lists(st.integers(0, 70), max_size=3))
        dtype = data.draw(st.sampled_from([torch.int32, torch.uint8, torch.float16, torch.int64]))
        tensors[name] = torch.zeros(shape, dtype=dtype)
    factors = np.full(32, 0.5, dtype=np.float32)
    with contextlib.suppress(UserError):
        damped(made, tensors, factors, tmp_path_factory.getbasetemp())


def test_rows_are_compared_where_the_model_cannot_be_run(tmp_path, monkeypatch):
    folder = q.quantised_folder_of(q.gptq(4, 32, act_order=True), tmp_path)
    dampening = dampening_of(folder)
    bake(folder, dampening, tmp_path / "out")

    def missing(*_, **__):
        raise UserError("optimum is missing.")

    monkeypatch.setattr(verification, "open_model", missing)
    found = verify(folder, dampening, tmp_path / "out")
    assert isinstance(found, RowVerification)
    assert found.rows == 12 * 320 // 3
    assert found.reason == "optimum is missing."
    assert found.largest_difference < 2.0**-10 * found.largest_weight
    other = verify(folder, dampening_of(folder, seed=1), tmp_path / "out")
    assert other.largest_difference > 0.1 * found.largest_weight


FOUR_BITS = ("nvfp4", "mxfp4", "modelopt")


def four_bit_folder(name: str, tmp_path: Path) -> Path:
    if name == "gpt-oss":
        return q.gpt_oss_folder(tmp_path)
    return q.quantised_folder_of(FOLDERS[name], tmp_path)


def weight_at(model, site: str) -> np.ndarray:
    """A site's weight as a model has it, [neurons, inputs]."""
    if isinstance(found := model.get_submodule(site.rpartition(".")[0]), torch.nn.Module) and (
        isinstance(matrix := getattr(found, site.rpartition(".")[2]), torch.nn.Parameter)
    ):
        return matrix.detach().transpose(1, 2).flatten(0, 1).numpy()
    return model.get_submodule(site).weight.detach().numpy()


def rows_at(folder: Path, name: str, site: str) -> np.ndarray:
    """The same from the folder's tensors, by a reference that shares no code."""
    tensors = q.tensors_of(folder)
    if name == "gpt-oss":
        return q.gpt_oss_reference(tensors, site)
    return FOLDERS[name].reference(q.layer_of(tensors, site))


@pytest.mark.parametrize("name", [*FOUR_BITS, "gpt-oss"])
def test_weights_of_four_bits_are_read_dampened_and_compared(tmp_path, name):
    folder = four_bit_folder(name, tmp_path)
    opened = open_model(folder, device="cpu", dtype="float32")
    dampening = Dampening(random_factors({s.path: s.neurons for s in opened.sites}), "aura")
    record = bake(folder, dampening, tmp_path / "out")
    again = open_model(tmp_path / "out", device="cpu", dtype="float32")
    for site, factors in dampening.factors.items():
        before, after = rows_at(folder, name, site), rows_at(tmp_path / "out", name, site)
        # Transformers de-quantises to 16 bits.
        np.testing.assert_allclose(weight_at(opened.model, site), before, rtol=2.0**-8, atol=1e-9)
        np.testing.assert_allclose(weight_at(again.model, site), after, rtol=2.0**-8, atol=1e-9)
        expected = factors[:, None] * before
        off = np.linalg.norm(after - expected) / np.linalg.norm(expected)
        assert off < 0.13, site
        np.testing.assert_array_equal(after[factors == 1], before[factors == 1])
    assert 0 < record.quantised.error < 0.12
    found = verify(folder, dampening, tmp_path / "out")
    assert isinstance(found, RowVerification)
    assert found.within_rounding
    assert found.rows == sum(f.size for f in dampening.factors.values())
    halves = {site: np.full_like(f, 0.25) for site, f in dampening.factors.items()}
    assert not verify(folder, Dampening(halves, "aura"), tmp_path / "out").within_rounding
    with pytest.raises(UserError, match="cannot be undone"):
        undo(tmp_path / "out", tmp_path / "undone")


def test_settings_in_a_file_of_their_own_are_read_or_refused(tmp_path):
    folder = q.quantised_folder_of(FOLDERS["modelopt"], tmp_path)
    config = json.loads((folder / "config.json").read_text())
    settings = config.pop("quantization_config")
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="codes of quantised weights"):
        open_model(folder)
    inner = {key: value for key, value in settings.items() if key != "quant_method"}
    apart = {"producer": {"name": "modelopt"}, "quantization": inner}
    (folder / "hf_quant_config.json").write_text(json.dumps(apart))
    dampening = dampening_of(folder)
    bake(folder, dampening, tmp_path / "out")
    assert verify(folder, dampening, tmp_path / "out").within_rounding
    file, lost = tmp_path / "out/model.safetensors", "model.layers.0.mlp.up_proj"
    kept = {name: tensor for name, tensor in load_file(file).items() if lost not in name}
    save_file(kept, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match=rf"out has no quantised layer {lost}"):
        verify(folder, dampening, tmp_path / "out")
    (folder / "hf_quant_config.json").write_text("{}")
    with pytest.raises(UserError, match="no settings under 'quantization'"):
        open_model(folder)


def test_products_that_run_out_of_scales_are_refused(tmp_path):
    folder = q.quantised_folder_of(FOLDERS["nvfp4"], tmp_path)
    factors = {site: np.full_like(f, 2.0**-19) for site, f in dampening_of(folder).factors.items()}
    with pytest.raises(UserError, match=r"would be off by \d+% of the product, and 20% is allowed"):
        bake(folder, Dampening(factors, "aura"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", sorted(FOLDERS.keys() - {"fp8 rows", *FOUR_BITS}))
def test_transformers_own_loading_has_the_last_word(tmp_path, name):
    made = FOLDERS[name]
    for package in made.needs:
        pytest.importorskip(package)
    if name.startswith("nf4"):
        # The library writes blocks of 256 blocks, and on some processors runs no others.
        made = q.four_bit(64, nested="nested" in name, outer=256)
    folder = q.quantised_folder_of(made, tmp_path)
    opened = open_model(folder, device="cpu", dtype="float32")
    sites = {site.path: site.neurons for site in opened.sites}
    assert sites == {site: f.size for site, f in dampening_of(folder).factors.items()}
    dampening = Dampening(random_factors(sites), "aura")
    bake(folder, dampening, tmp_path / "out")
    found = verify(folder, dampening, tmp_path / "out", device="cpu", dtype="float32")
    assert isinstance(found, Verification)
    wrong = verify(folder, dampening_of(folder, 1), tmp_path / "out", device="cpu", dtype="float32")
    assert found.largest_difference < 0.1 * wrong.largest_difference
    with torch.no_grad():
        logits = opened.model(torch.arange(20)[None]).logits
    assert logits.isfinite().all()


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU it may be run")
def test_a_model_that_transformers_runs_on_a_gpu_only(tmp_path):
    folder = q.quantised_folder_of(FOLDERS["fp8 rows"], tmp_path)
    dampening = dampening_of(folder)
    bake(folder, dampening, tmp_path / "out")
    found = verify(folder, dampening, tmp_path / "out")
    assert isinstance(found, RowVerification)
    assert found.largest_difference < 1e-6 * found.largest_weight


def test_inspect_says_what_it_is(tmp_path, capsys):
    from sordino.cli.app import main

    folder = q.quantised_folder_of(q.gptq(4, 32, act_order=True), tmp_path)
    main(["inspect", str(folder)])
    assert "GPTQ (gptq), 4 bits, groups of 32, act-order; 28 layers" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["int8", "channels", "fp8 blocks"])
def test_experts_are_found_on_the_quantised_model_itself(tmp_path, concept, name):
    for package in FOLDERS[name].needs:
        pytest.importorskip(package)
    folder = q.quantised_folder_of(FOLDERS[name], tmp_path)
    expertise = find_experts(folder, concept)
    dampening = dampen(expertise, "aura")
    assert dampening.changed > 100
    assert bake(folder, dampening, tmp_path / "out").quantised.layers == 12


def test_experts_of_the_model_that_was_quantised_will_do(tmp_path, concept):
    folder = q.quantised_folder_of(FOLDERS["awq"], tmp_path)
    dampening = dampen(find_experts(tmp_path / "llama_biased", concept), "aura")
    with pytest.raises(UserError, match="allow_other_weights"):
        bake(folder, dampening, tmp_path / "out")
    record = bake(folder, dampening, tmp_path / "out", allow_other_weights=True)
    assert record.quantised.layers == 12
