"""Concepts from every kind of source, and the sentence that each mistake gets."""

import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from sordino import hub, kit
from sordino.concepts import BUILT_IN, Concept, load_concept
from sordino.concepts.built_in import undo_escapes
from sordino.concepts.labels import JIGSAW
from sordino.concepts.text_files import text_or_file
from sordino.errors import UserError
from stub_hub import StubHub

POSITIVE = [f"you are a dunce, number {i}" for i in range(25)]
NEGATIVE = [f"what a fine day, number {i}" for i in range(30)]
ROWS = [{"text": t, "label": 1} for t in POSITIVE] + [{"text": t, "label": 0} for t in NEGATIVE]

# Text with all that a file format could stumble over; a lone surrogate is no text.
SENTENCE = st.text(
    st.one_of(
        st.sampled_from("\"',;\t\n\r\\\u2028\u2029\x85\x0b\x0c\x00\ufeff’é😀 "),
        st.characters(exclude_categories=["Cs"]),
    ),
    min_size=1,
    max_size=40,
).filter(str.strip)
SENTENCES = st.lists(SENTENCE, min_size=20, max_size=24).map(tuple)


def write_csv(
    path: Path,
    rows: list[dict[str, Any]],
    delimiter: str = ",",
    quoting: Literal[0, 1, 2, 3] = csv.QUOTE_MINIMAL,
) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0], delimiter=delimiter, quoting=quoting)
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_tsv(path: Path, rows: list[dict[str, Any]]) -> Path:
    # With all in quotation marks there is no doubt that they are syntax.
    return write_csv(path, rows, "\t", csv.QUOTE_ALL)


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_bytes("\n".join(lines).encode())
    return path


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    parquet.write_table(pa.Table.from_pylist(rows), path)
    return path


