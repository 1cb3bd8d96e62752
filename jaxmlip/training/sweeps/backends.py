"""Backends for the runs of a sweep: processes of this machine, or jobs of SLURM.

python -m jaxmlip.training.sweeps.backends ID.yaml [slurm | HOST:PORT PROCESSES PROCESS]

is one attempt to do a run of a sweep, in a process of its own.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxmlip.system.locks import InUseError, locked
from jaxmlip.training.config import ConfigError, read_config
from jaxmlip.training.sweeps.folders import last_lines, results_in

IN_USE = 75  # exit code if another process does the run: EX_TEMPFAIL of sysexits.h
WORKER = (sys.executable, "-m", "jaxmlip.training.sweeps.backends")
TOLD = 5  # lines of the output of a failed run


class Attempt:
    """A process that does one run. It saves and stops when this process ends, even if killed."""

    def __init__(
        self, config: Path, worker: Sequence[str], address: Sequence[str] = (), threads: int | None = None
    ):
        self.log = config.with_suffix(".log")
        self.start = self.log.stat().st_size if self.log.exists() else 0
        env = dict(os.environ)
        if threads is not None:  # NPROC is for XLA, the others for NumPy's linear algebra
            names = ("NPROC", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
            env |= dict.fromkeys(names, str(threads))
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*worker, str(config), *address],
                stdin=subprocess.PIPE,  # it closes when this process ends
                stdout=log,
                stderr=log,
                env=env,
                start_new_session=True,  # so that Ctrl-C reaches this process alone
            )

    def poll(self) -> int | None:
        """The exit code, or None while it goes on."""
        return self.process.poll()

    def stop(self) -> int:
        """Makes the run save and stop; returns the exit code."""
        self.process.stdin.close()
        return self.process.wait()

    def reason(self) -> str:
        """The reason of the failure."""
        return _reason(self.process.returncode, self.log, self.start)


def _reason(code: int, log: Path, start: int) -> str:
    how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    said = last_lines(log, TOLD, start)
    return f"{how}; {log} ends:\n{said}" if said else f"{how}, without output in {log}"


class Local:
    """Backend that runs a number of processes on this machine at a time, which share its cores."""

    def __init__(self, processes: int):
        if processes < 1:
            raise ConfigError(f"found processes={processes}, needed at least 1.")
        self.room = processes
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        self.threads = max(1, cores // processes) if processes > 1 else None
        self.started: list[Attempt] = []

    def start(self, configs: Sequence[Path]) -> list[Attempt]:
        """Starts one process for each."""
        made = [Attempt(config, WORKER, threads=self.threads) for config in configs]
        self.started = [a for a in self.started if a.poll() is None] + made
        return made

    def __enter__(self) -> Local:
        return self

    def __exit__(self, *_: object) -> None:
        for attempt in self.started:  # stop all before waiting for any
            attempt.process.stdin.close()
        for attempt in self.started:
            attempt.process.wait()


class Slurm:
    """Backend that hands jobs to SLURM by submitit, all at once."""

    room = 10_000

    def __init__(self, folder: Path, parameters: Mapping[str, Any]):
        try:
            submitit = importlib.import_module("submitit")
        except ImportError:
            raise ConfigError("--slurm needs the package submitit: pip install 'jaxmlip[slurm]'.") from None
        parameters = {"name": "jaxmlip", "timeout_min": 24 * 60, **parameters}
        cluster = parameters.pop("cluster", "slurm")
        try:
            self.executor = submitit.AutoExecutor(folder / "slurm", cluster)
            self.executor.update_parameters(**parameters)
        except (AssertionError, NameError, TypeError, ValueError, RuntimeError) as error:
            raise ConfigError(f"--slurm: {error}") from None

    def start(self, configs: Sequence[Path]) -> list[Submitted]:
        """Submits one job for each, together as an array."""
        with self.executor.batch():
            jobs = [self.executor.submit(Job(config.absolute(), WORKER)) for config in configs]
        return [Submitted(job, config.with_suffix(".log")) for job, config in zip(jobs, configs, strict=True)]

    def __enter__(self) -> Slurm:
        return self

    def __exit__(self, *_: object) -> None:
        """Jobs go on."""


class Submitted:
    """A submitted job, with the interface of `Attempt`."""

    def __init__(self, job: Any, log: Path):
        self.job, self.log, self.failure = job, log, ""
        self.start = log.stat().st_size if log.exists() else 0
        self.code: int | None = None

    def poll(self) -> int | None:
        import submitit

        if self.code is None and self.job.done():
            try:
                codes = self.job.results()
                self.code = next((c for c in codes if c), 0)
            except (submitit.core.utils.FailedJobError, submitit.core.utils.UncompletedJobError) as error:
                self.code, self.failure = 1, str(error)
        return self.code

    def reason(self) -> str:
        if not self.failure:
            return _reason(self.code, self.log, self.start)
        return "\n".join(self.failure.strip().splitlines()[-TOLD:])


class Job:
    """A task of a job. Before SLURM's time limit the run saves, and the job is queued again."""

    def __init__(self, config: Path, worker: Sequence[str]):
        self.config, self.worker = config, worker
        self.attempt: Attempt | None = None

    def __call__(self) -> int:
        import submitit

        its = submitit.JobEnvironment()
        address: tuple[str, ...] = ()
        if its.num_tasks > 1 and its.cluster == "slurm":
            address = ("slurm",)
        elif its.num_tasks > 1:
            port = 20_000 + int(its.job_id) % 20_000
            address = (f"127.0.0.1:{port}", str(its.num_tasks), str(its.global_rank))
        self.attempt = Attempt(self.config, self.worker, address)
        while (code := self.attempt.poll()) is None:
            time.sleep(0.1)
        return code

    def checkpoint(self) -> Any:
        """Called by submitit when SLURM is about to end the job."""
        import submitit

        if self.attempt is not None:
            self.attempt.stop()
        return submitit.helpers.DelayedSubmission(Job(self.config, self.worker))

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "attempt": None}


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


def _end_with_parent() -> None:
    """Sends SIGTERM to this process, so that training saves, when the other end of standard input closes."""

    def wait() -> None:
        while os.read(0, 1024):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


def main(arguments: Sequence[str]) -> None:
    """One attempt, as described at the head of this module."""
    _end_with_parent()
    sys.exit(attempt(Path(arguments[0]), arguments[1:]))


if __name__ == "__main__":
    main(sys.argv[1:])
