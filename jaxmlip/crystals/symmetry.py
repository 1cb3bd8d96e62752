"""Symmetry that saves work: equivalent wave vectors have the same spectrum, and a few columns of second
derivatives give the others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import spglib
from ase import Atoms
from scipy.spatial import cKDTree

from jaxmlip.crystals.atoms import as_atoms, boxed, reach
from jaxmlip.crystals.graph import directions

if TYPE_CHECKING:
    from pymatgen.core import Structure

TOLERANCE = 1e-5  # Å; atoms that far from a symmetric place still count as symmetric
NEARLY = 1e-2  # Å; a symmetry that holds only within this was intended, but lost by rounding
# Masses (u) and magnetic moments (μ_B) are different if they differ by more than this.
SAME_MASS, SAME_MOMENT = 1e-5, 0.05


class Operation(NamedTuple):
    """An operation x' = W x + w on fractional coordinates, and the images of the n atoms of one cell.

    Atom i is taken to the site of atom `atom[i]`, in the cell `cell[i]` away.
    """

    rotation: np.ndarray  # W: (3, 3), whole numbers
    inverse: np.ndarray  # W⁻¹
    cartesian: np.ndarray  # W on Cartesian columns, (3, 3)
    atom: np.ndarray  # (n,)
    cell: np.ndarray  # (n, 3), whole lattice vectors

    def moved(self, q: np.ndarray) -> np.ndarray:
        """Images of wave vectors (q, 3): q·x keeps its value when q goes to q W⁻¹."""
        return q @ self.inverse

    def turned(self, q: np.ndarray, waves: np.ndarray) -> np.ndarray:
        """Images of waves u_j e^{2πi q·R}, (q, 3n, columns), at wave vectors (q, 3).

        If atom i of cell 0 goes to atom i' of cell L_i, u_i becomes W u_i e^{-2πi q W⁻¹·L_i} at i'.
        """
        n = waves.shape[1] // 3
        phase = np.exp(-2j * np.pi * self.moved(q) @ self.cell.T)  # (q, n)
        turned = self.cartesian @ waves.reshape(len(q), n, 3, -1) * phase[:, :, None, None]
        moved = np.empty_like(turned)
        moved[:, self.atom] = turned
        return moved.reshape(waves.shape)


@dataclass(frozen=True, eq=False)
class SpaceGroup:
    """A space group: one operation for each rotation, and the pure translations.

    Every operation is one of the former followed by one of the latter. A perfect supercell has thousands of
    operations, but few of either kind.
    """

    rotations: np.ndarray  # (rotations, 3, 3), each W once
    cartesian: np.ndarray  # (rotations, 3, 3)
    atom: np.ndarray  # (rotations, n), as `Operation` has it
    cell: np.ndarray  # (rotations, n, 3)
    shifted_atom: np.ndarray  # (translations, n), of translations within one cell, including that by 0
    shifted_cell: np.ndarray  # (translations, n, 3)

    @property
    def order(self) -> int:
        """The number of operations, without translations by whole lattice vectors."""
        return len(self.rotations) * len(self.shifted_atom)

    @cached_property
    def inverse(self) -> np.ndarray:
        """W⁻¹ of each rotation."""
        return np.rint(np.linalg.inv(self.rotations)).astype(int)

    @cached_property
    def copies(self) -> np.ndarray:
        """For each atom, the first of the atoms that are its images by translation: (n,)."""
        return self.shifted_atom.min(axis=0)

    @property
    def orbits(self) -> np.ndarray:
        """For each atom, the first of the atoms that are its images: (n,)."""
        return self.copies[self.atom].min(axis=0)

    def only(self, rotations: np.ndarray) -> SpaceGroup:
        """The subgroup with the rotations of these numbers, which must be closed, and all translations."""
        kept = (x[rotations] for x in (self.rotations, self.cartesian, self.atom, self.cell))
        return SpaceGroup(*kept, self.shifted_atom, self.shifted_cell)

    def translation(self, t: int) -> Operation:
        """Translation number t alone."""
        one = np.eye(3, dtype=int)
        return Operation(one, one, one.astype(float), self.shifted_atom[t], self.shifted_cell[t])

    def operation(self, p: int, t: int | None = None) -> Operation:
        """The operation of rotation number p, followed by translation number t."""
        atom, cell = self.atom[p], self.cell[p]
        if t is not None:
            atom, cell = self.shifted_atom[t][atom], cell + self.shifted_cell[t][atom]
        return Operation(self.rotations[p], self.inverse[p], self.cartesian[p], atom, cell)

    def operations(self) -> Iterator[Operation]:
        """All operations, one after the other."""
        for p, t in product(range(len(self.rotations)), range(len(self.shifted_atom))):
            yield self.operation(p, t)

    def between(self, i: int, j: int) -> Iterator[tuple[int, Operation]]:
        """The operations that take atom i to the site of atom j, with the numbers of their rotations."""
        for p in np.flatnonzero(self.copies[self.atom[:, i]] == self.copies[j]):
            t = np.flatnonzero(self.shifted_atom[:, self.atom[p, i]] == j)[0]
            yield int(p), self.operation(p, t)

    def site(self, i: int) -> np.ndarray:
        """The site symmetry of atom i: rotations on Cartesian columns, (k, 3, 3)."""
        return self.cartesian[self.copies[self.atom[:, i]] == self.copies[i]]


def identity(n: int) -> SpaceGroup:
    """The group of a crystal of n atoms without symmetry."""
    one, still, here = np.eye(3)[None], np.arange(n)[None], np.zeros((1, n, 3), int)
    return SpaceGroup(one.astype(int), one, still, here, still, here)


class Symmetry:
    """Answers of spglib about a crystal, within `tolerance` (Å); each question is asked once."""

    def __init__(self, crystal: Atoms | Structure, tolerance: float = TOLERANCE):
        self.atoms, self.tolerance = as_atoms(crystal), tolerance
        self._found: dict[tuple, spglib.SpglibDataset | None] = {}

    def dataset(self, kind: np.ndarray | None = None, tolerance: float | None = None):
        """`symmetry_dataset` of the crystal, by default within its tolerance."""
        kind = self.atoms.numbers if kind is None else kind
        tolerance = self.tolerance if tolerance is None else tolerance
        key = (tolerance, kind.tobytes())
        if key not in self._found:
            self._found[key] = symmetry_dataset(self.atoms, tolerance, kind)
        return self._found[key]

    @cached_property
    def group(self) -> SpaceGroup:
        """The space group of elements and sites, which energies and their derivatives have.

        Potentials ignore masses and magnetic moments. Raises ValueError if spglib finds none.
        """
        return self._group(self.atoms.numbers)

    @cached_property
    def group_of_masses(self) -> SpaceGroup:
        """The space group that also keeps masses, as frequencies and the motion of atoms require."""
        kind = kinds(self.atoms, masses=True)
        return self.group if np.array_equal(kind, self.atoms.numbers) else self._group(kind)

    def _group(self, kind: np.ndarray) -> SpaceGroup:
        found, tolerance, atoms = self.dataset(kind), self.tolerance, _tall(self.atoms)
        if found is None:
            raise ValueError(
                f"spglib finds no symmetry of {atoms.get_chemical_formula()} within {tolerance:g} Å; two "
                "atoms in one place are the usual reason. Compute without symmetry to see whether it has "
                "forces."
            )
        W, w = found.rotations, found.translations
        first = np.sort(np.unique(W.reshape(-1, 9), axis=0, return_index=True)[1])
        still = np.flatnonzero((np.eye(3, dtype=int) == W).all(axis=(1, 2)))
        columns = atoms.cell.array.T
        return SpaceGroup(
            W[first],
            columns @ W[first] @ np.linalg.inv(columns),
            *_images(atoms, W[first], w[first], tolerance),
            *_images(atoms, W[still], w[still], tolerance),
        )

    @cached_property
    def primitive(self) -> Symmetry:
        """The symmetry of the primitive cell (see `primitive_cell`); itself if the crystal is primitive."""
        atoms = self.atoms
        kind = kinds(atoms, masses=True, moments=True)
        found = self.dataset(kind)
        if found is None:
            return self
        kept = np.sort(np.unique(found.mapping_to_primitive, return_index=True)[1])
        if len(kept) == len(atoms):
            return self
        lattice, *_ = spglib.standardize_cell(
            _spglib_cell(atoms, kind), to_primitive=True, no_idealize=True, symprec=self.tolerance
        )
        # Whole numbers keep rounding, and deviations within the tolerance, out of the lattice vectors.
        whole = _tall(atoms).cell.array
        ratio = np.rint(whole @ np.linalg.inv(lattice))
        if round(abs(np.linalg.det(ratio))) * len(kept) != len(atoms):
            return self
        result, vectors = atoms[kept], np.linalg.solve(ratio, whole)
        if not atoms.pbc.all():
            repeats = np.linalg.norm(vectors - vectors @ directions(whole, atoms.pbc), axis=1) < 1e-6
            if repeats.sum() != atoms.pbc.sum():
                return self
            # Repeating vectors replace the old ones, in their order.
            cell = atoms.cell.array.copy()
            cell[atoms.pbc] = vectors[repeats]
            vectors = cell
        result.set_cell(vectors, apply_constraint=False)
        return Symmetry(result, self.tolerance)

    @property
    def copies(self) -> int:
        """The number of primitive cells in the crystal."""
        return len(self.atoms) // len(self.primitive.atoms)

    @cached_property
    def hidden(self) -> str | None:
        """A description of symmetry that holds within 0.01 Å but not within the tolerance; None: no more."""
        if self.tolerance >= NEARLY:
            return None
        close, loose = self.dataset(), self.dataset(tolerance=NEARLY)
        have = 0 if close is None else len(close.rotations)
        if loose is None or len(loose.rotations) <= have:
            return None
        return (
            f"nearly {loose.international} ({loose.number}): {len(loose.rotations)} operations hold within "
            f"{NEARLY:g} Å, {have} within {self.tolerance:g} Å"
        )


def space_group(atoms: Atoms, tolerance: float = TOLERANCE) -> SpaceGroup:
    """The space group of elements and sites; see `Symmetry` for that of masses, and for more.

    Raises ValueError if spglib finds none within `tolerance` (Å).
    """
    return Symmetry(atoms, tolerance).group


def primitive_cell(crystal: Atoms | Structure, tolerance: float = TOLERANCE) -> Atoms:
    """The primitive cell, not rotated: the first of equivalent copies of an atom stays where it is.

    It keeps elements, masses and magnetic moments, and has the lattice vectors of a standard primitive cell.
    A crystal without a smaller cell within `tolerance` (Å) is returned unchanged. Along vectors that do not
    repeat (pbc) nothing is reduced.
    """
    return Symmetry(crystal, tolerance).primitive.atoms


def _images(atoms: Atoms, W: np.ndarray, w: np.ndarray, tolerance: float) -> tuple[np.ndarray, np.ndarray]:
    """Images of atoms under operations: (operations, n) and (operations, n, 3) as in `Operation`.

    The nearest atom of the element is looked up in a tree, so that the cost is not operations times n².
    """
    x = atoms.cell.scaled_positions(atoms.positions)
    home = np.floor(x)
    # Copies beyond the faces of the cell, for images that lie close to the other side of a face.
    skin = (0.1 + 10 * tolerance) * np.linalg.norm(np.linalg.inv(atoms.cell.array), axis=0)
    around = np.array(list(product((-1, 0, 1), repeat=3)))
    inside = (x - home)[:, None] + around
    near, side = np.nonzero((np.abs(inside - 0.5) <= 0.5 + skin).all(axis=2))
    atom, cell = np.empty((len(W), len(x)), np.int32), np.empty((len(W), len(x), 3), np.int32)
    for number in np.unique(atoms.numbers):
        own = np.flatnonzero(atoms.numbers == number)
        among = atoms.numbers[near] == number
        j, s = near[among], side[among]
        tree = cKDTree(inside[j, s] @ atoms.cell.array)
        for k in range(len(W)):
            to = x[own] @ W[k].T + w[k]
            away = np.floor(to)
            found = tree.query((to - away) @ atoms.cell.array)[1]
            atom[k, own] = j[found]
            cell[k, own] = away + around[s[found]] - home[j[found]]
    return atom, cell


def kinds(atoms: Atoms, *, masses: bool = False, moments: bool = False) -> np.ndarray:
    """A whole number for each atom, (n,): equal for equal elements (and masses and moments, if asked)."""
    columns = [atoms.numbers]
    if masses:
        columns.append(_groups(atoms.get_masses(), SAME_MASS))
    if moments:
        found = atoms.get_initial_magnetic_moments().reshape(len(atoms), -1)
        columns += [_groups(component, SAME_MOMENT) for component in found.T]
    rows, kind = np.unique(np.column_stack(columns), axis=0, return_inverse=True)
    return atoms.numbers if len(rows) == len(set(atoms.numbers)) else kind.ravel() + 1


def _groups(values: np.ndarray, gap: float) -> np.ndarray:
    """The group of each value; sorted neighbours more than `gap` apart are in different groups."""
    order = np.argsort(values, kind="stable")
    groups = np.empty(len(values), int)
    groups[order] = np.concatenate([[0], np.cumsum(np.diff(values[order]) > gap)])[: len(values)]
    return groups


def symmetry_dataset(
    atoms: Atoms, tolerance: float, kind: np.ndarray | None = None
) -> spglib.SpglibDataset | None:
    """spglib's result within `tolerance` (Å): `.number`, `.international`, operations; None: nothing found.

    `kind` (n,), whole numbers, are equal for atoms that are alike; by default they are the elements.
    """
    try:
        return spglib.get_symmetry_dataset(_spglib_cell(atoms, kind), symprec=tolerance)
    except Exception:  # spglib raises or returns None, depending on a flag that another package may have set
        return None


def _tall(atoms: Atoms) -> Atoms:
    """A slab, a wire or a molecule in a box so high that only its own symmetry is found.

    In a box twice as high as the distance of two layers, a shift by half of it would swap the layers.
    """
    if atoms.pbc.all():
        return atoms
    tall = atoms.copy()
    tall.set_cell(boxed(atoms.cell.array, atoms.pbc, 3 * reach(atoms) + 10.0), apply_constraint=False)
    return tall


def _spglib_cell(atoms: Atoms, kind: np.ndarray | None):
    atoms = _tall(atoms)
    kind = atoms.numbers if kind is None else kind
    return atoms.cell.array, atoms.cell.scaled_positions(atoms.positions), kind


@dataclass(frozen=True, eq=False)
class Mesh:
    """The Γ-centred mesh q = (m1/n1, m2/n2, m3/n3), and its irreducible points."""

    shape: tuple[int, int, int]
    q_points: np.ndarray  # (irreducible, 3), components in (-1/2, 1/2]
    weights: np.ndarray  # (irreducible,), number of points that each represents
    representative: np.ndarray  # (points,) the irreducible point that represents each point
    # (n,): the first of the atoms that are exchanged between equivalent points; None: no atoms are
    orbits: np.ndarray | None = None

    @property
    def points(self) -> np.ndarray:
        """All points, (n1 n2 n3, 3), the last component fastest, components from 0 on."""
        return np.moveaxis(np.indices(self.shape), 0, -1).reshape(-1, 3) / self.shape


def reduced_mesh(mesh: tuple[int, int, int], group: SpaceGroup | None) -> Mesh:
    """The mesh reduced by time reversal, D(-q) = D(q)*, and by the group if there is one.

    Raises ValueError if `mesh` is not three positive whole numbers.
    """
    shape = mesh_shape(mesh)
    m = np.moveaxis(np.indices(shape), 0, -1).reshape(-1, 3)
    group = None if group is None else keeping_mesh(shape, group)
    # q·x keeps its value when q goes to q W⁻¹ and x to W x.
    inverse = np.eye(3, dtype=int)[None] if group is None else group.inverse
    smallest = np.arange(len(m))
    for W in np.concatenate([inverse, -inverse]):
        index = np.rint((m / shape) @ W * shape).astype(int)
        smallest = np.minimum(smallest, np.ravel_multi_index(tuple((index % shape).T), shape))
    kept, representative, weights = np.unique(smallest, return_inverse=True, return_counts=True)
    q = m[kept] / shape
    orbits = None if group is None else group.orbits
    return Mesh(shape, np.where(q > 0.5, q - 1, q), weights, representative, orbits)


def keeping_mesh(shape: tuple[int, int, int], group: SpaceGroup) -> SpaceGroup:
    """The operations that map a mesh onto itself; with unequal divisions, not all of the crystal's do."""
    n = np.array(shape)
    moved = group.inverse * n / n[:, None]  # of m in m / n
    return group.only(np.abs(moved - np.rint(moved)).max(axis=(1, 2)) < 1e-6)