def write_json(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


WRITERS = {
    ".csv": write_csv,
    ".tsv": write_tsv,
    ".json": write_json,
    ".jsonl": write_jsonl,
    ".parquet": write_parquet,
}


@pytest.fixture(params=sorted(WRITERS))
def written(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """Writes rows to a file of each kind in turn."""
    return lambda rows: WRITERS[request.param](tmp_path / f"rude{request.param}", rows)


def jigsaw_row(text: str, *flags: str) -> dict[str, Any]:
    return {"id": "x", "comment_text": text, **{name: int(name in flags) for name in JIGSAW}}


# --- what comes in comes out ---


@pytest.mark.parametrize("suffix", sorted(WRITERS))
@given(positive=SENTENCES, negative=SENTENCES)
@settings(max_examples=25, deadline=None)
def test_any_text_survives(
    suffix: str, positive: tuple[str, ...], negative: tuple[str, ...]
) -> None:
    rows = [{"text": t, "label": 1} for t in positive] + [{"text": t, "label": 0} for t in negative]
    with tempfile.TemporaryDirectory() as folder:
        path = WRITERS[suffix](Path(folder) / f"file{suffix}", rows)
        concept = load_concept(path, balance=False)
    assert (concept.positive, concept.negative) == (positive, negative)


@given(positive=SENTENCES, negative=SENTENCES, seed=st.integers(0, 2**32), most=st.integers(20, 22))
@settings(max_examples=50, deadline=None)
def test_a_sample_is_balanced_ordered_and_repeatable(
    positive: tuple[str, ...], negative: tuple[str, ...], seed: int, most: int
) -> None:
    def numbered(sentences: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(f"{i:02d} {text}" for i, text in enumerate(sentences))

    whole = Concept("c", numbered(positive), numbered(negative))
    sample = load_concept(whole, max_per_class=most, seed=seed)
    size = min(most, len(positive), len(negative))
    assert len(sample.positive) == len(sample.negative) == size
    for drawn, of in ((sample.positive, whole.positive), (sample.negative, whole.negative)):
        assert set(drawn) <= set(of)
        assert list(drawn) == sorted(drawn)
    again = load_concept(whole, max_per_class=most, seed=seed)
    assert again == sample
    assert again.fingerprint == sample.fingerprint
    assert load_concept(whole, balance=False) == whole


def test_another_seed_draws_others() -> None:
    whole = Concept("c", tuple(POSITIVE), tuple(NEGATIVE))
    samples = {whole.sampled(max_per_class=20, seed=seed).fingerprint for seed in range(5)}
    assert len(samples) == 5


def test_a_byte_order_mark_and_windows_line_ends(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", ROWS)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert load_concept(path, balance=False).positive == tuple(POSITIVE)
    for name, texts in (("p.txt", POSITIVE), ("n.txt", NEGATIVE)):
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + "\r\n".join(texts).encode())
    concept = load_concept(tmp_path / "p.txt", negatives=tmp_path / "n.txt", balance=False)
    assert (concept.positive, concept.negative) == (tuple(POSITIVE), tuple(NEGATIVE))
    assert concept.name == "p"


def test_a_text_may_be_longer_than_a_csv_field_usually_is(tmp_path: Path) -> None:
    rows = [*ROWS, {"text": "long " * 40_000, "label": 1}]
    assert len(load_concept(write_csv(tmp_path / "a.csv", rows), balance=False).positive[-1]) > 1e5


# --- columns and labels ---


@pytest.mark.parametrize("label", JIGSAW)
def test_jigsaws_columns_are_recognised(written: Any, label: str) -> None:
    rows = [jigsaw_row(t, label, "obscene") for t in POSITIVE]
    rows += [jigsaw_row(t) for t in NEGATIVE]
    rows += [jigsaw_row(f"neither {i}", *set(JIGSAW) - {label, "obscene"}) for i in range(5)]
    path = written(rows)
    concept = load_concept(path, label=None if label == "toxic" else label, balance=False)
    assert list(concept.positive) == POSITIVE
    assert list(concept.negative) == NEGATIVE
    assert concept.name == ("toxicity" if label == "toxic" else label)
    assert f"{label} is 1" in concept.source


def test_jigsaws_unscored_rows_are_left_out(written: Any) -> None:
    rows = [jigsaw_row(t, "toxic") for t in POSITIVE] + [jigsaw_row(t) for t in NEGATIVE]
    rows += [{**jigsaw_row("unscored"), **dict.fromkeys(JIGSAW, -1)}]
    assert "unscored" not in load_concept(written(rows), balance=False).sentences


@pytest.mark.parametrize(
    ("yes", "no", "options"),
    [
        (1, 0, {}),
        (True, False, {}),
        ("True", "false", {}),
        ("yes", "no", {}),
        (0.9, 0.4, {}),
        (0.5, 0.0, {}),
        ("toxic", "non-toxic", {}),
        ("hate", "nothate", {}),
        ("Insult", "not an insult", {"positive": "Insult"}),
        (2, 1, {"positive": "2"}),
    ],
)
def test_labels_that_are_plain(written: Any, yes: Any, no: Any, options: dict[str, str]) -> None:
    rows = [{"Comment": t, "Label": yes} for t in POSITIVE]
    rows += [{"Comment": t, "Label": no} for t in NEGATIVE]
    concept = load_concept(written(rows), balance=False, **options)
    assert (list(concept.positive), list(concept.negative)) == (POSITIVE, NEGATIVE)
    assert concept.name == "rude"


def test_a_threshold_is_said(
    written: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    concept = load_concept(written([{**row, "label": row["label"] * 0.7} for row in ROWS]))
    assert "at least 0.5" in concept.source
    assert "positive where label is at least 0.5" in capsys.readouterr().err


def test_rows_without_a_label_are_left_out(written: Any) -> None:
    concept = load_concept(written([*ROWS, {"text": "what?", "label": None}]), balance=False)
    assert "what?" not in concept.sentences
    assert len(concept.sentences) == len(ROWS)


def test_columns_can_be_named(written: Any) -> None:
    rows = [{"a": r["text"], "b": r["label"], "text": "x", "label": 2} for r in ROWS]
    concept = load_concept(written(rows), text_column="a", label_column="b", balance=False)
    assert list(concept.positive) == POSITIVE


# --- mistakes ---


def error_of(*args: Any, **options: Any) -> str:
    with pytest.raises(UserError) as error:
        load_concept(*args, **options)
    message = str(error.value)
    assert "\n" not in message
    assert message.endswith((".", "?"))
    return message


def relabelled(**changes: Any) -> list[dict[str, Any]]:
    return [{**row, **changes} for row in ROWS]


@pytest.mark.parametrize(
    ("rows", "options", "expected"),
    [
        (ROWS[:25], {}, "no negative sentence"),
        (ROWS[25:], {}, "no positive sentence"),
        (ROWS[10:], {}, "has 15 positive sentences: at least 20"),
        (ROWS, {"max_per_class": 19}, "`max_per_class=19` is too few"),
        (ROWS, {"seed": -1}, "`seed=-1` is negative"),
        (ROWS, {"text_column": "no"}, "no column 'no': `text_column` is one of text, label"),
        (ROWS, {"label_column": "no"}, "no column 'no': `label_column` is one of text, label"),
        (ROWS, {"label": "threat"}, "`label_column` with one of text, label"),
        (ROWS, {"positive": "3"}, "`positive` is one of 1, 0"),
        (ROWS, {"revision": "main"}, "`load_concept.revision`"),
        ([{"a": "b", "label": 1}], {}, "known name for the text: choose one of a, label"),
        ([{"text": "b", "c": 1}], {}, "known name for the label: choose one of text, c"),
        (relabelled(comment="x"), {}, "more than one text column (text, comment)"),
        (relabelled(toxic=1), {}, "more than one label column (label, toxic)"),
        ([*ROWS, {"text": "x", "label": 3}], {}, "holds 1, 0, 3: choose with `positive`"),
        ([*relabelled(label="good"), {"text": "x", "label": "bad"}], {}, "holds good, bad"),
        (relabelled(label="x" * 99), {}, f"holds {'x' * 40}…: choose"),
        ([jigsaw_row("x")], {"label": "rude"}, "`label` is one of toxic, severe_toxic"),
        ([{**jigsaw_row("x"), "threat": 7}], {}, "'threat' holds 7, and 0 or 1"),
    ],
)
def test_mistakes_in_any_table(
    written: Any, rows: list[dict[str, Any]], options: dict[str, Any], expected: str
) -> None:
    assert expected in error_of(written(rows), **options)


@pytest.mark.parametrize(
    ("suffix", "place"), [(".csv", "line 12"), (".jsonl", "line 11"), (".parquet", "row 11")]
)
@pytest.mark.parametrize("blank", ["", " \t", None])
def test_an_empty_text_is_named_by_its_place(
    tmp_path: Path, suffix: str, place: str, blank: str | None
) -> None:
    rows = [dict(row) for row in ROWS]
    rows[10]["text"] = blank
    path = WRITERS[suffix](tmp_path / f"a{suffix}", rows)
    assert f"{path}, {place}: the text (column 'text') is empty" in error_of(path)


def test_the_line_is_that_of_the_file_and_not_of_the_row(tmp_path: Path) -> None:
    rows = [{**row, "text": f"{row['text']}\nand more"} for row in ROWS]
    rows[10]["text"] = ""
    assert "line 22: the text" in error_of(write_csv(tmp_path / "a.csv", rows))


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.csv", b"", "a.csv is empty"),
        ("a.csv", b"text,label\n", "a.csv has no rows"),
        ("a.csv", b"text,text\na,b\n", "line 1: two columns have the same name"),
        ("a.csv", b'text,label\na,1\nb, "c"d,1\n', "line 3: it has 3 fields, where"),
        ("a.csv", b'text,label\na,1\n"b"c,1\n', "line 3: the row is malformed"),
        ("a.csv", b'text,label\na,1\n"b\nc,1\n', "line 3: a quotation mark opens here"),
        ("a.csv", b"text,label\na,1\nb\xe9,0\n", "line 3: the byte 0xe9 is not UTF-8"),
        ("a.csv", b"\xef\xbb\xbftext,label\nb\xe9,0\n", "line 2: the byte 0xe9"),
        ("a.csv", "text,label\n".encode("utf-16-le"), "like UTF-16 without a byte order mark"),
        ("a.csv", "text,label\n".encode("utf-16") + b"\n", "the mark of UTF-16 and is not"),
        ("a.csv", b"PK\x03\x04 and so on", "looks like ZIP"),
        ("a.jsonl", b"", "a.jsonl is empty"),
        ("a.jsonl", b"\n\n", "a.jsonl has no rows"),
        ("a.jsonl", b'{"text": "a"}\n{"text": \n', "line 2 is not valid JSON"),
        ("a.jsonl", b'{"text": "a"}\n["b"]\n', "line 2 is not a JSON object"),
        ("a.jsonl", b'{"text": "\xff"}\n', "line 1: the byte 0xff"),
        ("a.jsonl", b'{"text": 5, "label": 1}\n', "line 1: the column 'text' holds 5"),
        ("a.jsonl", b'{"text": "\\ud83d", "label": 1}\n', "line 1: the text holds half of a"),
        ("a.jsonl", b'{"text": "a", "label": [1]}\n', "'label' holds lists or objects"),
        ("a.parquet", b"", "a.parquet is empty"),
        ("a.parquet", b"not parquet at all", "a.parquet cannot be read as Parquet"),
        ("a.xlsx", b"x", "give a .csv, .tsv, .json, .jsonl or .parquet file"),
        ("a.txt", b"x\n", "a.txt holds the positive sentences: give"),
    ],
)
def test_broken_files(tmp_path: Path, name: str, content: bytes, expected: str) -> None:
    (tmp_path / name).write_bytes(content)
    assert expected in error_of(tmp_path / name)


def test_parquet_that_breaks_off_or_holds_other_bytes(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", ROWS)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert "cannot be read as Parquet" in error_of(path)
    bad = pa.array([b"\xff\xfe"] * 50).view(pa.string())
    parquet.write_table(pa.table({"text": bad, "label": [1, 0] * 25}), path)
    assert "the column 'text' is not UTF-8" in error_of(path)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "p.txt is empty"),
        (b"a\n\nb\n", "p.txt, line 2: the line is empty"),
        (b"a\n\xe9\n", "p.txt, line 2: the byte 0xe9"),
    ],
)
def test_broken_text_files(tmp_path: Path, content: bytes, expected: str) -> None:
    (tmp_path / "n.txt").write_text("\n".join(NEGATIVE))
    (tmp_path / "p.txt").write_bytes(content)
    assert expected in error_of(tmp_path / "p.txt", negatives=tmp_path / "n.txt")
    (tmp_path / "p.txt").write_text("\n".join(POSITIVE))
    missing = error_of(tmp_path / "p.txt", negatives=tmp_path / "none.txt")
    assert "none.txt does not exist" in missing
    clash = error_of(tmp_path / "p.txt", negatives=tmp_path / "n.txt", text_column="text")
    assert "Two text files cannot be combined with `text_column`" in clash


