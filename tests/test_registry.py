import subprocess
import sys
from dataclasses import dataclass, fields
from typing import Literal, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sordino.cli.bake import Format
from sordino.edits.formats import FORMATS
from sordino.errors import UserError
from sordino.evaluation import MEASURES, Measure
from sordino.evaluation.measure import register
from sordino.interventions import RULES
from sordino.interventions.registry import intervention
from sordino.interventions.settings import settings_of
from sordino.options.measures import MeasureOptions
from sordino.registry import Registry

NAMES = st.dictionaries(st.text("abcdefgh-", min_size=1, max_size=6), st.integers(), max_size=8)


@given(NAMES)
def test_a_registry_is_a_sorted_mapping(things):
    registry = Registry("fruit", "fruits")
    for name, thing in things.items():
        registry[name] = thing
    assert list(registry) == sorted(things)
    assert dict(registry) == things
    for name, thing in things.items():
        assert registry.named(name) == thing
        with pytest.raises(ValueError, match=name):
            registry[name] = thing


def test_an_unknown_name_gets_a_hint_and_all_names():
    registry = Registry("fruit", "fruits", also="or a basket")
    registry["apple"], registry["pear"] = 1, 2
    with pytest.raises(UserError, match=r"'aple': did you mean apple\? There are apple, pear, or"):
        registry.named("aple")
    assert "aple" not in registry
    assert registry.get("aple") is None


PLUGIN = """
[sordino.fruits]
{lines}
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Puts a package with entry points where Python finds it."""

    def put(name, module, lines):
        (tmp_path / f"{name}.py").write_text(module)
        about = tmp_path / f"{name}-1.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
        (about / "entry_points.txt").write_text(PLUGIN.format(lines=lines))

    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield put
    for name in set(sys.modules) - before:
        del sys.modules[name]


ADDS = "import builtins\nbuiltins.fruits['kiwi'] = 3\n"


@pytest.fixture
def fruits(monkeypatch):
    registry = Registry("fruit", "fruits")
    registry["apple"] = 1
    monkeypatch.setattr("builtins.fruits", registry, raising=False)
    return registry


def test_another_package_s_thing_is_imported_when_it_is_asked_for(package, fruits):
    package("green", ADDS, "kiwi = green:anything")
    assert list(fruits) == ["apple", "kiwi"]
    assert fruits.named("apple") == 1
    assert "green" not in sys.modules
    assert fruits.named("kiwi") == 3
    assert "green" in sys.modules


@pytest.mark.parametrize(
    ("module", "lines", "message"),
    [
        ("import nowhere_at_all", "kiwi = green", "green.*nowhere_at_all"),
        ("", "kiwi = green", "green.*does not register it"),
        (ADDS, "apple = green", "Sordino and green"),
    ],
)
def test_a_package_that_cannot_be_used_is_named(package, fruits, module, lines, message):
    package("green", module, lines)
    name = lines.partition(" ")[0]
    for _ in range(2):
        with pytest.raises(UserError, match=message):
            fruits.named(name)


def test_two_packages_with_one_name_are_named(package, fruits):
    package("green", ADDS, "kiwi = green")
    package("brown", ADDS, "kiwi = brown")
    with pytest.raises(UserError, match=r"brown and green|green and brown"):
        list(fruits)


# --- settings ---


def takes(expertise, whole: int, part: float = 0.5, flag: bool = False, word: str = "a") -> None:
    """Has one setting of each kind."""


def chooses(expertise, way: Literal["up", "down"] = "up", most: int | None = None) -> None:
    """Has a choice and an optional number."""


