"""Elastic constants by linear response: second derivatives of the energy by strain, without finite strains.

A crystal responds to a strain twice: its cell deforms, and its atoms move within the cell until no force is
left. Both responses are second derivatives of E(r, ε), so both come from the linear map of
`jaxmlip.derivatives.response`, the change of the gradient (∂E/∂r, ∂E/∂ε) with positions and strain: M. Born
and K. Huang, Dynamical Theory of Crystal Lattices (1954); X. Wu, D. Vanderbilt and D. R. Hamann, Phys. Rev.
B 72, 035105 (2005), whose letters these are.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Float

from jaxmlip.crystals import batches, batching
from jaxmlip.crystals.atoms import as_atoms, check_repeats, repeating
from jaxmlip.crystals.symmetry import (
    Pairs,
    SpaceGroup,
    completed,
    identity,
    needed_columns,
    space_group,
    spanning,
)
from jaxmlip.derivatives.response import Response, SecondDerivatives
from jaxmlip.derivatives.together import Respond, together
from jaxmlip.system.progress import track
from jaxmlip.units import ATOMIC_MASS, GPA_PER_EV_PER_A3

if TYPE_CHECKING:
    from ase import Atoms
    from pymatgen.core import Structure

    from jaxmlip.potential import Potential

VOIGT = ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))  # xx yy zz yz xz xy
LARGE_FORCE = 0.05  # eV/Å; above it, or above this stress, constants are not those of a crystal at rest
LARGE_STRESS = 0.5  # GPa
SHEAR = np.sqrt([1, 1, 1, 2, 2, 2])  # makes strains in Voigt's order orthonormal
GAMMA = np.zeros((1, 3))
MESSAGES = 2_000  # bonds and angles at once in `elastic_tensors`, times the columns of a block


class NotAtRestWarning(UserWarning):
    """A warning of forces or stresses that remain in a crystal whose second derivatives are taken."""


class Moduli(NamedTuple):
    """The two elastic constants (GPa) of a polycrystal without texture."""

    bulk: float
    shear: float

    @property
    def young(self) -> float:
        """Young's modulus 9KG / (3K + G), GPa."""
        return 9 * self.bulk * self.shear / (3 * self.bulk + self.shear)

    @property
    def poisson(self) -> float:
        """Poisson's ratio (3K - 2G) / (6K + 2G)."""
        return (3 * self.bulk - 2 * self.shear) / (6 * self.bulk + 2 * self.shear)


