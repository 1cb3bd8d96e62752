"""Progress: one bar on a terminal, whatever is nested in it, and lines with a rate and the time left."""

import io

import pytest

from jaxmlip.system import progress
from jaxmlip.system.console import PlainConsole, Telling, telling


@pytest.fixture
def terminal(monkeypatch):
    """A terminal in place of standard error, that keeps what is written."""
    made = PlainConsole(file=io.StringIO(), force_terminal=True, width=100)
    monkeypatch.setattr("jaxmlip.system.console.console", lambda **_: made)
    return made


def test_a_terminal_shows_one_bar_and_none_for_work_within(terminal):
    inner = range(5)
    within = [progress.track(inner, "inner work") is inner for _ in progress.track(range(3), "outer [work]")]
    assert within == [True] * 3
    shown = terminal.file.getvalue()
    assert "outer [work]" in shown
    assert "inner" not in shown
    assert progress.track(inner, "later work") is not inner  # the bar is gone


def test_a_bar_that_is_left_early_makes_room_for_the_next(terminal):
    bar = progress.track(range(3), "first work")
    next(bar)
    bar.close()
    assert list(progress.track(range(3), "second work")) == [0, 1, 2]
    assert "second work" in terminal.file.getvalue()


@pytest.mark.parametrize(
    ("counts", "seconds", "line"),
    [
        ((100, 50, 10), 2.0, "50 of 100 (50 %), 5 a second, 10 s left"),
        ((100, 90, 3), 3.0, "90 of 100 (90 %), 60 a minute, 10 s left"),
        ((1000, 400, 1), 1.0, "400 of 1,000 (40 %), 60 a minute, 10 min left"),
        ((10_000, 0, 0), 5.0, "0 of 10,000 (0 %)"),
        ((72_000, 36_000, 2), 1.0, "36,000 of 72,000 (50 %), 2 a second, 5 h left"),
        ((10_000, 9_000, 1), 864.0, "9,000 of 10,000 (90 %), 0.0694 a minute, 10 d left"),
        ((5, 5, 5), 1.0, "5 of 5 (100 %)"),
    ],
)
def test_a_line_tells_the_share_the_rate_and_the_time_left(counts, seconds, line):
    assert progress.pace(*counts, seconds) == line


def test_users_who_want_quiet_see_no_progress(terminal, capsys):
    with telling(Telling.QUIET):
        work = range(5)
        assert progress.track(work, "some work") is work
        with progress.paced(2, 0, "more work") as show:
            show(2, "done")
    assert terminal.file.getvalue() == ""
    assert capsys.readouterr().err == ""


def test_where_there_is_no_terminal_long_work_writes_a_line_now_and_then(monkeypatch, capsys):
    clock = iter(range(0, 1000, 20))  # each look at the clock finds 20 s more
    monkeypatch.setattr("jaxmlip.system.progress.time.monotonic", lambda: next(clock))
    assert list(progress.track("abcd", "letters")) == list("abcd")
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith("letters: 1 of 4 (25 %)")
    with telling(Telling.QUIET):
        assert list(progress.track("abcd", "letters")) == list("abcd")
    assert not capsys.readouterr().err


def test_what_comes_first_does_not_count_for_the_rate_once_there_is_more(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr("jaxmlip.system.progress.time.monotonic", lambda: now[0])
    times = {1: 60.0, 2: 62.0, 3: 64.0, 4: 96.0}  # the first compiles for a minute
    for done in progress.track(range(5), "some work"):
        now[0] = times.get(done + 1, 0)
    said = capsys.readouterr().err.splitlines()
    assert "1 of 5 (20 %), 1 a minute, 4 min left" in said[0]
    assert "4 of 5 (80 %), 5 a minute, 12 s left" in said[1]
    now[0] = 0.0
    with progress.paced(9, 4, "more work", every=30.0) as show:
        for now[0], done in ((60.0, 5), (70.0, 6), (100.0, 8)):
            show(done)
    said = capsys.readouterr().err.splitlines()
    assert "5 of 9 (55 %), 1 a minute, 4 min left" in said[0]
    assert "8 of 9 (88 %), 4.5 a minute, 13 s left" in said[1]


def test_short_work_writes_nothing_where_there_is_no_terminal(capsys):
    assert list(progress.track("abcd", "letters")) == list("abcd")
    assert not capsys.readouterr().err
