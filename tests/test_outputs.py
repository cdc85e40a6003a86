"""What may be written where, for every command; names, locks, links and dates."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from sordino import outputs
from sordino.cli.app import main
from sordino.errors import UserError
from sordino.files import (
    create_file,
    name_part,
    new_file,
    new_folder,
    only_one,
    parse_json,
    printable,
    publish,
    read_json,
    refuse_repeated,
    staging_path,
    today,
    user_path,
)
from sordino.outputs import claim_output

FILE_KINDS = [kind for kind in vars(outputs).values() if isinstance(kind, outputs.FileKind)]
KINDS = [*FILE_KINDS, outputs.MODEL, outputs.MODEL_EXTRAS]


def file_of(kind: outputs.FileKind, path: Path) -> Path:
    path.write_bytes(b"\n".join([b"begins", *kind.marks, b"ends"]))
    return path


def folder_of(path: Path, *files: str) -> Path:
    path.mkdir(parents=True)
    for name in files:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text("ours")
    record = {"format": "sordino-provenance-1", "files": ["sordino.json", *files]}
    (path / "sordino.json").write_text(json.dumps(record))
    return path


def tree(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


class TestClaim:
    @pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
    def test_a_folder_of_others_is_never_replaced(self, kind: outputs.Kind, tmp_path: Path) -> None:
        (tmp_path / "thesis").mkdir()
        (tmp_path / "thesis" / "chapter.tex").write_text("years")
        before = tree(tmp_path)
        for force in (False, True):
            with pytest.raises(UserError, match="thesis"):
                claim_output(tmp_path / "thesis", kind, force=force)
        assert tree(tmp_path) == before

    @pytest.mark.parametrize("kind", FILE_KINDS, ids=lambda kind: kind.name)
    @given(content=st.binary(max_size=300))
    def test_a_file_without_the_marks_is_never_replaced(
        self, kind: outputs.FileKind, content: bytes, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        assume(not all(mark in content for mark in kind.marks))
        file = tmp_path_factory.mktemp("others") / "notes.txt"
        file.write_bytes(content)
        with pytest.raises(UserError, match=r"notes\.txt"):
            claim_output(file, kind, force=True)
        assert file.read_bytes() == content

    @pytest.mark.parametrize("kind", FILE_KINDS, ids=lambda kind: kind.name)
    def test_of_the_same_kind_is_replaced_with_force_alone(
        self, kind: outputs.FileKind, tmp_path: Path
    ) -> None:
        there = file_of(kind, tmp_path / "there")
        with pytest.raises(UserError, match="force=True"):
            claim_output(there, kind)
        assert claim_output(there, kind, force=True) == there

    def test_one_kind_does_not_replace_another(self, tmp_path: Path) -> None:
        expertise = file_of(outputs.EXPERTISE, tmp_path / "e.safetensors")
        for kind in (outputs.DAMPENING, outputs.EVALUATION, outputs.PAGE, outputs.GGUF_MODEL):
            with pytest.raises(UserError, match=r"e\.safetensors"):
                claim_output(expertise, kind, force=True)

    def test_a_baked_folder_with_others_files_names_them(self, tmp_path: Path) -> None:
        quiet = folder_of(tmp_path / "quiet", "config.json", "model.safetensors")
        assert claim_output(quiet, outputs.MODEL, force=True) == quiet
        file_of(outputs.EVALUATION, quiet / "result.json")  # a result of ours may lie there
        assert claim_output(quiet, outputs.MODEL, force=True) == quiet
        (quiet / "notes").mkdir()
        (quiet / "notes" / "mine.txt").write_text("mine")
        with pytest.raises(UserError, match=r"notes/mine\.txt"):
            claim_output(quiet, outputs.MODEL, force=True)

    def test_a_link_to_a_folder_inside_ours_is_not_ours(self, tmp_path: Path) -> None:
        quiet = folder_of(tmp_path / "quiet", "config.json")
        (tmp_path / "home").mkdir()
        (quiet / "home").symlink_to(tmp_path / "home")
        with pytest.raises(UserError, match="home"):
            claim_output(quiet, outputs.MODEL, force=True)

    @pytest.mark.parametrize("files", ['"all"', "7", "null", "{}"])
    def test_a_record_that_lists_nothing_marks_no_folder(self, files: str, tmp_path: Path) -> None:
        (tmp_path / "m").mkdir()
        (tmp_path / "m" / "sordino.json").write_text(
            f'{{"format": "sordino-provenance-1", "files": {files}}}'
        )
        with pytest.raises(UserError, match="force=True` does not replace"):
            claim_output(tmp_path / "m", outputs.MODEL, force=True)

    def test_an_empty_folder_holds_nothing_to_lose(self, tmp_path: Path) -> None:
        (tmp_path / "m").mkdir()
        assert claim_output(tmp_path / "m", outputs.MODEL, force=True) == tmp_path / "m"

    def test_a_kind_of_file_is_no_folder(self, tmp_path: Path) -> None:
        quiet = folder_of(tmp_path / "quiet", "config.json")
        with pytest.raises(UserError, match="is a folder"):
            claim_output(quiet, outputs.EXPERTISE, force=True)
        page = file_of(outputs.PAGE, tmp_path / "page")
        with pytest.raises(UserError, match="is a file"):
            claim_output(page, outputs.MODEL, force=True)

    @pytest.mark.parametrize("typed", [".", "..", "../here", "missing/..", "../../base/here"])
    def test_the_working_folder_cannot_be_moved_away(
        self, typed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "base" / "here").mkdir(parents=True)
        monkeypatch.chdir(tmp_path / "base" / "here")
        for force in (False, True):
            with pytest.raises(UserError, match="is the working folder or holds it"):
                claim_output(typed, outputs.MODEL, force=force)

    def test_another_folder_of_that_spelling_can(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "base" / "here").mkdir(parents=True)
        (tmp_path / "there").mkdir()
        monkeypatch.chdir(tmp_path / "there")
        claimed = claim_output("../base/here/..", outputs.MODEL_EXTRAS, force=True)
        assert claimed == tmp_path / "base"

    @pytest.mark.parametrize("kind", ["file", "folder"])
    def test_a_mount_point_cannot_be_moved_away(
        self, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        there = tmp_path / "there"
        if kind == "folder":
            there.mkdir()
        else:
            file_of(outputs.PAGE, there)
        monkeypatch.setattr("os.path.ismount", lambda path: path == there)
        claimed = outputs.MODEL if kind == "folder" else outputs.PAGE
        with pytest.raises(UserError, match="where a disk or a volume is mounted"):
            claim_output(there, claimed, force=True)
        if kind == "folder":
            assert claim_output(there / "m", claimed) == there / "m"

    def test_devices_and_pipes_stay(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe")
        for path in (tmp_path / "pipe", Path(os.devnull)):
            with pytest.raises(UserError, match=path.name):
                claim_output(path, outputs.EVALUATION, force=True)


class TestInputs:
    def test_an_output_is_no_input(self, tmp_path: Path) -> None:
        page = file_of(outputs.PAGE, tmp_path / "page.html")
        for name in (page, tmp_path / "." / "page.html", str(page)):
            with pytest.raises(UserError, match="input"):
                claim_output(name, outputs.PAGE, force=True, inputs=[page])

    def test_nor_a_link_to_one(self, tmp_path: Path) -> None:
        page = file_of(outputs.PAGE, tmp_path / "page.html")
        (tmp_path / "link.html").symlink_to(page)
        with pytest.raises(UserError, match="input"):
            claim_output(tmp_path / "link.html", outputs.PAGE, force=True, inputs=[page])

    @pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
    def test_nothing_new_lies_in_a_model_of_others(
        self, kind: outputs.Kind, tmp_path: Path
    ) -> None:
        (tmp_path / "m").mkdir()
        (tmp_path / "m" / "config.json").write_text("{}")
        for place in (tmp_path / "m" / "new", tmp_path / "m" / "deep" / "new"):
            with pytest.raises(UserError, match="overlap"):
                claim_output(place, kind, inputs=[tmp_path / "m"])

    def test_what_was_measured_may_lie_in_a_baked_folder(self, tmp_path: Path) -> None:
        quiet = folder_of(tmp_path / "quiet", "config.json")
        assert claim_output(quiet / "result.json", outputs.EVALUATION, inputs=[quiet])
        with pytest.raises(UserError, match="overlap"):
            claim_output(quiet / "again", outputs.MODEL, inputs=[quiet])
        with pytest.raises(UserError, match=r"config\.json"):
            claim_output(quiet / "config.json", outputs.EVALUATION, force=True, inputs=[quiet])

    def test_an_output_holds_no_input(self, tmp_path: Path) -> None:
        quiet = folder_of(tmp_path / "quiet", "prompts.txt")
        with pytest.raises(UserError, match="overlap"):
            claim_output(quiet, outputs.MODEL, force=True, inputs=[quiet / "prompts.txt"])

    def test_names_of_the_hub_and_nothing_are_passed_over(self, tmp_path: Path) -> None:
        inputs = [None, "kit:smollm2", "org/name", "hf:org/name", "x" * 5000, 7]
        assert claim_output(tmp_path / "new", outputs.EXPERTISE, inputs=inputs)

    def test_words_that_name_a_folder_are_no_files(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        Path("insults").mkdir()
        Path("prompts.txt").write_text("a\n")
        found = list(outputs.named_files("insults", ("prompts.txt", ["toxicity"]), 3, None, 0.5))
        assert found == [Path("prompts.txt")]


class TestLinks:
    def test_an_output_that_is_a_link_is_what_it_points_to(self, tmp_path: Path) -> None:
        real = file_of(outputs.PAGE, tmp_path / "real.html")
        (tmp_path / "page.html").symlink_to(real)
        target = claim_output(tmp_path / "page.html", outputs.PAGE, force=True)
        with new_file(target, force=True) as staging:
            staging.write_text("new")
        assert (tmp_path / "page.html").is_symlink()
        assert real.read_text() == "new"

    def test_a_link_to_nothing_is_made_there(self, tmp_path: Path) -> None:
        (tmp_path / "page.html").symlink_to(tmp_path / "real.html")
        with new_file(claim_output(tmp_path / "page.html", outputs.PAGE)) as staging:
            staging.write_text("new")
        assert (tmp_path / "real.html").read_text() == "new"

    def test_a_link_in_a_circle_is_said(self, tmp_path: Path) -> None:
        (tmp_path / "a").symlink_to(tmp_path / "b")
        (tmp_path / "b").symlink_to(tmp_path / "a")
        with pytest.raises(UserError, match="back to itself"):
            claim_output(tmp_path / "a", outputs.PAGE, force=True)

    def test_nothing_is_written_through_a_link_under_the_staging_name(self, tmp_path: Path) -> None:
        secret = tmp_path / "bashrc"
        secret.write_text("original")
        (tmp_path / "home").mkdir()
        (tmp_path / "home" / "x").write_text("x")
        staging_path(tmp_path / "out").symlink_to(secret)
        with new_file(tmp_path / "out") as staging:
            staging.write_text("new")
        staging_path(tmp_path / "folder").symlink_to(tmp_path / "home")
        with new_folder(tmp_path / "folder") as staging:
            (staging / "x").write_text("new")
        assert secret.read_text() == "original"
        assert (tmp_path / "home" / "x").read_text() == "x"
        assert not (tmp_path / "out").is_symlink()

    def test_a_new_file_is_new(self, tmp_path: Path) -> None:
        (tmp_path / "link").symlink_to(tmp_path / "nothing")
        with pytest.raises(FileExistsError):
            create_file(tmp_path / "link")
        with create_file(tmp_path / "private", 0o600) as file:
            file.write(b"x")
        assert (tmp_path / "private").stat().st_mode & 0o077 == 0

    def test_an_old_folder_that_stays_is_said_and_refused_where_it_is_in_the_way(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        quiet, old = tmp_path / "quiet", tmp_path / ".quiet.sordino-old"
        folder_of(quiet, "first")
        plain = shutil.rmtree

        def refuse(path: Path, *_: object, **__: object) -> None:
            if Path(path) == old:  # it has a file of another user, or one that is open on NFS
                raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY))
            plain(path)

        monkeypatch.setattr(shutil, "rmtree", refuse)
        with only_one(quiet), new_folder(quiet, force=True) as stage:
            (stage / "second").write_text("ours")
        assert tree(quiet) == {"second": b"ours"}
        said = capsys.readouterr().err
        assert f"{quiet} is replaced, but what was there before cannot be removed" in said
        assert str(old) in said
        assert tree(old)["first"] == b"ours"
        with (
            pytest.raises(UserError, match="an earlier command left, cannot be removed"),
            only_one(quiet),
        ):
            pytest.fail("the work begins")
        monkeypatch.undo()
        with only_one(quiet):
            assert not old.exists()

    def test_a_file_is_never_published_over_a_folder(self, tmp_path: Path) -> None:
        (tmp_path / "there").mkdir()
        (tmp_path / "staged").write_text("x")
        with pytest.raises(UserError, match="there"):
            publish(tmp_path / "staged", tmp_path / "there")
        (tmp_path / "folder").mkdir()
        with pytest.raises(UserError, match="staged"):
            publish(tmp_path / "folder", tmp_path / "staged")
        with pytest.raises(UserError, match="there"), new_file(tmp_path / "there", force=True):
            pass
        assert (tmp_path / "there").is_dir()


class TestNames:
    def test_a_tilde_is_a_home_only_where_a_user_has_one(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        assert user_path("~") == Path.home()
        assert user_path("~notes.csv") == Path("~notes.csv")
        assert user_path("~no-such-user/x") == Path("~no-such-user/x")
        Path("~").mkdir()
        assert user_path("~") == Path("~")  # a folder of that very name goes first

    @pytest.mark.parametrize(
        "name", ["", "x" * 300, "a\0b", "half \udcff", "y" * 5000, "d/" * 3000]
    )
    def test_a_name_that_no_file_can_have_is_said(self, name: str) -> None:
        with pytest.raises(UserError):
            user_path(name)

    def test_a_file_that_is_given_twice_is_said(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        for name in ("a", "b"):
            Path(name).write_text(name)
        Path("link").symlink_to("a")
        refuse_repeated(["a", "b", "org/name", "org/other", Path("c"), Path("d")], "x")
        for twice in (["a", "b", "a"], ["a", "./a"], ["a", tmp_path / "a"], ["link", "a"]):
            with pytest.raises(UserError, match="is given twice, which would count twice: give"):
                refuse_repeated(twice, "would count twice")
        with pytest.raises(UserError, match="hf:org/name is given twice"):
            refuse_repeated(["hf:org/name", "hf:org/name"], "x")

    def test_a_name_that_this_shell_s_encoding_garbles_has_its_own_mend(self) -> None:
        script = "import sys; from sordino.files import user_path; user_path(sys.argv[1])"
        found = subprocess.run(
            [sys.executable, "-c", script, "é"],
            env={**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0"},
            capture_output=True,
            check=False,
        )
        assert b"set PYTHONUTF8=1" in found.stderr

    @given(st.text(max_size=60))
    def test_any_name_is_a_path_or_refused(self, name: str) -> None:
        try:
            path = user_path(name)
        except UserError:
            return
        path.exists()  # raises nothing

    @given(st.text())
    def test_what_is_printable_is_one_encodable_line(self, text: str) -> None:
        shown = printable(text)
        shown.encode()
        assert len(shown) <= 200
        assert len(shown.splitlines()) <= 1
        assert not any(ord(letter) < 32 or 127 <= ord(letter) < 160 for letter in shown)

    def test_a_long_output_name_is_said_before_the_work(self, tmp_path: Path) -> None:
        for length, fits in ((200, True), (250, False), (300, False)):
            name = tmp_path / ("n" * length)
            if fits:
                with only_one(claim_output(name, outputs.EVALUATION)), new_file(name) as staging:
                    staging.write_text("x")
            else:
                with pytest.raises(UserError, match="long"):
                    claim_output(name, outputs.EVALUATION)

    def test_a_folder_that_cannot_be_written_is_said(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("x")
        with pytest.raises(UserError, match="file"):
            claim_output(tmp_path / "file" / "out", outputs.EVALUATION)


class TestJson:
    @pytest.mark.parametrize(
        "text", ["", "[1,", "[" * 100_000, '{"n": ' + "9" * 5000 + "}", b"\xff\xfe", "nope"]
    )
    def test_what_is_not_json_is_said(self, text: str | bytes, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="there"):
            parse_json(text, "there")
        (tmp_path / "there").write_bytes(text if isinstance(text, bytes) else text.encode())
        with pytest.raises(UserError, match="there"):
            read_json(tmp_path / "there")

    def test_a_pipe_is_not_waited_for(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe.json")
        with pytest.raises(UserError, match=r"pipe\.json"):
            read_json(tmp_path / "pipe.json")


class TestLocks:
    @pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
    def test_a_file_system_without_locks_blames_nobody(
        self,
        number: int,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        def flock(descriptor: object, operation: int) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr("fcntl.flock", flock)
        # What a killed process left where locks are mere files.
        staging_path(tmp_path / "out").with_suffix(".lock").write_text("1\nelsewhere\n")
        with only_one(tmp_path / "out"):
            pass
        assert "no file locks" in capsys.readouterr().err

    def test_a_second_process_is_refused_where_there_are_locks(self, tmp_path: Path) -> None:
        program = (
            "import sys; from pathlib import Path; from sordino.files import only_one\n"
            "from sordino.errors import UserError\n"
            "try:\n    with only_one(Path(sys.argv[1])): print('held')\n"
            "except UserError as error: print(error)"
        )
        with only_one(tmp_path / "out"):
            said = subprocess.run(
                [sys.executable, "-c", program, str(tmp_path / "out")],
                capture_output=True,
                text=True,
                check=True,
            ).stdout
        assert "another sordino process" in said


class TestDates:
    @pytest.mark.parametrize("epoch", ["", "  "])
    def test_an_empty_source_date_is_none(
        self, epoch: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SOURCE_DATE_EPOCH", epoch)
        assert len(today()) == len("2026-01-01")

    @pytest.mark.parametrize("epoch", ["2026-01-01", "soon", "9" * 30, "-" + "9" * 30, "1.5"])
    def test_a_source_date_that_is_none_is_said(
        self, epoch: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SOURCE_DATE_EPOCH", epoch)
        with pytest.raises(UserError, match="SOURCE_DATE_EPOCH"):
            today()

    def test_seconds_give_their_day(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")
        assert today() == "1970-01-02"


class TestEncodings:
    @pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1", "utf-8"])
    @given(text=st.text())
    def test_any_text_can_be_printed(self, encoding: str, text: str) -> None:
        import io

        from sordino.cli.encoding import speak_plainly

        raw = io.BytesIO()
        stream = io.TextIOWrapper(raw, encoding=encoding)
        speak_plainly(stream, None)
        stream.write(text)
        stream.flush()

    def test_a_minus_stays_a_minus(self) -> None:
        import io

        from sordino.cli.encoding import speak_plainly

        raw = io.BytesIO()
        stream = io.TextIOWrapper(raw, encoding="ascii")
        speak_plainly(stream)
        stream.write("−3.1 → ×2 … ─│ é 中")
        stream.flush()
        assert raw.getvalue() == b"-3.1 -> x2 ... -| \\xe9 \\u4e2d"


def test_without_a_home_the_kit_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    from sordino.kit import cache_folder

    for name in ("HOME", "SORDINO_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    with pytest.raises(UserError, match="SORDINO_CACHE"):
        cache_folder()


def test_where_numba_has_no_place_for_a_cache_it_compiles_without(tmp_path: Path) -> None:
    shutil.copy(Path(sys.modules["sordino"].__file__ or "").parent / "compiled.py", tmp_path)
    (tmp_path / "it.py").write_text(
        "from compiled import compiled\n@compiled()\ndef double(x):\n    return 2 * x\n"
        "print(double(21))\n"
    )
    program = (
        "from numba.core.caching import FunctionCache as Cache\n"
        "Cache._impl_class._locator_classes = []\n"
        "import it\n"
    )
    said = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert said.stdout == "42\n"


@given(st.text(max_size=300))
def test_any_text_becomes_a_part_of_a_file_s_name(text: str) -> None:
    part = name_part(text)
    assert 0 < len(part.encode()) <= 120
    assert Path(part).name == part
    assert not part.startswith((".", "-"))
    assert name_part(part) == part


@pytest.mark.parametrize("kind", FILE_KINDS, ids=lambda kind: kind.name)
def test_a_file_is_not_written_under_the_name_of_a_folder(kind, tmp_path):
    for name in ("new/", "new//", f"new{os.sep}"):
        with pytest.raises(UserError, match=r"new/.*name of a folder.*add the file's name"):
            claim_output(str(tmp_path / "x")[:-1] + name, kind)
    assert claim_output(f"{tmp_path}/new", kind) == tmp_path / "new"
    assert claim_output(f"{tmp_path}/new/", outputs.MODEL) == tmp_path / "new"


@pytest.mark.parametrize(
    "words", ["find none", "evaluate none", "explore none.expertise.safetensors"]
)
def test_commands_do_not_take_a_new_folder_for_a_file(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "none.expertise.safetensors").write_bytes(b"")
    with pytest.raises(SystemExit, match="2"):
        main([*words.split(), "-o", "new/"])
    assert "-o new/ is the name of a folder" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
