"""How many structures does it take to cure the softening of one material?

    python -m experiments.one_structure --data FOLDER --out FOLDER

fine-tunes a public model on 1, 3, 10 and 30 frames of one material and compares its forces with DFT on frames
that it has not seen: the linear correction (one number that scales the network), trained and by least squares
of the forces, and all parameters, several seeds, by the protocol of arXiv:2405.07105: MSE of energy, forces
and stress weighted 0.1 : 100 : 0.1, Adam from 1e-3 to 1e-5 along a cosine, 100 epochs, one frame in ten for
validation where there are ten, and the best of its epochs. Runs that were finished or interrupted go on where
they were.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from experiments.frames import against_dft, data_folder, read, rms_force, save_record
from jaxmlip import batching
from jaxmlip.data.dataset import MemorySplit
from jaxmlip.data.labels import LabelledCrystal
from jaxmlip.data.loader import Loader, Plan
from jaxmlip.potential import Potential
from jaxmlip.progress import track
from jaxmlip.sources import load
from jaxmlip.training.loop import FitSettings, fit
from jaxmlip.training.losses import LossConfig
from jaxmlip.training.optimizer import OptimizerConfig
from jaxmlip.training.parallel import make_mesh

LOSS = LossConfig(kind="mse", energy=0.1, forces=100.0, stress=0.1, magmoms=0.0)
METHODS = {"linear correction": ("scale",), "least squares": ("scale",), "all parameters": ("all",)}


@dataclass(frozen=True)
class Settings:
    """How many structures does it take to cure the softening of one material?"""

    model: str = "chgnet-0.3.0"
    data: Path | None = None  # folder with mlearn/; default: JAXMLIP_DATA
    element: str = "Si"  # of mlearn
    # K, of the AIMD frames. In the melt, above 2000 K, CHGNet's forces on silicon are not too weak.
    hotter_than: float = 0.0
    cooler_than: float = 2000.0
    sizes: tuple[int, ...] = (1, 3, 10, 30)
    seeds: int = 3
    epochs: int = 100
    batch_size: int = 1
    out: Path = Path("one_structure")


def main(settings: Settings) -> None:
    path = data_folder(settings.data, f"mlearn/{settings.element}.extxyz.gz")
    frames = [
        f
        for f in read(path)
        if f.atoms.info.get("group") == "AIMD-NVT"
        and settings.hotter_than < f.atoms.info["temperature_K"] < settings.cooler_than
    ]
    if len(frames) < 2 * max(settings.sizes):
        raise SystemExit(f"{path} has {len(frames)} such frames, needed twice {max(settings.sizes)}.")
    potential = load(settings.model)
    # One shape, and so one program, for all runs.
    sizes = MemorySplit.from_crystals(frames, potential.cutoffs).sizes.max(axis=0) * settings.batch_size
    room = batching.Capacity(*map(int, sizes + np.array([1, 1, 0, 0])), settings.batch_size)
    rows: list[dict[str, Any]] = []
    runs = [(s, m, n) for s in range(settings.seeds) for n in (0, *settings.sizes) for m in METHODS]
    for seed, method, size in track(runs, "fine-tuning"):
        if size or method == next(iter(METHODS)):
            rows.append(measure(settings, potential, frames, room, seed, method, size))
    save_record(settings.out / "one_structure.json", asdict(settings), rows)
    summary = summarise(settings, rows)
    print(summary)
    (settings.out / "one_structure.md").write_text(summary + "\n")
    draw(settings, rows, settings.out / "one_structure.png")


def measure(settings, potential, frames, room, seed: int, method: str, size: int) -> dict[str, Any]:
    """Slope and force MAE on held-out frames after training on `size` of the others; kept in a file."""
    folder = settings.out / f"{method.replace(' ', '_')}_{size}_{seed}"
    done = folder / "row.json"
    if done.exists():
        return json.loads(done.read_text())
    order = np.random.default_rng(seed).permutation(len(frames))
    half = len(frames) // 2
    held_out = [frames[k] for k in order[:half]]
    given = [frames[k] for k in order[half : half + size]]
    tuned = fine_tune(settings, potential, given, room, method, folder, seed) if size else potential
    found = against_dft(tuned, held_out)
    row = {
        "seed": seed,
        "method": method,
        "frames": size,
        "slope": found.slope,
        "r2": found.correlation**2,
        "mae": found.mae,
        "rms_force": rms_force(held_out),
    }
    folder.mkdir(parents=True, exist_ok=True)
    done.write_text(json.dumps(row) + "\n")
    return row


def fine_tune(
    settings: Settings,
    potential: Potential,
    given: list[LabelledCrystal],
    room: batching.Capacity,
    method: str,
    folder: Path,
    seed: int,
) -> Potential:
    if method == "least squares":
        return replace(potential, params={**potential.params, "scale": best_scale(potential, given)})
    out = round(len(given) / 10)
    train, validation = given[out:], given[:out]
    split = MemorySplit.from_crystals(train, potential.cutoffs)
    plan = Plan(split.sizes, settings.batch_size, seed=seed, epochs=settings.epochs, room=room)
    loader = Loader(split, plan, potential.params["reference_energies"])
    watched = MemorySplit.from_crystals(validation, potential.cutoffs) if validation else None
    fit_settings = FitSettings(LOSS, OptimizerConfig(train=METHODS[method]), monitor="forces_mae", keep=1)
    return fit(potential, loader, watched, fit_settings, make_mesh(1), folder).potential


def best_scale(potential: Potential, given: list[LabelledCrystal]) -> np.ndarray:
    """The factor c that brings c times the forces closest to DFT's: Σxy / Σyy, where training would end."""
    y = np.concatenate([p["forces"].ravel() for p in potential.predict([f.atoms for f in given])])
    x = np.concatenate([f.labels.forces.ravel() for f in given])
    return np.float32(x @ y / (y @ y))


