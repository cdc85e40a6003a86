"""What a model's files hold is checked before it is opened, whatever opens it."""

import json
import os
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers as tf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from families import LAYERS, random_factors, tiny_folder, tiny_model, tiny_tokenizer
from sordino.edits import Verification, bake, diff, verify
from sordino.edits.quantised import read_quantised
from sordino.errors import UserError
from sordino.evaluation.scorers.classifier import TextClassifier
from sordino.expertise import find_experts
from sordino.interventions import Dampening
from sordino.models.calls import open_config, open_tokenizer
from sordino.models.checkpoint import refuse_counts
from sordino.models.gguf_loading import module_tree, reading
from sordino.models.open import empty_model, open_model
from sordino.models.precision import double, has_float64
from sordino.models.reference import resolve
from sordino.models.sites import find_sites
from sordino.models.tokenise import encode_for, positions
from tiny_gguf import tiny_of

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
        assert "mtp (1 tensor) is ignored" in capsys.readouterr().err


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


def compressed(folder, tensors):
    """Make the model one of 8-bit codes, with its settings under the old key."""
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
    return changed


def test_settings_under_the_old_key_are_read(folder, tensors):
    compressed(folder, tensors)
    model = open_model(folder, device="cpu").model
    apart = model.get_parameter(UP).detach() - tensors[UP]
    assert apart.abs().max() <= tensors[UP].abs().max() / 100
    with pytest.raises(UserError, match="quantised"):
        open_model(folder, stream=True)


def test_a_quantised_folder_that_lacks_a_layer_is_refused(folder, tensors, call_in, tmp_path):
    stored = compressed(folder, tensors)
    write(folder, {name: t for name, t in stored.items() if not name.startswith(UP)})
    call = call_in(tmp_path)
    with pytest.raises(UserError, match=re.escape(UP)):
        bake(folder, dampening_of(), tmp_path / "out")
    status, _, error = call("inspect", folder)
    assert (status, UP in error) == (2, True)
    with pytest.raises(UserError, match=re.escape(UP)):
        open_model(folder, device="cpu")


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("blk.1.ffn_up.weight", "blk.1.ffn_uq.weight", "layers.1.mlp.up_proj.weight"),
        ("blk.3.ffn_up.weight", "blk.4.ffn_up.weight", "block_count"),
    ],
)
def test_a_gguf_file_is_held_against_its_metadata(tmp_path, old, new, named):
    path = tiny_of("llama", tmp_path / "model.gguf", "Q8_0")
    data = path.read_bytes()
    size = len(old).to_bytes(8, "little")
    assert data.count(size + old.encode()) == 1
    path.write_bytes(data.replace(size + old.encode(), size + new.encode()))
    for call in (
        lambda: open_model(path, device="cpu"),
        lambda: empty_model(resolve(path)),
        lambda: bake(path, dampening_of(), tmp_path / "quiet.gguf"),
    ):
        with pytest.raises(UserError, match=re.escape(named)):
            call()


def test_a_gguf_tensor_that_the_model_has_no_place_for_is_named(tmp_path):
    path = tiny_of("llama", tmp_path / "model.gguf")
    with reading(path) as header:
        one = header.tensors["blk.0.attn_norm.weight"]
        more = {**header.tensors, "blk.0.odd.weight": one, "rope_freqs.weight": one}
        with pytest.raises(UserError, match=r"1 tensor .*blk\.0\.odd\.weight"):
            module_tree(replace(header, tensors=more))


