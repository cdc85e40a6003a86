"""GGUF files baked to GGUF files."""

import gguf
import numpy as np
import pytest
import torch
from gguf import GGUFReader
from safetensors.torch import load_file

from families import random_factors, tiny_folder
from sordino.cli.app import main
from sordino.edits import bake, is_dampened, read_provenance, verify_file
from sordino.edits.gguf_blocks import KINDS
from sordino.edits.gguf_file import FileEdit, RowChange
from sordino.edits.gguf_names import by_rows
from sordino.edits.provenance import provenance
from sordino.edits.record import TensorRounding
from sordino.errors import UserError
from sordino.expertise import Expertise
from sordino.interventions import Dampening
from sordino.models.gguf_header import Array, read_header
from sordino.models.gguf_loading import module_tree, reading
from sordino.models.open import empty_model, open_model
from sordino.models.reference import resolve
from sordino.models.sites import find_sites
from tiny_gguf import ARCHITECTURES, tiny_of

DENSE = [name for name in ARCHITECTURES if not name.endswith("moe")]


def dampening_of(path, sites=None, seed=0) -> Dampening:
    found = open_model(path, device="cpu", sites=sites).sites
    factors = random_factors({site.path: site.neurons for site in found}, seed)
    return Dampening(factors, "aura", expertise={"concept": "rudeness"})


@pytest.mark.parametrize("architecture", DENSE)
def test_the_baked_file_loads_as_the_model_baked_in_memory(architecture, tmp_path):
    """Every linear layer, attention's with them: permuted, fused, transposed, as it may be."""
    source = tiny_of(architecture, tmp_path / "model.gguf")
    dampening = dampening_of(source, sites=".")
    bake(source, dampening, tmp_path / "quiet.gguf")
    expected = open_model(source, device="cpu").model
    dampening.bake_into(expected)
    found = open_model(tmp_path / "quiet.gguf", device="cpu").model
    before, after = expected.state_dict(), found.state_dict()
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert torch.equal(tensor, after[name]), name
    checked = verify_file(resolve(source), dampening, tmp_path / "quiet.gguf")
    assert checked.others_equal
    assert checked.largest_relative < 1e-7
    assert checked.weights > 0


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "qwen3moe"])
def test_an_open_model_gives_the_same_folder_as_the_file(architecture, tmp_path):
    source = tiny_of(architecture, tmp_path / "model.gguf", "Q8_0")
    dampening = dampening_of(source)
    bake(source, dampening, tmp_path / "anew", allow_other_weights=True)
    opened = open_model(source, device="cpu")
    # What a call leaves in the tokenizer must not be saved.
    opened.tokenizer(["a few words"], truncation=True, max_length=2)
    bake(source, dampening, tmp_path / "copied", allow_other_weights=True, opened=opened)
    anew, copied = (
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.*")}
        for folder in (tmp_path / "anew", tmp_path / "copied")
    )
    assert anew == copied
    fresh = open_model(source, device="cpu").model.state_dict()
    assert all(
        torch.equal(tensor, fresh[name]) for name, tensor in opened.model.state_dict().items()
    )


@pytest.mark.parametrize("architecture", ["qwen2moe", "qwen3moe"])
def test_the_rows_of_stacked_experts(architecture, tmp_path):
    """Scales by parameter, as a rule for MoE experts would give them, land in `ffn_*_exps`."""
    source = tiny_of(architecture, tmp_path / "model.gguf")
    model = open_model(source, device="cpu").model
    generator = torch.Generator().manual_seed(1)
    scales = {
        name: torch.rand((*parameter.shape[:-1], 1), generator=generator)
        for name, parameter in model.named_parameters()
        if ".mlp.experts." in name
    }
    assert {scale.dim() for scale in scales.values()} == {3}
    with reading(source) as header:
        tree = module_tree(header)
        rows = by_rows(header, tree, scales)
        changes = {name: RowChange(values) for name, values in rows.items()}
    assert {name.split(".")[2] for name in rows} == {
        "ffn_gate_exps",
        "ffn_up_exps",
        "ffn_down_exps",
    }
    record = provenance(resolve(source), Dampening({}, "none"), "")
    FileEdit(header, changes, {}, {}).write([tmp_path / "quiet.gguf"], record)
    found = open_model(tmp_path / "quiet.gguf", device="cpu").model.state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor * scales.get(name, torch.ones(1)), found[name]), name


