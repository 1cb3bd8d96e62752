"""What documents say to run: blocks of Python, and commands in blocks for a shell and between backticks.

A tutorial is a script, so all of it is one block of Python; its comments are prose. A notebook is read as a
page whose cells of code are blocks.
"""

import argparse
import ast
import contextlib
import functools
import importlib
import io
import json
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import tyro

from jaxmlip.cli import COMMANDS, Group, main

ROOT = Path(__file__).parents[1]
TUTORIALS = tuple(sorted((ROOT / "docs" / "tutorials").glob("*.py")))
NOTEBOOK = ROOT / "docs" / "notebook.ipynb"
PAGES = (
    *(ROOT / "README.md", ROOT / "CONTRIBUTING.md"),
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "experiments" / "README.md",
    *TUTORIALS,
    NOTEBOOK,
)
SHELLS = ("sh", "bash", "console")
PROGRAMS = ("jaxmlip", "python", "pytest", "pip")  # that begin a command between backticks
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
VARIABLE = re.compile(r"[A-Z_]+=")
NUMBERS = {"N": "2", "K": "1"}  # what stands for a number where a usage is described


class Block(NamedTuple):
    page: Path
    line: int  # of the first line in it
    language: str  # empty for what is not to be run
    text: str


class Command(NamedTuple):
    page: Path
    line: int
    section: str  # the heading above it
    words: tuple[str, ...]
    typed: bool  # in a block, as it is to be typed; or else in a sentence, which may leave out what is needed
    out: str | None = None  # the file that its output goes to

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}: {shlex.join(self.words)}"


def blocks(page: Path) -> list[Block]:
    """The blocks of a page between fences, in order."""
    text = text_of(page)
    if page in TUTORIALS:
        return [Block(page, 1, "python", text)]
    return [Block(page, _line(text, m.start(2)), m[1], m[2]) for m in FENCED.finditer(text)]


def text_of(page: Path) -> str:
    """What stands on a page, with one backtick on either side of code."""
    if page == NOTEBOOK:
        return "\n".join(map(_of_cell, json.loads(page.read_text())["cells"]))
    return page.read_text().replace("``", "`") if page in TUTORIALS else page.read_text()


def _of_cell(cell: dict[str, Any]) -> str:
    """A cell as a part of a page; what begins with % is for the shell, and the only line."""
    text = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        return f"{text}\n"
    return f"```sh\n{text[1:]}\n```\n" if text.startswith("%") else f"```python\n{text}\n```\n"


def block(page: str, words: str) -> Block:
    """The one block for a shell with these words, of a page below the checkout."""
    (found,) = [b for b in blocks(ROOT / page) if b.language in SHELLS and words in b.text]
    return found


def commands(page: Path) -> list[Command]:
    """All commands of a page, of its blocks and between backticks."""
    text, found = text_of(page), []
    for block in blocks(page):
        if block.language in SHELLS:
            found += commands_of(block)
    for line, section, span in _spans(text):
        words = [NUMBERS.get(word, word) for word in _usage(span).split()]
        if words and (words[0] in (*PROGRAMS, "time") or VARIABLE.match(words[0])):
            found += _commands(page, line, section, " ".join(words), typed=False)
    return found


def commands_of(block: Block) -> list[Command]:
    """The commands of a block for a shell."""
    section, found, line = _section(text_of(block.page), block.line), [], block.line
    for whole in re.findall(r"(?:.*\\\n)*.*\n", block.text):
        found += _commands(block.page, line, section, whole.replace("\\\n", " "), typed=True)
        line += whole.count("\n")
    return found


def options(page: Path) -> list[tuple[int, str, tuple[str, ...]]]:
    """Options that stand alone between backticks: line, heading above and words of each."""
    return [
        (line, section, tuple(NUMBERS.get(word, word) for word in shlex.split(span)))
        for line, section, span in _spans(text_of(page))
        if span.startswith("--")
    ]


def spans(page: Path) -> list[tuple[int, str]]:
    """What stands between backticks, with its line."""
    return [(line, span) for line, _, span in _spans(text_of(page))]


