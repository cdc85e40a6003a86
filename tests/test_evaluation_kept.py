"""What is measured of the model before is kept, and taken again only if nothing has changed."""

import json
import os
import stat
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from conftest import forked
from families import tiny_folder
from sordino.evaluation import SCORERS, Divergence, Perplexity, Scorer, Toxicity, evaluate, kept
from sordino.evaluation.kept import Shelf
from sordino.evaluation.result import samples_path
from sordino.models.open import open_model
from sordino.pipeline import RunSettings, run
from sordino.report.outcome import protocol

WORDS = ["the cat", "in the end", "who", "a dog and", "the other", "an old bridge", "one"]


class LetterScorer(Scorer):
    """Flags continuations in which a letter is; it says so."""

    limits = "It sees one letter."
    reusable = True
    version = 1

    def protocol(self):
        return {"scorer": "letter", "version": self.version}

    def score(self, texts):
        return np.array([min(1.0, text.count("a") / 2) for text in texts])


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A function that compares two tiny models, with a cache folder of their own."""
    monkeypatch.setenv("SORDINO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(SCORERS, "letter", LetterScorer)
    (tmp_path / "other").mkdir()
    after, before = tiny_folder("llama", tmp_path), tiny_folder("llama", tmp_path / "other", seed=1)
    prompts, prose = tmp_path / "prompts.txt", tmp_path / "prose.txt"
    prompts.write_text("\n".join(WORDS))
    prose.write_text("\n".join(f"{word} turned under the river" for word in WORDS))

    def run(*, against=before, cache=True, measures=None, **options):
        chosen = measures or [
            Toxicity(prompts=str(prompts), scorer="letter", continuations=2, new_tokens=4),
            Perplexity(texts=str(prose)),
            Divergence(texts=str(prose)),
        ]
        return evaluate(after, against, measures=chosen, cache=cache, **options)

    return SimpleNamespace(
        run=run,
        after=after,
        before=before,
        prompts=prompts,
        prose=prose,
        folder=tmp_path / "cache" / "measurements",
    )


def reused(result):
    """Of which measures the model before was not measured again."""
    return {name for name, found in result.measures.items() if found.before is not None}


ALL = {"toxicity", "perplexity", "divergence"}


def written(path):
    """An evaluation's bytes, but for where the records of the model before are from."""
    value = json.loads(path.read_text())
    for found in value["measures"].values():
        found.pop("before", None)
    return json.dumps(value), samples_path(path).read_bytes()


