"""Servers that answer oddly, or mean harm, as a model, as a judge and in a replay."""

import gzip
import json
import os
import re
import resource
import shutil
import signal
import ssl
import stat
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from conftest import forked
from sordino.errors import UserError
from sordino.evaluation import (
    SCORERS,
    Diversity,
    Scorer,
    Toxicity,
    evaluate,
    transport,
)
from sordino.evaluation import endpoint as endpoint_module
from sordino.evaluation.answers import MalformedError
from sordino.evaluation.endpoint import BATCH_PROMPTS, Access, Endpoint, Server
from sordino.evaluation.scorers.judge import Judge
from sordino.models.generation import Sampling
from stub_server import refused, said
from traffic import SECRET, rows, traffic

KEY = "sk-0123456789/+abc"
QUICK = Access(timeout_s=0.5, retries=0)
SAMPLING = Sampling(new_tokens=5)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Answers may have a megabyte, so that a flood is short."""
    monkeypatch.setattr(transport, "MOST_BYTES", 2**20)


@pytest.fixture
def call(tmp_path, call_in):
    """Run a command in the test's folder; gives its exit status, standard output and error."""
    return call_in(tmp_path)


def chunks(handler):
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")


def flood(handler):
    chunks(handler)
    while True:
        handler.wfile.write(b"10000\r\n" + b" " * 65536 + b"\r\n")


def endless_line(handler):
    chunks(handler)
    while True:
        handler.wfile.write(b"0" * 65536)


def negative_piece(handler):
    chunks(handler)
    handler.wfile.write(b"-5\r\n[]\r\n0\r\n\r\n")


def drip(handler):
    chunks(handler)
    while True:
        handler.wfile.write(b"1\r\n \r\n")
        handler.wfile.flush()
        time.sleep(0.05)


BOMB = gzip.compress(bytes(2**24))


def bomb(handler, data=BOMB, coding="gzip"):
    # What closes without a word may be asked again, and then has no answer at all.
    lines = ("Connection: close", f"Content-Encoding: {coding}", f"Content-Length: {len(data)}")
    head = "\r\n".join(("HTTP/1.1 200 OK", *lines, "", ""))
    handler.wfile.write(head.encode() + data)


def nested_bomb(handler):
    bomb(handler, gzip.compress(BOMB), "gzip, gzip")


def bad_gzip(_):
    return 200, b"not gzip", {"Content-Encoding": "gzip"}


def dripping_headers(handler):
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
    while True:
        handler.wfile.write(b"X: y\r\n")
        handler.wfile.flush()
        time.sleep(0.05)


def torn(_):
    return 200, b'{"choices": [', {"Content-Length": "400", "Connection": "close"}


def answers(value):
    return lambda _: value


BEGUN = {
    "flood": (flood, "longer than 1 MiB"),
    "one line": (endless_line, "longer than 1 MiB|breaks off"),
    "negative": (negative_piece, "breaks off"),
    "drip": (drip, "not whole after 0.5 s"),
    "bomb": (bomb, "longer than 1 MiB"),
    "nested bomb": (nested_bomb, "longer than 1 MiB"),
    "bad gzip": (bad_gzip, "breaks off"),
    "torn": (torn, "breaks off"),
    "html": (answers((200, b"<html>hello</html>")), "not JSON: <html>hello"),
    "deep": (answers((200, b"[" * 200_000)), "not JSON"),
    "empty": (answers((200, {"choices": []})), "empty"),
    "null": (answers((200, {"choices": None})), "no choices"),
    "number": (answers((200, {"choices": [{"text": 1, "message": {"content": 1}}]})), "a int"),
}
"""Answers that begin and are of no use, with what is said of them."""

NEVER = {
    "headers": (dripping_headers, "no answer within 0.5 s|no whole answer"),
    "redirect": (
        answers((307, b"", {"Location": "http://127.0.0.2:9/steal"})),
        "redirects to 127.0.0.2:9 .307.",
    ),
    "odd redirect": (answers((302, b"", {"Location": "\x1b]0;x"})), "redirects to another address"),
    "teapot": (answers((418, b"teapot")), "418"),
}
"""Answers that end the work at once."""


