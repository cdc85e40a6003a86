"""What holds the chat's page up, or its end: idle and many connections, long work, odd bodies."""

import fcntl
import os
import pty
import queue
import signal
import socket
import stat
import subprocess
import sys
import termios
import threading
import time
from contextlib import suppress
from urllib.parse import urlsplit

import pytest
import requests
from rich.console import Console

from chat_page import events, request, serving
from families import random_factors, tiny_folder
from sordino.chatting import SIDES, Duet, Said, Settings, Turn, connections, open_duet, server
from sordino.chatting.background import Background, Ended
from sordino.chatting.terminal import Session
from sordino.errors import UserError
from sordino.interventions import Dampening
from sordino.models.open import open_model

SHORT = Settings(new_tokens=4)
ENDLESS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}x"


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A folder with a tiny model and a dampening file."""
    folder = tmp_path_factory.mktemp("limits")
    tiny_folder("llama", folder)
    sites = open_model(folder / "llama").sites
    Dampening(random_factors({site.path: site.neurons for site in sites}), "by hand").save(
        folder / "x.safetensors"
    )
    return folder


@pytest.fixture(scope="module")
def duet(here):
    def load(_, file):
        return Dampening.load(file)

    return open_duet(str(here / "llama"), str(here / "x.safetensors"), make=load, scorer="none")


def wanted(key="one", turns=(), settings=SHORT):
    return request([*turns, Turn(prompt="the cat sat")], settings, key)


def kinds(response):
    return [event["kind"] for event in events(response)]


def connect(url, said=b""):
    place = urlsplit(url)
    made = socket.create_connection((place.hostname, place.port), timeout=10)
    made.sendall(said)
    return made


def is_not_found(connection):
    """Whether a whole answer comes that says so."""
    said = b""
    while not said.endswith(b"Not Found"):
        said += connection.recv(9999) or b"Not Found"
    return said.startswith(b"HTTP/1.1 404")


def closes(connection):
    """Whether the other side closes a connection within its timeout, without a word."""
    with suppress(ConnectionResetError):
        return connection.recv(1) == b""
    return True


HEAD = b"POST /answer HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"


@pytest.mark.parametrize(
    "said", [b"", b"GET /", HEAD, HEAD + b"Content-Length: 99\r\n\r\n{", b"GET / HTTP/1.1\r\nA: "]
)
def test_a_connection_without_a_whole_request_is_closed(duet, monkeypatch, said):
    monkeypatch.setattr(connections, "REQUEST_S", 0.3)
    with serving(duet) as url, connect(url, said) as idle:
        begun = time.monotonic()
        # A byte now and then does not keep it open.
        dripping = connect(url, said)
        while time.monotonic() - begun < 0.9:
            time.sleep(0.1)
            with suppress(OSError):
                dripping.send(b"a")
        assert closes(idle)
        assert closes(dripping)
        assert requests.get(url, timeout=10).status_code == 200


def test_the_second_request_of_a_connection_has_its_time_too(duet, monkeypatch):
    monkeypatch.setattr(connections, "REQUEST_S", 0.3)
    whole = b"GET /nothing HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    for more in (b"", HEAD + b"Content-Length: 99\r\n\r\n{"):
        with serving(duet) as url, connect(url, whole) as one:
            assert is_not_found(one)
            time.sleep(0.4)  # between requests there is more time than within one
            one.sendall(whole + more)
            assert is_not_found(one)
            if more:
                assert closes(one)


def test_idle_connections_make_room_for_those_that_ask(duet, monkeypatch):
    monkeypatch.setattr(connections, "MOST_CONNECTIONS", 4)
    with serving(duet) as url:
        idle = [connect(url) for _ in range(12)]
        assert requests.get(url, timeout=10).status_code == 200
        assert all(closes(one) for one in idle[:8])
        for one in idle:
            one.close()


@pytest.mark.parametrize(
    "odd",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
        HEAD + b"Content-Length: -5\r\n\r\n{}",
        HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n{}",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n-4\r\n{}",
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n",
    ],
)
def test_odd_requests_are_no_news_for_the_terminal(duet, caplog, odd):
    with serving(duet) as url:
        with connect(url, odd) as one:
            assert one.recv(99).split(b" ")[1] in (b"200", b"400")
        assert requests.get(url, timeout=10).status_code == 200
    # Without a handler of its own, which pytest's is, a warning goes to standard error.
    assert not [record for record in caplog.records if record.name.startswith("uvicorn")]


class Slow(Duet):
    """Says something now and then, until it is stopped."""

    def answers(self, turns, settings, sides=SIDES, stopped=lambda: False):
        del turns, settings
        while not stopped():
            time.sleep(0.02)
            yield Said(sides[0], "")


def test_where_all_wait_for_answers_the_next_is_refused(duet, monkeypatch):
    monkeypatch.setattr(connections, "MOST_CONNECTIONS", 3)
    with serving(Slow(**vars(duet))) as url:
        asked = [
            requests.post(url + "answer", json=wanted(str(n)), stream=True, timeout=10)
            for n in range(3)
        ]
        refused = requests.get(url, timeout=10)
        assert refused.status_code == 503
        assert "too many connections" in refused.text
        for one in asked:
            one.close()
        for _ in range(50):  # until the server knows
            if requests.get(url, timeout=10).status_code == 200:
                break
            time.sleep(0.1)
        else:
            pytest.fail("there is no room")


def test_a_long_conversation_without_a_listener_holds_nobody_up(duet):
    one = Turn(prompt="a").model_dump(mode="json")
    many = wanted() | {"turns": [one] * 10_000 + wanted()["turns"]}
    with serving(duet) as url:
        said = requests.post(url + "answer", json=many, timeout=10).text
        assert "10,001 turns" in said
        many["turns"].pop()
        many["turns"].append(wanted()["turns"][0])
        many["turns"] = many["turns"][1:]
        with suppress(requests.Timeout):
            requests.post(url + "answer", json=many, timeout=0.2)
        begun = time.monotonic()
        assert kinds(requests.post(url + "answer", json=wanted("b"), timeout=10))[-1] == "end"
        assert time.monotonic() - begun < 5


def test_a_template_without_end_is_left_with_its_listener(duet):
    tokenizer = duet.original.tokenizer
    before = tokenizer.chat_template
    with serving(duet) as url:
        kinds(requests.post(url + "answer", json=wanted("a"), timeout=20))
        tokenizer.chat_template = ENDLESS
        try:
            said = requests.post(url + "answer", json=wanted("b"), stream=True, timeout=20)
            time.sleep(0.2)
            said.close()
            time.sleep(0.3)
        finally:
            tokenizer.chat_template = before
        assert "answered" in kinds(requests.post(url + "answer", json=wanted("c"), timeout=20))


@pytest.mark.parametrize("path", ["answer", "stop", "markdown"])
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[" * 100_000,
        b"9" * 5000,
        b'"\xff"',
        b'"\\ud800"',
        b"nul",
        b"{}",
        b'"%s"' % (b"x" * 101),
    ],
)
def test_a_body_that_is_none_is_refused_in_a_sentence(duet, path, body):
    app = server.application(server.Service(duet), SHORT)
    from starlette.testclient import TestClient

    client = TestClient(app, base_url="http://127.0.0.1")  # it raises what the app does not handle
    found = client.post(f"/{path}", content=body, headers={"Content-Type": "application/json"})
    assert found.status_code == 400
    assert found.text.isprintable()


@pytest.mark.parametrize(
    "change", [{"new_tokens": 10**30}, {"new_tokens": 2**21}, {"strength": float("nan")}]
)
def test_settings_beyond_all_bounds_are_refused(change):
    with pytest.raises(UserError, match="out of range"):
        Settings(**change)


# What is made in the background


def test_the_background_goes_on_after_failures_and_leaves_what_nobody_hears():
    background, heard, made = Background(), [], []
    done = threading.Event()

    def fails():
        yield Said("original", "a")
        raise RuntimeError("the bug of this test")

    def exhausts():
        yield Said("original", "a")
        raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")

    def counts():
        for n in range(9):
            made.append(n)
            yield Said("original", str(n))

    def deliver(event):
        heard.append(event)

    background.ask(fails, deliver)
    background.ask(counts, deliver, lambda: True)
    background.ask(counts, deliver, lambda: len(made) == 3)
    background.ask(counts, lambda event: done.set() if isinstance(event, Ended) else None)
    assert done.wait(10)
    ends = [event for event in heard if isinstance(event, Ended)]
    assert [type(end.error) for end in ends] == [RuntimeError, type(None), type(None)]
    full = queue.SimpleQueue()
    background.ask(exhausts, full.put)
    assert full.get(timeout=10) == Said("original", "a")
    error = full.get(timeout=10).error
    assert isinstance(error, UserError)
    assert "Memory ran out: ask for fewer new tokens" in str(error)
    assert made == [0, 1, 2, *range(9)]


# The terminal


def test_a_saved_conversation_is_ones_own_and_nothing_is_written_over(duet, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    session = Session(duet, SHORT, Console(file=open(os.devnull, "w")))  # noqa: PTH123, SIM115
    session.take("the cat sat")
    session.take("/save talk.json")
    assert stat.S_IMODE((tmp_path / "talk.json").stat().st_mode) == 0o600
    (tmp_path / "there.md").write_text("mine")
    (tmp_path / "link.md").symlink_to("nothing")
    (tmp_path / "folder.md").mkdir()
    for name in ("talk.json", "there.md", "link.md", "folder.md", "x" * 300):
        with pytest.raises(UserError):
            session.take(f"/save {name}")
    assert (tmp_path / "there.md").read_text() == "mine"
    assert not (tmp_path / "nothing").exists()


def test_a_line_that_is_no_text_is_said(duet):
    session = Session(duet, SHORT, Console(file=open(os.devnull, "w")))  # noqa: PTH123, SIM115
    for line in ("caf\udce9", "/pre-prompt \ud800", "/\x1b[2J", "/seed \x1b[2J", "/new-tokens 1e9"):
        with pytest.raises(UserError) as found:
            session.take(line)
        assert str(found.value).isprintable()


COMMAND = [sys.executable, "-m", "sordino", "chat", "llama", "x.safetensors", "--scorer", "none"]


@pytest.mark.slow
def test_a_file_with_bytes_that_are_no_text_is_read_to_its_end(here):
    asked = subprocess.run(
        [*COMMAND, "--terminal", "--new-tokens", "4"],
        cwd=here,
        input=b"caf\xe9\nthe cat sat\n/quit\n",
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert asked.returncode == 0
    assert b"not valid UTF-8" in asked.stdout
    assert b"Quiet" in asked.stdout
    assert b"Traceback" not in asked.stderr


@pytest.mark.slow
def test_a_second_ctrl_c_ends_the_terminal_at_once(here):
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, "--terminal", "--new-tokens", "200", "--plain", "--temperature", "0"],
        cwd=here,
        stdin=theirs,
        stdout=theirs,
        stderr=subprocess.DEVNULL,
        preexec_fn=_own_terminal,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100", "LINES": "40"},
    )
    os.close(theirs)
    screen = b""
    try:
        while b"\n> " not in screen:
            screen += os.read(ours, 65536)
        os.write(ours, b"the cat sat\n")
        screen = b""
        while b"Quiet" not in screen:
            screen += os.read(ours, 65536)
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGINT)
        time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=10) in (0, 130)
    finally:
        process.kill()
        os.close(ours)


def _own_terminal():
    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@pytest.mark.slow
def test_ctrl_c_ends_the_page_while_nothing_can_be_stopped(here, tmp_path):
    """A scorer that does not come back, as a judge may that is asked over the network."""
    script = tmp_path / "stuck.py"
    script.write_text(
        "import time\n"
        "import sordino.chatting.duet as duet\n"
        "duet.judge_answer = lambda *_: time.sleep(999)\n"
        "from sordino.cli.app import main\n"
        "main()\n"
    )
    process = subprocess.Popen(
        [sys.executable, str(script), *COMMAND[3:], "--no-open", "--port", "0"],
        cwd=here,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        url = process.stdout.readline().split()[0]
        with requests.post(url + "answer", json=wanted(), stream=True, timeout=60) as said:
            next(said.iter_lines())
            time.sleep(1)
            process.send_signal(signal.SIGINT)
            _, told = process.communicate(timeout=10)
        assert process.returncode == 0
        assert told.endswith("ended\n")
        assert "Traceback" not in told
    finally:
        process.kill()