def test_the_same_bytes_measured_and_kept(work, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    without = work.run(cache=False, output=tmp_path / "without.json")
    assert not work.folder.exists()
    cold = work.run(output=tmp_path / "cold.json")
    assert len(list(work.folder.iterdir())) == len(ALL)
    capsys.readouterr()
    opened = []
    monkeypatch.setattr(
        "sordino.evaluation.evaluator.open_model",
        lambda ref, **options: opened.append(ref.path) or open_model(ref, **options),
    )
    warm = work.run(output=tmp_path / "warm.json")
    assert opened == [work.after]  # the model before is not even opened
    assert [reused(each) for each in (without, cold, warm)] == [set(), set(), ALL]
    assert {found.before.measured for found in warm.measures.values()} == {"2023-11-14"}
    assert "perplexity: the model before was measured on 2023-11-14" in capsys.readouterr().err
    bytes_of = [written(tmp_path / f"{name}.json") for name in ("without", "cold", "warm")]
    assert bytes_of[0] == bytes_of[1] == bytes_of[2]
    assert (tmp_path / "without.json").read_bytes() == (tmp_path / "cold.json").read_bytes()
    said = {name: about.get("model before") for name, about in protocol(warm).items()}
    assert said["Perplexity, version 1"] == "measured on 2023-11-14, and kept since"


def test_a_run_of_another_strength_takes_what_the_first_kept(work, concept, tmp_path):
    """Of the arms for comparison, and of the edited model's own."""
    measures = [Perplexity(texts=str(work.prose))]
    found = []
    for strength in (1.0, 0.5):
        settings = RunSettings(
            "aura", strength=strength, beside=["aura"], measures=measures, device="cpu"
        )
        output = tmp_path / f"quiet-{strength}"
        found.append(run(work.before, concept, output, settings, cache=True))
    # In the first, both comparisons share one measurement of the original, which is new.
    assert [reused(each.evaluation) for each in found] == [set(), {"perplexity"}]
    assert [reused(each.beside["aura"]) for each in found] == [set(), {"perplexity"}]
    figures = [each.beside["aura"].measures["perplexity"].figures for each in found]
    assert figures[0] == figures[1]


def edit_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def flip_a_weight(folder):
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def add_a_line(path):
    path.write_text(path.read_text() + "\n")


@pytest.mark.parametrize(
    ("change", "missed"),
    [
        (lambda work, _: edit_json(work.before / "config.json", rms_norm_eps=1e-4), ALL),
        (lambda work, _: (work.before / "generation_config.json").write_text("{}"), ALL),
        (lambda work, _: (work.before / "chat_template.jinja").write_text("{{ 1 }}"), ALL),
        (lambda work, _: edit_json(work.before / "tokenizer_config.json", note="1"), ALL),
        (lambda work, _: add_a_line(work.before / "tokenizer.json"), ALL),
        (lambda work, _: flip_a_weight(work.before), ALL),
        (lambda work, _: work.prompts.write_text("\n".join(WORDS[1:])), {"toxicity"}),
        (lambda work, _: work.prose.write_text("a river\nan old one"), ALL - {"toxicity"}),
        (lambda _, patch: patch.setattr(LetterScorer, "version", 2), {"toxicity"}),
        (lambda _, patch: patch.setattr(Perplexity, "version", 99), {"perplexity"}),
        (lambda _, patch: patch.setattr(kept, "distributions", lambda: []), ALL),
        (lambda _, patch: patch.setattr(kept, "describe_processor", lambda: ["another"]), ALL),
        (lambda _, patch: patch.setenv("MKL_CBWR", "COMPATIBLE"), ALL),
        (lambda work, patch: patch.setattr(kept, "PROGRAM", work.after), ALL),
    ],
    ids=[
        *("config", "generation config", "template", "tokenizer's settings", "tokenizer"),
        *("weights", "prompts", "texts", "scorer", "measure", "packages", "processor"),
        *("environment", "program"),
    ],
)
def test_whatever_decides_a_measurement_has_it_taken_again(work, monkeypatch, change, missed):
    work.run()
    change(work, monkeypatch)
    assert reused(work.run()) == ALL - missed


def test_whatever_the_call_decides_has_it_taken_again(work):
    reading = [Perplexity(texts=str(work.prose))]
    work.run(measures=reading)
    for options in ({"seed": 1}, {"dtype": "bfloat16"}, {"batch_tokens": 64}):
        assert reused(work.run(measures=reading, **options)) == set()
        assert reused(work.run(measures=reading, **options)) == {"perplexity"}
    shorter = [Perplexity(texts=str(work.prose), max_tokens=5)]
    assert reused(work.run(measures=shorter)) == set()
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        assert reused(work.run(measures=reading)) == set()
    finally:
        torch.set_num_threads(threads)
    assert reused(work.run(measures=reading)) == {"perplexity"}


def test_a_measure_that_does_not_say_all_is_not_kept(work, monkeypatch):
    monkeypatch.setattr(LetterScorer, "reusable", Scorer.reusable)
    work.run()
    assert reused(work.run()) == ALL - {"toxicity"}


def test_only_an_unedited_model_from_its_files_is_kept(work):
    work.run(against=open_model(work.before))  # its weights may be another's by now
    work.run(against=None, measures=[Perplexity(texts=str(work.prose))])
    assert not work.folder.exists()


DAMAGES = {
    "empty": lambda data: b"",
    "half": lambda data: data[: len(data) // 2],
    "a byte": lambda data: data.replace(b'"ran"', b'"ran."'),
    "no checksum": lambda data: data.partition(b"\n")[2],
    "another's": lambda data: data.replace(b"0", b"1"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_what_is_damaged_is_measured_and_written_again(work, damage):
    reading = [Perplexity(texts=str(work.prose))]
    work.run(measures=reading)
    [path] = work.folder.iterdir()
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    assert reused(work.run(measures=reading)) == set()
    assert path.read_bytes() == whole
    assert reused(work.run(measures=reading)) == {"perplexity"}


def test_an_entry_under_anothers_name_is_not_taken(tmp_path):
    shelf = Shelf(tmp_path, [])
    shelf.put("a", ["float32", "cpu"], [[[0, 1.5]]])
    (tmp_path / "a.json").rename(tmp_path / "b.json")
    assert shelf.find("b") is None
    assert shelf.find("a") is None


def test_values_come_back_as_they_were(tmp_path):
    shelf = Shelf(tmp_path, [])
    batches = [[[0, 0.1 + 0.2, None, "é\ud7ff"], [1, 5e-324, -0.0, {"missing": "why"}]], [[2]]]
    shelf.put("a", ["float32", "cpu"], batches)
    found = shelf.find("a")
    assert repr(found.batches) == repr(batches)
    assert found.ran == ["float32", "cpu"]
    [path] = tmp_path.iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600  # a model may have written anything


def test_the_oldest_are_dropped(tmp_path, monkeypatch):
    shelf = Shelf(tmp_path, [])
    for age, key in enumerate("abcd"):
        shelf.put(key, ["float32", "cpu"], [[[0, 1.5]]])
        os.utime(tmp_path / f"{key}.json", (age, age))
    size = (tmp_path / "a.json").stat().st_size
    monkeypatch.setattr(kept, "MOST_BYTES", 3 * size)
    assert shelf.find("a") is not None  # which makes it the newest
    shelf.put("e", ["float32", "cpu"], [[[0, 1.5]]])
    assert {path.stem for path in tmp_path.iterdir()} == {"a", "d", "e"}


def test_processes_that_write_at_once_do_not_harm_each_other(tmp_path, monkeypatch):
    shelf = Shelf(tmp_path, [])
    batches = {key: [[[place, key] for place in range(2000)]] for key in "ab"}
    shelf.put("a", ["float32", "cpu"], batches["a"])
    monkeypatch.setattr(kept, "MOST_BYTES", 1.5 * (tmp_path / "a.json").stat().st_size)

    def write():
        for _ in range(20):
            for key, of in batches.items():
                shelf.put(key, ["float32", "cpu"], of)
                found = shelf.find(key)  # another may have dropped it
                assert found is None or found.batches == of

    processes = [forked(write) for _ in range(4)]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert [path.suffix for path in tmp_path.iterdir()] == [".json"]  # and nothing half-written


def test_without_a_place_everything_is_measured(work, monkeypatch, capsys):
    reading = [Perplexity(texts=str(work.prose))]
    work.folder.parent.write_text("in the way")
    assert reused(work.run(measures=reading)) == set()
    assert f"what was measured is not kept in {work.folder} (" in capsys.readouterr().err
    for name in ("SORDINO_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(kept.Path, "home", _no_home)
    assert reused(work.run(measures=reading)) == set()


def _no_home():
    raise RuntimeError("no home")


def test_the_command_keeps_unless_told_not_to(work, call_in, tmp_path, monkeypatch):
    run = call_in(tmp_path)
    asked = ["evaluate", work.after, "--against", work.before, "--measure", "perplexity"]
    asked += ["--texts", work.prose, "--force", "-o", "found.json"]

    def notes(*more):
        status, _, err = run(*asked, *more)
        assert status == 0
        return err

    assert "from the cache" not in notes() + notes()  # the variable is set for all tests
    monkeypatch.delenv("SORDINO_NO_CACHE")
    assert "from the cache" not in notes("--no-cache")
    assert not work.folder.exists()
    assert "from the cache" not in notes()
    assert "taken from the cache (--no-cache measures again)" in notes()
    assert "from the cache" not in notes("--no-cache")