def mesh_shape(mesh, periodic: np.ndarray | None = None) -> tuple[int, int, int]:
    """`mesh` as three whole numbers, 1 along vectors that are not `periodic` (3,).

    Raises ValueError if it is something else.
    """
    shape = tuple(np.ravel(mesh).tolist())
    if len(shape) != 3 or any(k != int(k) or k < 1 for k in shape):
        raise ValueError(f"found a mesh {mesh!r}, needed three positive whole numbers of wave vectors.")
    if periodic is not None and any(
        k != 1 for k, repeats in zip(shape, periodic, strict=True) if not repeats
    ):
        raise ValueError(
            f"found a mesh {mesh!r} for pbc={np.asarray(periodic).tolist()}, needed 1 along each vector that "
            "does not repeat."
        )
    return tuple(int(k) for k in shape)


def unfold(D: np.ndarray, mesh: Mesh, group: SpaceGroup | None) -> np.ndarray:
    """D(q), with the phases of cells, at all points of a mesh, from its irreducible points."""
    n = D.shape[-1] // 3
    group = identity(n) if group is None else group
    full = np.full((len(mesh.representative), 3 * n, 3 * n), np.nan, complex)
    filled = np.zeros(len(full), bool)
    # Translations do not change wave vectors.
    for operation in map(group.operation, range(len(group.rotations))):
        q = operation.moved(mesh.q_points)
        on_mesh = np.abs(q * mesh.shape - np.rint(q * mesh.shape)).max(axis=1) < 1e-6
        for sign in (1, -1):
            index = np.ravel_multi_index(
                tuple((np.rint(sign * q * mesh.shape).astype(int) % mesh.shape).T), mesh.shape
            )
            # Two irreducible points never have an image in common.
            new = np.flatnonzero(on_mesh & ~filled[index])
            if len(new):
                turned = operation.turned(mesh.q_points[new], D[new])
                turned = operation.turned(mesh.q_points[new], turned.conj().swapaxes(1, 2))
                moved = turned.conj().swapaxes(1, 2)
                full[index[new]] = moved if sign == 1 else moved.conj()
                filled[index[new]] = True
    return full


