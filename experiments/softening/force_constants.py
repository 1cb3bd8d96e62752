"""Is the curvature of a potential too small, by how much, and which part of it?

    python -m experiments.softening.force_constants --model chgnet-0.3.0 --data FOLDER --out FOLDER

Deng et al. (npj Comput. Mater. 11, 9, 2025) conclude from slopes of forces and from highest frequencies that
universal potentials underpredict curvature. They do not compare curvatures. Here force constants of phonopy's
and phono3py's runs are compared, element by element and along DFT's modes. The model's come from second
derivatives at the lattice sites, and, for runs with displacements, from DFT's displacements.

The model's curvature along the stiffest mode of DFT is followed to large amplitudes, and its forces are
compared on frames of silicon ever farther from rest.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from experiments.datasets import RUNS, against_dft, data_file, read, rms_force
from experiments.softening.elements import numbers
from experiments.softening.force_constants_results import (
    AMPLITUDES,
    RANGES,
    SHELL,
    THIRDS,
    figures,
    findings,
    silicon_table,
    tables,
)
from jaxmlip.studies.study import Study, check_known, load_models, run
from jaxmlip.system.arguments import Models

if TYPE_CHECKING:
    from ase import Atoms

    from jaxmlip.data.labels import LabelledCrystal
    from jaxmlip.phonons.phonopy_files import PhonopyRun
    from jaxmlip.phonons.supercell import ForceConstants
    from jaxmlip.potential import Potential

POINTS = 600  # of a material in the figure at most


class Frames(NamedTuple):
    """Frames with DFT forces, from near rest to far away."""

    name: str
    path: str  # below the folder of all data
    says: tuple[tuple[str, Any], ...] = ()  # what the info lines of these frames say


PHONO3PY = "phonopy_displaced_extxyz/Si-phono3py-PBE__PBE.extxyz.gz"
SILICON = (
    Frames("0.03 Å, one or two atoms", PHONO3PY),
    *(
        Frames(f"{t} K", "mlearn/Si.extxyz.gz", (("group", "AIMD-NVT"), ("temperature_K", t)))
        for t in (300, 843, 1518)
    ),
)


@dataclass(frozen=True)
class Settings:
    """Is the curvature of a potential too small, by how much, and which part of it?"""

    model: Models = ()  # default: chgnet-0.3.0
    data: Path | None = None  # folder with phonopy_examples_PBE/ and the others; default: JAXMLIP_DATA
    out: Path = Path("curvature_hessian")
    runs: tuple[str, ...] = tuple(r.name for r in RUNS)  # which runs to compare with, by name
    silicon: bool = True  # also forces on silicon, from phonopy_displaced_extxyz/ and mlearn/


def main(settings: Settings) -> None:
    references = {r.name: r for r in RUNS}
    check_known("run", settings.runs, references)
    runs = {name: references[name].read(settings.data) for name in settings.runs}
    frames = silicon(settings)
    potentials = load_models(settings.model, "float64")
    study = Study("curvature_hessian", settings, potentials)
    rows = study.ask(
        "curvature",
        {name: (references[name].functional, run) for name, run in runs.items()},
        lambda it: it[1].supercell.numbers,
        lambda potential, it: {"functional": it[0], **measure(potential, it[1])},
        "{} | {}",
    )
    found = {model: [{"run": name, **row} for name, row in of.items()] for model, of in rows.items()}
    rows = study.ask("forces", frames, lambda some: (14,), forces_on, "{} | Si, {}")
    elsewhere = {model: [{"name": name, **row} for name, row in of.items()] for model, of in rows.items()}
    written = tables(found)
    if settings.silicon:
        written.append(silicon_table(found, elsewhere))
    study.write(written, figures(found), findings(found, elsewhere))


def measure(potential: Potential, reference: PhonopyRun) -> dict[str, Any]:
    """The row of one run: slopes of force constants, modes and forces; ratios of frequencies; the curve."""
    from jaxmlip.derivatives.slopes import force_slope
    from jaxmlip.phonons.supercell import force_constants

    dft = reference.constants
    constants = {"hessian": force_constants(potential, dft.primitive, dft.supercell, symmetry=True)}
    formula = dft.primitive.get_chemical_formula("metal", empirical=True)
    row: dict[str, Any] = {"formula": formula, "displaced": None, "forces": None}
    if reference.displaced:
        residual, *model = (
            np.asarray(p["forces"], float)
            for p in potential.predict([reference.supercell, *reference.displaced])
        )
        moved = [forces - residual for forces in model]
        constants["displaced"] = reference.with_forces(moved)
        row["forces"] = numbers(force_slope(moved, list(reference.forces)))
    row |= {name: compared(c, dft) for name, c in constants.items()}
    row["points"] = points(constants["hessian"], dft)
    row["stiffest"] = along_stiffest(potential, dft)
    return row


def compared(model: ForceConstants, dft: ForceConstants) -> dict[str, Any]:
    """Force constants of the model against DFT's."""
    from jaxmlip.derivatives.slopes import frequency_ratios, hessian_slope, mode_slope
    from jaxmlip.phonons.commensurate import dynamical_matrices, mesh_frequencies
    from jaxmlip.studies.compare import MESH

    y, x = model.pairs, dft.pairs
    modes = mode_slope(dynamical_matrices(model), dynamical_matrices(dft))
    ratios = frequency_ratios(mesh_frequencies(model, MESH), mesh_frequencies(dft, MESH))
    return {
        "all": numbers(hessian_slope(y, x)),
        "without_self": numbers(hessian_slope(y, x, self_terms=False)),
        "ranges": {name: numbers(hessian_slope(y, x, pairs=some)) for name, some in ranges(dft).items()},
        "modes": {"slope": modes.slope, "mean": modes.mean},
        "thirds": {name: modes.ratio_of(some) for name, some in thirds(modes.dft).items()},
        "ratios": ratios._asdict(),
    }


