"""Tables and lines as other programs write them: no row is lost, split or made up in silence."""

import codecs
import csv
import gzip
import io
import itertools
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from sordino.concepts import load_concept
from sordino.concepts.labels import JIGSAW
from sordino.concepts.readers import read_sentences, read_table
from sordino.concepts.separated import read_separated
from sordino.concepts.text_files import kind_of, read_lines, split_lines
from sordino.errors import UserError
from sordino.evaluation.measures.bold import read_bold
from sordino.evaluation.measures.honest import read_templates
from sordino.evaluation.scorers.lexicon import Lexicon
from sordino.evaluation.texts import Text, read_texts
from sordino.evaluation.writing import pre_prompt_text
from sordino.replaying.log import CHAT, PLAIN, read_log

# Text with all that a file format could stumble over; a lone surrogate is no text.
TEXT = st.text(
    st.one_of(
        st.sampled_from('"""\',;\t\n\r\\\u2028\u2029\x85\x0b\x0c\x1c\ufeff’é😀 01'),
        st.characters(exclude_categories=["Cs"]),
    ),
    max_size=30,
)
ROWS = st.lists(st.tuples(TEXT, st.sampled_from("01")), min_size=1, max_size=12)
LINE_ENDS = st.sampled_from(["\n", "\r\n", "\r"])


def written(rows: list[tuple[str, str]], separator: str, quoting: Any) -> str:
    stream = io.StringIO(newline="")
    csv.writer(stream, delimiter=separator, quoting=quoting).writerows([("text", "label"), *rows])
    return stream.getvalue()


def read(text: str, separator: str) -> list[tuple[str, str]]:
    table = read_separated(text, "here", separator)
    return list(zip(table.column("text"), table.column("label"), strict=True))


def read_or_refusal(text: str, separator: str) -> list[tuple[str, str]] | str:
    """What is read, or the sentence with which it is refused."""
    try:
        return read(text, separator)
    except UserError as error:
        return str(error)


def labelled(positive: int = 24, negative: int = 24) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [{"text": f"Bake {i}", "label": "1"} for i in range(positive)]
    return rows + [{"text": f"Rain {i}", "label": "0"} for i in range(negative)]


# --- separated values ---


@given(ROWS, st.sampled_from(",\t"))
def test_what_is_all_in_quotation_marks_is_read_as_it_was_written(
    rows: list[tuple[str, str]], separator: str
) -> None:
    found = read_or_refusal(written(rows, separator, csv.QUOTE_ALL), separator)
    if isinstance(found, str):
        assert separator == ","
        assert any("," in text and len(split_lines(text + "\n")) > 1 for text, _ in rows)
    else:
        assert found == rows


@given(ROWS, st.sampled_from(",\t"))
@example([("a,1\nb", "1"), ("c", "1")], ",")
@example([("a\tb\nc", "1")], "\t")
def test_what_has_the_marks_that_it_needs_is_read_so_or_refused(
    rows: list[tuple[str, str]], separator: str
) -> None:
    doubtful = any(separator in text and len(split_lines(text + "\n")) > 1 for text, _ in rows)
    found = read_or_refusal(written(rows, separator, csv.QUOTE_MINIMAL), separator)
    if isinstance(found, str):
        assert doubtful
        assert "look like rows" in found
    else:
        assert found == rows


@given(ROWS, LINE_ENDS)
@example([('"Oh it rains', "0"), ("fine", "0"), ('they said"', "0")], "\n")
@example([('"To be" or not', "0"), ('"all of it"', "1")], "\n")
@example([('"a, b"', "0"), ("c, d", "1")], "\r")
def test_quotation_marks_in_a_plain_tsv_swallow_nothing(
    rows: list[tuple[str, str]], end: str
) -> None:
    rows = [(" ".join(text.replace("\t", " ").split("\n")), label) for text, label in rows]
    rows = [(text.replace("\r", " "), label) for text, label in rows]
    content = end.join(["text\tlabel", *map("\t".join, rows)])
    found = read_or_refusal(content, "\t")
    if isinstance(found, str):
        assert "line" in found
        assert any(text.startswith('"') for text, _ in rows)
        return
    assert [label for _, label in found] == [label for _, label in rows]
    for (text, _), (was, _) in zip(found, rows, strict=True):
        # The marks around a text that has them as a writer would have put them are its own.
        assert text == was or f'"{text.replace(chr(34), chr(34) * 2)}"' == was