@dataclass(frozen=True, eq=False)
class Elasticity:
    """The elastic constants of a crystal in Cartesian axes; matrices are in Voigt's order xx yy zz yz xz xy.

    `C` and `clamped` are (1/V) ∂²E/∂ε∂ε for a symmetric strain ε that takes r to r (1 + ε). Without stress
    this is the usual elastic tensor. Under a stress there are several (D. C. Wallace,
    Thermodynamics of Crystals, 1972): `stress_strain` gives ∂σ/∂ε, `christoffel` the velocities of waves.
    The moduli are those of `C`.
    """

    C: Float[np.ndarray, "6 6"]  # GPa; atoms follow the strain until no force changes
    clamped: Float[np.ndarray, "6 6"]  # GPa; atoms move with the cell alone
    force_strain: Float[np.ndarray, "atoms 3 6"]  # Λ = -∂²E/∂r∂ε, eV/Å: force per unit of strain
    internal_strain: Float[np.ndarray, "atoms 3 6"]  # H⁺Λ, Å: the motion of atoms, without rigid shifts
    internal_modes: Float[np.ndarray, " modes"]  # eV/Å², ascending: H at Γ without the three rigid shifts
    stress: Float[np.ndarray, "3 3"]  # GPa, of the crystal as it is; positive in tension
    max_force: float  # eV/Å, the largest on an atom as it is
    density: float  # kg/m³

    @property
    def internal_modes_stable(self) -> bool:
        """True if atoms are at a minimum of the energy. If not, `C` is the response at a saddle point."""
        return bool((self.internal_modes > 0).all())

    @property
    def tensor(self) -> Float[np.ndarray, "3 3 3 3"]:
        """C_ijkl in GPa."""
        return from_voigt(self.C)

    @property
    def stress_strain(self) -> Float[np.ndarray, "6 6"]:
        """∂σ/∂ε in GPa, the slopes of a stress-strain diagram: C if there is no stress.

        B_ijkl = C_ijkl + (σ_ik δ_jl + σ_il δ_jk + σ_jk δ_il + σ_jl δ_ik) / 4 - σ_ij δ_kl, the coefficients of
        T. H. K. Barron and M. L. Klein, Proc. Phys. Soc. 85, 523 (1965), written for this C. Symmetric only
        if the stress is a pressure.
        """
        return to_voigt(self.tensor + _stress_terms(self.stress) - np.multiply.outer(self.stress, np.eye(3)))

    @property
    def eigenvalues(self) -> Float[np.ndarray, " 6"]:
        """Kelvin's moduli, ascending, in GPa: the eigenvalues of the map from strain to stress.

        Under a stress, they are those of the symmetric part of `stress_strain`.
        """
        # In an orthonormal basis eigenvalues are the same in all axes.
        B = self.stress_strain * SHEAR[:, None] * SHEAR
        return np.linalg.eigvalsh((B + B.T) / 2)

    @property
    def stable(self) -> bool:
        """Born's criterion: no homogeneous strain lowers the energy, so all `eigenvalues` are positive.

        For each crystal class: F. Mouhat and F.-X. Coudert, Phys. Rev. B 90, 224104 (2014); under stress:
        J. Wang et al., Phys. Rev. B 52, 12627 (1995).
        """
        return bool((self.eigenvalues > 0).all())

    @property
    def resists_everything(self) -> bool:
        """True if C has an inverse: every strain causes a stress."""
        stiffness = np.abs(np.linalg.eigvalsh(self.C))
        return bool(stiffness.min() > 1e-12 * stiffness.max())

    @property
    def compliance(self) -> Float[np.ndarray, "6 6"]:
        """C⁻¹ in 1/GPa, for shear strains 2ε_yz, 2ε_xz, 2ε_xy. Raises ValueError if C is singular."""
        if not self.resists_everything:
            raise ValueError(
                "the elastic tensor is singular: some strain meets no resistance, so compliance and Reuss "
                "moduli do not exist. Check that the atoms are within the cutoff of each other; if the "
                "crystal is intended, use `C` and `voigt`."
            )
        return np.linalg.inv(self.C)

    @property
    def voigt(self) -> Moduli:
        """Moduli for equal strain in all grains, the upper bound."""
        return Moduli(*_averages(self.C))

    @property
    def reuss(self) -> Moduli:
        """Moduli for equal stress in all grains, the lower bound of a stable crystal."""
        S = self.compliance / np.outer([1, 1, 1, 2, 2, 2], [1, 1, 1, 2, 2, 2])  # as a tensor
        bulk, shear = _averages(S)
        return Moduli(1 / (9 * bulk), 1 / (4 * shear))

    @property
    def hill(self) -> Moduli:
        """The mean of both bounds: R. Hill, Proc. Phys. Soc. A 65, 349 (1952)."""
        return Moduli(*np.mean([self.voigt, self.reuss], axis=0).tolist())

    @property
    def anisotropy(self) -> float:
        """The universal index 5 G_V/G_R + K_V/K_R - 6, zero for an isotropic crystal.

        S. I. Ranganathan and M. Ostoja-Starzewski, Phys. Rev. Lett. 101, 055504 (2008).
        """
        voigt, reuss = self.voigt, self.reuss
        return 5 * voigt.shear / reuss.shear + voigt.bulk / reuss.bulk - 6

    def christoffel(self, direction: Sequence[float] | np.ndarray) -> Float[np.ndarray, " 3"]:
        """Velocities (m/s, ascending) of the three long sound waves along a Cartesian `direction`.

        ρ v² are the eigenvalues of Christoffel's matrix; an imaginary v is given as a negative number. The
        stress is accounted for (Wallace's propagation coefficients), residual forces are not.

        Raises ValueError if `direction` is not a nonzero vector of three numbers.
        """
        n = np.asarray(direction, float)
        if n.shape != (3,) or not np.isfinite(n).all() or not n.any():
            raise ValueError(f"found direction={direction!r}, needed three numbers, not all 0.")
        n = n / np.linalg.norm(n)
        # Waves rotate the crystal as well as strain it, which costs no energy only without stress.
        lagrangian = self.tensor - _stress_terms(self.stress)
        matrix = np.einsum("ijkl,j,l->ik", lagrangian, n, n) + n @ self.stress @ n * np.eye(3)
        squares = np.linalg.eigvalsh(matrix) * 1e9 / self.density
        return np.sign(squares) * np.sqrt(np.abs(squares))


def to_voigt(tensor: Float[np.ndarray, "3 3 3 3"]) -> Float[np.ndarray, "6 6"]:
    """C_IJ = C_ijkl, I and J in Voigt's order."""
    i, j = np.transpose(VOIGT)
    return np.asarray(tensor)[i[:, None], j[:, None], i, j]