def ranges(dft: ForceConstants) -> dict[str, np.ndarray]:
    """Masks (n, N) of pairs of atoms: the same atom, first neighbours, or farther apart."""
    distance = dft.distances
    own = np.zeros(distance.shape, bool)
    own[np.arange(len(own)), np.arange(len(own))] = True
    nearest = np.where(own, np.inf, distance).min(axis=1, keepdims=True)
    near = ~own & (distance < SHELL * nearest)
    return dict(zip(RANGES, (own, near, ~own & ~near), strict=True))


def thirds(squares: np.ndarray) -> dict[str, np.ndarray]:
    """Masks (q, modes) of modes by frequency; modes near zero (acoustic, Γ) are in none."""
    from jaxmlip.derivatives.slopes import NEGLIGIBLE

    counted = squares > NEGLIGIBLE * squares.max()
    low, high = np.quantile(squares[counted], (1 / 3, 2 / 3))
    parts = (squares <= low, (squares > low) & (squares <= high), squares > high)
    return {name: counted & part for name, part in zip(THIRDS, parts, strict=True)}


def points(model: ForceConstants, dft: ForceConstants) -> dict[str, Any]:
    """Points of the figures: force constants by range (eV/Å²), and modes: DFT's THz, and √(model / DFT)."""
    from jaxmlip.derivatives.slopes import mode_slope
    from jaxmlip.phonons.commensurate import dynamical_matrices
    from jaxmlip.units import THZ_PER_ROOT_EV_PER_A2_U

    some: dict[str, Any] = {}
    for name, pairs in ranges(dft).items():
        x, y = dft.pairs[pairs].ravel(), model.pairs[pairs].ravel()
        largest = np.argsort(-np.maximum(abs(x), abs(y)))[:POINTS]
        some[name] = [x[largest].round(4), y[largest].round(4)]
    modes = mode_slope(dynamical_matrices(model), dynamical_matrices(dft))
    squares, ratios = modes.dft.ravel(), modes.ratios.ravel()
    kept = np.isfinite(ratios) & (squares > 0)
    squares, ratios = squares[kept], ratios[kept]
    step = -(-len(squares) // POINTS)
    thz = np.sqrt(squares) * THZ_PER_ROOT_EV_PER_A2_U
    signed = np.sign(ratios) * np.sqrt(abs(ratios))
    return some | {"modes": [thz[::step].round(4), signed[::step].round(4)]}


def along_stiffest(potential: Potential, dft: ForceConstants) -> dict[str, Any]:
    """The model's curvature along DFT's stiffest mode, over DFT's harmonic one, at AMPLITUDES.

    "there" is the curvature at the amplitude; "mean" is the mean from rest to there, which is the restoring
    force over the amplitude. Both are averaged over the two directions, which removes the model's forces at
    the lattice sites. Of degenerate modes the eigensolver's last one is taken.
    """
    from jaxmlip.phonons.commensurate import dynamical_matrices
    from jaxmlip.units import THZ_PER_ROOT_EV_PER_A2_U

    squares, vectors = np.linalg.eigh(dynamical_matrices(dft))
    q = int(squares[:, -1].argmax())
    atoms, u = standing_wave(dft, dft.q_points[q], vectors[q, :, -1])
    masses = atoms.get_masses()[:, None]
    harmonic = squares[q, -1] * (masses * u**2).sum() / (u**2).sum()
    slope, curvature = np.mean([along(potential, atoms, s * u, AMPLITUDES) for s in (1, -1)], axis=0).T
    mean = np.where(AMPLITUDES > 0, slope / np.where(AMPLITUDES > 0, AMPLITUDES, 1), curvature)
    return {
        "THz": np.sqrt(squares[q, -1]) * THZ_PER_ROOT_EV_PER_A2_U,
        "q": dft.q_points[q],
        "dft": harmonic,
        "there": curvature / harmonic,
        "mean": mean / harmonic,
    }


def standing_wave(dft: ForceConstants, q: np.ndarray, vector: np.ndarray) -> tuple[Atoms, np.ndarray]:
    """The supercell and a real displacement (atoms, 3) of this mode in it, 1 Å for the atom that moves most.

    `vector` is an eigenvector of the mass-weighted matrix, with the phases of cells.
    """
    from ase import Atoms

    cell, r = dft.primitive.cell.array, dft.primitive.positions
    atoms = Atoms(
        np.tile(dft.primitive.numbers, len(dft.cells)),
        (dft.cells[:, None] @ cell + r).reshape(-1, 3),
        cell=dft.supercell @ cell,
        pbc=True,
    )
    atoms.set_masses(np.tile(dft.primitive.get_masses(), len(dft.cells)))
    phase = np.exp(2j * np.pi * dft.cells @ q)
    wave = np.einsum("c,ix->cix", phase, vector.reshape(-1, 3)).reshape(-1, 3)
    # Where q and -q are equivalent, its real or its imaginary part may be small.
    wave = max((wave.real, wave.imag), key=np.linalg.norm) / np.sqrt(atoms.get_masses())[:, None]
    return atoms, wave / np.linalg.norm(wave, axis=1).max()


def along(potential: Potential, atoms: Atoms, u: np.ndarray, amplitudes: Iterable[float]) -> np.ndarray:
    """Slope (eV/Å) and curvature (eV/Å²) of the energy along u (atoms, 3), over |u|²: (amplitudes, 2).

    Atoms are displaced by each of `amplitudes` times u.
    """
    import jax
    import jax.numpy as jnp

    from jaxmlip.crystals import batching
    from jaxmlip.derivatives.gradients import gradient

    graphs = []
    for amplitude in amplitudes:
        moved = atoms.copy()
        moved.positions += amplitude * u
        graphs.append(potential.graph(moved))
    shape = batching.BatchShape.covering(batching.shape_for([g]) for g in graphs)

    @jax.jit
    def both(arrays, graph, u):
        force = gradient(partial(potential.energy_fn, arrays), graph)
        return jnp.stack([jnp.vdot(u, x) for x in jax.jvp(force, (graph.positions,), (u,))]) / jnp.vdot(u, u)

    found = []
    with potential.precision():
        for graph in graphs:
            packed = batching.pack([graph], shape, np.dtype(potential.dtype))
            padded = np.zeros(packed.positions.shape, potential.dtype)
            padded[: len(u)] = u
            found.append(np.asarray(both(potential.arrays, packed, padded), float))
    return np.array(found)


def silicon(settings: Settings) -> dict[str, list]:
    """The frames of SILICON, by name."""
    if not settings.silicon:
        return {}
    files = {path: read(data_file(settings.data, path)) for path in {f.path for f in SILICON}}
    found = {}
    for f in SILICON:
        found[f.name] = [
            frame for frame in files[f.path] if all(frame.atoms.info.get(k) == v for k, v in f.says)
        ]
        if not found[f.name]:
            raise ValueError(f"found no frames with {dict(f.says)} in {f.path}, needed at least one.")
    return found


def forces_on(potential: Potential, frames: Sequence[LabelledCrystal]) -> dict[str, Any]:
    slope = against_dft(potential, frames)
    return {"frames": len(frames), "rms_dft": rms_force(frames), **numbers(slope)}


if __name__ == "__main__":
    run(main, Settings)
