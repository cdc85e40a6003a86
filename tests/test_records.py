"""Files that people pass on: whatever is in them, they give a value or one sentence."""

import json
import re
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from safetensors.numpy import save

from sordino.cli.app import main
from sordino.edits.formats import Written
from sordino.edits.provenance import provenance, read_provenance
from sordino.edits.record import DraftHeads, Quantisation
from sordino.errors import UserError
from sordino.evaluation import Evaluation
from sordino.evaluation.result import samples_path
from sordino.expertise.artefact import Expertise
from sordino.interventions import Dampening, aura
from sordino.interventions.dampening import compose
from sordino.models.reference import ModelRef
from sordino.models.safetensors_header import read_header
from sordino.outputs import RECORD
from sordino.records import check, kinds, parse
from sordino.reproduction.recipe import recipe_named
from sordino.studies.record import StudyRecord
from sordino.version import __version__

METADATA = {
    "architecture": "A",
    "concept": "calm",
    "concept_fingerprint": "c",
    "concept_source": "yes.txt",
    "model": "m",
    "n_negative": "20",
    "n_positive": "30",
    "pooling": "max",
    "max_tokens": "128",
    "weights_fingerprint": "w",
}
EXPERTISE = Expertise(
    {
        site: {
            "auroc": np.array([0.4, 0.7, np.nan], np.float32),
            "strongest_1": np.array([0, 49, -1], np.int32),
        }
        for site in ("a.up", "a.down")
    },
    METADATA,
)
ESTIMATE = {"value": 0.5, "low": None, "high": 1}
MODEL = {"name": "m", "revision": "", "fingerprint": "f", "dtype": "float32", "device": "cpu"}
EVALUATION = {
    "format": "sordino-evaluation-1",
    "sordino_version": "1",
    "created": "2026-01-01",
    "seed": 0,
    "before": MODEL,
    "after": MODEL,
    "measures": {
        "toxicity": {
            "version": 1,
            "protocol": {"prompts": "kit", "draws": [1, 2]},
            "figures": [
                {
                    "name": "continuations.all",
                    "label": "Toxic continuations",
                    "unit": "share",
                    "better": "lower",
                    "ratio_of": "before/after",
                    "n": {"prompts": 4},
                    "before": ESTIMATE,
                    "after": ESTIMATE,
                    "difference": ESTIMATE,
                    "ratio": ESTIMATE,
                    "detail": False,
                }
            ],
            "not_run": None,
        }
    },
}
SAMPLE = {"measure": "toxicity", "prompt": "p", "scores": [0.5, 1], "text": None}
STUDY = {
    "study": "methods",
    "model": "m",
    "concept": "calm",
    "neurons": 3,
    "dtype": "float32",
    "seed": 0,
    "command": "sordino study",
    "groups": [
        {
            "name": "g",
            "title": "G",
            "trials": [
                {
                    "name": "t",
                    "dial": 0.5,
                    "changed": 2,
                    "evaluation": EVALUATION,
                    "removals": [{"scorer": "s", "ratio": ESTIMATE, "beyond_twice": ESTIMATE}],
                }
            ],
            "missing": ["x"],
            "findings": [{"name": "f", "label": "F", "unit": "p", "estimate": ESTIMATE}],
            "curve": True,
        }
    ],
}
ORIGIN = {
    "intervention": {"name": "aura", "strength": 1.0, "settings": {"k": 3, "how": "x"}},
    "expertise": METADATA,
}
PROVENANCE = {
    "format": "sordino-provenance-1",
    "sordino_version": "1",
    "created": "2026-01-01",
    "model": {"name": "m", "kind": "folder", "revision": "", "weights_fingerprint": "f"},
    **ORIGIN,
    "parts": [ORIGIN, ORIGIN],
    "written_as": "weights",
    "neurons": 3,
    "changed": 2,
    "sites": {
        "a.up": {
            "neurons": 3,
            "changed": 2,
            "min": 0.5,
            "mean": 0.75,
            "shift": {"min": -1.0, "mean": 0.0, "max": 2.0},
        }
    },
    "left_out": ["x.bin"],
    "configuration": {"mlp_bias": True},
    "added": ["a.up.bias"],
    "quantised": {"scheme": "fp8", "layers": 3},
}
PROVENANCE["earlier"] = dict(PROVENANCE)
PROVENANCE["files"] = ["config.json"]

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**80), 2**80) | st.floats(width=64) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


