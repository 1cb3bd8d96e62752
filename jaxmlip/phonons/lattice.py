"""Phonons of one crystal in one potential: results are kept for later use.

D(q) is exact when it is computed directly. For many wave vectors, a Fourier sum of force constants from a
mesh of exact ones costs less; see `sums`.
"""

from __future__ import annotations

import warnings
import weakref
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from ase import Atoms

from jaxmlip.crystals import batching
from jaxmlip.crystals.atoms import as_atoms, check_crystal, in_box
from jaxmlip.crystals.symmetry import (
    NEARLY,
    SpaceGroup,
    Symmetry,
    identity,
    keeping_mesh,
    mesh_shape,
    reduced_mesh,
    unfold,
)
from jaxmlip.crystals.symmetry import TOLERANCE as SYMPREC
from jaxmlip.derivatives.response import Response, Room, SecondDerivatives
from jaxmlip.derivatives.together import Respond
from jaxmlip.mechanics.elasticity import internal_motion, warn_of_residuals
from jaxmlip.phonons import bloch
from jaxmlip.phonons.modes import (
    Bands,
    Modes,
    band_path,
    divided,
    grueneisen_parameters,
    hermitian,
    split,
)
from jaxmlip.phonons.nac import NAC, NOISE, long_range, long_range_slopes, long_range_strained
from jaxmlip.phonons.sums import Sums
from jaxmlip.phonons.supercell import ForceConstants
from jaxmlip.units import GPA_PER_EV_PER_A3, THZ_PER_ROOT_EV_PER_A2_U, in_thz

if TYPE_CHECKING:
    from pymatgen.core import Structure

    from jaxmlip.potential import Potential

Method = Literal["auto", "exact", "fourier"]
TOLERANCE = 1e-3  # THz: largest error of frequencies from a sum of force constants


