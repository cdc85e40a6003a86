"""GGUF headers: read as the gguf package reads them, and refused where they lie."""

import struct
import sys
import tempfile
import tracemalloc
from contextlib import suppress
from functools import cache
from pathlib import Path

import gguf
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoTokenizer

from sordino.cli.app import main
from sordino.errors import UserError
from sordino.models.gguf_header import Array, parse_header, read_header
from sordino.models.gguf_loading import config_of, reading
from sordino.models.open import empty_model, open_model
from sordino.models.reference import resolve
from tiny_gguf import tiny_of

sys.path.insert(0, str(Path(__file__).with_name("fuzz")))
from seeds import seeds
from targets import TARGETS


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    return tiny_of("llama", tmp_path_factory.mktemp("good") / "model.gguf", "Q8_0")


@pytest.fixture
def edit(good, tmp_path):
    """Give a copy of the good file with some bytes replaced."""

    def make(*edits: tuple[int, bytes]) -> Path:
        data = bytearray(good.read_bytes())
        for at, new in edits:
            data[at : at + len(new)] = new
        path = tmp_path / "bad.gguf"
        path.write_bytes(data)
        return path

    return make


@pytest.mark.parametrize("architecture", ["gpt2", "lfm2", "gemma3"])
def test_it_is_what_the_gguf_package_reads(architecture, tmp_path):
    path = tiny_of(architecture, tmp_path / "model.gguf", "F16")
    header, reader = read_header(path), gguf.GGUFReader(path)
    for key, value in header.metadata.items():
        expected = reader.fields[key].contents()
        assert (header.read(value) if isinstance(value, Array) else value) == expected, key
    assert header.data == reader.data_offset
    assert list(header.tensors) == [tensor.name for tensor in reader.tensors]
    for tensor in reader.tensors:
        ours = header.tensors[tensor.name]
        assert ours.kind == tensor.tensor_type.name
        assert ours.shape == tuple(reversed(tensor.shape.tolist()))
        assert (ours.start, ours.size) == (tensor.data_offset, tensor.n_bytes)
        assert header.rows(ours).tobytes() == tensor.data.tobytes()


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "bloom", "qwen3moe"])
def test_transformers_reads_the_same_through_it(architecture, tmp_path):
    path = tiny_of(architecture, tmp_path / "model.gguf")
    where = {"pretrained_model_name_or_path": tmp_path, "gguf_file": str(path)}
    theirs = AutoConfig.from_pretrained(**where), AutoTokenizer.from_pretrained(**where)
    with reading(path) as header:
        ours = config_of(header), AutoTokenizer.from_pretrained(**where)
    # Of experts transformers takes its own default size, whatever the file says.
    differs = {"moe_intermediate_size": 32} if architecture == "qwen3moe" else {}
    assert ours[0].to_dict() == theirs[0].to_dict() | differs
    one, other = (both[1].backend_tokenizer.to_str() for both in (ours, theirs))
    assert one == other


def place_of(path: Path, name: str) -> int:
    """Where a tensor's number of dimensions stands in the table."""
    return path.read_bytes().index(name.encode(), read_header(path).table[0]) + len(name)


def value_of(path: Path, key: str) -> int:
    """Where a value stands, after its key and type."""
    start, _ = read_header(path).places[key]
    return start + 8 + len(key) + 4


U32, U64 = struct.Struct("<I").pack, struct.Struct("<Q").pack
MATRIX, OTHER = "blk.1.ffn_up.weight", "blk.1.ffn_down.weight"


@pytest.mark.parametrize("size", [0, 1, 4, 7, 8, 23, 24, 25, 100, 5000, -1, -4000])
def test_cut_off(good, tmp_path, size):
    path = tmp_path / "cut.gguf"
    path.write_bytes(good.read_bytes()[:size])
    with pytest.raises(UserError, match=r"empty|no GGUF file|cut off"):
        read_header(path)
    with pytest.raises(SystemExit) as stop:
        main(["inspect", str(path)])
    assert stop.value.code == 2