def when(odd, good, *, path="/completions", asked=""):
    """A server that answers oddly where a word is in the request, and otherwise well."""

    def behave(where, body):
        if where.endswith(path) and asked in json.dumps(body):
            return odd if odd in RAW else odd(None)
        return good(where, body)

    return behave


RAW = (flood, endless_line, negative_piece, drip, bomb, nested_bomb, dripping_headers)


def speaking(path, body):
    if path == "/models":
        return None
    text = f"{SECRET} {body['seed']}"
    if path == "/completions":
        return said(*(f"{text} {k}" for k in range(body.get("n", 1))))
    return 200, {"choices": [{"message": {"content": text}, "finish_reason": "stop"}]}


def continued(served, count=2 * BATCH_PROMPTS, continuations=2):
    prompts = [f"prompt {number}." for number in range(count)]
    batches = served.generate(prompts, SAMPLING, seed=1, continuations=continuations)
    return [one for batch in batches for one in batch]


# ---- a model ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BEGUN)
def test_one_odd_answer_is_kept_with_its_reason(serve, name):
    odd, reason = BEGUN[name]
    served = Endpoint(serve(when(odd, speaking, asked="prompt 7.")).address, access=QUICK)
    written = continued(served)
    missing = [one for one in written if one.missing]
    assert [(one.prompt, one.number) for one in missing] == [(7, 0), (7, 1)]
    for one in missing:
        assert re.search(f"malformed: .*({reason})", one.missing)
        assert one.text == ""
    assert len(written) == 4 * BATCH_PROMPTS


@pytest.mark.parametrize("name", [*BEGUN, *NEVER])
def test_only_odd_answers_end_in_a_sentence_and_in_time(serve, name):
    odd, reason = (BEGUN | NEVER)[name]
    served = Endpoint(serve(when(odd, speaking)).address, access=QUICK)
    started = time.process_time()
    with pytest.raises(UserError, match=reason) as caught:
        continued(served)
    assert time.process_time() - started < 5
    assert str(caught.value).startswith("`endpoint=http://127.0.0.1:")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", [*BEGUN, *NEVER])
def test_an_odd_list_of_models_forbids_nothing_but_redirects(serve, name, capsys):
    odd, _ = (BEGUN | NEVER)[name]
    address = serve(when(odd, speaking, path="/models")).address
    if name in ("redirect", "odd redirect", "headers"):
        with pytest.raises(UserError):
            Endpoint(address, "some/model", access=QUICK)
        return
    assert Endpoint(address, "some/model", access=QUICK).name.startswith("some/model at ")
    assert "some/model" in capsys.readouterr().err
    with pytest.raises(UserError):
        Endpoint(address, access=QUICK)


@pytest.mark.parametrize(
    "listed",
    [
        {"data": [{"id": "openai/*"}]},
        {"data": [{"id": "*"}, {"id": "other"}]},
        {"data": [{"id": None}]},
        {"data": [{"id": "other"}, None]},
        {"data": []},
        {"data": None},
        {"object": "list"},
        [],
    ],
)
def test_a_list_that_is_not_whole_forbids_no_name(serve, listed, capsys):
    stub = serve(lambda path, body: (200, listed) if path == "/models" else speaking(path, body))
    served = Endpoint(stub.address, "openai/some-model")
    assert "is requested anyway" in capsys.readouterr().err
    assert len(continued(served, 2)) == 4
    assert {body["model"] for body in stub.asked("/completions")} == {"openai/some-model"}
    with pytest.raises(UserError, match=r"`Endpoint.model`|no list of models"):
        Endpoint(stub.address)


def test_a_malformed_answer_is_tried_again(serve):
    seen, lock = set(), threading.Lock()

    def behave(path, body):
        with lock:
            first = (key := json.dumps(body)) not in seen
            seen.add(key)
        return (200, b"<html>") if first and path == "/completions" else speaking(path, body)

    served = Endpoint(serve(behave).address, access=Access(timeout_s=1, retries=1))
    assert not any(one.missing for one in continued(served))