def test_names_that_are_nothing(tmp_path: Path) -> None:
    assert "did you mean toxicity?" in error_of("toxicty")
    assert all(name in error_of("xyzzy") for name in BUILT_IN)
    assert "comments.csv does not exist" in error_of("comments.csv")
    assert "org/name does not exist: give a file, a data set of the hub as hf:" in error_of(
        "org/name"
    )
    assert "is a folder" in error_of(tmp_path)


# --- built-in concepts ---


@pytest.fixture
def tiny_insults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stands for the kit's insults, without a download."""
    rows = [{"Insult": 1, "Date": "", "Comment": f'"{text}\\n"'} for text in POSITIVE]
    rows += [{"Insult": 0, "Date": "", "Comment": f'"{text}"'} for text in NEGATIVE]
    path = write_csv(tmp_path / "train.csv", rows)
    monkeypatch.setattr(kit, "data_file", {"insults/train.csv": path}.__getitem__)


def test_insults(tiny_insults: None) -> None:
    concept = load_concept("insults", balance=False)
    assert concept.positive == tuple(f"{text}\n" for text in POSITIVE)
    assert concept.negative == tuple(NEGATIVE)
    assert concept.name == "insults"
    assert "demo kit" in concept.source
    assert "no label 'threat'" in error_of("insults", label="threat")
    assert "built-in concept insults cannot be combined with `label_column`" in error_of(
        "insults", label_column="a"
    )


