"""The border between files and this library: one kind of error for each kind of file, each in one line.

Names and values in a file may be anything. Messages show them cut, with control characters as escapes, so
that no file fills a screen or controls a terminal.
"""

from __future__ import annotations

import contextlib
import itertools
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

LONGEST = 320  # characters of a message, without the name of the file
ROOM = 200  # characters of a list within a message

# Errors that only bugs of this library cause, never a file.
OURS = (NameError, ImportError)

NESTED = 1000  # calls within calls: Python's own limit


class RefusedError(ValueError):
    """A file is refused. One line names its `place`, then what was found, what was needed, what to do."""

    def __init__(self, message: str, place: str | Path | None = None):
        self.text = one_line(message)
        super().__init__(self.text if place is None else f"{printable(str(place))}: {self.text}")


class CheckpointError(RefusedError):
    """A file is not the expected checkpoint. The message says what was found, needed, and to be done."""


class _Shallow:
    """The recursion limit while files are parsed, whatever other packages have set; for several threads."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.inside = 0
        self.outside = NESTED

    def enter(self) -> None:
        with self.lock:
            self.inside += 1
            if self.inside == 1:
                self.outside = sys.getrecursionlimit()
                with contextlib.suppress(RecursionError):  # the caller is deeper than that already
                    sys.setrecursionlimit(min(self.outside, NESTED))

    def leave(self) -> None:
        with self.lock:
            self.inside -= 1
            if self.inside == 0:
                sys.setrecursionlimit(self.outside)


_SHALLOW = _Shallow()


@contextlib.contextmanager
def shallow() -> Iterator[None]:
    """Raises RecursionError within the block for what is nested deeper than Python allows by itself.

    Other packages raise the limit of the whole process (symfc to 100,000, once imported). Parsers such as
    json's then follow a file of brackets until the stack overflows, which ends the process.
    """
    _SHALLOW.enter()
    try:
        yield
    finally:
        _SHALLOW.leave()


@contextlib.contextmanager
def guard(place: str | Path, kind: type[RefusedError], remedy: str) -> Iterator[None]:
    """Turns any error that the file at `place` causes within the block into a `kind` that names the file.

    Unexpected errors become the cause of the new one. Errors that only a bug of this library can raise pass
    through, and so do errors of the file system that name a file. What is nested as in `shallow` is refused.
    """
    try:
        with shallow():
            yield
    except kind as error:
        raise kind(error.text, place) from error.__cause__
    except OURS:
        raise
    except Exception as error:  # a damaged file can fail in any way
        if isinstance(error, OSError) and error.filename is not None:
            raise
        raise kind(
            f"cannot be read ({type(error).__name__}: {cut(str(error), 120)}). {remedy}", place
        ) from error


def printable(text: str) -> str:
    """`text` with control characters as escapes."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def one_line(text: str, most: int = LONGEST) -> str:
    """`text` in one line of printable characters, cut after `most`."""
    lines = text[: 4 * most].splitlines()  # with a margin: stripped spaces shorten it
    return cut(printable(" ".join(line.strip(" ") for line in lines)), most)


def brief(value: Any, level: int = 2) -> str:
    """`value` in a few words or as Python writes it: little work, however large and nested `value` is."""
    if isinstance(value, str):
        return printable(repr(cut(value, 60)))
    if isinstance(value, bytes | bytearray):
        return f"{len(value)} bytes"
    if isinstance(value, int) and value.bit_length() > 128:
        return f"a number of {value.bit_length()} bits"
    if value is None or isinstance(value, bool | int | float | complex):
        return repr(value)
    if isinstance(value, np.ndarray | np.generic):
        return f"a tensor of shape {value.shape}" if value.ndim <= 8 else f"a tensor of {value.ndim} axes"
    if isinstance(value, type):
        return cut(printable(value.__qualname__), 80)
    if isinstance(value, list | tuple | set | frozenset | Mapping):
        return _brief_items(value, level)
    return f"a {cut(printable(type(value).__qualname__), 80)}"


def _brief_items(value: Any, level: int) -> str:
    left, right = {list: "[]", tuple: "()"}.get(type(value), "{}")
    if not level:
        return f"{left}…{right}" if value else left + right
    shown = [brief(item, level - 1) for item in itertools.islice(value, 4)]
    if isinstance(value, Mapping):
        shown = [
            f"{brief(key, 0)}: {brief(item, level - 1)}" for key, item in itertools.islice(value.items(), 4)
        ]
    shown += ["…"] if len(value) > 4 else []
    comma = "," if isinstance(value, tuple) and len(value) == 1 else ""
    return left + ", ".join(shown) + comma + right


def in_lines(items: Sequence[str], count: int | None = None, most: int = 10) -> str:
    """The first of `items`, a line each, and how many of all `count` (default: of `items`) follow."""
    more = (len(items) if count is None else count) - most
    return "".join(f"\n  {item}" for item in items[:most]) + (f"\n  and {more} more" if more > 0 else "")


def listed(items: Iterable[str], separator: str = "; ") -> str:
    """The first of `items`, and the number of the others."""
    items = list(items)
    shown, length = 0, 0
    for item in items[:10]:
        length += min(len(item), ROOM) + len(separator)
        if shown and length > ROOM:
            break
        shown += 1
    parts = [cut(printable(item), ROOM) for item in items[:shown]]
    more = len(items) - shown
    return separator.join(parts) + (f"{separator}and {more} more" if more else "")
