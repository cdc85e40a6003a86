"""Quantised checkpoints dampened by their scales, against independent de-quantisation."""

import json
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import quantised_folders as q
from sordino.edits.quantised import edit_quantised, quantised_folder
from sordino.edits.shard import Change, copy_rewritten, read_header

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
    config = {"quantization_config": made.settings}
    found = quantised_folder(folder, config, {PurePosixPath(source.name): read_header(source)})
    rows = found.scheme.rows(found.layers["a.b.weight"])
    change = Change(torch.from_numpy(factors)[:, None])
    edit = edit_quantised(found, {"a.b.weight": change})
    copy_rewritten(source, target, edit.changes, lambda _: None)
    after = {name.removeprefix("a.b."): tensor for name, tensor in load_file(target).items()}
    return after, rows.double().numpy(), edit


@st.composite
def cases(draw, made, down=8, across=32):
    """A way of quantising, a weight that it takes, and factors."""
    neurons = down * draw(st.integers(1, 4))
    inputs = across * draw(st.integers(1, 3))
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


@settings(max_examples=150)
@given(
    cases(GPTQ, down=32)
    | cases(AWQ)
    | cases(INT8)
    | cases(FP8_CHANNEL)
    | cases(SINGLE)
    | cases(PACKED)
    | cases(PACKED_CHANNEL)
    | cases(BITSANDBYTES)
    | cases(FBGEMM)
)
def test_only_the_product_of_a_scale_is_rounded(tmp_path_factory, case):
    made, weight, factors = case
    tensors = made.quantise(weight)
    before = made.reference(tensors)
    after, rows, edit = damped(made, tensors, factors, tmp_path_factory.getbasetemp())
    np.testing.assert_allclose(rows, before, rtol=2e-6, atol=1e-9 * np.abs(before).max())
    scale = next(tensors[n] for n in ("scales", "weight_scale", "SCB", "weight.absmax") if n in tensors)
    relative, spacing = ROUNDING.get(scale.dtype, ROUNDING[torch.float32])
    expected = factors[:, None].astype(np.float64) * before
    # Codes reach 511 less their zero points; bitsandbytes' own arithmetic is of float32.
    slack = 2 * spacing * 512 + 1e-7 * np.abs(before)
    assert np.all(np.abs(made.reference(after) - expected) <= relative * np.abs(expected) + slack)
    assert not edit.record["rounded"]
    kept = {n for n in tensors if "weight" in n and n in ("weight", "weight_packed")} | {"qweight"}
    for name in kept & tensors.keys():
        assert torch.equal(after[name].view(torch.uint8), tensors[name].view(torch.uint8))