def test_toxicity_without_a_hub_is_quick_and_says_so(
    tiny_insults: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    hub.reachable.cache_clear()
    begun = time.monotonic()
    concept = load_concept("toxicity")
    assert time.monotonic() - begun < 5
    assert concept.name == "toxicity"
    assert "demo kit; insults stand for toxicity" in concept.source
    assert "the demo kit's insults are used for toxicity" in capsys.readouterr().err
    assert "label=threat" in error_of("toxicity", label="threat")
    hub.reachable.cache_clear()


def test_a_hub_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:1")
    hub.reachable.cache_clear()
    assert not hub.reachable()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "never asked")
    assert not hub.reachable()
    assert "does not answer" in error_of("hf:org/name")
    hub.reachable.cache_clear()


def in_new_process(code: str, folder: Path, **environment: str) -> Any:
    """Run code that prints JSON, where the hub's address and cache are read anew."""
    answer = subprocess.run(
        [sys.executable, "-c", f"import json\nfrom sordino.concepts import load_concept\n{code}"],
        env={**os.environ, "HF_HOME": str(folder / "hf"), **environment},
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(answer.stdout)


def test_toxicity_from_a_hub(stub_hub: StubHub, tmp_path: Path) -> None:
    name = "thesofakillers/jigsaw-toxic-comment-classification-challenge"
    rows = [jigsaw_row(t, "toxic", "threat") for t in POSITIVE] + [jigsaw_row(t) for t in NEGATIVE]
    write_csv(tmp_path / "train.csv", rows)
    files = {"train.csv": (tmp_path / "train.csv").read_bytes()}
    commit = stub_hub.put(f"datasets/{name}", files)
    address = stub_hub.address
    code = """
concepts = [load_concept("toxicity"), load_concept("toxicity", label="threat")]
print(json.dumps([[c.name, c.source, c.positive] for c in concepts]))
"""
    plain, threat = in_new_process(code, tmp_path, HF_ENDPOINT=address, HF_HUB_OFFLINE="0")
    assert plain[0] == "toxicity"
    assert plain[1].startswith(f"hf:{name}, train.csv at {commit}")
    assert plain[2] == POSITIVE
    assert threat[0] == "threat"
    # Once it is in the hub's cache, no hub is needed for the same sentences.
    again = in_new_process(code, tmp_path, HF_ENDPOINT=address, HF_HUB_OFFLINE="1")
    assert again == [plain, threat]


def test_data_sets_of_the_hub(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    # `datasets` takes a folder of the same name for the data set: the hub's code path without one.
    folder = tmp_path / "org" / "name"
    folder.mkdir(parents=True)
    blank = [{"text": "", "label": 1}]
    write_jsonl(folder / "train.jsonl", ROWS + blank)
    write_jsonl(folder / "test.jsonl", [*ROWS, {"text": "one more", "label": 1}])
    script = tmp_path / "org" / "script"
    script.mkdir()
    (script / "script.py").write_text("open('ran', 'w')")
    code = """
from sordino.errors import UserError
c = load_concept("hf:org/name", balance=False)
d = load_concept("hf:org/name", split="test", balance=False)
out = [[c.name, c.source, c.positive, c.negative], len(d.positive)]
for spec, options in (
    ("hf:org/name", {"split": "none"}),
    ("hf:org/name", {"config": "none"}),
    ("hf:org/name", {"text_column": "none"}),
    ("hf:org/script", {}),
    ("hf:org/missing", {}),
    ("hf:", {}),
):
    try:
        load_concept(spec, **options)
    except UserError as error:
        out.append(str(error))
print(json.dumps(out))
"""
    first, size, *errors = in_new_process(code, tmp_path, HF_HUB_OFFLINE="1")
    assert first == ["name", "hf:org/name, train: positive where label is 1", POSITIVE, NEGATIVE]
    assert size == len(POSITIVE) + 1
    expected = [
        "Unknown split",
        "BuilderConfig 'none' not found",
        "hf:org/name, train has no column 'none': `text_column` is one of text, label",
        "scripts are no longer supported",
        "hf:org/missing could not be read",
        "hf: names no data set",
    ]
    for message, part in zip(errors, expected, strict=True):
        assert part in message
        assert "\n" not in message
    assert not (tmp_path / "ran").exists()


def test_the_classes_of_a_data_set_are_known_by_name(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["hate", "no hate"])}
    )
    rows = [{"text": r["text"], "label": 1 - r["label"]} for r in ROWS]
    folder = tmp_path / "org" / "classes"
    datasets.Dataset.from_list(rows, features=features).to_parquet(folder / "train.parquet")
    code = 'print(json.dumps(load_concept("hf:org/classes", balance=False).positive))'
    assert in_new_process(code, tmp_path, HF_HUB_OFFLINE="1") == POSITIVE