def places(value, at=()):
    """All places in a JSON value."""
    yield at
    if isinstance(value, dict | list):
        for key, of in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(of, (*at, key))


def changed(value, at, to):
    """A JSON value with another value (or nothing, for ...) at one place."""
    if not at:
        return to
    found = dict(value) if isinstance(value, dict) else list(value)
    if len(at) == 1 and to is ...:
        del found[at[0]]
    else:
        found[at[0]] = changed(value[at[0]], at[1:], to) if at[1:] else to
    return found


@st.composite
def other(draw, value):
    """A JSON value in which something is something else, or lacks."""
    at = draw(st.sampled_from(list(places(value))[1:]))
    return changed(value, at, draw(st.just(...) | JSON))


def types_of(value):
    """The types of all that is in a JSON value, keys aside."""
    if isinstance(value, dict):
        return {key: types_of(of) for key, of in value.items()}
    return [types_of(of) for of in value] if isinstance(value, list | tuple) else type(value)


def dump(value):
    return json.dumps(value).encode()


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    return tmp_path_factory.mktemp("records")


def read_or_refused(read, file):
    """What reading gives; None where it is refused by a sentence that names the file."""
    try:
        return read()
    except UserError as error:
        said = str(error)
    assert str(file) in said
    assert "\n" not in said
    return None


@given(value=other(EVALUATION))
def test_any_evaluation_is_read_or_refused(here, value):
    file = here / "result.json"
    file.write_bytes(dump(value))
    found = read_or_refused(lambda: Evaluation.load(file), file)
    if found is not None:
        assert found.table() is not None
        found.save(here / "again.json", force=True)
        assert Evaluation.load(here / "again.json") == found


def test_a_figure_of_an_older_version_says_its_group_in_its_name(tmp_path):
    figures = [
        changed(EVALUATION["measures"]["toxicity"]["figures"][0], ("name",), name)
        for name in ("continuations.race.a_group", "continuations.all.insult", "gap.race", "all")
    ]
    file = tmp_path / "result.json"
    file.write_bytes(dump(changed(EVALUATION, ("measures", "toxicity", "figures"), figures)))
    read = Evaluation.load(file)
    assert [one.group for one in read.measures["toxicity"].figures] == [
        ("race", "a_group"),
        *(None, None, None),
    ]
    read.save(tmp_path / "again.json")
    assert Evaluation.load(tmp_path / "again.json") == read
    again = json.loads((tmp_path / "again.json").read_text())["measures"]["toxicity"]["figures"]
    assert [one.get("group", ...) for one in again] == [["race", "a_group"], ..., ..., ...]
    assert [one for one in again if "group" not in one] == figures[1:]


@given(row=other(SAMPLE) | JSON)
def test_any_samples_are_read_or_refused(here, row):
    file = here / "sampled.json"
    file.write_bytes(dump(EVALUATION))
    samples_path(file).write_bytes(dump(SAMPLE) + b"\n\n" + dump(row) + b"\n")
    found = read_or_refused(lambda: Evaluation.load(file), samples_path(file))
    if found is not None:
        assert sum(map(len, found.samples.values())) == 2
        assert all(isinstance(one, dict) for rows in found.samples.values() for one in rows)


@given(value=other(STUDY))
def test_any_study_is_read_or_refused(here, value):
    file = here / "study.json"
    file.write_bytes(dump(value))
    found = read_or_refused(lambda: StudyRecord.load(file, "methods"), file)
    if found is not None:
        assert types_of(found.model_dump()["groups"]) is not None
        assert found.study == "methods"


