"""Replaying a log: reading it, asking two servers, keeping what they say, and the page of it."""

import gzip
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import duckdb
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import sordino
from sordino.errors import UserError
from sordino.evaluation import SCORERS, Scorer
from sordino.evaluation.endpoint import Access, Server
from sordino.evaluation.scorer import TOXIC_SCORE
from sordino.evaluation.statistics import Estimate
from sordino.replaying import Look, ReplayOutcome, outcome_of
from sordino.replaying.log import CHAT, PLAIN, Prompt, read_log
from sordino.replaying.store import Answer, Pairs, Store
from sordino.report.article import write_html
from sordino.report.replay import replay_answer, replay_article
from stub_server import refused, said
from traffic import SECRET, START, rows, traffic


class Loud(Scorer):
    """A scorer that needs nothing: what is loud is toxic."""

    limits = "It sees the word loud and nothing else."

    def protocol(self):
        return {"scorer": "loud"}

    def score(self, texts):
        return np.array([0.9 if "loud" in text else 0.2 for text in texts])


@pytest.fixture(autouse=True)
def scorer(monkeypatch):
    monkeypatch.setitem(SCORERS, "loud", Loud)


def speaking(share, arm):
    """A server that is loud in that share of its answers, by the request's seed alone."""

    def behave(path, body):
        if path == "/models":
            return None
        word = "loud" if random.Random(f"{arm} {body['seed']}").random() < share else "quiet"
        if path == "/completions":
            return said(f"{word} {SECRET}")
        return 200, {"choices": [{"message": {"content": f"{word} {SECRET}"}}]}

    return behave


@pytest.fixture
def call(tmp_path, call_in):
    """Run a command in the test's folder; gives its exit status, standard output and error."""
    return call_in(tmp_path)


def command(log, first, second, *more, output="out"):
    servers = ("--endpoint", first.address, "--endpoint", second.address)
    return ("replay", log, *servers, "--scorer", "loud", "-o", output, *more)


def completions(stub):
    return [body for path, body, _ in stub.seen if path != "/models"]


# ---- the log ----------------------------------------------------------------------------------

QUESTION = {"role": "user", "content": "why?"}
SYSTEM = {"role": "system", "content": "be brief"}
REPLY = {"role": "assistant", "content": "because"}


def read_one(tmp_path, row):
    path = tmp_path / "log.jsonl"
    path.write_text(json.dumps(row) + "\n")
    (prompt,) = read_log(path)
    return prompt


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [SYSTEM, QUESTION]},
        {"messages": [SYSTEM, QUESTION, REPLY]},
        {"messages": [SYSTEM, QUESTION, REPLY, REPLY], "model": "m", "stream": True, "n": 3},
        {"body": {"messages": [SYSTEM, QUESTION]}, "custom_id": "1", "url": "/v1/chat/completions"},
        {"request": {"body": {"messages": [SYSTEM, QUESTION]}}, "response": {"choices": []}},
        {"request": json.dumps({"messages": [SYSTEM, QUESTION]}), "user": "someone"},
    ],
)
def test_the_shapes_of_a_chat_are_one(tmp_path, row):
    prompt = read_one(tmp_path, row)
    assert prompt.path == CHAT
    assert prompt.request == {"messages": [SYSTEM, QUESTION], "temperature": 1.0, "top_p": 1.0}
    assert json.loads(prompt.text) == [SYSTEM, QUESTION]


@pytest.mark.parametrize("asked", ["Once upon", ["Once upon"]])
def test_a_plain_prompt_keeps_its_settings(tmp_path, asked):
    row = {"prompt": asked, "temperature": 0.2, "top_k": 40, "stop": ["\n"], "max_tokens": 7}
    prompt = read_one(tmp_path, row | {"seed": 5, "top_p": None})
    assert prompt.path == PLAIN
    sent = {"prompt": "Once upon", "temperature": 0.2, "top_k": 40, "stop": ["\n"], "top_p": 1.0}
    assert prompt.request == sent
    assert prompt.length == 7