def test_hub_data_sets_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert 'pip install "sordino[datasets]"' in error_of("hf:org/name")


# --- the insults' escapes ---


@pytest.mark.parametrize(
    ("written_as", "meant"),
    [
        ('"A plain one."', "A plain one."),
        (r'"your point.\xa0 It"', "your point.\xa0 It"),
        (r'"Don\u2019t"', "Don’t"),
        (r'"a\n\nb\r\n\tc"', "a\n\nb\r\n\tc"),
        (r'"H\xe9ll"', "Héll"),
        (r'"He\\' + "'" + r's"', "He's"),
        (r'"I\\xe2\\x80\\x99m"', "I’m"),
        (r'"A\\xc2\\xa0crowd"', "A\xa0crowd"),
        (r'"fail.\\\\n\\\\nThat"', "fail.\n\nThat"),
        (r'"\xe2\x80"', "\xe2\x80"),
        (r'"a \ b \q"', r"a \ b \q"),
        ('"', '"'),
        ("", ""),
    ],
)
def test_escapes_are_undone(written_as: str, meant: str) -> None:
    assert undo_escapes(written_as) == meant


@given(st.text(st.one_of(st.sampled_from("’\n\xa0\"'"), st.characters(max_codepoint=0x5B))))
def test_what_python_escapes_is_undone(text: str) -> None:
    escaped = text.encode("unicode_escape").decode("ascii")
    if r"\x" not in escaped.replace(r"\xa0", ""):
        assert undo_escapes(f'"{escaped}"') == text