def from_voigt(C: Float[np.ndarray, "6 6"]) -> Float[np.ndarray, "3 3 3 3"]:
    """C_ijkl = C_IJ."""
    index = np.array([[0, 5, 4], [5, 1, 3], [4, 3, 2]])
    return np.asarray(C)[index[:, :, None, None], index]


def elastic_tensor(
    potential: Potential, crystal: Atoms | Structure, shape: batching.BatchShape | None = None
) -> Elasticity:
    """The elastic constants of `crystal` as it is, by linear response. Use a potential of dtype "float64".

    C = C⁰ - Λᵀ H⁺ Λ / V (Wu, Vanderbilt and Hamann) with the clamped-ion C⁰ = ∂²E/∂ε∂ε / V, the
    coupling Λ = -∂²E/∂r∂ε and the Hessian H = ∂²E/∂r∂r at Γ, all of them exact derivatives. H⁺ is the
    inverse for displacements other than the three rigid shifts. Nothing is moved: relax the crystal first. If
    forces or stresses remain that would change the constants, it warns, and the result holds them.

    A mode of negative curvature is no error: the linear response is then that of a saddle point, and
    `internal_modes_stable` is False. Crystals that are padded to one `shape` share the compiled programs.

    Raises ValueError as `from_atoms` does, and if a displacement other than the rigid shifts meets no
    resistance, so that the linear response does not exist.
    """
    atoms = as_atoms(crystal)
    check_repeats(atoms, "elastic constants")
    found = elasticity_of(Response(potential, atoms, shape=shape), atoms)
    warn_of_residuals(atoms, found.max_force, found.stress, "The elastic constants")
    return found


def elastic_tensors(
    potential: Potential,
    crystals: Iterable[Atoms | Structure],
    shapes: Sequence[batching.BatchShape] = (),
    symmetry: float | None = None,
) -> list[Elasticity | ValueError]:
    """`elastic_tensor` of many crystals, in the same order, under a progress bar.

    Small crystals lie side by side in one graph, where one derivative gives a column of each; see
    `derivatives.together`. For a crystal without a linear response, the result is the error that
    `elastic_tensor` raises. There are no warnings of residual forces and stresses: see `Elasticity.max_force`
    and `stress`.

    With `symmetry` (Å), operations of the space group that hold within it give most derivatives from a few,
    as exactly as they hold. `shapes` are as in `batches.side_by_side`: calls with the same shapes share the
    compiled programs. Raises ValueError, as `Potential.graphs` does, before anything is computed.
    """
    every = repeating(crystals, "elastic constants")
    graphs = potential.graphs(every)

    def task(k: int, respond: Respond) -> Elasticity:
        return elasticity_of(respond(graphs[k]), every[k], symmetry)

    shapes = shapes or batches.shapes_for(graphs, MESSAGES)
    tasks = (partial(task, k) for k in range(len(every)))
    found: list[Elasticity | ValueError] = [ValueError()] * len(every)
    for k, its in track(together(potential, tasks, shapes), "elastic constants", len(every)):
        if isinstance(its, Exception) and not isinstance(its, ValueError):
            raise its
        found[k] = its
    return found


def elasticity_of(response: SecondDerivatives, atoms: Atoms, symmetry: float | None = None) -> Elasticity:
    """The elastic constants of the crystal whose `response` it is, as of `elastic_tensor`, without a warning.

    With `symmetry` (Å), operations of the space group that hold within it give most derivatives from a few.
    Raises as `elastic_tensor`.
    """
    at, n, volume = _expansion(response, atoms, symmetry), len(atoms), atoms.get_volume()
    precision = np.finfo(response.potential.dtype).eps
    modes, answer = internal_response(at.H, at.coupling, precision, atoms)
    clamped = at.bare / volume
    relaxed = clamped - at.coupling.T @ answer / volume
    return Elasticity(
        C=(relaxed + relaxed.T) / 2 * GPA_PER_EV_PER_A3,
        clamped=(clamped + clamped.T) / 2 * GPA_PER_EV_PER_A3,
        force_strain=at.coupling.reshape(n, 3, 6),
        internal_strain=answer.reshape(n, 3, 6),
        internal_modes=modes,
        stress=at.stress * GPA_PER_EV_PER_A3,
        max_force=float(np.linalg.norm(at.forces, axis=1).max()),
        density=float(atoms.get_masses().sum() * ATOMIC_MASS / (volume * 1e-30)),
    )


