"""The processes of a screening: this one, several on this machine, or jobs of SLURM."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jaxmlip.studies.screen.folder import ASKED, WHOLE, Screening
from jaxmlip.studies.screen.worker import task_of
from jaxmlip.system.files import write_whole
from jaxmlip.system.jobs import Local, Slurm
from jaxmlip.system.progress import paced

LOGS = "logs"
POLL = 1.0  # seconds between looks at the processes


def run(
    screening: Screening,
    asked: Mapping[str, Any],
    shard: tuple[int, int] = WHOLE,
    processes: int = 1,
    slurm: Mapping[str, Any] | None = None,
) -> dict[str, str]:
    """Computes what is missing; returns reasons of processes that failed, by their names.

    One process is this one. Several share the cores of this machine, or with `slurm` are as many jobs; see
    `jaxmlip.system.jobs`. `asked` is what `worker` needs to begin with: model, dtype, head.
    """
    told = {**asked, "name": screening.potential.name, "properties": screening.names}
    told |= {"options": asdict(screening.options)}
    write_whole(screening.folder / ASKED, json.dumps(told, indent=1) + "\n")
    done, _, total = screening.finished()
    with paced(total, done, "screening") as show:

        def tell() -> None:
            done, failed, _ = screening.finished()
            show(done, f"{failed:,} with failures" if failed else "")

        tell()
        if processes == 1 and slurm is None:
            screening.work(shard, tell)
            return {}
        return _by_processes(screening.folder, shard, processes, slurm, tell)


def _by_processes(
    folder: Path,
    shard: tuple[int, int],
    processes: int,
    slurm: Mapping[str, Any] | None,
    tell: Callable[[], object],
) -> dict[str, str]:
    (folder / LOGS).mkdir(exist_ok=True)
    tasks = {
        f"process {k}": task_of(folder, shard, folder / LOGS / f"{k}.log") for k in range(1, processes + 1)
    }
    failed: dict[str, str] = {}
    with Local(processes) if slurm is None else Slurm(folder, slurm) as backend:
        going = dict(zip(tasks, backend.start(list(tasks.values())), strict=True))
        while going:
            time.sleep(POLL)
            for name, attempt in list(going.items()):
                code = attempt.poll()
                if code is not None:
                    del going[name]
                    if code:
                        failed[name] = attempt.reason()
            tell()
    return failed
