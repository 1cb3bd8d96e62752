"""The fineness needed of a mesh of wave vectors, estimated along each lattice vector.

D on the line q = (t, 0, 0) holds the forces between planes of atoms. Their sums from fewer points of the line
give the errors of sums from a mesh of as many points, for a tenth of the work of one mesh.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from ase import Atoms

from jaxmlip.crystals.symmetry import SpaceGroup

LINE = 44.0  # Å: width of the supercell that fits the lines
SOFT = 0.1  # THz


class Lines:
    """Lines of wave vectors along the reciprocal lattice vectors, and D on them.

    Equivalent lattice vectors have one line; those that an operation mixes get equal divisions, or the
    operation would not keep the mesh.
    """

    def __init__(self, atoms: Atoms, group: SpaceGroup):
        self.numbers = wide_mesh(atoms, LINE)
        images = np.abs(group.inverse)  # of q: rows are the images of each reciprocal lattice vector
        alone = images.sum(axis=2) == 1
        self._same = [
            min(i for i in range(3) if np.any(alone[:, i] & (images[:, i, j] == 1))) for j in range(3)
        ]
        mixed = (images != 0).any(axis=0)
        self._tied = np.linalg.matrix_power(mixed.astype(int), 2) > 0
        self.axes = sorted(set(self._same))
        self.q_points = [self._line(axis, np.arange(self.numbers[axis] // 2 + 1)) for axis in self.axes]
        self._errors: dict[int, np.ndarray] = {}

    def _line(self, axis: int, m: np.ndarray) -> np.ndarray:
        q = np.zeros((len(m), 3))
        q[:, axis] = m / self.numbers[axis]
        return q

    @property
    def known(self) -> bool:
        """True once `read` was called."""
        return bool(self._errors)

    def read(self, matrices: list[np.ndarray], frequencies: Callable[[np.ndarray], np.ndarray]) -> None:
        """Takes D(q), (q, 3n, 3n), on each of `q_points`; `frequencies` gives those of matrices, in THz."""
        for axis, D in zip(self.axes, matrices, strict=True):
            self._errors[axis] = _errors(D, self.numbers[axis], frequencies)

    def mesh(self, tolerance: float) -> tuple[int, int, int]:
        """The mesh whose sums are within `tolerance` (THz), estimated from the lines and limited by them."""
        found = np.array([int(np.argmax(self._errors[axis] < tolerance)) + 1 for axis in self._same])
        return tuple(int(found[tied].max()) for tied in self._tied)


def _errors(D: np.ndarray, points: int, frequencies: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Errors (THz) of sums from 1, 2, … of the line's `points`; 0 for all of them."""
    full = np.concatenate([D, D[1 : (points + 1) // 2][::-1].conj()])  # D(-q) = D(q)*
    planes = np.fft.fft(full, axis=0, norm="forward")
    between = (np.arange(points) + 0.5) / points
    exact = frequencies(_summed(planes, between))
    found = np.zeros(points)
    for n in range(1, points):
        fewer = np.fft.fft(_summed(planes, np.arange(n) / n), axis=0, norm="forward")
        found[n - 1] = apart(frequencies(_summed(fewer, between)), exact)
    # An error that grows with more points was small by chance before.
    return np.maximum.accumulate(found[::-1])[::-1]


def _summed(planes: np.ndarray, t: np.ndarray) -> np.ndarray:
    """Σ_R Φ(R) e^{2πi t R} of forces between planes, each counted to the nearest image."""
    n = len(planes)
    R = np.arange(n)
    R = np.where(n < 2 * R, R - n, R)
    phase = np.exp(2j * np.pi * np.outer(t, R))
    phase[:, n == 2 * R] = phase[:, n == 2 * R].real  # equally far on either side
    return np.tensordot(phase, planes, 1)


def apart(found: np.ndarray, exact: np.ndarray) -> float:
    """Largest error in THz. Below 0.1 THz the error of ω² counts, scaled as if ω were 0.1 THz.

    Near zero the root is too sensitive to be compared.
    """
    squares = np.sign(found) * found**2 - np.sign(exact) * exact**2
    return float(np.abs(squares / (2 * np.maximum(np.abs(exact), SOFT))).max(initial=0))


def wide_mesh(atoms: Atoms, reach: float) -> tuple[int, int, int]:
    """The wave vectors that fit a supercell about `reach` Å wide along each lattice vector."""
    points = np.maximum(1, np.rint(reach / np.linalg.norm(atoms.cell.array, axis=1))).astype(int)
    return tuple(np.where(atoms.pbc, points, 1).tolist())
