"""What a model's files hold is checked before it is opened, whatever opens it."""

import json
import os
import re
import shutil

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from families import LAYERS, random_factors, tiny_folder, tiny_model
from sordino.edits import bake, diff
from sordino.edits.quantised import read_quantised
from sordino.errors import UserError
from sordino.expertise import find_experts
from sordino.interventions import Dampening
from sordino.models.calls import open_config, open_tokenizer
from sordino.models.checkpoint import refuse_counts
from sordino.models.open import empty_model, open_model
from sordino.models.precision import double, has_float64
from sordino.models.reference import resolve
from sordino.models.sites import find_sites
from sordino.models.tokenise import encode_for, positions

WAYS = {
    "in memory": lambda folder: open_model(folder, device="cpu"),
    "streamed": lambda folder: open_model(folder, device="cpu", stream=True),
    "without weights": lambda folder: empty_model(resolve(folder)),
}
UP = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return tiny_folder("llama", tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def tensors(source):
    return load_file(source / "model.safetensors")


@pytest.fixture
def folder(source, tmp_path):
    return shutil.copytree(source, tmp_path / "model")


def write(folder, tensors):
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def configure(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def refusal(call):
    """The sentence with which a call is refused, or None."""
    try:
        call()
    except UserError as error:
        return str(error)
    return None


def refusals(folder):
    """What each way of opening a model says; all of them have to refuse it."""
    said = {name: refusal(lambda way=way: way(folder)) for name, way in WAYS.items()}
    assert None not in said.values(), said
    return said.values()


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_lacking_and_foreign_tensors_are_named_whatever_opens_the_model(
    source, tensors, tmp_path_factory, data
):
    folder = shutil.copytree(source, tmp_path_factory.mktemp("any") / "model")
    names = sorted(tensors)
    change = data.draw(st.sampled_from(["drop", "rename", "add", "shape"]))
    name = data.draw(st.sampled_from(names))
    changed = dict(tensors)
    named = name
    if change == "drop":
        del changed[name]
    elif change == "rename":
        changed[f"{name}_old"] = changed.pop(name)
    elif change == "add":
        named = data.draw(
            st.sampled_from([f"{name}.extra", f"model.layers.{LAYERS}.mlp.up_proj.weight"])
        )
        changed[named] = torch.ones(3)
    else:
        changed[name] = torch.zeros(*tensors[name].shape, 2)
    write(folder, changed)
    for said in refusals(folder):
        assert named in said


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "base_model.model."])
def test_a_prefix_that_a_wrapper_left_is_named(folder, tensors, prefix):
    write(folder, {prefix + name: tensor for name, tensor in tensors.items()})
    assert all(f"'{prefix}'" in said for said in refusals(folder))


@pytest.mark.parametrize("layers", [LAYERS - 1, LAYERS + 1])
def test_other_layers_than_config_says_are_refused(folder, layers):
    configure(folder, num_hidden_layers=layers)
    assert all("model.layers.3." in s or "model.layers.4." in s for s in refusals(folder))


def test_tied_weights_and_old_buffers_are_no_fault(folder, tensors):
    write(folder, {k: t for k, t in tensors.items() if k != "lm_head.weight"})
    with pytest.raises(UserError, match=r"lm_head\.weight"):
        open_model(folder)
    configure(folder, tie_word_embeddings=True)
    old = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    write(folder, {k: t for k, t in {**tensors, **old}.items() if k != "lm_head.weight"})
    for way in WAYS.values():
        way(folder)


def test_a_part_that_the_class_lacks_is_said(folder, tensors, capsys):
    write(folder, {**tensors, "mtp.layers.0.mlp.up_proj.weight": torch.ones(2, 2)})
    for way in WAYS.values():
        capsys.readouterr()
        way(folder)
        assert "mtp (1 tensors) is left out" in capsys.readouterr().err


@pytest.mark.parametrize("dtype", [torch.int8, torch.int32, torch.float8_e4m3fn])
def test_codes_are_no_weights(folder, tensors, dtype):
    write(folder, {**tensors, UP: tensors[UP].to(dtype)})
    assert all(UP in said and "quantised" in said for said in refusals(folder))