@given(value=other(PROVENANCE))
def test_any_provenance_is_read_or_refused_and_can_be_inspected(here, value):
    folder = here / "folder"
    folder.mkdir(exist_ok=True)
    (folder / RECORD).write_bytes(dump(value))
    found = read_or_refused(lambda: read_provenance(folder), folder / RECORD)
    if found is not None:
        assert dump(found.as_json()) == dump(value)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("builtins.print", lambda *_, **__: None)
        for more in ([], ["--json"]):
            if found is None:
                with pytest.raises(SystemExit) as ended:
                    main(["inspect", str(folder), *more])
                assert ended.value.code == 2
            else:
                main(["inspect", str(folder), *more])


def test_a_record_is_written_again_as_it_was_read(tmp_path):
    """With the keys of other versions, in the same order, and whole numbers as they are."""
    record = changed(PROVENANCE, ("intervention", "strength"), 2)
    for at in [
        *((), ("model",), ("intervention",), ("quantised",), ("earlier",), ("parts", 1)),
        *(("parts", 1, "intervention"), ("sites", "a.up"), ("sites", "a.up", "shift")),
    ]:
        record = changed(record, (*at, "later"), [1, {"x": None}])
    (tmp_path / RECORD).write_bytes(dump(record))
    found = read_provenance(tmp_path)
    assert dump(found.as_json()) == dump(record)
    assert dump(found.earlier.as_json()) == dump(record["earlier"])
    with pytest.raises(ValidationError):
        found.changed = 3


def test_a_record_has_the_bytes_that_it_always_had(monkeypatch):
    """The text was written by a commit at which the record was a dict."""
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    calm = Dampening(
        {"a.up": np.array([0.5, 1, 0.25], np.float32), "a.down": np.ones(2, np.float32)},
        "det_0",
        settings={"k": 3, "rows": None},
        expertise={"model": "m", "concept": "calm"},
    )
    loud = Dampening(
        {"a.up": np.array([1, 1, 0.5], np.float32)},
        "mean_shift",
        strength=2,
        expertise={"concept": "loud"},
        shifts={"a.up": np.array([0, -1, 2], np.float32)},
    )
    quantised = {"layers": 3, "rounded": 0, "scales_vanished": 0, "scales_coarse": 1}
    written = Written(
        left_out=("x.bin",),
        settings={"mlp_bias": True},
        added=("a.up.bias",),
        quantised=Quantisation(scheme="fp8", **quantised),
        rewritten=("config.json",),
        not_copied=("loop/",),
        linked=("model.safetensors",),
        draft_heads=DraftHeads(names=("mtp",), dampened=()),
    )
    ref = ModelRef("org/m", "folder", Path("/nowhere"), "abc")
    whole = provenance(ref, compose([calm, loud]), "f", written)
    half = provenance(ref, calm.scaled(0.5), "f", format="hooks")
    assert json.dumps(whole.as_json()) == _WHOLE.replace("VERSION", __version__)
    assert json.dumps(half.as_json()) == _HALF.replace("VERSION", __version__)


