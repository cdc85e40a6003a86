"""What a killed command finds of its own work, and what becomes of it if it was changed since."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sordino.evaluation.journal import Journal
from sordino.work import WorkFolder

# The journal of an evaluation

records = st.lists(
    st.lists(st.one_of(st.integers(), st.text(), st.floats(allow_nan=False, width=64))), max_size=3
)


@given(
    batches=st.lists(st.tuples(st.sampled_from(["a", "b"]), records), min_size=2, max_size=6),
    place=st.integers(0, 10**4),
    bit=st.integers(0, 7),
)
def test_a_changed_journal_gives_nothing_that_was_not_written(
    tmp_path_factory, batches, place, bit
):
    path = tmp_path_factory.mktemp("journal") / "journal"
    journal = Journal(path, "key")
    for step, batch in batches:
        journal.add(step, batch)
    journal.close(remove=False)
    content = bytearray(path.read_bytes())
    content[place % len(content)] ^= 1 << bit
    path.write_bytes(content)
    again = Journal(path, "key")
    again.close(remove=False)
    for step in ("a", "b"):
        whole = [b for s, b in batches if s == step]
        assert again.batches(step) == whole[: len(again.batches(step))]


@pytest.mark.parametrize(
    "content",
    [
        b'{"format": "sordino-journal-1", "key": "key"}\n{"step": "a", "batch": [[9]]}\n',
        b"[" * 100_000 + b"\n",
        b"\xff\n",
        b"\n\n",
        b"9" * 5000 + b"\n",
    ],
)
def test_a_journal_of_the_version_before_or_of_no_kind_is_begun_anew(tmp_path, content):
    path = tmp_path / "journal"
    path.write_bytes(content)
    assert Journal(path, "key").steps == {}


def test_lines_of_a_journal_cannot_change_places(tmp_path):
    path = tmp_path / "journal"
    journal = Journal(path, "key")
    for number in range(3):
        journal.add("a", [[number]])
    journal.close(remove=False)
    header, first, second, third = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(header + first + third + second)
    assert Journal(path, "key").batches("a") == [[[0]]]


# The steps of a run

KEY = "key"


def begun(folder, steps):
    """A work folder in which each step has left its files."""
    folder.mkdir()
    work = WorkFolder(folder, KEY)
    for step, files in steps.items():
        for name, content in files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(content)
        work.done(step, *{folder / name.split("/")[0] for name in files})
    return folder


STEPS = {"find": {"e": b"abc"}, "bake": {"m/w": b"weights", "m/c": b"{}"}, "judge": {"r": b"1"}}
PATHS = {"find": ["e"], "bake": ["m"], "judge": ["r"]}


def held(folder):
    work = WorkFolder.open(folder, KEY)
    if work is None:
        return None
    return [step for step in STEPS if work.holds(step, *(folder / n for n in PATHS[step]))]


def test_what_no_one_changed_is_done(tmp_path):
    folder = begun(tmp_path / "w", STEPS)
    assert held(folder) == ["find", "bake", "judge"]
    assert WorkFolder.open(folder, "another") is None


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def linked(path):
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


@pytest.mark.parametrize(
    ("change", "left"),
    [
        (lambda f: cut(f / "e"), []),
        (lambda f: (f / "e").unlink(), []),
        (lambda f: linked(f / "e"), []),
        (lambda f: cut(f / "m/w"), ["find"]),
        (lambda f: (f / "m/more.safetensors").write_bytes(b""), ["find"]),
        (lambda f: (f / "m/loop").symlink_to(f / "m"), ["find"]),
        (lambda f: linked(f / "m"), ["find"]),
        (lambda f: cut(f / "r"), ["find", "bake"]),
        (lambda f: (f / "r").rename(f / "s"), ["find", "bake"]),
    ],
)
def test_a_changed_step_and_those_after_it_are_done_again(tmp_path, change, left):
    folder = begun(tmp_path / "w", STEPS)
    change(folder)
    assert held(folder) == left
    for step in STEPS.keys() - left:  # nothing is left that the step would be mistaken to have made
        assert not any((folder / name).exists() for name in PATHS[step])
    assert held(folder) == left


@given(place=st.integers(0, 10**4), bit=st.integers(0, 7))
def test_a_changed_list_of_steps_is_not_believed(tmp_path_factory, place, bit):
    folder = begun(tmp_path_factory.mktemp("work") / "w", STEPS)
    content = bytearray((folder / "steps.json").read_bytes())
    content[place % len(content)] ^= 1 << bit
    (folder / "steps.json").write_bytes(content)
    assert held(folder) in (None, ["find", "bake", "judge"])  # white space may change


def test_a_file_that_no_step_left_is_not_believed(tmp_path):
    folder = begun(tmp_path / "w", {"find": STEPS["find"]})
    (folder / "m").mkdir()
    (folder / "m/w").write_bytes(b"planted")
    assert held(folder) == ["find"]
    assert not (folder / "m").exists()