def summarise(settings: Settings, rows: list[dict[str, Any]]) -> str:
    """A Markdown table of means and standard deviations over seeds."""
    lines = ["| frames | method | slope | r² | force MAE / eV/Å |", "|---|---|---|---|---|"]
    for size in (0, *settings.sizes):
        for method in METHODS:
            these = [r for r in rows if r["frames"] == size and r["method"] == method]
            if these:
                cells = [
                    f"{np.mean([r[k] for r in these]):.3f} ± {np.std([r[k] for r in these]):.3f}"
                    for k in ("slope", "r2", "mae")
                ]
                lines.append(f"| {size} | {method if size else 'as published'} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(settings: Settings, rows: list[dict[str, Any]], path: Path) -> None:
    import matplotlib.pyplot as plt

    from jaxmlip.figures import COLOURS

    figure, axes = plt.subplots(1, 2, figsize=(8, 3.4), layout="constrained")
    panels = (("slope", "slope of forces, model against DFT"), ("mae", "force MAE / eV/Å"))
    for ax, (key, label) in zip(axes, panels, strict=True):
        start = [r[key] for r in rows if r["frames"] == 0]
        ax.axhline(np.mean(start), color="0.5", ls=":", label=f"{settings.model} as published")
        for colour, (method, marker) in zip(COLOURS, zip(METHODS, "ods", strict=True), strict=False):
            values = [
                [r[key] for r in rows if (r["frames"], r["method"]) == (n, method)] for n in settings.sizes
            ]
            mean, spread = (np.array([f(v) for v in values]) for f in (np.mean, np.std))
            ax.errorbar(settings.sizes, mean, spread, color=colour, marker=marker, capsize=3, label=method)
        ax.set(xscale="log", xlabel=f"frames of {settings.element}", ylabel=label)
        ax.set_xticks(settings.sizes, [str(n) for n in settings.sizes])
        ax.minorticks_off()
    axes[0].axhline(1, color="k", lw=0.8)
    axes[0].legend(frameon=False, fontsize="small")
    figure.savefig(path, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    main(tyro.cli(Settings))
