"""Force constants of a crystal that repeats with a supercell, from second derivatives or from forces.

All cells are alike, so the columns of one primitive cell give the whole Hessian of a supercell. With
symmetry, columns of inequivalent atoms are enough, and of these often one direction in three.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
from ase import Atoms

from jaxmlip.crystals import batching
from jaxmlip.crystals.atoms import check_crystal, in_box
from jaxmlip.crystals.symmetry import TOLERANCE as SYMPREC
from jaxmlip.crystals.symmetry import Operation, SpaceGroup
from jaxmlip.crystals.symmetry import space_group as find_space_group
from jaxmlip.derivatives.hessian import hessian_columns

if TYPE_CHECKING:
    from pymatgen.core import Structure

    from jaxmlip.potential import Potential

Supercell = Sequence[int] | Sequence[Sequence[int]] | np.ndarray
# The directions of the columns that are computed must span space well: this is the smallest eigenvalue of
# the mean of v vᵀ over their images v, which is 1/3 if symmetry makes all directions equivalent.
SPANS = 0.05


@dataclass(frozen=True, eq=False)
class ForceConstants:
    """Φ(R; ia, jb) = ∂²E / ∂r(0, i, a) ∂r(R, j, b) of a crystal that repeats with a supercell.

    R = (R1, R2, R3) counts cells along the lattice vectors of the primitive cell, 0 <= R < repeats. Each is
    the sum over the images of cell R in all supercells, so R may be read modulo the rows of `supercell`.
    """

    primitive: Atoms  # n atoms; its masses (u) are the ones that vibrate
    phi: np.ndarray  # (repeats 1, 2, 3, n, 3, n, 3), eV/Å²
    # If the supercell is not just the primitive cell repeated along each of its vectors: the elements
    # 12, 13 and 23 of `supercell`. Every lattice of supercells can be written with these six numbers.
    twist: tuple[int, int, int] = (0, 0, 0)
    # The conditions imposed on the force constants, each with the largest change of an element (eV/Å²).
    imposed: Mapping[str, float] = field(default_factory=dict)

    @property
    def repeats(self) -> tuple[int, int, int]:
        return self.phi.shape[:3]

    @property
    def supercell(self) -> np.ndarray:
        """The supercell's lattice vectors (rows) in whole vectors of the primitive cell, upper triangular."""
        result = np.diag(self.repeats)
        result[np.triu_indices(3, 1)] = self.twist
        return result

    @property
    def cells(self) -> np.ndarray:
        """R of every cell in whole lattice vectors, (cells, 3), in the order of `phi`."""
        return np.moveaxis(np.indices(self.repeats), 0, -1).reshape(-1, 3)

    @property
    def q_points(self) -> np.ndarray:
        """The commensurate wave vectors in reciprocal lattice units, (cells, 3), Γ first.

        Without a twist they are (m1/n1, m2/n2, m3/n3).
        """
        # q · R must be whole for the supercell's vectors. Whole vectors modulo the columns of an upper
        # triangular matrix fill the same box as those modulo its rows.
        return self.cells @ np.linalg.inv(self.supercell).T if any(self.twist) else self.cells / self.repeats

    @property
    def pairs(self) -> np.ndarray:
        """Φ between the n atoms of cell 0 and all N of the supercell, cell by cell: (n, N, 3, 3), eV/Å²."""
        n = len(self.primitive)
        return self.phi.reshape(-1, n, 3, n, 3).transpose(1, 0, 3, 2, 4).reshape(n, -1, 3, 3)

    @property
    def distances(self) -> np.ndarray:
        """Distances between the nearest images of those pairs of atoms: (n, N), Å."""
        from ase.geometry import get_distances

        cell, r = self.primitive.cell.array, self.primitive.positions
        everywhere = (self.cells[:, None] @ cell + r).reshape(-1, 3)
        return get_distances(r, everywhere, cell=self.supercell @ cell, pbc=self.primitive.pbc)[1]

    def number(self, R: np.ndarray) -> np.ndarray:
        """The index in `cells` of the cell of which R (…, 3), whole numbers, is an image."""
        return cell_number(R, self.supercell)


