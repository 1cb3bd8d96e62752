"""Scattering of phonons by isotopes (S. Tamura, Phys. Rev. B 27, 858 (1983)).

    Γ_λ = π/8N ν_λ² Σ_λ′ Σ_i g_i |e*_λi · e_λ′i|² δ(ν_λ - ν_λ′)

over the N wave vectors of a mesh, with phonopy's tetrahedra for the conservation of energy; Γ is half the
width at half maximum. Weights of equal frequencies are averaged, so that nothing depends on which of their
eigenvectors is taken.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from ase.data import atomic_masses

from jaxmlip.phonons.cells import Cells

if TYPE_CHECKING:
    from phono3py import Phono3py

SAME_MASS = 3e-4  # relative; tables of masses differ by less, isotopes by more
# THz, as in phono3py: modes below scatter nothing, and modes this close count as equal.
NO_FREQUENCY = SAME_FREQUENCY = 1e-4
AT_ONCE = 10**7  # products of modes that are held at once


def mass_variances(cells: Cells) -> np.ndarray:
    """Σ c (1 - m/m̄)² (n,) of the isotopes of each atom of the primitive cell, by natural abundance.

    It is 0 for an atom whose mass is not that of its element: it is then taken as one isotope.
    """
    from phono3py.other.isotope import get_mass_variances

    atoms = cells.primitive
    natural = np.isclose(atoms.get_masses(), atomic_masses[atoms.numbers], rtol=SAME_MASS, atol=0)
    return np.where(natural, get_mass_variances(symbols=atoms.get_chemical_symbols()), 0.0)


def isotope_linewidths(ph3: Phono3py, points: np.ndarray, variances: np.ndarray) -> np.ndarray:
    """Γ (Q, B) in THz at points (Q,) of the grid of a Phono3py object whose phonons were computed.

    `variances` (n,) are those of `mass_variances`. phono3py computes the same, more slowly: it averages wave
    vector by wave vector in Python, which took nine tenths of a conductivity.
    """
    from phonopy.phonon.tetrahedron_method import get_integration_weights

    thz, vectors, _ = ph3.get_phonon_data()
    grid = ph3.grid
    whole = grid.grg2bzg
    gamma = np.zeros((len(points), thz.shape[1]))
    for k, point in enumerate(points):
        weights = get_integration_weights(thz[point], thz, grid, symmetrize_tetrahedra=True)
        alike = same_frequency(thz[point])
        for some in _parts(len(whole), thz.shape[1]):
            at = whole[some]
            W = alike @ weights[some] @ same_frequency(thz[at]) * (thz[at] > NO_FREQUENCY)[:, None]
            gamma[k] += (W * _overlaps(vectors[point], vectors[at], variances)).sum(axis=(0, 2))
        gamma[k] = alike @ gamma[k]
    return np.pi / 4 / len(whole) * thz[points] ** 2 * gamma


def same_frequency(thz: np.ndarray) -> np.ndarray:
    """Matrices (…, B, B) that average over equal ones of ascending frequencies (…, B)."""
    sets = np.cumsum(np.diff(thz, axis=-1, prepend=thz[..., :1]) > SAME_FREQUENCY, axis=-1)
    same = sets[..., :, None] == sets[..., None, :]
    return same / same.sum(axis=-1, keepdims=True)


def _parts(grid: int, bands: int) -> Iterator[slice]:
    each = max(1, AT_ONCE // bands**2)
    for begin in range(0, grid, each):
        yield slice(begin, begin + each)


def _overlaps(of: np.ndarray, others: np.ndarray, variances: np.ndarray) -> np.ndarray:
    """Σ_i g_i |e*_i · e′_i|² (N, B, B) of modes (B, B) with those of others (N, B, B), in columns."""
    found = np.zeros((len(others), of.shape[1], others.shape[2]))
    for i, variance in enumerate(variances):
        atom = slice(3 * i, 3 * i + 3)
        product = of[atom].conj().T @ others[:, atom]
        found += variance * (product.real**2 + product.imag**2)
    return found
