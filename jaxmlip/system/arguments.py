"""Arguments shared by several commands."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

import tyro

from jaxmlip.system.console import keep_silent

DEFAULT_MODEL = "chgnet-0.3.0"
T = TypeVar("T")
RARE = "few need it"
Rare = Annotated[T, RARE]  # an option that `--help` leaves out and `--help-all` has
Positional = tyro.conf.Positional
Flag = tyro.conf.FlagCreatePairsOff[bool]
Several = tyro.conf.UseAppendAction[tuple[tuple[str, ...], ...]]  # --data a b --data c
Model = Annotated[
    str, tyro.conf.arg(help="a name that `jaxmlip models` lists, a model folder or a checkpoint")
]
Head = Annotated[str | None, tyro.conf.arg(help="which head of a checkpoint with several"), RARE]
Models = tyro.conf.UseAppendAction[tuple[Model, ...]]
Devices = Annotated[
    int | None, tyro.conf.arg(help="number of devices that share the columns; default: all there are"), RARE
]
DType = Literal["float32", "float64"]
Limit = Annotated[
    int | None, tyro.conf.arg(help="maximum number of structures to read from each file; default: all")
]
SkipBad = Annotated[
    Flag,
    tyro.conf.arg(
        help="leave out structures that cannot be used, and say why; by default the first is an error"
    ),
]
AsJson = Annotated[bool, tyro.conf.arg(name="json")]


@dataclass(frozen=True)
class Processes:
    """Options of a command that several processes run together."""

    distributed: Flag = False
    """work together with other processes, found by SLURM, Open MPI or a TPU slice"""
    coordinator: str | None = None
    """HOST:PORT of the first process, if there is no such scheduler"""
    processes: int | None = None
    """number of processes"""
    process: int | None = None
    """number of this process, from 0 on"""

    def check(self) -> None:
        """Raises ValueError for numbers that make no sense, or that lack the address."""
        at_least(1, processes=self.processes)
        at_least(0, process=self.process)
        alone = not self.distributed and self.coordinator is None
        if alone and (self.processes, self.process) != (None, None):
            raise ValueError(
                f"found --processes {self.processes} and --process {self.process} alone, needed "
                "--coordinator HOST:PORT with both of them, or --distributed alone if a scheduler knows them."
            )

    def connect(self) -> None:
        """Joins the other processes, if there are any; call it before anything is computed.

        All but the first print nothing from then on, except for errors.
        """
        from jaxmlip.system.parallel import connect, reports

        if not self.distributed and self.coordinator is None:
            return
        connect(self.coordinator, self.processes, self.process)
        if not reports():
            keep_silent()
            warnings.simplefilter("ignore", UserWarning)


Together = Rare[tyro.conf.OmitArgPrefixes[Processes]]
ALONE = Processes()


def at_least(least: int, **options: float | tuple[float, ...] | None) -> None:
    """Raises ValueError if an option that is given, or a part of it, is not a number from `least` on."""
    _check(options, lambda x: x >= least, f"a number from {least} on")


def above_zero(**options: float | tuple[float, ...] | None) -> None:
    """Raises ValueError if an option that is given, or a part of it, is not a number above 0."""
    _check(options, lambda x: x > 0, "a number above 0")


def _check(options: dict[str, Any], right: Callable[[float], bool], needed: str) -> None:
    for name, value in options.items():
        parts = () if value is None else value if isinstance(value, tuple) else (value,)
        if not all(math.isfinite(x) and right(x) for x in parts):
            found = f"--{name.replace('_', '-')} {' '.join(map(str, parts))}"
            raise ValueError(f"found {found}, needed {needed}{' for each' * (len(parts) > 1)}.")


def in_bytes(memory_limit: float | None) -> float | None:
    """A limit in bytes, from one in GB."""
    return None if memory_limit is None else memory_limit * 1e9