def internal_strain(
    potential: Potential, crystal: Atoms | Structure, shape: batching.BatchShape | None = None
) -> Float[np.ndarray, "atoms 3 6"]:
    """H⁺Λ in Å: motion of atoms relative to their cell, per unit of ε_xx, … 2ε_yz, 2ε_xz, 2ε_xy.

    It is the shift that keeps ∂E/∂(fractional coordinates) constant, so that atoms at rest stay at rest,
    without rigid shifts. Raises as `elastic_tensor`.
    """
    atoms = as_atoms(crystal)
    return _internal_strain(Response(potential, atoms, shape=shape), atoms)


def internal_motion(
    response: SecondDerivatives, atoms: Atoms, eps: Float[np.ndarray, "3 3"]
) -> Float[np.ndarray, "atoms 3"]:
    """Motion (Å) of the atoms back to rest per unit of the strain `eps`, to first order.

    It is `internal_strain` along `eps`, of the crystal whose `response` it is. Raises as `elastic_tensor`.
    """
    return _internal_strain(response, atoms) @ engineering(eps)


def engineering(eps: Float[np.ndarray, "3 3"]) -> Float[np.ndarray, " 6"]:
    """ε_xx, ε_yy, ε_zz, 2ε_yz, 2ε_xz, 2ε_xy of a strain, of which the symmetric part counts."""
    symmetric = np.add(eps, np.transpose(eps))
    return np.array([symmetric[i, j] / (2 if i == j else 1) for i, j in VOIGT])


def _internal_strain(response: SecondDerivatives, atoms: Atoms) -> np.ndarray:
    check_repeats(atoms, "internal strains")
    at, precision = _expansion(response, atoms), np.finfo(response.potential.dtype).eps
    return internal_response(at.H, at.coupling, precision, atoms)[1].reshape(-1, 3, 6)


class _Expansion(NamedTuple):
    """The energy of a crystal to second order in positions and strain, in float64."""

    forces: Float[np.ndarray, "atoms 3"]  # eV/Å
    stress: Float[np.ndarray, "3 3"]  # eV/Å³
    H: Float[np.ndarray, "coordinates coordinates"]  # eV/Å²
    coupling: Float[np.ndarray, "coordinates 6"]  # Λ, eV/Å
    bare: Float[np.ndarray, "6 6"]  # ∂²E/∂ε∂ε, eV


class _Needed(NamedTuple):
    """Displacements and strains whose derivatives give all others of a crystal by symmetry."""

    group: SpaceGroup
    displacements: Pairs
    strains: list[int]  # of VOIGT


def _needed(atoms: Atoms, symmetry: float | None) -> _Needed:
    group = identity(len(atoms))
    if symmetry is not None:
        with suppress(ValueError):  # spglib finds none
            group = space_group(atoms, symmetry)
    return _Needed(group, needed_columns(GAMMA, group), spanning(_turned_strains(group)))


def _expansion(response: SecondDerivatives, atoms: Atoms, symmetry: float | None = None) -> _Expansion:
    """The expansion of a crystal; with `symmetry` (Å), operations that hold within it give most of it."""
    needed, n = _needed(atoms, symmetry), len(atoms)
    displaced = len(needed.displacements.coordinate)
    strains = [3 * n + 3 * i + j for i, j in (VOIGT[s] for s in needed.strains)]
    forces, slopes = response.strained_columns(np.array([*needed.displacements.coordinate, *strains]))
    columns = forces[:displaced].reshape(-1, 3 * n)
    H = completed(columns, needed.displacements, GAMMA, needed.group)[0].real
    coupling, bare = _completed_strains(forces[displaced:], slopes[displaced:], needed)
    stress = np.asarray(response.stress, float)
    return _Expansion(response.forces.astype(float), stress, (H + H.T) / 2, coupling, bare)


def _completed_strains(forces, slopes, needed: _Needed) -> tuple[np.ndarray, np.ndarray]:
    """Λ (3n, 6) and ∂²E/∂ε∂ε (6, 6) from ∂²E/∂r∂ε (s, n, 3) and ∂²E/∂ε∂ε (s, 3, 3) of the strains needed.

    If a strain ε causes the forces f, the strain W ε Wᵀ causes the forces f rotated by W.
    """
    group, turns = needed.group, _turned_strains(needed.group)
    n, s = forces.shape[1], len(needed.strains)
    scale = SHEAR[needed.strains]
    forces = (forces.reshape(s, 3 * n) * scale[:, None]).T
    slopes = (slopes[:, *np.transpose(VOIGT)] * SHEAR * scale[:, None]).T
    # Translations do not change a strain, so its response is averaged over them.
    shifts = map(group.translation, range(len(group.shifted_atom)))
    forces = sum(shift.turned(GAMMA, forces[None])[0].real for shift in shifts) / len(group.shifted_atom)
    X = np.concatenate([turn[:, needed.strains] for turn in turns], axis=1)
    to = [group.operation(k).turned(GAMMA, forces[None])[0].real for k in range(len(turns))]
    Y = np.concatenate(
        [np.concatenate(to, axis=1), np.concatenate([turn @ slopes for turn in turns], axis=1)]
    )
    all_of_them = np.linalg.solve(X @ X.T, X @ Y.T).T / SHEAR
    return -all_of_them[: 3 * n], all_of_them[3 * n :] / SHEAR[:, None]


