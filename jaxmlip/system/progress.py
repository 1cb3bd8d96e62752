"""Progress on standard error: a bar for work of several steps, lines with a rate for work of hours."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")
_shown = False  # one bar at a time: nested work shows none
EVERY = 30.0  # seconds between lines where standard error is no terminal


def track(items: Iterable[T], what: str, total: int | None = None) -> Iterable[T]:
    """Yields `items`, with a progress bar on standard error, unless the user wants quiet.

    Where that is no terminal, a line is written every EVERY seconds. `total` is their number, where they do
    not know it.
    """
    from jaxmlip.system.console import Telling, console, tells

    terminal = console(stderr=True)
    short = isinstance(items, Sized) and len(items) < 2
    if _shown or short or not tells(Telling.USUAL):
        return items
    if terminal.is_terminal:
        return _with_bar(items, what, total, terminal)
    return _with_lines(items, what, total)


def _with_lines(items: Iterable[T], what: str, total: int | None) -> Iterator[T]:
    from jaxmlip.system.console import note

    total = len(items) if total is None and isinstance(items, Sized) else total
    told = time.monotonic()
    rate = _Rate(0, told)
    with _alone():
        for done, item in enumerate(items):
            now = time.monotonic()
            lately = rate.lately(done, now)
            if total is not None and now - told >= EVERY:
                told = now
                note(f"{what}: {pace(total, done, *lately)}", stderr=True)
            yield item


def _with_bar(items: Iterable[T], what: str, total: int | None, terminal) -> Iterator[T]:
    from rich.markup import escape
    from rich.progress import track as rich_track

    from jaxmlip.system.borders import printable

    with _alone():
        yield from rich_track(items, escape(printable(what)), total, console=terminal, transient=True)


class _Rate:
    """How much was done in how long: without the first that came, once there are more, for it waits for
    programs to be compiled."""

    def __init__(self, done: int, now: float):
        self._start, self._first = (done, now), None

    def lately(self, done: int, now: float) -> tuple[int, float]:
        """What was done, and the seconds that it took, as `pace` wants them."""
        if self._first is None and done > self._start[0]:
            self._first = (done, now)
        since = self._first if self._first and done > self._first[0] else self._start
        return done - since[0], now - since[1]


@contextmanager
def _alone() -> Iterator[None]:
    """Keeps the progress of nested work from being shown."""
    global _shown
    before, _shown = _shown, True
    try:
        yield
    finally:
        _shown = before


@contextmanager
def paced(total: int, done: int, what: str, every: float = EVERY) -> Iterator[Callable[[int, str], None]]:
    """A function `show(done, words)` that tells how much of `total` is done, the rate, and the time left.

    `done` were there before; they do not count for the rate, nor does what comes first, once there is more:
    it waits for programs to be compiled. On a terminal one line is kept up to date, and
    work within shows no bars; elsewhere a line is written every `every` seconds. Nothing is told to users who
    want quiet.
    """
    from rich.live import Live
    from rich.text import Text

    from jaxmlip.system.borders import printable
    from jaxmlip.system.console import Telling, console, note, tells

    terminal, began, told, last = console(stderr=True), time.monotonic(), -every, -1
    rate = _Rate(done, began)

    def line(now: int, words: str) -> str:
        lately = rate.lately(now, time.monotonic())
        return f"{what}: {pace(total, now, *lately)}{words and f'; {words}'}"

    if terminal.is_terminal and tells(Telling.USUAL):
        with _alone(), Live(console=terminal, transient=True, auto_refresh=False) as live:
            yield lambda now, words="": live.update(Text(printable(line(now, words))), refresh=True)
        return

    def write(now: int, words: str = "") -> None:
        nonlocal told, last
        passed, text = time.monotonic() - began, line(now, words)
        if now != last and (passed - told >= every or now == total):
            told, last = passed, now
            note(text, stderr=True)

    yield write


def pace(total: int, done: int, lately: int, seconds: float) -> str:
    """A line on work of which `done` of `total` are there, `lately` of them made in so many `seconds`."""
    text = f"{done:,} of {total:,} ({100 * done // max(1, total)} %)"
    if lately and seconds > 0 and done < total:
        rate = lately / seconds
        unit, number = ("second", rate) if rate >= 2 else ("minute", 60 * rate)
        text += f", {number:.3g} a {unit}, {_duration((total - done) / rate)} left"
    return text


def _duration(seconds: float) -> str:
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.0f} s"
