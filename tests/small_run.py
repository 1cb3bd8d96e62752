"""A training run of seconds: a network that compiles quickly learns springs. As a script it trains in FOLDER.

python tests/small_run.py FOLDER [seconds per batch]
"""

import os
import sys
import time
from dataclasses import replace
from functools import cache
from pathlib import Path

os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

import numpy as np
import quick_network
from ase.build import bulk

from jaxmlip.data.dataset import MemorySplit
from jaxmlip.data.labels import LabelledCrystal, Labels
from jaxmlip.data.loader import Loader, Plan
from jaxmlip.potential import Potential
from jaxmlip.system import parallel
from jaxmlip.training.config import TrainConfig
from jaxmlip.training.loop import Event, Fitted, Saved, fit
from jaxmlip.training.losses import LossConfig
from jaxmlip.training.optimizer import OptimizerConfig

CONFIG = quick_network.QuickConfig(elements=20)
SETTINGS = TrainConfig(
    loss=LossConfig(stress=0.0, magmoms=0.0),
    optimizer=OptimizerConfig(learning_rate=1e-2, ema=0.9),
    monitor="forces_mae",
    checkpoint_every=5,
    report_every=4,
)
EPOCHS, BATCH = 8, 4


@cache
def start() -> Potential:
    potential = quick_network.potential(CONFIG, seed=1, name="small")
    params = potential.params | {"reference_energies": np.linspace(-3, -1, 21)}
    return replace(potential, params=params)


@cache
def split(count: int, seed: int) -> MemorySplit:
    """Rattled crystals whose atoms are bound to their sites by springs."""
    rng = np.random.default_rng(seed)
    labelled = []
    for k in range(count):
        atoms = bulk("Si") if k % 3 else bulk("NaCl", "rocksalt", 5.0)
        moved = 0.1 * rng.normal(size=atoms.positions.shape)
        atoms.positions += moved
        labels = Labels(energy=(moved**2).sum() / 2 - 2.0 * len(atoms), forces=-moved)
        labelled.append(LabelledCrystal(atoms, labels))
    return MemorySplit.from_crystals(labelled, start().cutoffs)


def loader(mesh, epochs: int = EPOCHS, seed: int = 0, kind: type = Loader, count: int = 20) -> Loader:
    data, potential = split(count, 0), start()
    plan = Plan(data.sizes, BATCH, mesh.devices.size, seed, epochs)
    return kind(data, plan, potential.params["reference_energies"], np.float32)


def run(folder: Path, settings: TrainConfig = SETTINGS, report=lambda event: None, **options) -> Fitted:
    mesh = parallel.make_mesh()
    return fit(start(), loader(mesh, **options), split(7, 1), settings, mesh, folder, report)


class Slow(Loader):
    """A loader that takes its time, so that a signal can find a run at any step."""

    seconds = 0.0

    def iterate(self, start):
        for batch in super().iterate(start):
            time.sleep(self.seconds)
            yield batch


def say(event: Event) -> None:
    print(event.step if isinstance(event, Saved) else event, flush=True)


if __name__ == "__main__":
    Slow.seconds = float(sys.argv[2]) if len(sys.argv) > 2 else 0.0
    with quick_network.played():
        fitted = run(Path(sys.argv[1]), report=say, kind=Slow)
        fitted.last.save(Path(sys.argv[1]) / "last")
