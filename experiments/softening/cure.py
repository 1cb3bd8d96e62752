"""How many DFT structures cure the softening of one material, and does the cure carry over?

    python -m experiments.softening.cure --model NAME --data FOLDER --out FOLDER

fine-tunes public models on 1, 3, 10 and 30 frames of molecular dynamics of a hot crystal by the protocol of
arXiv:2405.07105 (MSE of energy, forces and stress weighted 0.1 : 100 : 0.1, Adam from 1e-3 to 1e-5 along a
cosine, 100 epochs, one frame in ten for validation if there are ten, and the best epoch), or on the force
constants of one phonopy run. It compares the models with DFT on held-out frames of the same kind, and on
other families: melt, vacancy, small displacements, strained cells, surfaces, phonons, and other elements.
Methods: one factor on all forces, by least squares (to which its training converges) or trained (the paper's
linear correction), the readout alone, all parameters, Hessian columns.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.datasets import by_kind, data_file, drawn, lowest, read, where_there
from experiments.training.tuning import shape_for, tune
from jaxmlip.crystals import batching
from jaxmlip.data.labels import LabelledCrystal
from jaxmlip.data.readers import read_labelled
from jaxmlip.derivatives.slopes import force_slope
from jaxmlip.phonons.phonopy_files import PhonopyRun, read_phonopy
from jaxmlip.potential import Potential, Prediction
from jaxmlip.studies.compare import compare
from jaxmlip.studies.study import Study, bootstrap, check_known, load_models, run
from jaxmlip.system.arguments import Models
from jaxmlip.system.plots import legend, panels, styles, with_intervals
from jaxmlip.system.tables import Table
from jaxmlip.training.config import TrainConfig
from jaxmlip.training.losses import LossConfig
from jaxmlip.training.optimizer import OptimizerConfig
from jaxmlip.units import GPA_PER_EV_PER_A3, J_PER_M2_PER_EV_PER_A2

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LOSS = LossConfig(kind="mse", energy=0.1, forces=100.0, stress=0.1, magmoms=0.0)
CURVATURE_LOSS = LossConfig(kind="mae", energy=0.0, forces=20.0, stress=0.03, magmoms=0.0, hessian=100.0)
AS_PUBLISHED, LEAST_SQUARES, HESSIAN = "as published", "least squares", "Hessian columns"
TRAINED = {"linear correction": "scale", "readout": "readout", "all parameters": "all"}
METHODS = (LEAST_SQUARES, *TRAINED, HESSIAN)
MELTS = {"Si": 2000.0, "Li": 450.0, "Cu": 1358.0, "Ni": 1728.0}  # K; frames at or above are melts
OTHERS = {"mlearn/Si.extxyz.gz": "Si", "mlearn/Li.extxyz.gz": "Li", "mlearn/Cu.extxyz.gz": "Cu"}
SOME = 20  # frames of each family at most
HELD_OUT = "hot crystal, held out"
UNITS = {"strained": "GPa", "surfaces": "J/m²", "phonons": "THz"}


@dataclass(frozen=True)
class Settings:
    """How many DFT structures cure the softening of one material, and does the cure carry over?"""

    model: Models = ()  # default: chgnet-0.3.0
    data: Path | None = None  # folder with mlearn/, maml_MoNbTaW/, phonopy_*/; default: JAXMLIP_DATA
    element: str = "Si"  # in mlearn (Si, Li, Cu, Ni) or maml (Mo, Nb, W)
    methods: tuple[str, ...] = (LEAST_SQUARES, "readout", "all parameters", HESSIAN)  # or linear correction
    sizes: tuple[int, ...] = (1, 3, 10, 30)  # frames
    seeds: int = 3  # number of seeds, which also choose the frames
    epochs: int = 100
    frames_seen: int = 3000  # frames at most in all epochs of one run together
    batch_size: int = 1
    hessian_steps: int = 300
    out: Path = Path("cure")


def main(settings: Settings) -> None:
    check_known("method", settings.methods, METHODS)
    material = Material.read(settings.data, settings.element)
    if len(material.crystal) < 2 * max(settings.sizes):
        raise ValueError(
            f"found {len(material.crystal)} frames of hot {settings.element}, needed twice "
            f"{max(settings.sizes)}; give smaller --sizes."
        )
    potentials = load_models(settings.model)
    study = Study("cure", settings, potentials)
    for label, potential in potentials.items():
        if not study.known(label, {settings.element: material.crystal[0].atoms}, lambda atoms: atoms.numbers):
            continue
        shape = shape_for(potential, material.crystal, settings.batch_size)

        def measure(key: str, potential=potential, shape=shape) -> dict[str, Any]:
            _, method, size, seed = key.rsplit("/", 3)
            return cured(settings, study, potential, material, shape, method, int(size), int(seed))

        keys = [
            f"{label}/{method}/{size}/{seed}"
            for seed in range(settings.seeds)
            for method in (AS_PUBLISHED, *settings.methods)
            for size in sizes_of(settings, method, material)
        ]
        study.each(f"curing {label}", keys, measure)
    study.write(tables(settings, study, material), figures(settings, study, material))


@dataclass(frozen=True, eq=False)
class Material:
    """The data of one element: frames to learn from, and families to test on."""

    crystal: list[LabelledCrystal]  # molecular dynamics below the melting point
    bulk: LabelledCrystal | None  # at rest: the reference of surface energies
    families: dict[str, list[LabelledCrystal]]
    phonons: PhonopyRun | None
    constants: list[LabelledCrystal]  # crystals with Hessian columns

    @classmethod
    def read(cls, data: Path | None, element: str) -> Material:
        """The material in mlearn or maml. Raises MissingDataError if neither has that element."""
        rng = np.random.default_rng(0)
        if element in MELTS:
            every = read(data_file(data, f"mlearn/{element}.extxyz.gz"))
            group = by_kind(every)
            dynamics = group["AIMD-NVT"]
            crystal = [f for f in dynamics if f.atoms.info["temperature_K"] < MELTS[element]]
            melt = [f for f in dynamics if f.atoms.info["temperature_K"] >= MELTS[element]]
            families = {"melt": melt, "vacancy": group["Vacancy"], "strained": group["Elastic"]}
            families["surfaces"] = group["Surface"]
        else:
            crystal = read(data_file(data, f"maml_MoNbTaW/{element}_AIMD.extxyz.gz"))
            parts = {"strained": "Elastic", "surfaces": "Surface"}
            families = {
                name: read(data_file(data, f"maml_MoNbTaW/{element}_{part}.extxyz"))
                for name, part in parts.items()
            }
        strained = families["strained"]
        small = f"phonopy_displaced_extxyz/{element}-phono3py-PBE__PBE.extxyz.gz"
        others = {file: other for file, other in OTHERS.items() if other != element}
        phonopy = f"phonopy_examples_PBE/{element}"
        there, _ = where_there(data, (small, *others, phonopy))
        families["small displacements"] = read(there[small]) if small in there else []
        families |= {
            f"{others[file]}, another element": read(there[file]) for file in others if file in there
        }
        families = {
            name: frames if name == "surfaces" else drawn(frames, rng, SOME)
            for name, frames in families.items()
            if frames
        }
        bulk, run = lowest(strained) if strained else None, there.get(phonopy)
        constants = [c for c in read_labelled(run, "phonopy") if c.labels.columns is not None] if run else []
        return cls(crystal, bulk, families, read_phonopy(run) if run else None, constants)


def sizes_of(settings: Settings, method: str, material: Material) -> tuple[int, ...]:
    """Numbers of frames that a method learns from; force constants come from one calculation."""
    if method == HESSIAN:
        return (1,) if material.constants else ()
    return (0,) if method == AS_PUBLISHED else settings.sizes


def cured(
    settings: Settings,
    study: Study,
    potential: Potential,
    material: Material,
    shape: batching.BatchShape,
    method: str,
    size: int,
    seed: int,
) -> dict[str, Any]:
    """Slope and error in each family, after training on `size` of the frames."""
    order = np.random.default_rng(seed).permutation(len(material.crystal))
    half = len(order) // 2
    held_out = [material.crystal[k] for k in order[:half]]
    given = [material.crystal[k] for k in order[half : half + size]]
    folder = study.folder / "runs" / f"{potential.name}-{method.replace(' ', '_')}-{size}-{seed}"
    if method == AS_PUBLISHED:
        tuned = potential
    elif method == LEAST_SQUARES:
        tuned = replace(potential, params={**potential.params, "scale": best_scale(potential, given)})
    elif method == HESSIAN:
        optimizer = OptimizerConfig(learning_rate=1e-4, clip=100.0, ema=0.98)
        fit_settings = TrainConfig(loss=CURVATURE_LOSS, optimizer=optimizer, checkpoint_every=50, keep=1)
        tuned = tune(
            potential, material.constants, fit_settings, folder, epochs=settings.hessian_steps, seed=seed
        )
    else:
        out = round(size / 10)
        tuned = tune(
            potential,
            given[out:],
            TrainConfig(
                loss=LOSS, optimizer=OptimizerConfig(train=(TRAINED[method],)), monitor="forces_mae", keep=1
            ),
            folder,
            epochs=max(1, min(settings.epochs, settings.frames_seen // (size - out))),
            batch_size=settings.batch_size,
            seed=seed,
            validation=given[:out],
            shape=shape,
        )
    if method != AS_PUBLISHED:
        tuned.save(folder / "model")  # for --model of other studies
    return in_families(tuned, material, held_out)


def best_scale(potential: Potential, given: list[LabelledCrystal]) -> np.ndarray:
    """The factor c that brings c times the forces y closest to DFT's x: Σxy / Σyy, the limit of training."""
    y = np.concatenate([p["forces"].ravel() for p in potential.predict([f.atoms for f in given])])
    x = np.concatenate([f.labels.forces.ravel() for f in given])
    return np.float32(x @ y / (y @ y))