_HEAD = (
    '{"format": "sordino-provenance-1", "sordino_version": "VERSION", "created": "2023-11-14", '
    '"model": {"name": "org/m", "kind": "folder", "revision": "abc", "weights_fingerprint": "f"}, '
)
_WHOLE = _HEAD + (
    '"intervention": {"name": "det_0+mean_shift", "strength": 1.0, "settings": {}}, '
    '"expertise": {"concept": "calm+loud"}, "parts": [{"intervention": {"name": "det_0", '
    '"strength": 1.0, "settings": {"k": 3, "rows": null}}, "expertise": {"concept": "calm", '
    '"model": "m"}}, {"intervention": {"name": "mean_shift", "strength": 2, "settings": {}}, '
    '"expertise": {"concept": "loud"}}], "written_as": "weights", "neurons": 5, "changed": 3, '
    '"sites": {"a.up": {"neurons": 3, "changed": 3, "min": 0.125, "mean": 0.5416666666666666, '
    '"shift": {"min": -1.0, "mean": 0.3333333333333333, "max": 2.0}}, "a.down": {"neurons": 2, '
    '"changed": 0, "min": 1.0, "mean": 1.0}}, "left_out": ["x.bin"], "configuration": '
    '{"mlp_bias": true}, "added": ["a.up.bias"], "quantised": {"scheme": "fp8", "layers": 3, '
    '"rounded": 0, "scales_vanished": 0, "scales_coarse": 1}, "rewritten": ["config.json"], '
    '"not_copied": ["loop/"], "linked": ["model.safetensors"], "draft_heads": {"names": ["mtp"], '
    '"dampened": []}}'
)
_HALF = _HEAD + (
    '"intervention": {"name": "det_0", "strength": 0.5, "settings": {"k": 3, "rows": null}}, '
    '"expertise": {"concept": "calm", "model": "m"}, "written_as": "hooks", "neurons": 5, '
    '"changed": 2, "sites": {"a.up": {"neurons": 3, "changed": 2, "min": 0.625, "mean": '
    '0.7916666666666666}, "a.down": {"neurons": 2, "changed": 0, "min": 1.0, "mean": 1.0}}, '
    '"left_out": []}'
)


def with_header(blob, change):
    """A safetensors file with another header."""
    end = 8 + struct.unpack("<Q", blob[:8])[0]
    text = dump(change(json.loads(blob[8:end])))
    return struct.pack("<Q", len(text)) + text + blob[end:]


@pytest.fixture(scope="module")
def expertise_file(here):
    return EXPERTISE.save(here / "good.expertise.safetensors").read_bytes()


@pytest.fixture(scope="module")
def dampening_file(here):
    return aura(EXPERTISE).save(here / "good.dampening.safetensors").read_bytes()


@given(data=st.data())
@settings(max_examples=200)
def test_any_header_of_an_expertise_is_read_or_refused(here, expertise_file, data):
    file = here / "x.expertise.safetensors"
    file.write_bytes(with_header(expertise_file, lambda header: data.draw(other(header))))
    found = read_or_refused(lambda: Expertise.load(file), file)
    if found is not None:
        assert all(isinstance(value, str) for value in found.metadata.values())
        assert set(found.sites) == set(EXPERTISE.sites)
        assert aura(found).neurons == 6
        int(found.metadata["n_positive"]), int(found.metadata["n_negative"])


@given(key=st.sampled_from(sorted({*METADATA, "format", "sites"})), text=st.text() | JSON.map(dump))
def test_any_metadata_of_an_expertise_are_read_or_refused(here, expertise_file, key, text):
    file = here / "y.expertise.safetensors"
    said = text.decode() if isinstance(text, bytes) else text

    def change(header):
        return header | {"__metadata__": header["__metadata__"] | {key: said}}

    file.write_bytes(with_header(expertise_file, change))
    found = read_or_refused(lambda: Expertise.load(file), file)
    if found is not None:
        assert aura(found).neurons == 6


@given(data=st.data())
@settings(max_examples=200)
def test_any_record_of_a_dampening_is_read_or_refused(here, dampening_file, data):
    file = here / "x.dampening.safetensors"

    def change(header):
        about = data.draw(
            other(json.loads(header["__metadata__"]["sordino"]) | {"parts": [ORIGIN]})
        )
        return header | {"__metadata__": {"sordino": json.dumps(about)}}

    file.write_bytes(with_header(dampening_file, change))
    found = read_or_refused(lambda: Dampening.load(file), file)
    if found is not None:
        assert found.neurons == 6
        assert found.scaled(0.5).strength == found.strength / 2
        json.dumps(found.record.as_json(), allow_nan=False)
        assert Dampening.load(found.save(here / "again", force=True)) is not None


