"""The training loop: steps, validation, checkpoints, and all ways in which a run ends."""

from __future__ import annotations

import json
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int

from jaxmlip.crystals import batching
from jaxmlip.data.batch import Batch, SpectraShape, collate, stack
from jaxmlip.data.dataset import Split, check, spectral_labels
from jaxmlip.data.loader import Loader, Plan
from jaxmlip.derivatives.memory_plan import gb
from jaxmlip.potential import Potential, architecture_of
from jaxmlip.system import parallel
from jaxmlip.system.begun import changes, described
from jaxmlip.system.memory import available
from jaxmlip.training.checkpoints import RECORD, Checkpoint, CheckpointError, Checkpoints, on_host
from jaxmlip.training.config import TrainConfig
from jaxmlip.training.losses import LossConfig, means
from jaxmlip.training.step import Needs, TrainState, init_state, make_eval_step, make_train_step, potential_of

DEAD = 20  # steps without a gradient; after so many Adam's averages of earlier gradients move nothing either
AHEAD = 2  # steps handed to the devices at a time: they never wait, and memory stays bounded


@dataclass(frozen=True)
class Compiled:
    """The program of a step is there, and says what it needs."""

    step: int
    needs: Needs
    seconds: float  # of compiling


@dataclass(frozen=True)
class Trained:
    """Means of the metrics of `make_train_step` over the steps since the last report."""

    step: int
    epoch: float
    metrics: dict[str, float]
    crystals_per_second: float | None  # None for the first step of a process, which compiles
    atoms_per_second: float | None
    waiting: float  # fraction of the time spent waiting for data


@dataclass(frozen=True)
class Validated:
    """Errors on the whole validation set, in the units of `losses.UNITS`; `best`: the smallest so far."""

    step: int
    epoch: float
    metrics: dict[str, float]
    best: bool


@dataclass(frozen=True)
class Saved:
    """A checkpoint is complete."""

    step: int
    path: Path


@dataclass(frozen=True)
class NotSaved:
    """A checkpoint could not be written, and training goes on."""

    step: int
    message: str


@dataclass(frozen=True)
class Resumed:
    """Training goes on after `step`; later steps that were reported before are done again."""

    step: int


@dataclass(frozen=True)
class Stopped:
    """Nothing more will be trained."""

    step: int
    reason: str


Event = Compiled | Trained | Validated | Saved | NotSaved | Resumed | Stopped


@dataclass(frozen=True, eq=False)
class Fitted:
    """The result of a run."""

    potential: Potential  # of the best step if there was a validation set, else of the last
    last: Potential
    step: int  # the last
    best: int | None  # the best step
    reason: str  # why training stopped
    history: list[dict[str, float]]  # the metrics of every validation, with its step


class InterruptedRun(SystemExit):
    """SIGTERM or Ctrl-C came, and the run is saved. Uncaught, it ends Python with the signal's exit code."""

    def __init__(self, message: str, number: int):
        super().__init__(128 + number)
        self.message = message

    def __str__(self) -> str:
        return self.message


class DivergedError(RuntimeError):
    """The loss or the gradient is not finite, or the gradient stays zero. The message gives the step, and the
    last good one."""


class OtherRunError(ValueError):
    """The folder holds a run of other data or settings."""


def fit(
    potential: Potential,
    train: Loader,
    validation: Split | None,
    config: TrainConfig,
    mesh: Mesh,
    folder: str | Path,
    report: Callable[[Event], None] = lambda event: None,
) -> Fitted:
    """Trains `potential` on the batches of `train`, or goes on with the run that `folder` holds.

    A run that goes on takes the same steps as one that never stopped. If all steps of a run are done and
    `config` asks for more, it goes on with the state of the optimizer, and with the learning rates of the
    longer schedule. `folder` gets start/, the potential that training begins with, and checkpoints/. `report`
    is called from the first process with each Event in turn. SIGTERM and Ctrl-C save the run and raise
    InterruptedRun; a second signal ends the process as usual.

    `config` gives the loss, the optimizer, the number of steps (default: the whole plan of `train`), and when
    to validate, report and save. Its model and data are not used: the arguments are.

    Raises DatasetError if the data do not suit the potential, OtherRunError if the run in `folder` was begun
    with other data or settings, DivergedError if a loss is not finite or the gradient stays zero,
    CheckpointError if no checkpoint in `folder` can be used, and ValueError if `config` does not fit the
    data.
    """
    run = _Run(potential, train, validation, config, mesh, Path(folder), report)
    try:
        return run.fit()
    finally:
        run.close()