@given(st.integers(0, 46), st.integers(0, 46), st.sampled_from([(".csv", ","), (".tsv", "\t")]))
@settings(max_examples=40)
@example(0, 23, (".csv", ","))
@example(0, 24, (".csv", ","))
@example(23, 46, (".csv", ","))
def test_two_lone_marks_lose_no_row(first: int, last: int, kind: tuple[str, str]) -> None:
    first, last = sorted((first, last))
    lines = [f"{row['text']}{kind[1]}{row['label']}" for row in labelled()]
    lines[first] = '"' + lines[first]
    end = lines[last].rindex(kind[1])
    lines[last] = lines[last][:end] + '"' + lines[last][end:]
    content = "\n".join([f"text{kind[1]}label", *lines])
    found = read_or_refusal(content, kind[1])
    if isinstance(found, str):
        assert f"line {first + 2}:" in found
    else:
        assert len(found) == len(lines)


@pytest.mark.parametrize("separator", [",", "\t"])
def test_a_mark_that_is_never_closed_is_named_or_text(separator: str) -> None:
    lines = ["text,label", "a,1", '"b,1', "c,0"]
    content = "\n".join(lines).replace(",", separator)
    if separator == ",":
        with pytest.raises(UserError, match="line 3: a quotation mark opens here"):
            read(content, separator)
    else:
        assert read(content, separator) == [("a", "1"), ('"b', "1"), ("c", "0")]


@pytest.mark.parametrize("content", ['"a"\t"b"\n"x \\"y\\" z"\t1\n', '"text"\tlabel\n"a\t1\n'])
def test_a_tsv_that_begins_in_marks_must_go_on_so(content: str) -> None:
    with pytest.raises(UserError, match="line 2"):
        read_separated(content, "here", "\t")


