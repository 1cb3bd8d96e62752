"""The reference of the softening study: binary crystals and their DFT phonon frequencies.

phononDB-PBE as k_SRME publishes it: 103 rocksalt, zincblende and wurtzite crystals, their PBE cells, and
their frequencies on a Γ-centred mesh of 19 × 19 × 19 wave vectors (wurtzite: 19 × 19 × 15).
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
from ase import Atoms

from jaxmlip.crystals.symmetry import Mesh

STRUCTURES = {225: "rocksalt", 216: "zincblende", 186: "wurtzite"}  # by space group
ANIONS = {14: "carbide", 15: "pnictide", 16: "chalcogenide", 17: "halide"}  # by group, below oxygen
STRUCTURES_FILE, FREQUENCIES_FILE = "phononDB-PBE-structures.extxyz", "kappas_phononDB_PBE_noNAC.json.gz"
ON_MESH = 1e-3  # steps of a mesh; wave vectors are kept with ten digits
SOURCE = {
    "data": "phononDB-PBE, A. Togo: harmonic frequencies of VASP force constants (PBE), without the "
    "non-analytical correction",
    "published_in": "https://github.com/MPA2suite/k_SRME, folder data, files "
    f"{STRUCTURES_FILE} and {FREQUENCIES_FILE}",
    "commit": "0269a946a1e4c53552b060a92b98df94e039fd80",
    "licence": "that repository is under GPL-3.0; quoted here are cells and frequencies, no code. "
    "matbench-discovery (MIT) has the same frequencies as 17 quantiles to 0.01 THz, without cells and means, "
    "which cannot replace them; the highest of each material agrees",
    "paper": "B. Póta, P. Ahlawat, G. Csányi and M. Simoncelli, arXiv:2408.00755",
}


@dataclass(frozen=True)
class Spectrum:
    """Frequencies of one crystal in THz."""

    maximum: float
    mean: float  # over wave vectors and branches; an imaginary frequency counts as 0
    lowest: float  # negative if imaginary

    @classmethod
    def of(cls, thz: np.ndarray, weights: np.ndarray | None = None) -> Spectrum:
        """The spectrum of frequencies (q, branches), THz; `weights` of the wave vectors if these differ."""
        mean = np.average(np.maximum(thz, 0).mean(axis=1), weights=weights)
        return cls(float(thz.max()), float(mean), float(thz.min()))


@dataclass(frozen=True, eq=False)
class MeshModes:
    """Frequencies at the irreducible wave vectors of a mesh."""

    q_points: np.ndarray  # (q, 3), reciprocal lattice units
    weights: np.ndarray  # (q,), the number of wave vectors that each stands for
    thz: np.ndarray  # (q, branches), ascending; imaginary ones are negative

    def representatives(self, mesh: Mesh) -> np.ndarray:
        """The irreducible point of `mesh` that each wave vector (q,) is equivalent to.

        Raises ValueError if they are not on that mesh, or do not stand for the same numbers of its points.
        """
        steps = self.q_points * mesh.shape
        off = np.abs(steps - np.rint(steps)).max()
        if off > ON_MESH:
            raise ValueError(
                f"found a wave vector that is {off:.2g} steps off the mesh {mesh.shape}, needed points of it."
            )
        index = np.rint(steps).astype(int) % mesh.shape
        found = mesh.representative[np.ravel_multi_index(tuple(index.T), mesh.shape)]
        if not np.array_equal(np.bincount(found, self.weights, len(mesh.weights)), mesh.weights):
            raise ValueError(
                f"the {len(self.weights)} wave vectors and their weights differ from the mesh {mesh.shape} "
                f"reduced by symmetry, which has {len(mesh.weights)}. Check that both are of one crystal."
            )
        return found


@dataclass(frozen=True)
class Material:
    """A crystal with its DFT frequencies."""

    id: str  # of the Materials Project, if it has one
    formula: str
    structure: str
    atoms: Atoms  # primitive cell, as relaxed with PBE
    mesh: tuple[int, int, int]  # of wave vectors, Γ-centred
    dft: Spectrum
    modes: MeshModes | None = None  # summed up in `dft`; None for the materials of this package

    @property
    def anions(self) -> str:
        """The kind of compound by its anion, such as "oxide"."""
        from pymatgen.core import Element

        elements = [Element(symbol) for symbol in set(self.atoms.symbols)]
        if Element("H") in elements:
            return "hydride"
        if Element("O") in elements:
            return "oxide"
        # By group, not by electronegativity: that of lead is above that of tellurium.
        return ANIONS.get(max(element.group for element in elements), "other")


def builtin_materials() -> list[Material]:
    """The materials whose cells and DFT frequencies come with this package."""
    record = json.loads(files("jaxmlip.studies").joinpath("phonondb_pbe.json").read_text())
    return [
        Material(
            id=m["id"],
            formula=m["formula"],
            structure=m["structure"],
            atoms=Atoms(m["symbols"], cell=m["cell"], scaled_positions=m["scaled_positions"], pbc=True),
            mesh=tuple(m["mesh"]),
            dft=Spectrum(**m["dft"]),
        )
        for m in record["materials"]
    ]


def read_phonondb(folder: str | Path) -> list[Material]:
    """All materials of k_SRME's phononDB-PBE files in `folder`, or in its folder phonondb_PBE_103.

    Raises FileNotFoundError if a file is missing, and ValueError if the two files do not agree.
    """
    return [material_of(crystal, row) for crystal, row in read_rows(folder)]


def read_rows(folder: str | Path) -> Iterator[tuple[Atoms, dict[str, Any]]]:
    """Each crystal of these files, its unit cell, with the entries of the file of frequencies on it.

    Raises as `read_phonondb` does.
    """
    folder = Path(folder)
    if not (folder / STRUCTURES_FILE).is_file() and (folder / "phonondb_PBE_103").is_dir():
        folder = folder / "phonondb_PBE_103"
    missing = [name for name in (STRUCTURES_FILE, FREQUENCIES_FILE) if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{folder} has no {' and no '.join(missing)}. Both files are published at "
            f"{SOURCE['published_in'].split(',')[0]}, commit {SOURCE['commit'][:8]}, in its folder data; put "
            "them into one folder and name that folder with --data. Without --data the built-in list is used."
        )
    with gzip.open(folder / FREQUENCIES_FILE, "rt") as file:
        columns = json.load(file)
    index = {mp_id: k for k, mp_id in columns["mp_id"].items()}
    crystals = ase.io.read(folder / STRUCTURES_FILE, ":")
    unmatched = sorted({a.info["mp_id"] for a in crystals} ^ set(index))
    if unmatched:
        raise ValueError(
            f"{STRUCTURES_FILE} and {FREQUENCIES_FILE} in {folder} name different materials: "
            f"{', '.join(unmatched[:5])}{' …' * (len(unmatched) > 5)} are in only one of them. Take both "
            "from the same commit."
        )
    for crystal in crystals:
        k = index[crystal.info["mp_id"]]
        yield crystal, {name: column[k] for name, column in columns.items()}


def material_of(crystal: Atoms, row: dict[str, Any]) -> Material:
    """A material of `read_rows`. Raises ValueError if crystal and row do not agree."""
    thz, weights = np.array(row["frequencies"]), np.array(row["weights"])
    primitive = primitive_cell(crystal, crystal.info.get("primitive_matrix"))
    if thz.shape != (len(weights), 3 * len(primitive)) or weights.sum() != np.prod(row["q_mesh"]):
        raise ValueError(
            f"{crystal.info['mp_id']} ({crystal.info['name']}) has frequencies of shape {thz.shape} and "
            f"weights that add up to {weights.sum()}; needed {3 * len(primitive)} branches, and weights "
            f"for a mesh of {row['q_mesh']}. Take both files from the same commit."
        )
    return Material(
        id=crystal.info["mp_id"],
        formula=crystal.info["name"],
        structure=STRUCTURES[int(crystal.info["symm.no"])],
        atoms=primitive,
        mesh=tuple(row["q_mesh"]),
        dft=Spectrum.of(thz, weights),
        modes=MeshModes(np.array(row["qpoints"]), weights, np.sort(thz, axis=1)),
    )


def primitive_cell(crystal: Atoms, matrix: np.ndarray | None) -> Atoms:
    """The primitive cell: its lattice vectors are the columns of `matrix` in units of the crystal's.

    Without a matrix, the cell as it is. Raises ValueError if the crystal does not repeat with that cell.
    """
    if matrix is None:
        return Atoms(crystal.numbers, crystal.positions, cell=crystal.cell, pbc=True)
    cell = np.asarray(matrix).T @ crystal.cell.array
    scaled = crystal.positions @ np.linalg.inv(cell)
    apart = scaled[:, None] - scaled
    same = np.linalg.norm((apart - apart.round()) @ cell, axis=-1) < 1e-3  # Å
    first = same.argmax(axis=1)
    kept = np.flatnonzero(first == np.arange(len(crystal)))
    copies = round(len(crystal) / len(kept))
    alike = (crystal.numbers[first] == crystal.numbers).all() and (same.sum(axis=1) == copies).all()
    if not alike or abs(copies * abs(np.linalg.det(cell)) / crystal.cell.volume - 1) > 1e-6:
        raise ValueError(
            f"{crystal.get_chemical_formula()} does not repeat with the cell {cell.round(4).tolist()} Å of "
            f"its primitive_matrix: {len(kept)} of its {len(crystal)} atoms are not lattice copies of "
            "others. Check that structure and matrix belong together."
        )
    return Atoms(crystal.numbers[kept], scaled_positions=scaled[kept] % 1.0, cell=cell, pbc=True)
