"""Do frequencies alone cure soft phonons, also of other materials, and what becomes of forces?

    python -m experiments.learn_phonons --model m3gnet-mp-2021.2.8 --data FOLDER --out FOLDER

trains a model on frequencies of phononDB-PBE's 103 binaries (`jaxmlip.training.spectra`: D(q) of primitive
cells, differentiated by the parameters). Held-out materials share no element with those trained on. Each step
takes some wave vectors of some crystals, each as likely as its weight, and replays frames with DFT's forces.
Beside it: the same without replay; with errors that count by each crystal's highest frequency, so that soft
ones count as stiff ones do; with the labels that these cells, relaxed by DFT, have besides (no forces, no
stress); with no more of each material than the mean of its frequencies and of their squares, or than its
density of states; one factor on all forces, by least squares of squared frequencies; and training that begins
with that factor. Potential and DFT have the same cells. Force errors are of frames that were not trained on,
of the replayed materials and of others.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.datasets import against_dft, data_file, drawn, read
from experiments.training.hessian_columns import ELSEWHERE, REPLAYED
from experiments.training.tuning import tune
from jaxmlip.data.labels import Averages, Frequencies, LabelledCrystal, Labels
from jaxmlip.data.readers.averages import WIDTH, broadened
from jaxmlip.data.readers.phonondb import MeshModes
from jaxmlip.mechanics.elasticity import NotAtRestWarning
from jaxmlip.phonons.density import thermodynamics
from jaxmlip.phonons.imaginary import imaginary
from jaxmlip.phonons.many import lattices
from jaxmlip.studies.phonondb import Material, Spectrum, read_phonondb
from jaxmlip.studies.study import Study, bootstrap, check_known, load_models, run
from jaxmlip.system.allocator import give_memory_back
from jaxmlip.system.arguments import Models, above_zero, at_least
from jaxmlip.system.console import say
from jaxmlip.system.plots import COLOURS, legend, panels
from jaxmlip.system.tables import Table
from jaxmlip.training.config import TrainConfig
from jaxmlip.training.loop import Trained
from jaxmlip.training.losses import LossConfig
from jaxmlip.training.optimizer import OptimizerConfig

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from jaxmlip.phonons.lattice import Lattice
    from jaxmlip.phonons.modes import Modes
    from jaxmlip.potential import Potential

FOLDER = "phonondb_PBE_103"
AS_PUBLISHED, FACTOR = "as published", "one factor"
REPLAY, ALONE, AT_REST = "frequencies", "frequencies, no replay", "frequencies, cells at rest"
RELATIVE = "relative frequencies"
FROM_FACTOR = "one factor, then frequencies"
MOMENTS, DENSITY = "two moments", "density of states"
KINDS = (FACTOR, REPLAY, RELATIVE, FROM_FACTOR, ALONE, AT_REST, MOMENTS, DENSITY)
KELVIN = 300.0
FRAMES = 100  # of each replayed file, of which HELD are held out
HELD = 20
FEW = 8  # wave vectors of each material that a factor is fitted to
NUMBERS = {
    "highest": "highest frequency, model / DFT",
    "mean": "mean frequency, model / DFT",
    "rms": "rms difference / THz",
    "heat_capacity": "C_V at 300 K, model / DFT",
    "entropy": "S at 300 K, model / DFT",
}


@dataclass(frozen=True)
class Settings:
    """Do frequencies alone cure soft phonons, also of other materials, and what becomes of forces?"""

    model: Models = ()  # default: chgnet-0.3.0
    data: Path | None = None  # folder with phonondb_PBE_103/, mlearn/, maml_MoNbTaW/; default: JAXMLIP_DATA
    kinds: tuple[str, ...] = KINDS  # what is learnt
    splits: int = 3  # how often materials are divided, by the seeds 0, 1, …
    held_out: int = 12  # materials at least
    steps: int = 200
    batch_size: int = 4  # crystals with frequencies in each step
    waves: int = 4  # wave vectors of each
    replay: int = 2  # frames in each step
    frequencies: float = 1.0  # weight in the loss, per THz
    averages: float = 10.0  # weight in the loss, of moments and densities
    forces: float = 1.0  # weight in the loss, per eV/Å
    learning_rate: float = 2e-4
    out: Path = Path("learn_phonons")


def main(settings: Settings) -> None:
    check_known("kind", settings.kinds, KINDS)
    at_least(
        1,
        **{n: getattr(settings, n) for n in ("splits", "held_out", "steps", "batch_size", "waves", "replay")},
    )
    above_zero(**{name: getattr(settings, name) for name in ("frequencies", "averages", "forces")})
    materials = {f"{m.formula} ({m.id})": m for m in read_phonondb(data_file(settings.data, FOLDER))}
    replayed, watched = frames_of(settings.data)
    potentials = load_models(settings.model)
    study = Study("learn_phonons", settings, potentials)
    for label, potential in potentials.items():
        if not (known := study.known(label, materials, lambda m: m.atoms.numbers)):
            continue
        several = [divided(known, seed, settings.held_out) for seed in range(settings.splits)]

        def measure(key: str, potential=potential, several=several) -> dict[str, Any]:
            _, kind, seed = key.rsplit("/", 2)
            train, test = several[int(seed)]
            tuned = learnt(settings, study, potential, kind, int(seed), list(train.values()), replayed)
            give_memory_back()  # that training took; phonons need other sizes
            forces = {name: against_dft(tuned, frames) for name, frames in watched.items()}
            return {
                "trained on": len(train),
                "held out": phonons(tuned, test),
                "forces": {name: {"mae": s.mae, "slope": s.slope} for name, s in forces.items()},
            }

        kinds = (AS_PUBLISHED, *settings.kinds)
        keys = [f"{label}/{kind}/{seed}" for seed in range(settings.splits) for kind in kinds]
        study.each(f"learning phonons, {label}", keys, measure)
    study.write(tables(settings, study), figures(settings, study))


def frames_of(data: Path | None) -> tuple[list[LabelledCrystal], dict[str, list[LabelledCrystal]]]:
    """Frames to replay, and frames that forces are watched on, by name."""
    rng, replayed, watched = np.random.default_rng(0), [], {}
    for name in REPLAYED:
        frames = drawn(read(data_file(data, name)), rng, FRAMES)
        replayed += frames[HELD:]
        watched[f"{Path(name).name.split('.')[0]}, held out"] = frames[:HELD]
    for name in ELSEWHERE:
        watched[f"{Path(name).name.split('.')[0]}, not replayed"] = drawn(
            read(data_file(data, name)), rng, HELD
        )
    # Energies of other calculations have other origins.
    bare = [replace(f, labels=replace(f.labels, energy=None, stress=None)) for f in replayed]
    return bare, watched


def divided(
    materials: dict[str, Material], seed: int, held_out: int
) -> tuple[dict[str, Material], dict[str, Material]]:
    """Materials to train on, and at least `held_out` others of which none has an element of these.

    Elements are set apart one by one, until they make enough materials. Materials with elements of both kinds
    are left out. Raises ValueError if no material is left to train on.
    """
    of = {name: set(m.atoms.symbols) for name, m in materials.items()}
    drawn_first = np.random.default_rng(seed).permutation(sorted(set().union(*of.values())))
    test: dict[str, Material] = {}
    for count in range(len(drawn_first)):
        test = {name: m for name, m in materials.items() if of[name] <= set(drawn_first[: count + 1])}
        if len(test) >= held_out:
            break
    apart = set().union(*(of[name] for name in test))
    train = {name: m for name, m in materials.items() if not of[name] & apart}
    if not train or len(test) < held_out:
        raise ValueError(
            f"found {len(materials)} materials, {len(train)} of them without elements of {len(test)} that "
            f"are held out; needed some to train on beside {held_out}. Give a smaller --held-out."
        )
    return train, test


def learnt(
    settings: Settings,
    study: Study,
    potential: Potential,
    kind: str,
    seed: int,
    materials: list[Material],
    replayed: list[LabelledCrystal],
) -> Potential:
    """The potential after training on the frequencies of `materials`."""
    if kind == AS_PUBLISHED:
        return potential
    if kind in (FACTOR, FROM_FACTOR):
        scale = np.float32(best_factor(potential, materials))
        potential = replace(potential, params={**potential.params, "scale": scale})
        if kind == FACTOR:
            return potential
    crystals = [labelled(m, kind) for m in materials]
    loss = LossConfig(
        energy=0.0,
        forces=settings.forces,
        magmoms=0.0,
        frequencies=settings.frequencies,
        averages=settings.averages,
    )
    optimizer = OptimizerConfig(learning_rate=settings.learning_rate, clip=10.0, ema=0.98)
    config = TrainConfig(
        loss=loss,
        optimizer=optimizer,
        waves=settings.waves,
        steps=settings.steps,
        checkpoint_every=50,
        keep=1,
        report_every=20,
    )
    folder = study.folder / "runs" / f"{potential.name}-{kind.replace(' ', '_')}-{seed}"
    tuned = tune(
        potential,
        crystals,
        config,
        folder,
        epochs=-(-settings.steps // -(-len(crystals) // settings.batch_size)),
        batch_size=settings.batch_size,
        seed=seed,
        replay=() if kind == ALONE else replayed,
        replay_batch=settings.replay,
        report=lambda event: _told(event, settings.steps),
    )
    tuned.save(folder / "model")  # for --model of other studies
    return tuned


def _told(event: Any, steps: int) -> None:
    if isinstance(event, Trained):
        shown = ("loss", "frequencies_mae", "averages_mae", "forces_mae", "stress_mae")
        known = {k: round(v, 4) for k, v in event.metrics.items() if k in shown}
        say(f"step {event.step} of {steps}: {known}")


def labelled(material: Material, kind: str) -> LabelledCrystal:
    """A material with what is learnt of it."""
    n, modes, masses = len(material.atoms), material.modes, material.atoms.get_masses()
    if kind in (MOMENTS, DENSITY):
        labels = Labels(averages=averages(modes, masses, kind))
    else:
        labels = Labels(frequencies=Frequencies(modes.q_points, modes.thz, masses, modes.weights))
    if kind == AT_REST:
        labels = replace(labels, forces=np.zeros((n, 3)), stress=np.zeros((3, 3)))
    if kind == RELATIVE:
        labels = replace(labels, weights={"frequencies": 1 / float(modes.thz.max())})
    return LabelledCrystal(material.atoms, labels, material.formula, material.id, "PBE").checked()


def averages(modes: MeshModes, masses: np.ndarray, kind: str) -> Averages:
    """The first two moments of DFT's frequencies, or their density of states, WIDTH of the highest wide."""
    f = np.maximum(modes.thz, 0.0)
    share = np.broadcast_to(modes.weights[:, None], f.shape) / modes.weights.sum() / f.shape[1]
    if kind == MOMENTS:
        powers = np.array([1.0, 2.0])
        return Averages(np.zeros(2, int), powers, np.array([(share * f**p).sum() for p in powers]), masses)
    return broadened(f.ravel(), share.ravel(), masses, f.max(), WIDTH * f.max())


