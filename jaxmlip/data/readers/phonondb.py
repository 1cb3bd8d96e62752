"""phononDB-PBE as k_SRME publishes it: a file of crystals, and one of their frequencies on a mesh."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
from ase import Atoms

from jaxmlip.crystals.symmetry import Mesh
from jaxmlip.data.labels import Frequencies, LabelledCrystal
from jaxmlip.data.readers.common import Frame, Keys, crystal
from jaxmlip.system.borders import shallow

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


def is_pair(folder: Path) -> bool:
    """True if a folder has both files."""
    return all((folder / name).is_file() for name in (STRUCTURES_FILE, FREQUENCIES_FILE))


def read_pair(path: Path, keys: Keys) -> Iterator[Frame]:
    """The primitive cells of the materials in a folder, or beside one of its files, with their frequencies.

    The material is the formula. The frequencies are those without the non-analytical correction.
    """
    for unit, row in read_rows(path if path.is_dir() else path.parent):
        yield partial(_labelled, unit, row, path)


def _labelled(unit: Atoms, row: dict[str, Any], path: Path) -> LabelledCrystal:
    atoms, modes = modes_of(unit, row)
    name, formula = f"{path} {unit.info['mp_id']}", str(unit.info["name"])
    found = crystal(atoms, name, formula, "PBE")
    its = Frequencies(modes.q_points, modes.thz, atoms.get_masses(), modes.weights)
    return replace(found, labels=replace(found.labels, frequencies=its))


def read_rows(folder: str | Path) -> Iterator[tuple[Atoms, dict[str, Any]]]:
    """Each crystal of these files, its unit cell, with the entries of the file of frequencies on it.

    `folder` may also be the one that has them as phonondb_PBE_103. Raises FileNotFoundError if a file is
    missing, and ValueError if the two name different materials.
    """
    folder = Path(folder)
    if not (folder / STRUCTURES_FILE).is_file() and (folder / "phonondb_PBE_103").is_dir():
        folder = folder / "phonondb_PBE_103"
    missing = [name for name in (STRUCTURES_FILE, FREQUENCIES_FILE) if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{folder} has no {' and no '.join(missing)}. Both files are published at "
            f"{SOURCE['published_in'].split(',')[0]}, commit {SOURCE['commit'][:8]}, in its folder data; put "
            "them into one folder and name that folder. Studies take it as --data; without --data they use "
            "the built-in list."
        )
    with gzip.open(folder / FREQUENCIES_FILE, "rt") as file, shallow():
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
    for unit in crystals:
        k = index[unit.info["mp_id"]]
        yield unit, {name: column[k] for name, column in columns.items()}


def modes_of(unit: Atoms, row: dict[str, Any]) -> tuple[Atoms, MeshModes]:
    """The primitive cell and the frequencies of a row of `read_rows`. Raises ValueError if they disagree."""
    thz, weights = np.array(row["frequencies"]), np.array(row["weights"])
    primitive = primitive_cell(unit, unit.info.get("primitive_matrix"))
    if thz.shape != (len(weights), 3 * len(primitive)) or weights.sum() != np.prod(row["q_mesh"]):
        raise ValueError(
            f"{unit.info['mp_id']} ({unit.info['name']}) has frequencies of shape {thz.shape} and "
            f"weights that add up to {weights.sum()}; needed {3 * len(primitive)} branches, and weights "
            f"for a mesh of {row['q_mesh']}. Take both files from the same commit."
        )
    return primitive, MeshModes(np.array(row["qpoints"]), weights, np.sort(thz, axis=1))


def primitive_cell(unit: Atoms, matrix: np.ndarray | None) -> Atoms:
    """The primitive cell: its lattice vectors are the columns of `matrix` in units of those of `unit`.

    Without a matrix, the cell as it is. Raises ValueError if the crystal does not repeat with that cell.
    """
    if matrix is None:
        return Atoms(unit.numbers, unit.positions, cell=unit.cell, pbc=True)
    cell = np.asarray(matrix).T @ unit.cell.array
    scaled = unit.positions @ np.linalg.inv(cell)
    apart = scaled[:, None] - scaled
    same = np.linalg.norm((apart - apart.round()) @ cell, axis=-1) < 1e-3  # Å
    first = same.argmax(axis=1)
    kept = np.flatnonzero(first == np.arange(len(unit)))
    copies = round(len(unit) / len(kept))
    alike = (unit.numbers[first] == unit.numbers).all() and (same.sum(axis=1) == copies).all()
    if not alike or abs(copies * abs(np.linalg.det(cell)) / unit.cell.volume - 1) > 1e-6:
        raise ValueError(
            f"{unit.get_chemical_formula()} does not repeat with the cell {cell.round(4).tolist()} Å of "
            f"its primitive_matrix: {len(kept)} of its {len(unit)} atoms are not lattice copies of "
            "others. Check that structure and matrix belong together."
        )
    return Atoms(unit.numbers[kept], scaled_positions=scaled[kept] % 1.0, cell=cell, pbc=True)
