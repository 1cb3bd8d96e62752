"""Do Hessian columns of a few crystals move their phonons toward DFT, and what becomes of forces elsewhere?

    python -m experiments.training.hessian_columns --data FOLDER --out FOLDER

fine-tunes a public model on the force constants of phonopy's examples. Each step takes one random column of
each crystal by one Hessian-vector product (arXiv:2601.07742). With replay, every batch also has frames of
other materials, with DFT's forces or with those of the model before training. Frequencies are compared on the
supercells that DFT displaced; forces on frames that were not trained on, of the replayed materials and of
others.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.datasets import against_dft, data_file, drawn, read
from experiments.training.tuning import tune
from jaxmlip.data.labels import LabelledCrystal, Labels
from jaxmlip.data.readers import read_labelled
from jaxmlip.phonons.phonopy_files import read_phonopy
from jaxmlip.potential import Potential
from jaxmlip.studies.compare import compare
from jaxmlip.studies.study import Study, load_models, run
from jaxmlip.system.arguments import Model, at_least
from jaxmlip.system.console import say
from jaxmlip.system.plots import COLOURS, legend, panels
from jaxmlip.system.tables import Table
from jaxmlip.training.config import TrainConfig
from jaxmlip.training.loop import Trained
from jaxmlip.training.losses import LossConfig
from jaxmlip.training.optimizer import OptimizerConfig

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LOSS = LossConfig(kind="mae", energy=0.0, forces=20.0, stress=0.03, magmoms=0.0, hessian=100.0)
TRAINED = ("NaCl", "MgO", "Si", "MgB2", "SiO2-HP")
UNSEEN = ("CaTiO3",)
REPLAYED = (
    "mlearn/Li.extxyz.gz",
    "mlearn/Si.extxyz.gz",
    "mlearn/Cu.extxyz.gz",
    "maml_MoNbTaW/Mo_AIMD.extxyz.gz",
)
ELSEWHERE = ("mlearn/Ni.extxyz.gz", "maml_MoNbTaW/W_Test.extxyz", "maml_MoNbTaW/NbMo_Test.extxyz")
AS_PUBLISHED = "as published"
METHODS = ("DFT replayed", "itself replayed", "no replay")


@dataclass(frozen=True)
class Settings:
    """Do Hessian columns move phonons toward DFT, and what becomes of forces elsewhere?"""

    model: Model = "m3gnet-mp-2021.2.8"
    data: Path | None = (
        None  # folder with phonopy_examples_PBE/, mlearn/, maml_MoNbTaW/; default: JAXMLIP_DATA
    )
    steps: int = 300
    batch_size: int = 2  # crystals with Hessian columns
    replay: int = 4  # frames in each batch
    learning_rate: float = 1e-4
    ema: float = 0.98
    seed: int = 0
    out: Path = Path("hessian_columns")


def main(settings: Settings) -> None:
    at_least(1, steps=settings.steps, batch_size=settings.batch_size)
    examples = data_file(settings.data, "phonopy_examples_PBE")
    runs = [read_phonopy(examples / name) for name in (*TRAINED, *UNSEEN)]
    constants = [
        c
        for name in TRAINED
        for c in read_labelled(examples / name, "phonopy")
        if c.labels.columns is not None
    ]
    rng = np.random.default_rng(settings.seed)
    replayed, held_out = [], {}
    for name in REPLAYED:
        frames = drawn(read(data_file(settings.data, name)), rng, 100)
        replayed += frames[20:]
        held_out[f"{Path(name).name.split('.')[0]}, held out"] = frames[:20]
    for name in ELSEWHERE:
        frames = drawn(read(data_file(settings.data, name)), rng, 20)
        held_out[f"{Path(name).name.split('.')[0]}, not replayed"] = frames
    potentials = load_models([settings.model])
    (start,) = potentials.values()
    study = Study("hessian_columns", settings, potentials)
    numbers = {name: its.supercell.numbers for name, its in zip((*TRAINED, *UNSEEN), runs, strict=True)}
    for name, frames in held_out.items():
        numbers[name] = np.concatenate([f.atoms.numbers for f in frames])
    if len(study.known(start.name, numbers, lambda its: its)) < len(numbers):
        study.write([], {})
        return

    def measured(method: str) -> dict[str, Any]:
        if method == AS_PUBLISHED:
            return measure(start, runs, held_out)
        folder = study.folder / method.replace(" ", "_")
        replay = {METHODS[0]: replayed, METHODS[1]: relabelled(start, replayed), METHODS[2]: []}[method]
        tuned = fine_tune(settings, start, constants, replay, folder)
        tuned.save(folder / "model")
        return measure(tuned, runs, held_out)

    rows = study.each("fine-tuning", (AS_PUBLISHED, *METHODS), measured)
    caption = f"{start.name} before and after {settings.steps} steps on Hessian columns."
    study.write(tables(rows), {"hessian_columns.png": (caption, figure(rows))})


def relabelled(potential: Potential, frames: list[LabelledCrystal]) -> list[LabelledCrystal]:
    """`frames` with the potential's own forces and stresses, so that replay keeps the potential as it is."""
    predicted = potential.predict([f.atoms for f in frames])
    return [
        replace(f, labels=Labels(forces=p["forces"], stress=p["stress"])).checked()
        for f, p in zip(frames, predicted, strict=True)
    ]