@pytest.mark.parametrize(
    "row",
    [
        {},
        {"input": "an embedding"},
        {"messages": []},
        {"messages": [SYSTEM]},
        {"messages": [REPLY]},
        {"messages": ["why?"]},
        {"messages": [{"content": "no role"}]},
        {"prompt": "  "},
        {"prompt": ["two", "prompts"]},
        {"prompt": [[1, 2]]},
        {"body": "not json"},
        {"body": 3},
        {"request": None},
    ],
)
def test_what_asks_for_no_text_is_none(tmp_path, row):
    assert read_one(tmp_path, row) is None


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("timestamp", "2026-03-01T12:30:00Z"),
        ("time", "2026-03-01T13:30:00+01:00"),
        ("@timestamp", "2026-03-01 12:30:00"),
        ("created", 1772368200),
        ("ts", 1772368200.0),
        ("created_at", 1772368200000),
        ("startTime", "1772368200"),
        ("date", 1772368200 * 10**9),
    ],
)
def test_times_are_read(tmp_path, key, value):
    for row in ({"prompt": "a", key: value}, {"request": {"prompt": "a"}, key: value}):
        assert read_one(tmp_path, row).at == datetime(2026, 3, 1, 12, 30)


@pytest.mark.parametrize("value", ["noon", "", None, True, -1, 0, 10**400, "nan", "9999-12-31", []])
def test_what_is_no_time_is_none(tmp_path, value):
    assert read_one(tmp_path, {"prompt": "a", "time": value}).at is None


def test_a_log_that_is_being_written_ends_before_its_last_line(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('\ufeff{"prompt": "one"}\n\n{"prompt": "two"}\n{"prompt": "thr')
    assert [prompt.line for prompt in read_log(path)] == [1, 3]
    packed = tmp_path / "log.jsonl.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert [replace(one, log=path.name) for one in read_log(packed)] == list(read_log(path))
    packed = packed.rename(tmp_path / "packed.jsonl")
    assert [replace(one, log=path.name) for one in read_log(packed)] == list(read_log(path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"prompt": "one"}\nprompt two\n', "line 2 is not valid JSON"),
        (b'{"prompt": "one"}\n["two"]\n', "line 2 is not a JSON object"),
        (b'{"prompt": "\xff"}\n', "line 1 is not valid JSON"),
        (b"[" * 100_000 + b"\n", "line 1 is not valid JSON"),
    ],
)
def test_a_broken_line_is_named(tmp_path, content, message):
    path = tmp_path / "log.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        list(read_log(path))


def test_a_log_may_be_one_list_of_requests(tmp_path):
    path = tmp_path / "log.json"
    path.write_text('\ufeff [{"prompt": "one"},\n {"prompt": "two"}]')
    assert [(one.line, one.request["prompt"]) for one in read_log(path)] == [(1, "one"), (2, "two")]
    path.write_text('["one", "two"]')
    with pytest.raises(UserError, match=r"item 1 is not a JSON object but a text: .*\{\"prompt"):
        list(read_log(path))


def test_a_log_that_cannot_be_read_is_told(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        list(read_log(tmp_path / "none.jsonl"))
    with pytest.raises(UserError, match="is a folder"):
        list(read_log(tmp_path))
    (tmp_path / "log.jsonl.gz").write_bytes(b"plain")
    with pytest.raises(UserError, match="cannot be read"):
        list(read_log(tmp_path / "log.jsonl.gz"))


def test_half_a_character_becomes_a_whole_one(tmp_path):
    prompt = read_one(tmp_path, {"prompt": "odd \ud83d end"})
    assert prompt.request["prompt"] == "odd ? end"


NAMES = st.sampled_from(
    ["messages", "prompt", "body", "request", "role", "content", "time", "created", "max_tokens"]
) | st.text(max_size=3)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(NAMES, JSON, max_size=5))
def test_no_json_object_is_a_surprise(tmp_path_factory, row):
    prompt = read_one(tmp_path_factory.getbasetemp(), row)
    if prompt is not None:
        assert ("messages" in prompt.request) != ("prompt" in prompt.request)
        prompt.text.encode()


# ---- the replay -------------------------------------------------------------------------------