def spectra(potential: Potential, materials: list[Material]) -> list[Modes]:
    """The modes of each material in DFT's cell, at the wave vectors that its DFT has."""

    def work(number: int, lattice: Lattice) -> Modes:
        modes = materials[number].modes
        return lattice.modes(modes.q_points, modes.weights / modes.weights.sum())

    found: dict[int, Modes] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotAtRestWarning)
        cells = [m.atoms for m in materials]
        for number, modes in lattices(potential.astype("float64"), cells, work):
            if isinstance(modes, Exception):
                raise modes
            found[number] = modes
    return [found[k] for k in range(len(materials))]


def best_factor(potential: Potential, materials: list[Material]) -> float:
    """The factor c that brings c times the squared frequencies y closest to DFT's x: Σxy / Σyy.

    Of each material a few wave vectors count, each drawn by its weight.
    """
    rng, few = np.random.default_rng(0), []
    for m in materials:
        k = rng.choice(len(m.modes.weights), FEW, p=m.modes.weights / m.modes.weights.sum())
        few.append(replace(m, modes=MeshModes(m.modes.q_points[k], np.ones(FEW), m.modes.thz[k])))
    xy = yy = 0.0
    for material, modes in zip(few, spectra(potential, few), strict=True):
        x, y = (np.sign(f) * f**2 for f in (material.modes.thz, modes.frequencies))
        xy, yy = xy + float((x * y).mean()), yy + float((y * y).mean())
    return xy / yy