@pytest.mark.parametrize(
    ("header", "row"),
    [
        ("v1,v2,,,", "1,Bake,,,"),
        ("v1,v2", "1,Bake,,,"),
        ("v1,v2,,,", "1,Bake"),
        (",v1,v2", "7,1,Bake"),
        ("\ufeffv1 , v2", "1,Bake"),
        ("\n\nv1,v2", "1,Bake"),
        ("v1,v2", "1,Bake\n,\n,,,"),
    ],
)
def test_what_spreadsheets_add_is_no_column(header: str, row: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(f"{header}\n{row}\n", encoding="utf-8")
    table = read_table(tmp_path / "a.csv")
    assert table.names == ("v1", "v2")
    assert (table.column("v1")[0], table.column("v2")[0]) == ("1", "Bake")


def test_values_without_a_column_are_said(capsys: pytest.CaptureFixture[str]) -> None:
    read_separated("v1,v2,,\na,1,more,\nb,1,,\n", "here", ",")
    assert "1 row has values in columns without a name" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("text,text,\na,b,\n", "line 1: two columns have the same name, text"),
        (",,\na,b,\n", "line 1: the first line names no column"),
        ("text,label\na\n", "line 2: it has 1 field"),
        ("text,label,\na,1,,x\n", "line 2: it has 4 fields"),
    ],
)
def test_rows_that_do_not_fit_are_named(content: str, problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        read_separated(content, "here", ",")


@given(ROWS, st.sampled_from(",;\t|"), st.sampled_from(",\t"))
def test_another_separator_is_recognised_by_the_first_line(
    rows: list[tuple[str, str]], separator: str, expected: str
) -> None:
    found = read_or_refusal(written(rows, separator, csv.QUOTE_ALL), expected)
    if isinstance(found, str):
        assert "look like rows" in found
        assert any(separator in text and len(split_lines(text + "\n")) > 1 for text, _ in rows)
    else:
        assert found == rows


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("text;label\na, b;1\n", "is separated by semicolons"),
        ('sep=;\ntext;label\n"a, b";1\n', "is separated by semicolons"),
        ('"sep=,"\ntext,label\n"a, b",1\n', ""),
        ("text|label\na, b|1\n", "is separated by vertical bars"),
        ("text\tlabel\na, b\t1\n", "is separated by tabs"),
        ('text\tlabel\n"a, b"\t1\n', "is separated by tabs"),
        ('text,label\n"a, b",1\n', ""),
    ],
)
def test_another_separator_is_said(
    content: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    table = read_separated(content, "here", ",")
    assert (*table.column("text"), *table.column("label")) == ("a, b", "1")
    note = capsys.readouterr().err
    assert said in note
    assert bool(note) == bool(said)


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_a_key_that_occurs_twice_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text('{"text": "a", "text": "b", "label": 1}\n', encoding="utf-8")
    with pytest.raises(UserError, match="the key text occurs twice"):
        read_table(tmp_path / name)


# --- bytes, encodings and lines ---


@given(
    st.lists(TEXT.map(lambda text: " ".join(split_lines(text.strip("\ufeff") + "\n"))), min_size=1),
    LINE_ENDS,
    st.booleans(),
)
@settings(max_examples=60)
def test_lines_end_where_an_editor_ends_them_and_nowhere_else(
    lines: list[str], end: str, last: bool
) -> None:
    lines = [line.replace("\0", "") + "." for line in lines]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.txt"
        path.write_bytes((end.join(lines) + end * last).encode())
        assert read_lines(path) == [line.lstrip("\ufeff") for line in lines[:1]] + lines[1:]


ENCODINGS = {
    "utf-8": "utf-8",
    "utf-8-sig": "utf-8-sig",
    "utf-16": "utf-16",
    "utf-16-be with a mark": "utf-16-be",
    "utf-32": "utf-32",
}


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_encodings_and_line_ends_change_nothing(encoding: str, end: str, tmp_path: Path) -> None:
    codec = ENCODINGS[encoding]
    mark = codecs.BOM_UTF16_BE if codec == "utf-16-be" else b""
    separated = [f"{row['text']} é😀\u2028,{row['label']}" for row in labelled()]
    files = {
        "a.csv": ["text,label", *separated],
        "a.tsv": ["text\tlabel", *(line.replace(",", "\t") for line in separated)],
        "a.jsonl": [
            json.dumps(row | {"text": row["text"] + " é😀\u2028"}, ensure_ascii=False)
            for row in labelled()
        ],
    }
    for name, lines in files.items():
        (tmp_path / name).write_bytes(mark + end.join(lines).encode(codec))
        concept = load_concept(tmp_path / name, balance=False)
        assert concept.positive == tuple(f"Bake {i} é😀\u2028" for i in range(24))
        assert concept.negative == tuple(f"Rain {i} é😀\u2028" for i in range(24))
    prompts = tmp_path / "p.txt"
    prompts.write_bytes(mark + end.join(f"é {i}" for i in range(3)).encode(codec))
    assert read_texts(str(prompts)) == [Text("é 0"), Text("é 1"), Text("é 2")]


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.txt", "a"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_the_line_of_a_byte_that_is_not_utf_8_is_named(
    name: str, end: bytes, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(b"text,label" + end + b"a,1" + end + b"caf\xe9,1" + end)
    with pytest.raises(UserError, match="line 3: the byte 0xe9 is not UTF-8"):
        read_texts(str(tmp_path / name))


# --- the kind of a file ---


TEXTS = [Text(f"The prompt {i} is", 0.9 - i / 10) for i in range(4)]
PLAIN_ROWS = [{"text": text.text, "toxicity": text.toxicity} for text in TEXTS]
NESTED_ROWS = [
    {"prompt": row, "continuation": {"text": "so", "toxicity": None}} for row in PLAIN_ROWS
]
FLAT_ROWS = [{"prompt.text": row["text"], "prompt.toxicity": row["toxicity"]} for row in PLAIN_ROWS]


def as_separated(separator: str) -> Callable[[list[dict[str, Any]]], bytes]:
    def give(rows: list[dict[str, Any]]) -> bytes:
        stream = io.StringIO(newline="")
        writer = csv.DictWriter(stream, rows[0], delimiter=separator)
        writer.writeheader()
        writer.writerows(rows)
        return stream.getvalue().encode()

    return give


def as_lines(rows: list[dict[str, Any]]) -> bytes:
    return "\n".join(map(json.dumps, rows)).encode()


def as_list(rows: list[dict[str, Any]]) -> bytes:
    return json.dumps(rows, indent=1).encode()


def as_columns(rows: list[dict[str, Any]]) -> bytes:
    return json.dumps({name: [row[name] for row in rows] for name in rows[0]}).encode()


def as_pandas(rows: list[dict[str, Any]]) -> bytes:
    columns = {name: {str(n): row[name] for n, row in enumerate(rows)} for name in rows[0]}
    return json.dumps(columns).encode()


def as_parquet(rows: list[dict[str, Any]]) -> bytes:
    stream = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(rows), stream)
    return stream.getvalue()