@pytest.mark.parametrize("kind", KINDS)
def test_every_type_in_a_whole_file(kind, tmp_path):
    """What is no row of a site is the same byte; what is, differs by the rounding of its scales."""
    source = tiny_of("llama", tmp_path / "model.gguf", kind, only=".ffn_", wide=True)
    dampening = wide_dampening(source)
    record = bake(source, dampening, tmp_path / "quiet.gguf")
    before, after = GGUFReader(source), GGUFReader(tmp_path / "quiet.gguf")
    edited = {f"blk.{layer}.{name}.weight" for layer in range(4) for name in FFN}
    assert set(record.rounding) == edited
    assert [tensor.name for tensor in before.tensors] == [tensor.name for tensor in after.tensors]
    for old, new in zip(before.tensors, after.tensors, strict=True):
        assert (old.tensor_type, old.shape.tolist()) == (new.tensor_type, new.shape.tolist())
        same = np.array_equal(old.data, new.data)
        assert same == (old.name not in edited)
        if not same:
            assert old.tensor_type.name == kind
    checked = verify_file(resolve(source), dampening, tmp_path / "quiet.gguf")
    assert checked.others_equal
    assert checked.weights == 4 * 3 * 256 * 256
    # The weights are of about 0.15; the smallest step of a half, 6e-8, is taken up to 4,096 times.
    allowed = {"F32": 1e-7, "BF16": 4e-3, "MXFP4": 0.2, "NVFP4": 0.1}
    assert checked.largest_difference <= allowed.get(kind, 6e-4)


FFN = ("ffn_gate", "ffn_up", "ffn_down")


def wide_dampening(path) -> Dampening:
    sites = {site.path: site.neurons for site in find_sites(empty_model(resolve(path)))}
    return Dampening(random_factors(sites), "aura", expertise={"concept": "rudeness"})


@pytest.fixture
def source(tmp_path):
    return tiny_of("llama", tmp_path / "model.gguf", "Q8_0")


def test_metadata_stay_and_the_record_is_added(source, tmp_path):
    dampening = wide_dampening(source)
    record = bake(source, dampening, tmp_path / "quiet.gguf")
    before, after = read_header(source), read_header(tmp_path / "quiet.gguf")
    old, new = source.read_bytes(), (tmp_path / "quiet.gguf").read_bytes()
    assert list(after.metadata)[: len(before.metadata)] == list(before.metadata)
    for key, place in before.places.items():
        assert old[slice(*place)] == new[slice(*after.places[key])], key
    added = {key: after.metadata[key] for key in after.metadata.keys() - before.metadata.keys()}
    assert all(key.startswith("sordino.") for key in added)
    assert added["sordino.concept"] == "rudeness"
    assert added["sordino.strength"] == "1"
    assert not is_dampened(source)
    read = read_provenance(tmp_path / "quiet.gguf")
    rounding = {
        name: {**found.as_json(), "largest": pytest.approx(found.largest)}
        for name, found in record.rounding.items()
    }
    assert read.as_json() == {**record.as_json(), "rounding": rounding}
    # The gguf package reads what was written, and sees the same.
    fields = GGUFReader(tmp_path / "quiet.gguf").fields
    for key, value in after.metadata.items():
        expected = after.read(value) if isinstance(value, Array) else value
        assert fields[key].contents() == expected, key


def test_a_dampened_file_is_dampened_again(source, tmp_path):
    dampening = wide_dampening(source)
    bake(source, dampening, tmp_path / "once.gguf")
    again = bake(tmp_path / "once.gguf", dampening.scaled(0.5), tmp_path / "twice.gguf")
    assert again.earlier == read_provenance(tmp_path / "once.gguf")
    assert read_provenance(tmp_path / "twice.gguf").earlier == again.earlier
    keys = [key for key in read_header(tmp_path / "twice.gguf").metadata if "provenance" in key]
    assert keys == ["sordino.provenance"]


