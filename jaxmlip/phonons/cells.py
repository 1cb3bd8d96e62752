"""Supercells as phonopy and phono3py number their atoms, and what their symmetry does to these.

phonopy decides the order: all copies of the first atom of the unit cell come first, then those of the second.
Force constants in its compact layout are between the atoms of one primitive cell and all of the supercell.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from ase import Atoms
from ase.geometry import minkowski_reduce

from jaxmlip.crystals.atoms import check_crystal, in_box
from jaxmlip.crystals.symmetry import TOLERANCE as SYMPREC
from jaxmlip.crystals.symmetry import SpaceGroup, Symmetry, identity, kinds
from jaxmlip.phonons.phonopy_files import SAME_PLACE, as_ase, as_phonopy, import_phonopy
from jaxmlip.phonons.supercell import Supercell, cell_number, supercell_group, triangular

if TYPE_CHECKING:
    from phono3py import Phono3py
    from phonopy import Phonopy
    from phonopy.structure.atoms import PhonopyAtoms
    from pymatgen.core import Structure

Primitive = str | Sequence[Sequence[float]] | np.ndarray
SAME_LENGTH = 1e-4  # Å; images of an atom that are as near as that are equally near


PHONO3PY = (4, 8)  # the first version with linewidths that do not depend on the choice of eigenvectors


def import_phono3py() -> Any:
    """The module phono3py. Raises ImportError, with what to install, if it is missing or too old."""
    install = "Install it with pip install 'jaxmlip[phono3py]'."
    try:
        import phono3py
    except ImportError as error:
        raise ImportError(
            f"phono3py is needed for this and cannot be imported ({error}). {install}"
        ) from None
    version = phono3py.__version__
    if tuple(map(int, version.split(".")[:2])) < PHONO3PY:
        raise ImportError(
            f"found phono3py {version}, needed {'.'.join(map(str, PHONO3PY))} or newer. {install}"
        )
    return phono3py


def check_masses(crystal: Atoms, symprec: float = SYMPREC) -> None:
    """Raises ValueError if atoms that symmetry makes equal have different masses.

    phono3py does not tell them apart. Symmetry is found within `symprec` (Å).
    """
    if np.array_equal(kinds(crystal, masses=True), crystal.numbers):
        return
    symmetry = Symmetry(crystal, symprec)
    kept, of = symmetry.group_of_masses.order, symmetry.group.order
    if kept < of:
        raise ValueError(
            f"found {crystal.get_chemical_formula()} with masses that keep {kept} of the {of} operations of "
            "its space group, needed equal masses of equivalent atoms, which phono3py does not tell apart. "
            "Natural isotopes scatter without masses of single atoms."
        )


@dataclass(frozen=True, eq=False)
class Images:
    """The nearest images of each atom of a supercell, seen from each atom of the primitive cell."""

    # (n, N, images, 3): the lattice vectors from the cell of the one to that of the other, in vectors of the
    # primitive cell.
    cell: np.ndarray
    weight: np.ndarray  # (n, N, images): equal for images that are equally near, adding up to 1
    distance: np.ndarray  # (n, N), Å

    def phases(self, q_points: np.ndarray) -> np.ndarray:
        """e^{2πi q·R} at wave vectors (q, 3), of each atom the mean of its images: complex (q, n, N)."""
        vectors, shares = self._distinct
        return np.tensordot(np.exp(2j * np.pi * (np.asarray(q_points) @ vectors.T)), shares, 1)

    @cached_property
    def _distinct(self) -> tuple[np.ndarray, np.ndarray]:
        """The lattice vectors (v, 3) that occur, and the share (v, n, N) of each in each pair of atoms."""
        counted = self.weight > 0
        vectors, which = np.unique(self.cell[counted], axis=0, return_inverse=True)
        shares = np.zeros((len(vectors), *counted.shape[:2]))
        i, k, _ = np.nonzero(counted)
        np.add.at(shares, (which.ravel(), i, k), self.weight[counted])
        return vectors, shares


@dataclass(frozen=True, eq=False)
class Cells:
    """A crystal's unit cell, its supercell of N atoms and its primitive cell of n, as phonopy has them."""

    unit: Atoms
    supercell_matrix: np.ndarray  # (3, 3) whole numbers; the columns are the supercell's vectors
    primitive_matrix: np.ndarray  # (3, 3); the columns are the primitive vectors in those of the unit cell
    supercell: Atoms
    primitive: Atoms
    p2s: np.ndarray  # (n,): the place of each atom of the primitive cell in the supercell
    s2p: np.ndarray  # (N,): the place in the supercell of the primitive atom that each is a copy of

    @classmethod
    def of(
        cls,
        crystal: Atoms | Structure,
        supercell: Supercell,
        primitive: Primitive = "auto",
        symprec: float = SYMPREC,
    ) -> Cells:
        """The cells of a crystal that repeats with a supercell of it.

        `supercell` is that of `force_constants`: three numbers, or a matrix whose rows are its vectors.
        `primitive` is phonopy's primitive_matrix: "auto" for the one that it finds, "P" for the cell as
        given, "F", "I", …, or a matrix (3, 3). A crystal that does not repeat everywhere is taken as given.

        Raises ImportError if phonopy is not installed, and ValueError as `force_constants` does.
        """
        phonopy = import_phonopy()
        unit = in_box(crystal).copy()
        check_crystal(unit)
        rows = np.asarray(supercell)
        rows = np.diag(rows) if rows.shape == (3,) else rows
        matrix, one = triangular(rows), np.eye(3, dtype=int)
        if np.any((matrix != one)[~unit.pbc]) or np.any((matrix != one)[:, ~unit.pbc]):
            raise ValueError(
                f"found the supercell {matrix.tolist()} for {unit.get_chemical_formula()} with "
                f"pbc={unit.pbc.tolist()}, needed 1 along each vector that does not repeat."
            )
        if not unit.pbc.all() and isinstance(primitive, str) and primitive == "auto":
            primitive = "P"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that "auto" is what was asked for
            phonon = phonopy.Phonopy(
                as_phonopy(unit), rows.astype(int).T, primitive_matrix=primitive, symprec=symprec
            )
        return cls.from_phonopy(phonon, unit)

    @classmethod
    def from_phonopy(cls, phonon: Phonopy, unit: Atoms | None = None) -> Cells:
        """The cells of a Phonopy or Phono3py object. `unit` is its unit cell with what only ASE knows."""
        unit = as_ase(phonon.unitcell) if unit is None else unit
        supercell, primitive = as_ase(phonon.supercell), as_ase(phonon.primitive)
        supercell.pbc = primitive.pbc = unit.pbc
        return cls(
            unit,
            np.array(phonon.supercell_matrix, int),
            np.eye(3) if phonon.primitive_matrix is None else np.array(phonon.primitive_matrix, float),
            supercell,
            primitive,
            np.array(phonon.primitive.p2s_map, int),
            np.array(phonon.primitive.s2p_map, int),
        )

    @cached_property
    def matrix(self) -> np.ndarray:
        """The supercell's vectors (rows) in whole vectors of the primitive cell, upper triangular."""
        return triangular((self.supercell.cell.array @ np.linalg.inv(self.primitive.cell.array)).round())

    def to_phonopy(self, symprec: float = SYMPREC) -> Phonopy:
        """A Phonopy object with these cells. Raises ImportError if phonopy is not installed."""
        return import_phonopy().Phonopy(*self._arguments, symprec=symprec)

    def to_phono3py(self, symprec: float = SYMPREC, **options: Any) -> Phono3py:
        """A Phono3py object with these cells; `options` are its own.

        Raises ImportError if phono3py is not installed.
        """
        return import_phono3py().Phono3py(*self._arguments, symprec=symprec, **options)

    @property
    def _arguments(self) -> tuple[PhonopyAtoms, np.ndarray, np.ndarray]:
        return as_phonopy(self.unit), self.supercell_matrix, self.primitive_matrix

    @property
    def repeat(self) -> float:
        """The distance of an atom from its nearest image in other supercells, Å; infinite for a molecule."""
        reduced, _ = minkowski_reduce(self.supercell.cell.array, self.supercell.pbc)
        return float(np.linalg.norm(reduced[self.supercell.pbc], axis=1).min(initial=np.inf))

    @cached_property
    def places(self) -> tuple[np.ndarray, np.ndarray]:
        """For each atom of the supercell: its number j in the primitive cell (N,), and its cell R (N, 3).

        It is at R · (primitive vectors) + (position of j in the primitive cell).
        """
        number = np.full(len(self.supercell), -1)
        number[self.p2s] = np.arange(len(self.p2s))
        atom = number[self.s2p]
        apart = self.supercell.positions - self.primitive.positions[atom]
        R = apart @ np.linalg.inv(self.primitive.cell.array)
        off = np.abs((R - R.round()) @ self.primitive.cell.array).max()
        if off > SAME_PLACE:
            raise ValueError(
                f"an atom of the supercell is {off:.2g} Å from where the primitive cell repeats it; needed a "
                "supercell that repeats with its primitive cell."
            )
        return atom, R.round().astype(int)

    @cached_property
    def images(self) -> Images:
        """The nearest images of the supercell's atoms."""
        (atom, R), cell = self.places, self.primitive.cell.array
        own = R[self.p2s]
        reduced, steps = minkowski_reduce(self.matrix @ cell, self.supercell.pbc)
        repeats = np.where(self.supercell.pbc, 1, 0)
        around = np.array(list(itertools.product(*(range(-k, k + 1) for k in repeats))))
        x = self.primitive.positions
        apart = (R[None] - own[:, None]) @ cell + x[atom][None] - x[:, None]
        whole = -np.rint(apart @ np.linalg.inv(reduced)).astype(int) * repeats
        shift = (whole[:, :, None] + around) @ steps @ self.matrix  # in primitive vectors
        lengths = np.linalg.norm(apart[:, :, None] + shift @ cell, axis=-1)
        distance = lengths.min(axis=2)
        weight = (lengths < distance[:, :, None] + SAME_LENGTH).astype(float)
        weight /= weight.sum(axis=2, keepdims=True)
        return Images((R[None] - own[:, None])[:, :, None] + shift, weight, distance)

    def strained(self, strain: np.ndarray) -> np.ndarray:
        """How far the atoms of the supercell move from each primitive one under a strain ε: (n, N, 3), Å.

        It is ε r_ik, r_ik the mean of the nearest images. Raises ValueError unless ε is (3, 3).
        """
        eps = np.asarray(strain, float)
        if eps.shape != (3, 3):
            raise ValueError(f"found a strain of shape {eps.shape}, needed (3, 3).")
        (atom, _), images, x = self.places, self.images, self.primitive.positions
        mean = np.einsum("ikm,ikmx->ikx", images.weight, images.cell @ self.primitive.cell.array)
        return (mean + x[atom][None] - x[:, None]) @ ((eps + eps.T) / 2)

    def group(self, symprec: float = SYMPREC) -> SpaceGroup:
        """The operations of the primitive cell's space group that map the lattice of supercells to itself."""
        return supercell_group(self.primitive, self.matrix, symprec)

    @cached_property
    def shifts(self) -> np.ndarray:
        """The image of each atom of the supercell under each of its translations, (translations, N).

        They are numbered as the cells of a `ForceConstants`.
        """
        atom, R = self.places
        every = np.moveaxis(np.indices(self.matrix.diagonal()), 0, -1).reshape(-1, 3)
        return self._lookup[cell_number(R + every[:, None], self.matrix), atom]

    @cached_property
    def home(self) -> np.ndarray:
        """The translation that takes each atom to the primitive atom that it is a copy of, (N,)."""
        atom, R = self.places
        return cell_number(R[self.p2s][atom] - R, self.matrix)

    @cached_property
    def _lookup(self) -> np.ndarray:
        """The place in the supercell of each atom of each primitive cell, (cells, n)."""
        atom, R = self.places
        lookup = np.empty((len(self.supercell) // len(self.primitive), len(self.primitive)), int)
        lookup[cell_number(R, self.matrix), atom] = np.arange(len(atom))
        return lookup

    def permutations(self, group: SpaceGroup | None) -> tuple[np.ndarray, np.ndarray]:
        """Operations on the supercell: where each atom goes, (k, N), and the rotations of vectors, (k, 3, 3).

        There is one of each set that differs by translations of the primitive lattice; without a group, the
        identity alone.
        """
        group = identity(len(self.primitive)) if group is None else group
        atom, R = self.places
        found = [
            (
                self._lookup[cell_number(R @ o.rotation.T + o.cell[atom], self.matrix), o.atom[atom]],
                o.cartesian,
            )
            for o in group.operations()
        ]
        return np.array([to for to, _ in found]), np.array([turn for _, turn in found])