def classifier(place):
    """A tiny RoBERTa that judges, and its tensors."""
    config = tf.RobertaConfig(
        **{"vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2},
        **{"num_attention_heads": 4, "max_position_embeddings": 66, "pad_token_id": 1},
        id2label={0: "neutral", 1: "toxic"},
        label2id={"neutral": 0, "toxic": 1},
    )
    tf.RobertaForSequenceClassification(config).save_pretrained(place)
    tiny_tokenizer().save_pretrained(place)
    return load_file(place / "model.safetensors")


def test_a_scorer_s_files_are_checked_as_a_model_s_are(tmp_path, capsys):
    tensors = classifier(tmp_path)
    layer = "roberta.encoder.layer.1.output.dense.weight"

    def score():
        return TextClassifier(str(tmp_path), None, torch.device("cpu")).score(["a river"])

    assert score().shape == (1,)
    write(tmp_path, {**tensors, "roberta.pooler.dense.weight": torch.ones(32, 32)})
    assert score().shape == (1,)
    assert "roberta.pooler" in capsys.readouterr().err
    headless = {k: t for k, t in tensors.items() if not k.startswith("classifier")}
    for changed, named in (
        (headless, "classifier"),
        ({k: t for k, t in tensors.items() if k != layer}, layer),
        ({**tensors, layer.replace("layer.1", "layer.2"): tensors[layer].clone()}, "layer.2"),
        ({f"module.{k}": t for k, t in tensors.items()}, "'module.'"),
        ({**tensors, layer: tensors[layer] * torch.nan}, layer),
        ({**tensors, layer: tensors[layer].to(torch.int8)}, layer),
    ):
        write(tmp_path, changed)
        said = refusal(score)
        assert said is not None
        assert named in said


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3_moe"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_verification_tells_rounding_from_another_model(tmp_path, family, dtype):
    source = tiny_folder(family, tmp_path, dtype=getattr(torch, dtype))
    dampening = dampening_of(family=family)
    bake(source, dampening, tmp_path / "out")
    right = verify(source, dampening, tmp_path / "out", device="cpu")
    assert right.within_rounding, right
    wrong = verify(source, dampening, source, device="cpu")
    assert not wrong.within_rounding, wrong


def test_a_verification_that_fails_ends_with_2_and_says_the_bound(
    folder, call_in, tmp_path, monkeypatch
):
    dampening_of().save(tmp_path / "x.dampening.safetensors")
    monkeypatch.setattr("sordino.edits.verify", lambda *_, **__: Verification(3, 2, 9, 1.5, 0.1))
    call = call_in(tmp_path)
    flags = ("-o", "out", "--verify", "--allow-other-weights")
    status, _, error = call("bake", folder, "x.dampening.safetensors", *flags)
    assert status == 2
    assert "1.5" in error
    assert "0.1" in error
    nothing = Verification(float("inf"), 1, 9, float("nan"), 0.1)
    assert not nothing.within_rounding


def test_an_adapter_beside_whole_weights_is_refused_by_all(folder, tmp_path):
    (folder / "adapter_config.json").write_text("{}")
    dampening = dampening_of()
    for call in (
        *(lambda way=way: way(folder) for way in WAYS.values()),
        lambda: bake(folder, dampening, tmp_path / "out"),
        lambda: diff(folder, folder),
    ):
        with pytest.raises(UserError, match=r"adapter_config\.json"):
            call()


def dampening_of(factor=None, family="llama"):
    sites = {site.path: site.neurons for site in find_sites(tiny_model(family))}
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
        bake(folder, dampening_of(), tmp_path / "out")
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
    dampening = dampening_of(np.float32(10.0**exponent))
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
    assert all("tokenizer.json is not a regular file" in said for said in refusals(folder))


def test_tokens_beyond_the_embedding_are_named_where_a_text_has_them(open_tiny):
    opened = open_tiny("llama")
    opened.tokenizer.add_tokens([f"<x{number}>" for number in range(40)])
    assert encode_for(opened, ["quiet river"], 128)
    with pytest.raises(UserError, match=r"'<x3\d>' \(\d+\); it has 300"):
        encode_for(opened, ["quiet <x39> river"], 128)


@pytest.mark.parametrize(("family", "room"), [("gpt2", 256), ("opt", 256), ("llama", 256)])
def test_texts_end_at_the_model_s_positions(open_tiny, capsys, family, room):
    opened = open_tiny(family)
    assert positions(opened.model) == room
    (ids,) = encode_for(opened, ["a" * 900], 500)
    assert len(ids) == room
    assert "reads only 256 tokens of long texts: 1 of 1 cut" in capsys.readouterr().err
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