class Lattice:
    """Phonons of a crystal: matrices, modes, bands and velocities, which share intermediate results.

    `nac` adds the long-range part of polar crystals (see `long_range`). `method` is "exact", each D(q)
    computed directly; or "fourier", a sum from a mesh that is refined until it repeats exact frequencies
    within `tolerance` THz (below 0.1 THz, see `lines.apart`); or "auto", whichever is cheaper. The space
    group, found within `symprec` (Å), saves work in each; without `symmetry` it is not used. `memory_limit`
    and `shape` go to `Response`; `respond` computes together with other crystals, see `lattices`. Warns if
    the crystal is several primitive cells, carries magnetic moments, or nearly has more symmetry, and with
    the first modes if it is not at rest.

    Raises as `Response` does, and ValueError if `nac` belongs to another cell.
    """

    def __init__(
        self,
        potential: Potential,
        crystal: Atoms | Structure | Symmetry,
        *,
        nac: NAC | None = None,
        method: Method = "auto",
        tolerance: float = TOLERANCE,
        symmetry: bool = True,
        symprec: float = SYMPREC,
        memory_limit: float | None = None,
        shape: Room | None = None,
        respond: Respond | None = None,
    ):
        if method not in get_args(Method):
            raise ValueError(f"found method={method!r}, needed 'auto', 'exact' or 'fourier'.")
        if not tolerance > 0:
            raise ValueError(f"found tolerance={tolerance}, needed a number above 0 (THz).")
        given = as_atoms(crystal.atoms if isinstance(crystal, Symmetry) else crystal)
        check_crystal(given)
        boxed = in_box(given)
        known = isinstance(crystal, Symmetry) and np.allclose(boxed.cell, crystal.atoms.cell)
        self.symmetry = crystal if known else Symmetry(boxed.copy(), symprec)
        self.atoms = self.symmetry.atoms
        self.symmetric, self.method, self.tolerance = symmetry, method, tolerance
        graph = potential.graph(self.atoms)
        if shape is None and memory_limit is None:
            shape = batching.close_shape_for  # it is used for much work
        self.response: SecondDerivatives = (
            respond(graph, memory_limit)
            if respond is not None
            else Response(potential, graph, memory_limit=memory_limit, shape=shape)
        )
        self.nac = None if nac is None else nac.check(self.atoms)
        self.asymmetry = 0.0  # eV/Å²: the largest |D - D†| computed so far
        self._kept: dict[tuple, np.ndarray] = {}
        self._constants: dict[tuple, ForceConstants] = {}
        own = weakref.proxy(self)  # no reference circle: results are freed with this object
        self._sums = Sums(
            self.atoms,
            self.group if symmetry else None,
            tolerance,
            always=method == "fourier",
            exact=lambda q_points: own._remembered(q_points),
            constants=lambda mesh: own.constants(mesh),
            frequencies=lambda D: own._frequencies(D),
        )
        self._told = False  # whether it has warned that the crystal is not at rest
        self._warn()

    @cached_property
    def group(self) -> SpaceGroup:
        """The operations that save work on D(q)."""
        return self.symmetry.group if self.symmetric else identity(len(self.atoms))

    def exact(self, q_points: np.ndarray) -> np.ndarray:
        """D(q), complex (q, 3n, 3n) in eV/Å² with the phases of cells, each computed directly."""
        D = bloch.matrices(self.response, q_points, self.group if self.symmetric else None)
        self.asymmetry = max(self.asymmetry, bloch.asymmetry(D))
        return D

    def constants(self, mesh: tuple[int, int, int]) -> ForceConstants:
        """Force constants of the crystal repeated `mesh` times, from D(q) at the wave vectors that fit it.

        They equal `force_constants`, without the supercell, and with symmetry need few wave vectors.
        """
        mesh = mesh_shape(mesh, self.atoms.pbc)
        if mesh not in self._constants:
            group, n = self.group if self.symmetric else None, len(self.atoms)
            reduced = reduced_mesh(mesh, group)
            full = unfold(self._remembered(reduced.q_points), reduced, group).reshape(*mesh, n, 3, n, 3)
            phi = np.fft.fftn(full, axes=(0, 1, 2), norm="forward").real
            self._constants[mesh] = ForceConstants(self.atoms, phi)
        return self._constants[mesh]

    def matrices(self, q_points: np.ndarray) -> tuple[np.ndarray, str]:
        """D(q) as of `exact`, within the tolerance, and a description of how it was found."""
        found = None if self.method == "exact" else self._sums.matrices(q_points)
        return found or (self.exact(q_points), "exact at each wave vector")

    def modes(
        self, q_points: np.ndarray, weights: np.ndarray | None = None, directions: np.ndarray | None = None
    ) -> Modes:
        """The modes at wave vectors (q, 3), in reciprocal lattice units.

        At q = 0 the long-range part is its limit along the rows of `directions` (q, 3).
        """
        q_points = bloch.along_lattice(self.atoms, q_points)[1]
        D, method = self.matrices(q_points)
        if self.nac is not None:
            D = D + long_range(self.nac, self.atoms, q_points, directions)
        return self.modes_of(self._weighed(D), q_points, weights, method)

    def modes_of(
        self, D: np.ndarray, q_points: np.ndarray, weights: np.ndarray | None, method: str, what: str = ""
    ) -> Modes:
        """The modes of given D(q), Hermitian (q, 3n, 3n) in eV/(Å² u), phases of cells; see `modes`.

        `what` is computed from them, for the warning of a crystal that is not at rest.
        """
        squares, vectors = np.linalg.eigh(D if D.imag.any() else D.real)  # at Γ real, and four times as fast
        turn = bloch.position_phases(self.atoms, q_points).conj()
        even = np.full(len(q_points), 1 / max(1, len(q_points)))
        if not self._told:
            self._told = True
            warn_of_residuals(self.atoms, self.max_force, self.stress, what or "The frequencies")
        return Modes(
            primitive=self.atoms,
            q_points=q_points,
            weights=even if weights is None else np.asarray(weights) / np.sum(weights),
            frequencies=in_thz(squares),
            eigenvectors=turn[:, :, None] * vectors,
            max_force=self.max_force,
            stress=self.stress,
            asymmetry=self.asymmetry,
            method=method,
            nac=self.nac,
        )

    def mesh(self, mesh: tuple[int, int, int]) -> Modes:
        """The modes on a Γ-centred mesh; with symmetry, at one weighted wave vector of each star.

        Stars are those of the operations that also keep the masses.
        """
        mesh = mesh_shape(mesh, self.atoms.pbc)
        reduced = reduced_mesh(mesh, self.group_of_modes)
        return replace(self.modes(reduced.q_points, reduced.weights), mesh=reduced)

    @cached_property
    def group_of_modes(self) -> SpaceGroup | None:
        """The operations that take modes to modes; None if none are used.

        D(q) has the symmetry of the elements, its eigenvalues that of the masses as well, and its long-range
        part that of the charges and of their mesh.
        """
        group = self.symmetry.group_of_masses if self.symmetric else None
        if group is not None and self.nac is not None:
            group = None if self.nac.asymmetry(group) > NOISE else keeping_mesh(self.nac.mesh, group)
        return group

    def bands(self, path: str | None = None, points: int = 101) -> Bands:
        """The modes along a path between special points; see `band_modes`."""
        way = band_path(self.atoms, path, points)
        return Bands(self.modes(way.q_points, directions=way.directions), way.distance, way.segments)

    def velocities(self, q_points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Frequencies and group velocities; see `group_velocities`."""
        q_points = bloch.along_lattice(self.atoms, q_points)[1]
        D, slopes = bloch.slopes(self.response, q_points)
        if self.nac is not None:
            D = D + long_range(self.nac, self.atoms, q_points)
            slopes = slopes + long_range_slopes(self.nac, self.atoms, q_points)
        squares, vectors = np.linalg.eigh(self._weighed(D))
        thz = in_thz(squares)
        # ∂/∂k = Σ ∂/∂q_α a_α / 2π, for ω in 2π THz.
        slopes = np.einsum("qdij,dx->qxij", slopes / self._root_masses, self.atoms.cell.array)
        slopes = slopes * THZ_PER_ROOT_EV_PER_A2_U**2
        generic = np.array([0.61, 0.33, 0.72])
        vectors = split(thz, vectors, np.einsum("x,qxij->qij", generic, slopes))
        along = np.einsum("qim,qxij,qjm->qmx", vectors.conj(), slopes, vectors).real
        # Signed frequencies: their signed squares are ω².
        return thz, divided(along, 2 * np.abs(thz)[:, :, None])

    def grueneisen(
        self, q_points: np.ndarray, strain: np.ndarray | None = None, relaxed: bool = True
    ) -> tuple[np.ndarray, np.ndarray]:
        """Frequencies and mode Grüneisen parameters; see `grueneisen`."""
        q_points = bloch.along_lattice(self.atoms, q_points)[1]
        eps = np.eye(3) / 3 if strain is None else np.asarray(strain, float)
        if eps.shape != (3, 3):
            raise ValueError(f"found a strain of shape {eps.shape}, needed (3, 3).")
        still = np.zeros((len(self.atoms), 3))
        along = internal_motion(self.response, self.atoms, eps) if relaxed else still
        return grueneisen_parameters(*self.strained(q_points, eps, along))

    def strained(
        self, q_points: np.ndarray, eps: np.ndarray, along: np.ndarray, group: SpaceGroup | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """D(q), Hermitian, and ∂D/∂s of a strain 1 + s·`eps`, (q, 3n, 3n) in eV/(Å² u), phases of cells.

        The atoms also move by s·`along` (n, 3), in Å; q is constant in reciprocal lattice units. A `group`
        that strain and motion keep saves work.
        """
        D, slope = bloch.strained(self.response, q_points, eps, along, group)
        self.asymmetry = max(self.asymmetry, bloch.asymmetry(D))
        if self.nac is not None:
            D = D + long_range(self.nac, self.atoms, q_points)
            slope = slope + long_range_strained(self.nac, self.atoms, q_points, eps, along)
        return self._weighed(D), slope / self._root_masses

    @property
    def max_force(self) -> float:
        """The largest force on an atom in eV/Å, which is 0 in a crystal at rest."""
        return float(np.linalg.norm(self.response.forces, axis=1).max())

    @property
    def stress(self) -> np.ndarray | None:
        """Stress (3, 3) in GPa, positive in tension; None for a molecule."""
        stress = self.response.stress
        return None if stress is None else np.asarray(stress, float) * GPA_PER_EV_PER_A3

    @cached_property
    def _root_masses(self) -> np.ndarray:
        """√(m_i m_j), (3n, 3n) in u."""
        root = np.sqrt(np.repeat(self.atoms.get_masses(), 3))
        return root[:, None] * root

    def _weighed(self, D: np.ndarray) -> np.ndarray:
        return hermitian(D / self._root_masses)

    def _frequencies(self, D: np.ndarray) -> np.ndarray:
        return in_thz(np.linalg.eigvalsh(self._weighed(D)))

    def _remembered(self, q_points: np.ndarray) -> np.ndarray:
        """D(q) as of `exact`, cached so that none is computed twice."""
        keys = [tuple(np.rint(q * 1e9).astype(int).tolist()) for q in q_points]
        new = {key: k for k, key in enumerate(keys) if key not in self._kept}
        if new:
            self._kept |= zip(new, self.exact(q_points[list(new.values())]), strict=True)
        n = 3 * len(self.atoms)
        return np.array([self._kept[key] for key in keys], complex).reshape(-1, n, n)

    def _warn(self) -> None:
        """Warns of properties of the crystal that may be unintended."""
        name = self.atoms.get_chemical_formula()
        if np.abs(self.atoms.get_initial_magnetic_moments()).max(initial=0) > 0:
            warnings.warn(
                f"{name} carries magnetic moments, which potentials of this library do not take: phonons are "
                "those of the crystal without them.",
                stacklevel=4,
            )
        if self.symmetry.copies > 1:
            warnings.warn(
                f"{name} is {self.symmetry.copies} primitive cells: its branches are folded, and cost more "
                "than those of the primitive cell, which jaxmlip.phonons.primitive_cell gives.",
                stacklevel=4,
            )
        hidden = self.symmetry.hidden if self.symmetric else None
        if hidden is not None:
            warnings.warn(
                f"{name} is {hidden}. Relax it with its space group kept (relax(..., fix_symmetry=True), or "
                f"jaxmlip phonons --relax), which makes it so, or give symprec={NEARLY:g} (--symprec "
                f"{NEARLY:g}).",
                stacklevel=4,
            )
        off = 0.0 if self.nac is None or not self.symmetric else self.nac.asymmetry(self.group)
        if off > NOISE:
            warnings.warn(
                f"the charges or the dielectric tensor lack the symmetry of {name}, by up to {off:.2g}. "
                "Check that they are those of this crystal, in its axes and its order of atoms.",
                stacklevel=4,
            )


def phonon_modes(
    potential: Potential,
    crystal: Atoms | Structure,
    q_points: np.ndarray,
    *,
    weights: np.ndarray | None = None,
    directions: np.ndarray | None = None,
    **options: Any,
) -> Modes:
    """The modes at any wave vectors (q, 3), in reciprocal lattice units.

    At q = 0 the long-range part is its limit along the rows of `directions` (q, 3). `options` are those of
    `Lattice`: nac, method, tolerance, symmetry, symprec, memory_limit, shape. Raises and warns as that does,
    and raises ValueError as `bloch.dynamical_matrix` does.
    """
    return Lattice(potential, crystal, **options).modes(q_points, weights, directions)


def mesh_modes(
    potential: Potential, crystal: Atoms | Structure, mesh: tuple[int, int, int], **options: Any
) -> Modes:
    """The modes on a Γ-centred mesh; with symmetry, at one weighted wave vector of each star.

    Stars are those of the operations that also keep the masses. `options` are those of `Lattice`.
    """
    return Lattice(potential, crystal, **options).mesh(mesh)


def mesh_force_constants(
    potential: Potential, crystal: Atoms | Structure, mesh: tuple[int, int, int], **options: Any
) -> ForceConstants:
    """Force constants of the crystal repeated `mesh` times, from D(q) at the wave vectors that fit it.

    They equal `force_constants`, without the supercell, and with symmetry need few wave vectors. `options`
    are those of `Lattice`.
    """
    return Lattice(potential, crystal, **options).constants(mesh)


def band_modes(
    potential: Potential,
    crystal: Atoms | Structure,
    path: str | None = None,
    points: int = 101,
    **options: Any,
) -> Bands:
    """The modes along a path between special points, such as "GXWKGL,UX".

    The names are ASE's for the crystal's Bravais lattice (Setyawan & Curtarolo 2010); without a path, ASE's
    own is taken. About `points` wave vectors are spread evenly over it, including both ends of each segment.
    `options` are those of `Lattice`. Raises ValueError if a name is unknown.
    """
    return Lattice(potential, crystal, **options).bands(path, points)


def group_velocities(
    potential: Potential, crystal: Atoms | Structure, q_points: np.ndarray, *, nac: NAC | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Frequencies (q, 3n) in THz and group velocities ∂ω/∂k, (q, 3n, 3) in Å THz, 100 m/s each.

    D(q) is differentiated exactly: v = e†(∂D/∂q)e / 2ω. Degenerate modes are chosen so that they split along
    a generic direction. The velocity is zero if the frequency is zero. `nac` adds the long-range part of
    polar crystals, except at q = 0, where it has no limit.
    """
    return Lattice(potential, crystal, nac=nac).velocities(q_points)


def grueneisen(
    potential: Potential,
    crystal: Atoms | Structure,
    q_points: np.ndarray,
    *,
    strain: np.ndarray | None = None,
    relaxed: bool = True,
    nac: NAC | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Frequencies (q, 3n) in THz and mode Grüneisen parameters γ = -∂ln ω/∂ln V, (q, 3n).

    D(q) is differentiated exactly with respect to strain, without steps of volume. `strain` is the direction
    (3, 3) of strain, and γ is then -∂ln ω/∂s; without it, the strain is uniform. With `relaxed` the atoms of
    the cell follow to first order. γ is zero if the frequency is zero. `nac` adds the long-range part of
    polar crystals, except at q = 0; its charges and dielectric tensor keep their values.
    """
    return Lattice(potential, crystal, nac=nac).grueneisen(q_points, strain, relaxed)
