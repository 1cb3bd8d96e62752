"""A progress bar on standard error, for work that takes more than one step."""

from collections.abc import Iterable, Sized
from typing import TypeVar

T = TypeVar("T")


def track(items: Iterable[T], what: str) -> Iterable[T]:
    """`items`, with a bar on a terminal while they are worked through; nothing elsewhere."""
    if isinstance(items, Sized) and len(items) < 2:
        return items
    from rich.console import Console
    from rich.progress import track as rich_track

    console = Console(stderr=True)
    if not console.is_terminal:
        return items
    return rich_track(items, what, console=console, transient=True)
