"""A progress bar on standard error, for work that takes more than one step."""

from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

T = TypeVar("T")
_shown = False  # one bar at a time: work within work that has a bar shows none


def track(items: Iterable[T], what: str) -> Iterable[T]:
    """`items`, with a bar on a terminal while they are worked through; nothing elsewhere."""
    from rich.console import Console

    console = Console(stderr=True)
    short = isinstance(items, Sized) and len(items) < 2
    return items if _shown or short or not console.is_terminal else _with_bar(items, what, console)


def _with_bar(items: Iterable[T], what: str, console) -> Iterator[T]:
    from rich.progress import track as rich_track

    global _shown
    _shown = True
    try:
        yield from rich_track(items, what, console=console, transient=True)
    finally:
        _shown = False