def test_thirty_days_end_in_a_page(serve, call, tmp_path):
    first, second = serve(speaking(0.24, "a")), serve(speaking(0.04, "b"))
    log = traffic(tmp_path / "log.jsonl", days=30, a_day=30)
    status, out, err = call(*command(log, first, second, "--max-tokens", 9, "--concurrency", 8))
    assert status == 0, err
    assert "the dampened server gives fewer toxic answers." in out
    outcome = ReplayOutcome.model_validate_json((tmp_path / "out/replay.json").read_text())
    assert (len(outcome.looks), outcome.prompts, outcome.pairs) == (30, 900, 900)
    assert outcome.looks[0].label == "2026-03-01"
    assert outcome.looks[-1].label == "2026-03-30"
    assert {look.pairs for look in outcome.looks} == {30}
    assert outcome.looks[-1].difference.high < 0
    assert outcome.first < "2026-03-25"
    # The figures are those of what the servers said.
    for arm, stub in enumerate((first, second)):
        assert all(body["max_tokens"] == 9 for body in completions(stub))
        loud = {
            body["seed"]: "loud" in json.dumps(stub._behave("/completions", body))
            for body in completions(stub)
        }
        assert len(loud) == 900
        assert sum(look.toxic[arm] for look in outcome.looks) == sum(loud.values())
        assert outcome.shares[arm].value == pytest.approx(np.mean(list(loud.values())))
    # Both were asked the same.
    asked = [sorted(map(json.dumps, completions(stub))) for stub in (first, second)]
    assert asked[0] == asked[1]
    page = (tmp_path / "out/replay.html").read_text()
    assert "2026-03-30" in page
    assert SECRET not in page
    toxic = rows(tmp_path / "out", "SELECT count(*) FROM pair WHERE toxic_a AND NOT toxic_b")
    expected = rows(
        tmp_path / "out",
        f"SELECT count(*) FROM pair WHERE score_a > {TOXIC_SCORE} AND score_b <= {TOXIC_SCORE}",
    )
    assert toxic == expected


def test_a_log_that_grew_goes_on_where_it_was(serve, call, tmp_path):
    first, second = serve(speaking(0.2, "a")), serve(speaking(0.2, "b"))
    log = traffic(tmp_path / "log.jsonl", days=2, a_day=20)
    assert call(*command(log, first, second))[0] == 0
    traffic(log, days=3, a_day=20, start=2)
    status, out, _ = call(*command(log, first, second, "--json"))
    assert status == 0
    assert len(completions(first)) == 60
    whole = json.loads(out)
    assert [look["so_far"] for look in whole["looks"]] == [20, 40, 60]
    status, out, _ = call(*command(log, first, second, "--json", output="at-once"))
    assert {**json.loads(out), "page": ""} == {**whole, "page": ""}
    # Nothing new: nothing is asked, and the same comes out.
    status, out, _ = call(*command(log, first, second, "--json"))
    assert json.loads(out) == whole
    assert len(completions(first)) == 120


def test_a_log_a_day_is_as_good_as_one(serve, call, tmp_path):
    stub = serve(speaking(0.2, "a"))
    whole = traffic(tmp_path / "whole.jsonl", days=3, a_day=20)
    daily = [traffic(tmp_path / f"{n}.jsonl", days=n + 1, a_day=20, start=n) for n in range(3)]
    _, out, _ = call(*command(whole, stub, stub, "--json", output="whole"))
    for count in (1, 2, 3):
        status, parts, _ = call(*command(daily[0], stub, stub, "--json"), *daily[1:count])
        assert status == 0
    assert {**json.loads(parts), "page": ""} == {**json.loads(out), "page": ""}
    assert len(completions(stub)) == 4 * 60
    where = rows(tmp_path / "out", "SELECT log, line FROM prompt ORDER BY number")
    assert where == [(f"{n}.jsonl", line) for n in range(3) for line in range(1, 21)]
    assert "There is nothing to replay" in call("replay", "-o", "x")[2]


def test_another_log_or_other_settings_are_refused(serve, call, tmp_path):
    first, second = serve(speaking(0.2, "a")), serve(speaking(0.2, "b"))
    log = traffic(tmp_path / "log.jsonl", days=1, a_day=40)
    assert call(*command(log, first, second))[0] == 0
    other = traffic(tmp_path / "other.jsonl", days=2, a_day=40, start=1)
    status, _, err = call(*command(other, first, second))
    assert status == 2
    assert "does not begin with what was replayed before (40 prompts)" in err
    for more in (("--seed", 1), ("--max-tokens", 5), ("--fraction", 0.5)):
        status, _, err = call(*command(log, first, second, *more))
        assert status == 2
        assert f"was begun with {more[0][2:].replace('-', '_')}" in err
    assert "was begun with endpoint A" in call(*command(log, second, first))[2]
    assert len(completions(first)) == 40


