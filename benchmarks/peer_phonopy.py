"""Phonons of a file by phonopy, with our calculator: the other side of `phonon_command`."""

import json
import sys

import ase.io
import numpy as np
from ase import Atoms
from phonopy import Phonopy
from phonopy.structure.atoms import PhonopyAtoms

import jaxmlip

file, model, repeats, mesh, q, out = sys.argv[1:]
atoms = ase.io.read(file)
cell = PhonopyAtoms(
    symbols=atoms.symbols, cell=atoms.cell.array, scaled_positions=atoms.get_scaled_positions()
)
phonon = Phonopy(cell, supercell_matrix=np.diag(json.loads(repeats)), primitive_matrix=np.eye(3))
phonon.generate_displacements()
calculator = jaxmlip.Calculator(jaxmlip.load(model, dtype="float64"))
forces = []
for s in phonon.supercells_with_displacements:
    moved = Atoms(s.symbols, cell=s.cell, scaled_positions=s.scaled_positions, pbc=True)
    forces.append(calculator.get_forces(moved))
phonon.forces = forces
phonon.produce_force_constants()
phonon.run_mesh(json.loads(mesh), with_eigenvectors=True, is_mesh_symmetry=False)
phonon.run_projected_dos()
phonon.run_thermal_properties()
phonon.run_qpoints(np.load(q))
phonon.save(out + ".yaml")
np.save(out, phonon.qpoints.frequencies)
