"""The console script `jaxmlip`: each command is one function, its arguments are its options."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Annotated, Any, NamedTuple, Union

import tyro

from jaxmlip.cli import (
    against_dft,
    conductivity,
    curvature,
    data,
    doctor,
    expansion,
    models,
    screen,
    stabilise,
    sweeps,
    training,
    vibrations,
)
from jaxmlip.cli.options import Help, summary, with_common
from jaxmlip.system.console import say
from jaxmlip.system.runtime import collect_rarely

ABOUT = (
    "The curvature of universal interatomic potentials. Each command has --help, --help-all, --quiet and "
    "--verbose. --version: its own version."
)


class Group(NamedTuple):
    """Commands of two words, such as `jaxmlip data inspect`, by the second word."""

    about: str  # the description of the group in `jaxmlip --help`
    commands: dict[str, Callable]


COMMANDS: dict[str, Callable | Group] = {
    "models": models.models,
    "convert": models.convert,
    "predict": models.predict,
    "hessian": curvature.hessian,
    "phonons": curvature.phonons,
    "conductivity": conductivity.conductivity,
    "stabilise": stabilise.stabilise,
    "expansion": expansion.expansion,
    "relax": curvature.relax,
    "elastic": curvature.elastic,
    "vibrations": vibrations.vibrations,
    "saddle": vibrations.saddle,
    "screen": screen.screen,
    "softening": against_dft.softening,
    "compare": against_dft.compare,
    "softening-scale": against_dft.softening_scale,
    "data": Group("Files of labelled crystals.", {"inspect": data.inspect, "convert": data.convert}),
    "train": training.train,
    "finetune": training.finetune,
    "sweep": sweeps.sweep,
    "evaluate": training.evaluate,
    "export": training.export,
    "doctor": doctor.doctor,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs one command; errors are reported in a few lines on standard error, with exit code 1."""
    collect_rarely()
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    help = asked_help(arguments)
    if help is not None:
        arguments = ["--help" if word == "--help-all" else word for word in arguments]
    try:
        with warnings.catch_warnings():
            # Ours are for the user, whatever the calling process does with warnings.
            warnings.simplefilter("default", UserWarning)
            warnings.showwarning = lambda message, *_: say(f"warning: {message}", stderr=True, style="yellow")
            tyro.cli(
                _one_of(COMMANDS, arguments, help),
                prog="jaxmlip",
                description=ABOUT,
                args=arguments,
            )
    except (ValueError, OSError, RuntimeError, MemoryError, ImportError) as error:
        say(f"error: {error}", stderr=True, style="red")
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


def asked_help(arguments: Sequence[str]) -> Help | None:
    """Which help the user asks for, if any."""
    if "--help-all" in arguments:
        return "whole"
    return "brief" if {"-h", "--help"} & set(arguments) else None


def _one_of(commands: dict[str, Callable | Group], words: Sequence[str], help: Help | None) -> Any:
    """The type that tyro reads as a choice of these commands; making an instance of it runs one.

    Where `words` ask for help on none of them, each is described by one sentence.
    """
    index = set(words[:1]) <= {"-h", "--help"}
    found = [Annotated[None, tyro.conf.Suppress]]  # never offered; with it a single command is a choice, too
    for name, run in commands.items():
        about = None
        if isinstance(run, Group):
            about, run = run.about, _one_of(run.commands, words[1:], help)
        else:
            about, run = summary(run) if index else None, with_common(run, help)
        found.append(Annotated[Any, tyro.conf.subcommand(name, description=about, constructor=run)])
    return Union[tuple(found)]  # noqa: UP007 (the number of commands is known only here)