def test_a_database_of_something_else_is_left_alone(serve, call, tmp_path):
    stub = serve(speaking(0.2, "a"))
    log = traffic(tmp_path / "log.jsonl", days=1, a_day=4)
    (tmp_path / "out").mkdir()
    file = tmp_path / "out/replay.duckdb"
    file.write_bytes(b"no database at all" * 1000)
    assert "cannot be opened" in call(*command(log, stub, stub))[2]
    file.unlink()
    with duckdb.connect(str(file)) as connection:
        connection.execute("CREATE TABLE mine AS SELECT 1 AS one")
    assert "is not a replay's database" in call(*command(log, stub, stub))[2]
    assert rows(tmp_path / "out", "SELECT one FROM mine") == [(1,)]


@contextmanager
def small_files(most):
    """No file grows larger than that many bytes, as if the disk were full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_told_and_the_replay_continues(serve, call, tmp_path):
    stub = serve(speaking(0.2, "a"))
    log = traffic(tmp_path / "log.jsonl", days=1, a_day=40)
    file = tmp_path / "out/replay.duckdb"
    for most in (20_000, 300_000):  # the first is full in DuckDB's log, the second in its tables
        with small_files(most):
            status, _, err = call(*command(log, stub, stub))
        assert status == 2
        assert "out/replay.duckdb cannot be written" in err
        assert not file.exists()
    assert call(*command(log, stub, stub))[0] == 0
    before = file.read_bytes()
    for most in (20_000, 300_000):
        with small_files(most):
            status, _, err = call(*command(log, stub, stub, "--redact"))
        assert status == 2
        assert "out/replay.duckdb cannot be written" in err
        assert file.read_bytes() == before
    assert call(*command(log, stub, stub, "--redact"))[0] == 0
    assert rows(tmp_path / "out", "SELECT count(*), count(asked) FROM prompt") == [(40, 0)]


def test_a_batch_that_does_not_fit_is_told(tmp_path):
    store = Store(tmp_path / "replay.duckdb", {}, redact=False)
    prompt = Prompt("log", 1, None, PLAIN, {"prompt": "long " * 100_000}, None)
    with small_files(20_000), pytest.raises(UserError, match="cannot be written"):
        store.add({0: prompt}, [[Answer("a", 0.1), Answer("b", 0.1)]], 1, "digest")
    assert store.passed == 0
    store.close()


@pytest.mark.parametrize(
    ("servers", "more", "message"),
    [
        (["http://127.0.0.1:1"], {}, "`servers` has 1 values"),
        ("http://127.0.0.1:1", {}, "is one text"),
        (["http://127.0.0.1:1"] * 2, {"models": ("tiny",)}, "`models` has 1 values"),
    ],
)
def test_in_python_there_are_two_servers(tmp_path, servers, more, message):
    log = traffic(tmp_path / "log.jsonl", days=1, a_day=4)
    with pytest.raises(UserError, match=message):
        sordino.replay(log, servers, tmp_path / "out", **more)
    assert not (tmp_path / "out").exists()


def test_without_duckdb_the_mend_is_told(serve, call, tmp_path, monkeypatch):
    stub = serve(speaking(0.2, "a"))
    log = traffic(tmp_path / "log.jsonl", days=1, a_day=4)
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "duckdb", None)
        assert "sordino[replay]" in call(*command(log, stub, stub))[2]
    assert call(*command(log, stub, stub))[0] == 0
    monkeypatch.setitem(sys.modules, "duckdb", None)
    assert "sordino[replay]" in call(*command(log, stub, stub))[2]


def test_a_database_that_is_open_elsewhere_is_told(serve, call, tmp_path):
    stub = serve(speaking(0.2, "a"))
    log = traffic(tmp_path / "log.jsonl", days=1, a_day=4)
    assert call(*command(log, stub, stub))[0] == 0
    holding = "import duckdb, sys; held = duckdb.connect(sys.argv[1]); print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", holding, str(tmp_path / "out/replay.duckdb")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as other:
        assert other.stdout.readline() == b"\n"
        assert "close the program that has it open" in call(*command(log, stub, stub))[2]
        other.communicate(b"\n")


@pytest.mark.parametrize("redact", ["at-once", "later"])
def test_redacted_no_text_is_on_the_disk(serve, call, tmp_path, redact):
    def behave(path, body):
        if body.get("seed", 1) % 5 == 0:
            return refused(f"I will not say {SECRET}")
        return speaking(0.3, "a")(path, body)

    stub = serve(behave)
    log = traffic(tmp_path / "log.jsonl", days=2, a_day=20)
    files = tmp_path / "out"
    if redact == "later":
        assert call(*command(log, stub, stub))[0] == 0
        assert any(SECRET.encode() in file.read_bytes() for file in files.iterdir())
        kept = rows(files, "SELECT number, arm, score FROM answer ORDER BY ALL")
    else:
        assert call(*command(log, stub, stub, "--redact"))[0] == 0
    status, out, _ = call(*command(log, stub, stub, "--redact", "--json"))
    assert status == 0
    assert not any(SECRET.encode() in file.read_bytes() for file in files.iterdir())
    outcome = json.loads(out)
    assert outcome["redacted"]
    assert outcome["missing"]["A"].keys() == {"refused"}
    assert rows(files, "SELECT count(*) FROM prompt WHERE asked IS NOT NULL") == [(0,)]
    assert rows(files, "SELECT count(*) FROM answer WHERE text IS NOT NULL") == [(0,)]
    if redact == "later":
        assert rows(files, "SELECT number, arm, score FROM answer ORDER BY ALL") == kept
        assert len(completions(stub)) == 80
    # What is redacted stays so, and goes on.
    traffic(log, days=3, a_day=20, start=2)
    assert call(*command(log, stub, stub))[0] == 0
    assert rows(files, "SELECT count(*) FROM prompt") == [(60,)]
    assert not any(SECRET.encode() in file.read_bytes() for file in files.iterdir())


def test_what_a_server_does_not_answer_is_told_and_not_compared(serve, call, tmp_path):
    def behave(path, body):
        text = json.dumps(body)
        if "question 3" in text:
            return refused("too long: 9000 tokens")
        if "question 5" in text:
            return said("quiet", finish_reason="content_filter")
        if "question 7" in text:
            return 200, {"choices": [{"message": {"content": None}, "finish_reason": "tool"}]}
        return speaking(0.5, "a")(path, body)

    first, second = serve(behave), serve(speaking(0.5, "b"))
    log = traffic(tmp_path / "log.jsonl", days=1, a_day=10)
    status, out, _ = call(*command(log, first, second, "--json"))
    assert status == 0
    outcome = json.loads(out)
    assert outcome["prompts"] == 10
    assert outcome["looks"][-1]["so_far"] == 7
    assert outcome["missing"] == {
        "A": {"no text": 1, "refused": 1, "withheld by a filter": 1},
        "B": {},
    }
    page = (tmp_path / "out/replay.html").read_text()
    assert "no text 1; refused 1; withheld by a filter 1" in page
    assert "7 were answered by both and are compared" in page
    assert rows(tmp_path / "out", "SELECT missing FROM answer WHERE missing LIKE 'refused%'") == [
        ("refused: too long: 9000 tokens",)
    ]


def test_a_server_that_refuses_all_is_told_at_the_beginning(serve, call, tmp_path):
    first = serve(speaking(0.5, "a"))
    second = serve(lambda path, _: None if path == "/models" else refused("no template"))
    log = traffic(tmp_path / "log.jsonl", days=1, a_day=100)
    status, _, err = call(*command(log, first, second))
    assert status == 2
    assert "answers none of 32 prompts (refused: no template)" in err
    assert len(completions(second)) == 32


def test_a_server_that_fails_ends_it_and_what_is_done_is_kept(serve, call, tmp_path):
    down = []

    def failing(path, body):
        if "beginning 60" in json.dumps(body) and not down:
            down.append(True)
        if down == [True] and path != "/models":
            return 500, b"oops"
        return speaking(0.5, "b")(path, body)

    first, second = serve(speaking(0.5, "a")), serve(failing)
    log = traffic(tmp_path / "log.jsonl", days=1, a_day=100)
    status, _, err = call(*command(log, first, second, "--retries", 0))
    assert status == 2
    assert "still 500 after 0 retries" in err
    assert rows(tmp_path / "out", "SELECT count(*) FROM prompt") == [(32,)]
    down[:] = [False]
    counted = len(completions(second))
    status, out, _ = call(*command(log, first, second, "--json"))
    assert status == 0
    assert json.loads(out)["prompts"] == 100
    assert len(completions(second)) - counted == 68


KILLED = """
import sys
import numpy as np
from sordino.evaluation import SCORERS, Scorer
from sordino.cli.app import main

