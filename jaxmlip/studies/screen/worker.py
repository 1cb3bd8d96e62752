"""A process of a screening, on this machine or in a job of SLURM.

python -m jaxmlip.studies.screen.worker OUT [K N] [slurm | HOST:PORT PROCESSES PROCESS]

carries on the screening that `jaxmlip screen` began in the folder OUT, or of shard K of N its part; what it
does not finish another process does. The tasks of a job share the work as other processes do.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from jaxmlip.studies.screen.folder import ASKED, WHOLE, Screening
from jaxmlip.studies.screen.properties import ScreenOptions
from jaxmlip.system.console import telling, telling_as_before, telling_now
from jaxmlip.system.jobs import Task, end_with_parent

WORKER = (sys.executable, "-m", "jaxmlip.studies.screen.worker")


def task_of(folder: Path, shard: tuple[int, int], log: Path) -> Task:
    """The task of one process."""
    return Task((*WORKER, str(folder.absolute()), *map(str, shard)), log, telling_now())


def main(arguments: Sequence[str]) -> None:
    """Works until nothing is left that no other process does."""
    from jaxmlip.system.runtime import collect_rarely
    from jaxmlip.system.spent import accounted
    from jaxmlip.zoo.load import load

    end_with_parent()
    collect_rarely()
    folder = Path(arguments[0])
    shard = (int(arguments[1]), int(arguments[2])) if len(arguments) > 2 else WHOLE
    asked = json.loads((folder / ASKED).read_text())
    options = asked["options"]
    if options["mesh"] is not None:
        options["mesh"] = tuple(options["mesh"])
    with telling(telling_as_before()), accounted():
        potential = load(asked["model"], asked["dtype"], head=asked["head"])
        Screening(potential, folder, asked["properties"], ScreenOptions(**options)).work(shard)


if __name__ == "__main__":
    main(sys.argv[1:])
