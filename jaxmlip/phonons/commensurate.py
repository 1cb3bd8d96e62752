"""Phonons from one supercell: exact at the wave vectors that fit it, interpolated between them.

A wave that repeats with the supercell takes the same value on every periodic image of an atom. So at these
commensurate wave vectors the Fourier sum over one supercell is exact, and nobody has to decide which image a
force constant belongs to. Between them somebody has to: the nearest, which is right once the interactions
fade within half of the supercell.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from ase import Atoms

from jaxmlip import batching
from jaxmlip.derivatives import hessian_columns
from jaxmlip.graph import as_atoms
from jaxmlip.units import THZ_PER_ROOT_EV_PER_A2_U

if TYPE_CHECKING:
    from pymatgen.core import Structure

    from jaxmlip.potential import Potential

SAME_DISTANCE = 1e-4  # Å; images this close to equally far share a force constant


@dataclass(frozen=True, eq=False)
class ForceConstants:
    """Φ(R; ia, jb) = ∂²E / ∂r(0, i, a) ∂r(R, j, b) of a crystal that repeats with a supercell.

    R = (R1, R2, R3) counts cells along the lattice vectors of the primitive cell, 0 <= R < repeats. Each is
    the sum over the images of cell R in all supercells, so R may be read modulo `repeats`.
    """

    primitive: Atoms  # n atoms; its masses (u) are the ones that vibrate
    phi: np.ndarray  # (repeats 1, 2, 3, n, 3, n, 3), eV/Å²

    @property
    def repeats(self) -> tuple[int, int, int]:
        return self.phi.shape[:3]

    @property
    def cells(self) -> np.ndarray:
        """R of every cell in whole lattice vectors, (cells, 3), in the order of `phi`."""
        return np.moveaxis(np.indices(self.repeats), 0, -1).reshape(-1, 3)

    @property
    def q_points(self) -> np.ndarray:
        """The commensurate wave vectors (m1/n1, m2/n2, m3/n3) in reciprocal lattice units, (cells, 3)."""
        return self.cells / self.repeats


def supercell_force_constants(
    potential: Potential,
    primitive: Atoms | Structure,
    repeats: tuple[int, int, int],
    memory_limit: float | None = None,
    room: batching.Capacity | None = None,
) -> ForceConstants:
    """Force constants between the atoms of one primitive cell and those of `repeats` cells of it.

    The 3n columns of the supercell's Hessian that belong to one cell hold all of it: the cells are alike.
    Use a potential of dtype "float64": in float32 the lowest frequencies are noise. Atoms stay where they
    are, relaxed or not. `memory_limit` (bytes) goes to `hessian_columns`. Supercells that are padded to the
    same `room` share a compiled program; it must hold an atom and a short bond more than they need.

    Raises ValueError where `repeats` are not three positive whole numbers, or as `from_atoms` does, and
    MemoryLimitError as `hessian_columns` does.
    """
    primitive, supercell = _supercell(primitive, repeats)
    columns = np.arange(3 * len(primitive))
    rows = hessian_columns(potential, supercell, columns, memory_limit=memory_limit, room=room)
    return _force_constants(primitive, repeats, rows)


def displaced_force_constants(
    potential: Potential,
    primitive: Atoms | Structure,
    repeats: tuple[int, int, int],
    displacement: float,
    room: batching.Capacity | None = None,
) -> ForceConstants:
    """As `supercell_force_constants`, from the forces at ±`displacement` (Å) of each coordinate.

    What finite displacements measure is the curvature of the energy averaged over the displacement: the
    Hessian where the energy is smooth on that scale, something else where it is not.
    """
    primitive, supercell = _supercell(primitive, repeats)

    def forces(coordinate: int, step: float) -> np.ndarray:
        moved = supercell.copy()
        moved.positions[coordinate // 3, coordinate % 3] += step
        graph = potential.graph(moved)
        # A displacement can bring an atom within the cutoff of others.
        fits = room is not None and room.holds(batching.need([graph]))
        return potential.predict_graphs([graph], room if fits else batching.capacity([graph]))[0]["forces"]

    rows = [
        (forces(k, -displacement) - forces(k, displacement)).ravel() / (2 * displacement)
        for k in range(3 * len(primitive))
    ]
    return _force_constants(primitive, repeats, np.array(rows, float))


def _supercell(crystal, repeats) -> tuple[Atoms, Atoms]:
    n = tuple(repeats)
    if len(n) != 3 or any(k != int(k) or k < 1 for k in n):
        raise ValueError(
            f"found repeats={repeats!r}, needed three positive whole numbers: how often the cell is repeated "
            "along each of its lattice vectors. repeats_within(cell, size) finds some."
        )
    primitive = as_atoms(crystal).copy()
    return primitive, primitive.repeat(n)


def _force_constants(primitive, repeats, rows) -> ForceConstants:
    # ASE repeats cell by cell, the last lattice vector fastest, the original cell first.
    phi = np.asarray(rows).reshape(len(primitive), 3, *repeats, len(primitive), 3)
    return ForceConstants(primitive, np.ascontiguousarray(np.moveaxis(phi, (2, 3, 4), (0, 1, 2))))


def repeat_distance(cell: np.ndarray, repeats: tuple[int, int, int]) -> float:
    """How far (Å) an atom is from its nearest image in the supercell of `cell` (rows, Å)."""
    supercell = np.array(repeats)[:, None] * cell
    steps = np.array([s for s in itertools.product((-2, -1, 0, 1, 2), repeat=3) if any(s)])
    return float(np.linalg.norm(steps @ supercell, axis=1).min())


def repeats_within(cell: np.ndarray, cells: int) -> tuple[int, int, int]:
    """Of the supercells of at most `cells` cells the one whose images are farthest apart."""
    highest = max(cells, 1)
    candidates = (
        n for n in itertools.product(range(1, min(highest, 16) + 1), repeat=3) if np.prod(n) <= highest
    )
    return max(candidates, key=lambda n: (round(repeat_distance(cell, n), 6), -np.prod(n)))


def dynamical_matrices(constants: ForceConstants) -> np.ndarray:
    """D(q)_{ia,jb} = Σ_R Φ(R; ia, jb) e^{2πi q·R} / √(m_i m_j) at each of `q_points`, (q, 3n, 3n), eV/(Å² u).

    Hermitian: the difference that rounding leaves is averaged out.
    """
    # NumPy's inverse transform has the sign of e^{+2πi q·R}; norm="forward" leaves the sum undivided.
    sums = np.fft.ifftn(constants.phi, axes=(0, 1, 2), norm="forward")
    return _weigh(sums.reshape(-1, *constants.phi.shape[3:]), constants)


def interpolated_dynamical_matrices(constants: ForceConstants, q_points: np.ndarray) -> np.ndarray:
    """D(q), (q, 3n, 3n) in eV/(Å² u), at wave vectors (q, 3) in reciprocal lattice units; see `fourier`."""
    return _weigh(fourier(constants, q_points), constants)


def fourier(constants: ForceConstants, q_points: np.ndarray) -> np.ndarray:
    """Σ_R Φ(R; ia, jb) e^{2πi q·R}, (q, n, 3, n, 3) in eV/Å², at any wave vectors (q, 3).

    Each force constant is given to the nearest image of the pair of atoms, in equal parts where several are
    equally near. Exact at the commensurate wave vectors.
    """
    q_points = np.asarray(q_points, float)
    cell, r = constants.primitive.cell.array, constants.primitive.positions
    around = np.array(list(itertools.product(range(-2, 3), repeat=3))) * constants.repeats
    images = constants.cells[:, None] + around  # (cells, images, 3)
    phi = constants.phi.reshape(-1, *constants.phi.shape[3:])
    sums = np.empty((len(q_points), *phi.shape[1:]), complex)
    for i, j in itertools.product(range(len(r)), repeat=2):
        distance = np.linalg.norm(images @ cell + r[j] - r[i], axis=-1)
        nearest = distance < distance.min(axis=1, keepdims=True) + SAME_DISTANCE
        where, image = np.nonzero(nearest)
        shared = phi[where, i, :, j] / nearest.sum(axis=1)[where, None, None]
        for some in np.array_split(np.arange(len(q_points)), 1 + len(q_points) * len(where) // 10**7):
            phase = np.exp(2j * np.pi * q_points[some] @ images[where, image].T)
            sums[some, i, :, j] = np.tensordot(phase, shared, 1)
    return sums


def _weigh(sums, constants: ForceConstants) -> np.ndarray:
    size = 3 * len(constants.primitive)
    root_mass = np.sqrt(np.repeat(constants.primitive.get_masses(), 3))
    D = sums.reshape(-1, size, size) / (root_mass[:, None] * root_mass)
    return (D + D.conj().mT) / 2


def frequencies(constants: ForceConstants) -> np.ndarray:
    """Frequencies in THz at each of `q_points`, ascending, (q, 3n); imaginary ones are negative numbers.

    The acoustic frequencies at Γ, the first wave vector, are what they are: `acoustic` says how far from 0.
    """
    return _on_mesh(constants.repeats, lambda half: _roots(dynamical_matrices(constants)[half]))


def mesh_frequencies(constants: ForceConstants, mesh: tuple[int, int, int]) -> np.ndarray:
    """As `frequencies`, interpolated on the Γ-centred mesh (m1/mesh1, m2/mesh2, m3/mesh3) of wave vectors."""
    q = np.moveaxis(np.indices(mesh), 0, -1).reshape(-1, 3) / mesh
    return _on_mesh(mesh, lambda half: _roots(interpolated_dynamical_matrices(constants, q[half])))


def _on_mesh(mesh, compute) -> np.ndarray:
    # D(-q) = D(q)* has the same frequencies, so half of a mesh is enough.
    index = np.arange(np.prod(mesh)).reshape(mesh)
    minus = index[np.ix_(*(-np.arange(k) for k in mesh))]
    half, where = np.unique(np.minimum(index, minus).ravel(), return_inverse=True)
    return compute(half)[where]


def _roots(D) -> np.ndarray:
    squared = np.linalg.eigvalsh(D)
    return np.sign(squared) * np.sqrt(np.abs(squared)) * THZ_PER_ROOT_EV_PER_A2_U


class Acoustic(NamedTuple):
    """How far force constants are from not resisting a shift of the whole crystal."""

    sum_rule: float  # max |Σ_{Rj} Φ(R; ia, jb)|, eV/Å²
    frequency: float  # the largest |frequency| of a uniform shift, THz


def acoustic(constants: ForceConstants) -> Acoustic:
    """The deviation from the acoustic sum rule, and the frequency at Γ that it gives uniform shifts."""
    residual = constants.phi.sum(axis=(0, 1, 2, 5))  # (n, 3, 3)
    # The normalised pattern of a shift is √(m_i / M), in which D(Γ) is Σ Φ / M.
    shift = residual.sum(axis=0) / constants.primitive.get_masses().sum()
    return Acoustic(float(np.abs(residual).max()), float(np.abs(_roots((shift + shift.T) / 2)).max()))
