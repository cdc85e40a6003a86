"""The whole job from a GGUF file to a GGUF file."""

import pytest

from conftest import sentences
from sordino.cli.app import main
from sordino.edits import read_provenance
from sordino.evaluation import Evaluation
from sordino.expertise import Expertise
from sordino.models.gguf_header import read_header
from tiny_gguf import tiny_of

AURA = ["--intervention", "aura"]
MEASURES = [
    *("--prompts", "prompts.txt", "--texts", "prose.txt", "--scorer", "alt-profanity-check"),
    *("--continuations", "2", "--new-tokens", "4"),
]


@pytest.fixture
def here(tmp_path, monkeypatch):
    tiny_of("llama", tmp_path / "model.gguf", "Q8_0")
    for name, count, seed in [("yes", 20, 1), ("no", 22, 2), ("prompts", 6, 3), ("prose", 6, 4)]:
        (tmp_path / f"{name}.txt").write_text("\n".join(sentences(count, seed, longest=6)) + "\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*more: str) -> int:
    concept = ["--concept", "yes.txt", "--negatives", "no.txt", "--device", "cpu"]
    try:
        main(["run", "model.gguf", "-o", "quiet.gguf", *concept, *MEASURES, *AURA, *more])
    except SystemExit as stop:
        return int(stop.code)
    return 0


def test_from_file_to_file(here, capsys):
    assert run() == 0
    out = capsys.readouterr().out
    assert "the dampened model: quiet.gguf" in out
    assert "quiet.sordino/report.html" in out
    assert sorted(path.name for path in (here / "quiet.sordino").iterdir()) == [
        "README.md",
        "evaluation.json",
        "evaluation.samples.jsonl",
        "recipe.toml",
        "report.html",
        "yes.expertise.safetensors",
    ]
    card = (here / "quiet.sordino/README.md").read_text()
    assert "llama-cli -m quiet.gguf" in card
    assert "library_name: gguf" in card
    assert "AutoModel" not in card
    record = read_provenance("quiet.gguf")
    expertise = Expertise.load(here / "quiet.sordino/yes.expertise.safetensors")
    assert record.expertise == dict(expertise.metadata)
    before, after = read_header(here / "model.gguf"), read_header(here / "quiet.gguf")
    assert before.tensors.keys() == after.tensors.keys()
    assert not list(here.glob(".quiet*"))
    main(["evaluate", "quiet.gguf", "--against", "model.gguf", "-o", "again.json", *MEASURES])
    figures = [
        Evaluation.load(path).measures["perplexity"].figures
        for path in (here / "again.json", here / "quiet.sordino/evaluation.json")
    ]
    assert figures[0] == figures[1]

    assert run() == 2
    assert "quiet.gguf exists already" in capsys.readouterr().err
    (here / "quiet.gguf").unlink()
    assert run() == 2
    assert "quiet.sordino exists already" in capsys.readouterr().err
    page = (here / "quiet.sordino/report.html").read_bytes()
    assert run("--force") == 0
    assert (here / "quiet.sordino/report.html").read_bytes().count(b"\n") == page.count(b"\n")
    (here / "quiet.sordino/diary.txt").write_text("dear")
    assert run("--force") == 2
    assert "diary.txt" in capsys.readouterr().err


def test_a_folder_does_not_become_a_file(here, capsys):
    (here / "model").mkdir()
    (here / "model/config.json").write_text("{}")
    with pytest.raises(SystemExit):
        main(["run", "model", "-o", "quiet.gguf", "--concept", "yes.txt", "--negatives", "no.txt"])
    assert "-o quiet.gguf names a GGUF file, and model is not one" in capsys.readouterr().err
