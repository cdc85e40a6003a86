"""The door to transformers: nobody goes around it, and what is not behind it is said by name."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path
from threading import Event, Thread

import gguf
import pytest
import torch
import transformers as tf
from packaging.requirements import Requirement
from transformers.core_model_loading import ConversionOps, WeightConverter, WeightTransform
from transformers.integrations.gguf.gguf_conversion_mapping import GGUF_ARCHS

from families import FAULTY, tiny_folder, tiny_model
from sordino.errors import UserError
from sordino.models import transformers_internals as door
from sordino.models.gguf_header import read_header
from sordino.models.open import open_model
from sordino.version import TESTED_TRANSFORMERS
from tiny_gguf import tiny_of
from tools.compatibility import TESTS

SOURCE = Path(door.__file__).parents[1]
# What transformers documents, beside the names of the package itself.
PROMISED = {"transformers", "transformers.utils", "transformers.utils.logging"}
# A script of its own, which must not import Sordino: it takes the renderer of chat templates.
ALONE = {"models/template_worker.py": {"transformers.utils.chat_template_utils"}}
PRIVATE = {
    *("_adjust_missing_and_unexpected_keys", "_finalize_model_loading", "_get_dtype_plan"),
    *("_weight_conversions", "_model_mapping", "_commit_hash", "_attn_implementation"),
    *("_is_expert_parallel", "_apply_gate", "hf_quantizer", "quantization_method"),
    *("Llama4TextExperts", "GGUFReader"),
}


def _taken(tree: ast.AST) -> set[str]:
    """The modules of transformers that are imported, and the private names that are used."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            submodules = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {node.module, *(submodules & PROMISED)}
            found |= {alias.name for alias in node.names} & PRIVATE
        elif isinstance(node, ast.Attribute):
            found |= {node.attr} & PRIVATE
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found |= {node.value} & PRIVATE
    return {name for name in found if name.split(".")[0] == "transformers"} | (found & PRIVATE)


def test_nobody_goes_around_the_door():
    around = {}
    for path in SOURCE.rglob("*.py"):
        name = path.relative_to(SOURCE).as_posix()
        taken = _taken(ast.parse(path.read_text("utf-8"))) - PROMISED - ALONE.get(name, set())
        if taken and path != Path(door.__file__):
            around[name] = taken
    assert around == {}
    assert _taken(ast.parse(Path(door.__file__).read_text("utf-8"))) & PRIVATE  # it can fail


def test_the_tested_range_is_the_one_that_is_installed():
    project = tomllib.loads((SOURCE.parents[1] / "pyproject.toml").read_text("utf-8"))
    wanted = map(Requirement, project["project"]["dependencies"])
    [found] = (one.specifier for one in wanted if one.name == "transformers")
    assert found == Requirement(f"transformers{TESTED_TRANSFORMERS}").specifier
    assert found.contains(tf.__version__)


def test_a_name_that_is_missing_is_said_in_one_sentence(tmp_path):
    folder = tiny_folder("llama", tmp_path)
    script = (
        "import sys, transformers.modeling_gguf_pytorch_utils as loading\n"
        "del loading.get_gguf_hf_weights_map\n"
        "from sordino.cli.app import main\n"
        "main(['inspect', sys.argv[1]])"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script, folder], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 2
    [line] = ended.stderr.splitlines()
    for word in ("pytorch_utils.get_gguf_hf_weights_map", tf.__version__, TESTED_TRANSFORMERS):
        assert word in line


@pytest.mark.parametrize("name", FAULTY)
def test_what_transformers_itself_cannot_run_is_refused_and_does_fail(name, tmp_path):
    with pytest.raises(AttributeError):
        tiny_model(name)(torch.full((2, 20), 3))
    for stream in (False, True):
        with pytest.raises(UserError, match=tf.__version__):
            open_model(tiny_folder(name, tmp_path), stream=stream)


