"""What progress says of rates and times."""

import logging
import sys
import warnings

import pytest

from sordino import progress
from sordino.cli.options import OutputOptions
from sordino.models.calls import quiet_transformers
from sordino.models.open import open_model
from tiny_gguf import tiny_gguf


@pytest.mark.parametrize(
    ("new", "elapsed", "said"),
    [
        (0, 0, "0 trials/s"),
        (0, 10, "0 trials/s"),
        (12_345, 1, "12,345 trials/s"),
        (15, 10, "1.5 trials/s"),
        (1, 30, "2.0 trials/min"),
        (1, 240, "15.0 trials/h"),
    ],
)
def test_a_slow_rate_is_told_by_the_minute_or_the_hour(new, elapsed, said):
    assert progress._rate(new, elapsed, "trials") == said


def test_lines_say_the_share_the_rate_and_the_time_left(capsys, monkeypatch):
    now = iter([0.0, 5.0, 240.0, 480.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(now))
    monkeypatch.setattr(progress, "is_live", lambda: False)
    with progress.track("tune", 8, "trials", done=2) as advance:
        advance(1)
        advance(3)
    said = capsys.readouterr().err.splitlines()
    assert said == ["tune:  75 %, 1.0 trials/min, 2:00 left", "tune: done in 8:00, 30.0 trials/h"]


def test_blocks_that_end_in_another_order_leave_nothing_hushed(capsys):
    """As those of two threads may."""
    first, second = progress.hushed(), progress.hushed()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    progress.note("hushed still")
    second.__exit__(None, None, None)
    progress.note("heard")
    assert capsys.readouterr().err == "heard\n"


def test_nothing_is_said_when_hushed(capsys):
    with progress.hushed(), progress.track("tune", 2, "trials") as advance:
        advance(1)
        progress.note("a line")
    assert capsys.readouterr().err == ""


def test_notes_are_said_in_other_words_inside_the_block(capsys):
    with progress.worded(str.upper):
        progress.note("loud")
    progress.note("plain")
    assert capsys.readouterr().err == "LOUD\nplain\n"


@pytest.mark.parametrize("json", [False, True])
def test_a_command_leaves_warnings_and_loggers_as_they_were(json):
    products = logging.getLogger("bitsandbytes")
    before = list(warnings.filters), products.level
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        with OutputOptions(json=json).in_force():
            warnings.warn("not said", stacklevel=1)
        warnings.warn("said", stacklevel=1)
    assert [str(one.message) for one in seen] == ["said"]
    assert (list(warnings.filters), products.level) == before


def test_loading_is_quiet_and_standard_error_stays(tmp_path, capsys):
    open_model(tiny_gguf(tmp_path / "model.gguf"), device="cpu")
    with quiet_transformers():
        print("another thread's line", file=sys.stderr)
    assert capsys.readouterr().err == "another thread's line\n"