def evaluation_batches(
    split: Split,
    batch_size: int,
    reference_energies: np.ndarray,
    mesh: Mesh,
    dtype=np.float32,
    spectra: Int[np.ndarray, "n 2"] | None = None,
    waves: int = 0,
) -> Iterator[Batch]:
    """Every crystal of `split` once, in batches of one shape with about `batch_size` crystals over the mesh.

    The leading axis is this process's shards. A crystal with several Hessian columns always gives the same
    one, and one with frequencies the same `waves` wave vectors; `spectra` is as `Plan` has it.
    """
    shards = mesh.devices.size
    groups = _groups(split.sizes, max(1, -(-batch_size // shards)), shards)
    shape = _shape(split.sizes, groups)
    room = None if spectra is None else _spectra_shape(split, groups, spectra, waves)
    for start in range(0, len(groups), shards):
        yield stack(
            [
                collate(
                    [split[int(k)] for k in groups[start + shard]],
                    shape,
                    reference_energies,
                    [np.random.default_rng(k) for k in groups[start + shard]],
                    dtype,
                    spectra=room,
                )
                for shard in parallel.local_shards(mesh)
            ]
        )


def validate(
    evaluate: Callable, params: Any, batches: Iterator[Batch], loss: LossConfig, stop=lambda: False
) -> dict[str, float] | None:
    """The finite metrics of `losses.means` over all of `batches`; None if `stop()` returned true.

    `evaluate` comes from `make_eval_step`.
    """
    sums: list[Any] = []
    for batch in batches:
        if stop():
            return None
        sums.append(evaluate(params, batch))
        if len(sums) > AHEAD:
            jax.block_until_ready(sums[-1 - AHEAD])
    # Summed in float64: a million terms in float32 would lose digits.
    total = jax.tree.map(lambda *x: np.sum(np.asarray(x, np.float64)), *jax.device_get(sums))
    found = {name: float(x) for name, x in means(loss, total).items()}
    return {name: x for name, x in found.items() if np.isfinite(x)}


class _Run:
    """One run of training: its state, its record, and the work due between steps."""

    def __init__(self, potential, train, validation, config, mesh, folder, report):
        self.train, self.validation, self.config, self.mesh = train, validation, config, mesh
        self.folder, self.first = folder, jax.process_index() == 0
        self.report = report if self.first else lambda event: None
        self.steps = self._checked_steps(potential)
        self.validate_every = config.validate_every or train.plan.steps_per_epoch
        self.saver = _Saver(Checkpoints(folder / "checkpoints", config.keep), self.report)
        found = self.saver.checkpoints.latest()
        self.potential, self.record = (
            self._begin(potential) if found is None else self._go_on(potential, found)
        )
        self._check_references()
        self.state: TrainState = init_state(self.potential, config.optimizer, self.steps, mesh)
        self.step = 0
        if found is not None:
            self.state = found.restore(self.state)
            self.step = self.saver.step = found.step
            self.report(Resumed(found.step))
        self.meter = _Meter(config.report_every, train.plan, self.saver)
        self.signals = _Signals()

    def _checked_steps(self, potential: Potential) -> int:
        """The number of steps. Raises DatasetError or ValueError if data and settings do not fit together."""
        train, config = self.train, self.config
        for split in (train.split, train.replay, self.validation):
            if split is not None:
                check(split, potential)
        config.check_numbers()
        steps = train.plan.steps if config.steps is None else config.steps
        if steps > train.plan.steps:
            raise ValueError(
                f"found steps={steps}, but the loader's plan has {train.plan.steps} steps "
                f"({train.plan.steps_per_epoch} an epoch). Make a plan of more epochs, or give fewer steps."
            )
        if config.patience and self.validation is None:
            raise ValueError(
                f"found patience={config.patience} without a validation set. Give one, or leave out patience."
            )
        config.optimizer.updates(steps)
        return steps

    def _begin(self, potential: Potential) -> tuple[Potential, dict[str, Any]]:
        """The potential and the record of a new run."""
        if self.first:
            potential.save(self.folder / "start")
        return potential, {
            "identity": self._identity(potential),
            "best": None,  # step
            "best_value": None,
            "stale": 0,  # validations since
            "validated": None,  # the last step that was
            "history": [],
            "stopped": None,
        }

    def _go_on(self, potential: Potential, found: Checkpoint) -> tuple[Potential, dict[str, Any]]:
        """The potential and the record of the run in `found`. Raises OtherRunError if it is another run."""
        identity, begun = self._identity(potential), found.record["identity"]
        more = begun["steps"] == found.step < self.steps
        if changed := changes(begun, identity, ("steps",) if more else ()):
            raise OtherRunError(
                f"{self.folder} holds a run of other data or settings. Use those of that run to continue it, "
                f"or give another folder for a new run:\n  {described(changed)}"
            )
        record = found.record | ({"identity": identity, "stopped": None} if more else {})
        return potential.with_parameters(self.folder / "start"), record

    def _identity(self, potential: Potential) -> dict[str, Any]:
        """All that must stay the same when a run goes on, as JSON."""
        train, config = self.train, self.config
        made = {
            "potential": {
                "name": potential.name,
                "architecture": architecture_of(potential.model),
                "hyperparameters": asdict(potential.model.config),
                "dtype": potential.dtype,
            },
            "training set": _described(train.split),
            "replay set": None if train.replay is None else _described(train.replay),
            "replay_batch": train.plan.replay_batch,
            "mixed": train.mixed,
            "waves": train.plan.waves,
            "validation set": None if self.validation is None else _described(self.validation),
            "batch_size": train.plan.batch_size,
            "seed": train.plan.seed,
            "steps": self.steps,
            **{name: getattr(config, name) for name in ("validate_every", "monitor", "patience")},
            "loss": asdict(config.loss),
            "optimizer": asdict(config.optimizer),
        }
        return json.loads(json.dumps(made))

    def fit(self) -> Fitted:
        if self.record["stopped"] is None:
            self._train()
            self.saver.look(wait=True)
        self.report(Stopped(self.step, self.record["stopped"]))
        best = self.saver.best(self.step, self.state, self.record)
        return Fitted(
            potential=potential_of(self.potential, best),
            last=potential_of(self.potential, self.state),
            step=self.step,
            best=self.record["best"],
            reason=self.record["stopped"],
            history=self.record["history"],
        )

    def close(self) -> None:
        try:
            self.saver.look(wait=True)
        finally:
            self.saver.checkpoints.close()

    def _train(self) -> None:
        config = self.config
        take = make_train_step(self.potential, config.loss, config.optimizer, self.steps, self.mesh)
        evaluate = make_eval_step(self.potential, config.loss, self.mesh)
        with self.signals:
            self._validate_and_save(evaluate)
            batches = iter(self.train.iterate(self.step))
            while self.record["stopped"] is None:
                if self.signals.received(self.step):
                    self._interrupted()
                batch = self._next(batches)
                if self.meter.clock is None and not self.meter.pending:
                    self._say_needs(take, batch)
                self.state, metrics = take(self.state, batch)
                self.step += 1
                self.meter.add(self.step, metrics)
                self.saver.look()
                self._validate_and_save(evaluate)

    def _say_needs(self, take: Callable, batch: Batch) -> None:
        """Compiles the step, and says what it needs before it is taken."""
        begin = time.perf_counter()
        needs = take.needs(self.state, batch)
        self.report(Compiled(self.step, needs, time.perf_counter() - begin))
        if needs.held + needs.memory > (most := available()):
            warnings.warn(
                f"a step needs {gb(needs.memory)} besides the {gb(needs.held)} that the process holds, and "
                f"{gb(most)} may be used: the system may end the run. Take a smaller batch_size, or fewer "
                "waves.",
                stacklevel=2,
            )

    def _next(self, batches: Iterator[Batch]) -> Batch:
        begin = time.perf_counter()
        try:
            return next(batches)
        except Exception:
            # Save what was learnt before the data failed.
            self._save()
            self.saver.look(wait=True)
            raise
        finally:
            self.meter.waited += time.perf_counter() - begin

    def _validate_and_save(self, evaluate: Callable) -> None:
        """Validates and saves, if due after this step."""
        last = self.step == self.steps
        due = last or self.step % self.validate_every == 0
        if due and self.validation is not None and self.record["validated"] != self.step:
            self.meter.look(everything=True)
            self._validate(evaluate)
        if self.record["stopped"] is None and last:
            self.record["stopped"] = f"all {self.steps} steps are done"
        if self.record["stopped"]:
            self.meter.look(everything=True)
            if self.meter.idle and self.first:
                warnings.warn(
                    f"the gradient was exactly zero in the last {self.meter.idle} steps of the run: the "
                    "network may predict a constant. Check metrics.jsonl before you use it.",
                    stacklevel=2,
                )
        if self.step % self.config.checkpoint_every == 0 or self.record["stopped"]:
            self._save()

    def _validate(self, evaluate: Callable) -> None:
        config, record = self.config, self.record
        batches = evaluation_batches(
            self.validation,
            self.train.plan.batch_size,
            self.train.reference_energies,
            self.mesh,
            np.dtype(self.potential.dtype),
            spectral_labels(self.validation, config.loss.properties),
            config.waves,
        )
        stop = self.signals.seen if jax.process_count() == 1 else lambda: False
        metrics = validate(evaluate, self.state.eval_params, batches, config.loss, stop)
        if metrics is None:
            return
        if config.monitor not in metrics:
            if self.step:
                raise self.meter.diverged(f"{config.monitor} of the validation set is not finite", self.step)
            raise ValueError(
                f"found monitor={config.monitor!r}, but validation gives only {', '.join(metrics)}, since "
                "the validation set has no other labels. Choose one of these."
            )
        value = metrics[config.monitor]
        best = record["best_value"] is None or value < record["best_value"]
        record["history"].append({"step": self.step, **metrics})
        record["validated"] = self.step
        record["stale"] = 0 if best else record["stale"] + 1
        if best:
            record["best"], record["best_value"] = self.step, value
        self.report(Validated(self.step, self.meter.epoch(self.step), metrics, best))
        if config.patience and record["stale"] >= config.patience:
            record["stopped"] = (
                f"{config.monitor} has not improved in {record['stale']} validations; it was best, "
                f"{record['best_value']:.4g}, at step {record['best']}"
            )
        if best:
            self._save()
        self.meter.leave_out_this_time()

    def _save(self) -> None:
        """Begins to save the state of this step, once."""
        if self.saver.step != self.step:
            self.meter.look(everything=True)  # raises if the state is not finite: it must not be saved
            self.saver.save(self.step, self.state, self.record)

    def _interrupted(self) -> None:
        self._save()
        self.saver.look(wait=True)
        steps = self.saver.checkpoints.steps
        name = signal.Signals(self.signals.number).name
        message = (
            f"{name}: stopped after step {self.step} of {self.steps}. The last saved step is "
            f"{steps[-1] if steps else 'none'}, in {self.saver.checkpoints.folder}. The same command "
            "continues from there."
        )
        self.report(Stopped(self.step, message))
        if self.first:
            warnings.warn(message, stacklevel=2)
        raise InterruptedRun(message, self.signals.number)

    def _check_references(self) -> None:
        own, used = self.potential.params["reference_energies"], self.train.reference_energies
        if np.shape(own) != np.shape(used) or not np.allclose(own, used, rtol=0, atol=1e-6):
            raise ValueError(
                "the loader subtracts other reference energies from the labels than the potential adds. Make "
                "the loader with potential.params['reference_energies']"
                + (f" of {self.folder / 'start'}." if (self.folder / "start").exists() else ".")
            )


class _Saver:
    """The checkpoints of a run, and the reports about them."""

    def __init__(self, checkpoints: Checkpoints, report: Callable[[Event], None]):
        self.checkpoints, self.report = checkpoints, report
        self.step: int | None = None  # the last that was handed to `checkpoints`
        self.best_arrays: dict[str, np.ndarray] | None = None

    def save(self, step: int, state: TrainState, record: dict[str, Any]) -> None:
        """Waits for the previous save, then begins to save."""
        self.look(wait=True)
        arrays = on_host(state)
        if record["best"] == step:
            self.best_arrays = arrays
        self.step = step
        try:
            self.checkpoints.save(step, arrays, record)
        except CheckpointError as error:
            self._failed(error)

    def look(self, wait: bool = False) -> None:
        """Reports the outcome of the last save, if it is known."""
        try:
            step = self.checkpoints.finished(wait)
        except CheckpointError as error:
            self._failed(error)
        else:
            if step is not None:
                self.report(Saved(step, self.checkpoints.path(step)))

    def best(self, step: int, state: TrainState, record: dict[str, Any]) -> TrainState:
        """The state of the best step, or `state`, that of `step`, if no step was better."""
        best = record["best"]
        if best in (None, step):
            return state
        try:
            if self.best_arrays is None:
                return self.checkpoints.read(best).restore(state)
            return Checkpoint(best, self.best_arrays, {}).restore(state)
        except CheckpointError as error:
            warnings.warn(f"{error} The potential is that of the last step, not of the best.", stacklevel=2)
            return state

    def _failed(self, error: CheckpointError) -> None:
        if jax.process_index() == 0:
            warnings.warn(f"{error} Training goes on.", stacklevel=2)
        self.report(NotSaved(self.step, str(error)))
        self.step = None


class _Meter:
    """The metrics of steps. They are read a few steps late, so that devices never wait for this process."""

    def __init__(self, report_every: int, plan: Plan, saver: _Saver):
        self.report_every, self.plan, self.saver, self.report = report_every, plan, saver, saver.report
        self.pending: list[tuple[int, dict[str, jax.Array]]] = []  # steps whose metrics were not read yet
        self.idle = 0  # steps in a row with a loss and without a gradient
        self.waited = 0.0  # s spent waiting for data
        self.clock: float | None = None  # when the first pending step began

    def epoch(self, step: int) -> float:
        return step / self.plan.steps_per_epoch

    def add(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Takes the metrics of a step, and reports if due. Raises DivergedError."""
        self.pending.append((step, metrics))
        self.look()

    def leave_out_this_time(self) -> None:
        """Counts the time of steps from now on."""
        self.clock = time.perf_counter() if self.clock else None

    def look(self, everything: bool = False) -> None:
        """Fetches and reports the metrics of steps that are done; waits for steps more than AHEAD ago."""
        if len(self.pending) > AHEAD:
            jax.block_until_ready(self.pending[-1 - AHEAD][1])
        first = self.clock is None
        enough = len(self.pending) >= self.report_every + AHEAD
        if not self.pending or not (first or enough or everything):
            return
        count = len(self.pending) if first or everything else self.report_every
        looked, self.pending = self.pending[:count], self.pending[count:]
        metrics = jax.device_get([m for _, m in looked])
        for (step, _), m in zip(looked, metrics, strict=True):
            for name in ("loss", "grad_norm"):
                if not np.isfinite(m[name]):
                    raise self.diverged(f"{name} is {m[name]}", step)
            # A zero gradient is right if the loss is zero: without labels, or without errors.
            self.idle = self.idle + 1 if m["grad_norm"] == 0 < m["loss"] else 0
            if self.idle == DEAD:
                raise self._dead(step)
        now = time.perf_counter()
        seconds = None if first else now - self.clock
        means_of = {
            name: float(np.mean(known))
            for name in metrics[0]
            if (known := [m[name] for m in metrics if np.isfinite(m[name])])
        }
        crystals, atoms = (sum(float(m[n]) for m in metrics) for n in ("crystals", "atoms"))
        self.report(
            Trained(
                step=looked[-1][0],
                epoch=self.epoch(looked[-1][0]),
                metrics=means_of,
                crystals_per_second=None if first else crystals / seconds,
                atoms_per_second=None if first else atoms / seconds,
                waiting=0.0 if first else min(1.0, self.waited / seconds),
            )
        )
        self.clock, self.waited = now, 0.0

    def diverged(self, what: str, step: int) -> DivergedError:
        self.saver.look(wait=True)
        crystals = np.concatenate(self.plan.batch(step - 1))
        shown = ", ".join(map(str, crystals[:20])) + (", …" if len(crystals) > 20 else "")
        good = self.saver.checkpoints.steps
        back = f"The last good checkpoint is {self.saver.checkpoints.path(good[-1])}." if good else ""
        return DivergedError(
            f"{what} at step {step}, with the crystals {shown} of the training set (jaxmlip data inspect "
            f"shows outliers). {back} Train again in another folder with a lower learning rate or with clip, "
            "or without these crystals."
        )

    def _dead(self, step: int) -> DivergedError:
        self.saver.look(wait=True)
        since = step - self.idle + 1
        alive = [s for s in self.saver.checkpoints.steps if s < since]
        back = f"The last checkpoint before is {self.saver.checkpoints.path(alive[-1])}. " if alive else ""
        return DivergedError(
            f"the gradient has been exactly zero since step {since}, but the loss is not: the trained "
            f"parameters no longer change it. {back}If the network predicts a constant, train again in "
            "another folder with a lower learning rate or with clip. If the loss only has properties that "
            "the trained parameters do not change, train others (optimizer.train)."
        )


class _Signals:
    """Remembers SIGTERM and Ctrl-C instead of ending the process; the second one acts as usual."""

    def __enter__(self) -> _Signals:
        self.number = signal.SIGTERM
        self._seen, self._before = False, {}
        # Several processes agree on a step through JAX, which has its own handler. Threads get no signals.
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: object) -> None:
        self._seen, self.number = True, number
        self.__exit__()

    def seen(self) -> bool:
        return self._seen

    def received(self, step: int) -> bool:
        """True if the run shall stop at this step; the same on all processes."""
        if jax.process_count() == 1:
            return self._seen
        from jax.experimental import multihost_utils

        return multihost_utils.reached_preemption_sync_point(step)


def _groups(sizes: np.ndarray, each: int, shards: int) -> list[list[int]]:
    """Indices of crystals in groups of at most `each`, similar in size; a multiple of `shards` of them."""
    count = max(1, -(-len(sizes) // each))
    count = -(-count // shards) * shards
    groups: list[list[int]] = [[] for _ in range(count)]
    order = np.argsort(-np.asarray(sizes).sum(axis=1), kind="stable")
    for row, start in enumerate(range(0, len(order), count)):
        dealt = order[start : start + count]
        # Alternating directions, so that no group gets the largest crystal of every round.
        for g, k in enumerate(dealt if row % 2 == 0 else dealt[::-1]):
            groups[g if row % 2 == 0 else count - len(dealt) + g].append(int(k))
    return groups


def _shape(sizes: np.ndarray, groups: list[list[int]]) -> batching.BatchShape:
    """The shape that holds each group."""
    most = np.max([np.asarray(sizes)[g].sum(axis=0) for g in groups], axis=0)
    return batching.BatchShape.holding(most, max(1, *map(len, groups)))


def _spectra_shape(split: Split, groups: list[list[int]], spectra: np.ndarray, waves: int):
    """The room for those crystals of each group that have frequencies or averages; None if none has."""
    waving = spectra.any(axis=1)
    cells = _shape(split.sizes, [[k for k in group if waving[k]] for group in groups])
    return SpectraShape.holding(cells, int(split.sizes[waving, 0].max(initial=0)), spectra, waves)


def _described(split: Split) -> str:
    """One line that describes a split and changes whenever its content does."""
    labels = ", ".join(f"{count} {name}" for name, count in split.counts.items() if count)
    atoms = int(split.sizes[:, 0].sum())
    return f"{len(split)} crystals with {atoms} atoms; {labels or 'no labels'} ({split.digest[:12]})"


def taken(folder: str | Path) -> int | None:
    """The number of steps of the run in `folder` if it has taken all of its steps; else None."""
    checkpoints = Checkpoints(Path(folder) / "checkpoints")
    try:
        last = checkpoints.steps[-1]
        record = json.loads((checkpoints.path(last) / RECORD).read_text())
        return last if record["identity"]["steps"] == last else None
    except (IndexError, OSError, ValueError, KeyError, TypeError):  # damaged; reported when it is read
        return None