KINDS = [
    (".csv", as_separated(",")),
    (".tsv", as_separated("\t")),
    (".jsonl", as_lines),
    (".ndjson", as_lines),
    (".json", as_lines),
    (".json", as_list),
    (".json", as_columns),
    (".json", as_pandas),
    (".parquet", as_parquet),
]


@pytest.mark.parametrize("spelling", [str.lower, str.upper, str.title])
@pytest.mark.parametrize(("suffix", "give"), KINDS)
@pytest.mark.parametrize("rows", [PLAIN_ROWS, NESTED_ROWS, FLAT_ROWS], ids=["plain", "rtp", "flat"])
def test_prompts_are_the_same_in_every_kind_of_table(
    suffix: str,
    give: Callable[[list[dict[str, Any]]], bytes],
    spelling: Callable[[str], str],
    rows: list[dict[str, Any]],
    tmp_path: Path,
) -> None:
    if rows is NESTED_ROWS and suffix in (".csv", ".tsv"):
        pytest.skip("there are no objects in separated values")
    path = tmp_path / f"p{spelling(suffix)}"
    path.write_bytes(give(rows))
    if give is as_pandas and rows is NESTED_ROWS:
        assert [text.text for text in read_texts(str(path))] == [text.text for text in TEXTS]
    else:
        assert read_texts(str(path)) == TEXTS
    if suffix != ".parquet":
        packed = tmp_path / f"p{spelling(suffix)}.GZ"
        packed.write_bytes(gzip.compress(path.read_bytes()))
        assert read_texts(str(packed)) == read_texts(str(path))
        assert kind_of(packed) == suffix


@pytest.mark.parametrize(("suffix", "give"), [one for one in KINDS if one[0] != ".parquet"])
def test_what_is_compressed_is_read_by_what_it_is_and_not_by_its_name(
    suffix: str, give: Callable[[list[dict[str, Any]]], bytes], tmp_path: Path
) -> None:
    (tmp_path / f"p{suffix}").write_bytes(give(PLAIN_ROWS))
    (tmp_path / f"packed{suffix}").write_bytes(gzip.compress(give(PLAIN_ROWS)))
    assert read_texts(str(tmp_path / f"packed{suffix}")) == read_texts(str(tmp_path / f"p{suffix}"))


