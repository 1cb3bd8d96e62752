"""Sweeps: many training runs in one folder, each done exactly once, whatever is killed.

The folder holds for each run, by its id, ID.yaml (the configuration), ID/ (the folder of the run, made as by
`jaxmlip train ID.yaml`) and ID.log (the output of its process). Nothing else is kept: a sweep that is started
again looks at these files. A run that is renamed in the file of the sweep keeps its first id.
"""

from __future__ import annotations

import csv
import io
import json
import re
import time
import warnings
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any

from jaxmlip.system.files import check_folder, write_whole
from jaxmlip.system.jobs import IN_USE, Local, Slurm, last_lines
from jaxmlip.system.locks import in_use
from jaxmlip.training.config import ConfigError, TrainConfig, flat, to_yaml
from jaxmlip.training.records import CONFIG, RESULTS
from jaxmlip.training.sweeps.backends import task_of
from jaxmlip.training.sweeps.folders import begun, beside, digest, results_in, steps_done

TABLES = ("sweep.csv", "sweep.json")
POLL = 0.2  # seconds
ELSEWHERE = 2.0  # seconds between looks at a run that another process does


@dataclass(frozen=True)
class Run:
    """One run of a sweep. `name` identifies it in tables."""

    name: str
    config: TrainConfig

    @cached_property
    def id(self) -> str:
        """The name, and a hash of what is computed: configuration and contents of files, but not their paths.

        Keys that have their default value do not count, so that ids stay when keys are added to
        configurations. Raises FileNotFoundError if data are missing.
        """
        readable = re.sub(r"[^A-Za-z0-9.=+-]+", "-", self.name).strip("-.")[:80]
        return f"{readable}-{self.digest}" if readable else self.digest

    @cached_property
    def digest(self) -> str:
        """The end of the id: equal for runs that compute the same, whatever their names."""
        return digest(self.config)

    def folder(self, sweep: str | Path) -> Path:
        """The folder of this run in the sweep's: ID, or an existing one under another name.

        ID.yaml and ID.log lie beside it.
        """
        own = Path(sweep) / self.id
        if (own / RESULTS).is_file() or not own.parent.is_dir():
            return own
        known = begun(own.parent, own.parent.stat().st_mtime_ns).get(self.digest, ())
        done = (folder for folder in known if (folder / RESULTS).is_file())
        return next(done, own if own.is_dir() or not known else known[0])

    def finished(self, sweep: str | Path) -> bool:
        """True if this run, and no other configuration, is done in the folder of the sweep."""
        return results_in(self.folder(sweep), self.config) is not None


def run_all(
    runs: Sequence[Run],
    folder: str | Path,
    processes: int = 1,
    slurm: Mapping[str, Any] | None = None,
    say: Callable[[str], None] | None = None,
) -> dict[str, str]:
    """Does the `runs` that are not finished in `folder`; returns the reasons of failures, by name.

    Each run is a process of its own, at most `processes` at a time, which share the cores. With `slurm` it is
    a job of SLURM; `slurm` has parameters of submitit's AutoExecutor, such as {"slurm_partition": "gpu",
    "timeout_min": 600, "nodes": 2, "tasks_per_node": 4} (several tasks train one potential together). A run
    that fails does not stop the others, and is tried again at the next call. Runs that were interrupted go
    on. If another process is doing a run, this one waits for it.

    When this process ends, even if killed, its runs save and stop; jobs of SLURM go on. `say` is called for
    each run that ends; default: standard error. Raises ConfigError for a configuration that cannot be used,
    and JobsError for such processes or jobs, before anything is started.
    """
    folder, say = Path(folder), say or _say
    check(runs)
    check_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    backend = Local(processes) if slurm is None else Slurm(folder, slurm)
    configs = {run.name: beside(run.folder(folder), ".yaml") for run in runs}
    for run in runs:
        write_whole(configs[run.name], to_yaml(run.config.checked().absolute(), described=False))
    work = _Work(runs, folder, configs, backend, say)
    if work.done:
        say(f"{work.done} of {len(runs)} runs are finished")
    with backend:
        while work.waiting or work.going:
            work.take_in()
            if not work.start():
                time.sleep(POLL)
    return work.failed


class _Work:
    """The runs of a sweep that are not finished: those waiting and those running."""

    def __init__(self, runs: Sequence[Run], folder: Path, configs: Mapping[str, Path], backend: Any, say):
        self.total, self.folder, self.configs = len(runs), folder, configs
        self.backend, self.say = backend, say
        self.waiting = deque(run for run in runs if not run.finished(folder))
        self.going: list[tuple[Run, Any]] = []
        self.failed: dict[str, str] = {}
        self.done = len(runs) - len(self.waiting)
        self.later: dict[str, float] = {}  # when to look again at runs that other processes do

    def take_in(self) -> None:
        """Collects the runs whose processes have ended."""
        going, self.going = self.going, []
        for run, attempt in going:
            code = attempt.poll()
            if code is None:
                self.going.append((run, attempt))
            elif code == 0 and run.finished(self.folder):
                self._ended(run, "finished")
            elif code == IN_USE:
                self.waiting.append(run)
            else:
                self.failed[run.name] = attempt.reason()
                self._ended(run, f"failed: {self.failed[run.name]}")

    def start(self) -> bool:
        """Starts waiting runs until the backend is full; False if none can be started now."""
        starting = []
        for _ in range(len(self.waiting)):
            if len(self.going) + len(starting) >= self.backend.room:
                break
            run = self.waiting.popleft()
            if time.monotonic() < self.later.get(run.name, 0):
                self.waiting.append(run)
            elif run.finished(self.folder):
                self._ended(run, "is finished")
            elif (owner := in_use(run.folder(self.folder))) is not None:
                if run.name not in self.later:
                    self.say(f"{run.name}: another process does it ({owner}); waiting")
                self.later[run.name] = time.monotonic() + ELSEWHERE
                self.waiting.append(run)
            else:
                starting.append(run)
        if starting:
            attempts = self.backend.start([task_of(self.configs[run.name]) for run in starting])
            self.going += zip(starting, attempts, strict=True)
        return bool(starting) or not (self.waiting or self.going)

    def _ended(self, run: Run, how: str) -> None:
        self.done += 1
        self.say(f"{self.done}/{self.total} {run.name}: {how}")