def in_families(potential: Potential, material: Material, held_out: list[LabelledCrystal]) -> dict[str, Any]:
    """Results by family: "slope" of the model against DFT through the origin, and "mae" in the unit of UNITS
    or eV/Å.

    They are for forces, but for stresses (GPa) of strained cells, and for energies (J/m²) of surfaces at
    DFT's positions. For phonons they are the ratio of the highest frequency and the rms difference of all
    (THz).
    """
    families = {HELD_OUT: held_out, **material.families, "bulk": [material.bulk] if material.bulk else []}
    known = set(potential.elements)
    families = {name: [f for f in fs if known.issuperset(f.atoms.numbers)] for name, fs in families.items()}
    # All frames at once, so that one program computes them.
    every = iter(potential.predict([f.atoms for frames in families.values() for f in frames]))
    predicted = {name: [next(every) for _ in frames] for name, frames in families.items()}
    found = {}
    for name, frames in families.items():
        if name == "surfaces" and frames:
            found[name] = of_surfaces(frames, predicted[name], material.bulk, *predicted["bulk"])
        elif name != "bulk" and frames:
            of, unit = ("stress", GPA_PER_EV_PER_A3) if name == "strained" else ("forces", 1.0)
            s = force_slope(
                [p[of].astype(float) * unit for p in predicted[name]],
                [getattr(f.labels, of) * unit for f in frames],
            )
            found[name] = {"slope": s.slope, "r2": s.r_squared, "mae": s.mae}
    if material.phonons is not None:
        (c,) = compare(potential.astype("float64"), [material.phonons])
        found["phonons"] = {"slope": c.ratio(), "mae": c.record()["rms_difference_THz"]}
    return found


