"""The cost of a sweep before it is run: steps, floating-point operations and time of each run."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from jaxmlip.crystals.batching import BatchShape
from jaxmlip.system import parallel
from jaxmlip.system.progress import track
from jaxmlip.training.config import DataConfig, ReplayConfig, TrainConfig, to_yaml
from jaxmlip.training.run import prepare
from jaxmlip.training.step import init_state, make_train_step
from jaxmlip.training.sweeps.folders import steps_done
from jaxmlip.training.sweeps.sweep import Run, check

if TYPE_CHECKING:
    from jaxmlip.data.loader import Loader
    from jaxmlip.potential import Potential

STEPS = 3  # timed steps, after one that is not timed


class Cost(NamedTuple):
    """Cost of one training step on all devices: FLOPs and bytes as XLA counts them, seconds as measured."""

    flops: float  # floating-point operations
    bytes: float  # that its instructions read and write, in memory or in a cache
    seconds: float
    compilation: float  # seconds, once
    devices: int
    shape: BatchShape  # of each device


@dataclass(frozen=True)
class Forecast:
    """The predicted cost of a run."""

    run: Run
    structures: int  # to train on
    steps: int
    done: int  # steps already taken
    cost: Cost  # of a step

    @property
    def flops(self) -> float:
        """FLOPs of all steps of the run, including those that are done."""
        return self.steps * self.cost.flops

    @property
    def seconds(self) -> float:
        """Seconds that the remaining steps will take here, without reading, compiling and validating."""
        return (self.steps - self.done) * self.cost.seconds


def forecast(runs: Sequence[Run], folder: str | Path) -> list[Forecast]:
    """The cost of each of `runs` on the devices of this process; writes nothing, reads all data.

    Runs that differ only in seeds and numbers of the optimizer are taken to have the same batches. For runs
    with the same network, loss and number of crystals in a batch, one program that fits the largest of their
    batches is compiled, and a few of its steps are timed. Raises as `run_training` does.
    """
    check(runs)
    plans: dict[str, _Planned] = {}
    programs: dict[tuple, list[_Planned]] = {}
    for run in track(runs, "data of the runs"):
        key = to_yaml(_without_numbers(run.config), described=False)
        if key not in plans:
            plans[key] = _planned(run.config)
            programs.setdefault(plans[key].program, []).append(plans[key])
    costs = {program: _cost(those) for program, those in track(programs.items(), "steps of each program")}
    found = []
    for run in runs:
        its = plans[to_yaml(_without_numbers(run.config), described=False)]
        done = its.steps if run.finished(folder) else steps_done(run.folder(folder)) or 0
        found.append(Forecast(run, its.structures, its.steps, done, costs[its.program]))
    return found


@dataclass(frozen=True, eq=False)
class _Planned:
    config: TrainConfig
    potential: Potential
    loader: Loader
    structures: int
    steps: int
    program: tuple


def _planned(config: TrainConfig) -> _Planned:
    from jaxmlip.system.console import console

    config = config.checked()
    mesh = parallel.make_mesh(config.devices)
    # This folder does not exist, so the potential is the one before the first step.
    potential, splits, loader = prepare(config, Path("dry-run"), mesh, console(quiet=True))
    plan = loader.plan
    same = replace(
        _without_numbers(config), data=DataConfig(), replay=ReplayConfig(), epochs=1, steps=None, batch_size=1
    )
    program = (to_yaml(same, described=False), plan.batch_size, plan.replay_batch, potential.elements)
    steps = plan.steps if config.steps is None else config.steps
    return _Planned(config, potential, loader, len(splits["train"]), steps, program)


def _without_numbers(config: TrainConfig) -> TrainConfig:
    """`config` with usual values for settings that change neither the program nor the number of steps."""
    usual = TrainConfig()
    its = config.optimizer
    numbers = ("learning_rate", "final_learning_rate", "warmup_steps", "weight_decay", "clip")
    same = {n: getattr(usual.optimizer, n) for n in numbers if getattr(its, n) is not None}
    free = ("seed", "validate_every", "monitor", "patience", "checkpoint_every", "keep", "report_every")
    return replace(
        config,
        model=replace(config.model, name=None),
        optimizer=replace(its, **same),
        **{name: getattr(usual, name) for name in (*free, "final", "tensorboard", "wandb")},
    )


def _cost(those: Sequence[_Planned]) -> Cost:
    """The cost of a step that fits the largest batch of all of `those`."""
    shape = BatchShape.covering(p.loader.plan.shape for p in those)
    its = max(those, key=lambda p: sum(p.loader.plan.shape))
    its.loader.plan.shape = shape
    mesh = parallel.make_mesh(its.config.devices)
    optimizer = its.config.optimizer
    with jax.enable_x64(its.potential.dtype == "float64"):
        step = make_train_step(its.potential, its.config.loss, optimizer, its.steps, mesh)
        state = init_state(its.potential, optimizer, its.steps, mesh)
        state, *rest = step.arguments(state, its.loader.at(0))
        began = time.perf_counter()
        program = step.jitted.lower(state, *rest).compile()
        compilation = time.perf_counter() - began
        taken = []
        for _ in range(1 + STEPS):
            began = time.perf_counter()
            state, _ = jax.block_until_ready(program(state, *rest))
            taken.append(time.perf_counter() - began)
    analysis: Mapping[str, Any] = program.cost_analysis() or {}
    n = mesh.devices.size
    flops, moved = (n * float(analysis.get(name, np.nan)) for name in ("flops", "bytes accessed"))
    return Cost(flops, moved, float(np.median(taken[1:])), compilation, n, shape)
