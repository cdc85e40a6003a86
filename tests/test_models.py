import json
import shutil

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import T5Config, ViTConfig
from transformers.utils import logging

from families import tiny_folder, tiny_model, tiny_tokenizer
from sordino.cli.flags import in_flags
from sordino.errors import UserError
from sordino.models.calls import quiet_transformers
from sordino.models.open import OpenModel, choose_device, empty_model, open_model
from sordino.models.reference import ModelRef, resolve
from sordino.models.sites import decoder_layers, find_sites
from sordino.models.tokenise import encode, equal_length_batches


@pytest.fixture
def folder(tmp_path):
    target = tmp_path / "tiny"
    tiny_model("llama").save_pretrained(target)
    tiny_tokenizer().save_pretrained(target)
    return target


def test_a_folder_opens_in_evaluation_mode_with_its_own_dtype(folder):
    opened = open_model(folder)
    assert isinstance(opened, OpenModel)
    assert not opened.model.training
    assert opened.dtype_name == "float32"
    assert opened.ref.kind == "folder"
    assert open_model(opened) is opened
    assert open_model(folder, dtype="bfloat16").model.dtype == torch.bfloat16


def test_the_empty_model_has_the_same_sites(folder):
    opened = open_model(folder)
    empty = empty_model(opened.ref)
    assert next(empty.parameters()).device.type == "meta"
    assert find_sites(empty) == opened.sites


def test_a_pattern_chooses_sites(folder):
    opened = open_model(folder, sites=r"down_proj$|self_attn\.q_proj")
    assert {site.kind for site in opened.sites} == {"mlp.down_proj", "self_attn.q_proj"}
    for site in opened.sites:
        assert opened.model.get_submodule(site.path).weight.shape[0] == site.neurons


@pytest.mark.parametrize(
    ("pattern", "message"),
    [("nothing", r"matches no linear layer .* mlp\.down_proj"), ("(", "no.* regular expression")],
)
def test_a_bad_pattern(folder, pattern, message):
    with pytest.raises(UserError, match=message):
        _ = open_model(folder, sites=pattern).sites


def test_the_stack_is_found_although_other_lists_have_its_length():
    model = tiny_model("llama")
    model.others = torch.nn.ModuleList([torch.nn.Linear(2, 2) for _ in range(4)])
    assert decoder_layers(model)[0] == "model.layers"


def test_no_stack_is_an_error():
    model = tiny_model("llama")
    model.config.num_hidden_layers = 3
    with pytest.raises(UserError, match="layers of LlamaForCausalLM were not found"):
        decoder_layers(model)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("texts", [1, 3])
def test_the_head_gets_the_last_hidden_states_without_gaps(folder, texts, stream):
    opened = open_model(folder, stream=stream)
    ids = torch.arange(5 * texts).view(texts, 5)
    strides = []
    head = opened.model.get_output_embeddings()
    head.register_forward_pre_hook(lambda _, inputs: strides.append(inputs[0].stride()))
    with torch.inference_mode(), opened.whole_forwards():
        last = opened.model(input_ids=ids, logits_to_keep=2).logits
        every = opened.model(input_ids=ids).logits
    width = head.weight.shape[1]
    assert strides == [(2 * width, width, 1), (5 * width, width, 1)]
    torch.testing.assert_close(last, every[:, -2:])


def test_what_is_no_model_is_named(tmp_path, folder):
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "empty").mkdir()
    (tmp_path / "holder").mkdir()
    (tmp_path / "holder" / "x.gguf").write_bytes(b"GGUF")
    for spec, message in [
        (tmp_path / "notes.txt", r"notes\.txt is not a model"),
        (tmp_path / "empty", "has no config.json"),
        (tmp_path / "holder", r"it holds x\.gguf: name that file"),
        (tmp_path / "none", "does not exist"),
        ("none.gguf", "does not exist"),
        ("no/such/place", "does not exist"),
        ("kit:smolm2", "smollm2"),
        ("org/name", "the hub does not answer"),
    ]:
        with pytest.raises(UserError, match=message):
            resolve(spec)