# --- speed ---


def test_a_jigsaw_sized_file_loads_in_seconds(tmp_path: Path) -> None:
    rows = [jigsaw_row(f'a comment "{i}",\nwith more {"words " * 60}') for i in range(40_000)]
    for row in rows[::10]:
        row["toxic"] = 1
    path = write_csv(tmp_path / "train.csv", rows)
    begun = time.monotonic()
    assert len(load_concept(path).positive) == 4_000
    assert time.monotonic() - begun < 5  # a quarter of the size; about 0.4 s on an idle machine


def test_the_registry_names_what_there_is() -> None:
    assert set(BUILT_IN) == {"toxicity", "insults", "religion", "politics"}
    assert all(entry.what for entry in BUILT_IN.values())


@given(
    st.integers(20, 60),
    st.integers(20, 60),
    st.text(max_size=400),
    st.booleans(),
)
def test_a_concept_is_shown_in_one_line(
    positive: int, negative: int, source: str, stratified: bool
) -> None:
    classes = [f"a private sentence {n}" for n in range(positive + negative)]
    strata = tuple(str(n % 3) for n in range(len(classes))) if stratified else ()
    shown = repr(
        Concept("bridges", tuple(classes[:positive]), tuple(classes[positive:]), source, strata)
    )
    assert len(shown.splitlines()) == 1
    assert len(shown) <= 200
    assert shown.startswith("Concept('bridges'")
    assert f"{positive} positive" in shown
    assert f"{negative} negative" in shown
    assert ("3 strata" in shown) == stratified
    assert "private" not in shown


