"""Imaginary modes: by which rule a crystal has some, and how that is said."""

from __future__ import annotations

import numpy as np
from ase import Atoms

from jaxmlip.phonons.third import SAME_WAVE

AT_REST = -0.01  # THz; acoustic frequencies at Γ down to it count as zero


class ImaginaryModesError(ValueError):
    """A crystal has imaginary modes: energy falls along them, and phonons have no lifetimes.

    `q_point` (3,), in reciprocal lattice units, and `thz` (negative) are those of the lowest.
    """

    def __init__(self, formula: str, q_point: np.ndarray, thz: float, wave_vectors: int, of: int):
        self.q_point, self.thz = q_point, thz
        where = " ".join(f"{x:.4g}" for x in q_point)
        super().__init__(
            f"found imaginary modes of {formula} at {wave_vectors} of {of} wave vectors of the mesh, the "
            f"lowest {thz:.3g} THz at q = ({where}); needed frequencies above zero. Relax the crystal with "
            "this potential first; if they stay, it is not stable in this cell, and jaxmlip stabilise (or "
            "jaxmlip.phonons.follow) finds one that is."
        )


def imaginary(q_points: np.ndarray, thz: np.ndarray) -> np.ndarray:
    """True (Q,) for wave vectors with imaginary modes, by the rule of arXiv:2408.00755.

    At Γ three acoustic modes may have -0.01 THz; all else has frequencies from 0. `q_points` (Q, 3) are in
    reciprocal lattice units, `thz` (Q, B) ascending frequencies.
    """
    q = np.asarray(q_points, float)
    at_gamma = np.abs(q - np.rint(q)).max(axis=1) < SAME_WAVE
    acoustic = at_gamma[:, None] & (np.arange(thz.shape[1]) < 3)
    return (thz < np.where(acoustic, AT_REST, 0.0)).any(axis=1)


def check_stable(
    atoms: Atoms, q_points: np.ndarray, thz: np.ndarray, weights: np.ndarray, name: str = ""
) -> None:
    """Raises ImaginaryModesError if a mode of a crystal (its primitive cell) is `imaginary`.

    Each wave vector stands for `weights` (Q,) of them. `name` is what the error calls the crystal, by default
    its formula.
    """
    bad = imaginary(q_points, thz)
    if bad.any():
        k = np.where(bad, thz.min(axis=1), np.inf).argmin()
        name, number = name or atoms.get_chemical_formula(), int(weights[bad].sum())
        raise ImaginaryModesError(name, q_points[k], float(thz[k].min()), number, int(weights.sum()))