def test_answers_of_several_models_are_said_to_be_that(serve, capsys):
    def behave(path, body):
        if path == "/models":
            return None
        model = "small" if "prompt 3." in json.dumps(body) else "large"
        return 200, {**said("a", "b")[1], "model": model}

    stub = serve(behave)
    for access in (QUICK, Access(quote=False)):
        continued(Endpoint(stub.address, access=access))
        err = capsys.readouterr().err
        assert err.count("names more than one model in its answers to tiny") == 1
        assert ("large" in err) == ("small" in err) == access.quote
    stub._behave = lambda path, body: (
        None if path == "/models" else (200, {**said("a", "b")[1], "model": "tiny-2026-01-01"})
    )
    continued(Endpoint(stub.address))
    assert "more than one model" not in capsys.readouterr().err


class Loud(Scorer):
    """A scorer that needs nothing: what is loud is toxic."""

    limits = "It sees the word loud and nothing else."

    def protocol(self):
        return {"scorer": "loud"}

    def score(self, texts):
        return np.array([0.9 if "loud" in text else 0.2 for text in texts])


def test_what_is_missing_is_in_no_figure_and_reported(serve, tmp_path, monkeypatch):
    monkeypatch.setitem(SCORERS, "loud", Loud)
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("".join(f"prompt {number}.\n" for number in range(12)))

    def behave(path, body):
        if body.get("prompt") == "prompt 3.":
            return 200, {"choices": []}
        text = "loud" if body.get("prompt") == "prompt 4." else "hello"
        return None if path == "/models" else said(*(f"{text} {k}" for k in range(body["n"])))

    served = Endpoint(serve(behave).address, access=QUICK)
    measures = [
        Toxicity(str(prompts), continuations=2, scorer="loud"),
        Diversity(str(prompts), continuations=2),
    ]
    result = evaluate(served, measures=measures, output=tmp_path / "result.json")
    for name in ("toxicity", "diversity"):
        missing = result.figure(name, "missing")
        assert missing.after.value == pytest.approx(1 / 12)
    figure = result.figure("toxicity", "continuations.all")
    assert figure.n["prompts"] == 11
    assert figure.after.value == pytest.approx(1 / 11)
    assert result.figure("diversity", "words").n["prompts"] == 11
    (kept,) = [row for row in result.samples["toxicity"] if row["prompt"] == "prompt 3."]
    assert all("empty" in one["missing"] for one in kept["after"])


