"""Order parameters: in which combinations of equally unstable modes a crystal may be distorted.

A mode of wave vector q is one of several: its degenerate partners, and those at the wave vectors that the
space group makes of q. Their real displacements span a space that operations map onto itself. A distortion
keeps the operations that leave it as it is, its isotropy subgroup. Directions that are the only ones to keep
their subgroup are those in which Landau's theory looks for minima first (H. T. Stokes and D. M. Hatch,
Isotropy Subgroups of the 230 Crystallographic Space Groups, 1988). They are found here as fixed spaces of one
dimension, without tables.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from ase import Atoms

from jaxmlip.crystals.symmetry import SpaceGroup, Symmetry

SAME = 1e-6  # of wave vectors, in reciprocal lattice units
ALIKE = 1e-3  # of matrices of operations, which are as exact as modes are, and far apart
MOST_SPACES = 400  # fixed spaces that are looked at


def star(q_point: np.ndarray, group: SpaceGroup) -> np.ndarray:
    """The wave vectors (arms, 3) that operations make of one, each once, -q left out where q is there."""
    arms: list[np.ndarray] = []
    for q in np.asarray(q_point, float) @ group.inverse:
        if not any(_same(q, p) or _same(-q, p) for p in arms):
            arms.append(q)
    return np.array(arms)


def commensurate(q_points: np.ndarray) -> np.ndarray:
    """The smallest supercell that waves of all these wave vectors fit: rows (3, 3), whole lattice vectors.

    Raises ValueError if a component is no fraction with a denominator up to 12.
    """
    q = np.atleast_2d(np.asarray(q_points, float))
    for n in range(1, 13):
        if np.abs(q * n - np.rint(q * n)).max(initial=0) < SAME * n:
            break
    else:
        raise ValueError(f"found wave vectors {q.tolist()}, needed fractions with a denominator up to 12.")
    rows = np.concatenate([n * np.eye(3, dtype=int), np.rint(q * n).astype(int)])
    basis = _row_basis(rows)  # of the lattice of wave vectors that fit, in 1/n
    return np.rint(n * np.linalg.inv(basis).T).astype(int)


def _row_basis(rows: np.ndarray) -> np.ndarray:
    """Three rows that span the same lattice as whole ones of rank 3, upper triangular."""
    rows, found = rows.copy(), []
    for axis in range(3):
        while (left := np.flatnonzero(rows[:, axis])).size > 1:
            smallest = left[np.abs(rows[left, axis]).argmin()]
            others = left[left != smallest]
            rows[others] -= (rows[others, axis] // rows[smallest, axis])[:, None] * rows[smallest]
        found.append(rows[left[0]].copy())
        rows[left[0]] = 0
    return np.array(found)


def _same(p: np.ndarray, q: np.ndarray) -> bool:
    return bool(np.abs(p - q - np.rint(p - q)).max() < SAME)


@dataclass(frozen=True, eq=False)
class OrderParameter:
    """The space of distortions that equally unstable modes span in a supercell of N atoms."""

    supercell: Atoms
    arms: np.ndarray  # (arms, 3): the wave vectors that it holds
    patterns: np.ndarray  # (d, N, 3): displacements times √m, orthonormal
    operations: np.ndarray  # (g, d, d): what the supercell's operations do to components, each matrix once

    @classmethod
    def of(
        cls, crystal: Atoms, q_point: np.ndarray, modes: np.ndarray, cells: int, symprec: float
    ) -> OrderParameter:
        """That of degenerate `modes` (3n, k), with the phases of cells, in at most `cells` cells.

        If the whole star does not fit, it is that of the one wave vector.

        Raises ValueError if even this does not fit, saying how many cells it needs.
        """
        group = Symmetry(crystal, symprec).group_of_masses
        arms = star(q_point, group)
        matrix = commensurate(arms)
        if _size(matrix) > cells:
            arms, matrix = arms[:1], commensurate(arms[:1])
        if _size(matrix) > cells:
            where = " ".join(f"{x:.4g}" for x in q_point)
            raise ValueError(
                f"the wave at q = ({where}) repeats after {_size(matrix)} cells of "
                f"{crystal.get_chemical_formula()} ({_size(matrix) * len(crystal)} atoms), and at most "
                f"{cells} were allowed. Allow more."
            )
        supercell, at, R = _repeated(crystal, matrix)
        waves = _waves(crystal, group, q_point, modes, arms)
        spanned = []
        for q, wave in waves:
            whole = wave.reshape(len(crystal), 3, -1)[at] * np.exp(2j * np.pi * R @ q)[:, None, None]
            spanned += [whole.real, whole.imag]
        flat = np.concatenate(spanned, axis=2).reshape(3 * len(supercell), -1)
        left, size, _ = np.linalg.svd(flat, full_matrices=False)
        basis = left[:, size > 1e-3 * size[0]]
        own = Symmetry(supercell, symprec).group_of_masses
        return cls(supercell, arms, basis.T.reshape(-1, len(supercell), 3), _represented(own, basis))

    def distortion(self, components: np.ndarray) -> np.ndarray:
        """Displacements (N, 3) along a direction; the atom that moves farthest moves by 1 Å."""
        u = np.tensordot(components, self.patterns, 1) / np.sqrt(self.supercell.get_masses())[:, None]
        return u / np.linalg.norm(u, axis=1).max()

    def directions(self) -> np.ndarray:
        """Components (k, d) of the directions that are alone in keeping their isotropy subgroup.

        One of each set that operations turn into one another. A space without any, of a mode that nothing
        but the identity keeps, gives its axes.
        """
        d = self.patterns.shape[0]
        spaces = _fixed_spaces(self.operations)
        lines = [P for P in spaces if round(np.trace(P)) == 1]
        found: list[np.ndarray] = []
        for P in lines:
            v = np.linalg.eigh(P)[1][:, -1]
            images = self.operations @ v
            if not any(np.abs(np.abs(images @ w) - 1).min() < ALIKE for w in found):
                found.append(v)
        return np.array(found) if found else np.eye(d)


def _size(matrix: np.ndarray) -> int:
    return round(abs(np.linalg.det(matrix)))


def _repeated(crystal: Atoms, matrix: np.ndarray) -> tuple[Atoms, np.ndarray, np.ndarray]:
    """A supercell, and of each of its atoms the one that it is a copy of (N,), and the cell (N, 3)."""
    around = np.abs(matrix).sum(axis=0) + 1
    every = np.array(np.meshgrid(*(np.arange(-k, k + 1) for k in around), indexing="ij")).reshape(3, -1).T
    inside = every @ np.linalg.inv(matrix)
    cells = every[((inside > -SAME) & (inside < 1 - SAME)).all(axis=1)]
    n = len(crystal)
    found = crystal[np.tile(np.arange(n), len(cells))]
    found.set_constraint()
    found.positions += np.repeat(cells, n, axis=0) @ crystal.cell.array
    found.set_cell(matrix @ crystal.cell.array)
    return found, np.tile(np.arange(n), len(cells)), np.repeat(cells, n, axis=0)


def _waves(
    crystal: Atoms, group: SpaceGroup, q_point: np.ndarray, modes: np.ndarray, arms: np.ndarray
) -> list[tuple[np.ndarray, np.ndarray]]:
    """The images of modes (3n, k) at each arm, as (q, modes)."""
    q, found = np.asarray(q_point, float), []
    for arm in arms:
        for p in range(len(group.rotations)):
            operation = group.operation(p)
            if _same(operation.moved(q), arm):
                found.append((arm, operation.turned(q[None], modes[None])[0]))
                break
    return found


def _represented(group: SpaceGroup, basis: np.ndarray) -> np.ndarray:
    """What operations do to the components of patterns (3N, d): matrices (g, d, d), each once."""
    d = basis.shape[1]
    patterns = basis.reshape(-1, 3, d)
    found: dict[bytes, np.ndarray] = {}
    for operation in group.operations():
        moved = np.empty_like(patterns)
        moved[operation.atom] = operation.cartesian @ patterns
        matrix = basis.T @ moved.reshape(-1, d)
        found.setdefault(_rounded(matrix), matrix)
    matrices = np.array(list(found.values()))
    off = np.abs(matrices @ matrices.swapaxes(1, 2) - np.eye(d)).max()
    if off > ALIKE:
        raise ValueError(
            f"operations of the crystal take these modes out of their space, by {off:.2g}: some that belong "
            "to them are missing. Relax the crystal with its space group kept, or raise symprec."
        )
    return matrices


def _fixed_spaces(operations: np.ndarray) -> list[np.ndarray]:
    """Projectors (d, d) onto the spaces that subgroups leave as they are, up to operations."""
    d = operations.shape[1]
    single: dict[bytes, np.ndarray] = {}
    for matrix in operations:
        _keep(single, _eigenspace((matrix + matrix.T) / 2, 1.0))
    found, new = dict(single), list(single.values())
    while new and len(found) < MOST_SPACES:
        smaller: dict[bytes, np.ndarray] = {}
        for P in new:
            for Q in single.values():
                _keep(smaller, _eigenspace((P + Q) / 2, 1.0))
        new = [P for key, P in smaller.items() if key not in found]
        found |= smaller
    return [P for P in found.values() if 0 < round(np.trace(P)) <= d]


def _keep(spaces: dict[bytes, np.ndarray], P: np.ndarray) -> None:
    if round(np.trace(P)) > 0:
        spaces.setdefault(_rounded(P), P)


def _rounded(matrix: np.ndarray) -> bytes:
    return (np.round(matrix, 2) + 0.0).tobytes()


def _eigenspace(matrix: np.ndarray, value: float) -> np.ndarray:
    """The projector onto the eigenvectors of a symmetric matrix with this eigenvalue."""
    values, vectors = np.linalg.eigh(matrix)
    own = vectors[:, np.abs(values - value) < ALIKE]
    return own @ own.T
