"""Dynamical matrices at any wave vector, exactly, from the primitive cell alone.

Column (j, b) of

    D(q)_{ia,jb} = Σ_R Φ(0ia; Rjb) e^{2πi q·R}

is the gradient's response to a lattice wave with u = 1 for coordinate b of atom j, which
`jaxmlip.derivatives.response` computes from one cell. The sum over cells is never formed, and nothing is cut
off, however far messages travel. D is Hermitian because second derivatives commute; it is not made so.

Wave vectors q are in reciprocal lattice units throughout: q·R with R in whole lattice vectors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike

from jaxmlip.crystals import batching
from jaxmlip.crystals.atoms import in_box
from jaxmlip.crystals.symmetry import TOLERANCE as SYMPREC
from jaxmlip.crystals.symmetry import Pairs, SpaceGroup, completed, needed_columns, space_group
from jaxmlip.derivatives.response import Response, SecondDerivatives

if TYPE_CHECKING:
    from ase import Atoms
    from pymatgen.core import Structure

    from jaxmlip.potential import Potential

Phase = Literal["cells", "atoms"]


def dynamical_matrix(
    potential: Potential,
    crystal: Atoms | Structure,
    q_points: ArrayLike,
    *,
    mass_weighted: bool = False,
    phase: Phase = "cells",
    symmetry: bool = False,
    symprec: float = SYMPREC,
    block_size: int | None = None,
    memory_limit: float | None = None,
    shape: batching.BatchShape | None = None,
) -> np.ndarray:
    """D(q) at each of `q_points` (q, 3), in reciprocal lattice units: complex, (q, 3N, 3N), in eV/Å².

    `mass_weighted` divides by √(m_i m_j): eV/(Å² u), with the masses of the crystal. With `phase="cells"` a
    wave has the phase e^{2πi q·R} of its cell, and D is periodic in q; with "atoms" it has that of the atom's
    position, e^{2πi q·(R + x)}, as in phonopy. Both have the same eigenvalues.

    With `symmetry` only columns that are inequivalent under the little group of q (with time reversal) are
    computed; the rest follow, as exactly as the crystal is symmetric. The symmetry is that of the elements,
    found within `symprec` (Å).

    `block_size` real columns are computed at once, two for each coordinate and wave vector; see `Response`
    for it, `memory_limit` and `shape`. Use a potential of dtype "float64": in float32 the lowest frequencies
    are noise. Any cell can be used; in a supercell the branches are folded into its Brillouin zone.

    Raises ValueError if `q_points` is not of shape (q, 3) and finite, or as `from_atoms` does, and
    MemoryLimitError as `hessian_columns` does.
    """
    if phase not in get_args(Phase):
        raise ValueError(f"found phase={phase!r}, needed 'cells' or 'atoms'.")
    atoms, q_points = along_lattice(crystal, q_points)
    response = Response(potential, atoms, block_size=block_size, memory_limit=memory_limit, shape=shape)
    D = matrices(response, q_points, space_group(atoms, symprec) if symmetry else None)
    return _convention(D, atoms, q_points, mass_weighted, phase)


def matrices(
    response: SecondDerivatives, q_points: np.ndarray, group: SpaceGroup | None = None
) -> np.ndarray:
    """D(q), complex (q, 3N, 3N) in eV/Å² with the phases of cells; `group` saves columns."""
    if group is None:
        return _square(response.waves(q_points, _all_pairs(len(q_points), response.atoms)), response.atoms)
    pairs = needed_columns(q_points, group)
    return completed(response.waves(q_points, pairs), pairs, q_points, group)


def slopes(response: SecondDerivatives, q_points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """D(q), (q, 3N, 3N), and ∂D/∂q, (q, 3, 3N, 3N), in eV/Å² with the phases of cells.

    The derivative is exact, by the three components of q in reciprocal lattice units.
    """
    found = response.wave_slopes(q_points, _all_pairs(len(q_points), response.atoms))
    D = _square(found, response.atoms)
    return D[0], D[1:].swapaxes(0, 1)


def strained(
    response: SecondDerivatives,
    q_points: np.ndarray,
    eps: np.ndarray,
    along: np.ndarray,
    group: SpaceGroup | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """D(q) and its derivative dD(q)/ds, each (q, 3N, 3N), for a crystal strained by 1 + s·`eps`.

    The atoms also move by s·`along` (N, 3), in Å. q is constant in reciprocal lattice units. A `group` that
    strain and motion keep saves columns.
    """
    if group is None:
        found = response.strained_waves(q_points, _all_pairs(len(q_points), response.atoms), eps, along)
        return tuple(_square(found, response.atoms))
    pairs = needed_columns(q_points, group)
    D, slope = response.strained_waves(q_points, pairs, eps, along)
    return completed(D, pairs, q_points, group), completed(slope, pairs, q_points, group)


def along_lattice(crystal: Atoms | Structure, q_points: Any) -> tuple[Atoms, np.ndarray]:
    """The crystal, boxed along directions that do not repeat, and its wave vectors (q, 3).

    Raises ValueError as `wave_vectors` does, and if a wave runs along a vector that does not repeat.
    """
    atoms, q = in_box(crystal), wave_vectors(q_points)
    if np.abs(q[:, ~atoms.pbc]).max(initial=0) > 1e-9:
        raise ValueError(
            f"found the wave vector {q[np.abs(q[:, ~atoms.pbc]).max(axis=1).argmax()].tolist()} for "
            f"{atoms.get_chemical_formula()} with pbc={atoms.pbc.tolist()}, needed 0 along each vector that "
            "does not repeat."
        )
    return atoms, q


def wave_vectors(q_points: Any) -> np.ndarray:
    """`q_points` as an array (q, 3). Raises ValueError if they are something else."""
    q = np.asarray(q_points, float)
    if q.ndim != 2 or q.shape[1] != 3:
        raise ValueError(
            f"found wave vectors of shape {q.shape}, needed (q, 3): rows of three numbers in reciprocal "
            "lattice units. For one wave vector write [[q1, q2, q3]]."
        )
    if not np.isfinite(q).all():
        raise ValueError(f"wave vector {np.flatnonzero(~np.isfinite(q).all(axis=1))[0]} is not finite.")
    return q


def asymmetry(D: np.ndarray) -> float:
    """The largest |D - D†|, which only rounding makes nonzero."""
    return float(np.abs(D - np.conj(D.swapaxes(-1, -2))).max(initial=0))


def position_phases(atoms: Atoms, q_points: np.ndarray) -> np.ndarray:
    """e^{2πi q·x} of each coordinate at fractional position x, (q, 3N)."""
    x = atoms.cell.scaled_positions(atoms.positions)
    return np.repeat(np.exp(2j * np.pi * q_points @ x.T), 3, axis=1)


def _convention(D, atoms, q_points, mass_weighted: bool, phase: Phase):
    if mass_weighted:
        root = np.sqrt(np.repeat(atoms.get_masses(), 3))
        D = D / (root[:, None] * root)
    if phase == "atoms":
        turn = position_phases(atoms, q_points)
        D = D * (turn.conj()[:, :, None] * turn[:, None, :])
    return D


def _all_pairs(waves: int, atoms: int) -> Pairs:
    return Pairs(np.repeat(np.arange(waves), 3 * atoms), np.tile(np.arange(3 * atoms), waves))


def _square(columns, atoms: int) -> np.ndarray:
    """Columns (…, q · 3N, 3N) of all pairs as matrices (…, q, 3N, 3N)."""
    n = 3 * atoms
    return columns.reshape(*columns.shape[:-2], -1, n, n).swapaxes(-1, -2)
