"""Thermal expansion from derivatives at one cell: no grid of volumes, and any crystal system.

The free energy of a strained crystal, its atoms where no static force is left, is

    F(ε, T) = E(ε) + Σ f(ω(ε), T),  f = ħω/2 + kT ln(1 - e^{-ħω/kT}),

a mean over wave vectors q, which keep their fractions of the reciprocal lattice, and a sum over modes. Let
ω be small beside the static energy, of order η. To first order in the strain,

    E(ε) = E + (V/2) ε : K : ε,   ω(ε) = ω (1 - γ : ε),   γ_ij = -∂ln ω/∂ε_ij,

with the elastic constants K of relaxed ions (of E + pV, if the crystal is under a pressure). The minimum of F
is at

    ε(T) = K⁻¹ : (1/V) Σ U γ,   α(T) = dε/dT = K⁻¹ : (1/V) Σ C γ,

where U = ħω (n + 1/2) is the energy of a mode and C = ∂U/∂T its heat capacity: E. Grüneisen, Ann. Phys. 344,
257 (1912); for any symmetry T. H. K. Barron and R. W. Munn, Phil. Mag. 15, 85 (1967). That the atoms follow
the static energy changes ε only in second order: N. L. Allan, T. H. K. Barron and J. A. O. Bruno, J. Chem.
Phys. 105, 8300 (1996). Of degenerate modes Σ C γ needs the trace of ∂D/∂ε alone, so no choice of modes.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float

from jaxmlip.crystals.atoms import as_atoms, check_repeats
from jaxmlip.crystals.symmetry import SpaceGroup, keeping_mesh, mesh_shape, reduced_mesh
from jaxmlip.mechanics.elasticity import VOIGT, Elasticity, elasticity_of, engineering, from_voigt
from jaxmlip.phonons.bloch import along_lattice, position_phases
from jaxmlip.phonons.density import STILL, shifts, thermodynamics
from jaxmlip.phonons.imaginary import check_stable
from jaxmlip.phonons.lattice import Lattice
from jaxmlip.phonons.modes import Modes, degenerate, divided
from jaxmlip.units import (
    EV_PER_THZ,
    GPA_PER_EV_PER_A3,
    J_PER_MOL_PER_EV,
    KELVIN_PER_EV,
    THZ_PER_ROOT_EV_PER_A2_U,
)

if TYPE_CHECKING:
    from ase import Atoms
    from pymatgen.core import Structure

    from jaxmlip.potential import Potential

EXACT = "exact at each wave vector"


@dataclass(frozen=True, eq=False)
class Expansion:
    """Thermal expansion and thermodynamics of a crystal at t temperatures, for the cell as given.

    The static cell is the one without vibrations, as given; a mole is one of such cells. Let vibrations be of
    order η beside its energy. Then `strain` and `alpha` are right to first order in η, zero-point strain
    included; `gibbs` to second order, and so is `heat_capacity_p`, which is -T d²G/dT². The isothermal bulk
    modulus needs second derivatives of ω, so that `bulk_modulus` is that of the static cell, right to zeroth
    order at any T; by how much the adiabatic one is larger is right to first order. `quasi_harmonic` goes
    beyond that. Everything is at the pressure of the static cell, usually 0.
    """

    modes: Modes  # on the mesh, at one wave vector of each star
    # (q, 3n, 3, 3): γ_ij = -∂ln ω/∂ε_ij, the mean over the star of q and over degenerate modes; 0 of modes
    # without a frequency
    grueneisen: Float[np.ndarray, "q modes 3 3"]
    stiffness: Float[np.ndarray, "3 3 3 3"]  # K in GPa, atoms following
    bulk_modulus: float  # GPa, of the static cell under uniform pressure: B = 1 / (δ : K⁻¹ : δ)
    temperatures: Float[np.ndarray, " t"]  # K
    free_energy: Float[np.ndarray, " t"]  # eV, vibrational, of the static cell; zero-point energy included
    heat_capacity_v: Float[np.ndarray, " t"]  # J/K/mol, at constant volume, of the static cell
    heat_capacity_slope: Float[np.ndarray, "t 3 3"]  # its ∂/∂ε_ij, J/K/mol
    mean_grueneisen: Float[np.ndarray, "t 3 3"]  # Σ C γ / Σ C; NaN so near 0 K that C is 0
    # GPa: (1/V) ∂F/∂ε of the vibrations, of the static cell; positive in tension
    stress: Float[np.ndarray, "t 3 3"]
    strain: Float[np.ndarray, "t 3 3"]  # of the cell at T from the static cell, zero-point strain included
    zero_point_strain: Float[np.ndarray, "3 3"]  # of it, at 0 K
    alpha: Float[np.ndarray, "t 3 3"]  # 1/K: dε/dT
    left_out: float  # share of modes at 0.01 THz or below, without the three shifts at Γ: not included

    @property
    def beta(self) -> Float[np.ndarray, " t"]:
        """Volumetric thermal expansion, tr α in 1/K."""
        return np.trace(self.alpha, axis1=1, axis2=2)

    @property
    def gamma(self) -> Float[np.ndarray, " t"]:
        """The mean Grüneisen parameter -∂ln ω/∂ln V, weighted by heat capacities: tr γ / 3."""
        return np.trace(self.mean_grueneisen, axis1=1, axis2=2) / 3

    @property
    def pressure(self) -> Float[np.ndarray, " t"]:
        """Vibrational pressure at the static cell, GPa: what the vibrations push outwards with."""
        return -np.trace(self.stress, axis1=1, axis2=2) / 3

    @property
    def volume(self) -> Float[np.ndarray, " t"]:
        """The volume of the cell in Å³, V (1 + tr ε)."""
        return self.modes.primitive.get_volume() * (1 + np.trace(self.strain, axis1=1, axis2=2))

    @property
    def cells(self) -> Float[np.ndarray, "t 3 3"]:
        """Lattice vectors in Å, as rows."""
        return self.modes.primitive.cell.array @ (np.eye(3) + self.strain)

    @property
    def gibbs(self) -> Float[np.ndarray, " t"]:
        """Gibbs energy in eV above that of the static crystal: F - (V/2) σ : K⁻¹ : σ, σ = `stress`."""
        work = np.einsum("tij,tij->t", self.stress, self.strain) / GPA_PER_EV_PER_A3
        return self.free_energy + self.modes.primitive.get_volume() / 2 * work

    @property
    def heat_capacity_p(self) -> Float[np.ndarray, " t"]:
        """Heat capacity at constant pressure, J/K/mol: C_V(ε(T)) + V T α : K : α.

        C_V of the cell at T is that of the static cell and its slope times the strain, which is of the same
        order as C_p - C_V at low temperatures and vanishes at high ones.
        """
        at_strain = self.heat_capacity_v + np.einsum("tij,tij->t", self.heat_capacity_slope, self.strain)
        return at_strain + self._dilation

    @property
    def adiabatic_bulk_modulus(self) -> Float[np.ndarray, " t"]:
        """GPa, under uniform pressure: 1/B_S = 1/B - V T β² / C_p."""
        volume = self.modes.primitive.get_volume() / GPA_PER_EV_PER_A3 * J_PER_MOL_PER_EV  # J/mol/GPa
        some = np.where(self.heat_capacity_p > 0, self.heat_capacity_p, np.inf)  # 0 at 0 K, as β is
        eased = volume * self.temperatures * self.beta**2 / some
        return 1 / (1 / self.bulk_modulus - eased)

    @property
    def _dilation(self) -> np.ndarray:
        """V T α : K : α in J/K/mol."""
        work = np.einsum("tij,ijkl,tkl->t", self.alpha, self.stiffness, self.alpha) / GPA_PER_EV_PER_A3
        return self.modes.primitive.get_volume() * self.temperatures * work * J_PER_MOL_PER_EV


def expansion(
    potential: Potential,
    crystal: Atoms | Structure,
    *,
    mesh: tuple[int, int, int],
    temperatures: Sequence[float],
    **options: Any,
) -> Expansion:
    """The thermal expansion of a crystal at rest, from ∂D/∂ε, exact, and its elastic constants.

    `mesh` is of wave vectors, `temperatures` in K. Strains are those that keep the crystal's symmetry, since
    no other occurs: one in a cubic crystal, six in a triclinic one. Masses of the crystal count. `options`
    are those of `Lattice`: nac, symmetry, symprec, memory_limit, shape. Relax the crystal first; it warns if
    it is not at rest.

    Raises ImaginaryModesError if a mode on the mesh is imaginary; ValueError for a crystal that does not
    repeat in three directions, for temperatures that are not above 0, if a strain meets no resistance, and as
    `Lattice` does.
    """
    checked_temperatures(temperatures)
    check_repeats(as_atoms(crystal), "thermal expansion coefficients")
    return expansion_of(Lattice(potential, crystal, **options), mesh, temperatures)


def expansion_of(lattice: Lattice, mesh: tuple[int, int, int], temperatures: Sequence[float]) -> Expansion:
    """The thermal expansion of the crystal of a `Lattice`; see `expansion`."""
    T, atoms = checked_temperatures(temperatures), lattice.atoms
    check_repeats(atoms, "thermal expansion coefficients")
    shape, group = mesh_shape(mesh), _group(lattice, mesh)
    reduced, strains = reduced_mesh(shape, group), symmetric_strains(group)
    found = elasticity_of(lattice.response, atoms, lattice.symmetry.tolerance if lattice.symmetric else None)
    stiffness = _stiffness(found)
    resisting = _resisting(stiffness, strains, atoms)
    modes, slopes = _strained(lattice, reduced.q_points, strains, found, group, reduced.weights)
    modes = replace(modes, mesh=reduced)
    check_stable(atoms, modes.q_points, modes.frequencies, reduced.weights)
    heat = thermodynamics(modes, T)
    if heat.left_out:
        warnings.warn(
            f"{100 * heat.left_out:.2g} % of the modes of {atoms.get_chemical_formula()} are at {STILL:g} "
            "THz or below, and left out: their contributions have no limit.",
            stacklevel=3,
        )
    counted = ~shifts(modes) & (modes.frequencies > STILL)
    slopes = np.where(counted[:, :, None], slopes, 0.0)
    sums = [_sums(modes, slopes, counted, t) for t in (0.0, *T)]
    volume = atoms.get_volume()
    energy, by_heat, by_slope = (np.array(each) / volume for each in zip(*sums, strict=True))  # (t + 1, s)
    strain, alpha = (np.linalg.solve(resisting, x.T).T for x in (energy, by_heat))
    trace = np.trace(strains, axis1=1, axis2=2)

    def whole(x: np.ndarray) -> np.ndarray:
        return np.einsum("...s,sij->...ij", x, strains)

    capacity = J_PER_MOL_PER_EV * volume
    some = np.where(heat.heat_capacity > 0, heat.heat_capacity, np.nan)
    return Expansion(
        modes=modes,
        grueneisen=whole(_of_sets(modes.frequencies, slopes)),
        stiffness=stiffness * GPA_PER_EV_PER_A3,
        bulk_modulus=float(GPA_PER_EV_PER_A3 / (trace @ np.linalg.solve(resisting, trace))),
        temperatures=T,
        free_energy=heat.free_energy * 1e3 / J_PER_MOL_PER_EV,
        heat_capacity_v=heat.heat_capacity,
        heat_capacity_slope=-whole(by_slope[1:]) * capacity,
        mean_grueneisen=whole(by_heat[1:]) * capacity / some[:, None, None],
        stress=-whole(energy[1:]) * GPA_PER_EV_PER_A3,
        strain=whole(strain[1:]),
        zero_point_strain=whole(strain[0]),
        alpha=whole(alpha[1:]),
        left_out=heat.left_out,
    )


def grueneisen_tensors(
    potential: Potential, crystal: Atoms | Structure, q_points: np.ndarray, **options: Any
) -> tuple[Float[np.ndarray, "q modes"], Float[np.ndarray, "q modes 3 3"]]:
    """Frequencies (THz) and Grüneisen tensors γ_ij = -∂ln ω/∂ε_ij at wave vectors (q, 3), atoms following.

    dln ω = -Σ_ij γ_ij ε_ij for a strain ε; tr γ / 3 is -∂ln ω/∂ln V. Strains split degenerate modes, each in
    its own way: their tensor is the mean of the set. It is 0 if the frequency is nearly zero. `options` are
    those of `Lattice`. Raises as `expansion`, though not for imaginary modes.
    """
    atoms = as_atoms(crystal)
    check_repeats(atoms, "Grüneisen tensors")
    lattice, q_points = Lattice(potential, atoms, **options), along_lattice(atoms, q_points)[1]
    strains, found = symmetric_strains(None), elasticity_of(lattice.response, lattice.atoms)
    modes, slopes = _strained(lattice, q_points, strains, found)
    return modes.frequencies, np.einsum("qms,sij->qmij", _of_sets(modes.frequencies, slopes), strains)


def checked_temperatures(temperatures: Sequence[float]) -> Float[np.ndarray, " t"]:
    """Temperatures in K as an array. Raises ValueError unless there are some, finite and above 0."""
    T = np.atleast_1d(np.asarray(temperatures, float))
    if T.ndim != 1 or not len(T) or not (np.isfinite(T) & (T > 0)).all():
        raise ValueError(
            f"found temperatures {np.asarray(temperatures).tolist()}, needed one or more numbers above 0 (K)."
        )
    return T


def symmetric_strains(group: SpaceGroup | None) -> Float[np.ndarray, "s 3 3"]:
    """The strains that keep the operations of a group: an orthonormal basis, of one to six of them.

    Without a group, those along xx yy zz yz xz xy.
    """
    turns = np.eye(3)[None] if group is None else group.cartesian
    found: list[np.ndarray] = []
    for i, j in VOIGT:
        unit = np.zeros((3, 3))
        unit[i, j] += 0.5
        unit[j, i] += 0.5
        mean = np.einsum("kab,bc,kdc->ad", turns, unit, turns) / len(turns)
        left = mean - sum((np.sum(mean * each) * each for each in found), np.zeros((3, 3)))
        if np.linalg.norm(left) > 1e-3:
            found.append(left / np.linalg.norm(left))
    return np.array(found)


def _group(lattice: Lattice, mesh: tuple[int, int, int]) -> SpaceGroup | None:
    """The operations that take modes on the mesh to modes on it. Warns if the mesh breaks the symmetry."""
    if lattice.group_of_modes is None:
        return None
    shape, every = mesh_shape(mesh), lattice.group_of_modes
    group = keeping_mesh(shape, every)
    kept, of = len(group.rotations), len(every.rotations)
    if kept < of:
        warnings.warn(
            f"the mesh {' x '.join(map(str, shape))} keeps {kept} of the {of} rotations of "
            f"{lattice.atoms.get_chemical_formula()}, so that its thermal expansion lacks the crystal's "
            "symmetry. Take equal numbers along reciprocal vectors that symmetry makes equal.",
            stacklevel=4,
        )
    return group


def _strained(
    lattice: Lattice,
    q_points: np.ndarray,
    strains: np.ndarray,
    elasticity: Elasticity,
    group: SpaceGroup | None = None,
    weights: np.ndarray | None = None,
) -> tuple[Modes, np.ndarray]:
    """The modes at some wave vectors, and -∂ln ω/∂s of each along each strain, (q, 3n, s)."""
    D, slopes = np.zeros(0), []
    for eps in strains:
        motion = elasticity.internal_strain @ engineering(eps)
        D, slope = lattice.strained(q_points, eps, motion, group)
        slopes.append(slope)
    modes = lattice.modes_of(D, q_points, weights, EXACT, "Grüneisen parameters and elastic constants")
    vectors = position_phases(lattice.atoms, q_points)[:, :, None] * modes.eigenvectors  # phases of cells
    along = np.stack([np.sum(vectors.conj() * (slope @ vectors), axis=1).real for slope in slopes], axis=-1)
    thz = modes.frequencies[:, :, None]
    return modes, divided(-along * THZ_PER_ROOT_EV_PER_A2_U**2, 2 * thz * np.abs(thz))


def _of_sets(thz: np.ndarray, slopes: np.ndarray) -> np.ndarray:
    """The slopes (q, modes, s), of degenerate modes the mean of their set."""
    found = slopes.copy()
    for q, row in enumerate(thz):
        for some in degenerate(row):
            found[q, some] = slopes[q, some].mean(axis=0)
    return found


class _Sums(NamedTuple):
    """Σ x γ along each strain (s,), of one cell, at one temperature."""

    energy: np.ndarray  # x = U, eV
    heat: np.ndarray  # x = C, eV/K
    slope: np.ndarray  # x = ∂C/∂ln ω, eV/K


def _sums(modes: Modes, slopes: np.ndarray, counted: np.ndarray, T: float) -> _Sums:
    """The sums over the modes that `counted` (q, 3n) names."""
    weight = np.broadcast_to(modes.weights[:, None], counted.shape)[counted]
    energy, along = modes.frequencies[counted] * EV_PER_THZ, slopes[counted]
    half, none = energy / 2, np.zeros(len(energy))
    if T == 0:
        return _Sums(*((weight * x) @ along for x in (half, none, none)))
    x = energy * KELVIN_PER_EV / T
    n = np.exp(-x) / -np.expm1(-x)  # Bose and Einstein
    heat = x**2 * n * (1 + n) / KELVIN_PER_EV
    return _Sums(*((weight * y) @ along for y in (half + energy * n, heat, heat * (2 - x * (1 + 2 * n)))))


def _stiffness(found: Elasticity) -> Float[np.ndarray, "3 3 3 3"]:
    """K in eV/Å³: ∂σ/∂ε at the stress of the crystal, of which a pressure leaves it symmetric."""
    K = found.stress_strain
    return from_voigt((K + K.T) / 2) / GPA_PER_EV_PER_A3


def _resisting(stiffness: np.ndarray, strains: np.ndarray, atoms: Atoms) -> np.ndarray:
    """K between strains, (s, s). Raises ValueError unless each meets resistance."""
    between = np.einsum("aij,ijkl,bkl->ab", strains, stiffness, strains)
    lowest = np.linalg.eigvalsh(between)[0]
    if lowest <= 1e-9 * np.abs(between).max():
        raise ValueError(
            f"found a strain of {atoms.get_chemical_formula()} with an elastic constant of "
            f"{lowest * GPA_PER_EV_PER_A3:.3g} GPa, needed one above 0: the cell is at no minimum of the "
            "energy, so that it expands without limit. Relax the crystal with this potential first."
        )
    return between
