"""Do small models of all three architectures learn a metal from 160 frames, in minutes on a laptop?

    python -m experiments.training.from_scratch --data FOLDER --out FOLDER

trains CHGNet, M3GNet and MACE of small widths from random parameters on molecular dynamics of molybdenum
(maml, 54 atoms, 300 to 3000 K, three volumes), compares forces on 20 frames that were held out, and writes
each as a model folder for `jaxmlip.load`. Finished runs are kept, and interrupted ones go on.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.datasets import against_dft, data_file, read, rms_force
from experiments.training.networks import WIDTHS, small
from experiments.training.tuning import tune
from jaxmlip.data.labels import LabelledCrystal
from jaxmlip.potential import Potential, random_potential
from jaxmlip.studies.study import Study, check_known, run
from jaxmlip.system.console import say
from jaxmlip.system.files import write_whole
from jaxmlip.system.plots import COLOURS, panels
from jaxmlip.system.tables import Table
from jaxmlip.training.config import TrainConfig, hyperparameters
from jaxmlip.training.loop import Trained, Validated
from jaxmlip.training.losses import LossConfig
from jaxmlip.training.optimizer import OptimizerConfig
from jaxmlip.training.references import refit

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LOSS = LossConfig(energy=1.0, forces=10.0, stress=0.1, magmoms=0.0)


@dataclass(frozen=True)
class Settings:
    """Do small models of all three architectures learn a metal from 160 frames?"""

    data: Path | None = None  # folder with maml_MoNbTaW/; default: JAXMLIP_DATA
    models: tuple[str, ...] = tuple(WIDTHS)
    epochs: int = 20
    batch_size: int = 4
    learning_rate: float = 5e-3
    seed: int = 0
    out: Path = Path("from_scratch")


def main(settings: Settings) -> None:
    check_known("model", settings.models, WIDTHS)
    frames = read(data_file(settings.data, "maml_MoNbTaW/Mo_AIMD.extxyz.gz"))
    order = np.random.default_rng(settings.seed).permutation(len(frames))
    held = max(1, len(frames) // 10)
    parts = np.split(order, (len(frames) - 2 * held, -held))
    train, validation, test = ([frames[k] for k in part] for part in parts)
    study = Study("from_scratch", settings)

    def measure(name: str) -> dict[str, Any]:
        return trained(settings, study.folder / name, name, train, validation, test)

    rows = study.each("training", settings.models, measure)
    study.write([table(rows)], {"from_scratch.png": ("Errors on validation frames.", figure(rows))})


def trained(settings: Settings, folder: Path, name: str, train, validation, test) -> dict[str, Any]:
    """Trains one model, saves it in `folder`/model, and compares it with the held-out frames."""
    start = untrained(name, train, settings.seed)
    curve = Curve(folder / "curve.json")

    def note(event):
        if isinstance(event, Validated):
            curve.add(event.epoch, event.metrics["forces_mae"])
            say(f"{name}: epoch {event.epoch:.0f}, {1e3 * event.metrics['forces_mae']:.0f} meV/Å")
        elif isinstance(event, Trained) and event.crystals_per_second:
            say(f"{name}: step {event.step}, {event.crystals_per_second:.1f} frames/s")

    steps = settings.epochs * math.ceil(len(train) / settings.batch_size)
    optimizer = OptimizerConfig(
        learning_rate=settings.learning_rate, clip=10.0, ema=0.99, warmup_steps=min(50, steps // 2)
    )
    potential = tune(
        start,
        train,
        TrainConfig(loss=LOSS, optimizer=optimizer, monitor="forces_mae", checkpoint_every=400, keep=1),
        folder,
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        seed=settings.seed,
        validation=validation,
        report=note,
    )
    potential.save(folder / "model")
    found, rms = against_dft(potential, test), rms_force(test)
    return {
        "parameters": potential.parameter_count,
        "minutes": curve.minutes,
        "mae": found.mae,
        "rms_force": rms,
        "slope": found.slope,
        "curve": list(curve.points.values()),
    }


class Curve:
    """Errors on validation frames by epoch, kept in a file, so that a run that goes on has those before.

    Points after the checkpoint that training goes on from come again.
    """

    def __init__(self, path: Path):
        self.path, self.began = path, time.perf_counter()
        known = json.loads(path.read_text()) if path.exists() else []
        self.points = {point["epoch"]: point for point in known}
        self.before = max((point["minutes"] for point in self.points.values()), default=0.0)

    @property
    def minutes(self) -> float:
        """The time of training, in all runs together."""
        return self.before + (time.perf_counter() - self.began) / 60

    def add(self, epoch: float, error: float) -> None:
        """Keeps the error (eV/Å) after `epoch`, on disk too."""
        self.points[epoch] = {"epoch": epoch, "minutes": self.minutes, "forces_mae": error}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(self.path, json.dumps(list(self.points.values())) + "\n")


def untrained(name: str, train: list[LabelledCrystal], seed: int) -> Potential:
    """A random potential whose reference energy and size of forces are those of the data."""
    given = small(name, WIDTHS[name])
    potential = random_potential(hyperparameters(name, given, elements=(42,)), seed=seed, name=f"{name}-Mo")
    zero = np.zeros_like(potential.params["reference_energies"], np.float64)
    energies = np.array([f.labels.energy for f in train])
    references = refit([f.atoms.numbers for f in train], energies, zero)
    scaled = {"reference_energies": references.energies, "scale": np.float32(rms_force(train))}
    return replace(potential, params=potential.params | scaled, elements=references.fitted)


def table(rows: dict[str, dict[str, Any]]) -> Table:
    columns = ("model", "parameters", "minutes", "force MAE / eV/Å", "of the RMS force", "slope")
    cells = [
        [name, f"{r['parameters']:,}", f"{r['minutes']:.1f}", r["mae"], r["mae"] / r["rms_force"], r["slope"]]
        for name, r in rows.items()
    ]
    return Table("Trained from random parameters, on frames held out", columns, cells)


def figure(rows: dict[str, dict[str, Any]]) -> Figure:
    result, ((ax,),) = panels(each=(4.6, 2.9))
    for colour, (name, row) in zip(COLOURS, rows.items(), strict=False):
        minutes, mae = ([c[k] for c in row["curve"]] for k in ("minutes", "forces_mae"))
        ax.plot(minutes, mae, color=colour, label=name)
        ax.axhline(0.15 * row["rms_force"], color="0.5", ls=":")
    ax.set(yscale="log", xlabel="minutes", ylabel="force MAE on validation frames (eV/Å)")
    ax.set_title("dotted: 15 % of the RMS force", loc="left", fontsize=9)
    ax.legend(frameon=False, fontsize="small")
    return result


if __name__ == "__main__":
    run(main, Settings)