def test_factors_of_one_change_no_tensor(source, tmp_path):
    dampening = wide_dampening(source).scaled(0)
    record = bake(source, dampening, tmp_path / "quiet.gguf")
    assert record.rounding == {}
    before, after = read_header(source), read_header(tmp_path / "quiet.gguf")
    assert (
        source.read_bytes()[before.data :] == (tmp_path / "quiet.gguf").read_bytes()[after.data :]
    )


def test_another_alignment_is_kept(tmp_path):
    source = tiny_of("llama", tmp_path / "model.gguf", "Q8_0", alignment=256)
    dampening = wide_dampening(source)
    bake(source, dampening, tmp_path / "quiet.gguf")
    header = read_header(tmp_path / "quiet.gguf")
    assert header.alignment == 256
    assert not header.data % 256
    assert verify_file(resolve(source), dampening, tmp_path / "quiet.gguf").others_equal


@pytest.mark.parametrize("architecture", ["llama", "nemotron"])
def test_shifts_make_biases_that_llama_cpp_reads(architecture, tmp_path):
    source = tiny_of(architecture, tmp_path / "model.gguf", "F32")
    dampening = dampening_of(source)
    first = next(iter(dampening.factors))
    shifts = {first: np.linspace(-1, 1, dampening.factors[first].size, dtype=np.float32)}
    dampening = Dampening(dampening.factors, "mean_shift", shifts=shifts)
    record = bake(source, dampening, tmp_path / "quiet.gguf")
    assert record.configuration == {"mlp_bias": True}
    expected = open_model(source, device="cpu").model
    dampening.bake_into(expected)
    found = open_model(tmp_path / "quiet.gguf", device="cpu").model
    for name, tensor in found.state_dict().items():
        there = expected.state_dict().get(name, torch.zeros(()))
        assert torch.equal(tensor, there.expand(tensor.shape)), name
    assert torch.equal(found.get_submodule(first).bias, torch.from_numpy(shifts[first]))
    assert verify_file(resolve(source), dampening, tmp_path / "quiet.gguf").others_equal
    with pytest.raises(UserError, match=r"model\.gguf.*blk\.0\.ffn_.*\.bias"):
        verify_file(resolve(source), dampening, source)
    # And again, now that there are biases: scaled with the rest.
    bake(tmp_path / "quiet.gguf", dampening, tmp_path / "again.gguf")
    again = open_model(tmp_path / "again.gguf", device="cpu").model.get_submodule(first).bias
    factors = torch.from_numpy(dampening.factors[first])
    assert torch.equal(
        again, factors * torch.from_numpy(shifts[first]) + torch.from_numpy(shifts[first])
    )