def check(runs: Sequence[Run]) -> None:
    """Raises ConfigError for duplicate names."""
    if twice := [name for name, n in Counter(run.name for run in runs).items() if n > 1]:
        raise ConfigError(f"found the name {twice[0]} for two runs of a sweep, needed different names.")


def collect(runs: Sequence[Run], folder: str | Path) -> dict[str, dict[str, Any]]:
    """The results of finished runs, by name: id, folder, and the contents of results.json.

    Unfinished runs are left out; `unfinished` names them.
    """
    found = {}
    for run in runs:
        its = run.folder(folder)
        results = results_in(its, run.config)
        if results is not None:
            found[run.name] = {"id": its.name, "folder": str(its), **results}
    return found


def others(runs: Sequence[Run], folder: str | Path) -> list[str]:
    """The ids of finished runs in the folder of the sweep that are not among `runs`."""
    own = {run.folder(folder).name for run in runs}
    done = (p.parent for p in Path(folder).glob(f"*/{RESULTS}") if (p.parent / CONFIG).is_file())
    return sorted(its.name for its in done if its.name not in own)


def unfinished(runs: Sequence[Run], folder: str | Path) -> dict[str, str]:
    """The runs without a result, by name, and the state of each."""
    return {run.name: _stands(run, Path(folder)) for run in runs if not run.finished(folder)}


def varied(runs: Sequence[Run]) -> list[str]:
    """The keys in which the configurations of `runs` differ."""
    values = [flat(run.config) for run in runs]
    return [key for key in values[0] if any(v[key] != values[0][key] for v in values)] if values else []


def table(runs: Sequence[Run], collected: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row for each run in `collected`: its name, id, what it varies, and errors after training."""
    keys, rows = varied(runs), []
    for run in runs:
        if run.name not in collected:
            continue
        its, values = collected[run.name], flat(run.config)
        errors = {
            f"{name}_{kind} / {its['units'][name]}": error[kind]
            for name, error in its["after"].items()
            for kind in ("mae", "rmse")
        }
        rows.append(
            {"name": run.name, "id": its["id"]}
            | {key: values[key] for key in keys}
            | {"stopped": its["stopped"], "compared_on": its["compared_on"]}
            | errors
        )
    return rows


def write_table(runs: Sequence[Run], folder: str | Path) -> list[dict[str, Any]]:
    """Writes sweep.csv and sweep.json into `folder`; returns rows of `table`.

    sweep.json also has the unfinished runs, and finished ones that are not among `runs`. Existing tables that
    have a run that the new ones lack are renamed and kept, with a warning.
    """
    folder = Path(folder)
    collected = collect(runs, folder)
    rows = table(runs, collected)
    columns = list(dict.fromkeys(key for row in rows for key in row)) or ["name", "id"]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    _keep_tables(folder, {run.digest for run in runs if run.name in collected})
    write_whole(folder / TABLES[0], text.getvalue())
    whole = {"finished": collected, "unfinished": unfinished(runs, folder), "others": others(runs, folder)}
    write_whole(folder / TABLES[1], json.dumps(whole, indent=1, ensure_ascii=False) + "\n")
    return rows


def _keep_tables(folder: Path, told: set[str]) -> None:
    """Renames the tables in `folder` if they have a run whose digest is not among `told`."""
    try:
        with (folder / TABLES[0]).open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    except FileNotFoundError:
        return
    lost = [row for row in rows if (row.get("id") or "").rpartition("-")[2] not in told]
    if not lost:
        return
    number = next(n for n in count(1) if not any((folder / _numbered(name, n)).exists() for name in TABLES))
    for name in TABLES:
        with suppress(FileNotFoundError):
            (folder / name).rename(folder / _numbered(name, number))
    warnings.warn(
        f"the table in {folder} has {len(lost)} finished run(s) that the new one lacks, such as "
        f"{lost[0].get('name')}. It is kept as {_numbered(TABLES[0], number)}.",
        stacklevel=3,
    )


def _numbered(name: str, number: int) -> str:
    stem, _, kind = name.partition(".")
    return f"{stem}-{number}.{kind}"


def _stands(run: Run, sweep: Path) -> str:
    folder = run.folder(sweep)
    owner, step, said = in_use(folder), steps_done(folder), last_lines(beside(folder, ".log"), 1)
    if owner is not None:
        return f"in the hands of {owner}"
    if step is None and not said:
        return "not begun"
    begun = "did not come to a checkpoint" if step is None else f"saved is step {step}"
    return begun + (f"; its log ends: {said}" if said else "")


def _say(line: str) -> None:
    from jaxmlip.system.console import note

    note(line, stderr=True)