@given(place=st.integers(0, 10**4), bit=st.integers(0, 7))
def test_a_flipped_bit_of_an_artefact_is_no_traceback(
    here, expertise_file, dampening_file, place, bit
):
    for content, read in ((expertise_file, Expertise.load), (dampening_file, Dampening.load)):
        data = bytearray(content)
        data[place % len(data)] ^= 1 << bit
        file = here / "flipped.safetensors"
        file.write_bytes(data)
        try:
            found = read(file)
        except UserError:
            continue
        assert found.neurons == 6


ODD = {
    "[" * 100_000: "deep",
    "9" * 5000: "long number",
    '{"format": NaN}': "not a number",
    '{"format": 1e999}': "infinite",
    '{"format": "sordino-evaluation-1", "format": "x"}': "twice",
    "": "empty",
    "\ufeff{}": "byte order mark",
    '{"format": "\\ud800"}': "half a surrogate",
    "null": "null",
    "[]": "a list",
    '{"format": "sordino-evaluation-2"}': "a later version",
}


@pytest.mark.parametrize("content", ODD, ids=ODD.values())
def test_json_that_is_odd_is_one_sentence(tmp_path, expertise_file, dampening_file, content):
    def metadata(key):
        def change(header):
            return header | {"__metadata__": header["__metadata__"] | {key: content}}

        return change

    files = {
        "result.json": (Evaluation.load, content.encode()),
        "study.json": (lambda file: StudyRecord.load(file, "methods"), content.encode()),
        "e.safetensors": (Expertise.load, with_header(expertise_file, metadata("sites"))),
        "d.safetensors": (Dampening.load, with_header(dampening_file, metadata("sordino"))),
    }
    for name, (read, data) in files.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match=name) as refused:
            read(tmp_path / name)
        assert len(str(refused.value)) < 1000
    (tmp_path / RECORD).write_text(content)
    with pytest.raises(UserError, match=RECORD):
        read_provenance(tmp_path)


@pytest.mark.parametrize(
    "header",
    [
        b'{"a": {"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
        b' "a": {"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        b'{"a": {"dtype":"F32","shape":[1],"data_offsets":[0,4]}, "__metadata__": {"k": 1}}',
        b'{"a": {"dtype":"F32","shape":[1],"data_offsets":[0,4]}, "__metadata__": []}',
        b'{"a": {"dtype":"F99","shape":[1],"data_offsets":[0,4]}}',
        b'{"a": {"dtype":["F32"],"shape":[1],"data_offsets":[0,4]}}',
        b'{"a": {"dtype":"F32","shape":[true],"data_offsets":[0,4]}}',
        b'{"a": {"dtype":"F32","shape":[1],"data_offsets":[4,8]}}',
        b'{"a": {"dtype":"F32","shape":[-1],"data_offsets":[4,0]}}',
        b'{"a": {"dtype":"F32","shape":[1],"data_offsets":[0,4,8]}}',
        b'{"a": {"dtype":"F32","shape":[1]}}',
        b'{"a": [1]}',
        b"[1]",
        b'"a"',
        b"null",
        b"[" * 100_000,
        b'{"a": ' + b"9" * 5000 + b"}",
    ],
)
def test_a_header_that_cannot_be_is_one_sentence(tmp_path, header):
    file = tmp_path / "x.safetensors"
    file.write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 4)
    with pytest.raises(UserError, match=r"x\.safetensors"):
        read_header(file)
    assert not Dampening.is_in(file)


