"""The long-range part that potentials of finite range lack: Gonze & Lee, Phys. Rev. B 55, 10355 (1997).

In a polar crystal a wave of long wavelength carries an electric field, which splits longitudinal from
transverse optical modes however small q is. A potential that sees some Å around each atom gives a D(q) that
is smooth there. We add the interaction of dipoles Z u in a medium of dielectric tensor ε,

    C(q)_{ia,jb} = 4π e²/V Σ_G (K Z_i)_a (K Z_j)_b / (K·ε·K) e^{-K·ε·K / 4Λ²} e^{-iK·(x_j - x_i)},  K = G + q,

minus its own interpolation from a mesh of wave vectors, which a smooth D(q) already contains. On the mesh
only the limit q -> 0 changes, so the mesh sets the wavelength up to which the potential is trusted.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from ase import Atoms
from ase.geometry import minkowski_reduce

from jaxmlip.crystals.atoms import check_repeats
from jaxmlip.crystals.symmetry import SpaceGroup
from jaxmlip.phonons.commensurate import fourier, fourier_slopes
from jaxmlip.phonons.supercell import ForceConstants
from jaxmlip.units import COULOMB

DECAY = 1e-10  # size of the terms of the sum that are left out
NOISE = 0.1  # e; charges, or a dielectric tensor, with a larger asymmetry belong to another crystal


@dataclass(frozen=True, eq=False)
class NAC:
    """Data for the long-range part of a crystal's dynamical matrices, from DFT or experiment."""

    born: np.ndarray  # (n, 3, 3): Z[i, x, a] = dP_x/du_a V, in e
    dielectric: np.ndarray  # (3, 3), electronic, relative
    mesh: tuple[int, int, int] | None = (
        None  # None: the smallest whose wave vectors are at least 1/12 Å apart
    )

    def check(self, atoms: Atoms) -> NAC:
        """Returns itself, with a mesh. Raises ValueError if it belongs to another cell."""
        check_repeats(atoms, "dipole corrections")
        charges, dielectric = np.asarray(self.born, float), np.asarray(self.dielectric, float)
        if charges.shape != (len(atoms), 3, 3) or dielectric.shape != (3, 3):
            raise ValueError(
                f"found Born charges of shape {charges.shape} and a dielectric tensor of shape "
                f"{dielectric.shape}, needed ({len(atoms)}, 3, 3), one tensor for each atom of "
                f"{atoms.get_chemical_formula()}, and (3, 3). They belong to another cell: give those of the "
                "cell whose phonons are computed, in its order of atoms."
            )
        if not (np.isfinite(charges).all() and np.linalg.eigvalsh((dielectric + dielectric.T) / 2).min() > 0):
            raise ValueError("Born charges must be finite, and the dielectric tensor positive definite.")
        lengths = np.linalg.norm(atoms.cell.array, axis=1)
        mesh = self.mesh or tuple(np.ceil(12.0 / lengths - 1e-9).astype(int).tolist())
        # The sum over all charges vanishes in a crystal; the residue from DFT would distort acoustic
        # branches.
        return NAC(charges - charges.mean(axis=0), dielectric, mesh)

    def asymmetry(self, group: SpaceGroup) -> float:
        """Largest deviation of charges (e) or dielectric tensor from symmetry under the operations."""
        born = np.asarray(self.born)
        apart = [np.abs(born - born[group.copies]).max()]
        for W, atom in zip(group.cartesian, group.atom, strict=True):
            apart.append(np.abs(W @ born @ W.T - born[atom]).max())
            apart.append(np.abs(W @ self.dielectric @ W.T - self.dielectric).max())
        return float(max(apart))


def long_range(
    nac: NAC, atoms: Atoms, q_points: np.ndarray, directions: np.ndarray | None = None
) -> np.ndarray:
    """The long-range part of D(q), (q, 3N, 3N) in eV/Å², with the phases of cells.

    At q = 0 it is the limit along the row of `directions` (q, 3), in reciprocal lattice units; without them
    no limit is taken.
    """
    p = nac.check(atoms)
    sums = DipoleSums(p, atoms)
    smooth = fourier(_interpolation(p, atoms, sums.at), q_points)
    return _square(sums.at(q_points, directions) - smooth)


def long_range_slopes(nac: NAC, atoms: Atoms, q_points: np.ndarray) -> np.ndarray:
    """The derivatives of `long_range` by the three components of q, (q, 3, 3N, 3N) in eV/Å².

    At q = 0 they are those of the part that has no limit there, as for `long_range` without directions.
    """
    p = nac.check(atoms)
    sums = DipoleSums(p, atoms)
    smooth = fourier_slopes(_interpolation(p, atoms, sums.at), q_points)
    found = [sums.changed(q_points, sums.by_q(axis)) - smooth[axis] for axis in range(3)]
    return np.stack([_square(x) for x in found], axis=1)


def long_range_strained(
    nac: NAC, atoms: Atoms, q_points: np.ndarray, eps: np.ndarray, along: np.ndarray
) -> np.ndarray:
    """The derivative of `long_range` by s, (q, 3N, 3N), for a crystal strained by 1 + s·`eps`.

    The atoms also move by s·`along` (N, 3), in Å. Charges and dielectric tensor are constant, and so is the
    choice of equally near images.
    """
    p = nac.check(atoms)
    sums = DipoleSums(p, atoms)
    change = sums.by_strain(eps, along)

    def changed(q_points):
        return sums.changed(q_points, change)

    return _square(changed(q_points) - fourier(_interpolation(p, atoms, changed), q_points))