def of_surfaces(
    frames: list[LabelledCrystal], predicted: list[Prediction], bulk: LabelledCrystal, of_bulk: Prediction
) -> dict[str, float]:
    """(E - N e_bulk) / 2A of slabs whose long axis is the third, all at DFT's positions."""
    areas = np.array([np.linalg.norm(np.cross(*f.atoms.cell.array[:2])) for f in frames])
    sizes = np.array([len(f.atoms) for f in frames])
    model = np.array([p["energy"] for p in predicted]) - sizes * of_bulk["energy"] / len(bulk.atoms)
    dft = np.array([f.labels.energy for f in frames]) - sizes * bulk.labels.energy / len(bulk.atoms)
    y, x = (e / (2 * areas) * J_PER_M2_PER_EV_PER_A2 for e in (model, dft))
    return {"slope": float(x @ y / (x @ x)), "mae": float(np.abs(y - x).mean())}


def value(study: Study, label: str, method: str, size: int, family: str, of: str) -> list[float]:
    """A number for each seed."""
    rows = [row for key, row in study.rows.items() if key.startswith(f"{label}/{method}/{size}/")]
    return [row[family][of] for row in rows if family in row]


def answered(study: Study) -> list[str]:
    """The models of this run that have at least one row."""
    return [m for m in study.weights if value(study, m, AS_PUBLISHED, 0, HELD_OUT, "slope")]


