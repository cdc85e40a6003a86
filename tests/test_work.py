"""What a killed command finds of its own work, and what becomes of it if it was changed since."""

import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from conftest import sentences
from families import tiny_folder
from sordino import pipeline
from sordino.cli.app import main
from sordino.errors import UserError
from sordino.expertise import SweepSettings
from sordino.expertise.snapshot import Progress, Snapshots
from sordino.expertise.states import InFiles
from sordino.expertise.statistic import Part, Statistic, Sum
from sordino.files import write_text
from sordino.journal import Journal
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
    journal.close()
    content = bytearray(path.read_bytes())
    content[place % len(content)] ^= 1 << bit
    path.write_bytes(content)
    again = Journal(path, "key")
    again.close()
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
    journal.close()
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


# The snapshots of a sweep


SUM = Sum("c.up", Statistic.NEGATIVE, Part.SQUARES)


def saved(folder, tokens=(3, 2)):
    """A snapshot with states in files, and what it holds."""
    shutil.rmtree(folder, ignore_errors=True)
    states = InFiles(folder / "states", tokens, torch.device("cpu"))
    for name in ("1", "2"):
        for batch, count in enumerate(tokens):
            states.write(name, batch, torch.full((1, count, 4), batch + 0.5))
    now = Progress(
        *(1, 2, states.secure(), {"a.up": torch.ones(2, 3)}, {SUM: torch.ones(3)}),
        statistics={"b.up": {Statistic.AUROC: torch.ones(3)}},
        files=states.sums(),
        needed=("2",),
    )
    Snapshots(folder / "snapshot.safetensors", KEY).save(now)
    states.keep("2")
    assert {file.name for file, _ in states.sums()} == {"2"}
    return now


def restored(folder):
    return Snapshots(folder / "snapshot.safetensors", KEY).restore()


def test_a_snapshot_is_restored_and_goes_on(tmp_path):
    folder = tmp_path / "w"
    now = saved(folder)
    again = Snapshots(folder / "snapshot.safetensors", KEY)
    found = again.restore()
    assert (found.stage, found.batch, found.phase) == (1, 2, now.phase)
    assert torch.equal(found.responses["a.up"], now.responses["a.up"])
    assert torch.equal(found.sums[SUM], now.sums[SUM])
    assert torch.equal(found.statistics["b.up"][Statistic.AUROC], torch.ones(3))
    again.save(Progress(1, 2))  # what the process before this one wrote is still looked after
    flip(folder / "states/2")
    assert restored(folder) is None


def test_a_snapshot_looks_once_for_each_file_of_states(tmp_path, monkeypatch):
    states = InFiles(tmp_path / "states", [1] * 20, torch.device("cpu"))
    for batch in range(20):
        states.write("1", batch, torch.ones(1, 1, 4))
    looked = []
    exists = Path.exists
    monkeypatch.setattr(Path, "exists", lambda path: looked.append(path.name) or exists(path))
    Snapshots(tmp_path / "snapshot.safetensors", KEY).save(Progress(files=states.sums()))
    assert looked.count("1") == 1


@given(name=st.sampled_from(["snapshot.safetensors", "states/2"]), place=st.integers(0, 10**4))
def test_a_snapshot_of_which_anything_was_changed_is_not_believed(tmp_path_factory, name, place):
    folder = tmp_path_factory.mktemp("sweep")
    saved(folder)
    assert restored(folder) is not None
    data = bytearray((folder / name).read_bytes())
    data[place % len(data)] ^= 1
    (folder / name).write_bytes(data)
    found = restored(folder)
    # Of the bytes of a header some say nothing: a space becomes another sign of white space.
    assert found is None or torch.equal(found.responses["a.up"], torch.ones(2, 3))


@pytest.mark.parametrize("change", [Path.unlink, cut, linked, lambda path: path.write_bytes(b"")])
@pytest.mark.parametrize("name", ["snapshot.safetensors", "states/2"])
def test_a_snapshot_that_is_not_whole_is_not_believed(tmp_path, name, change):
    saved(tmp_path / "w")
    change(tmp_path / "w" / name)
    found = restored(tmp_path / "w")
    assert found is None or (change is linked and name.startswith("snapshot"))


# A whole run


class Killed(BaseException):
    """Ends a run before its last step, as a kill would."""