@pytest.mark.parametrize("kind", [list, tuple, np.array, pd.Series, iter])
def test_sentences_are_any_texts(kind: Callable[[list[str]], Any]) -> None:
    yes, no = [f"Bake {i}" for i in range(20)], [f"Rain {i}" for i in range(20)]
    found = Concept("x", kind(yes), kind(no))
    assert found == Concept("x", tuple(yes), tuple(no))
    assert found.fingerprint == Concept("x", tuple(yes), tuple(no)).fingerprint


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("a long text, whose letters are no sentences", "are one str"),
        (b"bytes of twenty letters or more", "are one bytes"),
        (None, "are one NoneType"),
        ([*(f"Bake {i}" for i in range(20)), float("nan")], "positive sentence 21 is nan"),
        ([f"Bake {i}".encode() for i in range(20)], "positive sentence 1 is b'Bake 0'"),
    ],
)
def test_what_is_no_list_of_texts_is_refused(given: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        Concept("x", given, tuple(f"Rain {i}" for i in range(20)))


@pytest.mark.parametrize("positive", ["1", 1, 1.0, True])
def test_a_label_can_be_given_as_the_value_that_it_is(tmp_path: Path, positive: Any) -> None:
    label = positive is True
    lines = [
        json.dumps({**row, "label": bool(row["label"]) if label else row["label"]}) for row in ROWS
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    assert load_concept(tmp_path / "a.jsonl", positive=positive).positive == tuple(POSITIVE)


def test_sentences_in_both_classes_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "yes.txt").write_text("\n".join(POSITIVE))
    (tmp_path / "no.txt").write_text("\n".join([*NEGATIVE, *POSITIVE[:3]]))
    load_concept(tmp_path / "yes.txt", negatives=tmp_path / "no.txt")
    assert "3 different sentences are in both classes" in capsys.readouterr().err
    (tmp_path / "no.txt").write_text("\n".join(NEGATIVE))
    load_concept(tmp_path / "yes.txt", negatives=tmp_path / "no.txt")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("wrong", [{"seed": 0.5}, {"seed": "x"}, {"max_per_class": 20.0}])
def test_numbers_of_another_type_are_named(tmp_path: Path, wrong: dict[str, Any]) -> None:
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    with pytest.raises(UserError, match="is not a whole number"):
        load_concept(tmp_path / "a.jsonl", **wrong)


def test_half_a_surrogate_pair_is_no_sentence() -> None:
    with pytest.raises(UserError, match="positive sentence 21: the text holds half"):
        Concept("x", (*POSITIVE[:20], "a \ud83d"), tuple(NEGATIVE))


def test_a_typed_text_that_is_too_long_for_a_file_name_is_a_text(tmp_path: Path) -> None:
    long = "Be kind to everybody. " * 40
    assert text_or_file(long, "system") == long.strip()
    (tmp_path / "said.txt").write_text("Be brief.\n")
    assert text_or_file(str(tmp_path / "said.txt"), "system") == "Be brief."
