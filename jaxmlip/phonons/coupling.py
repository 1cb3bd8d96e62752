"""What the third order does to phonons: couplings of three modes, linewidths, mode Grüneisen parameters.

    V(λ, λ′, λ″) = Σ Φ(ia, jb, kc) e_ia e′_jb e″_kc e^{2πi (q·R_i + q′·R_j + q″·R_k)} / √(m_i m_j m_k)

with q + q′ + q″ whole, one of the atoms in cell 0 and the others anywhere: the third derivative of the energy
per primitive cell by the amplitudes of three waves e e^{2πi q·R} / √m. Each atom of the supercell stands for
its nearest images. What is nearest depends on which of three atoms it is seen from; as in phono3py, all three
views are averaged. phono3py is not needed here. Wave vectors are in reciprocal lattice units of
`third.cells.primitive`, whose vectors phonopy chooses unless the constants were asked for with primitive="P".

Half the width at half maximum of a mode is, for N wave vectors q′ (A. A. Maradudin and A. E. Fein,
Phys. Rev. 128, 2589 (1962); A. Togo, L. Chaput and I. Tanaka, Phys. Rev. B 91, 094306 (2015)),

    Γ_λ = πħ/16N Σ |V(λ, λ′, λ″)|² / (ω ω′ ω″) {(1 + n′ + n″) δ(ω - ω′ - ω″)
                                               + (n′ - n″) [δ(ω + ω′ - ω″) - δ(ω - ω′ + ω″)]}
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jaxmlip.crystals.symmetry import mesh_shape
from jaxmlip.phonons.cells import Cells
from jaxmlip.phonons.imaginary import check_stable
from jaxmlip.phonons.modes import degenerate, grueneisen_parameters
from jaxmlip.phonons.phono3py_files import check_same_crystal
from jaxmlip.phonons.third import SAME_WAVE, SecondOrder, ThirdOrder
from jaxmlip.phonons.three_waves import THZ_OF_RATES, along, bose, parts, rates

SMEARING = 0.1  # THz
NO_FREQUENCY = 1e-4  # THz; modes below scatter nothing, as in phono3py


@dataclass(frozen=True, eq=False)
class Couplings:
    """Third derivatives of the energy per primitive cell along all modes (B = 3n) of three wave vectors."""

    cells: Cells
    q_points: np.ndarray  # (3, 3), reciprocal lattice units; their sum is whole
    thz: np.ndarray  # (3, B)
    eigenvectors: np.ndarray  # (3, B, B), the modes in columns, phases of cells; their own phase is free
    weighed: np.ndarray  # (B, B, B), complex, eV/(Å³ u^{3/2}): V, by amplitudes in Å √u

    @property
    def patterns(self) -> np.ndarray:
        """Displacements u (3, B, n, 3) of cell 0 along the modes, Σ |u|² = 1; cell R has e^{2πi q·R} u."""
        u = self._moved / self._lengths[:, None]
        return u.swapaxes(1, 2).reshape(*self.thz.shape, -1, 3)

    @property
    def bare(self) -> np.ndarray:
        """The third derivatives (B, B, B), complex, eV/Å³, by amplitudes in Å of `patterns`."""
        first, second, third = self._lengths
        return self.weighed / (first[:, None, None] * second[:, None] * third)

    @property
    def _moved(self) -> np.ndarray:
        return self.eigenvectors / np.sqrt(np.repeat(self.cells.primitive.get_masses(), 3))[:, None]

    @property
    def _lengths(self) -> np.ndarray:
        """How far the atoms of a cell move for an amplitude of 1 Å √u: √Σ|u|², (3, B) in 1/√u."""
        return np.linalg.norm(self._moved, axis=1)


def couplings(third: ThirdOrder, second: SecondOrder, q_points: np.ndarray) -> Couplings:
    """The cubic couplings of all modes at three wave vectors (3, 3), in reciprocal lattice units.

    Of a mode at Γ with itself, three times Γ gives E(x) = … + Φ x³/6 along it. Modes of degenerate spaces,
    and the phase of each mode, are as the eigensolver chooses them.

    Raises ValueError if the wave vectors do not add up to a whole one, or the constants are of different
    crystals.
    """
    check_same_crystal(third, second)
    q = np.asarray(q_points, float)
    if q.shape != (3, 3) or np.abs((total := q.sum(axis=0)) - np.rint(total)).max() > SAME_WAVE:
        raise ValueError(
            f"found the wave vectors {q.tolist()}, needed three that add up to whole numbers: other waves do "
            "not couple."
        )
    thz, vectors = second.modes(q)
    (V,) = along(third, q[:, None], vectors[:, None])
    return Couplings(third.cells, q, thz, vectors, V)


@dataclass(frozen=True, eq=False)
class Linewidths:
    """How fast phonons decay into two others or join with one: T temperatures, Q wave vectors, B bands."""

    cells: Cells
    q_points: np.ndarray  # (Q, 3), reciprocal lattice units
    mesh: tuple[int, int, int]  # of the wave vectors that they couple to
    temperatures: np.ndarray  # (T,), K
    smearing: float  # THz
    thz: np.ndarray  # (Q, B)
    gamma: np.ndarray  # (T, Q, B), THz: half the width at half maximum, a mean over degenerate modes

    @property
    def lifetimes(self) -> np.ndarray:
        """1/(4πΓ), (T, Q, B) in ps; infinite for modes without Γ."""
        with np.errstate(divide="ignore"):
            return 1 / (4 * np.pi * self.gamma)


def linewidths(
    third: ThirdOrder,
    second: SecondOrder,
    q_points: np.ndarray,
    mesh: Sequence[int],
    temperatures: Sequence[float] = (300.0,),
    *,
    smearing: float = SMEARING,
) -> Linewidths:
    """Γ by three phonons of the modes at wave vectors (Q, 3), in reciprocal lattice units.

    The sum is over a Γ-centred `mesh` of wave vectors, with a Gaussian of standard deviation `smearing` (THz)
    for the conservation of energy. Both have to be converged. Acoustic modes at Γ do not scatter. Without the
    long-range part of polar crystals.

    Raises ImaginaryModesError if a frequency at one of these or of the others is imaginary, and ValueError if
    constants are of different crystals or numbers make no sense.
    """
    check_same_crystal(third, second)
    T, q_points = np.atleast_1d(np.asarray(temperatures, float)), np.atleast_2d(np.asarray(q_points, float))
    if q_points.ndim != 2 or q_points.shape[1] != 3:
        raise ValueError(f"found q_points of shape {q_points.shape}, needed (Q, 3).")
    if not (np.isfinite(T).all() and (T >= 0).all() and smearing > 0):
        raise ValueError(
            f"found temperatures={T.tolist()} K and smearing={smearing} THz, needed temperatures from 0 on "
            "and a smearing above 0."
        )
    whole = mesh_shape(mesh, third.cells.primitive.pbc)
    grid = np.moveaxis(np.indices(whole), 0, -1).reshape(-1, 3) / whole
    waves = _Waves.of(second, grid)
    waves.check(third.cells)  # all before anything is computed
    thz, vectors = second.modes(q_points)
    gamma = np.zeros((len(T), *thz.shape))
    for k, q in enumerate(q_points):
        first = _Waves(q[None], thz[k][None], vectors[k][None])
        first.check(third.cells)
        for some in parts(third, len(grid)):
            part = _Waves(waves.q_points[some], waves.thz[some], waves.eigenvectors[some])
            last = _Waves.of(second, -q - part.q_points)
            last.check(third.cells)
            gamma[:, k] += _rates(third, (first, part, last), T, smearing)
        for some in degenerate(thz[k]):
            gamma[:, k, some] = gamma[:, k, some].mean(axis=-1, keepdims=True)
    gamma *= THZ_OF_RATES / len(grid)
    return Linewidths(third.cells, q_points, whole, T, smearing, thz, gamma)


def grueneisen_of(
    third: ThirdOrder,
    second: SecondOrder,
    q_points: np.ndarray,
    strain: np.ndarray | None = None,
    relaxed: bool = True,
) -> tuple[np.ndarray, np.ndarray]:
    """Frequencies (THz) and mode Grüneisen parameters (q, 3n), as those of `grueneisen`, from constants.

    They are -∂ln ω/∂s for a strain 1 + s `strain` (default: isotropic, s = ∂ln V). If `relaxed`, the atoms
    follow the strain to where they are at rest; otherwise they keep their place in the cell. Without the
    long-range part of polar crystals.

    Raises ValueError if constants are of different crystals, or displacements meet no resistance.
    """
    check_same_crystal(third, second)
    eps = np.eye(3) / 3 if strain is None else np.asarray(strain, float)
    slope = third.strained(eps, second.internal_motion(eps) if relaxed else None)
    return grueneisen_parameters(second.weighed(q_points), slope.weighed(q_points))


@dataclass(frozen=True, eq=False)
class _Waves:
    """Modes at m wave vectors."""

    q_points: np.ndarray  # (m, 3)
    thz: np.ndarray  # (m, B)
    eigenvectors: np.ndarray  # (m, B, B)

    @classmethod
    def of(cls, second: SecondOrder, q_points: np.ndarray) -> _Waves:
        return cls(q_points, *second.modes(q_points))

    @property
    def acoustic(self) -> np.ndarray:
        """The lowest three modes of whole wave vectors, (m, B)."""
        whole = np.abs(self.q_points - np.rint(self.q_points)).max(axis=1) < SAME_WAVE
        return whole[:, None] & (np.argsort(np.argsort(np.abs(self.thz))) < 3)

    @property
    def inverse(self) -> np.ndarray:
        """1/ν (m, B), and 0 for modes that do not scatter."""
        counted = (self.thz > NO_FREQUENCY) & ~self.acoustic
        return np.divide(1, self.thz, out=np.zeros_like(self.thz), where=counted)

    def check(self, cells: Cells) -> None:
        """Raises ImaginaryModesError if a frequency is imaginary, as `conductivity` does."""
        check_stable(cells.primitive, self.q_points, self.thz, np.ones(len(self.thz), int))


def _rates(third: ThirdOrder, waves: Sequence[_Waves], T: np.ndarray, smearing: float) -> np.ndarray:
    """Σ |V|² / (ν ν′ ν″) {…} (T, B) of one wave vector and m pairs of others; δ in 1/THz."""
    V = along(third, [w.q_points for w in waves], [w.eigenvectors for w in waves])
    own, left, right = (w.inverse for w in waves)
    strength = np.abs(V) ** 2 * own[:, :, None, None] * left[:, None, :, None] * right[:, None, None, :]
    x, y, z = waves[0].thz[:, :, None, None], waves[1].thz[:, None, :, None], waves[2].thz[:, None, None, :]

    def delta(nu: np.ndarray) -> np.ndarray:
        return np.exp(-((nu / smearing) ** 2) / 2) / (np.sqrt(2 * np.pi) * smearing)

    join = delta(x + y - z) - delta(x - y + z)
    numbers = bose(waves[1].thz, T), bose(waves[2].thz, T)
    return rates(strength, delta(x - y - z), join, numbers, np.ones(len(V)))
