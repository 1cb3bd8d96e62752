"""Work in processes of this machine, or in jobs of SLURM: started, watched, stopped with this process.

A `Task` is a command with a file for its output. `Local` starts some of them at a time on this machine,
`Slurm` hands each to SLURM as a job. What the command does, and how it goes on after it was killed, is its
own affair. The program of a command calls `end_with_parent`.
"""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxmlip.system.console import RANK, Telling

IN_USE = 75  # exit code if another process does the work: EX_TEMPFAIL of sysexits.h
TOLD = 5  # lines of the output of a failed process


class JobsError(ValueError):
    """Processes or jobs cannot be started as asked. The message says what was found and what was needed."""


class Task(NamedTuple):
    """A command, the file that its output is added to, and how much it says there."""

    command: tuple[str, ...]
    log: Path
    rank: Telling = Telling.USUAL


class Attempt:
    """A process that does one task. It is told to stop when this process ends, even if killed."""

    def __init__(self, task: Task, more: Sequence[str] = (), threads: int | None = None):
        self.log = task.log
        self.start = _size(self.log)
        env = {**os.environ, RANK: task.rank.name}
        if threads is not None:  # NPROC is for XLA, the others for NumPy's linear algebra
            names = ("NPROC", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
            env |= dict.fromkeys(names, str(threads))
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*task.command, *more],
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
        """Makes the process stop; returns the exit code."""
        self.process.stdin.close()
        return self.process.wait()

    def reason(self) -> str:
        """The reason of the failure."""
        return _reason(self.process.returncode, self.log, self.start)


def _size(log: Path) -> int:
    return log.stat().st_size if log.exists() else 0


def _reason(code: int, log: Path, start: int) -> str:
    how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    said = last_lines(log, TOLD, start)
    return f"{how}; {log} ends:\n{said}" if said else f"{how}, without output in {log}"


def last_lines(path: Path, count: int, start: int = 0) -> str:
    """The last non-empty lines of a file after byte `start`."""
    try:
        with path.open("rb") as file:
            end = file.seek(0, 2)
            file.seek(max(start, end - 20_000))
            text = file.read().decode(errors="replace")
    except FileNotFoundError:
        return ""
    lines = [line.rstrip() for line in text.splitlines() if line.strip()]
    return "\n".join(line if len(line) <= 300 else line[:300] + " …" for line in lines[-count:])


class Local:
    """Backend that runs a number of processes on this machine at a time, which share its cores."""

    def __init__(self, processes: int):
        if processes < 1:
            raise JobsError(f"found processes={processes}, needed at least 1.")
        self.room = processes
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        self.threads = max(1, cores // processes) if processes > 1 else None
        self.started: list[Attempt] = []

    def start(self, tasks: Sequence[Task]) -> list[Attempt]:
        """Starts one process for each."""
        made = [Attempt(task, threads=self.threads) for task in tasks]
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
            raise JobsError("--slurm needs the package submitit: pip install 'jaxmlip[slurm]'.") from None
        parameters = {"name": "jaxmlip", "timeout_min": 24 * 60, **parameters}
        cluster = parameters.pop("cluster", "slurm")
        try:
            self.executor = submitit.AutoExecutor(folder / "slurm", cluster)
            self.executor.update_parameters(**parameters)
        except (AssertionError, NameError, TypeError, ValueError, RuntimeError) as error:
            raise JobsError(f"--slurm: {error}") from None

    def start(self, tasks: Sequence[Task]) -> list[Submitted]:
        """Submits one job for each, together as an array."""
        with self.executor.batch():
            jobs = [self.executor.submit(Job(task)) for task in tasks]
        return [Submitted(job, task.log) for job, task in zip(jobs, tasks, strict=True)]

    def __enter__(self) -> Slurm:
        return self

    def __exit__(self, *_: object) -> None:
        """Jobs go on."""


class Submitted:
    """A submitted job, with the interface of `Attempt`."""

    def __init__(self, job: Any, log: Path):
        self.job, self.log, self.failure = job, log, ""
        self.start = _size(log)
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
    """A job of one or several processes, which find each other by what is added to the command: "slurm", or
    host:port, their number and the number of each.

    Before SLURM's time limit the process is told to stop, and the job is queued again.
    """

    def __init__(self, task: Task):
        self.task = task._replace(log=task.log.absolute())
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
        self.attempt = Attempt(self.task, address)
        while (code := self.attempt.poll()) is None:
            time.sleep(0.1)
        return code

    def checkpoint(self) -> Any:
        """Called by submitit when SLURM is about to end the job."""
        import submitit

        if self.attempt is not None:
            self.attempt.stop()
        return submitit.helpers.DelayedSubmission(Job(self.task))

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "attempt": None}


def end_with_parent() -> None:
    """Sends SIGTERM to this process when the other end of standard input closes, as it does when the process
    that started this one ends."""

    def wait() -> None:
        while os.read(0, 1024):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()
