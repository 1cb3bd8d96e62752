"""Do Hessian columns of a few crystals move their phonons toward DFT, and what becomes of forces elsewhere?

    python -m experiments.hessian_columns --data FOLDER --out FOLDER

fine-tunes a public model on the force constants of phonopy's examples, one random column of each crystal and
step by one Hessian-vector product (arXiv:2601.07742), with and without replay: frames of other materials in
every batch, with DFT's forces or with those that the model itself began with. Frequencies are compared on the
supercells that DFT displaced; forces elsewhere are those of frames that were not trained on, of the replayed
materials and of others.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from experiments.frames import against_dft, data_folder, read, save_record
from jaxmlip.data.dataset import MemorySplit
from jaxmlip.data.labels import LabelledCrystal, Labels
from jaxmlip.data.loader import Loader, Plan
from jaxmlip.data.readers import read_labelled
from jaxmlip.phonons.compare import compare
from jaxmlip.phonons.phonopy_files import read_phonopy
from jaxmlip.potential import Potential
from jaxmlip.sources import load
from jaxmlip.training.loop import FitSettings, Trained, fit
from jaxmlip.training.losses import LossConfig
from jaxmlip.training.optimizer import OptimizerConfig
from jaxmlip.training.parallel import make_mesh

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
METHODS = ("DFT replayed", "itself replayed", "no replay")


@dataclass(frozen=True)
class Settings:
    """Do Hessian columns of a few crystals move their phonons toward DFT, and what becomes of forces
    elsewhere?"""

    model: str = "m3gnet-mp-2021.2.8"
    data: Path | None = (
        None  # folder with phonopy_examples_PBE/, mlearn/ and maml_MoNbTaW/; default: JAXMLIP_DATA
    )
    steps: int = 300
    batch_size: int = 2  # crystals with Hessian columns
    replay: int = 4  # frames in each batch
    learning_rate: float = 1e-4
    ema: float = 0.98
    seed: int = 0
    out: Path = Path("hessian_columns")


def main(settings: Settings) -> None:
    examples = data_folder(settings.data, "phonopy_examples_PBE")
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
        frames = _some(read(data_folder(settings.data, name)), rng, 100)
        replayed += frames[20:]
        held_out[f"{Path(name).name.split('.')[0]}, held out"] = frames[:20]
    for name in ELSEWHERE:
        held_out[f"{Path(name).name.split('.')[0]}, not replayed"] = _some(
            read(data_folder(settings.data, name)), rng, 20
        )

    start = load(settings.model)
    rows = [{"method": "as published", **measure(start, runs, held_out)}]
    for method in METHODS:
        folder = settings.out / method.replace(" ", "_")
        replay = {"DFT replayed": replayed, "itself replayed": relabelled(start, replayed), "no replay": []}[
            method
        ]
        tuned = fine_tune(settings, start, constants, replay, folder)
        tuned.save(folder / "model")
        rows.append({"method": method, **measure(tuned, runs, held_out)})
    save_record(settings.out / "hessian_columns.json", asdict(settings), rows)
    summary = summarise(rows)
    print(summary)
    (settings.out / "hessian_columns.md").write_text(summary + "\n")
    draw(rows, settings.out / "hessian_columns.png")


def relabelled(potential: Potential, frames: list[LabelledCrystal]) -> list[LabelledCrystal]:
    """`frames` with the forces and stresses of the potential itself, so that replay asks it to stay as it
    is."""
    predicted = potential.predict([f.atoms for f in frames])
    return [
        replace(f, labels=Labels(forces=p["forces"], stress=p["stress"])).checked()
        for f, p in zip(frames, predicted, strict=True)
    ]


def fine_tune(settings: Settings, start: Potential, constants, replayed, folder: Path) -> Potential:
    split, other = (MemorySplit.from_crystals(c, start.cutoffs) for c in (constants, replayed))
    epochs = -(-settings.steps // -(-len(split) // settings.batch_size))
    plan = Plan(
        split.sizes,
        settings.batch_size,
        seed=settings.seed,
        epochs=epochs,
        replay_sizes=other.sizes if replayed else None,
        replay_batch=settings.replay if replayed else 0,
    )
    loader = Loader(split, plan, start.params["reference_energies"], replay=other if replayed else None)
    optimizer = OptimizerConfig(learning_rate=settings.learning_rate, clip=100.0, ema=settings.ema)
    fit_settings = FitSettings(LOSS, optimizer, checkpoint_every=50, keep=1, report_every=20)

    def note(event):
        if isinstance(event, Trained):
            known = {
                k: round(v, 4) for k, v in event.metrics.items() if k in ("loss", "forces_mae", "hessian_mae")
            }
            print(f"step {event.step} of {plan.steps}: {known}", flush=True)

    return fit(start, loader, None, fit_settings, make_mesh(1), folder, note).potential


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


def summarise(rows: list[dict[str, Any]]) -> str:
    """Two Markdown tables: phonons, and forces elsewhere."""
    methods = [r["method"] for r in rows]
    lines = [f"| highest frequency, model / DFT (rms difference / THz) | {' | '.join(methods)} |"]
    lines += ["|---" * (len(rows) + 1) + "|"]
    for name in rows[0]["phonons"]:
        cells = [
            f"{r['phonons'][name]['maximum']:.3f} ({r['phonons'][name]['rms_difference']:.2f})" for r in rows
        ]
        lines.append(f"| {name}{', not trained on' if name in UNSEEN else ''} | {' | '.join(cells)} |")
    lines += ["", f"| force MAE / meV/Å (slope) | {' | '.join(methods)} |", "|---" * (len(rows) + 1) + "|"]
    for name in rows[0]["forces"]:
        cells = [f"{1e3 * r['forces'][name]['mae']:.0f} ({r['forces'][name]['slope']:.3f})" for r in rows]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    import matplotlib.pyplot as plt

    from jaxmlip.figures import COLOURS

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    panels = (
        ("phonons", lambda x: x["maximum"], "highest frequency, model / DFT"),
        ("forces", lambda x: 1e3 * x["mae"], "force MAE / meV/Å"),
    )
    for ax, (key, value, label) in zip(axes, panels, strict=True):
        names = list(rows[0][key])
        for k, (row, colour) in enumerate(zip(rows, COLOURS, strict=False)):
            at = np.arange(len(names)) + (k - (len(rows) - 1) / 2) * 0.8 / len(rows)
            ax.bar(
                at, [value(row[key][n]) for n in names], 0.8 / len(rows), color=colour, label=row["method"]
            )
        ax.set_xticks(range(len(names)), [n.replace(", ", "\n") for n in names], rotation=60, fontsize=7)
        ax.set_ylabel(label)
    axes[0].axhline(1, color="k", lw=0.8)
    figure.legend(
        *axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(rows), frameon=False
    )
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _some(frames: list[LabelledCrystal], rng: np.random.Generator, count: int) -> list[LabelledCrystal]:
    return [frames[k] for k in rng.permutation(len(frames))[:count]]


if __name__ == "__main__":
    main(tyro.cli(Settings))