@pytest.mark.parametrize(("suffix", "give"), KINDS)
def test_concepts_are_the_same_in_every_kind_of_table(
    suffix: str, give: Callable[[list[dict[str, Any]]], bytes], tmp_path: Path
) -> None:
    path = tmp_path / f"rude{suffix.upper()}"
    path.write_bytes(give(labelled()))
    concept = load_concept(path, balance=False)
    assert concept.positive == tuple(f"Bake {i}" for i in range(24))
    assert concept.negative == tuple(f"Rain {i}" for i in range(24))
    # As one of two files of sentences, a table is read as one, too.
    (tmp_path / "n.txt").write_text("\n".join(f"Snow {i}" for i in range(24)))
    pair = load_concept(path, negatives=tmp_path / "n.txt", balance=False)
    assert pair.positive == concept.sentences


@pytest.mark.parametrize(
    ("give", "like"),
    [
        (as_separated(","), "CSV"),
        (as_separated("\t"), "TSV"),
        (as_lines, "JSON Lines"),
        (as_list, "JSON"),
        (as_columns, "JSON"),
        (as_parquet, "Parquet"),
        (lambda rows: gzip.compress(as_lines(rows)), "JSON Lines"),
        (lambda _: b"PK\x03\x04" + bytes(30), "ZIP"),
    ],
)
@pytest.mark.parametrize("name", ["prompts", "prompts.data", "p.20260301"])
def test_a_table_without_its_suffix_is_told(
    give: Callable[[list[dict[str, Any]]], bytes], like: str, name: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(give(PLAIN_ROWS))
    with pytest.raises(UserError, match=f"looks like {like}"):
        read_texts(str(tmp_path / name))


def test_json_in_a_text_file_is_text_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "p.txt").write_bytes(as_lines(PLAIN_ROWS))
    assert len(read_texts(str(tmp_path / "p.txt"))) == len(PLAIN_ROWS)
    assert "looks like JSON Lines" in capsys.readouterr().err


@pytest.mark.parametrize(
    "line", ["[INST] Write a poem", "{name}, you are", "Text, label me", "[1]"]
)
def test_prose_is_no_table(line: str, tmp_path: Path) -> None:
    (tmp_path / "p").write_text(f"{line}\nand on\n")
    assert read_texts(str(tmp_path / "p")) == [Text(line), Text("and on")]


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        (
            "p.csv",
            "title,n\na,1\n",
            "no column that is known to hold texts: rename one of title, n",
        ),
        ("p.json", "7", "neither a JSON list"),
        ("p.json", "[1]", r"item 1 is not a JSON object .*but a number: write each as one\."),
        ("p.json", '["a b"]', r"item 1 is .* but a text: .* into a \.txt file, one a line\."),
        ("p.jsonl", '["a b"]\n', "line 1 is .* but a list: write each as one"),
        ("p.json", '{"data": [{"text": "a"}]}', "rows under 'data': leave only that list in it"),
        ("p.json", '{"version": 1, "rows": [{"x": 1}, {}]}', "holds its rows under 'rows'"),
        ("p.json", '{"a": ["b"], "c": [{"d": 1}]}', "no column that is known to hold texts"),
        ("p.json", '{"text": ["a"], "n": []}', "do not have the same rows"),
        ("p.json", '{"text": {"0": "a"}, "n": {"1": 2}}', "do not have the same rows"),
        ("p.jsonl", '{"text": "a"}\n{"text": "x", "id": ' + "9" * 5000 + "}", "line 2"),
        ("p.json", '[{"text": ' + "9" * 5000 + "}]", "not valid JSON"),
        ("p.jsonl", "[" * 100_000, "line 1 is not valid JSON"),
        ("p.json", '{"a":' * 100_000, "not valid JSON"),
        ("p.jsonl", '{"text": "whole"}\n{"text": "half \\ud83d"}', "line 2: the text holds half"),
        ("p.json", '[{"prompt": {"text": "\\udc00", "toxicity": 1}}]', "item 1: the text holds"),
        ("p.csv", "prompt\n\"{'text': 'a', 'toxicity': 1}\"\n", "line 2 has an object"),
        ("p.csv", "text,toxicity\na,2\n", "line 2 has the toxicity 2"),
        ("p.txt", "abc\0b\n", "line 1: it holds a NUL"),
        ("p.parquet.gz", "x", "Parquet inside gzip"),
        ("p.jsonl.gz", "x", r"ends in \.gz, and it is not compressed by gzip: rename it"),
    ],
)
def test_what_is_wrong_with_prompts_is_one_sentence(
    name: str, content: str, problem: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=problem) as error:
        read_texts(str(tmp_path / name))
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 600