def tables(settings: Settings, study: Study, material: Material) -> list[Table]:
    found = []
    seeds = f"Means over {settings.seeds} seeds, with 95 % intervals by bootstrap over seeds."
    for label in answered(study):
        tried = [(m, n) for m in (AS_PUBLISHED, *settings.methods) for n in sizes_of(settings, m, material)]
        rows = [
            [n, m, *(bootstrap(value(study, label, m, n, HELD_OUT, of)) for of in ("slope", "r2", "mae"))]
            for m, n in sorted(tried, key=lambda pair: pair[1])
        ]
        title = f"{label} on hot crystalline {settings.element}, frames held out"
        found.append(Table(title, ("frames", "method", "slope", "r²", "force MAE / eV/Å"), rows, 3, seeds))
        families = [*material.families, *(["phonons"] if material.phonons else [])]
        for of, what in (("slope", "slope (phonons: ratio of highest frequency)"), ("mae", "error")):
            columns = [f"{f} / {UNITS.get(f, 'eV/Å')}" if of == "mae" else f for f in families]
            rows = [
                [f"{m}, {n}" if n else m, *(_mean(value(study, label, m, n, f, of)) for f in families)]
                for m, n in tried
            ]
            title = f"{label}, cured on hot crystalline {settings.element}: {what} in other families"
            note = "" if of == "slope" else "phonons: rms difference of all frequencies; others: MAE."
            found.append(Table(title, ("method, frames", *columns), rows, 3, note))
    return found


def _mean(values: list[float]) -> float | None:
    return float(np.mean(values)) if values else None


def figures(settings: Settings, study: Study, material: Material) -> dict[str, tuple[str, Figure]]:
    found = {}
    for label in answered(study):
        caption = (
            f"Held-out frames of hot crystalline {settings.element} against the number of frames learnt."
        )
        found[f"cure_{label}.png"] = (caption, by_size(settings, study, material, label))
        found[f"cure_families_{label}.png"] = (
            "The same models in other families; for phonons, the ratio of the highest frequency.",
            by_family(settings, study, material, label),
        )
    return found


def by_size(settings: Settings, study: Study, material: Material, label: str) -> Figure:
    figure, (axes,) = panels(1, 2, each=(4.0, 3.6), spare=(0, 0))
    shown = (("slope", "slope of forces, model against DFT"), ("mae", "force MAE (eV/Å)"))
    for ax, (of, name) in zip(axes, shown, strict=True):
        start = np.mean(value(study, label, AS_PUBLISHED, 0, HELD_OUT, of))
        ax.axhline(start, color="0.5", ls=":", label=f"{label} as published")
        for method, style in styles(settings.methods).items():
            sizes = sizes_of(settings, method, material)
            if sizes:  # empty for Hessian columns of an element without force constants
                every = [bootstrap(value(study, label, method, n, HELD_OUT, of)) for n in sizes]
                with_intervals(ax, sizes, every, label=method, **style)
        ax.set(xscale="log", xlabel=f"frames of {settings.element}", ylabel=name)
        ax.set_xticks(settings.sizes, [str(n) for n in settings.sizes])
        ax.minorticks_off()
    axes[0].axhline(1, color="k", lw=0.8)
    legend(figure)
    return figure


def by_family(settings: Settings, study: Study, material: Material, label: str) -> Figure:
    families = [HELD_OUT, *material.families, *(["phonons"] if material.phonons else [])]
    sizes = {AS_PUBLISHED: [0]} | {m: sizes_of(settings, m, material)[-1:] for m in settings.methods}
    shown = {f"{m}, {n}" if n else m: (m, n) for m, of in sizes.items() for n in of}
    figure, ((ax,),) = panels(each=(7.0, 0.45 * len(families)), spare=(0, 1.4))
    for name, style in styles(shown).items():
        means = [_mean(value(study, label, *shown[name], family, "slope")) for family in families]
        ax.plot(means, range(len(families)), ms=6, label=name, ls="", **style)
    ax.axvline(1, color="k", lw=0.8)
    ax.set_yticks(range(len(families)), families)
    ax.invert_yaxis()
    ax.set_xlabel("slope, model against DFT")
    ax.grid(axis="y", color="0.9")
    legend(figure)
    return figure


if __name__ == "__main__":
    run(main, Settings)
