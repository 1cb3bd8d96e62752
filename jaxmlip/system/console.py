"""Printing: text is never read as markup, whatever a file is called or holds.

Names of files, runs, heads and crystals may have brackets, which rich would take for markup and drop, and
characters that control a terminal. Here brackets stay and control characters are shown as escapes, in lines
and in tables (cells, heads and titles). No other part of this project makes a console.
"""

from __future__ import annotations

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


_silent = False  # whether this process prints to standard output at all


def keep_silent() -> None:
    """Prints nothing to standard output from here on: another process of the same run does."""
    global _silent
    _silent = True


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
