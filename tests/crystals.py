"""Crystals that several tests use."""

from ase import Atoms
from ase.spacegroup import crystal as spacegroup_crystal


def rutile() -> Atoms:
    """Fourfold screw axes, mirror planes and a coordinate that symmetry leaves free."""
    places = [(0, 0, 0), (0.306, 0.306, 0)]
    return spacegroup_crystal("SiO", places, spacegroup=136, cellpar=[4.18, 4.18, 2.67, 90, 90, 90])