def test_lies_in_the_header_are_named(good, edit):
    matrix, tokens = place_of(good, MATRIX), value_of(good, "tokenizer.ggml.tokens")
    kind, offset = matrix + 4 + 16, matrix + 4 + 16 + 4
    other_offset = place_of(good, OTHER) + 4 + 16 + 4
    beginning = good.read_bytes()[other_offset : other_offset + 8]
    for expected, edits in {
        "does not begin with GGUF": [(0, b"GGML")],
        "is of GGUF version 1,": [(4, U32(1))],
        "is a big-endian": [(4, struct.pack(">I", 3))],
        "is damaged": [(8, U64(2**62))],
        "is damaged|cut off": [(16, U64(2**63))],
        "ends inside its header": [(24, U64(2**64 - 1))],
        "inside its header": [(tokens + 4, U64(2**60))],
        "an array of a type 9 ": [(tokens, U32(9))],
        "an array of a type 77 ": [(tokens, U32(77))],
        "of a type 13 that": [(value_of(good, "general.name") - 4, U32(13))],
        "has 5 dimensions": [(matrix, U32(5))],
        "rows of 33 weights of": [(matrix + 4, U64(33))],
        "would be larger than the file": [(matrix + 4, U64(2**60))],
        "number 4 that is not known": [(kind, U32(4))],
        "number 999 that": [(kind, U32(999))],
        "ends before its tensor": [(offset, U64(2**40))],
        "ends before its": [(offset, U64(2**64 - 32))],
        "invalid offset": [(offset, U64(33))],
        "overlap": [(offset, beginning)],
        "it has the tensor": [(matrix - len(MATRIX), b"blk.0.ffn_up.weight")],
        "a name in it is not UTF-8": [(matrix - 3, b"\xff")],
    }.items():
        with pytest.raises(UserError, match=expected):
            read_header(edit(*edits))


def test_alignment(tmp_path):
    path = tiny_of("llama", tmp_path / "model.gguf", alignment=64)
    at, data = value_of(path, "general.alignment"), bytearray(path.read_bytes())
    for value, expected in {0: "power of two", 48: "power of two", 2**31: "cut off"}.items():
        data[at : at + 4] = U32(value)
        with pytest.raises(UserError, match=expected):
            parse_header(bytes(data), path)


def test_a_key_twice(good, edit):
    """Two keys of one length, the second renamed to the first."""
    at = value_of(good, "tokenizer.ggml.bos_token_id") - 4 - len("tokenizer.ggml.bos_token_id")
    with pytest.raises(UserError, match=r"the key .tokenizer.ggml.eos_token_id. twice"):
        read_header(edit((at, b"tokenizer.ggml.eos_token_id")))


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("block_count", 2**31, f"block_count is {2**31} and it has tensors of 4"),
        ("block_count", 2, "block_count is 2 and it has tensors of 4"),
        ("embedding_length", 2**30, "its metadata say"),
        ("embedding_length", 32, "its metadata say"),
        ("feed_forward_length", 2**31 - 1, "its metadata say"),
        ("attention.head_count", 0, "could not be loaded"),
        ("attention.head_count", 2**31, "its metadata say|could not be loaded"),
        ("attention.head_count_kv", 3, "its metadata say|could not be loaded"),
        ("rope.dimension_count", 2**31, "its metadata say|could not be loaded"),
        ("context_length", 2**32 - 1, None),
    ],
)
def test_sizes_that_do_not_fit_the_tensors(good, edit, key, value, expected):
    path = edit((value_of(good, f"llama.{key}"), U32(value)))
    if expected is None:
        open_model(path, device="cpu")
        return
    tracemalloc.start()
    with pytest.raises(UserError, match=expected):
        open_model(path, device="cpu")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 * 2**20


