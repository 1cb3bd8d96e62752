"""What all commands have alike: --quiet and --verbose, and help that fits a screen.

`--help` leaves out options that few need, which are annotated as `Rare`; `--help-all` has them.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import types
from collections.abc import Callable, Iterator
from inspect import Parameter
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import tyro

from jaxmlip.system.arguments import RARE, Flag
from jaxmlip.system.console import Telling, telling
from jaxmlip.system.spent import accounted

Help = Literal["brief", "whole"]
WIDE = 24  # characters of an option and its value; tyro breaks the line after a longer one
WORDS = {int: "N", float: "X", str: "TEXT", Path: "PATH"}
EVERYWHERE = {
    "quiet": "say results, warnings and errors only",
    "verbose": "say also what is compiled, and where memory and time go",
}


def with_common(run: Callable, help: Help | None = None) -> Callable:
    """`run` with --quiet and --verbose; for `help` its options are worded briefly, and only shown."""

    def command(*given: Any, quiet: bool = False, verbose: bool = False, **named: Any) -> None:
        if quiet and verbose:
            raise ValueError("found --quiet and --verbose, needed one of them, or none.")
        with telling(Telling.QUIET if quiet else Telling.VERBOSE if verbose else Telling.USUAL), accounted():
            run(*given, **named)

    its, hints = inspect.signature(run), get_type_hints(run, include_extras=True)
    listed = [each.replace(annotation=hints[name]) for name, each in its.parameters.items()]
    for name, meaning in EVERYWHERE.items():
        kind = Annotated[Flag, tyro.conf.arg(help=meaning)]
        listed.append(Parameter(name, Parameter.KEYWORD_ONLY, default=False, annotation=kind))
    text = inspect.getdoc(run) or ""
    if help is not None:
        listed = [shown(option) for each in listed for option in apart(each)]
        if help == "brief" and len(few := [each for each in listed if not is_rare(each)]) < len(listed):
            listed = few
            text = _with_line(text, "Options that few need are left out here: --help-all.")
    command.__signature__ = inspect.Signature(listed)
    command.__annotations__ = {each.name: each.annotation for each in listed}
    command.__doc__, command.__name__ = text, run.__name__
    return command


def summary(run: Callable) -> str:
    """The first paragraph of what is said about a command."""
    return " ".join((inspect.getdoc(run) or "").partition("\n\n")[0].split())


def _with_line(text: str, line: str) -> str:
    before, args, after = text.partition("\nArgs:")
    return f"{before.rstrip()}\n\n{line}\n{args and f'{args}{after}'}"


def is_rare(option: Parameter) -> bool:
    """Whether `--help` leaves this option out."""
    return RARE in get_args(option.annotation)


def apart(option: Parameter) -> Iterator[Parameter]:
    """The options that a parameter stands for: itself, or the fields of settings."""
    settings = _bare(option.annotation)
    if not dataclasses.is_dataclass(settings):
        yield option
        return
    meanings, hints = _meanings(settings), get_type_hints(settings, include_extras=True)
    for field in dataclasses.fields(settings):
        marks = [tyro.conf.arg(help=meanings[field.name]), *[RARE] * is_rare(option)]
        default = Parameter.empty if field.default is dataclasses.MISSING else field.default
        kind = _marked(hints[field.name], marks)
        yield Parameter(field.name, Parameter.KEYWORD_ONLY, default=default, annotation=kind)


def _meanings(settings: type) -> dict[str, str]:
    """What stands below each field of settings."""
    found = {}
    for kind in filter(dataclasses.is_dataclass, settings.__mro__):
        (its,) = ast.parse(inspect.getsource(kind)).body
        for field, below in pairwise(its.body):
            if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr):
                found[field.target.id] = " ".join(below.value.value.split())
    return found


def shown(option: Parameter) -> Parameter:
    """An option as help shows it: what is typed, without None as a value and where nothing is the default."""
    marks, kind, said = [], _bare(option.annotation), {}
    if kind is bool:
        marks.append(tyro.conf.FlagCreatePairsOff)
        said["help_behavior_hint"] = "(this turns it off)" if option.default else ""
    else:
        said["metavar"] = _value(option, kind)
        if tyro.conf.UseAppendAction not in get_args(option.annotation):
            said["help_behavior_hint"] = _hint(option, kind)
    annotation = _marked(option.annotation, [*marks, tyro.conf.arg(**said)])
    return option.replace(annotation=annotation, kind=Parameter.KEYWORD_ONLY)


def _marked(annotation: Any, marks: list[Any]) -> Any:
    for mark in marks:
        # Marks of tyro are themselves types that take one; what `arg` gives is not.
        annotation = mark[annotation] if get_origin(mark) is Annotated else Annotated[annotation, mark]
    return annotation


def _bare(annotation: Any) -> Any:
    """The type without marks, and without None."""
    kind = get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation
    if get_origin(kind) in (Union, types.UnionType):
        (kind,) = (_bare(each) for each in get_args(kind) if each is not type(None))
    return kind


def _value(option: Parameter, kind: Any) -> str:
    """What stands for the value of an option, such as N N N."""
    if tyro.conf.Positional in get_args(option.annotation):
        name = option.name.upper()
        name = f"{name} ..." if get_origin(kind) in (list, tuple) else name
        return name if option.default is Parameter.empty else f"[{name}]"
    return _choices(option, kind) or _word(kind)


def _word(kind: Any) -> str:
    if get_origin(kind) not in (tuple, list):
        return WORDS.get(kind, "NAME")
    first, *others = (_word(_bare(each)) for each in get_args(kind) if each is not Ellipsis)
    if Ellipsis in get_args(kind) or get_origin(kind) is list:
        return first if first.endswith("...") else f"{first} ..."
    return " ".join([first, *others])


def _choices(option: Parameter, kind: Any) -> str | None:
    """The words that an option takes, if it takes certain ones and they fit into its line."""
    if get_origin(kind) is not Literal:
        return None
    words = "|".join(map(str, get_args(kind)))
    return words if len(f"--{option.name} {words}") <= WIDE else None


def _hint(option: Parameter, kind: Any) -> Any:
    """What is said at the end: choices that did not fit, and the default, if there is one."""
    if option.default is Parameter.empty:  # tyro says that it is required, unless none will do
        return "" if get_origin(kind) is list else None
    choices = get_args(kind) if get_origin(kind) is Literal and not _choices(option, kind) else ()
    listed = " or ".join(filter(None, [", ".join(map(str, choices[:-1])), *map(str, choices[-1:])]))
    if option.default in (None, ()):
        return listed and f"({listed})"
    return lambda label: f"({listed}{listed and '; '}default: {label})"
