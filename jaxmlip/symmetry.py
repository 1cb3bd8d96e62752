"""What the space group of a crystal saves: wave vectors that are images of each other have one spectrum, and
of second derivatives a few columns give the others."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import spglib
from ase import Atoms

TOLERANCE = 1e-5  # Å; atoms that far from a symmetric place still count as symmetric


@dataclass(frozen=True, eq=False)
class SpaceGroup:
    """Operations x' = W x + w on fractional coordinates, and where they take the atoms of one cell.

    Operation k takes atom i into the place of atom `atom[k, i]`, in the cell `cell[k, i]` away.
    """

    rotations: np.ndarray  # W: (operations, 3, 3), whole numbers
    cartesian: np.ndarray  # W on Cartesian columns, (operations, 3, 3)
    atom: np.ndarray  # (operations, n)
    cell: np.ndarray  # (operations, n, 3), whole lattice vectors

    def moved(self, k: int, q: np.ndarray) -> np.ndarray:
        """Where operation k takes wave vectors (q, 3): q·x keeps its value when q goes to q W⁻¹."""
        return q @ self.inverse[k]

    @cached_property
    def inverse(self) -> np.ndarray:
        """W⁻¹ of each operation."""
        return np.rint(np.linalg.inv(self.rotations)).astype(int)

    def turned(self, k: int, q: np.ndarray, waves: np.ndarray) -> np.ndarray:
        """Waves u_j e^{2πi q·R}, (q, 3n, columns), at wave vectors (q, 3), as operation k takes them.

        Where it takes atom i of cell 0 to atom i' of cell L_i, u_i becomes W u_i e^{-2πi q W⁻¹·L_i} at i'.
        """
        n = waves.shape[1] // 3
        phase = np.exp(-2j * np.pi * self.moved(k, q) @ self.cell[k].T)  # (q, n)
        turned = self.cartesian[k] @ waves.reshape(len(q), n, 3, -1) * phase[:, :, None, None]
        moved = np.empty_like(turned)
        moved[:, self.atom[k]] = turned
        return moved.reshape(waves.shape)

    @property
    def orbits(self) -> np.ndarray:
        """The first of the atoms that are images of each other, for each atom: (n,)."""
        return self.atom.min(axis=0)


def identity(n: int) -> SpaceGroup:
    """The group of a crystal of n atoms without symmetry."""
    one = np.eye(3)[None]
    return SpaceGroup(one.astype(int), one, np.arange(n)[None], np.zeros((1, n, 3), int))


def space_group(atoms: Atoms, tolerance: float = TOLERANCE) -> SpaceGroup:
    """The space group of a crystal of elements and places; magnetic moments are not looked at.

    Raises ValueError where spglib finds none within `tolerance` (Å).
    """
    found = symmetry_dataset(atoms, tolerance)
    if found is None:
        raise ValueError(
            f"spglib finds no symmetry of {atoms.get_chemical_formula()} within {tolerance:g} Å; two atoms "
            "in one place are the usual reason. Compute without symmetry to see whether it has forces."
        )
    x = atoms.cell.scaled_positions(atoms.positions)
    W, w = found.rotations, found.translations
    to = np.einsum("kxy,iy->kix", W, x) + w[:, None]
    apart = to[:, :, None] - x  # (operations, from, to, 3)
    cells = np.rint(apart)
    distance = np.linalg.norm((apart - cells) @ atoms.cell.array, axis=-1)
    distance[:, atoms.numbers[:, None] != atoms.numbers] = np.inf
    atom = distance.argmin(axis=-1)
    cell = np.take_along_axis(cells, atom[:, :, None, None], axis=2)[:, :, 0]
    columns = atoms.cell.array.T
    cartesian = columns @ W @ np.linalg.inv(columns)
    return SpaceGroup(W, cartesian, atom, cell.astype(int))


def symmetry_dataset(atoms: Atoms, tolerance: float) -> spglib.SpglibDataset | None:
    """What spglib finds within `tolerance` (Å): `.number`, `.international` and operations; None: nothing."""
    cell = (atoms.cell.array, atoms.cell.scaled_positions(atoms.positions), atoms.numbers)
    try:
        return spglib.get_symmetry_dataset(cell, symprec=tolerance)
    except Exception:  # where it finds none, spglib raises or returns None, as whoever imported it first set
        return None


@dataclass(frozen=True, eq=False)
class Mesh:
    """The Γ-centred mesh q = (m1/n1, m2/n2, m3/n3), and the few of its points that stand for all."""

    shape: tuple[int, int, int]
    q_points: np.ndarray  # (irreducible, 3), components in (-1/2, 1/2]
    weights: np.ndarray  # (irreducible,), how many points each stands for
    representative: np.ndarray  # (points,) which irreducible one stands for each point

    @property
    def points(self) -> np.ndarray:
        """All points, (n1 n2 n3, 3), the last component fastest, components from 0 on."""
        return np.moveaxis(np.indices(self.shape), 0, -1).reshape(-1, 3) / self.shape


def reduced_mesh(mesh: tuple[int, int, int], group: SpaceGroup | None) -> Mesh:
    """The mesh reduced by the group and by time reversal, D(-q) = D(q)*; by the latter alone without one.

    Raises ValueError where `mesh` is not three positive whole numbers.
    """
    shape = mesh_shape(mesh)
    m = np.moveaxis(np.indices(shape), 0, -1).reshape(-1, 3)
    # q·x keeps its value when q goes to q W⁻¹ where x goes to W x.
    inverse = np.eye(3, dtype=int)[None] if group is None else group.inverse
    smallest = np.arange(len(m))
    for W in np.concatenate([inverse, -inverse]):
        moved = (m / shape) @ W * shape
        index = np.rint(moved).astype(int)
        # A mesh with unequal divisions may lack a rotation of the crystal.
        if np.abs(moved - index).max() < 1e-6:
            smallest = np.minimum(smallest, np.ravel_multi_index(tuple((index % shape).T), shape))
    kept, representative, weights = np.unique(smallest, return_inverse=True, return_counts=True)
    q = m[kept] / shape
    return Mesh(shape, np.where(q > 0.5, q - 1, q), weights, representative)


def mesh_shape(mesh) -> tuple[int, int, int]:
    """`mesh` as three whole numbers. Raises ValueError where it is something else."""
    shape = tuple(np.ravel(mesh).tolist())
    if len(shape) != 3 or any(k != int(k) or k < 1 for k in shape):
        raise ValueError(f"found a mesh {mesh!r}, needed three positive whole numbers of wave vectors.")
    return tuple(int(k) for k in shape)


def unfold(D: np.ndarray, mesh: Mesh, group: SpaceGroup | None) -> np.ndarray:
    """D(q), with the phases of cells, at all points of a mesh from those at its irreducible ones."""
    n = D.shape[-1] // 3
    group = identity(n) if group is None else group
    full = np.full((len(mesh.representative), 3 * n, 3 * n), np.nan, complex)
    filled = np.zeros(len(full), bool)
    for k in range(len(group.rotations)):
        q = group.moved(k, mesh.q_points)
        on_mesh = np.abs(q * mesh.shape - np.rint(q * mesh.shape)).max(axis=1) < 1e-6
        for sign in (1, -1):
            index = np.ravel_multi_index(
                tuple((np.rint(sign * q * mesh.shape).astype(int) % mesh.shape).T), mesh.shape
            )
            # Two irreducible points never have an image in common.
            new = np.flatnonzero(on_mesh & ~filled[index])
            if len(new):
                turned = group.turned(k, mesh.q_points[new], D[new])
                turned = group.turned(k, mesh.q_points[new], turned.conj().swapaxes(1, 2))
                moved = turned.conj().swapaxes(1, 2)
                full[index[new]] = moved if sign == 1 else moved.conj()
                filled[index[new]] = True
    return full


class Pairs(NamedTuple):
    """Columns of dynamical matrices: the number of the wave vector, and that of the coordinate."""

    wave: np.ndarray  # (pairs,)
    coordinate: np.ndarray  # (pairs,), 3j + b for direction b of atom j


def needed_columns(q_points: np.ndarray, group: SpaceGroup) -> Pairs:
    """Columns of D(q) from which those operations that keep q, or reverse it, give all others."""
    wave, coordinate = [], []
    for k, q in enumerate(q_points):
        keeping = _keeping(q, group)[0]
        atom, turn = group.atom[keeping], group.cartesian[keeping]
        # One atom of each orbit, and as many directions of it as those that keep the atom take to all others.
        for j in np.unique(atom.min(axis=0)):
            needed = spanning(turn[atom[:, j] == j])
            wave += [k] * len(needed)
            coordinate += [3 * j + b for b in needed]
    return Pairs(np.array(wave, int), np.array(coordinate, int))


def spanning(turns: np.ndarray) -> list[int]:
    """The numbers of a few axes whose images under a group of orthogonal matrices (k, d, d) span all d."""
    d = turns.shape[-1]
    span, found = np.zeros((d, 0)), []
    for axis in range(d):
        unit = np.eye(d)[axis]
        if np.linalg.norm(unit - span @ (span.T @ unit)) < 1e-3:
            continue
        found.append(axis)
        images = turns[:, :, axis].T
        left, size, _ = np.linalg.svd(images - span @ (span.T @ images), full_matrices=False)
        span = np.concatenate([span, left[:, size > 1e-2]], axis=1)
        if span.shape[1] == d:
            break
    return found


def completed(columns: np.ndarray, pairs: Pairs, q_points: np.ndarray, group: SpaceGroup) -> np.ndarray:
    """D(q), (q, 3n, 3n), from the columns (pairs, 3n) that `needed_columns` names."""
    n = columns.shape[1]
    D = np.empty((len(q_points), n, n), complex)
    ends = np.searchsorted(pairs.wave, np.arange(len(q_points) + 1))
    for k, q in enumerate(q_points):
        some = slice(ends[k], ends[k + 1])
        units = np.eye(n, dtype=complex)[:, pairs.coordinate[some]]
        images = list(_images(q, group, units, columns[some].T))
        X, Y = (np.concatenate(part, axis=1) for part in zip(*images, strict=True))
        # D X = Y, with X of full rank: D = Y X† (X X†)⁻¹.
        D[k] = np.linalg.solve(X @ X.conj().T, X @ Y.conj().T).conj().T
    return D


def _images(q, group: SpaceGroup, x: np.ndarray, y: np.ndarray):
    """Where y = D(q) x, all pairs that follow from it, (3n, columns) each: of D itself, by symmetry."""
    for k, sign in zip(*_keeping(q, group), strict=True):
        there = (group.turned(k, q[None], x[None])[0], group.turned(k, q[None], y[None])[0])
        # Time reversal: D(-q) = D(q)*.
        yield there if sign == 1 else (there[0].conj(), there[1].conj())


def _keeping(q: np.ndarray, group: SpaceGroup) -> tuple[np.ndarray, np.ndarray]:
    """The operations that take q to itself (1) or to -q (-1), up to a reciprocal lattice vector."""
    moved = q @ group.inverse
    found = []
    for sign in (1, -1):
        apart = moved - sign * q
        found.append(np.flatnonzero(np.abs(apart - np.rint(apart)).max(axis=1) < 1e-9))
    return np.concatenate(found), np.repeat([1, -1], [len(k) for k in found])