def phonons(potential: Potential, materials: dict[str, Material]) -> dict[str, dict[str, Any]]:
    """Frequencies against DFT's: ratios model / DFT, the rms difference (THz), and imaginary modes."""
    found = {}
    for (name, material), modes in zip(
        materials.items(), spectra(potential, list(materials.values())), strict=True
    ):
        dft = material.modes
        model = Spectrum.of(modes.frequencies, dft.weights)
        square = np.average(((modes.frequencies - dft.thz) ** 2).mean(axis=1), weights=dft.weights)
        heat, its = (
            thermodynamics(replace(modes, frequencies=f), [KELVIN]) for f in (dft.thz, modes.frequencies)
        )
        bad = imaginary(dft.q_points, modes.frequencies)
        found[name] = {
            "structure": material.structure,
            "highest": model.maximum / material.dft.maximum,
            "mean": model.mean / material.dft.mean,
            "rms": float(np.sqrt(square)),
            "heat_capacity": float(its.heat_capacity[0] / heat.heat_capacity[0]),
            "entropy": float(its.entropy[0] / heat.entropy[0]),
            "imaginary": float(np.average(bad, weights=dft.weights)),
        }
    return found


def rows_of(settings: Settings, study: Study, label: str) -> dict[str, list[dict[str, Any]]]:
    """The rows of each kind, a row for each split."""
    keys = {
        kind: [f"{label}/{kind}/{seed}" for seed in range(settings.splits)]
        for kind in (AS_PUBLISHED, *settings.kinds)
    }
    return {kind: rows for kind, its in keys.items() if (rows := list(study.done(its).values()))}


