"""Checkpoints of a training run: all that it needs to go on as if it had never stopped."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import warnings
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, unquote

import jax
import numpy as np

from jaxmlip.system.borders import in_lines
from jaxmlip.system.files import sha256

DIGESTS = "sha256.json"  # of every other file; written last
RECORD = "run.json"
ARRAYS = "arrays"
SPARE = 2**20  # bytes on the disk for the names and places of arrays


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written, read or used. The message says what was found and what to do."""


class DamagedCheckpointError(CheckpointError):
    """A checkpoint whose files have changed since they were written."""


class Checkpoint(NamedTuple):
    """One checkpoint in memory: the arrays of a state by name, and the record saved with them."""

    step: int
    arrays: dict[str, np.ndarray]
    record: dict[str, Any]

    def restore(self, like: Any) -> Any:
        """The saved state with the structure, shapes, types and devices of `like`.

        Raises CheckpointError if the two have different arrays.
        """
        named, tree = jax.tree.flatten_with_path(like)
        wanted = {_name(path): leaf for path, leaf in named}
        wrong = [f"{n}: not in the checkpoint" for n, x in wanted.items() if x.size and n not in self.arrays]
        wrong += [f"{n}: unknown to this run" for n in self.arrays if n not in wanted]
        wrong += [
            f"{n}: found {found}, needed {needed}"
            for n, leaf in wanted.items()
            if n in self.arrays
            and (found := _kind(self.arrays[n])) != (needed := _kind(leaf))  # shape and type
        ]
        if wrong:
            raise CheckpointError(
                f"the checkpoint of step {self.step} belongs to another model or optimizer. Train in another "
                f"folder, or go on with the model and optimizer of that run:{in_lines(wrong)}"
            )
        with jax.enable_x64(True):  # without it float64 would be rounded
            leaves = [_placed(self.arrays[n], leaf) if leaf.size else leaf for n, leaf in wanted.items()]
        return jax.tree.unflatten(tree, leaves)


def steps_in(folder: Path) -> list[int]:
    """The steps that have a checkpoint in `folder`, ascending."""
    return sorted(int(p.name) for p in folder.glob("[0-9]*") if p.name.isdigit() and p.is_dir())


def on_host(state: Any) -> dict[str, np.ndarray]:
    """A copy of the arrays of `state` in the host's memory, by name; each is replicated over the devices.

    Arrays without elements are left out: Orbax refuses them.
    """
    # A copy, because a training step may write the next state into the same memory.
    named = jax.tree.leaves_with_path(jax.device_get(state))
    return {_name(path): np.array(leaf) for path, leaf in named if np.size(leaf)}