def force_constants(
    potential: Potential,
    atoms: Atoms | Structure,
    supercell: Supercell,
    *,
    symmetry: bool = False,
    symprec: float = SYMPREC,
    sum_rule: bool = False,
    space_group: bool = False,
    memory_limit: float | None = None,
    shape: batching.BatchShape | None = None,
) -> ForceConstants:
    """Force constants between the atoms of one primitive cell and those of a supercell of it.

    `supercell` is the number of repeats along each lattice vector, or a matrix (3, 3) of whole numbers whose
    rows are the supercell's lattice vectors in units of the cell's, as in ASE (phonopy's supercell_matrix is
    its transpose). The 3n columns of the supercell's Hessian that belong to one cell give all of it. With
    `symmetry` only columns that are inequivalent under the space group are computed: the result is identical
    within the accuracy of the symmetry that spglib finds (`symprec`, Å). Operations that do not keep the
    lattice of supercells are not used.

    `sum_rule` and `space_group` apply `with_sum_rule` and `with_space_group`; `imposed` of the result holds
    the largest changes. Use a potential of dtype "float64": in float32 the lowest frequencies are noise.
    Atoms are not relaxed. `memory_limit` (bytes) goes to `hessian_columns`. Supercells that are padded to the
    same `shape` share a compiled program; it must hold one more atom and one more short bond than they need.

    Raises ValueError if `supercell` is neither of the two, or as `from_atoms` does, and MemoryLimitError
    as `hessian_columns` does.
    """
    primitive, matrix, repeated = _repeated(atoms, supercell)

    def columns(numbers) -> np.ndarray:
        return hessian_columns(potential, repeated, numbers, memory_limit=memory_limit, shape=shape)

    found = constants_of_columns(primitive, matrix, columns, symmetry, symprec)
    if space_group:
        found = with_space_group(found, symprec)
    return with_sum_rule(found) if sum_rule else found