def tables(settings: Settings, study: Study) -> list[Table]:
    found = []
    for label in study.weights:
        rows = rows_of(settings, study, label)
        if not rows:
            continue
        lines = []
        for kind, its in rows.items():
            materials = [m for row in its for m in row["held out"].values()]
            medians = [bootstrap([m[name] for m in materials], np.median) for name in NUMBERS]
            lines.append(
                [kind, len(its), len(materials), *medians, sum(m["imaginary"] > 0 for m in materials)]
            )
        note = (
            "Medians over the held-out materials of all splits, with 95 % intervals by bootstrap over them; "
            "ratios are model / DFT. Materials with imaginary modes at any wave vector are counted."
        )
        columns = (
            "learnt",
            "number of splits",
            "materials",
            *NUMBERS.values(),
            "materials with imaginary modes",
        )
        found.append(Table(f"{label}: phonons of held-out materials", columns, lines, 3, note))
        names = list(next(iter(rows.values()))[0]["forces"])
        lines = [
            [name, *(_error([row["forces"][name] for row in its]) for its in rows.values())] for name in names
        ]
        title = f"{label}: force MAE / meV/Å (slope), means over splits"
        found.append(Table(title, ("frames", *rows), lines))
    return found


def _error(found: list[dict[str, float]]) -> str:
    mae, slope = (np.mean([x[name] for x in found]) for name in ("mae", "slope"))
    return f"{1e3 * mae:.0f} ({slope:.3f})"


def figures(settings: Settings, study: Study) -> dict[str, tuple[str, Figure]]:
    found = {}
    for label in study.weights:
        if rows := rows_of(settings, study, label):
            caption = f"Held-out materials of {label}, before and after learning from others' frequencies."
            found[f"learn_phonons_{label}.png"] = (caption, figure(rows))
    return found


def figure(rows: dict[str, list[dict[str, Any]]]) -> Figure:
    """Every held-out material: highest and mean frequency, and the rms difference."""
    shown = {name: NUMBERS[name] for name in ("highest", "mean")} | {"rms": "rms difference (THz)"}
    result, (axes,) = panels(1, len(shown), each=(3.6, 3.4), spare=(0, 0.4))
    for ax, (name, words) in zip(axes, shown.items(), strict=True):
        for (kind, its), colour in zip(rows.items(), COLOURS, strict=False):
            values = np.sort([m[name] for row in its for m in row["held out"].values()])
            share = (np.arange(len(values)) + 0.5) / len(values)
            ax.plot(values, share, "o-", ms=3, lw=1, color=colour, label=kind)
        if name != "rms":
            ax.axvline(1, color="k", lw=0.8)
        ax.set_xlabel(words)
        ax.set_ylabel("share of materials below")
    legend(result)
    return result


if __name__ == "__main__":
    run(main, Settings)