def test_a_fault_is_of_one_version_and_one_type():
    config = tf.LlamaConfig()
    door.refuse_faulty("a model", config, "5.24.0")
    config.model_type = "llama4"
    door.refuse_faulty("a model", config, "5.23.0")
    with pytest.raises(UserError, match=r"a model .* 5\.24\.0, .*!=5\.24\.0"):
        door.refuse_faulty("a model", config, "5.24.0")


@pytest.mark.parametrize(("here", "notes"), [("5.0.0", 1), ("99.1", 1), (tf.__version__, 0)])
def test_a_version_outside_of_the_range_is_noted_once(here, notes, capsys):
    door.note_untested_version.cache_clear()
    for _ in range(2):
        door.note_untested_version(here)
    said = capsys.readouterr().err.splitlines()
    assert len(said) == notes
    assert all(here in line and TESTED_TRANSFORMERS in line for line in said)


def test_an_entry_of_another_kind_in_a_table_is_named():
    class Riddle(WeightTransform):
        pass

    model = tiny_model("llama")
    with pytest.raises(UserError, match=rf"LlamaForCausalLM with Riddle.*{TESTED_TRANSFORMERS}"):
        door.Conversions(model, [Riddle("a", "b")])


def test_an_operation_that_is_not_known_is_named(tmp_path, monkeypatch):
    class Twist(ConversionOps):
        def convert(self, input_dict, **_):
            return input_dict

    [architecture, *_] = GGUF_ARCHS
    table = [WeightConverter("ffn_up.weight", "mlp.up_proj.weight", operations=[Twist()])]
    monkeypatch.setitem(GGUF_ARCHS, architecture, lambda _: table)
    found = door.gguf_table(architecture, tiny_model("llama"))
    header = read_header(tiny_of("llama", tmp_path / "model.gguf"))
    rows = header.rows(header.tensors["blk.0.ffn_up.weight"])
    assert found.convert("blk.0.ffn_down.weight", rows) is rows
    with pytest.raises(UserError, match=rf"blk.0.ffn_up.weight with Twist.*{TESTED_TRANSFORMERS}"):
        found.convert("blk.0.ffn_up.weight", rows)


class TestReadingThrough:
    @pytest.fixture
    def header(self, tmp_path):
        return read_header(tiny_of("llama", tmp_path / "model.gguf"))

    def test_only_here_and_only_this_file(self, header, tmp_path):
        other = tiny_of("llama", tmp_path / "other.gguf")
        own = gguf.GGUFReader
        seen = []
        with door.reading_through(header):
            assert not isinstance(gguf.GGUFReader(header.path), own)
            assert isinstance(gguf.GGUFReader(other), own)
            thread = Thread(target=lambda: seen.append(gguf.GGUFReader(header.path)))
            thread.start()
            thread.join()
        assert isinstance(seen[0], own)

    def test_what_was_there_comes_back(self, header):
        before = gguf.GGUFReader, gguf.get_tensor_name_map
        with door.reading_through(header), door.reading_through(header):
            assert gguf.GGUFReader is not before[0]
        with pytest.raises(FileNotFoundError), door.reading_through(header):
            gguf.GGUFReader("nowhere.gguf")
        assert (gguf.GGUFReader, gguf.get_tensor_name_map) == before

    def test_threads_take_turns(self, header):
        before = gguf.GGUFReader, gguf.get_tensor_name_map
        first_is_in, second_was_in = Event(), Event()

        def second():
            first_is_in.wait()
            with door.reading_through(header):
                second_was_in.set()

        thread = Thread(target=second)
        thread.start()
        with door.reading_through(header):
            first_is_in.set()
            assert not second_was_in.wait(0.2)  # or the first would put back its own patch last
        thread.join()
        assert second_was_in.is_set()
        assert (gguf.GGUFReader, gguf.get_tensor_name_map) == before


def test_the_tests_of_both_ends_are_there():
    assert [
        name for name in TESTS if not Path(__file__).with_name(f"test_{name}.py").exists()
    ] == []