def test_other_values_than_there_should_be(good, edit):
    for key, kind, text in [
        ("general.architecture", 8, b"xxxxx"),
        ("tokenizer.ggml.model", 8, b"what"),
        ("llama.embedding_length", 5, b""),  # a signed integer
        ("llama.embedding_length", 6, b""),  # a float
        ("llama.attention.layer_norm_rms_epsilon", 4, b""),  # no float
    ]:
        at = value_of(good, key)
        path = edit((at - 4, U32(kind)), (at + 8 if text else at, text))
        with suppress(UserError):
            open_model(path, device="cpu")


def test_a_missing_tensor_is_not_made_up(good, edit):
    """transformers would fill it with random numbers."""
    at = place_of(good, MATRIX) - len(MATRIX)
    with pytest.raises(UserError, match=r"no tensor for model.layers.1.mlp.up_proj.weight"):
        open_model(edit((at, b"blk.1.ffn_xx.weight")))


def test_a_piece_of_a_model_wants_the_others(tmp_path):
    path = tmp_path / "model-00001-of-00003.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint16("split.count", 3)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(UserError, match=r"one of 3 pieces.*00002-of-00003\.gguf is missing"):
        empty_model(resolve(path))


@cache
def starts(target: str) -> list[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        return seeds(target, Path(folder))


@pytest.mark.parametrize("target", TARGETS)
@settings(max_examples=300)
@given(data=st.data())
def test_mutated_files_are_refused_or_sound(target, data):
    """What the fuzzers look for, in little: any change of a good file, in any place."""
    start = bytearray(data.draw(st.sampled_from(starts(target))))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(start)))
        numbers = st.sampled_from([0, 1, 9, 2**31, 2**32 - 1, 2**63, 2**64 - 1])
        new = data.draw(st.binary(max_size=9) | numbers.map(U64))
        gone = data.draw(st.sampled_from([0, len(new), 1, 8, len(start)]))
        start[at : at + gone] = new
    tracemalloc.start()
    TARGETS[target](bytes(start))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20 + 50 * len(start)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 5000,
        '{"weight_map": ' + "9" * 5000 + "}",
        '{"weight_map": {"a": "\\u0000"}}',
        '{"weight_map": {"a": "' + "x" * 300 + '"}}',  # longer than a file's name may be
    ],
)
def test_an_index_that_readers_choke_on(text):
    assert not TARGETS["index"](text.encode())


@given(data=st.binary(max_size=200))
def test_any_bytes_after_a_good_beginning(data):
    beginning = struct.pack("<4sIQQ", b"GGUF", 3, 2, 2)
    with suppress(UserError):
        parse_header(beginning + data, Path("made.gguf"))


def test_a_vocabulary_takes_no_more_memory_than_its_file(tmp_path):
    """A hundred thousand empty strings, the most that a file of that size can hold."""
    count = 10**5
    pair = struct.pack("<Q1sIIQ", 1, b"k", 9, 8, count) + bytes(8 * count)
    path = tmp_path / "many.gguf"
    path.write_bytes(struct.pack("<4sIQQ", b"GGUF", 3, 0, 1) + pair)
    tracemalloc.start()
    header = read_header(path)
    peak = tracemalloc.get_traced_memory()[1]
    assert peak < 2**18
    array = header.metadata["k"]
    assert isinstance(array, Array)
    assert header.read(array) == [""] * count
    assert tracemalloc.get_traced_memory()[1] < 4 * path.stat().st_size
    tracemalloc.stop()


def test_a_file_is_inspected_without_reading_its_weights(good, edit, capsys):
    """Even where they are damaged."""
    start = read_header(good).tensors[MATRIX].start
    main(["inspect", str(edit((start, b"\xff" * 1000)))])
    assert "LlamaForCausalLM, 4 layers, 1,024 neurons in 12 sites" in capsys.readouterr().out
