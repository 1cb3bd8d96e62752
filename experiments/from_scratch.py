"""Do small models of all three architectures learn a metal from 160 frames, in minutes on a laptop?

    python -m experiments.from_scratch --data FOLDER --out FOLDER

trains CHGNet, M3GNet and MACE of small widths from random parameters on molecular dynamics of molybdenum
(maml, 54 atoms, 300 to 3000 K, three volumes), compares forces on 20 frames that were held out, and writes
each as a model folder for `jaxmlip.load`. Runs that were finished or interrupted go on where they were.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from experiments.frames import against_dft, data_folder, read, rms_force, save_record
from jaxmlip.data.dataset import MemorySplit
from jaxmlip.data.labels import LabelledCrystal
from jaxmlip.data.loader import Loader, Plan
from jaxmlip.models.chgnet import CHGNetConfig
from jaxmlip.models.m3gnet import M3GNetConfig
from jaxmlip.models.mace import MACEConfig
from jaxmlip.potential import Potential, random_potential
from jaxmlip.training.loop import FitSettings, Trained, Validated, fit
from jaxmlip.training.losses import LossConfig
from jaxmlip.training.optimizer import OptimizerConfig
from jaxmlip.training.parallel import make_mesh
from jaxmlip.training.references import refit

LOSS = LossConfig(energy=1.0, forces=10.0, stress=0.1, magmoms=0.0)
MODELS = {
    "chgnet": CHGNetConfig(
        features=32, radial=9, angular=9, blocks=3, bond_cutoff=5.0, angle_cutoff=3.0, readout=(32, 32)
    ),
    "m3gnet": M3GNetConfig(features=32, hidden=32, blocks=2),
    "mace": MACEConfig(
        elements=(42,),
        channels=16,
        harmonics_l=2,
        correlation=(3, 2),
        blocks=("agnostic", "residual"),
        average_neighbours=60.0,
        cutoff=5.0,
        radial=8,
        radial_widths=(32, 32),
        agnesi=False,
        repulsion=False,
        cutoff_on_basis=False,
    ),
}


@dataclass(frozen=True)
class Settings:
    """Do small models of all three architectures learn a metal from 160 frames?"""

    data: Path | None = None  # folder with maml_MoNbTaW/; default: JAXMLIP_DATA
    models: tuple[str, ...] = tuple(MODELS)
    epochs: int = 20
    batch_size: int = 4
    learning_rate: float = 5e-3
    seed: int = 0
    out: Path = Path("from_scratch")


def main(settings: Settings) -> None:
    frames = read(data_folder(settings.data, "maml_MoNbTaW/Mo_AIMD.extxyz.gz"))
    order = np.random.default_rng(settings.seed).permutation(len(frames))
    train, validation, test = ([frames[k] for k in part] for part in np.split(order, (len(frames) - 40, -20)))
    rows = []
    for name in settings.models:
        rows.append(measure(settings, name, train, validation, test))
        print(json.dumps(rows[-1]), flush=True)
    save_record(settings.out / "from_scratch.json", asdict(settings), rows)
    summary = summarise(rows)
    print(summary)
    (settings.out / "from_scratch.md").write_text(summary + "\n")
    draw(rows, settings.out / "from_scratch.png")


def measure(settings: Settings, name: str, train, validation, test) -> dict[str, Any]:
    folder = settings.out / name
    done = folder / "row.json"
    if done.exists():
        return json.loads(done.read_text())
    start = untrained(name, train, settings.seed)
    curve: list[dict[str, float]] = []
    began = time.perf_counter()
    split, watched = (MemorySplit.from_crystals(part, start.cutoffs) for part in (train, validation))
    plan = Plan(split.sizes, settings.batch_size, seed=settings.seed, epochs=settings.epochs)
    loader = Loader(split, plan, start.params["reference_energies"])
    optimizer = OptimizerConfig(learning_rate=settings.learning_rate, clip=10.0, ema=0.99, warmup_steps=50)
    fit_settings = FitSettings(LOSS, optimizer, monitor="forces_mae", checkpoint_every=400, keep=1)

    def note(event):
        if isinstance(event, Validated):
            minutes = (time.perf_counter() - began) / 60
            curve.append(
                {"epoch": event.epoch, "minutes": minutes, "forces_mae": event.metrics["forces_mae"]}
            )
            print(f"{name}: epoch {event.epoch:.0f}, {1e3 * curve[-1]['forces_mae']:.0f} meV/Å", flush=True)
        elif isinstance(event, Trained) and event.crystals_per_second:
            print(f"{name}: step {event.step}, {event.crystals_per_second:.1f} frames/s", flush=True)

    potential = fit(start, loader, watched, fit_settings, make_mesh(1), folder, note).potential
    minutes = (time.perf_counter() - began) / 60
    potential.save(folder / "model")
    found, rms = against_dft(potential, test), rms_force(test)
    row = {
        "model": name,
        "parameters": potential.parameter_count,
        "minutes": minutes,
        "mae": found.mae,
        "rms_force": rms,
        "relative": found.mae / rms,
        "slope": found.slope,
        "curve": curve,
    }
    done.write_text(json.dumps(row) + "\n")
    return row


def untrained(name: str, train: list[LabelledCrystal], seed: int) -> Potential:
    """Random parameters, the mean energy of the data as reference, and forces of the size of theirs."""
    potential = random_potential(MODELS[name], seed=seed, name=f"{name}-Mo")
    zero = np.zeros_like(potential.params["reference_energies"], np.float64)
    energies = np.array([f.labels.energy for f in train])
    references = refit([f.atoms.numbers for f in train], energies, zero)
    scaled = {"reference_energies": references.energies, "scale": np.float32(rms_force(train))}
    return replace(potential, params=potential.params | scaled, elements=references.fitted)


def summarise(rows: list[dict[str, Any]]) -> str:
    """A Markdown table."""
    lines = [
        "| model | parameters | minutes | force MAE / eV/Å | of the RMS force | slope |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r['model']} | {r['parameters']:,} | {r['minutes']:.1f} | {r['mae']:.3f} | "
        f"{100 * r['relative']:.1f} % | {r['slope']:.3f} |"
        for r in rows
    ]
    return "\n".join(lines)


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    import matplotlib.pyplot as plt

    from jaxmlip.figures import COLOURS

    figure, ax = plt.subplots(figsize=(5, 3.4), layout="constrained")
    for colour, row in zip(COLOURS, rows, strict=False):
        minutes, mae = ([c[k] for c in row["curve"]] for k in ("minutes", "forces_mae"))
        ax.plot(minutes, mae, color=colour, label=row["model"])
    ax.axhline(0.15 * rows[0]["rms_force"], color="0.5", ls=":", label="15 % of the RMS force")
    ax.set(yscale="log", xlabel="minutes", ylabel="force MAE on validation frames / eV/Å")
    ax.legend(frameon=False, fontsize="small")
    figure.savefig(path, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    main(tyro.cli(Settings))
