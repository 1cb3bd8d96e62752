"""A progress bar on standard error, for work that takes more than one step."""

from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

T = TypeVar("T")
_shown = False  # one bar at a time: nested work shows none


def track(items: Iterable[T], what: str, total: int | None = None) -> Iterable[T]:
    """Yields `items`, with a progress bar if standard error is a terminal.

    `total` is their number, where they do not know it.
    """
    from jaxmlip.system.console import console

    terminal = console(stderr=True)
    short = isinstance(items, Sized) and len(items) < 2
    return items if _shown or short or not terminal.is_terminal else _with_bar(items, what, total, terminal)


def _with_bar(items: Iterable[T], what: str, total: int | None, terminal) -> Iterator[T]:
    from rich.markup import escape
    from rich.progress import track as rich_track

    from jaxmlip.system.borders import printable

    global _shown
    _shown = True
    try:
        yield from rich_track(items, escape(printable(what)), total, console=terminal, transient=True)
    finally:
        _shown = False