RUN = [
    *("run", "tiny", "--concept", "yes.txt", "--negatives", "no.txt", "-o", "quiet"),
    *("--intervention", "aura"),
    *("--prompts", "prompts.txt", "--texts", "prose.txt", "--divergence", "0.5"),
    *("--scorer", "wordlist", "--continuations", "2", "--new-tokens", "4"),
]


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A folder in which a run was stopped before it published, and what it would have given."""
    here = tmp_path_factory.mktemp("run")
    tiny_folder("llama", here).rename(here / "tiny")
    for name, lines in {
        "yes.txt": sentences(24, 1),
        "no.txt": sentences(24, 2),
        "prompts.txt": sentences(4, 3, longest=5),
        "prose.txt": sentences(40, 5, longest=20),
    }.items():
        (here / name).write_text("\n".join(lines) + "\n")

    def write_and_be_killed(*arguments):
        write_text(*arguments)
        raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        main(RUN)
        undisturbed = contents(here / "quiet")
        shutil.rmtree(here / "quiet")
        patch.setattr(pipeline, "write_text", write_and_be_killed)  # it writes the card
        with pytest.raises(Killed):
            main(RUN)
    return here, undisturbed


def contents(folder):
    return {
        file.relative_to(folder).as_posix(): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file()
    }


def flip(file):
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def finished(stopped, change, tmp_path, monkeypatch):
    """What the stopped run gives where something in its work folder was changed."""
    here, undisturbed = stopped
    shutil.copytree(here, tmp_path / "run")
    monkeypatch.chdir(tmp_path / "run")
    change(Path(".quiet.partial"))
    main(RUN)
    assert not Path(".quiet.partial").exists()
    assert contents(Path("quiet")) == undisturbed


def test_a_stopped_run_goes_on_and_does_nothing_twice(stopped, tmp_path, monkeypatch):
    def never(*_, **__):
        raise AssertionError("this step was done already")

    for name in ("find_experts", "sized", "exemplars", "bake", "evaluate"):
        monkeypatch.setattr(pipeline, name, never)
    finished(stopped, lambda work: None, tmp_path, monkeypatch)


@pytest.mark.parametrize("number", [1, 2])
def test_a_run_that_is_stopped_while_it_publishes_finds_nothing_again(
    stopped, number, tmp_path, monkeypatch
):
    flushed = []

    def flush(path):
        flushed.append(path)
        if len(flushed) == number:
            raise Killed

    def stop_again(_):
        with monkeypatch.context() as patch:
            patch.setattr(pipeline, "flush", flush)
            with pytest.raises(Killed):
                main(RUN)
        for name in ("find_experts", "sized"):
            monkeypatch.setattr(pipeline, name, None)

    finished(stopped, stop_again, tmp_path, monkeypatch)


@pytest.mark.parametrize(
    "change",
    [
        lambda work: flip(work / "model/model.safetensors"),
        lambda work: (work / "model/planted.safetensors").write_bytes(b"someone's"),
        lambda work: flip(work / "evaluation.json"),
    ],
)
def test_a_changed_work_folder_gives_the_same_result(
    stopped, change, tmp_path, monkeypatch, capsys
):
    finished(stopped, change, tmp_path, monkeypatch)
    assert "is made again" in capsys.readouterr().err


@pytest.mark.slow
def test_a_flipped_bit_of_any_file_of_a_work_folder_gives_the_same_result(
    stopped, tmp_path, monkeypatch
):
    for number, name in enumerate(sorted(contents(stopped[0] / ".quiet.partial"))):
        place = tmp_path / str(number)
        place.mkdir()
        finished(stopped, lambda work, name=name: flip(work / name), place, monkeypatch)


@pytest.mark.parametrize("name", ["prompts.txt", "prose.txt"])
def test_a_text_that_was_edited_since_the_kill_begins_the_run_anew(
    stopped, name, tmp_path, monkeypatch, capsys
):
    here, _ = stopped
    shutil.copytree(here, tmp_path / "run")
    monkeypatch.chdir(tmp_path / "run")
    text = Path(name).read_text()
    Path(name).write_text(text + text.splitlines()[0] + " again\n")
    main(RUN)
    assert "discarding an unfinished run" in capsys.readouterr().err
    again = contents(Path("quiet"))
    shutil.rmtree("quiet")
    main(RUN)
    assert again == contents(Path("quiet"))


def test_a_work_folder_of_the_version_before_is_begun_anew(stopped, tmp_path, monkeypatch):
    def before(work):
        (work / "steps.json").unlink()
        (work / "run.json").write_text('{"key": "x"}')
        flip(work / "model/model.safetensors")

    finished(stopped, before, tmp_path, monkeypatch)


def test_in_python_a_run_measures_what_its_rule_needs():
    assert pipeline.RunSettings(intervention="stratified").whole_sweep.stratify == "length"
    assert pipeline.RunSettings(beside=("stratified",)).whole_sweep.stratify == "length"
    assert pipeline.RunSettings(intervention="aura").whole_sweep.stratify == ""
    means = SweepSettings(pooling="mean")
    assert pipeline.RunSettings("mean_shift", sweep=means).whole_sweep.moments
    with pytest.raises(UserError, match="Shifts are made from mean responses"):
        _ = pipeline.RunSettings(intervention="mean_shift").whole_sweep