def test_shifts_without_biases_in_llama_cpp_are_refused(tmp_path):
    source = tiny_of("gemma3", tmp_path / "model.gguf")
    factors = wide_dampening(source).factors
    shifts = {site: np.ones_like(values) for site, values in factors.items()}
    with pytest.raises(UserError, match=r"llama.cpp reads none there for gemma3.*`format=hooks`"):
        bake(source, Dampening(factors, "mean_shift", shifts=shifts), tmp_path / "quiet.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["model.gguf"]


def test_an_architecture_that_transformers_does_not_load(tmp_path):
    """Expertise of the folder, baked into the file that was converted from it."""
    folder = tiny_folder("gpt_neox", tmp_path)
    source = converted(folder, "gptneox", tmp_path / "model.gguf")
    dampening = dampening_of(folder)
    bake(source, dampening, tmp_path / "quiet.gguf")
    bake(folder, dampening, tmp_path / "quiet")
    converted(tmp_path / "quiet", "gptneox", tmp_path / "expected.gguf")
    found, expected = GGUFReader(tmp_path / "quiet.gguf"), GGUFReader(tmp_path / "expected.gguf")
    changed = 0
    for ours, theirs, old in zip(
        found.tensors, expected.tensors, GGUFReader(source).tensors, strict=True
    ):
        assert ours.name == theirs.name
        assert np.array_equal(ours.data, theirs.data), ours.name
        changed += not np.array_equal(ours.data, old.data)
    assert changed == 4 * 2 * 2  # weights and biases of two sites in four layers
    site = next(iter(dampening.factors))
    shifts = {site: np.ones_like(dampening.factors[site])}
    both = Dampening(dampening.factors, "mean_shift", shifts=shifts)
    checked = bake(source, both, tmp_path / "shifted.gguf") and verify_file(
        resolve(source), both, tmp_path / "shifted.gguf"
    )
    assert checked.largest_difference < 1e-6
    attention = dampening_of(folder, sites="attention.dense")
    with pytest.raises(UserError, match=r"attention.dense cannot be found.*gptneox"):
        bake(source, attention, tmp_path / "no.gguf")
    with pytest.raises(UserError, match=r"could not be loaded.*gptneox"):
        open_model(source)
    few = {site: factors[1:] for site, factors in dampening.factors.items()}
    assert "does not fit" in refusal(source, Dampening(few, "aura"), tmp_path / "no.gguf")
    source.write_bytes(source.read_bytes().replace(b"gptneox", b"gptneoz"))
    assert "gptneoz, which" in refusal(source, dampening, tmp_path / "no.gguf")


def converted(folder, architecture: str, path):
    """A folder's tensors under the names of the gguf package's table, none reordered."""
    number = {name: key for key, name in gguf.MODEL_ARCH_NAMES.items()}[architecture]
    table = gguf.get_tensor_name_map(number, 4)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(4)
    for name, tensor in load_file(folder / "model.safetensors").items():
        writer.add_tensor(table.get_name(name, (".weight", ".bias")), tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def refusal(*arguments, **options) -> str:
    with pytest.raises(UserError) as error:
        bake(*arguments, **options)
    return str(error.value)


def test_what_cannot_end_in_a_file(source, tmp_path):
    dampening = wide_dampening(source)
    folder = tiny_folder("llama", tmp_path)
    target = tmp_path / "quiet.gguf"
    assert f"{folder} is not one" in refusal(folder, dampening_of(folder), target)
    assert "`format=hooks`" in refusal(source, dampening, target, format="hooks")
    assert "`dtype=float16` is" in refusal(source, dampening, target, dtype="float16")
    assert "input" in refusal(source, dampening, source)
    target.mkdir()
    (target / "config.json").touch()
    assert "is a folder" in refusal(source, dampening, target, force=True)
    target = tmp_path / "there.gguf"
    target.write_text("something")
    assert "`force=True`" in refusal(source, dampening, target)
    assert "there.gguf" in refusal(source, dampening, target, force=True)
    target.unlink()
    bake(source, dampening, target)
    bake(source, dampening, target, force=True)
    assert is_dampened(target)


def test_what_the_file_cannot_take_is_refused_by_name(tmp_path):
    source = tiny_of("llama", tmp_path / "model.gguf", "Q4_0", only="ffn")
    dampening = wide_dampening(source)
    site = "model.layers.2.mlp.up_proj"
    amplified = {**dampening.factors, site: np.full_like(dampening.factors[site], 1e9)}
    found = refusal(source, Dampening(amplified, "amplify"), tmp_path / "quiet.gguf")
    assert "blk.2.ffn_up.weight would overflow Q4_0" in found
    damaged = tmp_path / "damaged.gguf"
    data = bytearray(source.read_bytes())
    start = read_header(source).tensors["blk.1.ffn_down.weight"].start
    data[start : start + 2] = b"\x00\x7e"  # a half that is not a number
    damaged.write_bytes(data)
    found = refusal(damaged, dampening, tmp_path / "quiet.gguf")
    assert "in blk.1.ffn_down.weight that are infinite or not" in found
    with pytest.raises(
        UserError, match=r"weights in model.layers.1.mlp.down_proj.weight that are not"
    ):
        open_model(damaged)
    few = {site: factors[1:] for site, factors in dampening.factors.items()}
    assert "96 neurons" in refusal(source, Dampening(few, "aura"), tmp_path / "quiet.gguf")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["damaged.gguf", "model.gguf"]


def test_a_type_without_rows_to_scale_is_refused(source, tmp_path):
    data = source.read_bytes()
    header = read_header(source)
    name = b"blk.1.ffn_up.weight"
    at = data.index(name, header.table[0]) + len(name) + 4 + 2 * 8
    kind = gguf.GGMLQuantizationType.I8
    changed = tmp_path / "other.gguf"
    changed.write_bytes(data[:at] + bytes([kind]) + data[at + 1 :])
    assert "blk.1.ffn_up.weight as I8" in refusal(
        changed, wide_dampening(source), tmp_path / "quiet.gguf"
    )


def test_scales_that_underflow_are_reported_by_tensor(source, tmp_path, capsys):
    ones = {site: np.ones_like(f) for site, f in wide_dampening(source).factors.items()}
    site = "model.layers.3.mlp.gate_proj"
    ones[site] = np.full_like(ones[site], 2.0**-20)
    expertise = tmp_path / "x.expertise.safetensors"
    names = "architecture", "concept", "concept_fingerprint", "model"
    metadata = dict.fromkeys(names, "made up")
    metadata |= dict.fromkeys(("n_positive", "n_negative", "concept_source"), "1")
    metadata |= {"weights_fingerprint": resolve(source).weights_fingerprint()}
    # AurA's factor is 2 (1 − AUROC).
    statistics = {site: {"auroc": 1 - factors / 2} for site, factors in ones.items()}
    Expertise(statistics, metadata).save(expertise)
    main(["bake", str(source), str(expertise), "-o", str(tmp_path / "quiet.gguf"), "--verify"])
    out = capsys.readouterr().out
    blocks = 96 * 64 // 32
    assert f"moved {blocks} block scales by more than 1 %, {blocks} of them to 0" in out
    assert "in 1 tensor (blk.3.ffn_gate.weight)" in out
    assert "all other tensors are the same bytes" in out
    rounding = read_provenance(tmp_path / "quiet.gguf").rounding
    of_one = TensorRounding(largest=1, coarse=blocks, zeroed=blocks)
    assert rounding == {"blk.3.ffn_gate.weight": of_one}
    main(["inspect", str(tmp_path / "quiet.gguf")])
    assert "dampened by sordino" in capsys.readouterr().out
    main(["inspect", str(source)])
    assert "12 sites" in capsys.readouterr().out


def test_a_file_of_the_same_name_in_the_working_directory_is_another(tmp_path, monkeypatch):
    """transformers by itself would take that one."""
    (tmp_path / "elsewhere").mkdir()
    source = tiny_of("llama", tmp_path / "model.gguf")
    bake(source, wide_dampening(source), tmp_path / "elsewhere/model.gguf")
    monkeypatch.chdir(tmp_path)
    name = "model.layers.0.mlp.up_proj.weight"
    here, there = (
        open_model(path, device="cpu").model.get_parameter(name)
        for path in ("model.gguf", "elsewhere/model.gguf")
    )
    assert not torch.equal(here, there)


def test_the_suffix_counts_in_any_case(source, tmp_path):
    named = tmp_path / "MODEL.GGUF"
    named.write_bytes(source.read_bytes())
    dampening = wide_dampening(source)
    bake(source, dampening, tmp_path / "lower.gguf")
    record = bake(named, dampening, tmp_path / "UPPER.GGUF")
    assert record.model.kind == "gguf"
    assert is_dampened(tmp_path / "UPPER.GGUF")
    tensors = [
        {name: data[t.start : t.start + t.size] for name, t in read_header(file).tensors.items()}
        for file in (tmp_path / "lower.gguf", tmp_path / "UPPER.GGUF")
        for data in [file.read_bytes()]
    ]
    assert tensors[0] == tensors[1]
    assert open_model(str(named), device="cpu").sites == open_model(source, device="cpu").sites
