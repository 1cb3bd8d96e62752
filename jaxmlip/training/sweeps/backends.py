"""The process of one run of a sweep, on this machine or in a job of SLURM.

python -m jaxmlip.training.sweeps.backends ID.yaml [slurm | HOST:PORT PROCESSES PROCESS]

is one attempt to do a run of a sweep, in a process of its own. It saves and stops when the process that
started it ends.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path

from jaxmlip.system.console import telling, telling_as_before, telling_now
from jaxmlip.system.jobs import IN_USE, Task, end_with_parent
from jaxmlip.system.locks import InUseError, locked
from jaxmlip.training.config import read_config
from jaxmlip.training.sweeps.folders import results_in

WORKER = (sys.executable, "-m", "jaxmlip.training.sweeps.backends")


def task_of(config: Path) -> Task:
    """The task of the run with this ID.yaml."""
    return Task((*WORKER, str(config.absolute())), config.with_suffix(".log"), telling_now())


def attempt(config: Path, address: Sequence[str]) -> int:
    """Does the run of ID.yaml in the folder ID beside it; returns the exit code."""
    import jax

    from jaxmlip.system.parallel import connect
    from jaxmlip.training.run import train_in

    if address:
        connect(*(() if address[0] == "slurm" else (address[0], int(address[1]), int(address[2]))))
    folder = config.with_suffix("")
    settings = read_config(config).checked()
    with contextlib.ExitStack() as stack:
        code = -1
        if jax.process_index() == 0:
            try:
                stack.enter_context(locked(folder))
                # Another process may have finished it since this one was started.
                code = -1 if results_in(folder, settings) is None else 0
            except InUseError:
                code = IN_USE
        if jax.process_count() > 1:
            from jax.experimental import multihost_utils

            code = int(multihost_utils.broadcast_one_to_all(code))
        if code < 0:
            train_in(folder, settings)
            code = 0
    return code


def main(arguments: Sequence[str]) -> None:
    """One attempt, as described at the head of this module."""
    from jaxmlip.system.spent import accounted

    end_with_parent()
    with telling(telling_as_before()), accounted():
        code = attempt(Path(arguments[0]), arguments[1:])
    sys.exit(code)


if __name__ == "__main__":
    main(sys.argv[1:])