def test_weights_come_from_safetensors_only(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"only as a pickle \(pytorch_model\.bin\).*AutoModelFor"):
        open_model(folder)


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "..", "a/b.safetensors"])
def test_an_index_cannot_leave_its_folder(folder, name):
    (folder / "model.safetensors").rename(folder / "shard.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": name}}))
    with pytest.raises(UserError, match="outside its folder"):
        open_model(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "no weight_map"),
        ('{"weight_map": {"x": "gone.safetensors"}}', "missing beside it"),
    ],
)
def test_a_broken_index_is_named(folder, text, message):
    (folder / "model.safetensors").rename(folder / "shard.safetensors")
    (folder / "model.safetensors.index.json").write_text(text)
    with pytest.raises(UserError, match=message):
        open_model(folder)


def test_broken_files_give_one_sentence(folder):
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:100])
    with pytest.raises(UserError, match="is damaged"):
        open_model(folder)
    weights.write_bytes(whole)
    (folder / "config.json").write_text('{"model_type": "nothing_known"}')
    with pytest.raises(UserError, match="could not be loaded"):
        open_model(folder)


def test_remote_code_is_not_run(folder):
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "mine.py").write_text("raise SystemExit('ran')")
    with pytest.raises(UserError, match="such code is never run here"):
        open_model(folder)


def test_a_tokenizer_s_remote_code_is_not_run(folder):
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings |= {"tokenizer_class": "Mine", "auto_map": {"AutoTokenizer": ["mine.Mine", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "mine.py").write_text("raise SystemExit('ran')")
    with pytest.raises(UserError, match="such code is never run here"):
        open_model(folder)


def test_words_of_a_library_are_no_arguments_of_ours(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "mine"}))
    with pytest.raises(UserError, match="'mine'") as failed:
        open_model(folder)
    assert in_flags(str(failed.value)) == str(failed.value)


def test_no_tokenizer_is_said(folder):
    for path in folder.glob("token*"):
        path.unlink()
    with pytest.raises(UserError, match="has no tokenizer: copy its files"):
        open_model(folder)


@pytest.mark.parametrize(
    "name", ["model.safetensors", "config.json", "tokenizer.json", "generation_config.json"]
)
def test_pointers_of_git_lfs_are_named(folder, name):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n"
    (folder / name).write_text(pointer)
    with pytest.raises(UserError, match=f"{name} is a Git LFS pointer to the file: fetch that"):
        open_model(folder)
    (folder / "x.gguf").write_text(pointer)
    with pytest.raises(UserError, match=r"x\.gguf is a Git LFS pointer"):
        open_model(folder / "x.gguf")


@pytest.mark.parametrize("ends", ["</s>", [1, "</s>"], True, 1.5, {}])
@pytest.mark.parametrize("stream", [False, True])
def test_generation_settings_that_name_no_token_are_refused(folder, stream, ends):
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    with pytest.raises(UserError, match="eos_token_id must be"):
        open_model(folder, stream=stream)


@pytest.mark.parametrize("ends", [1, [1, 2], None])
def test_generation_settings_that_name_tokens_are_read(folder, ends):
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    assert open_model(folder).model.generation_config.eos_token_id == ends


def test_damaged_generation_settings_are_not_passed_over(folder):
    (folder / "generation_config.json").write_text("{")
    with pytest.raises(UserError, match=r"generation_config\.json is not valid JSON"):
        open_model(folder)


@pytest.mark.parametrize(
    ("config", "said"),
    [(T5Config(), "is an encoder-decoder"), (ViTConfig(), "not a model that continues text")],
)
def test_other_kinds_of_models_are_named_in_few_words(folder, config, said):
    config.save_pretrained(folder)
    with pytest.raises(UserError, match=said) as failed:
        open_model(folder)
    assert len(str(failed.value)) < 250


