"""Atoms whose energy is the square of a density that their neighbours make, with derivatives by hand."""

import numpy as np
from ase import Atoms
from ase.neighborlist import neighbor_list

REACH = 4.3  # Å


def third_derivatives(atoms: Atoms) -> np.ndarray:
    """∂³E/∂r∂r∂r, (N, N, N, 3, 3, 3) in eV/Å³, of E = Σ_i ρ_i² with ρ_i = Σ_j z_j (1 - r_ij²/R²)⁴."""
    N = len(atoms)
    first, second, bonds = neighbor_list("ijD", atoms, REACH)
    x = 1 - np.sum(bonds**2, axis=1) / REACH**2
    z = np.sqrt(atoms.numbers[second]) / 3
    # f and its derivatives by s = r²
    f, f1, f2, f3 = (
        z * c * x**k / REACH ** (2 * n) for n, (c, k) in enumerate(((1, 4), (-4, 3), (12, 2), (-24, 1)))
    )
    one = np.eye(3)
    by_a = 2 * f1[:, None] * bonds
    by_ab = 2 * f1[:, None, None] * one + 4 * f2[:, None, None] * np.einsum("ma,mb->mab", bonds, bonds)
    mixed = np.einsum("ab,mc->mabc", one, bonds)
    mixed = mixed + mixed.transpose(0, 1, 3, 2) + mixed.transpose(0, 3, 2, 1)
    by_abc = 4 * f2[:, None, None, None] * mixed
    by_abc += 8 * f3[:, None, None, None] * np.einsum("ma,mb,mc->mabc", bonds, bonds, bonds)
    density, D1 = np.zeros(N), np.zeros((N, N, 3))
    D2, D3 = np.zeros((N, N, N, 3, 3)), np.zeros((N, N, N, 3, 3, 3))
    np.add.at(density, first, f)
    ends = ((first, -1), (second, 1))
    for p, s in ends:
        np.add.at(D1, (first, p), s * by_a)
        for q, t in ends:
            np.add.at(D2, (first, p, q), s * t * by_ab)
            for r, u in ends:
                weight = 2 * density[first] * s * t * u
                np.add.at(D3, (p, q, r), weight[:, None, None, None] * by_abc)
    for places in ("ipa,iqrbc", "iqb,iprac", "irc,ipqab"):
        D3 += 2 * np.einsum(f"{places}->pqrabc", D1, D2)
    return D3