def displaced_force_constants(
    potential: Potential,
    atoms: Atoms | Structure,
    supercell: Supercell,
    displacement: float,
    *,
    symmetry: bool = False,
    symprec: float = SYMPREC,
    shape: batching.BatchShape | None = None,
) -> ForceConstants:
    """Force constants from the forces at ±`displacement` (Å) of each coordinate of one cell.

    Finite displacements measure the curvature of the energy averaged over the displacement: this is the
    Hessian if the energy is smooth on that scale, and something else if not. With `symmetry` only the
    coordinates that the space group needs are displaced, as in DFT. Other arguments are those of
    `force_constants`.
    """
    primitive, matrix, repeated = _repeated(atoms, supercell)

    def forces(coordinate: int, step: float) -> np.ndarray:
        moved = repeated.copy()
        moved.positions[coordinate // 3, coordinate % 3] += step
        graph = potential.graph(moved)
        # A displacement can bring an atom within the cutoff of others.
        fits = shape is not None and shape.fits(batching.exact_shape([graph]))
        return potential.predict_graphs([graph], shape if fits else batching.shape_for([graph]))[0]["forces"]

    def columns(numbers) -> np.ndarray:
        rows = [(forces(k, -displacement) - forces(k, displacement)) / (2 * displacement) for k in numbers]
        return np.array(rows, float)

    return constants_of_columns(primitive, matrix, columns, symmetry, symprec)


def with_sum_rule(constants: ForceConstants) -> ForceConstants:
    """The nearest force constants that obey Σ_{Rj} Φ(R; ia, jb) = 0 and Φ(R; ia, jb) = Φ(-R; jb, ia).

    Nearest in the sum of squares of all elements, as in the projection of Quantum ESPRESSO's matdyn.x (asr =
    "crystal"). On a supercell both conditions together are a projection in closed form: the matrix of all its
    atoms is symmetrised, and uniform shifts are projected out of it on both sides. Of all wave vectors that
    fit the supercell only Γ changes, where F = Σ_R Φ(R) becomes P F P. Crystal symmetry is kept.
    `imposed["sum_rule"]` of the result is the largest change (eV/Å²).
    """
    phi = constants.phi.reshape(-1, *constants.phi.shape[3:])
    reverse = phi[constants.number(-constants.cells)].transpose(0, 3, 4, 1, 2)
    phi = (phi + reverse) / 2
    at_gamma = phi.sum(axis=0)
    without = at_gamma - at_gamma.mean(axis=0)
    without -= without.mean(axis=2, keepdims=True)
    return _imposed(constants, phi + (without - at_gamma) / len(phi), "sum_rule")


def with_space_group(constants: ForceConstants, symprec: float = SYMPREC) -> ForceConstants:
    """The nearest force constants with the symmetry of the crystal, their mean over its space group.

    spglib finds the symmetry within `symprec` (Å); operations that do not keep the lattice of supercells are
    left out. `imposed["space_group"]` of the result is the largest change of an element (eV/Å²).
    """
    group = supercell_group(constants.primitive, constants.supercell, symprec)
    phi = constants.phi.reshape(-1, *constants.phi.shape[3:])
    # The mean over all operations: first over translations, then over one operation of each rotation.
    for operations in (
        [group.translation(t) for t in range(len(group.shifted_atom))],
        [group.operation(p) for p in range(len(group.rotations))],
    ):
        total = np.zeros_like(phi)
        for operation in operations:
            for i in range(len(constants.primitive)):
                to = _cells(operation, i, constants.supercell)
                turned = _turned(phi[:, i], operation).swapaxes(1, 2)
                total[to, operation.atom[i], :, operation.atom] += turned
        phi = total / len(operations)
    return _imposed(constants, phi, "space_group")


def repeat_distance(cell: np.ndarray, repeats: Sequence[int]) -> float:
    """The distance (Å) of an atom from its nearest image in the supercell of `cell` (rows, Å)."""
    supercell = np.array(repeats)[:, None] * cell
    steps = np.array([s for s in itertools.product((-2, -1, 0, 1, 2), repeat=3) if any(s)])
    return float(np.linalg.norm(steps @ supercell, axis=1).min())


def repeats_within(cell: np.ndarray, cells: int) -> tuple[int, int, int]:
    """The supercell of at most `cells` cells whose images are farthest apart."""
    highest = max(cells, 1)
    candidates = (
        n for n in itertools.product(range(1, min(highest, 16) + 1), repeat=3) if np.prod(n) <= highest
    )
    return max(candidates, key=lambda n: (round(repeat_distance(cell, n), 6), -np.prod(n)))


def repeats_beyond(crystal: Atoms, distance: float, symprec: float = SYMPREC) -> tuple[int, int, int]:
    """The smallest supercell whose images are at least `distance` (Å) apart, and that keeps the space group.

    The group is found within `symprec` (Å). Of equally small ones it is that whose images are farthest apart.
    """
    cell = crystal.cell.array
    heights = 1 / np.linalg.norm(np.linalg.inv(cell), axis=0)  # between planes of cells
    rotations = find_space_group(crystal, symprec).rotations
    most = np.maximum(1, np.ceil(distance / heights - 1e-6)).astype(int)
    most[:] = most.max()  # vectors that operations exchange need equal numbers

    def kept(n: tuple[int, ...]) -> bool:
        moved = rotations * np.array(n) / np.array(n)[:, None]
        return bool(np.abs(moved - np.rint(moved)).max() < 1e-6)

    every = itertools.product(*(range(1, k + 1) for k in most.tolist()))
    far = [n for n in every if kept(n) and repeat_distance(cell, n) >= distance - 1e-6]
    return min(far, key=lambda n: (np.prod(n), -round(repeat_distance(cell, n), 6)))


def triangular(supercell: np.ndarray) -> np.ndarray:
    """The upper triangular matrix whose rows span the same lattice as those of `supercell` (Hermite's form).

    Raises ValueError unless `supercell` is three positive whole numbers or a matrix (3, 3) of whole numbers
    whose determinant is not zero.
    """
    given = np.asarray(supercell, float)
    whole = np.isfinite(given).all() and (given == given.round()).all()
    if whole and given.shape == (3,) and (given > 0).all():
        return np.diag(given.astype(int))
    if not whole or given.shape != (3, 3) or round(np.linalg.det(given)) == 0:
        raise ValueError(
            f"found supercell={np.asarray(supercell).tolist()}, needed three positive whole numbers, how "
            "often the cell is repeated along each of its lattice vectors, or a matrix of 3 x 3 whole "
            "numbers whose rows are the supercell's lattice vectors, with a determinant that is not zero. "
            "repeats_within(cell, size) finds three numbers."
        )
    rows = given.astype(int)
    for k in range(3):
        while np.count_nonzero(rows[k:, k]) > 1:  # Euclid's algorithm, by rows
            used = k + np.flatnonzero(rows[k:, k])
            least = used[np.abs(rows[used, k]).argmin()]
            others = used[used != least]
            rows[others] -= rows[others, k, None] // rows[least, k] * rows[least]
        pivot = k + np.flatnonzero(rows[k:, k])[0]
        rows[[k, pivot]] = rows[[pivot, k]]
        rows[k] *= np.sign(rows[k, k])
        rows[:k] -= rows[:k, k, None] // rows[k, k] * rows[k]
    return rows


def _cells(operation: Operation, i: int, supercell: np.ndarray) -> np.ndarray:
    """The cell (cells, n) of the image of atom j of each cell, relative to the image of atom i of cell 0."""
    R = np.moveaxis(np.indices(supercell.diagonal()), 0, -1).reshape(-1, 1, 3)
    return cell_number(R @ operation.rotation.T + operation.cell - operation.cell[i], supercell)


def _repeated(crystal, supercell) -> tuple[Atoms, np.ndarray, Atoms]:
    """The cell, the triangular matrix of the supercell, and the supercell, cell by cell, cell 0 first."""
    primitive = in_box(crystal).copy()
    matrix = triangular(supercell)
    check_crystal(primitive)
    one = np.eye(3, dtype=int)
    if np.any((matrix != one)[~primitive.pbc]) or np.any((matrix != one)[:, ~primitive.pbc]):
        raise ValueError(
            f"found the supercell {matrix.tolist()} for {primitive.get_chemical_formula()} with "
            f"pbc={primitive.pbc.tolist()}, needed 1 along each vector that does not repeat."
        )
    cells = np.moveaxis(np.indices(matrix.diagonal()), 0, -1).reshape(-1, 1, 3)
    positions = cells @ primitive.cell.array + primitive.positions
    numbers = np.tile(primitive.numbers, len(cells))
    repeated = Atoms(numbers, positions.reshape(-1, 3), cell=matrix @ primitive.cell.array, pbc=primitive.pbc)
    return primitive, matrix, repeated


def cell_number(R: np.ndarray, supercell: np.ndarray) -> np.ndarray:
    """The number of the cell of which R (…, 3) is an image in an upper triangular supercell."""
    R = np.array(R, int)
    for k in range(3):
        R -= (R[..., k] // supercell[k, k])[..., None] * supercell[k]
    return np.ravel_multi_index(tuple(np.moveaxis(R, -1, 0)), supercell.diagonal())


def constants_of_columns(
    primitive: Atoms,
    matrix: np.ndarray,
    columns: Callable[[list[int]], np.ndarray],
    symmetry: bool,
    symprec: float,
) -> ForceConstants:
    """Force constants from the columns of the supercell's Hessian of cell 0, or those that symmetry needs.

    `columns` gives those of some coordinates 3i + x of a primitive cell of n atoms, (k, cells, n, 3) in
    eV/Å², cells relative to that of atom i and in the order of `cell_number`; `matrix` is as of `triangular`.
    """
    n = len(primitive)
    chosen = dict.fromkeys(range(n), (0, 1, 2))
    if symmetry:
        group = supercell_group(primitive, matrix, symprec)
        chosen = spanning_columns(group)
    rows = columns([3 * atom + x for atom, directions in chosen.items() for x in directions])
    rows = np.asarray(rows, float).reshape(len(rows), -1, n, 3)
    if symmetry:
        phi = _completed(rows, chosen, group, matrix)
    else:
        phi = np.ascontiguousarray(np.moveaxis(rows.reshape(n, 3, -1, n, 3), 2, 0))
    return _with_twist(primitive, matrix, phi)


def _with_twist(primitive, matrix, phi) -> ForceConstants:
    twist = tuple(int(x) for x in matrix[np.triu_indices(3, 1)])
    return ForceConstants(primitive, phi.reshape(*matrix.diagonal(), *phi.shape[1:]), twist)


def _imposed(constants, phi, what) -> ForceConstants:
    phi = phi.reshape(constants.phi.shape)
    change = float(np.abs(phi - constants.phi).max())
    return replace(constants, phi=phi, imposed={**constants.imposed, what: change})


def _turned(block, operation) -> np.ndarray:
    """Pairs of Cartesian indices (cells, 3, n, 3), rotated."""
    return np.einsum("xa,yb,cajb->cxjy", operation.cartesian, operation.cartesian, block)


def supercell_group(primitive: Atoms, supercell: np.ndarray, symprec: float) -> SpaceGroup:
    """The operations of the crystal's space group that map the lattice of supercells to itself."""
    group = find_space_group(primitive, symprec)
    return group.only(np.array([not cell_number(supercell @ W.T, supercell).any() for W in group.rotations]))


def spanning_columns(group: SpaceGroup) -> dict[int, tuple[int, ...]]:
    """Inequivalent atoms, each with directions whose images under its site symmetry span space."""
    chosen = {}
    for atom in np.unique(group.orbits):
        turns = group.site(atom)
        for directions in itertools.chain(*(itertools.combinations(range(3), k) for k in (1, 2, 3))):
            images = turns[:, :, directions]
            spread = np.einsum("oxd,oyd->xy", images, images) / (len(turns) * len(directions))
            if np.linalg.eigvalsh(spread)[0] > SPANS:
                break
        chosen[int(atom)] = directions
    return chosen


def _completed(rows, chosen, group: SpaceGroup, supercell) -> np.ndarray:
    """Φ, (cells, n, 3, n, 3), from the columns (k, cells, n, 3) of `chosen` atoms and directions."""
    _, cells, n, _ = rows.shape
    phi = np.empty((cells, n, 3, n, 3))
    parts = np.split(rows, np.cumsum([len(d) for d in chosen.values()])[:-1])
    for (i, directions), known in zip(chosen.items(), parts, strict=True):
        # A displacement u of atom i and its response rotate together. So the unknown block solves
        # block (T u) = T response for every operation T of the site and every direction that was computed.
        products, spread = np.zeros((cells, n, 3, 3)), np.zeros((3, 3))
        for _, o in group.between(i, i):
            u = o.cartesian[:, directions]
            response = np.einsum("yb,kcjb,xk->cjxy", o.cartesian, known, u)
            products[_cells(o, i, supercell), o.atom] += response
            spread += u @ u.T
        block = np.einsum("wx,cjxy->cwjy", np.linalg.inv(spread), products)
        for k in np.flatnonzero(group.orbits == i):
            _, to_k = next(group.between(i, k))
            to = _cells(to_k, i, supercell)
            phi[to, k, :, to_k.atom] = _turned(block, to_k).swapaxes(1, 2)
    return phi