@pytest.mark.parametrize(("suffix", "give"), [KINDS[0], KINDS[2], KINDS[-1]])
def test_scores_that_are_missing_are_missing(
    suffix: str, give: Callable[[list[dict[str, Any]]], bytes], tmp_path: Path
) -> None:
    rows = [*PLAIN_ROWS, {"text": "unscored", "toxicity": None}]
    rows += [{"text": "not a number", "toxicity": float("nan")}]
    (tmp_path / f"p{suffix}").write_bytes(give(rows))
    expected = [*TEXTS, Text("unscored"), Text("not a number")]
    assert read_texts(str(tmp_path / f"p{suffix}")) == expected


# --- labels that are none ---


NONE = [
    "NA",
    "N/A",
    "n/a",
    "#N/A",
    "<NA>",
    "NaN",
    "nan",
    "null",
    "NULL",
    "None",
    "",
    " ",
    "-",
    "\\N",
]


@pytest.mark.parametrize("word", NONE)
@pytest.mark.parametrize(("suffix", "give"), [KINDS[0], KINDS[1], KINDS[2], KINDS[-1]])
@pytest.mark.parametrize("positive", ["1", None])
def test_a_word_for_no_label_is_no_label(
    word: str,
    suffix: str,
    give: Callable[[list[dict[str, Any]]], bytes],
    positive: str | None,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = labelled() + [{"text": f"Nobody judged {i}", "label": word} for i in range(5)]
    (tmp_path / f"c{suffix}").write_bytes(give(rows))
    concept = load_concept(tmp_path / f"c{suffix}", positive=positive, balance=False)
    assert len(concept.positive) == len(concept.negative) == 24
    assert not any("Nobody" in sentence for sentence in concept.sentences)
    shown = word.strip() or "empty"
    said = capsys.readouterr().err
    assert f"24 positive (1: 24); 24 negative (0: 24); 5 left out ({shown}: 5)" in said


@pytest.mark.parametrize("value", [None, float("nan")])
@pytest.mark.parametrize("give", [as_lines, as_parquet])
def test_a_value_for_no_label_is_none_either(
    value: float | None, give: Callable[[list[dict[str, Any]]], bytes], tmp_path: Path
) -> None:
    rows = [row | {"label": float(row["label"])} for row in labelled()]
    rows += [{"text": "Nobody judged this", "label": value}]
    path = tmp_path / ("c.jsonl" if give is as_lines else "c.parquet")
    path.write_bytes(give(rows))
    concept = load_concept(path, positive="1", balance=False)
    assert len(concept.negative) == 24
    # What the user names is a word, and not a value.
    with pytest.raises(UserError, match="no row whose 'label' is None"):
        load_concept(path, positive="None")


def test_who_names_such_a_label_means_it(tmp_path: Path) -> None:
    rows = [row | {"label": "NA" if row["label"] == "1" else "EU"} for row in labelled()]
    path = tmp_path / "c.csv"
    path.write_bytes(as_separated(",")(rows))
    assert len(load_concept(path, positive="NA").positive) == 24
    with pytest.raises(UserError, match=r"no negative sentence: NA in the column 'label'"):
        load_concept(path, positive="EU")


def test_missing_labels_are_named_in_the_order_of_the_file(tmp_path: Path) -> None:
    words = itertools.cycle(["null", "NA", "-", "nan"])
    rows = [row | {"label": "1" if row["label"] == "1" else next(words)} for row in labelled()]
    path = tmp_path / "c.csv"
    path.write_bytes(as_separated(",")(rows))
    with pytest.raises(UserError, match="no negative sentence: null, NA, -, nan in the column"):
        load_concept(path, positive="1")


def test_none_as_the_name_of_a_class_is_one(tmp_path: Path) -> None:
    rows = [row | {"label": "sexism" if row["label"] == "1" else "none"} for row in labelled()]
    path = tmp_path / "c.csv"
    path.write_bytes(as_separated(",")(rows))
    assert len(load_concept(path, positive="sexism").negative) == 24


def test_many_labels_are_summarised_and_long_ones_shortened(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = labelled(24, 0) + [
        {"text": "x", "label": f"kind\x1b {i} " + "y" * 99} for i in range(30)
    ]
    (tmp_path / "c.jsonl").write_bytes(as_lines(rows))
    load_concept(tmp_path / "c.jsonl", positive="1")
    said = capsys.readouterr().err
    assert "30 negative" in said
    assert "and 25 more labels" in said
    assert "\x1b" not in said
    assert len(said) < 500


@pytest.mark.parametrize("word", ["NA", "", "null", "-1"])
def test_jigsaws_flags_may_be_missing(word: str, tmp_path: Path) -> None:
    rows = [
        {"comment_text": row["text"], **dict.fromkeys(JIGSAW, "0"), "toxic": row["label"]}
        for row in labelled()
    ]
    rows += [{"comment_text": "Nobody judged", **dict.fromkeys(JIGSAW, "0"), "threat": word}]
    (tmp_path / "c.csv").write_bytes(as_separated(",")(rows))
    concept = load_concept(tmp_path / "c.csv", balance=False)
    assert (len(concept.positive), len(concept.negative)) == (24, 24)


def test_rows_without_a_stratum_are_left_out_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [row | {"source": "NA" if n in (0, 30) else "web"} for n, row in enumerate(labelled())]
    (tmp_path / "c.csv").write_bytes(as_separated(",")(rows))
    concept = load_concept(tmp_path / "c.csv", strata_column="source", balance=False)
    assert (len(concept.positive), len(concept.negative)) == (23, 23)
    assert concept.strata == ("web",) * 46
    assert "2 rows without a value in 'source'" in capsys.readouterr().err


# --- names of files ---


READERS: dict[str, Callable[[str], Any]] = {
    "concept": load_concept,
    "sentences": lambda name: load_concept(name, negatives=name),
    "texts": read_texts,
    "lexicon": Lexicon,
    "templates": read_templates,
    "bold": read_bold,
    "pre-prompt": pre_prompt_text,
    "log": lambda name: list(read_log(Path(name))),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    "name",
    ["nowhere.csv", "~nobody-at-all/x.csv", "x" * 300 + ".csv", "a\0b.csv", "half\udcff.csv", "."],
)
def test_a_name_that_is_no_file_is_one_sentence(
    reader: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        READERS[reader](name)
    assert "\n" not in str(error.value)
    str(error.value).encode()


@pytest.mark.parametrize("reader", READERS)
def test_a_pipe_that_nobody_writes_to_is_not_waited_for(reader: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(UserError, match=r"pipe\.csv`? is (a pipe|not a file)"):
        READERS[reader](str(tmp_path / "pipe.csv"))


def test_a_name_may_begin_with_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("~notes.csv").write_bytes(as_separated(",")(labelled()))
    Path("~notes.txt").write_text("a\nb\n")
    assert load_concept("~notes.csv").name == "~notes"
    assert read_texts("~notes.txt") == [Text("a"), Text("b")]
    assert read_sentences(Path("~notes.txt")) == ["a", "b"]


# --- logs ---


HALF = '{"prompt": "odd \\ud83d end"}'


@pytest.mark.parametrize(
    "line",
    [
        HALF.encode(),
        HALF.replace("\\ud83d", "\ud83d").encode("utf-8", "surrogatepass"),
        json.dumps({"body": HALF}).encode(),
        json.dumps({"request": json.dumps({"body": HALF})}).encode(),
    ],
)
def test_half_a_character_of_a_log_is_mended_and_counted(line: bytes, tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_bytes(line + b"\n" + b'{"prompt": "fine"}\n')
    first, second = read_log(tmp_path / "log.jsonl")
    assert first is not None
    assert second is not None
    first.text.encode()
    assert first.text.startswith('"odd ?')
    assert (first.mended, second.mended) == (True, False)


@pytest.mark.parametrize(
    "row",
    [
        '{"prompt": "a", "temperature": NaN}',
        '{"prompt": "a", "top_p": 1e999}',
        '{"prompt": "a", "logit_bias": {"1": -Infinity}}',
        '{"prompt": "a", "tools": ' + "[" * 500 + "]" * 500 + "}",
        '{"messages": [{"role": "user", "content": ' + '{"a":' * 300 + "1" + "}" * 300 + "}]}",
    ],
)
def test_what_no_server_could_be_sent_is_no_prompt(row: str, tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text(row + "\n")
    assert list(read_log(tmp_path / "log.jsonl")) == [None]


@pytest.mark.parametrize("content", ["9" * 5000, "[" * 100_000, "\xff", "[]"])
def test_a_line_of_a_log_that_is_no_request_is_named(content: str, tmp_path: Path) -> None:
    line = f'{{"prompt": "a", "n": {content}}}' if content[0] == "9" else content
    (tmp_path / "log.jsonl").write_text(f'{{"prompt": "a"}}\n{line}\n', encoding="latin-1")
    with pytest.raises(UserError, match="line 2") as error:
        list(read_log(tmp_path / "log.jsonl"))
    assert len(str(error.value)) < 500


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_logs_lines_may_end_in_any_way(end: str, tmp_path: Path) -> None:
    lines = [json.dumps({"prompt": f"a {i}\r\n"}) for i in range(3)]
    (tmp_path / "log.NDJSON").write_bytes((end.join(lines) + end).encode())
    prompts = [prompt for prompt in read_log(tmp_path / "log.NDJSON") if prompt]
    assert [prompt.line for prompt in prompts] == [1, 2, 3]
    assert [prompt.request["prompt"] for prompt in prompts] == [f"a {i}\r\n" for i in range(3)]


@pytest.mark.parametrize(
    ("name", "give"),
    [
        ("log.jsonl", as_lines),
        ("log.json", as_lines),
        ("log.json", as_list),
        ("log.log", as_lines),
        ("log.PARQUET", as_parquet),
    ],
)
def test_requests_are_read_from_every_kind_of_log(
    name: str, give: Callable[[list[dict[str, Any]]], bytes], tmp_path: Path
) -> None:
    asked = [{"role": "user", "content": "why?"}]
    rows = [{"messages": asked, "time": "2026-03-01T12:30:00Z", "temperature": 0.5}]
    (tmp_path / name).write_bytes(give(rows))
    (prompt,) = read_log(tmp_path / name)
    assert prompt is not None
    assert (prompt.path, prompt.request["messages"]) == (CHAT, asked)
    assert prompt.request["temperature"] == 0.5
    assert prompt.at is not None
    (tmp_path / name).write_bytes(give([{"prompt": "Once"}]))
    (prompt,) = read_log(tmp_path / name)
    assert prompt is not None
    assert prompt.path == PLAIN


def test_a_log_of_separated_values_is_refused(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("prompt\na\n")
    with pytest.raises(UserError, match=r"write the log as \.jsonl"):
        list(read_log(tmp_path / "log.csv"))
