"""Sums over all wave vectors: densities of states and thermodynamics of harmonic crystals."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from jaxmlip.crystals.symmetry import Mesh
from jaxmlip.mechanics.vibrations import IMAGINARY
from jaxmlip.phonons.bloch import position_phases
from jaxmlip.phonons.modes import Modes
from jaxmlip.units import EV_PER_THZ, J_PER_MOL_PER_EV, KELVIN_PER_EV

STILL = 1e-2  # THz; slower modes are left out of thermodynamics, where their entropy would diverge
TETRAHEDRA = np.array(
    [  # of a cube, about its diagonal from 0 to 7; corners numbered 4x + 2y + z
        [0, 1, 3, 7],
        [0, 1, 5, 7],
        [0, 2, 3, 7],
        [0, 2, 6, 7],
        [0, 4, 5, 7],
        [0, 4, 6, 7],
    ]
)


@dataclass(frozen=True, eq=False)
class Density:
    """Numbers of modes per THz and (given) cell of n atoms; the total integrates to 3n."""

    thz: np.ndarray  # (points,)
    total: np.ndarray  # (points,)
    projected: np.ndarray  # (n, points): each atom's share, adding up to the total
    method: str


def density_of_states(modes: Modes, thz: np.ndarray | None = None, width: float | None = None) -> Density:
    """The density of states on a mesh, and the share of each atom.

    Without a `width` it uses the linear tetrahedron method (Lehmann & Taut 1972; weights of corners from
    MacDonald, Vosko & Coleridge, J. Phys. C 12, 2991 (1979)); with one, each mode is a Gaussian of that
    standard deviation in THz. Raises ValueError if the modes are not on a mesh, or the width is not above 0.
    """
    if width is not None and not 0 < width < np.inf:
        raise ValueError(f"found width={width}, needed a number above 0 (THz).")
    if modes.mesh is None:
        raise ValueError("found modes that are not on a mesh; make them with mesh_modes.")
    f = modes.frequencies
    if thz is None:
        margin = 3 * (width or 0) + 0.02 * np.abs(f).max()
        # The shifts at Γ are at 0 except for rounding; other modes below 0 are part of the density.
        lowest = f.min() - margin if f[~shifts(modes)].min(initial=0) < 0 else 0.0
        thz = np.linspace(lowest, f.max() + margin, 401)
    thz = np.asarray(thz, float)
    share = _shares(modes)  # (q, n, 3n)
    if width is None:
        total, projected = tetrahedra(thz, f, share, modes.mesh)
        how = "linear tetrahedra"
    else:
        weight = np.exp(-0.5 * ((thz[:, None, None] - f) / width) ** 2) / (width * (2 * np.pi) ** 0.5)
        total = np.einsum("pqm,q->p", weight, modes.weights)
        projected = np.einsum("pqm,q,qnm->np", weight, modes.weights, share)
        how = f"Gaussians of {width:g} THz"
    return Density(thz, total, projected, f"{how} on {' x '.join(map(str, modes.mesh.shape))}")


def _shares(modes: Modes) -> np.ndarray:
    """Share of each atom in each mode, (q, n, 3n), averaged over equivalent atoms.

    The mean accounts for the wave vectors that a representative stands for: there the images are exchanged.
    """
    q, size, _ = modes.eigenvectors.shape
    share = (np.abs(modes.eigenvectors) ** 2).reshape(q, size // 3, 3, size).sum(axis=2)
    orbits = modes.mesh.orbits
    if orbits is not None:
        for first in np.unique(orbits):
            some = orbits == first
            share[:, some] = share[:, some].mean(axis=1, keepdims=True)
    return share


def tetrahedra(
    thz: np.ndarray, f: np.ndarray, share: np.ndarray, mesh: Mesh
) -> tuple[np.ndarray, np.ndarray]:
    """Modes per THz at each of `thz` (points,), and of k quantities what lies there: (k, points).

    The modes of the irreducible wave vectors of `mesh` have frequencies `f` (q, B) in THz and quantities
    `share` (q, k, B). Both are taken as linear within tetrahedra.
    """
    corners = mesh.representative[_corners(mesh.shape)]
    # Tetrahedra of the same representatives are alike.
    corners, count = np.unique(np.sort(corners, axis=1), axis=0, return_counts=True)
    weight = np.repeat(count / count.sum(), f.shape[1])
    e = f[corners].transpose(0, 2, 1).reshape(-1, 4)  # (tetrahedra x branches, 4)
    order = np.argsort(e, axis=1)
    e = np.take_along_axis(e, order, axis=1)
    # A tetrahedron narrower than three steps of `thz` would fall between them: its corners are moved apart.
    # If it has no width, they are then one step apart, with which the sum over the steps is exact.
    step = np.diff(thz).max(initial=1e-9)
    narrow = np.maximum(3 * step - (e[:, 3] - e[:, 0]), 1e-9)
    e = e + narrow[:, None] * np.linspace(-0.5, 0.5, 4)
    s = share[corners].transpose(0, 3, 1, 2).reshape(len(e), 4, -1)
    s = np.take_along_axis(s, order[:, :, None], axis=1)
    # Their order depends on rounding, so each represents all four.
    s[narrow > 1e-9] = s[narrow > 1e-9].mean(axis=1, keepdims=True)
    total, projected = np.zeros(len(thz)), np.zeros((s.shape[2], len(thz)))
    for p, E in enumerate(thz):
        touched = np.flatnonzero((e[:, 0] < E) & (e[:, 3] > E))
        g = _corner_weights(E, e[touched]) * weight[touched, None]
        total[p] = g.sum()
        projected[:, p] = np.einsum("tc,tcn->n", g, s[touched])
    return total, projected


def _corner_weights(E: float, e: np.ndarray) -> np.ndarray:
    """∫ δ(E - e(k)) φ_c(k) dk for linear functions φ_c that are 1 at corner c of a tetrahedron, (t, 4)."""
    e1, e2, e3, e4 = e.T

    def f(a, b):
        return (E - b) / (a - b)

    low = 3 * f(e2, e1) * f(e3, e1) / (e4 - e1)
    of_low = np.stack([f(e1, e2) + f(e1, e3) + f(e1, e4), f(e2, e1), f(e3, e1), f(e4, e1)], axis=1) / 3
    high = 3 * f(e2, e4) * f(e3, e4) / (e4 - e1)
    of_high = np.stack([f(e1, e4), f(e2, e4), f(e3, e4), f(e4, e1) + f(e4, e2) + f(e4, e3)], axis=1) / 3
    # Between the middle corners the cut is a quadrangle, two triangles side by side.
    one, two = f(e2, e3) * f(e3, e1), f(e3, e2) * f(e2, e4)
    middle = 3 * (one + two) / (e4 - e1)
    both = np.where(one + two == 0, 1.0, one + two)
    of_middle = (
        np.stack(
            [
                f(e1, e4) + f(e1, e3) * f(e3, e1) * f(e2, e3) / both,
                f(e2, e3) + f(e2, e4) ** 2 * f(e3, e2) / both,
                f(e3, e2) + f(e3, e1) ** 2 * f(e2, e3) / both,
                f(e4, e1) + f(e4, e2) * f(e2, e4) * f(e3, e2) / both,
            ],
            axis=1,
        )
        / 3
    )
    where = (e2 >= E)[:, None], (e3 >= E)[:, None]
    return np.where(
        where[0],
        low[:, None] * of_low,
        np.where(where[1], middle[:, None] * of_middle, high[:, None] * of_high),
    )


def _corners(shape) -> np.ndarray:
    """The points of a mesh at the corners of its tetrahedra, (6 points, 4)."""
    m = np.moveaxis(np.indices(shape), 0, -1).reshape(-1, 1, 3)
    offsets = np.array([[k >> 2 & 1, k >> 1 & 1, k & 1] for k in range(8)])
    cube = np.ravel_multi_index(tuple(np.moveaxis((m + offsets) % shape, -1, 0)), shape)
    return cube[:, TETRAHEDRA].reshape(-1, 4)


@dataclass(frozen=True, eq=False)
class Thermodynamics:
    """Thermodynamics of one mole of the cell that was given to `mesh_modes`, primitive or not."""

    temperature: np.ndarray  # K
    free_energy: np.ndarray  # kJ/mol, zero-point energy included
    entropy: np.ndarray  # J/K/mol
    heat_capacity: np.ndarray  # J/K/mol, at constant volume
    left_out: float  # share of modes at 0.01 THz or below, without the three shifts at Γ: not included
    imaginary: float  # share of modes below -0.1 THz, which are among them


def shifts(modes: Modes) -> np.ndarray:
    """True for the three uniform shifts of the crystal, which are only at Γ: bool, (q, 3n)."""
    q, atoms = modes.q_points, modes.primitive
    found = np.zeros(modes.frequencies.shape, bool)
    root = np.sqrt(atoms.get_masses())
    uniform = np.kron(root[:, None] / np.linalg.norm(root), np.eye(3))  # (3n, 3)
    for k in np.flatnonzero(np.abs(q - np.rint(q)).max(axis=1, initial=0) < 1e-9):
        turn = position_phases(atoms, q[k : k + 1])[0]
        part = (np.abs(uniform.T @ (turn[:, None] * modes.eigenvectors[k])) ** 2).sum(axis=0)
        found[k, np.argsort(part)[-3:]] = True
    return found


def thermodynamics(modes: Modes, temperature: np.ndarray) -> Thermodynamics:
    """Helmholtz free energy, entropy and heat capacity of harmonic modes on a mesh, per mole of its cells.

    Modes at 0.01 THz or below are left out: `left_out` of the result is their share, without the three shifts
    of the crystal.
    """
    T = np.atleast_1d(np.asarray(temperature, float))
    if (T < 0).any():
        raise ValueError(f"found a temperature of {T.min()} K, needed 0 or more.")
    f, weight = modes.frequencies, np.broadcast_to(modes.weights[:, None], modes.frequencies.shape)
    shift = shifts(modes)
    left_out, imaginary = (
        float(weight[~shift & slow].sum() / f.shape[1]) for slow in (f <= STILL, f < IMAGINARY)
    )
    part = ~shift & (f > STILL)
    weight, energy = weight[part], f[part] * EV_PER_THZ
    F, S, C = np.zeros((3, len(T)))
    for k, t in enumerate(T / KELVIN_PER_EV):
        F[k] = weight @ energy / 2
        if t > 0:
            x = energy / t
            n = np.exp(-x) / -np.expm1(-x)  # Bose and Einstein
            F[k] += t * (weight @ np.log(-np.expm1(-x)))
            S[k] = weight @ (x * n - np.log(-np.expm1(-x)))
            C[k] = weight @ (x**2 * n * (1 + n))
    molar = J_PER_MOL_PER_EV
    S, C = S * molar / KELVIN_PER_EV, C * molar / KELVIN_PER_EV
    return Thermodynamics(T, F * molar / 1e3, S, C, left_out, imaginary)