def usage_of(module: Path) -> list[Command]:
    """The commands that the docstring of a module shows."""
    found = []
    for line in (ast.get_docstring(ast.parse(module.read_text())) or "").splitlines():
        if line.startswith("    python -m "):
            # "--peer chgnet | matgl" stands for one of the two
            found.append(next(_commands(module, 1, "", _usage(line), typed=True)))
    return found


class Understood(BaseException):
    """The settings that a command would begin with; raised in its place."""

    def __init__(self, settings: Any):
        super().__init__(settings)
        self.settings = settings


def understood(words: Sequence[str]) -> Any:
    """What the parser of a command makes of its words: (name, options), or settings. Nothing is run.

    Raises ValueError with what the parser says of words that it does not take.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            return _understood_jaxmlip(words[1:]) if words[0] == "jaxmlip" else _understood_module(words)
    except SystemExit:
        raise ValueError(" ".join(re.sub(r"[╭╮╰╯│─]+", " ", said.getvalue()).split())) from None


def _understood_jaxmlip(words: Sequence[str]) -> tuple[str, dict[str, Any]]:
    heard = []

    def listening(name: str, command):
        return functools.wraps(command)(lambda *given, **named: heard.append((name, named, given)))

    with pytest.MonkeyPatch.context() as patch:
        for name, its in COMMANDS.items():
            for second, command in its.commands.items() if isinstance(its, Group) else ():
                patch.setitem(its.commands, second, listening(f"{name} {second}", command))
            if not isinstance(its, Group):
                patch.setitem(COMMANDS, name, listening(name, its))
        main(words)
    ((name, named, given),) = heard
    return name, named | {"given": given}


def _understood_module(words: Sequence[str]) -> Any:
    """What follows `if __name__ == "__main__":` in a module is run with a parser that stops there."""
    python, m, name, *arguments = words
    if (python, m) != ("python", "-m"):
        raise ValueError(f"found {python} {m}, needed python -m MODULE")
    module = importlib.import_module(name)
    guard = ast.parse(Path(module.__file__).read_text()).body[-1]
    if not isinstance(guard, ast.If) or "__main__" not in ast.unparse(guard.test):
        raise ValueError(f"{name} is no command")
    cli, parse_args = tyro.cli, argparse.ArgumentParser.parse_args

    def stop(parse):
        def parsed(*given, **more):
            raise Understood(parse(*given, **more))

        return parsed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [name, *arguments])
        patch.setattr(tyro, "cli", stop(cli))
        patch.setattr(argparse.ArgumentParser, "parse_args", stop(parse_args))
        try:
            exec(compile(ast.Module(guard.body, []), module.__file__, "exec"), vars(module))
        except Understood as found:
            return found.settings
    raise ValueError(f"{name} takes no arguments")


def _commands(page: Path, line: int, section: str, text: str, typed: bool) -> Iterator[Command]:
    """The simple commands of a line, without variables before them, and those that they send elsewhere."""
    lexer = shlex.shlex(text, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words, out = [], None
    for word in [*lexer, ";"]:
        if word and set(word) <= set(";&|"):
            while words and (VARIABLE.match(words[0]) or words[0] in ("time", "srun")):
                del words[0]
            if words:
                yield Command(page, line, section, tuple(words), typed, out)
            for remote in (w.partition("=")[2] for w in words if w.startswith("--command=")):
                yield from _commands(page, line, section, remote, typed)
            words, out = [], None
        elif words and words[-1] == ">":
            out = word
            del words[-1]
        else:
            words.append(word)


def _usage(text: str) -> str:
    """Without what shows that words can be left out or repeated: [--option], FILES…."""
    return re.sub(r"\[(--[^\]]*)\]", r"\1", text).replace("…", "").replace("...", "")


def _spans(text: str) -> Iterator[tuple[int, str, str]]:
    prose = FENCED.sub(lambda m: "\n" * m[0].count("\n"), text)
    for m in re.finditer(r"`([^`]+)`", prose):
        line = _line(prose, m.start())
        yield line, _section(text, line), " ".join(m[1].split())


def _section(text: str, line: int) -> str:
    above = re.sub(r"^```.*?^```$", lambda m: re.sub(r".+", "", m[0]), text, flags=re.MULTILINE | re.DOTALL)
    return next((x for x in reversed(above.splitlines()[: line - 1]) if x.startswith("#")), "")


def _line(text: str, place: int) -> int:
    return text.count("\n", 0, place) + 1
