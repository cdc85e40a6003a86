"""What progress says of rates and times."""

import pytest

from sordino import progress


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
