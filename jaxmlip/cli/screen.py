"""The command `jaxmlip screen`: properties of thousands of crystals in one folder."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from jaxmlip.studies.screen.properties import PROPERTIES, ScreenOptions
from jaxmlip.system.arguments import (
    DEFAULT_MODEL,
    DType,
    Flag,
    Head,
    Limit,
    Model,
    Positional,
    Rare,
    Several,
    above_zero,
    at_least,
    in_bytes,
)
from jaxmlip.system.console import note, say
from jaxmlip.system.tables import show

if TYPE_CHECKING:
    from jaxmlip.studies.screen.folder import Results

Names = Annotated[
    tuple[str, ...],
    tyro.conf.arg(help=f"some of {', '.join(PROPERTIES)}; with relax the others are of the relaxed crystal"),
]


def screen(
    files: Positional[tuple[Path, ...]] = (),
    model: Model = DEFAULT_MODEL,
    properties: Names = ("relax",),
    out: Path = Path("screening"),
    dtype: DType = "float64",
    head: Head = None,
    fmax: float = 1e-3,
    smax: float = 0.01,
    steps: Rare[int] = 500,
    pressure: Rare[float] = 0.0,
    mesh: tuple[int, int, int] | None = None,
    symprec: Rare[float] = 1e-5,
    limit: Limit = None,
    memory_limit: Rare[float | None] = None,
    processes: int | None = None,
    shard: Rare[str | None] = None,
    slurm: Several = (),
    again: Flag = False,
    collect: Flag = False,
) -> None:
    """Properties of thousands of crystals; no failure stops the others.

    There is a row for each. The same command goes on after any interruption; several at a time on one folder
    share the work. OUT gets results.csv, results.parquet (with pyarrow), results.db for ASE, summary.md and
    summary.png.

    Args:
        files: files in any format that ASE or pymatgen reads, databases of ASE, JSON of pymatgen, folders,
            and patterns in quotes; none: the crystals that OUT has
        model: the potential
        out: folder of the screening
        dtype: precision of the computation; in float32 second derivatives have about three digits
        fmax: relax until the largest force is below this, in eV/Å
        smax: and the largest component of the stress below this, in GPa
        steps: maximum number of steps of a relaxation
        pressure: external pressure of the relaxation, in GPa
        mesh: wave vectors of phonons along each reciprocal lattice vector; 1 1 1 is Γ alone; default: at most
            0.02 1/Å apart
        symprec: tolerance for the symmetry that phonons use, in Å
        memory_limit: in GB for each process; larger crystals are left out; default: nearly what is there
        processes: number of processes on this machine, which share its cores, or of jobs with --slurm
        shard: K/N computes only part K of N, from 1 on, so that N commands do everything
        slurm: KEY=VALUE for SLURM jobs, as submitit's AutoExecutor names them, such as slurm_partition=gpu
            timeout_min=600 gpus_per_node=1
        again: try again what failed
        collect: write the results of what OUT has, and compute nothing
    """
    from jaxmlip.studies.screen import processes as of_folder
    from jaxmlip.studies.screen.folder import WHOLE, Screening
    from jaxmlip.studies.screen.inputs import read_inputs
    from jaxmlip.system.memory import available
    from jaxmlip.training.config import reader_options
    from jaxmlip.zoo.load import load

    above_zero(memory_limit=memory_limit, symprec=symprec)
    at_least(1, processes=processes, mesh=mesh, limit=limit)
    part, number = shard_of(shard), processes or 1
    jobs = reader_options([value for each in slurm for value in each]) if slurm else None
    if collect:
        _collect(out)
        return
    bytes_each = in_bytes(memory_limit) or available() / (1 if jobs else number)
    options = ScreenOptions(fmax, smax, steps, pressure, mesh, symprec, bytes_each)
    potential = load(model, dtype, head=head)
    screening = Screening(potential, out, properties, options)
    if files:
        screening.add(read_inputs(files, limit, out))
    if not screening.entries:
        raise ValueError(f"found no crystal, and none in {out}; needed files: jaxmlip screen FILES.")
    if again:
        screening.forget_failures()
    note(_begin(screening), stderr=True)
    asked = {"model": _absolute(model), "dtype": dtype, "head": head}
    failed = of_folder.run(screening, asked, part, number, jobs)
    _write(screening, potential.name)
    _end(screening, failed, whole=part == WHOLE)


def _collect(out: Path) -> None:
    from jaxmlip.studies.screen.folder import ASKED, Results

    if not (out / ASKED).is_file():
        raise FileNotFoundError(
            f"{out} has no {ASKED}; needed the folder of a screening. Name it with --out."
        )
    asked = json.loads((out / ASKED).read_text())
    there = Results(out, asked["properties"])
    _write(there, asked["name"])
    _end(there, {}, whole=True)


def _write(there: Results, model: str) -> None:
    """Writes the results, and prints their counts and the reasons of failures."""
    from jaxmlip.studies.screen import results

    rows = there.rows()
    written = results.write(there.folder, rows, there.names, model)
    show(*results.tables(rows, there.names, model)[:2])
    note(f"written to {there.folder}: {', '.join(written)}")
    if results.PARQUET not in written:
        note("no Parquet, which needs pyarrow: pip install 'jaxmlip[parquet]'")


def shard_of(text: str | None) -> tuple[int, int]:
    """The number, from 0 on, and the count of K/N. Raises ValueError."""
    if text is None:
        return 0, 1
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise ValueError(f"found --shard {text}, needed K/N with K from 1 to N, such as 1/4.")
    return int(found[1]) - 1, int(found[2])


def _absolute(model: str) -> str:
    return str(Path(model).absolute()) if Path(model).exists() else model


def _begin(screening: Results) -> str:
    """A line on the crystals: how many, how many of them twice, and how many cannot be used."""
    done, _, usable = screening.finished()
    names = sum(len(entry.names) for entry in screening.entries)
    bad = sum(len(entry.names) for entry in screening.entries if entry.failed)
    line = f"{names:,} structures: {usable:,} different crystals for {', '.join(screening.names)}"
    if twice := names - bad - usable:
        line += f"; {twice:,} are the same as another and not computed again"
    if bad:
        line += f"; {bad:,} cannot be used"
    return line + (f"; {done:,} are done already" if done else "")


def _end(screening: Results, failed: dict[str, str], whole: bool) -> None:
    """Says what is missing; raises RuntimeError if processes failed, or if nothing could be computed."""
    done, with_failures, usable = screening.finished()
    if failed:
        some = "\n  ".join(f"{name}: {reason}" for name, reason in failed.items())
        raise RuntimeError(
            f"{len(failed)} of the processes failed; {usable - done:,} of {usable:,} crystals are left, and "
            f"the same command goes on with them.\n  {some}"
        )
    if done < usable:
        why = "other processes or shards have them" if whole else "they are those of other shards"
        say(f"{usable - done:,} of {usable:,} crystals are not done yet: {why}, or the same command goes on.")
    if not usable or (done == usable and with_failures == usable and not _anything(screening)):
        raise RuntimeError("nothing could be computed; summary.md has the reasons.")


def _anything(screening: Results) -> bool:
    return any(set(record.columns) - set(record.failed) for record in screening.records().values())
