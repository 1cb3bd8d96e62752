"""A phonopy run whose DFT is a potential."""

from pathlib import Path

import numpy as np
import phonopy
from ase import Atoms


def write_run(folder: Path, potential, cell: Atoms, supercell=(2, 1, 1), primitive="P", scale=1.0) -> None:
    """phonopy_disp.yaml and FORCE_SETS as if the forces of `potential` times `scale` were DFT's."""
    from phonopy.file_IO import write_FORCE_SETS
    from phonopy.structure.atoms import PhonopyAtoms

    unit = PhonopyAtoms(numbers=cell.numbers, cell=cell.cell.array, positions=cell.positions)
    phonon = phonopy.Phonopy(unit, supercell_matrix=np.diag(supercell), primitive_matrix=primitive)
    phonon.generate_displacements(distance=0.01)
    folder.mkdir(parents=True, exist_ok=True)
    phonon.save(folder / "phonopy_disp.yaml")

    def forces(crystal) -> np.ndarray:
        atoms = Atoms(crystal.numbers, crystal.positions, cell=crystal.cell, pbc=True)
        return potential.predict(atoms)["forces"]

    rest = forces(phonon.supercell)
    phonon.forces = [scale * (forces(s) - rest) for s in phonon.supercells_with_displacements]
    write_FORCE_SETS(phonon.dataset, filename=folder / "FORCE_SETS")
