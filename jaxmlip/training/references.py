"""Reference energies of the elements by least squares, arXiv:2504.05565: E_elem = (AᵀA)⁻¹ Aᵀ E.

The rows of A are the fractions of the elements in each crystal, and E are energies per atom. A network learns
the remainder, in which functionals agree whose total energies differ by tens of eV per atom.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from jaxmlip.crystals.graph import atomic_number

SAME = 1e-3  # eV
RIDGE = 1e-6  # relative to the largest eigenvalue of AᵀA; used if compositions do not determine all energies


@dataclass(frozen=True)
class References:
    """Energies by atomic number (eV), and how well they were determined.

    For a potential of several functionals "atomic number" means species, here and below.
    """

    energies: Float[np.ndarray, " elements"]
    fitted: tuple[int, ...]  # atomic numbers that the data contain
    kept: tuple[int, ...]  # other atomic numbers of the potential: their energies are as before
    ridge: bool = False  # True if compositions do not determine all energies: then they change little
    # eV/atom, the remainder that the network has to learn; None for energies of isolated atoms
    rmse: float | None = None

    def __str__(self) -> str:
        from ase.data import chemical_symbols

        names = " ".join(dict.fromkeys(chemical_symbols[atomic_number(z)] for z in self.fitted))
        if self.rmse is None:
            return f"reference energies of isolated atoms for {names}"
        text = f"reference energies refitted for {names}: {1e3 * self.rmse:.1f} meV/atom remain"
        if self.ridge:
            text += "; compositions do not determine all of them, so they stay close to the old ones"
        return text


def refit(
    species: Sequence[np.ndarray],
    residual: Float[np.ndarray, " crystals"],
    before: Float[np.ndarray, " elements"],
) -> References:
    """Reference energies that bring `residual` closest to zero when they replace `before`.

    `species` are the atomic numbers of each crystal, and `residual` is the DFT energy of each (eV) minus the
    prediction of a potential with the energies `before` (eV, by atomic number). With the network's part in
    that prediction only the shift between functionals is fitted; without it, the energies themselves, as in
    arXiv:2504.05565.

    Raises ValueError if there is no crystal.
    """
    if not len(species):
        raise ValueError("found no crystal with an energy, needed some to fit reference energies.")
    present = np.unique(np.concatenate(species))
    counts = np.array([(s[:, None] == present).sum(axis=0) for s in species], float)
    atoms = counts.sum(axis=1)
    A, y = counts / atoms[:, None], np.asarray(residual) / atoms
    normal = A.T @ A
    scale = np.linalg.eigvalsh(normal)
    ridge = bool(scale[0] < RIDGE * scale[-1])
    shift = np.linalg.solve(normal + (RIDGE * scale[-1] * np.eye(len(present)) if ridge else 0), A.T @ y)
    energies = np.array(before, np.float64)
    energies[present] += shift
    kept = tuple(int(z) for z in np.flatnonzero(before) if z not in present)
    rmse = float(np.sqrt(np.mean((y - A @ shift) ** 2)))
    return References(energies, tuple(map(int, present)), kept, ridge, rmse)


def of_isolated(
    energies: Sequence[tuple[int, float]], needed: Sequence[int], before: Float[np.ndarray, " elements"]
) -> References:
    """The energies of isolated atoms, given as (atomic number, eV), as reference energies of all `needed`.

    Raises ValueError, naming the elements, if some have no isolated atom, or one has atoms whose energies
    differ by more than SAME eV.
    """
    from ase.data import chemical_symbols

    found: dict[int, float] = {}
    for z, energy in energies:
        if abs(found.setdefault(z, energy) - energy) > SAME:
            raise ValueError(
                f"found isolated atoms of {chemical_symbols[atomic_number(z)]} with {found[z]} and {energy} "
                "eV, needed one energy for each element. Keep the atom in its ground state."
            )
    if missing := sorted(set(needed) - set(found)):
        names = ", ".join(dict.fromkeys(chemical_symbols[atomic_number(z)] for z in missing))
        raise ValueError(
            f"found no isolated atom of {names} with an energy, needed one of each element of the crystals. "
            "Add such frames (config_type=IsolatedAtom) to data.train, or take reference_energies: refit."
        )
    after = np.array(before, np.float64)
    for z in needed:
        after[z] = found[z]
    kept = tuple(int(z) for z in np.flatnonzero(before) if z not in needed)
    return References(after, tuple(sorted(needed)), kept)