@pytest.mark.parametrize("name", ["quantize_config.json", "quant_config.json"])
def test_settings_of_quantisation_in_a_file_of_their_own_are_refused(folder, name):
    (folder / name).write_text('{"bits": 4, "group_size": 128}')
    assert all(name in said for said in refusals(folder))
    with pytest.raises(UserError, match=name):
        read_quantised(folder)


def test_settings_under_the_old_key_are_read(folder, tensors):
    changed = {}
    for name, tensor in tensors.items():
        if "_proj.weight" in name:
            scale = tensor.abs().amax(1, keepdim=True) / 127
            changed[name] = (tensor / scale).round().to(torch.int8)
            changed[f"{name}_scale"] = scale
        else:
            changed[name] = tensor
    write(folder, changed)
    weights = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}
    old = {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
    }
    configure(folder, compression_config=old)
    model = open_model(folder, device="cpu").model
    apart = model.get_parameter(UP).detach() - tensors[UP]
    assert apart.abs().max() <= tensors[UP].abs().max() / 100
    with pytest.raises(UserError, match="quantised"):
        open_model(folder, stream=True)


def test_an_adapter_beside_whole_weights_is_refused_by_all(folder, tmp_path):
    (folder / "adapter_config.json").write_text("{}")
    dampening = dampening_of(folder)
    for call in (
        *(lambda way=way: way(folder) for way in WAYS.values()),
        lambda: bake(folder, dampening, tmp_path / "out"),
        lambda: diff(folder, folder),
    ):
        with pytest.raises(UserError, match=r"adapter_config\.json"):
            call()


def dampening_of(folder, factor=None):
    sites = {site.path: site.neurons for site in find_sites(tiny_model("llama"))}
    factors = random_factors(sites)
    if factor is not None:
        factors = {site: np.full_like(values, factor) for site, values in factors.items()}
    return Dampening(factors, "aura", expertise={"concept": "x"})


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_weights_that_are_no_finite_numbers_are_refused(folder, tensors, concept, tmp_path, bad):
    tensors[UP][3, 5], kept = bad, float(tensors[UP][3, 5])
    write(folder, tensors)
    tensors[UP][3, 5] = kept
    for stream in (False, True):
        with pytest.raises(UserError, match=re.escape(UP)):
            find_experts(folder, concept, device="cpu", stream=stream)
    with pytest.raises(UserError, match=re.escape(UP)):
        bake(folder, dampening_of(folder), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    exponent=st.floats(-3, 38),
)
def test_factors_make_finite_weights_or_are_refused(
    source, tensors, tmp_path_factory, dtype, exponent
):
    place = tmp_path_factory.mktemp("large")
    folder = shutil.copytree(source, place / "model")
    write(folder, {name: tensor.to(dtype) for name, tensor in tensors.items()})
    dampening = dampening_of(folder, np.float32(10.0**exponent))
    model = open_model(folder, device="cpu", dtype="auto").model.to(dtype)
    before = {name: tensor.clone() for name, tensor in model.named_parameters()}
    if (said := refusal(lambda: bake(folder, dampening, place / "out"))) is not None:
        assert "mlp." in said
        assert not (place / "out").exists()
        with pytest.raises(UserError, match=r"mlp\..*proj"):
            dampening.bake_into(model)
        assert all(torch.equal(before[name], t) for name, t in model.named_parameters())
    else:
        written = load_file(place / "out" / "model.safetensors")
        assert all(tensor.isfinite().all() for tensor in written.values())
        dampening.bake_into(model)
        assert torch.equal(model.get_parameter(UP), written[UP])


@pytest.mark.parametrize(
    "changes",
    [
        {"num_hidden_layers": 10**7},
        {"num_hidden_layers": 1e9},
        {"num_local_experts": 10**8},
        {"text_config": {"num_hidden_layers": 10**7}},
        {"hidden_size": 10**12},
        {"vocab_size": 10**15},
        {"num_hidden_layers": -1},
    ],
)
def test_sizes_that_the_files_do_not_have_are_refused_at_once(folder, changes):
    configure(folder, **changes)
    refusals(folder)


