"""Meshes of wave vectors that keep the symmetry of a crystal, as sums over irreducible ones need them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jaxmlip.crystals.symmetry import TOLERANCE as SYMPREC
from jaxmlip.crystals.symmetry import SpaceGroup, keeping_mesh, mesh_shape, space_group
from jaxmlip.phonons.cells import Cells


def check_mesh(cells: Cells, mesh: Sequence[int] | float, symprec: float = SYMPREC) -> tuple[int, int, int]:
    """A mesh that keeps symmetry: numbers of wave vectors along the primitive cell's reciprocal vectors.

    `mesh` is three such numbers, or a length (Å): as many wave vectors along b as |b| (1/Å, without 2π) times
    the length, rounded, and the same number along vectors that operations of the space group, found within
    `symprec` (Å), turn into one another.

    Raises ValueError if operations do not map the three numbers' mesh onto itself, naming the vectors and a
    mesh that is kept, or if `mesh` is neither of the two.
    """
    group = space_group(cells.primitive, symprec)
    tied = _tied(group)
    if np.ndim(mesh) == 0:
        if not 0 < mesh < np.inf:
            raise ValueError(f"found mesh={mesh!r}, needed three whole numbers, or a length above 0 Å.")
        vectors = np.linalg.inv(cells.primitive.cell.array).T
        wanted = np.maximum(1, np.rint(mesh * np.linalg.norm(vectors, axis=1))).astype(int)
        return _equal(wanted, tied)
    shape = mesh_shape(mesh)
    kept, of = len(keeping_mesh(shape, group).rotations), len(group.rotations)
    if kept < of:
        which = "; ".join(
            f"along b{', b'.join(str(i + 1) for i in axes)} it has {_listed(shape[i] for i in axes)}"
            for axes in sorted({tuple(np.flatnonzero(row).tolist()) for row in tied})
            if len({shape[i] for i in axes}) > 1
        )
        formula = cells.primitive.get_chemical_formula()
        raise ValueError(
            f"found the mesh {_listed(shape)} for {formula}, which {of - kept} of the {of} rotations of its "
            f"space group do not map onto itself, so that sums would lose the crystal's symmetry: {which}, "
            "and symmetry mixes these reciprocal vectors of the primitive cell. Needed equal numbers there, "
            f"such as {_listed(_equal(np.array(shape), tied))}."
        )
    return shape


def _tied(group: SpaceGroup) -> np.ndarray:
    """True for each two reciprocal vectors that operations turn into one another, or mix: (3, 3)."""
    mixed = (group.inverse != 0).any(axis=0) | np.eye(3, dtype=bool)
    mixed |= mixed.T
    return np.linalg.matrix_power(mixed.astype(int), 2) > 0


def _equal(shape: np.ndarray, tied: np.ndarray) -> tuple[int, int, int]:
    """The mesh with the largest number of each set of tied vectors for all of them."""
    return tuple(int(shape[row].max()) for row in tied)


def _listed(numbers) -> str:
    return " x ".join(map(str, numbers))
