"""Fourier sums of force constants from a mesh of wave vectors, within a tolerance.

The mesh needed is estimated first along each lattice vector: D on a line of wave vectors holds the forces
between planes of atoms, and their decay. Then the sum is compared with exact frequencies elsewhere, and
refined until it is within the tolerance.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from ase import Atoms

from jaxmlip.crystals.symmetry import SpaceGroup, identity, needed_columns, reduced_mesh
from jaxmlip.phonons.commensurate import fourier
from jaxmlip.phonons.lines import Lines, apart, wide_mesh
from jaxmlip.phonons.supercell import ForceConstants

WIDEST = 120.0  # Å: the finest mesh fits a supercell this wide
GROWTH = 1.2  # from one mesh to the next, if the lines do not tell
PROBES = 2  # wave vectors at which a sum is tested, and as many more with the lowest frequencies


class Sum(NamedTuple):
    """Force constants from a mesh, and the largest error (THz) of their sums at other wave vectors."""

    constants: ForceConstants
    off: float
    tried: int  # number of wave vectors

    @property
    def method(self) -> str:
        points = " x ".join(map(str, self.constants.repeats))
        return f"Fourier sum from {points} wave vectors, off by {self.off:.0e} THz at {self.tried} others"


class Sums:
    """The search for the mesh whose sums repeat exact frequencies within `tolerance` (THz).

    `exact` gives D(q) at wave vectors and keeps it, `constants` those of a mesh, `frequencies` (THz) those of
    matrices. Without `group` no symmetry saves work. A sum is taken if it costs less than D at each wave
    vector, or `always`.
    """

    def __init__(
        self,
        atoms: Atoms,
        group: SpaceGroup | None,
        tolerance: float,
        always: bool,
        exact: Callable[[np.ndarray], np.ndarray],
        constants: Callable[[tuple[int, int, int]], ForceConstants],
        frequencies: Callable[[np.ndarray], np.ndarray],
    ):
        self.atoms, self.group, self.tolerance, self.always = atoms, group, tolerance, always
        self.exact, self.constants, self.frequencies = exact, constants, frequencies
        self._operations = identity(len(atoms)) if group is None else group
        self._lines = Lines(atoms, self._operations)
        self._sum: Sum | None = None
        self._aim = tolerance  # for the lines

    def matrices(self, q_points: np.ndarray) -> tuple[np.ndarray, str] | None:
        """D(q), (q, 3n, 3n) in eV/Å², and how it was found; None if no sum pays or is good enough."""
        while self._pays(q_points):
            D = fourier(self._sum.constants, q_points).reshape(len(q_points), 3 * len(self.atoms), -1)
            self._sum = self._tried(D, q_points)
            if self._sum.off < self.tolerance:
                return D, self._sum.method
        return None

    def _cost(self, q_points: np.ndarray) -> int:
        """The number of columns to compute for D at these wave vectors."""
        return len(needed_columns(q_points, self._operations).wave)

    def _pays(self, q_points: np.ndarray) -> bool:
        """True if a sum is cheaper than D at each of `q_points`; then there is one, tested or not."""
        if self._sum is not None and self._sum.off < self.tolerance:
            return True
        mesh = self._next_mesh(q_points)
        if mesh is None:
            return False
        # The first wave vectors at which it will be tested are computed together with the mesh.
        reduced = reduced_mesh(mesh, self.group)
        self.exact(np.concatenate([reduced.q_points, q_points[_evenly(q_points, mesh)]]))
        self._sum = Sum(self.constants(mesh), 0.0, 0)
        return True

    def _next_mesh(self, q_points: np.ndarray) -> tuple[int, int, int] | None:
        """The mesh to take for a sum; None if that costs more than D at each of `q_points`."""
        lines = self._lines
        direct = self._cost(q_points) if not self.always else np.inf
        if not lines.known:
            together = np.concatenate(lines.q_points)
            if direct <= self._cost(together):
                return None
            ends = np.cumsum([len(q) for q in lines.q_points])[:-1]
            lines.read(np.split(self.exact(together), ends), self.frequencies)
        if self._sum is None:
            mesh = lines.mesh(self._aim)
        else:
            # The lines were too optimistic: their tolerance is tightened, and the mesh grows by a step at
            # least.
            self._aim *= self.tolerance / self._sum.off / 2
            last = np.array(self._sum.constants.repeats)
            step = np.where(self.atoms.pbc, np.maximum(last + 1, np.rint(GROWTH * last)), 1).astype(int)
            wanted = np.maximum(last, lines.mesh(self._aim))
            mesh = tuple((wanted if (wanted > last).any() else step).tolist())
        probes = 2 * PROBES * 3 * len(self.atoms)
        if direct <= self._cost(reduced_mesh(mesh, self._operations).q_points) + probes:
            return None
        return mesh if (np.array(mesh) <= wide_mesh(self.atoms, WIDEST)).all() else None

    def _tried(self, D: np.ndarray, q_points: np.ndarray) -> Sum:
        """The sum, whose matrices at `q_points` are D, with its error after a test there."""
        mesh = self._sum.constants.repeats
        softest = _softest(self.frequencies(D), q_points, mesh)
        probes = np.union1d(_evenly(q_points, mesh), softest)
        exact = self.frequencies(self.exact(q_points[probes]))
        off = apart(self.frequencies(D[probes]), exact)
        return Sum(self._sum.constants, max(self._sum.off, off), self._sum.tried + len(probes))


def _off_mesh(q_points: np.ndarray, mesh: tuple[int, int, int]) -> np.ndarray:
    """The numbers of the wave vectors that are not on the mesh."""
    m = q_points * mesh
    return np.flatnonzero(np.abs(m - np.rint(m)).max(axis=1, initial=0) > 1e-6)


def _evenly(q_points: np.ndarray, mesh: tuple[int, int, int]) -> np.ndarray:
    """Some wave vectors off the mesh, spread evenly over `q_points`."""
    off = _off_mesh(q_points, mesh)
    places = np.linspace(0, max(0, len(off) - 1), PROBES + 2).astype(int)[1:-1]
    return off[np.unique(places)] if len(off) else off


def _softest(frequencies: np.ndarray, q_points: np.ndarray, mesh: tuple[int, int, int]) -> np.ndarray:
    """Wave vectors off the mesh with the lowest frequencies, at which ω is most sensitive to D."""
    off = _off_mesh(q_points, mesh)
    return off[np.argsort(np.abs(frequencies[off]).min(axis=1))[:PROBES]]