@pytest.mark.parametrize(
    ("tensors", "named"),
    [
        ({"s.scale": np.ones(2, np.float32), "t.scale": np.ones(2, np.float32)}, "t.scale"),
        ({"s.scale": np.ones(2, np.float32), "s.more": np.ones(2, np.float32)}, "s.more"),
        ({"s.shift": np.ones(2, np.float32)}, "factors of s"),
        ({"s.scale": np.ones(0, np.float32)}, "factors of s"),
        ({"s.scale": np.ones((2, 1), np.float32)}, "s.scale"),
        ({"s.scale": np.ones(2, np.float16)}, "s.scale"),
        ({"s.scale": np.array([1, np.inf], np.float32)}, "of s"),
        ({"s.scale": np.ones(2, np.float32), "s.shift": np.ones(3, np.float32)}, "of s"),
    ],
)
def test_tensors_of_a_dampening_that_do_not_fit_its_sites(tmp_path, tensors, named):
    about = {"format": "sordino-dampening-1", "sites": ["s"], **ORIGIN}
    (tmp_path / "d").write_bytes(save(tensors, metadata={"sordino": json.dumps(about)}))
    with pytest.raises(UserError, match=named):
        Dampening.load(tmp_path / "d")


def test_foreign_words_do_not_command_the_terminal(tmp_path, capsys):
    evil = "a\x1b[31mb\u202ec\x07\nd\u2066"
    words = dict.fromkeys(("concept", "model", "architecture"), evil)
    file = Expertise(EXPERTISE.statistics, METADATA | words).save(tmp_path / "e.safetensors")
    main(["inspect", str(file)])
    record = changed(PROVENANCE, ("model", "name"), evil)
    record = changed(record, ("left_out",), [evil])
    (tmp_path / RECORD).write_bytes(dump(record))
    main(["inspect", str(tmp_path)])
    with pytest.raises(SystemExit):
        main(["inspect", str(tmp_path / f"{evil.strip()}.safetensors")])
    said = capsys.readouterr()
    for letter in "\x1b\u202e\x07\u2066":
        assert letter not in said.out + said.err


RECIPE = """
name = "own"
title = "T"
source = "S"
model = "kit:smollm2"
parameters = 5
[measures.toxicity]
continuations = 2
[[published]]
measure = "toxicity"
figure = "continuations.all"
difference = 0.1
"""


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("", "force = true\n", "force"),
        ("parameters = 5", "parameters = 1e3", "parameters"),
        ("parameters = 5", f"parameters = {10**30}", "parameters"),
        ("parameters = 5", f"parameters = {'9' * 5000}", "TOML"),
        ('title = "T"', "title = 2024-01-01", "text"),
        ('title = "T"', "title = ['T']", "title"),
        ("difference = 0.1", "difference = nan", "number"),
        ("difference = 0.1", "difference = 'x'", "difference"),
        ("continuations = 2", "continuations = 'x'", "continuations"),
        ("continuations = 2", "continuations = true", "continuations"),
        ("continuations = 2", "scorer = [1]", "scorer"),
        ("continuations = 2", "nothing = 1", "nothing"),
        ("[measures.toxicity]", "[measures.toxic]", "toxic"),
        ("\ncontinuations = 2", "\n[measures.zero-shot]\ntasks = 5", "tasks"),
    ],
)
def test_a_published_row_of_ones_own_is_read_by_types(tmp_path, old, new, named):
    file = tmp_path / "r.toml"
    file.write_text(RECIPE)
    assert recipe_named(str(file)).name == "own"
    file.write_text(RECIPE.replace(old, new, 1) if old else new + RECIPE)
    with pytest.raises(UserError, match=named):
        recipe_named(str(file))


def test_a_value_is_checked_and_a_type_is_a_type():
    from dataclasses import dataclass

    from pydantic import TypeAdapter

    @dataclass
    class Options:
        number: float = 1.0
        names: tuple[str, ...] = ()

    known = kinds(Options)
    check(TypeAdapter(known["number"]), 3, "x")
    check(TypeAdapter(known["names"]), ["a"], "x")
    for key, value in (("number", "3"), ("number", True), ("names", "a"), ("names", [1])):
        with pytest.raises(UserError, match="the key"):
            check(TypeAdapter(known[key]), value, "the key")
    with pytest.raises(UserError, match=re.escape("x is damaged: a.0")):
        parse(TypeAdapter(dict[str, list[int]]), '{"a": ["1"]}', "x")
