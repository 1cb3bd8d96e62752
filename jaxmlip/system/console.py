"""Printing: text is never read as markup, whatever a file is called or holds.

Names of files, runs, heads and crystals may have brackets, which rich would take for markup and drop, and
characters that control a terminal. Here brackets stay and control characters are shown as escapes, in lines
and in tables (cells, heads and titles). No other part of this project makes a console.

What is said has three ranks. Results, warnings and errors are always said (`say`), remarks and progress
unless the user wants quiet (`note`), and details if the user asks for them (`detail`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from typing import Any

from rich.console import Console
from rich.text import Text

from jaxmlip.system.borders import printable


class PlainConsole(Console):
    """A console that reads no markup and lets no text control the terminal."""

    def __init__(self, **options: Any):
        super().__init__(markup=False, highlight=False, emoji=False, **options)

    def render_str(self, text: str, **how: Any) -> Text:
        """Makes the text of a line, or of a part of a table."""
        return super().render_str("\n".join(map(printable, text.split("\n"))), **how)


class Telling(IntEnum):
    """How much a command says."""

    QUIET = 0  # results, warnings and errors
    USUAL = 1  # and remarks and progress
    VERBOSE = 2  # and details


RANK = "JAXMLIP_TELLING"  # variable of the environment that tells a process how much the one before it says
_silent = False  # whether this process prints nothing to standard output
_telling = Telling.USUAL


def keep_silent() -> None:
    """Prints nothing to standard output from here on: another process of the same run does."""
    global _silent
    _silent = True


@contextmanager
def telling(much: Telling) -> Iterator[None]:
    """Says so much within."""
    global _telling
    before, _telling = _telling, much
    try:
        yield
    finally:
        _telling = before


def telling_now() -> Telling:
    """How much is said."""
    return _telling


def telling_as_before() -> Telling:
    """How much the process says that started this one, or gave it to SLURM."""
    return Telling.__members__.get(os.environ.get(RANK, ""), Telling.USUAL)


def tells(rank: Telling) -> bool:
    """Whether something of this rank is said."""
    return rank <= _telling


def console(width: int | None = None, stderr: bool = False, quiet: bool = False) -> PlainConsole:
    """A console for standard output or standard error, `width` columns wide if that is not a terminal."""
    quiet = quiet or (_silent and not stderr)
    made = PlainConsole(stderr=stderr, quiet=quiet)
    if width is None or made.is_terminal:
        return made
    return PlainConsole(width=width, stderr=stderr, quiet=quiet)


def say(line: str, stderr: bool = False, style: str | None = None) -> None:
    """Prints a line without breaking it; only the terminal may do that."""
    console(stderr=stderr).print(line, style=style, soft_wrap=True)


def note(line: str, stderr: bool = False) -> None:
    """Says a line that is no result, such as what will be computed and where it was written."""
    if tells(Telling.USUAL):
        say(line, stderr)


def detail(line: str) -> None:
    """Says a line on standard error to those who asked for details."""
    if tells(Telling.VERBOSE) and not _silent:
        say(line, stderr=True, style="dim")