def test_real_counts_pass():
    refuse_counts("x", {"num_hidden_layers": 126, "n_routed_experts": 256, "layers": True}, [])
    refuse_counts("x", {"num_hidden_layers": 700}, map(str, range(700)))
    with pytest.raises(UserError, match=r"vision_config\.depth"):
        refuse_counts("x", {"vision_config": {"depth": 513}}, [])


@pytest.mark.parametrize(
    "text", ["[]", '""', "7", "null", "{}", "[" * 100_000, '{"x": ' + "9" * 5000]
)
def test_a_config_that_is_no_configuration_is_named(folder, text):
    (folder / "config.json").write_text(text)
    assert all("config.json" in said for said in refusals(folder))


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3000) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=3,
)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_value_in_a_config_is_a_traceback(source, tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("odd")
    for name in ("model.safetensors", "config.json"):
        shutil.copy(source / name, folder / name)
    known = sorted(json.loads((folder / "config.json").read_text()))
    configure(folder, **{data.draw(st.sampled_from(known)): data.draw(_JSON)})
    said = refusal(lambda: empty_model(resolve(folder)))
    assert said is None or str(folder) in said


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 0.99), name=st.sampled_from(["tokenizer.json", "tokenizer_config.json"]))
def test_a_truncated_tokenizer_is_named(source, tmp_path_factory, share, name):
    folder = tmp_path_factory.mktemp("cut")
    for each in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(source / each, folder / each)
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[: int(share * len(data))])
    with pytest.raises(UserError, match="tokenizer"):
        open_tokenizer(folder, "the model")


def test_a_tokenizer_of_an_unknown_kind_is_named(folder):
    path = folder / "tokenizer.json"
    changed = json.loads(path.read_text())
    changed["model"]["type"] = "NewBPE"
    path.write_text(json.dumps(changed))
    with pytest.raises(UserError, match="tokenizer"):
        open_model(folder)


@pytest.mark.parametrize("wanted", ["flash_attention_2", "flash_attention_3", "org/kernel", "x"])
def test_attention_that_is_not_here_becomes_torch_s_own(folder, capsys, wanted):
    configure(folder, _attn_implementation=wanted)
    assert open_model(folder, device="cpu").model.config._attn_implementation in ("sdpa", "eager")
    assert wanted in capsys.readouterr().err
    assert open_config(folder, "m")._attn_implementation is None


def test_a_pipe_among_the_model_s_files_is_never_opened(folder):
    os.mkfifo(folder / "generation_config.json.fifo")  # nothing that is read
    WAYS["without weights"](folder)
    (folder / "tokenizer.json").unlink()
    os.mkfifo(folder / "tokenizer.json")
    assert all("tokenizer.json is no regular file" in said for said in refusals(folder))


def test_tokens_beyond_the_embedding_are_named_where_a_text_has_them(open_tiny):
    opened = open_tiny("llama")
    opened.tokenizer.add_tokens([f"<x{number}>" for number in range(40)])
    assert encode_for(opened, ["quiet river"], 128)
    with pytest.raises(UserError, match=r"'<x3\d>' \(\d+\): it has 300"):
        encode_for(opened, ["quiet <x39> river"], 128)


@pytest.mark.parametrize(("family", "room"), [("gpt2", 256), ("opt", 256), ("llama", 256)])
def test_texts_end_at_the_model_s_positions(open_tiny, capsys, family, room):
    opened = open_tiny(family)
    assert positions(opened.model) == room
    (ids,) = encode_for(opened, ["a" * 900], 500)
    assert len(ids) == room
    assert "256 positions" in capsys.readouterr().err
    opened.model(torch.tensor([ids]))


def test_where_float64_is():
    assert has_float64(torch.device("cpu"))
    assert has_float64(torch.device("cuda"))
    assert not has_float64(torch.device("mps"))
    assert double(torch.ones(1, dtype=torch.float16)).dtype == torch.float64


def test_bugs_of_ours_stay_tracebacks(folder, monkeypatch):
    def broken(*_):
        raise TypeError("a slip")

    monkeypatch.setattr("sordino.models.open.refuse_unfit", broken)
    with pytest.raises(TypeError, match="a slip"):
        open_model(folder)