@given(st.binary(max_size=300))
def test_no_gguf_bytes_crash(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("gguf") / "x.gguf"
    path.write_bytes(b"GGUF" + data)
    with pytest.raises(UserError, match=r"x\.gguf"):
        open_model(path)


def test_devices_and_dtypes_are_checked(folder):
    assert choose_device("cpu").type == "cpu"
    for device in ("cuda:77", "abacus"):
        with pytest.raises(UserError, match=f"`device={device}`"):
            choose_device(device)
    with pytest.raises(UserError, match="`dtype=float12`"):
        open_model(folder, dtype="float12")


def test_the_fingerprint_follows_the_weights(folder, tmp_path):
    first = resolve(folder).weights_fingerprint()
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    assert resolve(copy).weights_fingerprint() == first
    with (copy / "model.safetensors").open("r+b") as stream:
        stream.seek(-1, 2)
        stream.write(b"\x01")
    assert resolve(copy).weights_fingerprint() != first


def test_a_large_file_s_fingerprint_sees_an_edit_of_many_rows(tmp_path):
    path = tmp_path / "big.gguf"
    with path.open("wb") as stream:
        stream.truncate(300 << 20)
    ref = ModelRef("big", "gguf", path)
    first = ref.weights_fingerprint()
    with path.open("r+b") as stream:
        for row in range(0, 300 << 20, 16384):
            stream.seek(row)
            stream.write(b"\x01")
    assert ref.weights_fingerprint() != first


@given(
    st.lists(st.integers(1, 30), min_size=1, max_size=60),
    st.integers(1, 200),
)
def test_batches_hold_every_text_once_in_equal_lengths(lengths, batch_tokens):
    encoded = [[index] * length for index, length in enumerate(lengths)]
    batches = equal_length_batches(encoded, batch_tokens)
    assert sorted(i for batch in batches for i in batch.indices) == list(range(len(lengths)))
    for batch in batches:
        assert batch.tokens <= batch_tokens or len(batch.indices) == 1
        for row, index in zip(batch.input_ids.tolist(), batch.indices, strict=True):
            assert row == encoded[index]
    assert [b.input_ids.shape[1] for b in batches] == sorted(
        (b.input_ids.shape[1] for b in batches), reverse=True
    )


def test_the_tokenizer_s_special_tokens_stay():
    assert encode(tiny_tokenizer(bos=True), ["ab"], 128)[0][0] == 0
    assert 0 not in encode(tiny_tokenizer(bos=False), ["ab"], 128)[0]
    assert len(encode(tiny_tokenizer(), ["a" * 500], 128)[0]) == 128


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("family", ["bert", "xlnet"])
def test_what_reads_in_both_directions_is_refused(family, stream, tmp_path):
    folder = tiny_folder(family, tmp_path, **({"is_decoder": False} if family == "bert" else {}))
    with pytest.raises(UserError, match=f"{family} reads texts in both directions"):
        open_model(folder, device="cpu", stream=stream)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("family", ["bert", "mixtral", "gemma3"])
def test_in_half_precision_rounding_is_no_direction(family, stream, tmp_path):
    folder = tiny_folder(family, tmp_path, dtype=torch.bfloat16)
    assert open_model(folder, device="cpu", stream=stream).ref.name == str(folder)


def test_what_hashes_at_random_is_refused_before_its_weights_are_read(tmp_path):
    folder = tiny_folder("reformer", tmp_path)
    with pytest.raises(UserError, match="hashes texts with random numbers"):
        empty_model(resolve(folder))


def test_quiet_blocks_of_two_threads_may_end_in_any_order():
    def settings():
        return logging.get_verbosity(), logging.is_progress_bar_enabled()

    before, first, second = settings(), quiet_transformers(), quiet_transformers()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert settings() == (logging.ERROR, False)
    second.__exit__(None, None, None)
    assert settings() == before
