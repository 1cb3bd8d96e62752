"""The command `jaxmlip sweep`: many training runs in one folder."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxmlip.system.arguments import Flag, Positional, Several, at_least
from jaxmlip.system.console import note, say
from jaxmlip.system.tables import Table, show

if TYPE_CHECKING:
    from jaxmlip.training.sweeps.sweep import Run

SHOWN = 5  # columns of errors in the table on a terminal; sweep.csv has all of them


def sweep(
    config: Positional[Path | None] = None,
    out: Path | None = None,
    processes: int | None = None,
    slurm: Several = (),
    dry_run: Flag = False,
    collect: Flag = False,
    example: Flag = False,
) -> None:
    """Many training runs: starts those of a file that are not finished.

    It ends with a table of those that are. The same command goes on after any interruption; several at a time
    on one folder share the work. For each run the folder has a configuration (ID.yaml), a folder (ID/) and
    the output of its process (ID.log).

    Args:
        config: a YAML file with base and vary or runs; --example prints one
        out: folder of the sweep; default: the name of CONFIG without .yaml
        processes: number of runs at a time on this machine, which share its cores; default: 1
        slurm: KEY=VALUE for SLURM jobs, one for each run, as submitit's AutoExecutor names them, such as
            slurm_partition=gpu timeout_min=600 gpus_per_node=4; nodes=2 tasks_per_node=4 gives each run eight
            processes
        dry_run: print the runs, their floating-point operations and the time that they would take here,
            measured by a few trial steps; write nothing
        collect: write and print the table of finished runs, and start nothing
        example: print an example of such a file, and do nothing else
    """
    from jaxmlip.training.config import ConfigError, reader_options
    from jaxmlip.training.sweeps.sweep import run_all
    from jaxmlip.training.sweeps.sweep_file import EXAMPLE, read_sweep

    if example:
        print(EXAMPLE, end="")
        return
    if config is None:
        raise ConfigError(
            "found no file, needed one: jaxmlip sweep SWEEP.yaml. `jaxmlip sweep --example` prints one."
        )
    at_least(1, processes=processes)
    given = [value for each in slurm for value in each]
    if processes is not None and given:
        raise ConfigError("found --processes and --slurm, needed one of them.")
    if dry_run and collect:
        raise ConfigError("found --dry-run and --collect, needed one of them.")
    runs, out = read_sweep(config), out or config.with_suffix("")
    if dry_run:
        _foretell(runs, out)
        return
    if not collect:
        note(f"{len(runs)} runs in {out}", stderr=True)
        run_all(runs, out, 1 if processes is None else processes, reader_options(given) if given else None)
    if not out.is_dir():
        raise ConfigError(f"{out} is not a folder; needed the folder of a sweep. Name it with --out.")
    if _report(runs, out) and not collect:
        sys.exit(1)


def _report(runs: Sequence[Run], out: Path) -> dict[str, str]:
    """Writes and prints the results so far; returns the runs that are not finished."""
    from jaxmlip.training.sweeps.sweep import others, unfinished, varied, write_table

    rows, left, more = write_table(runs, out), unfinished(runs, out), others(runs, out)
    errors = list(dict.fromkeys(key for row in rows for key in row if "_mae / " in key))[:SHOWN]
    columns = [*varied(runs), *errors]
    cells = [(row["name"], *(_cell(row.get(column)) for column in columns)) for row in rows]
    show(Table(f"{len(rows)} of {len(runs)} runs are finished", ("run", *columns), cells))
    for name, where in left.items():
        say(f"not in the table: {name}: {where}")
    if more:
        shown = ", ".join(more[:SHOWN]) + (", …" if len(more) > SHOWN else "")
        say(f"{len(more)} finished run(s) of other configurations are in {out}: {shown}")
    note(f"written to {out / 'sweep.csv'} and {out / 'sweep.json'}")
    return left


def _cell(value: Any) -> str:
    if isinstance(value, tuple | list):
        return ", ".join(map(str, value))
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _foretell(runs: Sequence[Run], out: Path) -> None:
    from jaxmlip.training.sweeps.forecast import STEPS, forecast

    found = forecast(runs, out)
    columns = ("structures", "steps", "done", "GFLOP a step", "TFLOP", "ms a step", "minutes left")
    rows = []
    for its in found:
        numbers = (its.cost.flops / 1e9, its.flops / 1e12, 1e3 * its.cost.seconds)
        counts = (its.run.name, its.run.id.rpartition("-")[2], its.structures, its.steps, its.done)
        rows.append((*counts, *(f"{x:.4g}" for x in numbers), f"{its.seconds / 60:.3g}"))
    show(Table(f"{len(runs)} runs; none was started", ("run", "id", *columns), rows))
    costs = {its.cost: None for its in found}
    operations, hours = sum(its.flops for its in found) / 1e12, sum(its.seconds for its in found) / 3600
    say(
        f"in all {operations:.4g} TFLOP; {hours:.3g} hours of training are left if the runs go one after "
        f"another on these {found[0].cost.devices} device(s). Reading, compilation (here "
        f"{sum(c.compilation for c in costs):.0f} s for {len(costs)} program(s)), validation and tests come "
        f"on top. Times are the median of {STEPS} steps of each program with room for the largest batch; "
        "operations are XLA's count for that program."
    )