class Pairs(NamedTuple):
    """Columns of dynamical matrices: the number of the wave vector, and that of the coordinate."""

    wave: np.ndarray  # (pairs,)
    coordinate: np.ndarray  # (pairs,), 3j + b for direction b of atom j


def needed_columns(q_points: np.ndarray, group: SpaceGroup) -> Pairs:
    """Columns of D(q) that give all others by the operations that keep or reverse q (its little group)."""
    wave, coordinate = [], []
    for k, q in enumerate(q_points):
        keeping = group.only(_keeping(q, group)[0])
        # One atom of each orbit, and the directions of it from which its site symmetry gives the others.
        for j in np.unique(keeping.orbits):
            needed = spanning(keeping.site(j))
            wave += [k] * len(needed)
            coordinate += [3 * j + b for b in needed]
    return Pairs(np.array(wave, int), np.array(coordinate, int))


def spanning(turns: np.ndarray) -> list[int]:
    """Numbers of a few axes whose images under a group of orthogonal matrices (k, d, d) span the space."""
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
        atom, direction = np.divmod(pairs.coordinate[ends[k] : ends[k + 1]], 3)
        responses = columns[ends[k] : ends[k + 1]].T
        numbers, signs = _keeping(q, group)
        keeping = group.only(numbers)
        orbits = keeping.orbits
        for j in np.unique(orbits):
            known = atom == j
            # If y = D(q) x, the same holds for the images of x and y: all images in which atom j moves give
            # its three columns by least squares, D = Σ y x† (Σ x x†)⁻¹.
            X, Y = [], []
            for p, operation in keeping.between(j, j):
                X.append(_turn(q, operation, signs[p], j)[:, direction[known]])
                Y.append(_image(q, operation, signs[p], responses[:, known]))
            x, y = np.concatenate(X, axis=1), np.concatenate(Y, axis=1)
            block = np.linalg.solve(x @ x.conj().T, x @ y.conj().T).conj().T
            for i in np.flatnonzero(orbits == j):
                p, operation = next(keeping.between(j, i))
                image = _image(q, operation, signs[p], block)
                D[k, :, 3 * i : 3 * i + 3] = image @ _turn(q, operation, signs[p], j).conj().T
    return D


def _image(q: np.ndarray, operation: Operation, sign: int, waves: np.ndarray) -> np.ndarray:
    """Images of waves (3n, columns) at q under an operation that keeps q (sign 1) or reverses it (-1)."""
    there = operation.turned(q[None], waves[None])[0]
    # Time reversal: D(-q) = D(q)*.
    return there if sign == 1 else there.conj()


def _turn(q: np.ndarray, operation: Operation, sign: int, j: int) -> np.ndarray:
    """The unitary (3, 3) by which `_image` rotates and phase-shifts a wave in which only atom j moves."""
    turn = operation.cartesian * np.exp(-2j * np.pi * operation.moved(q) @ operation.cell[j])
    return turn if sign == 1 else turn.conj()


def _keeping(q: np.ndarray, group: SpaceGroup) -> tuple[np.ndarray, np.ndarray]:
    """The operations that take q to itself (1) or to -q (-1), up to a reciprocal lattice vector."""
    moved = q @ group.inverse
    found = []
    for sign in (1, -1):
        apart = moved - sign * q
        found.append(np.flatnonzero(np.abs(apart - np.rint(apart)).max(axis=1) < 1e-9))
    return np.concatenate(found), np.repeat([1, -1], [len(k) for k in found])