@given(st.integers(), st.floats(allow_nan=False), st.booleans(), st.text())
def test_text_is_read_as_the_value_that_it_is_of(whole, part, flag, word):
    settings = settings_of(takes)
    for name, value in (("whole", whole), ("part", part), ("flag", flag), ("word", word)):
        for given_as in (value, str(value)):
            read = settings[name].read(given_as)
            assert read == value
            assert type(read) is type(value)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [("way", "down", "down"), ("most", "none", None), ("most", None, None), ("most", "3", 3)],
)
def test_choices_and_optional_numbers_are_read(name, text, value):
    assert settings_of(chooses)[name].read(text) == value


@pytest.mark.parametrize(
    ("rule", "name", "text"),
    [
        *((takes, "whole", text) for text in ("many", "1.5", 1.5, None, "none")),
        *((takes, "part", text) for text in ("half", None)),
        *((takes, "flag", text) for text in ("perhaps", 2, None)),
        *((takes, "word", text) for text in (1, None)),
        *((chooses, "way", text) for text in ("left", None)),
        (chooses, "most", "some"),
    ],
)
def test_what_is_no_value_of_a_setting_is_refused(rule, name, text):
    with pytest.raises(ValueError):
        settings_of(rule)[name].read(text)


def of_kind(kind):
    def rule(expertise, odd=None):
        """Has a setting of this kind."""

    rule.__annotations__["odd"] = kind
    return rule


@pytest.mark.parametrize(
    "kind", [list, "list[int]", int | str, Literal["a", 1], dict[str, int], bytes, None]
)
def test_a_setting_of_another_type_is_refused_when_the_rule_is_registered(kind):
    with pytest.raises(TypeError, match="odd of rule"):
        intervention()(of_kind(kind))
    assert "rule" not in RULES


def test_a_rule_must_declare_what_it_says_of_itself():
    def unannotated(expertise, k=1):
        return {}

    def wrong_default(expertise, k: int = 0.5):
        return {}

    def strength(expertise, strength: float = 1.0):
        return {}

    for rule, message in ((unannotated, "k"), (wrong_default, "default"), (strength, "strength")):
        with pytest.raises(TypeError, match=message):
            intervention()(rule)
    with pytest.raises(TypeError, match="dial"):
        intervention(dial="k")(lambda expertise: {})
    with pytest.raises(ValueError, match="colour"):
        intervention(["colour"])(lambda expertise: {})


def test_annotations_may_be_text():
    code = (
        "from __future__ import annotations\n"
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from nowhere import Expertise\n"
        "def late(expertise: Expertise, on: bool = True, most: int | None = None): ...\n"
    )
    scope = {}
    exec(compile(code, "late.py", "exec"), scope)
    settings = settings_of(scope["late"])
    assert settings["on"].read("False") is False
    assert settings["most"].read("none") is None


# --- measures ---


def test_every_option_of_a_measure_is_one_of_the_command_line():
    known = {one.name for one in fields(MeasureOptions)} | {"access"}
    for name, kind in MEASURES.items():
        assert known >= set(kind.options.values()), name
        assert kind.sentence.endswith("."), name


def test_columns_of_studies_stand_apart():
    headings = [column.heading for kind in MEASURES.values() for column in kind.columns]
    assert len(set(headings)) == len(headings)


@pytest.mark.parametrize(
    ("changes", "message"), [({"title": None}, "title"), ({"options": {"odd": "texts"}}, "odd")]
)
def test_a_measure_must_declare_what_it_says_of_itself(changes, message):
    class Odd(Measure):
        name, version, sentence = "odd", 1, "Nothing."

        def prepare(self, seed, device): ...

    for attribute, value in {"title": "Odd", **changes}.items():
        if value is not None:
            setattr(Odd, attribute, value)
    with pytest.raises(TypeError, match=message):
        register(dataclass(frozen=True)(Odd))
    assert "odd" not in MEASURES


def test_the_command_line_names_things_without_loading_torch():
    code = "import sordino.registry, sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_bake_takes_the_formats_that_there_are():
    assert get_args(Format) == ("weights", "ia3", "lora", "hooks", "control-vector")
    assert set(get_args(Format)) == set(FORMATS)
