"""Crystals that several tests use."""

import numpy as np
from ase import Atoms
from ase.spacegroup import crystal as spacegroup_crystal


def rutile() -> Atoms:
    """Fourfold screw axes, mirror planes and a coordinate that symmetry leaves free."""
    places = [(0, 0, 0), (0.306, 0.306, 0)]
    return spacegroup_crystal("SiO", places, spacegroup=136, cellpar=[4.18, 4.18, 2.67, 90, 90, 90])


def triclinic() -> Atoms:
    """Three atoms without any symmetry, in a triclinic cell narrower than the cutoff."""
    vectors = np.array([[3.6, 0.3, 0.0], [-0.5, 4.1, 0.4], [0.6, 0.2, 4.4]])
    places = [[0.02, 0.01, 0.0], [0.52, 0.5, 0.13], [0.48, 0.03, 0.5]]
    return Atoms("MgAlO", cell=vectors, pbc=True, scaled_positions=places)


def chain(atoms: int = 30, seed: int = 0) -> Atoms:
    """A zigzag without symmetry that repeats along x alone; its atoms are in no order."""
    rng = np.random.default_rng(seed)
    x = 1.9 * np.arange(atoms)
    places = np.stack([x, 0.7 * np.sin(2.1 * np.arange(atoms)), 0.5 * (-1.0) ** np.arange(atoms)], 1)
    places += 0.1 * rng.normal(size=places.shape)
    numbers = np.where(np.arange(atoms) % 3 == 0, 12, 8)
    order = rng.permutation(atoms)
    cell = [1.9 * atoms, 30, 30]
    return Atoms(numbers[order], places[order], cell=cell, pbc=[True, False, False])
