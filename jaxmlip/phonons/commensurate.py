"""Phonons from one supercell: exact at the wave vectors that fit it, interpolated between them.

A wave that repeats with the supercell takes the same value on every periodic image of an atom. So at these
commensurate wave vectors the Fourier sum over one supercell is exact, whichever image a force constant is
given to. Between them it is given to the nearest image, which is right once the interactions fade within half
of the supercell.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from ase.geometry import minkowski_reduce

from jaxmlip.phonons.supercell import ForceConstants
from jaxmlip.units import THZ_PER_ROOT_EV_PER_A2_U

SAME_DISTANCE = 1e-4  # Å; images at distances this close share a force constant


def dynamical_matrices(constants: ForceConstants) -> np.ndarray:
    """D(q)_{ia,jb} = Σ_R Φ(R; ia, jb) e^{2πi q·R} / √(m_i m_j) at each of `q_points`, (q, 3n, 3n), eV/(Å² u).

    They are Hermitian: rounding errors are averaged out.
    """
    if any(constants.twist):
        phase = np.exp(2j * np.pi * constants.q_points @ constants.cells.T)
        sums = np.tensordot(phase, constants.phi.reshape(-1, *constants.phi.shape[3:]), 1)
    else:
        # NumPy's inverse transform has the sign of e^{+2πi q·R}; norm="forward" leaves the sum undivided.
        sums = np.fft.ifftn(constants.phi, axes=(0, 1, 2), norm="forward")
    return _weigh(sums.reshape(-1, *constants.phi.shape[3:]), constants)


def interpolated_dynamical_matrices(constants: ForceConstants, q_points: np.ndarray) -> np.ndarray:
    """D(q), (q, 3n, 3n) in eV/(Å² u), at wave vectors (q, 3) in reciprocal lattice units; see `fourier`."""
    return _weigh(fourier(constants, q_points), constants)


def fourier(constants: ForceConstants, q_points: np.ndarray) -> np.ndarray:
    """Σ_R Φ(R; ia, jb) e^{2πi q·R}, (q, n, 3, n, 3) in eV/Å², at any wave vectors (q, 3).

    Each force constant is given to the nearest image of the pair of atoms, in equal parts if several are
    equally near. The sum is exact at the commensurate wave vectors.
    """
    return _sums(constants, q_points, lambda vectors: np.ones((1, len(vectors))))[0]


def fourier_slopes(constants: ForceConstants, q_points: np.ndarray) -> np.ndarray:
    """The derivatives of `fourier` by the three components of q, (3, q, n, 3, n, 3) in eV/Å²."""
    return _sums(constants, q_points, lambda vectors: 2j * np.pi * vectors.T)


def _sums(constants: ForceConstants, q_points, factors: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Σ_R f(R) Φ(R) e^{2πi q·R} for each f that `factors` gives of vectors (m, 3), as (f, m)."""
    q_points = np.asarray(q_points, float)
    cell, r = constants.primitive.cell.array, constants.primitive.positions
    shortest = _shortest(constants)
    phi = constants.phi.reshape(-1, *constants.phi.shape[3:])
    sums = np.empty((len(factors(np.zeros((0, 3)))), len(q_points), *phi.shape[1:]), complex)
    for i, j in itertools.product(range(len(r)), repeat=2):
        images = _images(constants.cells, shortest, (r[j] - r[i]) @ np.linalg.inv(cell))
        distance = np.linalg.norm(images @ cell + r[j] - r[i], axis=-1)
        nearest = distance < distance.min(axis=1, keepdims=True) + SAME_DISTANCE
        where, image = np.nonzero(nearest)
        shared = phi[where, i, :, j] / nearest.sum(axis=1)[where, None, None]
        vectors = images[where, image]
        for k, factor in enumerate(factors(vectors)):
            for some in np.array_split(np.arange(len(q_points)), 1 + len(q_points) * len(where) // 10**7):
                phase = factor * np.exp(2j * np.pi * q_points[some] @ vectors.T)
                sums[k, some, i, :, j] = np.tensordot(phase, shared, 1)
    return sums


def _shortest(constants: ForceConstants) -> np.ndarray:
    """The shortest vectors of the supercell's lattice, rows of whole numbers of cells."""
    # The given ones can be far from them.
    _, whole = minkowski_reduce(constants.supercell @ constants.primitive.cell.array)
    return whole @ constants.supercell


def _images(cells: np.ndarray, shortest: np.ndarray, apart: np.ndarray) -> np.ndarray:
    """Images of each of `cells` by the vectors `shortest`, (cells, images, 3) in whole vectors.

    Among them are those for which an atom that is `apart` (3,) from the first one, in lattice vectors, is
    nearest to it.
    """
    near = cells - ((cells + apart) @ np.linalg.inv(shortest)).round().astype(int) @ shortest
    around = np.array(list(itertools.product(range(-2, 3), repeat=3))) @ shortest
    return near[:, None] + around


def _weigh(sums, constants: ForceConstants) -> np.ndarray:
    size = 3 * len(constants.primitive)
    root_mass = np.sqrt(np.repeat(constants.primitive.get_masses(), 3))
    D = sums.reshape(-1, size, size) / (root_mass[:, None] * root_mass)
    return (D + D.conj().mT) / 2


def frequencies(constants: ForceConstants) -> np.ndarray:
    """Frequencies in THz at each of `q_points`, ascending, (q, 3n); imaginary ones are negative numbers.

    The acoustic frequencies at Γ, the first wave vector, are not set to 0; see `acoustic`.
    """
    return _roots(dynamical_matrices(constants))


def interpolated_frequencies(constants: ForceConstants, q_points: np.ndarray) -> np.ndarray:
    """Frequencies as of `frequencies`, interpolated at any wave vectors (q, 3)."""
    return _roots(interpolated_dynamical_matrices(constants, q_points))


def mesh_frequencies(constants: ForceConstants, mesh: tuple[int, int, int]) -> np.ndarray:
    """Frequencies interpolated on the Γ-centred mesh (m1/mesh1, m2/mesh2, m3/mesh3) of wave vectors."""
    q = np.moveaxis(np.indices(mesh), 0, -1).reshape(-1, 3) / mesh
    # D(-q) = D(q)* has the same frequencies, so half of the mesh is enough.
    index = np.arange(np.prod(mesh)).reshape(mesh)
    minus = index[np.ix_(*(-np.arange(k) for k in mesh))]
    half, where = np.unique(np.minimum(index, minus).ravel(), return_inverse=True)
    return interpolated_frequencies(constants, q[half])[where]


def _roots(D) -> np.ndarray:
    squared = np.linalg.eigvalsh(D)
    return np.sign(squared) * np.sqrt(np.abs(squared)) * THZ_PER_ROOT_EV_PER_A2_U


class Acoustic(NamedTuple):
    """Deviations of force constants from translational invariance."""

    sum_rule: float  # max |Σ_{Rj} Φ(R; ia, jb)|, eV/Å²
    frequency: float  # the largest |frequency| of a uniform shift, THz


def acoustic(constants: ForceConstants) -> Acoustic:
    """The deviation from the acoustic sum rule, and the resulting frequency of uniform shifts at Γ."""
    residual = constants.phi.sum(axis=(0, 1, 2, 5))  # (n, 3, 3)
    # The normalised pattern of a shift is √(m_i / M), in which D(Γ) is Σ Φ / M.
    shift = residual.sum(axis=0) / constants.primitive.get_masses().sum()
    return Acoustic(float(np.abs(residual).max()), float(np.abs(_roots((shift + shift.T) / 2)).max()))
