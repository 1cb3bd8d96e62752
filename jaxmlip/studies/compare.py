"""A potential against the DFT of a phonopy run: the same displaced supercells, evaluated in the same way.

The potential's forces are computed in the supercells that have DFT forces, minus its forces in the
undisplaced supercell (DFT's are taken to be 0 there: the crystal was relaxed with DFT). phonopy makes force
constants of both with the same settings, and frequencies of both are interpolated on the same mesh of wave
vectors, without the non-analytical correction of polar crystals, which the potentials lack. Displacements
(mostly 0.01 Å) measure a curvature averaged over them; `force_constants` gives the curvature at the lattice
sites.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jaxmlip.derivatives.slopes import hessian_slope, mode_slope
from jaxmlip.phonons.commensurate import dynamical_matrices, mesh_frequencies
from jaxmlip.phonons.phonopy_files import PhonopyRun, read_phonopy
from jaxmlip.studies.study import save
from jaxmlip.system.files import check_folder
from jaxmlip.system.plots import COLOURS, grid, legend, parity
from jaxmlip.system.tables import Table, show

if TYPE_CHECKING:
    from ase import Atoms
    from matplotlib.figure import Figure

    from jaxmlip.potential import Potential

MESH = (12, 12, 12)
SMEARING = 0.015  # σ of the Gaussian in densities of states, as a fraction of DFT's highest frequency


class Frequencies(NamedTuple):
    """Frequencies of a crystal on a mesh of wave vectors, in THz; imaginary ones are 0 in mean and rms."""

    maximum: float
    mean: float
    rms: float
    lowest: float  # negative if imaginary

    @classmethod
    def of(cls, thz: np.ndarray) -> Frequencies:
        real = np.maximum(thz, 0)
        return cls(*map(float, (thz.max(), real.mean(), np.sqrt((real**2).mean()), thz.min())))


@dataclass(frozen=True, eq=False)
class Comparison:
    """A potential against DFT for one crystal."""

    name: str  # of the folder
    formula: str
    atoms: int  # of the primitive cell
    supercell_atoms: int
    displaced: int  # supercells
    dft: Frequencies
    model: Frequencies
    force_slope: float  # of model against DFT, through the origin, over all components
    force_mae: float  # eV/Å
    hessian_slope: float  # of the force constants, element by element
    mode_slope: float  # of curvatures along DFT's modes, at the wave vectors that fit the supercell
    residual_force: float  # eV/Å, the model's largest on an atom in the undisplaced supercell
    dft_thz: np.ndarray = field(repr=False)  # (q, 3n), ascending at each wave vector
    model_thz: np.ndarray = field(repr=False)

    def ratio(self, of: str = "maximum") -> float:
        """The ratio model / DFT of "maximum", "mean" or "rms"."""
        return max(getattr(self.model, of), 0.0) / getattr(self.dft, of)

    def record(self) -> dict[str, Any]:
        """All fields but the frequencies of each mode, for JSON."""
        kept = {k: v for k, v in vars(self).items() if not k.endswith("_thz")}
        kept |= {"dft": self.dft._asdict(), "model": self.model._asdict()}
        difference = np.sqrt(((self.model_thz - self.dft_thz) ** 2).mean())
        return kept | {
            "ratios": {of: self.ratio(of) for of in ("maximum", "mean", "rms")},
            "rms_difference_THz": float(difference),
        }


def compare(
    potential: Potential, runs: Sequence[PhonopyRun], mesh: tuple[int, int, int] = MESH
) -> list[Comparison]:
    """One comparison for each phonopy run (see `read_phonopy`), in the same order.

    Frequencies are those on the Γ-centred mesh. The potential should have dtype "float64": forces at small
    displacements are small.

    Raises ValueError if a run has no forces, or an element is unknown to the potential.
    """
    _check_mesh(mesh)
    forces = [run.forces for run in runs]
    crystals = [[run.supercell, *run.displaced] for run in runs]
    for run, (supercell, *_) in zip(runs, crystals, strict=True):
        try:
            potential.graph(supercell)
        except ValueError as error:
            raise ValueError(f"{run.source}: {error}") from None
    predictions = iter(potential.predict([atoms for each in crystals for atoms in each]))
    result = []
    for run, dft, each in zip(runs, forces, crystals, strict=True):
        residual, *model = [np.asarray(next(predictions)["forces"], float) for _ in each]
        model = np.array(model) - residual
        constants = run.constants, run.with_forces(model)
        thz = [mesh_frequencies(c, mesh) for c in constants]
        along_dft = mode_slope(*(dynamical_matrices(c) for c in reversed(constants)))
        result.append(
            Comparison(
                name=run.source.resolve().name if run.source.is_dir() else run.source.resolve().parent.name,
                formula=_formula(run.constants.primitive),
                atoms=len(run.constants.primitive),
                supercell_atoms=len(run.supercell),
                displaced=len(dft),
                dft=Frequencies.of(thz[0]),
                model=Frequencies.of(thz[1]),
                force_slope=float(np.vdot(dft, model) / np.vdot(dft, dft)),
                force_mae=float(np.abs(model - dft).mean()),
                hessian_slope=hessian_slope(constants[1].pairs, constants[0].pairs).slope,
                mode_slope=along_dft.slope,
                residual_force=float(np.linalg.norm(residual, axis=1).max()),
                dft_thz=thz[0],
                model_thz=thz[1],
            )
        )
    return result


def _formula(atoms: Atoms) -> str:
    from pymatgen.core import Composition

    return Composition(str(atoms.symbols)).reduced_formula


def _check_mesh(mesh) -> None:
    if len(mesh) != 3 or any(k != int(k) or k < 1 for k in mesh):
        raise ValueError(f"found mesh={mesh!r}, needed three positive whole numbers.")


def table(rows: Sequence[Comparison], model: str) -> Table:
    """A table of the rows for a terminal: frequencies in THz, ratios model / DFT."""
    lines = []
    for row in rows:
        sizes = [row.name, row.formula, row.atoms, row.supercell_atoms]
        highest = [f"{row.dft.maximum:.2f}", f"{row.model.maximum:.2f}"]
        numbers = [row.ratio(of) for of in ("maximum", "mean", "rms")]
        numbers += [row.force_slope, row.hessian_slope, row.mode_slope]
        lowest = [f"{round(side.lowest, 2) + 0.0:.2f}" for side in (row.dft, row.model)]  # no -0.00
        lines.append([*sizes, *highest, *numbers, *lowest, row.residual_force])
    columns = ("run", "crystal", "n", "N", "DFT", "model", "ratio", "mean", "rms")
    return Table(
        f"{model} against the DFT of phonopy runs: highest frequency (THz), ratios model / DFT",
        (*columns, "slope\nF", "\nΦ", "\nmodes", "min DFT", "min", "|F|"),
        lines,
        note="n, N: atoms of primitive cell and supercell; slopes, model against DFT: F of forces, Φ of\n"
        "force constants, modes of the curvature along DFT's modes; min: lowest frequency, negative where\n"
        "imaginary; |F|: the model's largest force (eV/Å) before anything is displaced",
    )


def draw(rows_by_model: Mapping[str, Sequence[Comparison]]) -> Figure:
    """Draws the densities of states of every run, and every mode of the models against DFT."""
    runs = next(iter(rows_by_model.values()))
    figure, axes = grid(len(runs) + 1, each=(4.2, 3.5), spare=(0, 0.5))
    _modes(axes[0], rows_by_model)
    for k, panel in enumerate(axes[1:]):
        _densities(panel, k, rows_by_model)
    legend(figure, ncols=len(rows_by_model) + 2)
    return figure


def _modes(axes, rows_by_model) -> None:
    every = [x for rows in rows_by_model.values() for r in rows for x in (r.dft_thz, r.model_thz)]
    low, high = min(x.min() for x in every), max(x.max() for x in every)
    margin = 0.04 * (high - low)
    limits = (min(low, 0) - margin, high + margin)
    for k, rows in enumerate(rows_by_model.values()):
        colour = COLOURS[k % len(COLOURS)]
        for row in rows:
            axes.plot(row.dft_thz.ravel(), row.model_thz.ravel(), ".", ms=1, color=colour, rasterized=True)
    parity(axes, "frequency", "THz", label="model = DFT")
    axes.set(xlim=limits, ylim=limits, aspect="equal")
    axes.set_title("every mode on the mesh", loc="left", fontsize=10)


def _densities(axes, k: int, rows_by_model) -> None:
    row = next(iter(rows_by_model.values()))[k]
    width = SMEARING * row.dft.maximum
    x, y = smeared_density(row.dft_thz, width)
    axes.fill_between(x, y, color="0.8", lw=0, label="DFT")
    ratios = []
    for (model, rows), colour in zip(rows_by_model.items(), COLOURS * len(rows_by_model), strict=False):
        x, y = smeared_density(rows[k].model_thz, width)
        axes.plot(x, y, color=colour, lw=1.1, label=model)
        ratios.append(f"{rows[k].ratio():.2f}")
    axes.set_title(f"{row.name}; ω_max ratio {', '.join(ratios)}", loc="left", fontsize=10)
    axes.set_xlabel("frequency (THz)")
    axes.set_ylabel(f"modes per cell and THz (σ = {width:.2f} THz)", fontsize=9)
    axes.set_ylim(0)
    axes.grid(color="0.92", lw=0.6, zorder=0)


def smeared_density(thz: np.ndarray, width: float) -> tuple[np.ndarray, np.ndarray]:
    """Frequencies (THz) and modes per primitive cell and THz, smeared by a Gaussian of σ = `width` (THz)."""
    step = width / 4
    edges = np.arange(thz.min() - 5 * width, thz.max() + 5 * width + step, step)
    counts, _ = np.histogram(thz, edges)
    offsets = step * np.arange(-20, 21)
    gaussian = np.exp(-((offsets / width) ** 2) / 2)
    density = np.convolve(counts, gaussian / gaussian.sum(), mode="same") / step / len(thz)
    return (edges[:-1] + edges[1:]) / 2, density


def main(
    folders: Sequence[Path],
    models: Sequence[str],
    mesh: tuple[int, int, int] = MESH,
    out: Path = Path(),
    dtype: str = "float64",
    heads: Sequence[str] = (),
) -> None:
    """`compare` for each of `models`: prints tables, writes compare.json and compare.png to `out`.

    `heads` are those of `load_each`.
    """
    from jaxmlip.zoo.load import load_each

    _check_mesh(mesh)
    check_folder(out)
    runs = [read_phonopy(folder) for folder in folders]
    potentials = load_each(models, dtype, heads)
    rows_by_model = {}
    for potential in potentials:
        rows_by_model[potential.name] = compare(potential, runs, mesh)
        show(table(rows_by_model[potential.name], potential.name))
    save(
        out,
        "compare",
        "frequencies (THz) and forces (eV/Å) of potentials against DFT; ratios are model / DFT",
        {
            "force_constants": "made by phonopy with the same settings on both sides",
            "non_analytical_correction": "left out on both sides",
            "wave_vectors": "Γ-centred mesh, interpolated from the supercell",
            "mean, rms": "over wave vectors and branches, imaginary frequencies as 0",
            "force_slope": "through the origin, all components of all displaced supercells",
            "hessian_slope": "through the origin, all elements of the force constants",
            "mode_slope": "through the origin, the model's quadratic form in DFT's eigenvectors against ω², "
            "at the wave vectors that fit the supercell",
            "forces": "the model's forces in the undisplaced supercell are subtracted",
            "mesh": list(mesh),
            "dtype": dtype,
            "runs": [str(folder) for folder in folders],
        },
        potentials,
        draw(rows_by_model),
        ("jax", "numpy", "phonopy"),
        models={model: [row.record() for row in rows] for model, rows in rows_by_model.items()},
    )