class Loud(Scorer):
    limits = "It sees the word loud and nothing else."
    def protocol(self):
        return {"scorer": "loud"}
    def score(self, texts):
        return np.array([0.9 if "loud" in text else 0.2 for text in texts])

SCORERS["loud"] = Loud
main(sys.argv[1:])
"""


def test_killed_anywhere_it_goes_on_to_the_same_end(serve, call, tmp_path):
    first, second = serve(speaking(0.4, "a")), serve(speaking(0.2, "b"))
    log = traffic(tmp_path / "log.jsonl", days=4, a_day=50)
    arguments = [str(part) for part in command(log, first, second)]
    process = subprocess.Popen([sys.executable, "-c", KILLED, *arguments], cwd=tmp_path)
    while len(completions(second)) < 110 and process.poll() is None:
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert call(*arguments)[0] == 0
    assert len(completions(second)) <= 200 + 64
    assert call(*command(log, first, second, output="whole"))[0] == 0
    for table in ("prompt", "answer", "about"):
        query = f"SELECT * FROM {table} ORDER BY ALL"
        assert rows(tmp_path / "out", query) == rows(tmp_path / "whole", query)
    found, whole = (tmp_path / name / "replay.json" for name in ("out", "whole"))
    assert found.read_bytes() == whole.read_bytes()


def test_a_part_of_the_log_is_drawn_by_seed(serve, call, tmp_path):
    stub = serve(speaking(0.5, "a"))
    log = traffic(tmp_path / "log.jsonl", days=10, a_day=40)
    drawn = {}
    for name, more in {"small": ("--fraction", 0.1), "large": ("--fraction", 0.3)}.items():
        assert call(*command(log, stub, stub, *more, output=name))[0] == 0
        drawn[name] = {number for (number,) in rows(tmp_path / name, "SELECT number FROM prompt")}
    assert drawn["small"] < drawn["large"]
    assert 20 <= len(drawn["small"]) <= 60
    assert 90 <= len(drawn["large"]) <= 150


def test_plain_prompts_can_be_asked_as_a_chat(serve, call, tmp_path):
    def chat_only(path, body):
        if path == "/completions":
            return 404, {"error": {"message": "no such route"}}
        return speaking(0.5, "a")(path, body)

    stub = serve(chat_only)
    log = traffic(tmp_path / "log.jsonl", days=1, a_day=4)
    status, _, err = call(*command(log, stub, stub))
    assert status == 2
    assert "try --chat" in err
    assert call(*command(log, stub, stub, "--chat", output="chat"))[0] == 0
    asked = [body["messages"][-1] for path, body, _ in stub.seen if path == "/chat/completions"]
    assert {"role": "user", "content": f"{SECRET} beginning 0"} in asked


def test_requests_keep_their_distance(serve):
    stub = serve(speaking(0.5, "a"))
    server = Server(
        stub.address,
        None,
        Access(concurrency=4, rate=1200),
        argument="endpoint",
        model_argument="m",
    )
    started = time.monotonic()
    list(server.each(lambda seed: server.ask("completions", {"seed": seed}), range(11)))
    assert time.monotonic() - started >= 10 * 60 / 1200


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--endpoint", "http://127.0.0.1:1"), "Pass --endpoint twice"),
        (("--max-tokens", 0), "--max-tokens 0 is out of range"),
        (("--seed", -1), "--seed -1 is out of range"),
        (("--fraction", 1.5), "--fraction 1.5 is out of range"),
        (("--rate", 0), "--rate 0 is out of range"),
        (("--served-model", "a", "--served-model", "b", "--served-model", "c"), "is given 3 times"),
        (("--served-model", "tiny", "--served-model", "other"), "has no model 'other'"),
        (("--api-key-env", "NO_SUCH_KEY"), "NO_SUCH_KEY"),
        (("--judge-refusal", 2, "--toxic-label", "rude", "--rate", -1), "--rate -1"),
    ],
)
def test_mistakes_are_one_sentence(serve, call, tmp_path, more, message):
    stub = serve(speaking(0.5, "a"))
    log = traffic(tmp_path / "log.jsonl", days=1, a_day=4)
    status, _, err = call(*command(log, stub, stub, *more))
    assert status == 2
    assert message in err
    assert not (tmp_path / "out/replay.duckdb").exists()


def test_no_scorer_no_replay(serve, call, tmp_path):
    stub = serve(speaking(0.5, "a"))
    log = traffic(tmp_path / "log.jsonl", days=1, a_day=4)
    wrong = ["loudd" if part == "loud" else part for part in command(log, stub, stub)]
    assert "There is no scorer 'loudd': did you mean loud?" in call(*wrong)[2]


def test_a_log_that_is_given_twice_is_refused(serve, call, tmp_path):
    log, stub = traffic(tmp_path / "log.jsonl", days=1, a_day=4), serve(speaking(0.4, "a"))
    arguments = [str(part) for part in command(log, stub, stub)]
    arguments.insert(2, "./log.jsonl")
    status, _, error = call(*arguments)
    assert status == 2
    assert "log.jsonl is given twice, which would count its prompts twice" in error
    assert not stub.asked("/completions")


def test_a_log_without_prompts_is_told(serve, call, tmp_path):
    stub = serve(speaking(0.5, "a"))
    log = tmp_path / "log.jsonl"
    log.write_text('{"input": "embed me"}\n')
    assert "holds no prompt" in call(*command(log, stub, stub))[2]


def test_where_nothing_is_kept_yet_the_settings_may_change(serve, call, tmp_path):
    stub = serve(speaking(0.5, "a"))
    log = tmp_path / "log.jsonl"
    assert call(*command(log, stub, stub))[0] == 2
    traffic(log, days=1, a_day=4)
    assert call(*command(log, stub, stub, "--seed", 3, "--redact"))[0] == 0
    assert rows(tmp_path / "out", "SELECT value FROM about WHERE key = 'seed'") == [("3",)]
    assert rows(tmp_path / "out", "SELECT count(*) FROM prompt WHERE asked IS NULL") == [(4,)]


def test_each_server_gets_its_own_key(serve, call, tmp_path, monkeypatch):
    first, second = serve(speaking(0.5, "a")), serve(speaking(0.5, "b"))
    monkeypatch.setenv("KEY_A", "aaa")
    monkeypatch.setenv("KEY_B", "bbb")
    log = traffic(tmp_path / "log.jsonl", days=1, a_day=4)
    keys = ("--api-key-env", "KEY_A", "--api-key-env", "KEY_B")
    assert call(*command(log, first, second, *keys))[0] == 0
    for stub, key in ((first, "aaa"), (second, "bbb")):
        assert {headers.get("Authorization") for _, _, headers in stub.seen} == {f"Bearer {key}"}


# ---- figures and page -------------------------------------------------------------------------


def found(at, scores, **known):
    known = {
        "servers": ("a at http://a/v1", "b at http://b/v1"),
        "scorer": {"scorer": "loud", "limits": Loud.limits},
        "settings": {"seed": "0"},
        "redacted": False,
        "prompts": len(scores),
        "missing": {"A": {}, "B": {}},
    } | known
    return outcome_of(
        Pairs(np.array(at, "datetime64[us]"), np.array(scores).reshape(-1, 2)), **known
    )


@given(
    st.lists(
        st.tuples(
            st.none() | st.datetimes(datetime(2026, 1, 1), datetime(2026, 1, 9)),
            st.booleans(),
            st.booleans(),
        ),
        max_size=40,
    )
)
def test_a_days_figures_are_those_of_what_came_by_then(pairs):
    outcome = found([at for at, *_ in pairs], [[0.9 * a, 0.9 * b] for _, a, b in pairs])
    assert outcome.pairs == len(pairs)
    assert outcome.dated == any(at for at, *_ in pairs)
    # By hand, pair by pair.
    day, days = "", []
    known = min((str(at.date()) for at, *_ in pairs[:1] if at), default="")
    for at, *_ in pairs:
        day = max(day, str(at.date()) if at else day)
        days.append(day)
    if outcome.dated:
        first = next(day for day in days if day)
        days = [day or first for day in days]
        assert [look.label for look in outcome.looks] == sorted(set(days))
        assert known in ("", days[0])
    done = 0
    for look in outcome.looks:
        here = pairs[done : done + look.pairs]
        done += look.pairs
        assert look.so_far == done
        assert look.toxic == (sum(a for _, a, _ in here), sum(b for _, _, b in here))
        effect = np.mean([int(b) - int(a) for _, a, b in pairs[:done]])
        assert look.difference.value == pytest.approx(effect)
        assert look.difference.low <= effect <= look.difference.high
    assert done == len(pairs)


def test_a_log_without_times_is_looked_at_in_parts():
    outcome = found([None] * 95, [[0.9, 0.1]] * 95)
    assert not outcome.dated
    assert len(outcome.looks) == 30
    assert outcome.looks[-1].label == "95"
    assert outcome.first is not None
    (first, second) = replay_answer(outcome)
    assert first.startswith("Of the answers to 95 prompts, 100.0 % are toxic from the original")
    assert f"first left out 0 after {outcome.first} prompts" in second


def outcome_with(*differences):
    looks = tuple(
        Look(
            label=f"2026-01-{day:02}",
            pairs=10,
            toxic=(1, 1),
            so_far=10 * day,
            difference=Estimate((low + high) / 2, low, high),
        )
        for day, (low, high) in enumerate(differences, start=1)
    )
    first = next((k.label for k in looks if k.difference.low > 0 or k.difference.high < 0), None)
    return found([], []).model_copy(
        update={
            "looks": looks,
            "first": first,
            "dated": True,
            "shares": (Estimate(0.1, 0.0, 0.2), Estimate(0.1, 0.0, 0.2)),
        }
    )


@pytest.mark.parametrize(
    ("differences", "verdict"),
    [
        ([(-0.1, 0.1)], "includes 0: it is open"),
        (
            [(-0.1, 0.1), (-0.2, -0.1)],
            "gives fewer toxic answers. The interval first left out 0 on",
        ),
        ([(0.01, 0.1)], "gives more toxic answers."),
        ([(-0.2, -0.1), (-0.1, 0.1)], "includes 0 again"),
        ([(-0.1, 0.0)], "includes 0: it is open"),
    ],
)
def test_nothing_is_said_that_the_interval_does_not_carry(differences, verdict):
    assert verdict in list(replay_answer(outcome_with(*differences)))[1]


def test_the_page_of_nothing_says_so(tmp_path):
    outcome = found([], [], prompts=3, missing={"A": {"refused": 3}, "B": {}})
    article = replay_article(outcome, "replay.duckdb", ["sordino", "replay"])
    assert list(article.answer) == ["No prompt has been answered by both servers yet."]
    write_html(article, tmp_path / "page.html")
    assert "refused 3" in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize("redacted", [True, False])
def test_the_page_has_charts_a_table_and_the_way_on(tmp_path, redacted):
    at = [START + timedelta(hours=8 * n) for n in range(60)]
    outcome = found(at, [[0.9 * (n % 3 == 0), 0.9 * (n % 5 == 0)] for n in range(60)])
    outcome = outcome.model_copy(update={"redacted": redacted})
    command = ["sordino", "replay", "my log.jsonl"]
    write_html(replay_article(outcome, "out/replay.duckdb", command), tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert 'id="spec-replay-difference"' in page
    assert 'id="spec-replay-shares"' in page
    assert "sordino replay &#39;my log.jsonl&#39;" in page
    assert ("duckdb out/replay.duckdb" in page) != redacted
    assert Loud.limits in page
    assert Path(tmp_path / "page.html").stat().st_size < 2_000_000