def test_all_prompts_without_all_continuations_end_in_a_sentence(serve, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("one\ntwo\n")

    def behave(path, body):
        choices = [{"index": 0, "text": "good"}, {"index": 1, "text": None}]
        return None if path == "/models" else (200, {"choices": choices})

    served = Endpoint(serve(behave).address, access=QUICK)
    with pytest.raises(UserError, match="no prompt has all its continuations"):
        evaluate(served, measures=[Toxicity(str(prompts), continuations=2, scorer="wordlist")])


def test_an_interrupt_does_not_wait_for_slow_answers(serve):
    held, asked = threading.Event(), threading.Event()

    def hold(path, body):
        if body:
            asked.set()
            held.wait(60)
        return speaking(path, body)

    server = Server(
        serve(hold).address, None, Access(timeout_s=60), argument="endpoint", model_argument="m"
    )
    results = server.each(lambda seed: server.ask("completions", {"seed": seed}), range(8))

    def interrupt():
        asked.wait()
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    # A shell starts what is in the background with interrupts ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=interrupt).start()
    try:
        started = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            next(results)
        results.close()
        assert time.monotonic() - started < 30  # half of what the answers take
    finally:
        held.set()
        signal.signal(signal.SIGINT, before)


def test_more_threads_than_there_are_is_one_sentence(serve, tmp_path):
    access = Access(concurrency=1024)
    server = Server(serve(speaking).address, None, access, argument="endpoint", model_argument="m")
    said = tmp_path / "said.txt"

    def ask():
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + 2**26  # room for the stacks of a few
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        try:
            list(server.each(len, ["a"]))
        except UserError as error:
            said.write_text(str(error))
        os._exit(0)  # some threads have started

    child = forked(ask)
    child.join(60)
    assert child.exitcode == 0
    assert said.read_text().startswith("`concurrency=1024` is more threads than this system gives")


# ---- a judge ----------------------------------------------------------------------------------


def judging(odd, asked="zebra"):
    def good(path, _):
        return None if path == "/models" else said_by_chat("0.25")

    return when(odd, good, path="/chat/completions", asked=asked)


def said_by_chat(text):
    return 200, {"choices": [{"message": {"content": text}, "finish_reason": "stop"}]}


@pytest.mark.parametrize("name", BEGUN)
def test_a_judge_that_answers_oddly_gives_no_score(serve, name):
    odd, reason = BEGUN[name]
    judge = Judge(serve(judging(odd)).address, access=QUICK)
    np.testing.assert_array_equal(judge.score(["good", "zebra", "good"]), [0.25, np.nan, 0.25])
    with pytest.raises(UserError, match=f"`scorer=.*({reason})"):
        Judge(serve(judging(odd, asked="")).address, access=QUICK)


def test_a_judges_thoughts_take_no_long_time(serve):
    stub = serve(lambda path, _: None if path == "/models" else said_by_chat("<think>" * 100_000))
    started = time.monotonic()
    with pytest.raises(UserError, match="cannot be a judge"):
        Judge(stub.address, access=QUICK)
    assert time.monotonic() - started < 3


# ---- a replay ---------------------------------------------------------------------------------


def command(log, first, second, *more, scorer="wordlist", output="out"):
    servers = ("--endpoint", first.address, "--endpoint", second.address)
    quick = ("--retries", 0, "--request-timeout", 0.5)
    return ("replay", log, *servers, "--scorer", scorer, "-o", output, *quick, *more)


@pytest.mark.parametrize("name", BEGUN)
def test_one_odd_answer_is_in_no_pair_of_a_replay(serve, call, tmp_path, name):
    log = traffic(tmp_path / "log.jsonl", days=1, a_day=40)
    odd = serve(when(BEGUN[name][0], speaking, path="", asked="question 7"))
    status, out, err = call(*command(log, serve(speaking), odd, "--json"))
    assert status == 0, err
    outcome = json.loads(out)
    assert outcome["missing"] == {"A": {}, "B": {"malformed": 1}}
    assert outcome["looks"][-1]["so_far"] == 39
    assert "malformed 1" in (tmp_path / "out/replay.html").read_text()
    kept = rows(tmp_path / "out", "SELECT missing FROM answer WHERE missing IS NOT NULL")
    assert kept[0][0].startswith("malformed: ")


def test_a_server_whose_answers_go_bad_stops_a_replay_that_goes_on(serve, call, tmp_path):
    bad = []

    def behave(path, body):
        if path != "/models" and ("beginning 40" in json.dumps(body) or bad):
            bad.append(1)
            return 200, b"<html>maintenance</html>"
        return speaking(path, body)

    first, second = serve(speaking), serve(behave)
    log = traffic(tmp_path / "log.jsonl", days=1, a_day=110)
    status, _, err = call(*command(log, first, second))
    assert status == 2
    assert "none of 32 prompts (malformed" in err
    done = rows(tmp_path / "out", "SELECT count(*) FROM prompt")[0][0]
    assert done in (32, 64)
    stopped = [body for body in second.seen if body[0] != "/models"]
    second._behave = speaking
    status, out, _ = call(*command(log, first, second, "--json"))
    assert status == 0
    assert json.loads(out)["prompts"] == 110
    assert len(stopped) == done + 32


def test_half_an_emoji_is_answered_and_counted(serve, call, tmp_path):
    def behave(path, body):
        if path == "/models":
            return None
        parts = [{"type": "text", "text": "cut \ud83d"}]
        held = {"message": {"content": parts}} if "chat" in path else {"text": "cut \ud83d\x00"}
        return 200, {"choices": [held]}

    log = traffic(tmp_path / "log.jsonl", days=1, a_day=4)
    status, _, err = call(*command(log, serve(speaking), serve(behave)))
    assert status == 0, err
    assert "4 answers of B held half a character" in err
    texts = {text for (text,) in rows(tmp_path / "out", "SELECT text_b FROM pair")}
    assert texts == {"cut �", "cut �\x00"}


def test_answers_that_the_judge_cannot_judge_are_in_no_pair(serve, call, tmp_path):
    log = traffic(tmp_path / "log.jsonl", days=1, a_day=10)
    judge = serve(judging(answers((200, {"choices": [None]})), asked="to be left"))
    first = serve(
        lambda path, body: (
            said_by_chat("to be left") if "question 3" in json.dumps(body) else speaking(path, body)
        )
    )
    status, out, err = call(*command(log, first, serve(speaking), "--json", scorer=judge.address))
    assert status == 0, err
    outcome = json.loads(out)
    assert outcome["missing"] == {"A": {"not judged": 1}, "B": {}}
    assert outcome["looks"][-1]["so_far"] == 9


def echoing(path, body):
    """A server whose every word quotes what it was sent."""
    if path == "/models":
        return None
    asked = json.dumps(body)
    kind = body["seed"] % 4
    if kind == 0:
        return refused(f"cannot take {asked}")
    if kind == 1:
        return 200, {"choices": [{"message": {"content": None}, "finish_reason": asked}]}
    if kind == 2:
        return 200, {"error": {"message": asked}}
    return 200, {"choices": [{"message": {"content": None, "refusal": asked}}]}


@pytest.mark.parametrize("judged", [False, True])
def test_redacted_no_server_is_quoted(serve, call, tmp_path, judged):
    log = traffic(tmp_path / "log.jsonl", days=1, a_day=40)
    mixed = serve(
        lambda path, body: (
            speaking if not body or json.dumps(body).find("ning 2") > 0 else echoing
        )(path, body)
    )
    judge = serve(judging(lambda _: refused(f"{SECRET} is what I was sent"), asked=SECRET))
    scorer = judge.address if judged else "wordlist"
    for servers in ((mixed, serve(speaking)), (serve(echoing), serve(echoing))):
        for more in ((), ("--json",)):
            said_out = call(*command(log, *servers, "--redact", *more, scorer=scorer))
            assert SECRET not in f"{said_out}"
    for file in tmp_path.rglob("out/*"):
        assert SECRET.encode() not in file.read_bytes()


def test_a_redacted_replay_stays_silent_without_the_flag(serve, call, tmp_path):
    log = traffic(tmp_path / "log.jsonl", days=1, a_day=4)
    stub = serve(speaking)
    assert call(*command(log, stub, stub, "--redact"))[0] == 0
    stub._behave = lambda path, body: speaking(path, body) if not body else (418, {"error": SECRET})
    traffic(log, days=2, a_day=4, start=1)
    status, _, err = call(*command(log, stub, stub))
    assert status == 2
    assert "418" in err
    assert SECRET not in err


@pytest.mark.parametrize("status", [200, 400, 401, 404, 418, 429, 500])
def test_the_key_is_never_repeated(serve, call, tmp_path, monkeypatch, status):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    escaped = "".join(f"\\u{ord(letter):04x}" for letter in KEY)
    log = traffic(tmp_path / "log.jsonl", days=1, a_day=2)
    for path in ("/models", ""):
        for body in ({"error": {"message": f"Bearer {KEY}"}}, escaped.encode()):
            odd = serve(
                lambda where, sent, path=path, body=body: (
                    (status, body) if where.endswith(path) else speaking(where, sent)
                )
            )
            end, out, err = call(*command(log, odd, serve(speaking), output="o"))
            assert end == 2
            assert KEY not in out + err
            assert escaped not in out + err


def test_a_model_called_like_the_key_is_not_shown(serve, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    name = f"\x1b[31m{KEY}"
    stub = serve(speaking, models=(name,))
    served = Endpoint(stub.address)
    assert KEY not in served.name + served.fingerprint
    assert served.name.isprintable()
    continued(served, 1)
    assert {body["model"] for body in stub.asked("/completions")} == {name}


def test_nothing_is_sent_where_a_redirect_points(serve, call, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    evil = serve(speaking)
    log = traffic(tmp_path / "log.jsonl", days=1, a_day=2)
    for status in (301, 302, 303, 307, 308):
        for path in ("/models", "completions"):
            odd = serve(
                lambda where, sent, path=path, status=status: (
                    (status, b"", {"Location": f"{evil.address}/x"})
                    if where.endswith(path)
                    else speaking(where, sent)
                )
            )
            end, _, err = call(*command(log, odd, serve(speaking), output="o"))
            assert end == 2
            assert evil.address.split("/")[2] in err
    assert not evil.seen


# ---- whose files ------------------------------------------------------------------------------


def modes(folder):
    return {path.name: stat.S_IMODE(path.stat().st_mode) for path in (folder, *folder.rglob("*"))}


def test_what_people_asked_is_its_owners_only(serve, call, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["sordino.replaying.replay"], "BATCH", 4)
    seen = {}

    def behave(path, body):
        if path != "/models":  # while it is being written
            seen.update({mode for mode in modes(tmp_path / "out").items() if mode[1] & 0o077})
        return speaking(path, body)

    before = os.umask(0)
    try:
        log = traffic(tmp_path / "log.jsonl", days=1, a_day=60)
        stub = serve(behave)
        assert call(*command(log, stub, stub, "--concurrency", 1))[0] == 0
        assert not seen
        assert not {mode for mode in modes(tmp_path / "out").values() if mode & 0o077}
        assert os.umask(0) == 0
        # A store that others could read is one's own again, and that is said.
        (tmp_path / "out/replay.duckdb").chmod(0o644)
        traffic(log, days=2, a_day=4, start=1)
        status, _, err = call(*command(log, stub, stub))
        assert status == 0
        assert "replay.duckdb could be read by others" in err
        assert not {mode for mode in modes(tmp_path / "out").values() if mode & 0o077}
    finally:
        os.umask(before)


@pytest.mark.parametrize("private", [False, True])
def test_a_result_is_as_private_as_the_prompts(serve, call, tmp_path, private):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("one\ntwo\n")
    prompts.chmod(0o600 if private else 0o644)
    before = os.umask(0o022)
    try:
        status, _, err = call(
            *("evaluate", "--endpoint", serve(speaking).address, "--measure", "toxicity"),
            *("--scorer", "wordlist", "--prompts", prompts, "--continuations", 1),
            *("-o", "result.json"),
        )
    finally:
        os.umask(before)
    assert status == 0, err
    found = {mode for name, mode in modes(tmp_path).items() if name.startswith("result")}
    assert found == {0o600 if private else 0o644}


# ---- addresses and ways -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    [
        "ftp://me:s3cret@host/v1",
        "http://me:s3cret@[::1/v1",
        "http://host/v1?api_key=s3cret",
        "http://me:s3cret@host/v1?x=1",
        "me:s3cret@host",
        "http://h\ud800st@s3cret",
    ],
)
def test_no_password_of_an_address_is_repeated(address):
    with pytest.raises(UserError) as caught:
        Endpoint(address)
    assert "s3cret" not in str(caught.value)
    str(caught.value).encode()


@pytest.mark.parametrize("address", ["http://a..b/v1", "http://" + "x" * 300, "http://h:99999/"])
def test_what_no_host_can_be_called_is_one_sentence(address):
    with pytest.raises(UserError, match="address"):
        Endpoint(address, access=QUICK)


def test_https_where_there_is_none_and_unknown_certificates(serve):
    address = serve(speaking).address
    with pytest.raises(UserError, match="no https there"):
        Endpoint(address.replace("http", "https"), access=QUICK)


@pytest.mark.parametrize(
    ("proxy", "message"),
    [
        ("socks5://me:s3cret@127.0.0.1:1", "is not an http proxy"),
        ("http://me:s3cret@127.0.0.1:1", "the proxy of the environment does not answer"),
        ("127.0.0.1:1", "the proxy of the environment does not answer"),
    ],
)
def test_a_proxy_that_is_none_is_one_sentence(monkeypatch, proxy, message):
    monkeypatch.setenv("http_proxy", proxy)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with pytest.raises(UserError, match=message) as caught:
        Endpoint("http://model.invalid/v1", access=QUICK)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("status", [407, 502])
def test_a_proxy_that_refuses_is_one_sentence(monkeypatch, scheme, status):
    """It is asked once for what cannot be reached at all: http's answers may be the server's."""
    asked = []

    class Refusing(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_CONNECT = do_GET

        def log_message(self, *_):
            pass

    proxy = ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
    threading.Thread(target=proxy.serve_forever, args=(0.02,), daemon=True).start()
    monkeypatch.setenv(f"{scheme}_proxy", f"http://me:s3cret@127.0.0.1:{proxy.server_port}")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.setattr(endpoint_module, "BACKOFF_S", 0.01)
    try:
        with pytest.raises(UserError, match=str(status)) as caught:
            Endpoint(f"{scheme}://model.invalid/v1", access=Access(timeout_s=5, retries=1))
    finally:
        proxy.shutdown()
        proxy.server_close()
    assert "s3cret" not in str(caught.value)
    if scheme == "https" or status == 407:
        assert "the proxy of the environment" in str(caught.value)
        assert len(asked) == 1


# ---- TLS --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A function that makes a self-signed certificate with its key, for a name and some days."""
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl here")

    def make(name, days=9):
        folder = tmp_path_factory.mktemp("tls")
        about = folder / "about"
        about.write_text(f"subjectAltName={name}\n")
        new = ("openssl", "req", "-new", "-newkey", "rsa:2048", "-nodes", "-keyout", "key")
        signed = ("openssl", "x509", "-req", "-in", "asked", "-signkey", "key", "-out", "signed")
        for line in (
            (*new, "-subj", "/CN=test", "-out", "asked"),
            (*signed, "-days", str(days), "-extfile", "about"),
        ):
            subprocess.run(line, cwd=folder, check=True, capture_output=True)
        return folder / "signed", folder / "key"

    return make


def secured(stub, certificate, needs_client=False):
    """The address of the stub behind TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    if needs_client:
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        context.verify_mode = ssl.CERT_REQUIRED
    # The handshake is the request's thread's, or a failed one would end the server.
    stub._server.socket = context.wrap_socket(
        stub._server.socket, server_side=True, do_handshake_on_connect=False
    )
    return stub.address.replace("http", "https")


@pytest.mark.parametrize(
    ("name", "days", "trusted", "message"),
    [
        ("IP:127.0.0.1", 9, True, None),
        ("IP:127.0.0.1", 9, False, "not trusted on this machine"),
        ("DNS:other.example", 9, True, "not valid .IP address mismatch"),
        ("IP:127.0.0.1", -1, True, "not valid .certificate has expired"),
    ],
)
def test_a_certificate_s_fault_is_named(
    serve, certificate, monkeypatch, name, days, trusted, message
):
    files = certificate(name, days)
    stub = serve(speaking)
    address = secured(stub, files)
    monkeypatch.setenv("SSL_CERT_FILE", str(files[0] if trusted else certificate(name)[0]))
    if message is None:
        assert continued(Endpoint(address, access=QUICK), 1)
        return
    with pytest.raises(UserError, match=message):
        Endpoint(address, access=QUICK)


def test_tls_that_fails_is_no_lack_of_tls(serve, certificate, monkeypatch):
    files = certificate("IP:127.0.0.1")
    monkeypatch.setenv("SSL_CERT_FILE", str(files[0]))
    with pytest.raises(UserError, match=r"no https connection in one try .*HANDSHAKE_FAILURE"):
        Endpoint(secured(serve(speaking), files, needs_client=True), access=QUICK)


def test_a_handshake_that_breaks_off_is_tried_again(serve, certificate, monkeypatch):
    files = certificate("IP:127.0.0.1")
    monkeypatch.setenv("SSL_CERT_FILE", str(files[0]))
    stub = serve(speaking)
    address = secured(stub, files)
    accept, calls = stub._server.get_request, []

    def break_first():
        made = accept()
        calls.append(1)
        if len(calls) == 1:
            plain = made[0].detach()  # without TLS's own goodbye
            os.close(plain)
            raise OSError("the first connection of this test")
        return made

    stub._server.get_request = break_first
    assert Endpoint(address, access=Access(timeout_s=5, retries=1)).name.startswith("tiny")
    assert len(calls) == 2


def test_ipv6_and_trailing_slashes():
    assert endpoint_module._base("http://[::1]:8080/v1//", "--endpoint") == "http://[::1]:8080/v1"
    assert endpoint_module._base(" http://h:1/ ", "--endpoint") == "http://h:1/v1"
    assert endpoint_module._is_loopback("[::1]")
    assert endpoint_module._is_loopback("127.8.8.8")
    assert not endpoint_module._is_loopback("example.org")


def test_a_dead_connection_is_no_malformed_answer(serve):
    stub = serve(lambda path, body: None if body else speaking(path, body))
    server = Server(stub.address, None, QUICK, argument="endpoint", model_argument="m")
    with pytest.raises(UserError, match="no whole answer"):
        server.ask("completions", {"seed": 1})
    stub._behave = lambda path, body: (200, {"choices": []})
    with pytest.raises(MalformedError):
        server.ask("completions", {"seed": 1})