def _turned_strains(group: SpaceGroup) -> np.ndarray:
    """ε → W ε Wᵀ for each operation, (operations, 6, 6), where shears are √2 ε: the basis is orthonormal."""
    basis = np.zeros((6, 3, 3))
    for s, (i, j) in enumerate(VOIGT):
        basis[s, i, j] += SHEAR[s] / 2
        basis[s, j, i] += SHEAR[s] / 2
    W = group.cartesian
    return np.einsum("sij,kia,tab,kjb->kst", basis, W, basis, W, optimize=True)


def internal_response(
    H: Float[np.ndarray, "coordinates coordinates"],
    coupling: Float[np.ndarray, "coordinates strains"],
    eps: float,
    atoms: Atoms,
) -> tuple[np.ndarray, np.ndarray]:
    """The eigenvalues of H (eV/Å²) for displacements other than rigid shifts, and H⁺Λ.

    Raises ValueError if one is below √eps of the largest: such displacements have no place of rest.
    """
    n = len(atoms)
    # The rows after the first are orthonormal and add up to 0: motions of n atoms without a rigid shift.
    relative = np.kron(np.linalg.svd(np.ones((1, n)))[2][1:], np.eye(3))
    modes, vectors = np.linalg.eigh(relative @ H @ relative.T)
    vectors = relative.T @ vectors
    free = np.abs(modes) <= np.sqrt(eps) * np.abs(modes).max(initial=0)
    if free.any():
        moved = np.abs(vectors[:, free]).reshape(n, 3, -1).max(axis=(1, 2))
        names = [f"{k} ({atoms.symbols[k]})" for k in np.flatnonzero(moved > 0.1)]
        raise ValueError(
            f"{free.sum()} displacements of {atoms.get_chemical_formula()} besides the three rigid shifts "
            "meet no resistance, so strain does not determine where atoms go. They move the atoms "
            f"{', '.join(names[:8])}{' …' * (len(names) > 8)}. Check that these are bonded to the others; "
            "molecules that are far apart have no elastic constants."
        )
    return modes, vectors @ (vectors.T @ coupling / modes[:, None])


def warn_of_residuals(
    atoms: Atoms, max_force: float, stress: Float[np.ndarray, "3 3"] | None, what: str
) -> None:
    """Warns if forces (eV/Å) or stresses (GPa) remain, so that `what` is not that of a crystal at rest."""
    largest = 0.0 if stress is None else np.abs(stress).max()
    if max_force > LARGE_FORCE or largest > LARGE_STRESS:
        warnings.warn(
            f"{atoms.get_chemical_formula()} is not relaxed: forces up to {max_force:.3g} eV/Å and "
            f"stresses up to {largest:.3g} GPa remain. {what} are second derivatives where the "
            "crystal is, not where it would rest; relax it with this potential first.",
            NotAtRestWarning,
            stacklevel=3,
        )


def _stress_terms(stress) -> np.ndarray:
    """Terms of stress in (1/V) ∂²E/∂ε∂ε beyond the derivative by the Lagrangian strain η = ε + ε²/2.

    It is (1/V) ∂E/∂η : ∂²η/∂ε∂ε, that is the second derivative of tr(σ ε²) / 2.
    """
    term = np.einsum("ik,jl->ijkl", stress, np.eye(3))
    term = term + term.swapaxes(2, 3)
    return (term + term.transpose(1, 0, 2, 3)) / 4


def _averages(C) -> tuple[float, float]:
    """K and G of the isotropic tensor nearest to the tensor with elements C."""
    diagonal, off, shear = np.trace(C[:3, :3]), C[[0, 0, 1], [1, 2, 2]].sum(), np.trace(C[3:, 3:])
    return float((diagonal + 2 * off) / 9), float((diagonal - off + 3 * shear) / 15)