class Checkpoints:
    """The checkpoints of one run in `folder`: the last `keep`, and the best steps that these name.

    Orbax writes the arrays in the background. A checkpoint is written under a temporary name, the sha256 of
    its files last, and then renamed: under its own name it is complete. A process that is killed leaves at
    worst a temporary folder, which the next one removes. If several processes train together, each makes one
    of these objects, all see one file system, and only the first process renames and removes.
    """

    def __init__(self, folder: str | Path, keep: int = 3):
        if keep < 1:
            raise ValueError(
                f"found keep={keep}, needed at least 1: a run continues from its last checkpoint."
            )
        self.folder = Path(folder).absolute()
        self.keep = keep
        self._first = jax.process_index() == 0
        self._orbax: Any = None
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._pending: tuple[int, Future] | None = None

    @property
    def steps(self) -> list[int]:
        """The steps that have a checkpoint, ascending."""
        return steps_in(self.folder)

    def path(self, step: int) -> Path:
        return self.folder / f"{step:08d}"

    def save(self, step: int, arrays: Mapping[str, np.ndarray], record: dict[str, Any]) -> None:
        """Waits for the previous save, then begins to save `arrays` (of `on_host`) and `record` (for JSON).

        `record["best"]`, if given, names the step of the best checkpoint so far, which is kept as well. Later
        errors are raised by `finished`.
        """
        import orbax.checkpoint as ocp

        if self._pending is not None:
            raise CheckpointError(f"step {self._pending[0]} is still being saved; call `finished` first.")
        text = json.dumps(record, indent=1, allow_nan=False)
        if self._orbax is None:
            self._orbax = ocp.AsyncCheckpointer(ocp.PyTreeCheckpointHandler())
            for name in ("absl", "asyncio", "concurrent.futures"):
                logging.getLogger(name).addFilter(_not_of_a_failed_save)
        draft = self.folder / f"saving-{step}"
        # Names become paths, and a/b and a//b are the same path.
        kept = {quote(name, safe=""): x for name, x in arrays.items()}
        try:
            if self._first:
                for old in self.folder.glob("saving-*"):
                    shutil.rmtree(old)
                draft.mkdir(parents=True)
                # If the disk is full, Orbax and its threads fill the log.
                needed = sum(x.nbytes for x in arrays.values()) + SPARE
                if shutil.disk_usage(draft).free < needed:
                    raise OSError(errno.ENOSPC, f"{needed / 2**20:.1f} MiB are needed")
            self._orbax.save(draft / ARRAYS, args=ocp.args.PyTreeSave(kept), force=True)
        except Exception as error:
            self._clear(draft)
            raise self._failed(step, error) from error
        self._pending = step, self._thread.submit(self._finish, step, draft, text)

    def finished(self, wait: bool = False) -> int | None:
        """The step whose save was completed since the last call; None if no save was.

        Raises CheckpointError if it failed; older checkpoints are intact.
        """
        if self._pending is None or not (wait or self._pending[1].done()):
            return None
        (step, future), self._pending = self._pending, None
        try:
            future.result()
        except Exception as error:
            self._clear(self.folder / f"saving-{step}")
            raise self._failed(step, error) from error
        return step

    def latest(self) -> Checkpoint | None:
        """The newest undamaged checkpoint; None if there is no checkpoint.

        Damaged ones are set aside under another name, with a warning. Raises DamagedCheckpointError if all
        checkpoints are damaged.
        """
        steps, damaged = self.steps, []
        for step in reversed(steps):
            try:
                found = self.read(step)
            except DamagedCheckpointError as error:
                damaged.append(str(error))
                continue
            if damaged:
                warnings.warn(
                    "\n".join(damaged) + f"\nGoing back to the checkpoint of step {step}.", stacklevel=2
                )
                self._set_aside([s for s in steps if s > step])
            return found
        if damaged:
            raise DamagedCheckpointError(
                "\n".join(damaged)
                + f"\nAll checkpoints in {self.folder} are damaged. Restore a copy of one, or remove that "
                "folder to begin again."
            )
        return None

    def read(self, step: int) -> Checkpoint:
        """The checkpoint of `step`. Raises DamagedCheckpointError if it is damaged or missing."""
        import orbax.checkpoint as ocp

        path = self.path(step)
        _verify(path)
        try:
            record = json.loads((path / RECORD).read_text())
            handler = ocp.PyTreeCheckpointHandler()
            names = handler.metadata(path / ARRAYS).tree
            as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), dict(names))
            arrays = handler.restore(path / ARRAYS, args=ocp.args.PyTreeRestore(restore_args=as_numpy))
        except Exception as error:  # Orbax may raise anything for files that it cannot read
            raise DamagedCheckpointError(f"{path} cannot be read ({error}).") from error
        return Checkpoint(step, {unquote(n): np.asarray(x) for n, x in arrays.items()}, record)

    def close(self) -> None:
        """Waits for what is being saved. Raises CheckpointError if it failed."""
        try:
            self.finished(wait=True)
        finally:
            self._thread.shutdown()
            if self._orbax is not None:
                self._orbax.close()

    def _finish(self, step: int, draft: Path, record: str) -> None:
        self._orbax.wait_until_finished()
        if not self._first:
            return
        (draft / RECORD).write_text(record)
        files = [p for p in sorted(draft.rglob("*")) if p.is_file()]
        digests = {p.relative_to(draft).as_posix(): sha256(_sync(p)) for p in files}
        (draft / DIGESTS).write_text(json.dumps(digests, indent=1))
        _sync(draft / DIGESTS)
        path = self.path(step)
        if path.exists():  # left by a run that fell back to an earlier step
            shutil.rmtree(path)
        draft.rename(path)
        self._remove_old()

    def _clear(self, draft: Path) -> None:
        if self._first:
            shutil.rmtree(draft, ignore_errors=True)

    def _remove_old(self) -> None:
        kept = self.steps[-self.keep :]
        # A run that goes back to a checkpoint needs the best one that this names.
        needed = {*kept, *(_best(self.path(s)) for s in kept)}
        for step in self.steps:
            if step not in needed:
                shutil.rmtree(self.path(step))

    def _set_aside(self, steps: list[int]) -> None:
        for step in steps if self._first else []:
            aside = self.path(step).with_suffix(".damaged")
            shutil.rmtree(aside, ignore_errors=True)
            self.path(step).rename(aside)

    def _failed(self, step: int, error: Exception) -> CheckpointError:
        free = shutil.disk_usage(next(p for p in (self.folder, *self.folder.parents) if p.exists())).free
        older = (
            f"the checkpoint of step {self.steps[-1]} is intact" if self.steps else "there is no older one"
        )
        what = f"{type(error).__name__}: {error}"
        what = what if len(what) < 200 else f"{what[:200]}…"
        return CheckpointError(
            f"the checkpoint of step {step} was not saved in {self.folder}: {what} ({free / 2**20:.1f} MiB "
            f"free there); {older}. Check the space on the disk and the permissions of the folder."
        )


def _not_of_a_failed_save(entry: logging.LogRecord) -> bool:
    """Keeps out of the log Orbax's thousands of lines, one for each array that was not written.

    The error is raised once, as CheckpointError.
    """
    error = str(entry.exc_info[1]) if entry.exc_info else ""
    text = entry.getMessage() + error
    return not ("orbax" in entry.pathname or "saving-" in text or error == "Event loop is closed")


def _verify(path: Path) -> None:
    try:
        digests = json.loads((path / DIGESTS).read_bytes())
        expected = {str(n): str(d) for n, d in digests.items()}
    except FileNotFoundError:
        raise DamagedCheckpointError(f"{path} is not complete: it has no {DIGESTS}.") from None
    except (ValueError, AttributeError, OSError) as error:
        raise DamagedCheckpointError(f"{path / DIGESTS} is damaged ({error}).") from None
    if RECORD not in expected:
        raise DamagedCheckpointError(f"{path / DIGESTS} is damaged: it does not name {RECORD}.")
    for name, digest in expected.items():
        if not (path / name).is_file():
            raise DamagedCheckpointError(f"{path / name} is missing.")
        if sha256(path / name) != digest:
            raise DamagedCheckpointError(
                f"{path / name} is damaged: it has changed since it was written (sha256)."
            )


def _best(path: Path) -> int | None:
    try:
        return json.loads((path / RECORD).read_text())["best"]
    except (ValueError, KeyError, OSError):  # missing or damaged; `latest` reports it
        return None


def _sync(path: Path) -> Path:
    """Waits until a file is on the disk."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())
    return path


def _name(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _kind(x: Any) -> str:
    return f"{np.dtype(x.dtype)}{list(np.shape(x))}"


def _placed(x: np.ndarray, like: Any) -> Any:
    if not isinstance(like, jax.Array):
        return x
    return jax.make_array_from_callback(x.shape, like.sharding, lambda index: x[index])