def fine_tune(settings: Settings, start: Potential, constants, replayed, folder: Path) -> Potential:
    epochs = -(-settings.steps // -(-len(constants) // settings.batch_size))
    optimizer = OptimizerConfig(learning_rate=settings.learning_rate, clip=100.0, ema=settings.ema)

    def note(event):
        if isinstance(event, Trained):
            known = {
                k: round(v, 4) for k, v in event.metrics.items() if k in ("loss", "forces_mae", "hessian_mae")
            }
            say(f"step {event.step} of {settings.steps}: {known}")

    return tune(
        start,
        constants,
        TrainConfig(loss=LOSS, optimizer=optimizer, checkpoint_every=50, keep=1, report_every=20),
        folder,
        epochs=epochs,
        batch_size=settings.batch_size,
        seed=settings.seed,
        replay=replayed,
        replay_batch=settings.replay,
        report=note,
    )


def measure(potential: Potential, runs, held_out: dict[str, list[LabelledCrystal]]) -> dict[str, Any]:
    """Frequencies (THz) of the phonopy runs and force errors (eV/Å) of the frames."""
    found = {}
    for c in compare(potential.astype("float64"), runs):
        found[c.name] = c.record()["ratios"] | {"rms_difference": c.record()["rms_difference_THz"]}
    forces = {name: against_dft(potential, frames) for name, frames in held_out.items()}
    return {
        "phonons": found,
        "forces": {name: {"mae": s.mae, "slope": s.slope} for name, s in forces.items()},
    }


def tables(rows: dict[str, dict[str, Any]]) -> list[Table]:
    start, phonons, forces = rows[AS_PUBLISHED], [], []
    for name in start["phonons"]:
        found = [r["phonons"][name] for r in rows.values()]
        told = f"{name}{', not trained on' if name in UNSEEN else ''}"
        phonons.append([told, *(f"{x['maximum']:.3f} ({x['rms_difference']:.2f})" for x in found)])
    for name in start["forces"]:
        found = [r["forces"][name] for r in rows.values()]
        forces.append([name, *(f"{1e3 * x['mae']:.0f} ({x['slope']:.3f})" for x in found)])
    return [
        Table("Highest frequency, model / DFT (rms difference / THz)", ("crystal", *rows), phonons),
        Table("Force MAE / meV/Å (slope)", ("frames", *rows), forces),
    ]


def figure(rows: dict[str, dict[str, Any]]) -> Figure:
    result, (axes,) = panels(1, 2, each=(4.5, 3.6), spare=(0, 0))
    shown = (
        ("phonons", lambda x: x["maximum"], "highest frequency, model / DFT"),
        ("forces", lambda x: 1e3 * x["mae"], "force MAE (meV/Å)"),
    )
    for ax, (key, value, label) in zip(axes, shown, strict=True):
        names = list(rows[AS_PUBLISHED][key])
        for k, ((method, row), colour) in enumerate(zip(rows.items(), COLOURS, strict=False)):
            at = np.arange(len(names)) + (k - (len(rows) - 1) / 2) * 0.8 / len(rows)
            ax.bar(at, [value(row[key][n]) for n in names], 0.8 / len(rows), color=colour, label=method)
        ax.set_xticks(range(len(names)), [n.replace(", ", "\n") for n in names], rotation=60, fontsize=7)
        ax.set_ylabel(label)
    axes[0].axhline(1, color="k", lw=0.8)
    legend(result, "upper", ncols=len(rows))
    return result


if __name__ == "__main__":
    run(main, Settings)