def _interpolation(p: NAC, atoms: Atoms, sums: Callable[[np.ndarray], np.ndarray]) -> ForceConstants:
    """The force constants whose Fourier sums repeat `sums` at the mesh."""
    mesh = np.moveaxis(np.indices(p.mesh), 0, -1).reshape(-1, 3) / p.mesh
    on_mesh = sums(np.where(mesh > 0.5, mesh - 1, mesh))
    n = len(atoms)
    phi = np.fft.fftn(on_mesh.reshape(*p.mesh, n, 3, n, 3), axes=(0, 1, 2), norm="forward").real
    return ForceConstants(atoms, phi)


def _square(D: np.ndarray) -> np.ndarray:
    return D.reshape(len(D), 3 * D.shape[1], -1)


class Change(NamedTuple):
    """First-order changes of the terms of the sum."""

    wave: Callable[[np.ndarray], np.ndarray]  # of K (k, 3), the change of K
    phase: Callable[[np.ndarray], np.ndarray]  # of K, the change of K·x_i, (k, n) or alike
    volume: float = 0.0  # d ln V; Λ scales with the inverse length of the cell


class DipoleSums:
    """C(q), (q, n, 3, n, 3) in eV/Å², and its derivatives."""

    def __init__(self, p: NAC, atoms: Atoms):
        self.p, self.atoms = p, atoms
        self.reciprocal = 2 * np.pi * np.linalg.inv(atoms.cell.array).T  # rows
        lengths = np.linalg.norm(atoms.cell.array, axis=1)
        # Beyond the mesh's supercell the smooth part must be gone: e^{-Λ² r²/ε} there. The given vectors need
        # not be the shortest of its lattice.
        scale = np.linalg.eigvalsh((p.dielectric + p.dielectric.T) / 2)
        repeat, _ = minkowski_reduce(np.array(p.mesh)[:, None] * atoms.cell.array)
        self.Λ = 5.0 * scale.max() ** 0.5 / np.linalg.norm(repeat, axis=1).min()
        longest = (-4 * self.Λ**2 * np.log(DECAY) / scale.min()) ** 0.5
        reach = np.ceil(longest / (2 * np.pi) * lengths).astype(int) + 1
        G = np.array(list(itertools.product(*(range(-k, k + 1) for k in reach)))) @ self.reciprocal
        most = longest + np.linalg.norm(self.reciprocal, axis=1).sum()
        self.G = G[np.linalg.norm(G, axis=1) < most]
        self.prefactor = 4 * np.pi * COULOMB / atoms.cell.volume

    def waves(self, q: np.ndarray) -> np.ndarray:
        """K = G + q in 1/Å, without K = 0."""
        K = self.G + q @ self.reciprocal
        return K if np.any(q) else K[K.any(axis=1)]

    def weights(self, K: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """K·ε·K, and e^{-K·ε·K / 4Λ²} / K·ε·K."""
        stretch = np.einsum("kx,xy,ky->k", K, self.p.dielectric, K)
        return stretch, np.exp(-stretch / (4 * self.Λ**2)) / stretch

    def charges(self, K: np.ndarray) -> np.ndarray:
        return np.einsum("kx,ixa->kia", K, self.p.born)

    def at(self, q_points: np.ndarray, directions: np.ndarray | None = None) -> np.ndarray:
        n = len(self.atoms)
        D = np.zeros((len(q_points), n, 3, n, 3), complex)
        for k, q in enumerate(q_points):
            K = self.waves(q)
            terms = self.charges(K) * np.exp(1j * K @ self.atoms.positions.T)[:, :, None]
            D[k] = np.einsum("k,kia,kjb->iajb", self.weights(K)[1], terms, terms.conj())
            if not np.any(q) and directions is not None and np.any(directions[k]):
                # The limit along a direction has no phase: it is the term G = 0 at q = 0.
                unit = directions[k] @ self.reciprocal
                charge = self.charges(unit[None])[0]
                D[k] += np.multiply.outer(charge, charge) / (unit @ self.p.dielectric @ unit)
        return self.prefactor * D

    def changed(self, q_points: np.ndarray, change: Change) -> np.ndarray:
        """The derivative of `at`."""
        n = len(self.atoms)
        D = np.zeros((len(q_points), n, 3, n, 3), complex)
        for k, q in enumerate(q_points):
            K = self.waves(q)
            moved = change.wave(K)
            stretch, weight = self.weights(K)
            symmetric = (self.p.dielectric + self.p.dielectric.T) / 2
            stretched = 2 * np.einsum("kx,xy,ky->k", K, symmetric, moved)
            gaussian = -(stretched + 2 / 3 * change.volume * stretch) / (4 * self.Λ**2)
            slope = weight * (gaussian - stretched / stretch - change.volume)
            phase = np.exp(1j * K @ self.atoms.positions.T)[:, :, None]
            terms = self.charges(K) * phase
            turned = self.charges(moved) * phase + 1j * change.phase(K)[:, :, None] * terms
            half = np.einsum("k,kia,kjb->iajb", weight, turned, terms.conj())
            D[k] = np.einsum("k,kia,kjb->iajb", slope, terms, terms.conj())
            D[k] += half + half.transpose(2, 3, 0, 1).conj()
        return self.prefactor * D

    def by_q(self, axis: int) -> Change:
        step = self.reciprocal[axis]
        turned = (self.atoms.positions @ step)[None]
        return Change(lambda K: np.broadcast_to(step, K.shape), lambda K: turned)

    def by_strain(self, eps: np.ndarray, along: np.ndarray) -> Change:
        # Fractional coordinates, and with them K·x, change by `along` alone.
        eps = (eps + eps.T) / 2
        return Change(lambda K: -K @ eps, lambda K: K @ along.T, np.trace(eps))
