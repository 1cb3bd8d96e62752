"""The long-range part that potentials of finite range lack: Gonze & Lee, Phys. Rev. B 55, 10355 (1997).

In a polar crystal a wave of long wavelength carries an electric field, which splits longitudinal from
transverse optical modes however small q is. A potential that sees some Å around each atom gives a D(q) that
is smooth there. Added is the interaction of dipoles Z u in a medium of dielectric tensor ε,

    C(q)_{ia,jb} = 4π e²/V Σ_G (K Z_i)_a (K Z_j)_b / (K·ε·K) e^{-K·ε·K / 4Λ²} e^{-iK·(x_j - x_i)},  K = G + q,

less its own interpolation from a mesh of wave vectors: what a smooth D(q) holds already. At the points of the
mesh nothing changes but the limit q -> 0, so the mesh says up to which wavelength the potential is trusted.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from ase import Atoms

from jaxmlip.phonons.commensurate import fourier
from jaxmlip.phonons.supercell import ForceConstants
from jaxmlip.units import COULOMB

DECAY = 1e-10  # of the terms of the sum that are left out


@dataclass(frozen=True, eq=False)
class NAC:
    """What the long-range part of a crystal's dynamical matrices needs: of DFT or experiment."""

    born: np.ndarray  # (n, 3, 3): Z[i, x, a] = dP_x/du_a V, in e
    dielectric: np.ndarray  # (3, 3), electronic, relative
    mesh: tuple[int, int, int] | None = (
        None  # None: the smallest whose wave vectors are at least 1/12 Å apart
    )

    def check(self, atoms: Atoms) -> NAC:
        """Itself, with a mesh. Raises ValueError where it belongs to another cell."""
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
        # The sum over all charges vanishes in a crystal; what DFT leaves of it would bend acoustic branches.
        return NAC(charges - charges.mean(axis=0), dielectric, mesh)


def long_range(
    nac: NAC, atoms: Atoms, q_points: np.ndarray, directions: np.ndarray | None = None
) -> np.ndarray:
    """What to add to D(q), (q, 3N, 3N) in eV/Å², with the phases of cells.

    At q = 0 the limit along its row of `directions` (q, 3) is taken, in reciprocal lattice units, or, without
    them, none.
    """
    p = nac.check(atoms)
    mesh = np.moveaxis(np.indices(p.mesh), 0, -1).reshape(-1, 3) / p.mesh
    n = len(atoms)
    on_mesh = _dipoles(p, atoms, np.where(mesh > 0.5, mesh - 1, mesh), None)
    phi = np.fft.fftn(on_mesh.reshape(*p.mesh, n, 3, n, 3), axes=(0, 1, 2), norm="forward").real
    smooth = fourier(ForceConstants(atoms, phi), q_points).reshape(-1, 3 * n, 3 * n)
    return _dipoles(p, atoms, q_points, directions) - smooth


def _dipoles(p: NAC, atoms: Atoms, q_points, directions) -> np.ndarray:
    reciprocal = 2 * np.pi * np.linalg.inv(atoms.cell.array).T  # rows
    # Beyond the mesh's supercell the smooth part must be gone: e^{-Λ² r²/ε} there.
    width = np.linalg.norm(np.array(p.mesh)[:, None] * atoms.cell.array, axis=1).min()
    scale = np.linalg.eigvalsh((p.dielectric + p.dielectric.T) / 2)
    Λ = 5.0 * scale.max() ** 0.5 / width
    longest = (-4 * Λ**2 * np.log(DECAY) / scale.min()) ** 0.5
    reach = np.ceil(longest / (2 * np.pi) * np.linalg.norm(atoms.cell.array, axis=1)).astype(int) + 1
    G = np.array(list(itertools.product(*(range(-k, k + 1) for k in reach)))) @ reciprocal
    G = G[np.linalg.norm(G, axis=1) < longest + np.linalg.norm(reciprocal, axis=1).sum()]
    n, r = len(atoms), atoms.positions
    D = np.zeros((len(q_points), n, 3, n, 3), complex)
    for k, q in enumerate(q_points):
        K = G + q @ reciprocal
        if not np.any(q):
            origin = np.flatnonzero(~K.any(axis=1))
            K = np.delete(K, origin, axis=0)
        stretch = np.einsum("kx,xy,ky->k", K, p.dielectric, K)
        weight = np.exp(-stretch / (4 * Λ**2)) / stretch
        if not np.any(q) and directions is not None and np.any(directions[k]):
            unit = directions[k] @ reciprocal
            K, weight = np.concatenate([K, unit[None]]), np.append(weight, 1 / (unit @ p.dielectric @ unit))
        charge = np.einsum("kx,ixa->kia", K, p.born)
        # The limit along a direction has no phase: it is the term G = 0 at q = 0.
        limit = np.arange(len(K)) >= len(stretch)
        phase = np.where(limit[:, None], 1, np.exp(1j * K @ r.T))
        terms = charge * phase[:, :, None]
        D[k] = np.einsum("k,kia,kjb->iajb", weight, terms, terms.conj())
    return (4 * np.pi * COULOMB / atoms.cell.volume * D).reshape(-1, 3 * n, 3 * n)
